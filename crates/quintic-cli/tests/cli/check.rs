//! `quintic check`.

use super::support::{run, run_as};

#[test]
fn every_backend_passes_in_every_type() {
    let ran = run(&["check"]).good();
    let mut lines = ran.out.lines();
    let titles: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
    let expected = "backend isa dtype group cases passed failed worst error/bound";
    assert_eq!(titles.join(" "), expected);
    let (mut seen, mut total) = (Vec::new(), 0);
    let mut has_cuda = true;
    for line in lines.by_ref().take_while(|line| !line.is_empty()) {
        // Machines without a device say so, and in no other place.
        if line.starts_with("cuda: not available here: ") {
            has_cuda = false;
            continue;
        }
        let cells: Vec<&str> = line.split_whitespace().collect();
        let [backend, _, dtype, group, cases, passed, failed, worst] = cells[..] else {
            panic!("{line}")
        };
        assert_eq!([passed, failed], [cases, "0"]);
        assert!(worst.parse::<f64>().unwrap() <= 1.0);
        total += cases.parse::<usize>().unwrap();
        seen.push(format!("{backend} {dtype} {group}"));
    }
    let mut expected = Vec::new();
    let all = ["f32", "bf16", "f16"];
    for (backend, dtypes) in [("cpu", &all[..]), ("cuda", &all), ("reference", &["f32"])] {
        for dtype in dtypes.iter().filter(|_| backend != "cuda" || has_cuda) {
            let groups = "embed norm product attention cache logits pool pass";
            let names = groups
                .split(' ')
                .map(|group| format!("{backend} {dtype} {group}"));
            expected.extend(names);
        }
    }
    assert_eq!(seen, expected);
    let rest: Vec<&str> = lines.collect();
    assert_eq!(rest, [&format!("{total} cases, 0 failed")]);
    assert_eq!(ran.err, "");
}

#[test]
fn cases_are_chosen_by_name() {
    let args = ["check", "--filter", "pool/mean", "--json"];
    let body = run_as(Some("portable"), &args).good().json();
    let checked = body["checked"].as_array().unwrap();
    let of_cpu = checked.iter().filter(|own| own["backend"] == "cpu");
    assert_eq!(of_cpu.count(), 3);
    assert_eq!(checked[0]["backend"], "cpu");
    assert_eq!(checked[0]["isa"], "portable");
    assert_eq!(checked[0]["groups"][0]["group"], "pool");
    assert_eq!(checked[0]["groups"][0]["cases"], 4);
    assert_eq!(checked[0]["groups"][0]["passed"], 4);
    assert!(checked[0]["groups"][0]["worst_error_over_bound"].is_f64());
    assert_eq!(checked[0]["groups"].as_array().unwrap().len(), 1);
    let last = &checked[checked.len() - 1];
    assert_eq!(last["backend"], "reference");
    assert_eq!(last["isa"], serde_json::Value::Null);
    assert_eq!(body["cases"], 4 * checked.len());
    assert_eq!(body["failed"], 0);

    let args = [
        "check",
        "--backend",
        "cpu",
        "--dtype",
        "bf16",
        "--filter",
        "logits/scale -2",
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
    let checked = body["checked"].as_array().unwrap();
    assert!(checked.iter().all(|own| own["backend"] != "cpu"));
    // Nothing that ran is nothing that passed.
    let bf16 = run_as(Some("sse9"), &[&some[..], &["--dtype", "bf16"]].concat());
    match bf16.out.contains("\ncuda: not available here: ") {
        true => bf16.fails(9, &["nothing was checked"]),
        false => drop(bf16.good()),
    }
    // Asked for by name, it is an error.
    run_as(Some("sse9"), &[&some[..], &["--backend", "cpu"]].concat())
        .fails(9, &["QUINTIC_ISA: there is no instruction set `sse9`"]);
    run(&["check", "--backend", "abacus"])
        .fails(9, &["there is no backend `abacus` in this build, expected"]);
    run(&["check", "--backend", "reference", "--dtype", "bf16"])
        .fails(9, &["the reference backend does not compute in bf16"]);
}
