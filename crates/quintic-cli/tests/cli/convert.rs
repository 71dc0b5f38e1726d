//! `quintic convert --pack`, and the commands over what it writes.

use super::support::{Model, Ran, run};

/// A model with a packed copy in `packed/`.
fn packed(args: &[&str]) -> (Model, Ran) {
    let model = Model::bytes();
    let ran = convert(&model, args).good();
    (model, ran)
}

fn convert(model: &Model, args: &[&str]) -> Ran {
    let (from, to) = (model.path("model"), model.path("packed"));
    run(&[&["convert", "--pack", "--model", &from, "-o", &to], args].concat())
}

fn encode(model: &Model, folder: &str, out: &str, args: &[&str]) -> Ran {
    let (folder, out) = (model.path(folder), model.path(out));
    run(&[&["encode", "--model", &folder, "-o", &out, "a text"], args].concat())
}

#[test]
fn a_packed_model_encodes_to_the_same_file() {
    for choice in [
        &["--dtype", "bf16"][..],
        &["--dtype", "f16"],
        &["--matmul-precision", "medium", "--fold-norm-gains"],
        &["--weights", "int8"],
        &["--weights", "w8a8", "--keep", "o,wi"],
        &[],
    ] {
        let (model, ran) = packed(choice);
        assert!(ran.out.contains("3 files"), "{}", ran.out);
        encode(&model, "model", "a.npy", choice).good();
        // What was chosen then is what is taken now, and may be said again.
        for again in [&[][..], choice] {
            encode(&model, "packed", "b.npy", again).good();
            let file = |name: &str| std::fs::read(model.file(name)).unwrap();
            assert_eq!(file("a.npy"), file("b.npy"), "{choice:?}");
        }
    }
}

#[test]
fn summaries_say_what_it_is_packed_for() {
    let (model, ran) = packed(&["--dtype", "bf16", "--json", "--quiet"]);
    let summary = ran.json();
    assert_eq!(summary["dtype"], "bf16");
    assert_eq!(summary["fold_norm_gains"], false);
    let file = model.file("packed/model.packed.safetensors");
    assert_eq!(
        summary["packed_bytes"],
        std::fs::metadata(file).unwrap().len()
    );
    let ran = encode(&model, "packed", "b.npy", &["--json", "--quiet"]).good();
    assert_eq!(ran.json()["dtype"], "bf16");
    let report = run(&["inspect", &model.path("packed"), "--json"])
        .good()
        .json();
    assert_eq!(report["packed"]["dtype"], "bf16");
    assert_eq!(report["packed"]["matrices"], "8 in bf16");
    assert_eq!(report["encoder"], "loads and runs");
    let report = run(&["inspect", &model.path("packed")]).good().out;
    assert!(report.contains("panels-of-32/1"), "{report}");
    let report = run(&["inspect", &model.path("model")]).good().out;
    assert!(!report.contains("panels"), "{report}");
}

#[test]
fn summaries_say_which_products_are_integers() {
    let (model, ran) = packed(&["--weights", "int4", "--keep", "wo", "--json", "--quiet"]);
    assert_eq!(ran.json()["weights"], "int4");
    let report = run(&["inspect", &model.path("packed"), "--json"])
        .good()
        .json();
    assert_eq!(report["packed"]["weights"], "int4");
    assert_eq!(report["packed"]["keep"], "wo");
    assert_eq!(report["packed"]["matrices"], "2 in f32, 6 in int4");
    encode(&model, "packed", "b.npy", &["--weights", "int8"])
        .fails(8, &["`weights` is `int8`", "packed for `int4`"]);
    encode(&model, "model", "b.npy", &["--keep", "wo"]).fails(2, &["--weights"]);
    encode(
        &model,
        "model",
        "b.npy",
        &["--weights", "int8", "--keep", "w"],
    )
    .fails(9, &["no product `w`"]);
    encode(
        &model,
        "model",
        "b.npy",
        &["--weights", "int8", "--backend", "reference"],
    )
    .fails(9, &["reference backend", "`weights`"]);
}

#[test]
fn a_contradiction_names_both() {
    let (model, _) = packed(&["--dtype", "bf16"]);
    encode(&model, "packed", "b.npy", &["--dtype", "f32"]).fails(
        8,
        &["`dtype` is `f32`", "packed for `bf16`", "leave `dtype`"],
    );
    encode(&model, "packed", "b.npy", &["--fold-norm-gains"])
        .fails(8, &["`fold_norm_gains` is `true`", "packed for `false`"]);
    encode(&model, "packed", "b.npy", &["--backend", "reference"])
        .fails(9, &["model.packed.safetensors", "reference backend"]);
}

#[test]
fn mistakes() {
    let (model, _) = packed(&[]);
    convert(&model, &[]).fails(8, &["/packed", "not empty"]);
    let (from, to) = (model.path("packed"), model.path("again"));
    run(&["convert", "--pack", "--model", &from, "-o", &to]).fails(9, &["packed already"]);
    run(&["convert", "--model", &from, "-o", &to]).fails(2, &["--pack"]);
    let pack = ["convert", "--pack", "--model", &from, "-o", &to];
    run(&[&pack[..], &["--backend", "reference"]].concat()).fails(9, &["`reference`"]);
    run(&[&pack[..], &["--tokenizer", "x"]].concat()).fails(8, &["--tokenizer"]);
    assert_eq!(model.listing(), ["model", "packed"]);
}

#[test]
fn a_packed_model_is_measured_without_the_reference() {
    let (model, _) = packed(&["--dtype", "bf16"]);
    let folder = model.path("packed");
    let args = ["bench", "--shape", &folder, "--tokens", "5", "--runs", "1"];
    let ran = run(&[&args[..], &["--skip-limits", "--json"]].concat()).good();
    assert_eq!(ran.json()["verified_rel_rms"], serde_json::Value::Null);
    assert_eq!(ran.json()["dtype"], "bf16");
}

fn convert_to(model: &Model, out: &str, args: &[&str]) -> Ran {
    let (from, to) = (model.path("model"), model.path(out));
    run(&[&["convert", "--model", &from, "-o", &to], args].concat())
}

#[test]
fn other_types_and_files() {
    let model = Model::bytes();
    let args = ["--to", "safetensors", "--dtype", "bf16"];
    let ran = convert_to(&model, "out", &args).good();
    // Weights, config, tokenizer_config.
    assert!(
        ran.out.contains(" of tensors in ") && ran.out.contains("3 files"),
        "{}",
        ran.out
    );
    assert_eq!(ran.err, "");
    // Norms and the embedding are rounded, too, which products in bf16 leave alone.
    encode(&model, "model", "a.safetensors", &[]).good();
    encode(&model, "out", "b.safetensors", &[]).good();
    let (a, b) = (model.path("a.safetensors"), model.path("b.safetensors"));
    let difference = run(&["compare", &a, &b, "--json"]).good().json();
    let rms = difference["last_hidden_state"]["relative_rms"]
        .as_f64()
        .unwrap();
    assert!(rms > 0.0 && rms < 2e-2, "{rms}");

    let args = [
        "--to",
        "safetensors",
        "--dtype",
        "f16",
        "--max-shard-size",
        "1KB",
        "--json",
    ];
    let summary = convert_to(&model, "shards", &args).good().json();
    let files = summary["files"].as_array().unwrap();
    assert!(
        files.contains(&"model.safetensors.index.json".into()),
        "{summary}"
    );
    assert_eq!(summary["dtype"], "f16");
    encode(&model, "shards", "c.npy", &[]).good();

    let args = ["--to", "safetensors", "--json"];
    let summary = convert_to(&model, "one.safetensors", &args).good().json();
    assert_eq!(
        summary["files"],
        serde_json::json!([model.path("one.safetensors")])
    );
    let (a, b) = (
        model.path("model/model.safetensors"),
        model.path("one.safetensors"),
    );
    run(&["compare", &a, &b, "--max", "0"]).good();
}

#[test]
fn gguf_files() {
    let model = Model::pieces();
    let ran = convert_to(&model, "x.gguf", &["--to", "gguf", "--dtype", "q8_0"]).good();
    assert!(ran.out.contains("1 file"), "{}", ran.out);
    // d_model is 8.
    assert!(
        ran.err.contains("no whole blocks, and are f16: ") && ran.err.contains("token_embd"),
        "{}",
        ran.err
    );
    assert!(!ran.err.contains("no tokenizer"), "{}", ran.err);
    let summary = convert_to(
        &model,
        "y.gguf",
        &["--to", "gguf", "--dtype", "f32", "--json"],
    );
    let summary = summary.good().json();
    assert_eq!(summary["not_quantised"], serde_json::json!([]));
    let bytes = std::fs::read(model.file("y.gguf")).unwrap();
    for text in [
        &b"<extra_id_99>"[..],
        b"tokenizer.ggml.precompiled_charsmap",
    ] {
        assert!(bytes.windows(text.len()).any(|window| window == text));
    }
}

#[test]
fn mistakes_of_format() {
    let model = Model::bytes();
    let before = model.listing();
    let to = |out: &str, args: &[&str]| convert_to(&model, out, args);
    to("x", &["--to", "gguf", "--dtype", "f16"]).fails(9, &["expected .gguf"]);
    to("x.gguf", &["--to", "gguf"]).fails(8, &["`--dtype`", "q4_0"]);
    to("x.gguf", &["--to", "safetensors"]).fails(9, &["`.gguf`"]);
    to("x", &["--to", "safetensors", "--dtype", "q8_0"]).fails(9, &["cannot be `q8_0`"]);
    to("x", &["--to", "safetensors", "--tokenizer", "t"]).fails(8, &["GGUF"]);
    to("x", &["--to", "onnx"]).fails(2, &["[possible values: safetensors, gguf]"]);
    to("x", &["--to", "safetensors", "--max-shard-size", "5 GB"]).fails(2, &["whole number"]);
    to("x", &["--pack", "--to", "safetensors"]).fails(2, &["cannot be used with"]);
    to("x", &["--to", "safetensors", "--threads", "2"]).fails(2, &["--threads"]);
    to("x", &["--pack", "--saturate"]).fails(2, &["--saturate"]);
    to("x", &["--pack", "--dtype", "q8_0"]).fails(9, &["`q8_0`"]);
    let args = ["--to", "gguf", "--dtype", "f16", "--max-shard-size", "1GB"];
    to("x.gguf", &args).fails(9, &["--max-shard-size"]);
    assert_eq!(model.listing(), before);
}

/// Whenever it is killed: what was there is there, or what was to come, and it can be read.
#[cfg(unix)]
#[test]
fn a_kill_at_any_moment_leaves_the_old_or_the_new() {
    use std::process::Stdio;
    use std::time::{Duration, Instant};

    let model = Model::pieces();
    let start = |out: &str, args: &[&str]| {
        let (from, to) = (model.path("model"), model.path(out));
        super::support::quintic()
            .args(["convert", "--model", &from, "-o", &to, "--quiet"])
            .args(args)
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    };
    let safetensors = ["--to", "safetensors", "--dtype", "bf16"];
    let shards = [&safetensors[..], &["--max-shard-size", "1KB"]].concat();
    let gguf = ["--to", "gguf", "--dtype", "f16"];
    let jobs: [(&str, &[&str]); 3] = [
        ("folder", &shards),
        ("x.safetensors", &safetensors),
        ("x.gguf", &gguf),
    ];
    // What there is in the end, and how long it takes here: kills are spread over that time.
    let mut whole = Vec::new();
    let mut longest = Duration::ZERO;
    for (out, args) in jobs {
        let begun = Instant::now();
        assert!(start(out, args).wait().unwrap().success());
        longest = longest.max(begun.elapsed());
        whole.push(contents(&model.file(out)));
    }
    let n_kills = 24;
    for kill in 0..n_kills {
        for ((out, args), whole) in jobs.into_iter().zip(&whole) {
            let path = model.file(out);
            // Every other time something else is there; a folder is never written over.
            let is_folder = out == "folder";
            if is_folder {
                let _ = std::fs::remove_dir_all(&path);
            } else if kill % 2 == 0 {
                std::fs::write(&path, "old").unwrap();
            }
            let before = contents(&path);
            let mut child = start(out, args);
            std::thread::sleep(longest.mul_f64(f64::from(kill) / f64::from(n_kills)));
            child.kill().unwrap();
            child.wait().unwrap();
            let after = contents(&path);
            assert!(after == before || after == *whole, "{out}, kill {kill}");
        }
    }
    // And the next run does not mind what is left.
    let _ = std::fs::remove_dir_all(model.file("folder"));
    for ((out, args), whole) in jobs.into_iter().zip(&whole) {
        assert!(start(out, args).wait().unwrap().success());
        assert!(contents(&model.file(out)) == *whole);
    }
    encode(&model, "folder", "a.npy", &[]).good();
}

/// Names and contents of a folder's files, or of one file; empty if nothing is there.
#[cfg(unix)]
fn contents(path: &std::path::Path) -> Vec<(String, Vec<u8>)> {
    let Ok(entries) = std::fs::read_dir(path) else {
        let file = std::fs::read(path).ok();
        return file
            .map(|bytes| (String::new(), bytes))
            .into_iter()
            .collect();
    };
    let mut files: Vec<(String, Vec<u8>)> = entries
        .map(|entry| {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            (name, std::fs::read(entry.path()).unwrap())
        })
        .collect();
    files.sort();
    files
}
