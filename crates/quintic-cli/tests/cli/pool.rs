//! `quintic encode --pool`.

use quintic::backend::Pool;
use quintic::batch::PackedBatch;
use quintic::sentence::normalize;
use serde_json::json;

use super::support::{Model, write_floats};

const TEXTS: [&str; 3] = ["a cat", "", "two dogs, one \u{e9}"];

#[test]
fn pooling() {
    let model = Model::bytes();
    let encoder = model.encoder();
    let batch = PackedBatch::from_rows(&model.ids(&TEXTS), 384).unwrap();
    for (name, pool) in [
        ("mean", Pool::Mean),
        ("first", Pool::First),
        ("last", Pool::Last),
    ] {
        model
            .encode("out.safetensors", &[&["--pool", name], &TEXTS[..]].concat())
            .good();
        let (shape, values) = model.floats("out.safetensors", "embeddings");
        assert_eq!(shape, [3, 8]);
        let mut expected = encoder.pooled(&batch, pool).unwrap();
        assert_eq!(values, expected, "{name}");
        assert_eq!(model.tensors("out.safetensors").entries().len(), 1);

        let args = [&["--normalize", "--pool", name], &TEXTS[..]].concat();
        model.encode("out.safetensors", &args).good();
        normalize(&mut expected, 8);
        assert_eq!(
            model.floats("out.safetensors", "embeddings").1,
            expected,
            "{name}"
        );
    }
}

#[test]
fn the_models_own_pooling() {
    let model = Model::bytes();
    let modules = json!([
        { "path": "", "type": "sentence_transformers.models.Transformer" },
        { "path": "1_Pooling", "type": "sentence_transformers.models.Pooling" },
        { "path": "2_Dense", "type": "sentence_transformers.models.Dense" },
        { "path": "3_Normalize", "type": "sentence_transformers.models.Normalize" },
    ]);
    for (folder, config) in [
        ("1_Pooling", json!({ "pooling_mode_mean_tokens": true })),
        (
            "2_Dense",
            json!({ "in_features": 8, "out_features": 2, "bias": false,
                "activation_function": "torch.nn.modules.linear.Identity" }),
        ),
    ] {
        std::fs::create_dir(model.file("model").join(folder)).unwrap();
        model.write(&format!("model/{folder}/config.json"), config.to_string());
    }
    model.write("model/modules.json", modules.to_string());
    model.write(
        "model/sentence_bert_config.json",
        r#"{"max_seq_length": 5}"#,
    );
    let dense: Vec<f32> = (0..16).map(|i| i as f32 / 16.0 - 0.3).collect();
    let file = model.file("model/2_Dense/model.safetensors");
    write_floats(&file, &[("linear.weight", &[2, 8], &dense)]);

    model
        .encode(
            "out.safetensors",
            &["--pool", "sentence", "a long sentence"],
        )
        .good();
    let ids = model
        .tokenizer()
        .encode_truncated("a long sentence", 5)
        .unwrap();
    assert_eq!(ids.len(), 5);
    let pooled = |ids: Vec<u32>| {
        let batch = PackedBatch::from_rows(&[ids], 384).unwrap();
        let encoder = model.encoder();
        let head = encoder.sentence_head().unwrap().unwrap();
        head.apply(encoder.pooled(&batch, Pool::Mean).unwrap(), 8)
    };
    let (shape, values) = model.floats("out.safetensors", "embeddings");
    assert_eq!((shape, values), (vec![1, 2], pooled(ids)));
    // A length of one's own wins over the model's.
    let args = ["--pool", "sentence", "--max-length", "7", "a long sentence"];
    model.encode("out.safetensors", &args).good();
    let ids = model
        .tokenizer()
        .encode_truncated("a long sentence", 7)
        .unwrap();
    assert_eq!(model.floats("out.safetensors", "embeddings").1, pooled(ids));
}
