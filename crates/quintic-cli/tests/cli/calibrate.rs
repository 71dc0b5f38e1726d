//! `quintic calibrate`, and `--plan` of the other commands.

use serde_json::{Value, json};

use super::support::{Model, Ran, run, testdata};

const TEXTS: &str = "1 + 1\n*\n4 4 4 4\n0123456789:;<\n";

/// A tiny model with a decoder, whose highest byte is 60, with texts beside it.
fn decoder() -> Model {
    let model = Model {
        folder: tempfile::tempdir().unwrap(),
    };
    std::fs::create_dir(model.file("model")).unwrap();
    for file in ["config.json", "model.safetensors"] {
        let from = testdata("decoder_goldens/byt5").join(file);
        std::fs::copy(from, model.file("model").join(file)).unwrap();
    }
    let config = r#"{"tokenizer_class": "ByT5Tokenizer", "extra_ids": 0}"#;
    model.write("model/tokenizer_config.json", config);
    model.write("texts.txt", TEXTS);
    model
}

fn calibrate(model: &Model, args: &[&str]) -> Ran {
    let (folder, texts) = (model.path("model"), model.path("texts.txt"));
    let usual = [
        "calibrate",
        "--model",
        &folder,
        "--input",
        &texts,
        "--quiet",
    ];
    run(&[&usual[..], args].concat())
}

/// A plan that has some products in integers and others not, as a file.
fn part(model: &Model, more: &[&str]) -> (String, Value) {
    let usual = [&["--weights", "int8", "--json"], more].concat();
    let all = calibrate(model, &[&usual[..], &["--at-most", "0.9"]].concat());
    let all = all.good().json();
    let largest = |name: &str| {
        let errors = all["integers"][name].as_object().unwrap();
        let errors = errors.values().map(|error| error.as_f64().unwrap());
        errors.max_by(f64::total_cmp).unwrap()
    };
    let bound = largest("without").midpoint(largest("all")).to_string();
    let path = model.path("plan.json");
    let write = [&usual[..], &["--at-most", &bound, "--output", &path]].concat();
    let plan = calibrate(model, &write).good().json();
    assert_eq!(plan["output"], path);
    (path, plan)
}

#[test]
fn a_plan_is_measured_written_and_followed() {
    let model = decoder();
    let (path, plan) = part(&model, &[]);
    let keep = plan["keep"].as_str().unwrap();
    assert!(keep != "none", "{keep}");
    assert_eq!(
        (&plan["dtype"], &plan["weights"]),
        (&json!("bf16"), &json!("int8"))
    );
    let products = plan["integers"]["products"].as_array().unwrap();
    let in_integers = products.iter().filter(|p| p["in_integers"] == true).count();
    assert!(0 < in_integers && in_integers < products.len(), "{plan}");
    let written: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(written["integers"], plan["integers"]);
    assert_eq!(written["feed_forward"], plan["feed_forward"]);

    // What is measured with it later is what it says.
    let (folder, texts) = (model.path("model"), model.path("texts.txt"));
    let verify = [
        "verify", "--model", &folder, "--input", &texts, "--plan", &path,
    ];
    let more = ["--compute", "bf16", "--json", "--quiet"];
    let body = run(&[&verify[..], &more].concat()).good().json();
    let results = body["results"].as_array().unwrap();
    for (result, name) in results.iter().zip(["without", "plan"]) {
        let expected = &plan["integers"][name];
        assert_eq!(result["relative_rms"], expected["states"], "{name}");
        assert_eq!(result["logits"]["relative_rms"], expected["logits"]);
    }
    assert_eq!(results[1]["name"], "plan");
    let loud = run(&[&verify[..], &["--compute", "bf16"]].concat()).good();
    assert!(loud.err.contains("note: by the plan, "), "{}", loud.err);

    // The same bits as by its parts, and it is said.
    let plain = [
        "--weights",
        "int8",
        "--keep",
        keep,
        "--dtype",
        "bf16",
        "1 + 1",
    ];
    model.encode("parts.npy", &plain).good();
    let summary = model.encode("plan.npy", &["--plan", &path, "--json", "1 + 1"]);
    let summary = summary.good();
    assert!(
        summary.err.contains("note: by the plan, "),
        "{}",
        summary.err
    );
    assert!(summary.err.contains("of the weights of products in int8"));
    let summary = summary.json();
    assert_eq!(summary["plan"], path);
    assert_eq!(
        (&summary["weights"], &summary["keep"]),
        (&json!("int8"), &plan["keep"])
    );
    let bytes = |name: &str| std::fs::read(model.file(name)).unwrap();
    assert_eq!(bytes("parts.npy"), bytes("plan.npy"));

    let bench = run(&[
        "bench",
        "--shape",
        &folder,
        "--tokens",
        "9",
        "--runs",
        "1",
        "--skip-limits",
        "--json",
        "--plan",
        &path,
    ]);
    let bench = bench.good().json();
    assert_eq!(
        (&bench["plan"], &bench["keep"]),
        (&json!(path), &plan["keep"])
    );
    assert_eq!(bench["passes_run_again"], Value::Null);
    for command in [
        &["generate", "1", "--max-new-tokens", "3"][..],
        &["score", "1", "--target", "2"],
    ] {
        let more = ["--model", &folder, "--plan", &path];
        let ran = run(&[command, &more].concat()).good();
        assert!(ran.err.contains("note: by the plan, "), "{}", ran.err);
        let quiet = run(&[command, &more, &["--quiet"]].concat()).good();
        assert_eq!(quiet.err, "");
    }

    // Packed by the plan, the encoder gives the same bits.
    let packed = model.path("packed");
    run(&[
        "convert", "--pack", "--model", &folder, "-o", &packed, "--plan", &path, "--quiet",
    ])
    .good();
    let out = model.path("packed.npy");
    run(&["encode", "--model", &packed, "-o", &out, "1 + 1"]).good();
    assert_eq!(bytes("packed.npy"), bytes("plan.npy"));
}

#[test]
fn people_see_a_table() {
    let model = decoder();
    let shown = calibrate(&model, &["--weights", "w8a8", "--at-most", "0.9"])
        .good()
        .out;
    for part in [
        "nothing (bf16)",
        "qkv alone",
        "everything (w8a8)",
        "100.0 % of the weights of products",
        "largest inside it",
        "scaled in f16",
        "name a file by `--output` to use it",
    ] {
        assert!(shown.contains(part), "no `{part}` in {shown}");
    }
    let shown = calibrate(&model, &["--new-tokens", "0"]).good().out;
    assert!(
        !shown.contains("alone") && shown.contains("scaled in f16"),
        "{shown}"
    );
}

#[test]
fn plans_of_other_models_and_other_choices_are_refused() {
    let model = decoder();
    let (path, _) = part(&model, &["--new-tokens", "0"]);
    let other = Model::bytes();
    other.encode("out.npy", &["--plan", &path, "hi"]).fails(
        8,
        &[
            "plan.json: is of another checkpoint: it was measured on `",
            "but the model is `",
        ],
    );
    let encode = |args: &[&str]| {
        let out = [args, &["--plan", &path, "1"]].concat();
        model.encode("out.npy", &out)
    };
    encode(&["--dtype", "f32"]).fails(
        8,
        &["`dtype` is `f32`, but the plan was measured for `bf16`"],
    );
    encode(&["--weights", "int8"]).fails(2, &["--plan"]);
    encode(&["--backend", "reference"]).fails(9, &["`weights` or `keep` was chosen"]);
    assert!(!model.file("out.npy").exists());
    let missing = model.path("none.json");
    model
        .encode("out.npy", &["--plan", &missing, "1"])
        .fails(4, &["none.json"]);
    let wrong = model.write("wrong.json", "{}");
    model.encode("out.npy", &["--plan", &wrong, "1"]).fails(
        8,
        &["wrong.json: not a plan that `quintic calibrate` wrote"],
    );
    run(&["bench", "--shape", "tiny", "--tokens", "4", "--plan", &path])
        .fails(8, &["not to the synthetic shape `tiny`"]);
    calibrate(&model, &["--dtype", "bf16"]).fails(8, &["without `--weights`"]);
    calibrate(&model, &["--at-most", "1"]).fails(2, &["--weights"]);
    calibrate(&model, &["--weights", "int8", "--at-most", "1e-9"])
        .fails(8, &["the largest error asked for is 1.000e-9"]);
}
