//! `quintic bench` and `quintic inspect --machine`. Nothing here depends on how long anything
//! takes.

use serde_json::{Value, json};

use super::support::{Model, Ran, run, run_as, run_with, write_integers};

const TINY: [&str; 6] = [
    "bench",
    "--shape",
    "tiny",
    "--backend",
    "reference",
    "--skip-limits",
];

fn tiny(more: &[&str]) -> Ran {
    run(&[&TINY, more].concat())
}

fn number(report: &Value, name: &str) -> f64 {
    report[name]
        .as_f64()
        .unwrap_or_else(|| panic!("{name} in {report}"))
}

fn is_near(a: f64, b: f64) {
    assert!((a - b).abs() <= 1e-9 * b.abs(), "{a} is not {b}");
}

#[test]
fn generation() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = dir.path().join("tokens.json");
    let rest = [
        "--rows",
        "2",
        "--tokens",
        "5",
        "--new-tokens",
        "4",
        "--runs",
        "1",
    ];
    let own = |more: &[&str]| -> Value {
        let save = ["--json", "--save-output", tokens.to_str().unwrap()];
        let report = tiny(&[&rest[..], &save, more].concat()).good().json();
        let rows: Vec<Vec<u32>> = serde_json::from_slice(&std::fs::read(&tokens).unwrap()).unwrap();
        assert!(rows.len() == 2 && rows.iter().all(|row| row.len() == 4));
        report
    };
    let report = own(&[]);
    assert_eq!(report["new_tokens"], 4);
    assert_eq!(report["verified_rel_rms"], json!(0.0));
    // Tokens that were written.
    let seconds = number(&report, "ms_median") / 1e3;
    is_near(number(&report, "tokens_per_s"), 8.0 / seconds);
    // The encoder and cross keys and values once; decoder and head four times.
    let encoder = 2 * (128 * (4 * 128 + 3 * 256) + 2 * 128) + 128 + 32 * 2;
    let step = 2 * (128 * (6 * 128 + 3 * 256) + 3 * 128) + 128 + 32 * 2 + 32_128 * 128;
    let parameters = encoder + 2 * 2 * 128 * 128 + 4 * step;
    assert_eq!(report["weight_bytes"], 4 * parameters);
    assert_eq!(own(&["--num-beams", "3"])["num_beams"], 3);
    let npy = [&rest[..], &["--save-output", "states.npy"]].concat();
    tiny(&npy).fails(8, &["expected a name in `.json`"]);
    tiny(&["--tokens", "5", "--num-beams", "2"]).fails(2, &["--new-tokens"]);
}

#[test]
fn figures_for_programs() {
    let report = tiny(&["--rows", "2", "--tokens", "5", "--runs", "3", "--json"])
        .good()
        .json();
    for (name, expected) in [
        ("shape", json!("tiny")),
        ("layers", json!(2)),
        ("backend", json!("reference")),
        ("isa", Value::Null),
        ("dtype", json!("f32")),
        ("matmul_precision", json!("highest")),
        ("stored", json!("f32")),
        ("rows", json!(2)),
        ("tokens", json!(10)),
        ("runs", json!(3)),
        ("verified_rel_rms", json!(0.0)),
        ("peak_share", Value::Null),
        ("read_share", Value::Null),
    ] {
        assert_eq!(report[name], expected, "{name}");
    }
    assert!(report.get("cut_from_layers").is_none());
    let [median, min, max] = ["ms_median", "ms_min", "ms_max"].map(|name| number(&report, name));
    assert!(0.0 < min && min <= median && median <= max);
    let seconds = median / 1e3;
    is_near(number(&report, "tokens_per_s"), 10.0 / seconds);
    // Two layers; 2 operations for each parameter of a product and token, and attention.
    let flops = 10.0 * 2.0 * 2.0 * 128.0 * (4.0 * 128.0 + 3.0 * 256.0)
        + 2.0 * 2.0 * 4.0 * 5.0 * 5.0 * 128.0;
    is_near(number(&report, "gflops"), flops / seconds / 1e9);
    // Products, norms, one bias table, four bytes each.
    let parameters = 2 * (128 * (4 * 128 + 3 * 256) + 2 * 128) + 128 + 32 * 2;
    assert_eq!(report["weight_bytes"], 4 * parameters);
    is_near(
        number(&report, "read_gb_per_s"),
        f64::from(4 * parameters) / seconds / 1e9,
    );
    assert!(number(&report, "load_s") >= 0.0);
    assert!(report["threads"].as_u64().unwrap() >= 1);
    if cfg!(target_os = "linux") {
        assert!(report["peak_rss_bytes"].as_u64().unwrap() > 1 << 20);
    }
}

#[test]
fn figures_for_people() {
    let ran = tiny(&["--lengths", "lognormal", "--runs", "1", "--layers", "1"]).good();
    for line in [
        "shape             tiny\nlayers            1\ncut from layers   2\n",
        "\nrows              32\ntokens            1,298\nruns              1\n",
        "\nverified rel rms  0.00e0 relative to the reference backend, over the first layers\n",
        "\nms median         ",
        "\ngflops            ",
        "\npeak rss          ",
    ] {
        assert!(ran.out.contains(line), "no {line} in {}", ran.out);
    }
    for absent in ["null", "isa", "share"] {
        assert!(!ran.out.contains(absent), "{}", ran.out);
    }
    assert_eq!(ran.err, "");
}

#[test]
fn shares_of_what_the_machine_can_do() {
    let args = ["bench", "--shape", "tiny", "--backend", "reference"];
    let report = run(&[
        &args[..],
        &["--tokens", "3", "--runs", "1", "--read-mib", "16", "--json"],
    ]
    .concat())
    .good()
    .json();
    is_near(
        number(&report, "read_share"),
        number(&report, "read_gb_per_s") / number(&report, "read_peak_gb_per_s"),
    );
}

#[test]
fn rows_and_their_lengths() {
    let of = |more: &[&str]| {
        let report = tiny(&[more, &["--runs", "1", "--json"]].concat())
            .good()
            .json();
        (
            report["rows"].as_u64().unwrap(),
            report["tokens"].as_u64().unwrap(),
        )
    };
    assert_eq!(of(&["--tokens", "7"]), (1, 7));
    assert_eq!(of(&["--lengths", "3,1,12"]), (3, 16));
    assert_eq!(of(&["--lengths", "lognormal", "--rows", "2"]), (2, 189));
    assert_eq!(
        of(&["--lengths", "lognormal", "--rows", "33"]),
        (33, 1298 + 87)
    );
    let model = Model::bytes();
    model.write("ids.json", "[[5, 6, 1], [7, 1]]");
    assert_eq!(of(&["--ids-json", &model.path("ids.json")]), (2, 5));
}

#[test]
fn weights_stored_in_half_the_bytes() {
    let bytes = |stored: &str| {
        let report = tiny(&["--stored", stored, "--tokens", "2", "--runs", "1", "--json"])
            .good()
            .json();
        assert_eq!(report["stored"], stored);
        assert_eq!(report["dtype"], "f32");
        report["weight_bytes"].as_u64().unwrap()
    };
    assert_eq!(bytes("f32"), 2 * bytes("bf16"));
    assert_eq!(bytes("f16"), bytes("bf16"));
}

/// The same results as `encode` gives.
#[test]
fn a_model_from_files() {
    let model = Model::bytes();
    let folder = model.path("model");
    let (ours, theirs) = (model.path("bench.npy"), model.path("encode.npy"));
    model.write("ids.json", "[[45, 46, 47, 1]]");
    let args = |more: &[&str]| {
        let args = ["bench", "--shape", &folder, "--backend", "reference"];
        run(&[&args[..], &["--skip-limits", "--runs", "1"], more].concat())
    };
    let ids = model.path("ids.json");
    let report = args(&["--ids-json", &ids, "--save-output", &ours, "--json"])
        .good()
        .json();
    assert_eq!(report["tokens"], 4);
    assert!(report.get("stored").is_none());
    // `*+,` in bytes, each three higher, and the end.
    run(&[
        "encode",
        "--backend",
        "reference",
        "--model",
        &folder,
        "*+,",
        "-o",
        &theirs,
    ])
    .good();
    assert_eq!(
        std::fs::read(&ours).unwrap(),
        std::fs::read(&theirs).unwrap()
    );

    args(&["--tokens", "2", "--stored", "bf16"]).fails(8, &["`--stored`", "synthetic"]);
    args(&["--tokens", "2", "--layers", "3"]).fails(8, &["--layers 3", "the model has 2"]);
    let report = args(&["--tokens", "2", "--layers", "1", "--json"])
        .good()
        .json();
    assert_eq!(
        (&report["layers"], &report["cut_from_layers"]),
        (&json!(1), &json!(2))
    );
}

#[test]
fn the_padded_shape_of_ids_is_kept() {
    let model = Model::bytes();
    let folder = model.path("model");
    let ids = model.path("ids.safetensors");
    write_integers(
        &model.file("ids.safetensors"),
        &[
            ("input_ids", "I64", &[2, 3], &[5, 1, 0, 6, 7, 1]),
            ("attention_mask", "I64", &[2, 3], &[1, 1, 0, 1, 1, 1]),
        ],
    );
    let output = model.path("bench.npy");
    let args = ["bench", "--shape", &folder, "--backend", "reference"];
    let more = ["--skip-limits", "--runs", "1", "--json"];
    let files = ["--input-ids", &ids, "--save-output", &output];
    let report = run(&[&args[..], &more, &files].concat()).good().json();
    assert_eq!((&report["rows"], &report["tokens"]), (&json!(2), &json!(5)));
    let theirs = model.path("encode.npy");
    run(&[
        "encode",
        "--backend",
        "reference",
        "--model",
        &folder,
        "--input-ids",
        &ids,
        "-o",
        &theirs,
    ])
    .good();
    assert_eq!(
        std::fs::read(&output).unwrap(),
        std::fs::read(&theirs).unwrap()
    );
}

#[test]
fn served_runs() {
    let serve = |stdin: &[u8]| {
        let args = [&TINY[..], &["--lengths", "3,4", "--serve", "--warmup", "1"]].concat();
        run_with(&args, stdin)
    };
    let answers = |ran: &Ran| -> Vec<Value> {
        ran.out
            .lines()
            .map(|line| serde_json::from_str(line.strip_prefix('@').unwrap()).unwrap())
            .collect()
    };
    let ran = serve(b"run\nrun\nquit\nrun\n").good();
    let lines = answers(&ran);
    assert_eq!(lines.len(), 4, "{}", ran.out);
    assert_eq!(lines[0]["ready"], true);
    assert_eq!(lines[0]["tokens"], 7);
    for name in ["load_s", "first_s", "total_s", "verified_rel_rms"] {
        assert!(lines[0][name].is_f64(), "{name} in {}", lines[0]);
    }
    assert!(lines[1]["ms"].is_f64() && lines[2]["ms"].is_f64());
    assert!(lines[3].get("peak_mb").is_some());

    assert_eq!(answers(&serve(b"").good()).len(), 2);
    let ran = serve(b"run\njump\n");
    assert_eq!(answers(&ran).len(), 2);
    ran.fails(
        8,
        &["standard input", "found `jump`, expected `run` or `quit`"],
    );
}

#[test]
fn what_does_not_make_sense() {
    let model = Model::bytes();
    model.write("ids.json", "[[5, -1]]");
    model.write("none.json", "[]");
    let ids = model.path("ids.json");
    let none = model.path("none.json");
    for (more, code, parts) in [
        (&[][..], 2, &["--tokens", "--lengths"][..]),
        (&["--tokens", "0"], 2, &["--tokens"]),
        (&["--tokens", "3", "--lengths", "3"], 2, &["--lengths"]),
        (&["--tokens", "3", "--warmup", "0"], 2, &["--warmup"]),
        (&["--tokens", "3", "--serve", "--json"], 2, &["--json"]),
        (&["--tokens", "3", "--stored", "q8"], 2, &["--stored"]),
        (&["--lengths", "3,x"], 8, &["found `x`", "lognormal"]),
        (&["--lengths", "3,0"], 8, &["found `0`"]),
        (&["--lengths", "3", "--rows", "2"], 8, &["--rows"]),
        (&["--tokens", "999999999"], 8, &["too many"]),
        (&["--lengths", "18446744073709551615,2"], 8, &["too many"]),
        (
            &["--lengths", "lognormal", "--rows", "99999999999"],
            8,
            &["too many"],
        ),
        (
            &["--tokens", "3", "--layers", "3"],
            8,
            &["--layers 3", "has 2"],
        ),
        (&["--tokens", "3", "--variant", "fp16"], 8, &["--variant"]),
        (
            &["--tokens", "3", "--save-output", "x.bin"],
            8,
            &["x.bin", ".npy"],
        ),
        (
            &["--tokens", "3", "--dtype", "bf16"],
            9,
            &["reference backend"],
        ),
        (&["--ids-json", &ids], 8, &["ids.json", "token ids"]),
        (&["--ids-json", &none], 8, &["there are no tokens"]),
        (&["--ids-json", "no/such.json"], 4, &["no/such.json"]),
    ] {
        tiny(more).fails(code, parts);
    }
    run(&["bench", "--shape", "v1_1-huge", "--tokens", "3"]).fails(
        4,
        &["`v1_1-huge`", "synthetic shapes are tiny, v1_1-small,"],
    );
    run(&["bench", "--tokens", "3"]).fails(2, &["--shape"]);
    run(&["bench", "--shape", "tiny", "--machine"]).fails(2, &["--machine"]);
    run(&[
        "bench",
        "--shape",
        "tiny",
        "--tokens",
        "3",
        "--backend",
        "abacus",
    ])
    .fails(9, &["abacus"]);
}

#[test]
fn what_the_machine_has() {
    let machine = |isa: Option<&str>, json: bool| {
        let args = ["inspect", "--machine", "--json"];
        run_as(isa, &args[..if json { 3 } else { 2 }])
    };
    let report = machine(None, true).good().json();
    let report = &report["machine"];
    let sets = report["instruction_sets"].as_array().unwrap();
    assert_eq!(sets[0], "portable");
    let (chosen, last) = (&report["chosen"], sets.last().unwrap());
    // Where the bf16 dot product is slower than f32, it is there but not chosen.
    let is_passed_over = last == "avx512bf16" && chosen == "avx512";
    assert!(chosen == last || is_passed_over, "{report}");
    assert!(report["cores"].as_u64().unwrap() >= 1);
    let report = machine(Some("portable"), true).good().json();
    assert_eq!(report["machine"]["chosen"], "portable");
    assert_eq!(report["machine"]["chosen_because"], "named by QUINTIC_ISA");
    let ran = machine(None, false).good();
    assert!(
        ran.out.contains("instruction sets  portable\n"),
        "{}",
        ran.out
    );
    machine(Some("sse9"), false).fails(9, &["`QUINTIC_ISA`", "`sse9`", "portable, avx2"]);
    if !sets.contains(&json!("amx")) {
        machine(Some("amx"), false).fails(9, &["`QUINTIC_ISA`", "no `amx`"]);
    }
}

#[test]
fn the_machine_and_a_model() {
    let model = Model::bytes();
    let folder = model.path("model");
    let report = run(&["inspect", "--machine", "--json", &folder])
        .good()
        .json();
    assert!(report["machine"]["chosen"].is_string());
    assert_eq!(report["encoder"], "loads and runs");
    let ran = run(&["inspect", "--machine", &folder]).good();
    let (machine, rest) = ran.out.split_once("\n\n").unwrap();
    assert!(machine.contains("instruction sets"), "{machine}");
    assert!(rest.starts_with("path "), "{rest}");
    run(&["inspect"]).fails(2, &["MODEL"]);
}

#[test]
fn limits_of_the_machine() {
    let report = run(&[
        "bench",
        "--machine",
        "--threads",
        "1",
        "--read-mib",
        "16",
        "--json",
    ])
    .good()
    .json();
    let peaks = report["peaks"].as_array().unwrap();
    assert_eq!(peaks[0]["unit"], "portable f32");
    let reads = report["reads"].as_array().unwrap();
    assert_eq!(reads.last().unwrap()["pages"], "small");
    for (list, name) in [(peaks, "gops"), (reads, "gb_per_s")] {
        for figure in list {
            let [best, median] = ["best", "median"].map(|n| number(figure, &format!("{n}_{name}")));
            assert!(0.0 < median && median <= best, "{figure}");
            assert_eq!(figure["threads"], 1);
        }
    }
}
