//! `encode --preset`: each pipeline's length, mask, padding and cleaning.

use quintic::batch::{PadRows, PaddedBatch, PaddedMask};

use crate::support::{Model, run};

/// What the library gives for padded ids under a mask.
fn expected(model: &Model, ids: &[i64], rows: usize, mask: PaddedMask, pads: PadRows) -> Vec<f32> {
    let batch = PaddedBatch::new(ids.to_vec(), rows, ids.len() / rows, mask).unwrap();
    let encoder = model.encoder();
    let (packed, layout) = batch.pack(pads, encoder.config().vocab_size).unwrap();
    let states = encoder.hidden_states(&packed, false).unwrap().last;
    layout.unpack(&states, encoder.config().d_model)
}

/// Ids of the texts, padded with 0 to `length`, and which of them are tokens.
fn padded(model: &Model, texts: &[&str], length: usize) -> (Vec<i64>, Vec<bool>) {
    let (mut ids, mut real) = (Vec::new(), Vec::new());
    for row in model.ids(texts) {
        real.extend((0..length).map(|position| position < row.len()));
        ids.extend(row.into_iter().map(i64::from));
        ids.resize(real.len(), 0);
    }
    (ids, real)
}

#[test]
fn flux_reads_padding_as_text() {
    let model = Model::bytes();
    model
        .encode(
            "out.safetensors",
            &["--preset", "flux", "--max-length", "7", "abc", "z"],
        )
        .good();
    let (ids, real) = padded(&model, &["abc", "z"], 7);
    let (shape, states) = model.floats("out.safetensors", "last_hidden_state");
    assert_eq!(shape[..2], [2, 7]);
    assert_eq!(
        states,
        expected(&model, &ids, 2, PaddedMask::None, PadRows::Compute)
    );
    let (_, mask) = model.integers("out.safetensors", "attention_mask");
    assert_eq!(
        mask,
        real.iter()
            .map(|&token| i64::from(token))
            .collect::<Vec<_>>()
    );
    assert!(
        model
            .tensors("out.safetensors")
            .entry("image_mask")
            .is_none()
    );
}

#[test]
fn mochi_masks_and_keeps_what_padding_gives() {
    let model = Model::bytes();
    let args = ["--preset", "mochi", "--max-length", "7", "abc", "z"];
    model.encode("out.safetensors", &args).good();
    let (ids, real) = padded(&model, &["abc", "z"], 7);
    let (_, states) = model.floats("out.safetensors", "last_hidden_state");
    let mask = PaddedMask::Keys(real.clone());
    assert_eq!(states, expected(&model, &ids, 2, mask, PadRows::Compute));
    let (shape, seen) = model.integers("out.safetensors", "image_mask");
    assert_eq!(shape, [2, 7]);
    assert_eq!(
        seen,
        real.iter()
            .map(|&token| i64::from(token))
            .collect::<Vec<_>>()
    );
}

#[test]
fn cosmos_zeroes_the_tail_and_the_default_length_is_the_pipelines() {
    let model = Model::bytes();
    model
        .encode("out.safetensors", &["--preset", "cosmos", "abc"])
        .good();
    let (shape, states) = model.floats("out.safetensors", "last_hidden_state");
    assert_eq!(shape[..2], [1, 512]);
    let (ids, real) = padded(&model, &["abc"], 512);
    assert_eq!(
        states,
        expected(&model, &ids, 1, PaddedMask::Keys(real), PadRows::Zero)
    );
    assert!(states[4 * shape[2]..].iter().all(|&value| value == 0.0));
}

#[test]
fn pixart_lowers_and_kandinsky_cuts() {
    let model = Model::bytes();
    let args = ["--preset", "pixart", "--max-length", "5", "  AbC "];
    model.encode("out.safetensors", &args).good();
    let (_, ids) = model.integers("out.safetensors", "input_ids");
    assert_eq!(ids, [100, 101, 102, 1, 0]);

    let args = ["--preset", "kandinsky3", "--max-length", "9", "abc", "z"];
    model.encode("out.safetensors", &args).good();
    let (shape, _) = model.floats("out.safetensors", "last_hidden_state");
    assert_eq!(shape[..2], [2, 5], "the longest row and one more");
    let args = ["--preset", "kandinsky3", "--max-length", "9", "abc", "z"];
    model.encode("out.jsonl", &args).good();
    let lines = std::fs::read_to_string(model.file("out.jsonl")).unwrap();
    for line in lines.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["input_ids"].as_array().unwrap().len(), 5);
        assert_eq!(line["last_hidden_state"].as_array().unwrap().len(), 5);
    }
}

#[test]
fn mistakes() {
    let model = Model::bytes();
    let encode = |args: &[&str]| model.encode("out.safetensors", args);
    encode(&["--preset", "fluxx", "a"]).fails(4, &["no preset `fluxx`", "did you mean `flux`?"]);
    encode(&["--preset", "wan", "a"]).fails(8, &["the model is `t5`", "expects UMT5"]);
    encode(&["--preset", "flux", "--max-length", "0", "a"]).fails(8, &["the length is 0"]);
    encode(&["--preset", "flux", "--pool", "mean", "a"]).fails(2, &["cannot be used with"]);
    let ids = model.path("ids.safetensors");
    let args = [
        "encode",
        "--model",
        &model.path("model"),
        "--input-ids",
        &ids,
        "--tokenizer-kind",
        "slow",
    ];
    run(&[&args[..], &["-o", "x.npy"]].concat()).fails(8, &["nothing to do with `--input-ids`"]);
}
