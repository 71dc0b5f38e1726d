//! `quintic tokenize`.

use serde_json::json;

use super::support::{Model, run, run_with, testdata};

#[test]
fn ids_and_tokens_for_people() {
    let model = Model::pieces();
    let ran = run(&["tokenize", "--model", &model.path("model"), "A cat."]).good();
    assert_eq!(
        ran.out,
        "     71  \u{2581}A\n   1712  \u{2581}cat\n      5  .\n      1  </s>\n      4  tokens\n\n"
    );
    assert_eq!(ran.err, "");
}

#[test]
fn ids_and_tokens_for_programs() {
    let model = Model::pieces();
    let args = ["tokenize", "--json", "--model", &model.path("model")];
    let with = |more: &[&str]| run(&[&args[..], more].concat()).good().json_lines();
    let line = json!({
        "text": "A cat.", "ids": [71, 1712, 5, 1],
        "tokens": ["\u{2581}A", "\u{2581}cat", ".", "</s>"],
    });
    assert_eq!(with(&["A cat."]), [line]);
    let no_end = with(&["--no-special-tokens", "A cat.", ""]);
    assert_eq!(no_end[0]["ids"], json!([71, 1712, 5]));
    assert_eq!(no_end[1]["ids"], json!([]));
    assert_eq!(
        with(&["--max-length", "3", "A cat."])[0]["ids"],
        json!([71, 1712, 1])
    );
}

#[test]
fn texts_from_files() {
    let model = Model::pieces();
    let args = [
        "tokenize",
        "--json",
        "--model",
        &model.path("model"),
        "--input",
    ];
    let tsv = model.write("in.tsv", "n\twords\n1\tA cat.\n");
    let lines = run(&[&args[..], &[&tsv, "--column", "words"]].concat())
        .good()
        .json_lines();
    assert_eq!(lines[0]["ids"], json!([71, 1712, 5, 1]));
    let lines = run_with(&[&args[..], &["-"]].concat(), b"A cat.\n\n")
        .good()
        .json_lines();
    assert_eq!(lines[0]["ids"], json!([71, 1712, 5, 1]));
    assert_eq!(lines[1]["ids"], json!([1]));
}

#[test]
fn tokenizers_without_weights() {
    let spiece = testdata("tokenizers/t5/spiece.model");
    let spiece = spiece.to_str().unwrap();
    let ids = |args: &[&str]| {
        run(&[&["tokenize", "--json"], args].concat())
            .good()
            .json_lines()[0]["ids"]
            .clone()
    };
    let expected = json!([71, 1712, 5, 1]);
    // No model at all, or one whose own tokenizer is passed over.
    assert_eq!(ids(&["--tokenizer", spiece, "A cat."]), expected);
    let bytes = Model::bytes();
    assert_eq!(
        ids(&[
            "--model",
            &bytes.path("model"),
            "--tokenizer",
            spiece,
            "A cat."
        ]),
        expected
    );

    let pieces = Model::pieces();
    std::fs::remove_file(pieces.file("model/model.safetensors")).unwrap();
    let folder = pieces.path("model");
    assert_eq!(ids(&["--model", &folder, "A cat."]), expected);
    assert_eq!(
        ids(&["--model", &folder, "--tokenizer-kind", "slow", "A cat."]),
        expected
    );
    assert_eq!(
        ids(&["--tokenizer", &folder, "--tokenizer-kind", "auto", "A cat."]),
        expected
    );
    let folder = testdata("tokenizers/byt5");
    assert_eq!(
        ids(&["--model", folder.to_str().unwrap(), "a"]),
        json!([100, 1])
    );
}

#[test]
fn tokenizers_that_are_not_there() {
    let model = Model::pieces();
    let folder = model.path("model");
    run(&[
        "tokenize",
        "--model",
        &folder,
        "--tokenizer-kind",
        "fast",
        "x",
    ])
    .fails(4, &["tokenizer.json: cannot read"]);
    let spiece = model.path("model/spiece.model");
    run(&[
        "tokenize",
        "--tokenizer",
        &spiece,
        "--tokenizer-kind",
        "slow",
        "x",
    ])
    .fails(
        8,
        &["spiece.model: `--tokenizer-kind` chooses among the files of a folder"],
    );
    run(&["tokenize", "--tokenizer", &model.path("none"), "x"]).fails(4, &["none: cannot read"]);
    std::fs::remove_file(&spiece).unwrap();
    run(&["tokenize", "--model", &folder, "x"]).fails(
        4,
        &["model.safetensors: the model has no tokenizer beside it"],
    );
    run(&[
        "tokenize",
        "--tokenizer",
        &model.write("bad.model", "?"),
        "x",
    ])
    .fails(7, &["bad.model: "]);
    run(&[
        "tokenize",
        "--tokenizer",
        &model.write("bad.json", "{"),
        "x",
    ])
    .fails(7, &["bad.json: "]);
    let spiece = testdata("tokenizers/t5/spiece.model");
    let spiece = spiece.to_str().unwrap();
    run(&["tokenize", "--tokenizer", spiece, "--max-length", "0", "x"]).fails(8, &["0"]);
}
