//! `quintic inspect`.

use quintic_kernels::Isa;
use serde_json::json;

use super::support::{Model, golden, run, run_as, testdata};

#[test]
fn a_folder_for_people() {
    let model = Model::pieces();
    let folder = model.path("model");
    let ran = run_as(Some("portable"), &["inspect", &folder]).good();
    let expected = format!(
        "path                {folder}/model.safetensors
format              safetensors
weight files        {folder}/model.safetensors
config              {folder}/config.json
family              t5
shape               vocab_size                       32,100
                    d_model                          8
                    d_ff                             12
                    d_kv                             4
                    num_heads                        2
                    num_layers                       2
                    num_decoder_layers               2
                    relative_attention_num_buckets   8
                    relative_attention_max_distance  128
                    layer_norm_epsilon               1e-6
feed forward        relu
tensors by type     F32  19
stored              1.0 MB
encoder parameters  936
has decoder         no
output head         none
"
    );
    assert!(ran.out.starts_with(&expected), "{}", ran.out);
    for line in [
        "\ntokenizer           T5Tokenizer over SentencePiece (unigram, 32000 pieces",
        "\nmemory              weights          1.0 MB\n                    per 1000 tokens  336.0 kB\n",
        "\nencoder             loads and runs\n",
    ] {
        assert!(ran.out.contains(line), "no {line} in {}", ran.out);
    }
    assert_eq!(ran.err, "");
}

#[test]
fn a_folder_for_programs() {
    let model = Model::bytes();
    let report = run_as(
        Some("portable"),
        &["inspect", "--json", &model.path("model")],
    )
    .good()
    .json();
    assert_eq!(report["shape"]["vocab_size"], 384);
    assert_eq!(report["tensors_by_type"], json!({ "F32": 19 }));
    // 384 * 8 of the embedding and 936 + 16 of the rest, 4 bytes each.
    assert_eq!(report["stored_bytes"], 4 * (384 * 8 + 936 + 16));
    assert_eq!(report["memory"]["weights_bytes"], report["stored_bytes"]);
    assert_eq!(report["memory"]["per_1000_tokens_bytes"], 336_000);
    assert_eq!(report["encoder_parameters"], 936);
    assert_eq!(report["has_decoder"], false);
    assert_eq!(report["encoder"], "loads and runs");
    assert_eq!(report["warnings"], json!([]));
    assert!(report.get("tensors").is_none());
    let tokenizer = report["tokenizer"].as_str().unwrap();
    assert!(tokenizer.to_lowercase().contains("byte"), "{tokenizer}");
}

/// Where f32 is multiplied in parts, the parts of the widest rows are held too: here 12 values of six bytes.
#[test]
fn memory_of_every_instruction_set() {
    let model = Model::bytes();
    for isa in Isa::available() {
        let args = ["inspect", "--json", &model.path("model")];
        let report = run_as(Some(isa.name()), &args).good().json();
        let expected = if isa == Isa::Amx { 408_000 } else { 336_000 };
        let bytes = &report["memory"]["per_1000_tokens_bytes"];
        assert_eq!(bytes, expected, "{isa:?}");
    }
}

#[test]
fn a_decoder_needs_no_memory() {
    let report = run(&["inspect", "--json", &golden("t5-v1_0")])
        .good()
        .json();
    assert_eq!(report["has_decoder"], true);
    assert_eq!(report["output_head"], "tied to the embedding");
    let bytes = |value: &serde_json::Value| value.as_u64().unwrap();
    assert!(bytes(&report["memory"]["weights_bytes"]) < bytes(&report["stored_bytes"]) / 2 + 8192);
    assert_eq!(report["tokenizer"], "none");
    let report = run(&["inspect", "--json", &golden("mt5")]).good().json();
    assert_eq!(report["weight_files"].as_array().unwrap().len(), 3);
    assert_eq!(report["output_head"], "none");
}

#[test]
fn a_single_file_without_config() {
    let model = Model::bytes();
    let file = model.path("alone.safetensors");
    std::fs::copy(model.file("model/model.safetensors"), &file).unwrap();
    let ran = run(&["inspect", &file]).good();
    let line = "config              none; shapes are the tensors', activation, max_distance and eps \
                by convention";
    assert!(ran.out.contains(line), "{}", ran.out);
    assert!(ran.out.contains("tokenizer           none"), "{}", ran.out);
    // A tokenizer from elsewhere.
    let spiece = testdata("tokenizers/t5/spiece.model");
    let ran = run(&["inspect", &file, "--tokenizer", spiece.to_str().unwrap()]).good();
    assert!(
        ran.out
            .contains("tokenizer           T5Tokenizer over SentencePiece (unigram, 32000 pieces"),
        "{}",
        ran.out
    );
}

#[test]
fn every_tensor() {
    let model = Model::bytes();
    let report = run(&["inspect", "--json", "--tensors", &model.path("model")])
        .good()
        .json();
    let tensors = report["tensors"].as_object().unwrap();
    assert_eq!(tensors.len(), 19);
    assert_eq!(tensors["shared.weight"], "F32 [384, 8]");
    let ran = run(&["inspect", "--tensors", &model.path("model")]).good();
    assert!(ran.out.contains("  shared.weight   "), "{}", ran.out);
}

#[test]
fn a_config_that_contradicts_the_tensors() {
    let model = Model::bytes();
    let config = std::fs::read_to_string(model.file("model/config.json")).unwrap();
    let with = |from: &str, to: &str| {
        assert!(config.contains(from));
        model.write("model/config.json", config.replace(from, to));
        run(&["inspect", &model.path("model")])
    };
    // The report comes all the same, and says it in place of the last line.
    let ran = with("\"d_ff\":12", "\"d_ff\":16");
    let said = "has shape [12, 8], expected [16, 8]";
    assert!(
        ran.out.contains("d_ff                             16"),
        "{}",
        ran.out
    );
    assert!(
        ran.out.lines().last().unwrap().contains(said),
        "{}",
        ran.out
    );
    ran.fails(
        6,
        &[
            "encoder.block.0.layer.1.DenseReluDense.wi.weight",
            said,
            "config.json",
        ],
    );
    with("\"num_layers\":2", "\"num_layers\":3").fails(6, &["encoder.block.2"]);
    with("\"num_layers\":2", "\"num_layers\":1").fails(6, &["encoder.block.1"]);
    with("\"relu\"", "\"gated-gelu\"").fails(6, &["one input product, `wi`", "says gated", "hint"]);
    with("\"d_model\":8", "\"d_model\":0").fails(5, &["config.json", "d_model"]);
    with("\"d_model\"", "\"width\"").fails(5, &["config.json", "d_model"]);
    with("{", "[").fails(5, &["config.json"]);
}

#[test]
fn damaged_models() {
    let model = Model::bytes();
    let whole = std::fs::read(model.file("model/model.safetensors")).unwrap();
    for (n_bytes, part) in [
        (0, "the file is empty, expected a safetensors header"),
        (
            5,
            "the file has 5 bytes, expected at least the 8 of the header length",
        ),
        (100, "the file ends after 92 of them"),
        (whole.len() - 1, "was the download or copy cut short?"),
    ] {
        model.write("model/model.safetensors", &whole[..n_bytes]);
        let path = model.path("model/model.safetensors");
        run(&["inspect", &model.path("model")]).fails(6, &[&path, part]);
        run(&["inspect", "--json", &path]).fails(6, &[&path, part]);
    }
}

#[test]
fn parts_that_are_wrong_are_said_in_place() {
    let model = Model::pieces();
    model.write("model/spiece.model", "no model");
    let report = run(&["inspect", "--json", &model.path("model")])
        .good()
        .json();
    let tokenizer = report["tokenizer"].as_str().unwrap();
    assert!(tokenizer.contains("spiece.model: "), "{tokenizer}");
    model.write("model/modules.json", "[]");
    let ran = run(&["inspect", "--json", &model.path("model")]);
    let head = ran.json()["sentence_head"].as_str().unwrap().to_owned();
    assert!(
        head.ends_with("modules.json: there is no Pooling module"),
        "{head}"
    );
    ran.fails(5, &["there is no Pooling module"]);
}
