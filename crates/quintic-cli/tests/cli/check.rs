//! `quintic check`.

use super::support::{Ran, quintic, run};

/// Runs the command with an instruction set named by the environment, or by nobody.
fn run_as(isa: Option<&str>, args: &[&str]) -> Ran {
    let mut command = quintic();
    command.args(args).env_remove("QUINTIC_ISA");
    if let Some(isa) = isa {
        command.env("QUINTIC_ISA", isa);
    }
    let output = command.output().unwrap();
    Ran {
        code: output.status.code().expect("not killed"),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

#[test]
fn every_backend_passes_in_every_type() {
    let ran = run(&["check"]).good();
    let mut lines = ran.out.lines();
    let titles: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
    let expected = "backend isa dtype group cases passed failed worst error/bound";
    assert_eq!(titles.join(" "), expected);
    let mut total = 0;
    for (backend, dtypes) in [
        ("cpu", &["f32", "bf16", "f16"][..]),
        ("reference", &["f32"]),
    ] {
        for dtype in dtypes {
            for group in [
                "embed",
                "norm",
                "product",
                "attention",
                "cache",
                "logits",
                "pool",
                "pass",
            ] {
                let cells: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
                let [of, _, in_type, about, cases, passed, failed, worst] = cells[..] else {
                    panic!("{cells:?}")
                };
                assert_eq!([of, in_type, about], [backend, *dtype, group]);
                assert_eq!([passed, failed], [cases, "0"]);
                assert!(worst.parse::<f64>().unwrap() <= 1.0);
                total += cases.parse::<usize>().unwrap();
            }
        }
    }
    let rest: Vec<&str> = lines.collect();
    assert_eq!(rest, ["", &format!("{total} cases, 0 failed")]);
    assert_eq!(ran.err, "");
}

#[test]
fn cases_are_chosen_by_name() {
    let args = ["check", "--filter", "pool/mean", "--json"];
    let body = run_as(Some("portable"), &args).good().json();
    let checked = body["checked"].as_array().unwrap();
    assert_eq!(checked.len(), 4);
    assert_eq!(checked[0]["backend"], "cpu");
    assert_eq!(checked[0]["isa"], "portable");
    assert_eq!(checked[0]["groups"][0]["group"], "pool");
    assert_eq!(checked[0]["groups"][0]["cases"], 4);
    assert_eq!(checked[0]["groups"][0]["passed"], 4);
    assert!(checked[0]["groups"][0]["worst_error_over_bound"].is_f64());
    assert_eq!(checked[0]["groups"].as_array().unwrap().len(), 1);
    assert_eq!(checked[3]["backend"], "reference");
    assert_eq!(checked[3]["isa"], serde_json::Value::Null);
    assert_eq!((&body["cases"], &body["failed"]), (&16.into(), &0.into()));

    let args = [
        "check",
        "--backend",
        "cpu",
        "--dtype",
        "bf16",
        "--filter",
        "logits/draws",
    ];
    let ran = run(&args).good();
    assert_eq!(ran.out.lines().count(), 4, "{}", ran.out);
    assert!(ran.out.ends_with("\n\n1 cases, 0 failed\n"), "{}", ran.out);

    run(&["check", "--filter", "no such case"])
        .fails(8, &["no case has `no such case` in its `group/name`"]);
}

#[test]
fn a_backend_that_is_not_here_never_passes() {
    let some = ["check", "--filter", "embed/"];
    // Of all, it is listed and left out.
    let ran = run_as(Some("sse9"), &some).good();
    assert!(
        ran.out
            .contains("\ncpu: not available here: QUINTIC_ISA: there is no instruction set `sse9`"),
        "{}",
        ran.out
    );
    assert!(!ran.out.contains("\ncpu  "), "{}", ran.out);
    let body = run_as(Some("sse9"), &[&some[..], &["--json"]].concat())
        .good()
        .json();
    assert_eq!(body["not_available"][0]["backend"], "cpu");
    assert_eq!(body["checked"].as_array().unwrap().len(), 1);
    // Nothing that ran is nothing that passed.
    run_as(Some("sse9"), &[&some[..], &["--dtype", "bf16"]].concat())
        .fails(9, &["nothing was checked"]);
    // Asked for by name, it is an error.
    run_as(Some("sse9"), &[&some[..], &["--backend", "cpu"]].concat())
        .fails(9, &["QUINTIC_ISA: there is no instruction set `sse9`"]);
    run(&["check", "--backend", "abacus"])
        .fails(9, &["there is no backend `abacus` in this build, expected"]);
    run(&["check", "--backend", "reference", "--dtype", "bf16"])
        .fails(9, &["the reference backend does not compute in bf16"]);
}
