//! Help, version, and command lines that clap refuses.

use super::support::run;

#[test]
fn the_commands_are_listed() {
    let help = run(&["--help"]).good().out;
    let first = "Runs T5-family models: hidden states, generated text, scores\n\nUsage: quintic";
    assert!(help.starts_with(first), "{help}");
    for line in [
        "encode     Encode texts or token ids",
        "generate   Generate text from text",
        "translate  Translate texts with a model that is told the language by a tag",
        "score      Say how probable targets are, or which of a few answers is",
        "inspect    Say what a model is, what it needs, and what is odd about it",
        "tokenize   Show the tokens of texts",
        "compare    Compare the tensors of two safetensors files",
        "convert    Write a model in another form",
        "calibrate  Find out which products may be kept in integers",
        "check      Check the backends of this machine",
        "verify     Say how far each way to compute is from exact sums",
    ] {
        assert!(help.contains(line), "{help}");
    }
    assert_eq!(run(&["-h"]).good().out, help);
    assert_eq!(
        run(&["--version"]).good().out,
        format!("quintic {}\n", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn every_option_has_a_line() {
    for command in [
        "encode",
        "generate",
        "translate",
        "score",
        "inspect",
        "tokenize",
        "compare",
        "convert",
        "bench",
        "calibrate",
        "check",
        "verify",
    ] {
        let help = run(&[command, "-h"]).good().out;
        let lines: Vec<&str> = help.lines().collect();
        for pair in lines
            .windows(2)
            .filter(|pair| pair[0].trim_start().starts_with("--"))
        {
            // Beside the option, or indented further on the next line.
            let beside = pair[0].trim().contains("  ");
            assert!(
                beside || pair[1].starts_with("          "),
                "{command}: {}",
                pair[0]
            );
        }
    }
    let help = run(&["encode", "--help"]).good().out;
    assert!(help.contains(
        "Usage: quintic encode [OPTIONS] --model <DIR|FILE|ID> --output <FILE> \
         <TEXT|--input <FILE>|--input-ids <FILE>>"
    ));
    for part in [
        "[default: 4096]",
        "[default: cpu]",
        "- compute:",
        "- sentence:",
    ] {
        assert!(help.contains(part), "{help}");
    }
}

#[test]
fn wrong_command_lines() {
    for (args, part) in [
        (&[][..], "Usage: quintic <COMMAND>"),
        (&["encod"], "unrecognized subcommand 'encod'"),
        (
            &["encode", "--model", "m", "-o", "o.npy"],
            "required arguments were not provided",
        ),
        (&["encode", "--model", "m", "text"], "--output <FILE>"),
        (&["encode", "-o", "o.npy", "text"], "--model <DIR|FILE|ID>"),
        (
            &["encode", "--model", "m", "-o", "o.npy", "t", "--input", "f"],
            "cannot be used with",
        ),
        (
            &[
                "encode",
                "--model",
                "m",
                "-o",
                "o.npy",
                "t",
                "--input-ids",
                "f",
            ],
            "cannot be used with",
        ),
        (
            &[
                "encode",
                "--model",
                "m",
                "-o",
                "o.npy",
                "t",
                "--pad-rows",
                "zero",
            ],
            "cannot be used with",
        ),
        (
            &[
                "encode", "--model", "m", "-o", "o.npy", "t", "--column", "c",
            ],
            "cannot be used with",
        ),
        (
            &["encode", "--model", "m", "-o", "o.npy", "t", "--normalize"],
            "--pool <POOL>",
        ),
        (
            &["encode", "--model", "m", "-o", "o", "t", "--pool", "max"],
            "[possible values: mean,",
        ),
        (
            &[
                "encode", "--model", "m", "-o", "o", "t", "--pool", "mean", "--store", "real",
            ],
            "with '--",
        ),
        (
            &[
                "encode",
                "--model",
                "m",
                "-o",
                "o",
                "t",
                "--pool",
                "mean",
                "--hidden-states",
            ],
            "with '--",
        ),
        (
            &[
                "encode",
                "--model",
                "m",
                "-o",
                "o",
                "t",
                "--batch-tokens",
                "0",
            ],
            "0 is not in 1..",
        ),
        (
            &[
                "encode",
                "--model",
                "m",
                "-o",
                "o",
                "t",
                "--max-length",
                "-3",
            ],
            "'-3'",
        ),
        (
            &["encode", "--model", "m", "-o", "o", "t", "--dtype", "f64"],
            "[possible values: f32",
        ),
        (&["tokenize", "--model", "m"], "<TEXT>..."),
        (&["tokenize", "text"], "--model <DIR|FILE|ID>"),
        (&["inspect"], "<MODEL>"),
        (&["compare", "a"], "<B>"),
        (&["check", "--dtype", "f64"], "[possible values: f32"),
        (
            &["compare", "a", "b", "--max", "few"],
            "invalid float literal",
        ),
    ] {
        run(args).fails(2, &[part]);
    }
}
