//! `quintic encode` with texts.

use quintic::batch::PackedBatch;
use serde_json::json;

use super::support::{Model, run, run_with};

const TEXTS: [&str; 3] = ["a cat", "", "two dogs, one \u{e9}"];

/// The library's own result for texts.
fn expected(model: &Model, texts: &[&str]) -> Vec<f32> {
    expected_ids(model, &model.ids(texts))
}

fn expected_ids(model: &Model, ids: &[Vec<u32>]) -> Vec<f32> {
    let batch = PackedBatch::from_rows(ids, 384).unwrap();
    model.encoder().hidden_states(&batch, false).unwrap().last
}

fn starts(ids: &[Vec<u32>]) -> Vec<i64> {
    let mut starts = vec![0];
    for row in ids {
        starts.push(starts[starts.len() - 1] + row.len() as i64);
    }
    starts
}

fn i64s(model: &Model, file: &str, tensor: &str) -> Vec<i64> {
    let tensor = model.tensors(file).take(tensor).unwrap();
    tensor
        .bytes()
        .chunks_exact(8)
        .map(|b| i64::from_le_bytes(b.try_into().unwrap()))
        .collect()
}

#[test]
fn packed_layout_explains_itself() {
    let model = Model::bytes();
    let ran = model.encode("out.safetensors", &TEXTS).good();
    assert!(ran.out.is_empty());
    assert!(
        ran.err.contains("3 rows, 24 tokens, loaded in "),
        "{}",
        ran.err
    );
    let ids = model.ids(&TEXTS);
    let n_tokens = ids.iter().map(Vec::len).sum();
    let (shape, values) = model.floats("out.safetensors", "last_hidden_state");
    assert_eq!(shape, [n_tokens, 8]);
    assert_eq!(values, expected(&model, &TEXTS));
    assert_eq!(i64s(&model, "out.safetensors", "row_starts"), starts(&ids));
    let flat: Vec<i64> = ids.iter().flatten().map(|&id| i64::from(id)).collect();
    assert_eq!(i64s(&model, "out.safetensors", "input_ids"), flat);
    let file = model.tensors("out.safetensors");
    let names: Vec<&str> = file.entries().iter().map(|entry| entry.name()).collect();
    assert_eq!(names, ["last_hidden_state", "row_starts", "input_ids"]);
}

#[test]
fn padded_layout() {
    let model = Model::bytes();
    model
        .encode(
            "out.safetensors",
            &["--store", "padded", "a cat", "", "dogs"],
        )
        .good();
    let texts = ["a cat", "", "dogs"];
    let ids = model.ids(&texts);
    let len = 6;
    let (shape, values) = model.floats("out.safetensors", "last_hidden_state");
    assert_eq!(shape, [3, len, 8]);
    let packed = expected(&model, &texts);
    let mask = i64s(&model, "out.safetensors", "attention_mask");
    let padded_ids = i64s(&model, "out.safetensors", "input_ids");
    let mut next = packed.chunks_exact(8);
    for (row, ids) in ids.iter().enumerate() {
        for column in 0..len {
            let slot = row * len + column;
            let value = &values[slot * 8..(slot + 1) * 8];
            let id = ids.get(column).copied();
            assert_eq!(mask[slot], i64::from(id.is_some()));
            assert_eq!(padded_ids[slot], i64::from(id.unwrap_or(0)));
            match id {
                Some(_) => assert_eq!(value, next.next().unwrap()),
                None => assert_eq!(value, [0.0; 8]),
            }
        }
    }
    model
        .encode("real.safetensors", &["--store", "real", "a cat"])
        .good();
    assert_eq!(
        model.floats("real.safetensors", "last_hidden_state").1,
        expected(&model, &["a cat"])
    );
}

#[test]
fn texts_from_files_and_standard_input() {
    let model = Model::bytes();
    let expected = expected(&model, &TEXTS);
    let same = |name: &str| {
        assert_eq!(
            model.floats(name, "last_hidden_state").1,
            expected,
            "{name}"
        );
    };
    let lines = TEXTS.join("\r\n") + "\r\n";
    let txt = model.write("in.txt", format!("\u{feff}{lines}"));
    model.encode("txt.safetensors", &["--input", &txt]).good();
    same("txt.safetensors");

    let tsv: String = TEXTS
        .iter()
        .map(|text| format!("7\t{text}\tno\n"))
        .collect();
    let tsv = model.write("in.tsv", format!("id\tPrompt\tother\n{tsv}"));
    model.encode("tsv.safetensors", &["--input", &tsv]).good();
    same("tsv.safetensors");
    model
        .encode(
            "column.safetensors",
            &["--input", &tsv, "--column", "Prompt"],
        )
        .good();
    same("column.safetensors");

    let jsonl: String = TEXTS
        .iter()
        .map(|text| json!({ "id": 1, "words": text }).to_string() + "\n")
        .collect();
    let jsonl = model.write("in.jsonl", jsonl);
    model
        .encode(
            "jsonl.safetensors",
            &["--input", &jsonl, "--column", "words"],
        )
        .good();
    same("jsonl.safetensors");

    let (path, out) = (model.path("model"), model.path("stdin.safetensors"));
    let args = ["encode", "--model", &path, "-o", &out, "--input", "-"];
    run_with(&args, lines.as_bytes()).good();
    same("stdin.safetensors");
}

#[test]
fn every_hidden_state() {
    let model = Model::bytes();
    model
        .encode(
            "out.safetensors",
            &[&["--hidden-states"], &TEXTS[..]].concat(),
        )
        .good();
    let ids = model.ids(&TEXTS);
    let batch = PackedBatch::from_rows(&ids, 384).unwrap();
    let states = model.encoder().hidden_states(&batch, true).unwrap();
    let state = |name: &str| model.floats("out.safetensors", name).1;
    assert_eq!(state("hidden_states.0"), states.inner[0]);
    assert_eq!(state("hidden_states.1"), states.inner[1]);
    assert_eq!(state("hidden_states.2"), states.last);
    assert_eq!(state("last_hidden_state"), states.last);
    let table = quintic::checkpoint::SafetensorsFile::open(&model.file("model/model.safetensors"))
        .unwrap()
        .take("shared.weight")
        .unwrap()
        .to_f32();
    let embeddings: Vec<f32> = ids
        .iter()
        .flatten()
        .flat_map(|&id| table[id as usize * 8..][..8].to_vec())
        .collect();
    assert_eq!(state("hidden_states.0"), embeddings);
    let file = model.tensors("out.safetensors");
    let n_states = file
        .entries()
        .iter()
        .filter(|e| e.name().starts_with("hidden_states."))
        .count();
    assert_eq!(n_states, 3);
}

#[test]
fn batches_of_any_size_give_the_same_bits() {
    let model = Model::bytes();
    let texts = model.write("in.txt", "one\ntwo two\n\nthree three three\nfour\n");
    for layout in [
        &["--store", "real", "--hidden-states"][..],
        &["--store", "padded"],
        &["--pool", "mean"],
    ] {
        let mut files = Vec::new();
        for tokens in ["1", "9", "100000"] {
            let args = [&["--batch-tokens", tokens, "--input", &texts], layout].concat();
            model.encode("out.safetensors", &args).good();
            files.push(std::fs::read(model.file("out.safetensors")).unwrap());
        }
        assert!(files[0] == files[1] && files[1] == files[2], "{layout:?}");
    }
}

#[test]
fn texts_are_cut() {
    let model = Model::bytes();
    model
        .encode("out.safetensors", &["--max-length", "4", "abcdef", "x"])
        .good();
    assert_eq!(i64s(&model, "out.safetensors", "row_starts"), [0, 4, 6]);
    let ids = i64s(&model, "out.safetensors", "input_ids");
    assert_eq!(ids, [100, 101, 102, 1, 123, 1]);
    let ids = [vec![100, 101, 102, 1], vec![123, 1]];
    assert_eq!(
        model.floats("out.safetensors", "last_hidden_state").1,
        expected_ids(&model, &ids)
    );
}

#[test]
fn a_summary_for_programs() {
    let model = Model::pieces();
    let ran = model
        .encode("out.safetensors", &["--json", "two cats \u{1f408}"])
        .good();
    assert!(
        ran.err.contains("not in the vocabulary and became `<unk>`"),
        "{}",
        ran.err
    );
    let summary = ran.json();
    let fields: Vec<&str> = summary
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(
        fields,
        [
            "output",
            "model",
            "tokenizer",
            "backend",
            "dtype",
            "rows",
            "tokens",
            "unknown_tokens",
            "load_s",
            "encode_s",
            "tokens_per_s",
            "peak_rss_bytes"
        ]
    );
    assert_eq!(summary["rows"], 1);
    assert_eq!(
        summary["tokens"],
        model.ids(&["two cats \u{1f408}"])[0].len()
    );
    assert_eq!(summary["unknown_tokens"], 1);
    assert_eq!(summary["backend"], "cpu");
    assert_eq!(summary["dtype"], "f32");
    assert_eq!(summary["output"], model.path("out.safetensors"));
    for name in ["load_s", "encode_s", "tokens_per_s"] {
        assert!(summary[name].as_f64().unwrap() > 0.0, "{name}");
    }
}

#[test]
fn quiet_is_silent() {
    let model = Model::pieces();
    let ran = model
        .encode("out.safetensors", &["--quiet", "\u{1f408}"])
        .good();
    assert_eq!((ran.out.as_str(), ran.err.as_str()), ("", ""));
    let ran = model
        .encode("out.safetensors", &["-q", "--json", "\u{1f408}"])
        .good();
    assert_eq!(ran.err, "");
    assert_eq!(ran.json()["rows"], 1);
}

#[test]
fn models_that_are_not_folders() {
    let model = Model::bytes();
    let file = model.path("model/model.safetensors");
    let tokenizer = model.path("model");
    std::fs::rename(
        model.file("model/tokenizer_config.json"),
        model.file("tokenizer_config.json"),
    )
    .unwrap();
    let args = |out| {
        [
            "encode", "--model", &file, "-o", out, "hi", "--dtype", "f32",
        ]
    };
    let out = model.path("out.safetensors");
    run(&args(&out)).fails(4, &["the model has no tokenizer beside it", "--tokenizer"]);
    run(&[&args(&out)[..], &["--tokenizer", &tokenizer]].concat()).fails(4, &["tokenizer.json"]);
    std::fs::rename(
        model.file("tokenizer_config.json"),
        model.file("model/tokenizer_config.json"),
    )
    .unwrap();
    run(&[
        &args(&out)[..],
        &["--tokenizer", &tokenizer, "--backend", "cpu"],
    ]
    .concat())
    .good();
    assert_eq!(
        model.floats("out.safetensors", "last_hidden_state").1,
        expected(&model, &["hi"])
    );
    // The same encoder one folder deeper.
    let root = model.path("");
    let args = [
        "encode",
        "--model",
        &root,
        "--subfolder",
        "model",
        "-o",
        &out,
        "hi",
        "--tokenizer",
    ];
    run(&[&args[..], &[&tokenizer]].concat()).good();
    assert_eq!(
        model.floats("out.safetensors", "last_hidden_state").1,
        expected(&model, &["hi"])
    );
}
