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
