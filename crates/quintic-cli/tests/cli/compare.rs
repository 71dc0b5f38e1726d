//! `quintic compare`.

use serde_json::Value;

use super::support::{Model, Ran, run, write_floats, write_integers};

/// Compares two files of one tensor `x` each.
fn compare(a: &[f32], b: &[f32], args: &[&str]) -> Ran {
    let model = Model {
        folder: tempfile::tempdir().unwrap(),
    };
    for (name, values) in [("a", a), ("b", b)] {
        write_floats(&model.file(name), &[("x", &[values.len()], values)]);
    }
    run(&[&["compare", &model.path("a"), &model.path("b")], args].concat())
}

#[test]
fn equal_files() {
    let ran = compare(&[1.0; 1500], &[1.0; 1500], &["--max", "0"]).good();
    assert_eq!(
        ran.out,
        "x (1,500 elements)\n  max 0.000e0   relative rms 0.000e0\n  quantiles  0.5: 0.000e0   \
         0.75: 0.000e0   0.9: 0.000e0   0.95: 0.000e0   0.99: 0.000e0   0.999: 0.000e0   \
         0.9999: 0.000e0\n"
    );
    assert_eq!(ran.err, "");
}

#[test]
fn quantiles_of_differences() {
    // Differences 1 to 20000: the quantile q is 20000 q.
    let a: Vec<f32> = (1..=20000).map(|i| i as f32).collect();
    let ran = compare(&a, &vec![0.0; 20000], &["--json"]).good();
    let x = &ran.json()["x"];
    assert_eq!(x["elements"], 20000);
    assert_eq!(x["max"], 20000.0);
    assert_eq!(x["relative_rms"], 1.0);
    let quantiles = x["quantiles"].as_object().unwrap();
    let names: Vec<&str> = quantiles.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        ["0.5", "0.75", "0.9", "0.95", "0.99", "0.999", "0.9999"]
    );
    let values: Vec<f64> = quantiles.values().map(|v| v.as_f64().unwrap()).collect();
    assert_eq!(
        values,
        [
            10000.0, 15000.0, 18000.0, 19000.0, 19800.0, 19980.0, 19998.0
        ]
    );
}

#[test]
fn a_limit_sets_the_exit_code() {
    let (a, b) = ([1.0, 2.0], [1.0, 2.5]);
    assert!(compare(&a, &b, &[]).good().out.contains("max 5.000e-1"));
    compare(&a, &b, &["--max", "0.5"]).good();
    let ran = compare(&a, &b, &["--max", "0.4"]);
    assert!(
        ran.out.contains("max 5.000e-1"),
        "the table comes first: {}",
        ran.out
    );
    assert_eq!(ran.err, "tensor `x`: 5.000e-1 is above 4e-1\n");
    ran.fails(1, &[]);
}

#[test]
fn nan_is_never_equal() {
    let nan = [f32::NAN, 1.0];
    let ran = compare(&nan, &nan, &["--max", "1000"]);
    assert!(ran.out.contains("max NaN"), "{}", ran.out);
    ran.fails(1, &["tensor `x`: NaN is above 1e3"]);
    assert_eq!(
        compare(&nan, &nan, &["--json"]).good().json()["x"]["max"],
        Value::Null
    );
    let infinite = [f32::INFINITY, f32::NEG_INFINITY];
    compare(&infinite, &infinite, &["--max", "0"]).good();
}

#[test]
fn files_with_different_tensors() {
    let model = Model {
        folder: tempfile::tempdir().unwrap(),
    };
    write_floats(
        &model.file("a"),
        &[("x", &[1], &[1.0]), ("only_a", &[1], &[1.0])],
    );
    write_floats(&model.file("b"), &[("x", &[1], &[1.0])]);
    write_floats(&model.file("c"), &[("x", &[1, 1], &[1.0])]);
    write_floats(&model.file("none"), &[]);
    let (a, b, c, none) = (
        model.path("a"),
        model.path("b"),
        model.path("c"),
        model.path("none"),
    );
    for args in [["compare", &a, &b], ["compare", &b, &a]] {
        let message = format!("error: {b}: tensor `only_a` is missing, but {a} has it");
        run(&args).fails(8, &[&message, "hint: compare one tensor with `--tensor`"]);
    }
    run(&["compare", &a, &b, "--tensor", "x", "--max", "0"]).good();
    run(&["compare", &a, &b, "--tensor", "only_a"])
        .fails(6, &[&b, "tensor `only_a`: there is no such tensor"]);
    run(&["compare", &b, &c]).fails(8, &["tensor `x`: shapes [1] and [1, 1] differ"]);
    run(&["compare", &none, &none]).fails(8, &["none: there are no tensors"]);
    run(&["compare", &a, &model.path("nowhere")]).fails(4, &["nowhere: cannot "]);
    run(&["compare", &a, &model.write("text", "not a weight file")]).fails(6, &["text: "]);
}

#[test]
fn integers_are_compared_too() {
    let model = Model {
        folder: tempfile::tempdir().unwrap(),
    };
    write_integers(&model.file("a"), &[("x", "I64", &[2], &[-5, 7])]);
    write_integers(&model.file("b"), &[("x", "I32", &[2], &[-5, 9])]);
    let ran = run(&["compare", &model.path("a"), &model.path("b"), "--json"]).good();
    assert_eq!(ran.json()["x"]["max"], 2.0);
}
