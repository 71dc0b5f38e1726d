//! `quintic verify`.

use serde_json::{Value, json};

use super::support::{Model, Ran, run, testdata};

const TEXTS: &str = "a first text\n\nthe third one, after an empty one\nx\n";

/// A model with texts beside it.
fn model() -> Model {
    let model = Model::bytes();
    model.write("texts.txt", TEXTS);
    model
}

fn verify(model: &Model, args: &[&str]) -> Ran {
    let (folder, texts) = (model.path("model"), model.path("texts.txt"));
    let usual = ["verify", "--model", &folder, "--input", &texts, "--quiet"];
    run(&[&usual[..], args].concat())
}

/// A model with a decoder, whose highest byte is 60.
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
    model.write("texts.txt", "1 + 1\n*\n4 4 4 4\n");
    model
}

#[test]
fn figures_are_those_of_encode_and_compare() {
    let model = model();
    let args = ["--compute", "f32,bf16,f16", "--json"];
    let states = model.path("states.safetensors");
    let save = ["--save-states", &states];
    let body = verify(&model, &[&args[..], &save].concat()).good().json();
    assert_eq!((&body["rows"], &body["d_model"]), (&json!(4), &json!(8)));
    let n_tokens = TEXTS.lines().map(|text| text.len() as u64 + 1).sum::<u64>();
    assert_eq!(body["tokens"], n_tokens);

    let texts = model.path("texts.txt");
    let exact = ["--input", &texts, "--backend", "reference"];
    model.encode("exact.safetensors", &exact).good();
    // The same tensors under the same names, bit for bit.
    let compare = |b: &str, more: &[&str]| {
        let (a, b) = (model.path("exact.safetensors"), model.path(b));
        run(&[&["compare", &a, &b, "--json"], more].concat())
            .good()
            .json()
    };
    let same = compare("states.safetensors", &["--max", "0"]);
    let names: Vec<&String> = same.as_object().unwrap().keys().collect();
    assert_eq!(names.len(), 3, "{names:?}");

    for (at, dtype) in ["f32", "bf16", "f16"].into_iter().enumerate() {
        let found = ["--input", &texts, "--dtype", dtype];
        model.encode("found.safetensors", &found).good();
        let expected = &compare("found.safetensors", &[])["last_hidden_state"];
        let result = &body["results"][at];
        assert_eq!(result["name"], dtype);
        assert_eq!(result["backend"], "cpu");
        for field in ["max", "relative_rms"] {
            assert_eq!(result[field], expected[field], "{dtype} {field}");
        }
        for q in ["0.5", "0.9", "0.99", "0.999", "0.9999"] {
            assert_eq!(
                result["quantiles"][q], expected["quantiles"][q],
                "{dtype} {q}"
            );
        }
        let rms = result["relative_rms"].as_f64().unwrap();
        let cosine = &result["cosine"];
        let least = cosine["least"].as_f64().unwrap();
        assert!(rms > 0.0 && least <= cosine["mean"].as_f64().unwrap());
        // The worst token's text is a byte of the row that it is said to be in.
        let row = cosine["row"].as_u64().unwrap() as usize;
        let position = cosine["position"].as_u64().unwrap() as usize;
        let text = TEXTS.lines().nth(row).unwrap();
        let expected = text
            .chars()
            .nth(position)
            .map_or("</s>".to_owned(), String::from);
        assert_eq!(
            cosine["token"], expected,
            "{dtype} row {row} position {position}"
        );
        assert_eq!(result["logits"], Value::Null);
    }
}

#[test]
fn the_table_of_the_usual_texts() {
    let model = Model::bytes();
    let folder = model.path("model");
    let ran = run(&["verify", "--model", &folder, "--quiet"]).good();
    assert_eq!(ran.err, "");
    let lines: Vec<&str> = ran.out.lines().collect();
    assert!(lines[0].contains("in 24 rows, d_model 8"), "{}", lines[0]);
    let titles: Vec<&str> = lines[1].split_whitespace().collect();
    let expected = "compute on 0.5 0.9 0.99 0.999 0.9999 max rel. rms least cosine";
    assert_eq!(titles.join(" "), expected);
    let names: Vec<&str> = lines[2..]
        .iter()
        .map_while(|line| line.split_whitespace().next())
        .filter(|name| *name != "f32-high")
        .collect();
    assert_eq!(
        names,
        ["(sizes)", "f32", "bf16", "f16", "int8", "w8a8", "int4"]
    );
    let position = lines
        .iter()
        .position(|line| *line == "worst tokens, by cosine");
    assert!(lines[position.unwrap() + 1].starts_with("  f32: `"));
    assert!(!ran.out.contains("logits"));
}

#[test]
fn a_decoder_is_compared_by_its_logits() {
    let model = decoder();
    let args = ["--compute", "f32,bf16", "--json"];
    let body = verify(&model, &[&args[..], &["--new-tokens", "4"]].concat())
        .good()
        .json();
    for (at, bound) in [(0, 1e-5), (1, 5e-2)] {
        let logits = &body["results"][at]["logits"];
        // Three rows of one to four tokens.
        let n_tokens = logits["tokens"].as_u64().unwrap();
        assert!((3..=12).contains(&n_tokens), "{logits}");
        let rms = logits["relative_rms"].as_f64().unwrap();
        assert!(rms > 0.0 && rms < bound, "{logits}");
        assert!(logits["other_top_token"].as_u64().unwrap() <= n_tokens);
    }
    let table = verify(&model, &["--compute", "bf16"]).good().out;
    assert!(table.contains("logits of the decoder") && table.contains("other top token"));
    let without = verify(&model, &[&args[..], &["--new-tokens", "0"]].concat());
    let without = without.good().json();
    assert_eq!(without["results"][0]["logits"], Value::Null);
    // The states are the same whether or not the decoder is there.
    assert_eq!(without["results"][1]["max"], body["results"][1]["max"]);
}

#[test]
fn a_limit_sets_the_exit_code() {
    let model = model();
    let exact = ["--backend", "reference", "--max-relative-rms", "0"];
    let ran = verify(&model, &exact).good();
    assert!(ran.out.contains("1.00000000"), "{}", ran.out);
    let ran = verify(
        &model,
        &["--compute", "f32,bf16", "--max-relative-rms", "1e-5"],
    );
    assert!(
        ran.out.contains("\nbf16"),
        "the table comes first: {}",
        ran.out
    );
    assert!(
        ran.err.starts_with("bf16: the relative rms "),
        "{}",
        ran.err
    );
    ran.fails(1, &["is above 1e-5"]);
}

#[test]
fn what_others_found_stands_beside() {
    let model = model();
    let body = verify(&model, &["--compute", "bf16", "--json"])
        .good()
        .json();
    let mut others = body.clone();
    others["results"][0]["name"] = json!("theirs");
    others["results"][0]["max"] = json!(7.5);
    let path = model.write("others.json", others.to_string());
    let plot = model.path("plot.svg");
    let args = ["--compute", "f32", "--others", &path];
    let drawn = ["--plot", &plot, "--json", "--max-relative-rms", "1e-4"];
    // The limit is for what is measured here.
    let found = verify(&model, &[&args[..], &drawn].concat()).good().json();
    assert_eq!(found["results"][0]["name"], "f32");
    let theirs = &found["results"][1];
    assert_eq!(
        (&theirs["name"], &theirs["max"]),
        (&json!("theirs"), &json!(7.5))
    );
    assert_eq!(theirs["quantiles"], body["results"][0]["quantiles"]);
    assert_eq!(theirs["cosine"], body["results"][0]["cosine"]);
    let svg = std::fs::read_to_string(&plot).unwrap();
    assert!(svg.starts_with("<svg xmlns=") && svg.ends_with("</svg>\n"));
    assert_eq!(svg.matches("<polyline").count(), 3);
    for label in [">f32<", ">theirs<", ">the values themselves<"] {
        assert!(svg.contains(label), "{svg}");
    }

    others["reference_rms"] = json!(body["reference_rms"].as_f64().unwrap() * 1.001);
    model.write("others.json", others.to_string());
    verify(&model, &args).fails(8, &["others.json", "`reference_rms`", "--save-states"]);
    others["tokens"] = Value::Null;
    model.write("others.json", others.to_string());
    verify(&model, &args).fails(8, &["`tokens` is null, expected"]);
}

#[test]
fn mistakes() {
    let model = model();
    let before = model.listing();
    verify(&model, &["--compute", "f32,f64"]).fails(
        9,
        &["`f64`", "`f32`, `f32-high`, `f32-medium`, `bf16`, `f16`"],
    );
    verify(&model, &["--plot", &model.path("x.png")]).fails(9, &["x.png", "`.png`", ".svg"]);
    verify(&model, &["--save-states", &model.path("x.npy")])
        .fails(9, &["x.npy", "expected .safetensors"]);
    verify(&model, &["--plot", &model.path("nowhere/x.svg")]).fails(4, &["nowhere"]);
    verify(&model, &["--others", &model.path("nowhere.json")]).fails(4, &["nowhere.json"]);
    verify(&model, &["--backend", "reference", "--compute", "bf16"])
        .fails(9, &["reference backend computes in its one way only"]);
    run(&["verify"]).fails(2, &["--model"]);
    let (from, to) = (model.path("model"), model.path("packed"));
    run(&["convert", "--pack", "--model", &from, "-o", &to]).good();
    let texts = model.path("texts.txt");
    run(&["verify", "--model", &to, "--input", &texts]).fails(9, &["reference backend"]);
    std::fs::remove_dir_all(&to).unwrap();
    assert_eq!(model.listing(), before);
}
