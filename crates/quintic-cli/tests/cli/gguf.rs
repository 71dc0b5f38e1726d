//! Models in GGUF files.

use super::support::{run, testdata};

fn file(name: &str) -> String {
    let path = testdata("gguf").join(name).join("model.gguf");
    path.to_str().unwrap().to_owned()
}

#[test]
fn inspect_says_what_is_in_the_file() {
    let report = run(&["inspect", "--json", &file("t5")]).good().json();
    assert_eq!(report["format"], "gguf");
    assert_eq!(report["family"], "t5");
    assert_eq!(report["has_decoder"], true);
    assert_eq!(report["output_head"], "tied to the embedding");
    assert_eq!(report["shape"]["num_decoder_layers"], 1);
    assert!(report["tensors_by_type"]["Q4_0"].as_u64() > Some(0));
    assert_eq!(report["encoder"], "loads and runs");
    let warning = report["warnings"][0].as_str().unwrap();
    assert!(warning.contains("precompiled_charsmap"), "{warning}");
    let tokenizer = report["tokenizer"].as_str().unwrap();
    assert!(tokenizer.contains("unigram, 8 pieces"), "{tokenizer}");
    let report = run(&["inspect", "--json", &file("umt5")]).good().json();
    assert_eq!(report["family"], "umt5");
    assert_eq!(report["feed_forward"], "gated gelu (tanh)");
}

#[test]
fn texts_are_encoded() {
    let encode = |backend: &str| {
        let file = file("umt5");
        let arguments = ["encode", "--model", &file, "--quiet", "--backend", backend];
        let more = ["--pool", "mean", "-o", "-", "ab b", "a"];
        run(&[&arguments[..], &more].concat()).good().json_lines()
    };
    for backend in ["cpu", "reference"] {
        let lines = encode(backend);
        assert_eq!(lines.len(), 2);
        assert_eq!(
            lines[0]["embedding"].as_array().map(Vec::len),
            Some(32),
            "{:?}",
            lines[0]
        );
    }
    // A model with random weights, which chooses an id that its tokenizer has no piece for.
    let model = file("t5");
    let arguments = ["generate", "--model", &model, "--quiet", "ab b"];
    run(&arguments).fails(8, &["is not in the vocabulary of 8 ids"]);
}
