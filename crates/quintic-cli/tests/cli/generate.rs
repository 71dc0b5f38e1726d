//! `quintic generate`, `translate` and `score`.

use serde_json::{Value, json};

use super::support::{Ran, run, run_with, testdata};

/// A tiny model with bytes for tokens and a decoder; its texts mean nothing.
struct Decoder(tempfile::TempDir);

impl Decoder {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for file in ["config.json", "model.safetensors"] {
            let from = testdata("decoder_goldens/byt5").join(file);
            std::fs::copy(from, folder.path().join(file)).unwrap();
        }
        // Of 64 ids the highest byte is 60.
        let config = r#"{"tokenizer_class": "ByT5Tokenizer", "extra_ids": 0}"#;
        std::fs::write(folder.path().join("tokenizer_config.json"), config).unwrap();
        Decoder(folder)
    }

    fn path(&self, file: &str) -> String {
        self.0.path().join(file).to_str().unwrap().to_owned()
    }

    fn run(&self, command: &str, more: &[&str]) -> Ran {
        let model = self.path("");
        run(&[&[command, "--model", &model, "--quiet"], more].concat())
    }

    /// Tokens of the first sequence of each text.
    fn tokens(&self, more: &[&str]) -> Vec<Value> {
        let ran = self.run("generate", &[&["--json"], more].concat()).good();
        let lines = ran.json_lines();
        lines
            .iter()
            .map(|line| line["sequences"][0]["tokens"].clone())
            .collect()
    }
}

#[test]
fn texts_become_tokens_alone_and_together() {
    let model = Decoder::new();
    let together = model.tokens(&["1 + 1", "*", "4 4 4 4 4 4", "--max-new-tokens", "9"]);
    assert_eq!(together.len(), 3);
    for (text, expected) in ["1 + 1", "*", "4 4 4 4 4 4"].iter().zip(&together) {
        assert_eq!(&model.tokens(&[text, "--max-new-tokens", "9"])[0], expected);
        let narrow = ["--max-rows", "1", "--backend", "reference"];
        let alone = model.tokens(&[&[*text, "--max-new-tokens", "9"][..], &narrow].concat());
        assert_eq!(&alone[0], expected);
    }
    let few = model.tokens(&["*", "--options", r#"{"max_length": 4}"#]);
    assert!(few[0].as_array().unwrap().len() <= 3);
}

#[test]
fn sequences_have_scores_and_reasons() {
    let model = Decoder::new();
    let args = [
        "12",
        "--json",
        "--num-beams",
        "3",
        "--num-return-sequences",
        "2",
    ];
    let lines = model.run("generate", &args).good().json_lines();
    assert_eq!(lines[0]["source"], "12");
    let sequences = lines[0]["sequences"].as_array().unwrap();
    assert_eq!(sequences.len(), 2);
    let score = |at: usize| sequences[at]["score"].as_f64().unwrap();
    assert!(score(0) >= score(1) && score(0) < 0.0);
    for sequence in sequences {
        let n = sequence["tokens"].as_array().unwrap().len();
        assert_eq!(sequence["log_probs"].as_array().unwrap().len(), n);
        assert!(["eos", "length"].contains(&sequence["finish"].as_str().unwrap()));
    }
}

#[test]
fn guesses_change_no_token() {
    let model = Decoder::new();
    let plain = ["1 + 1", "4 4 4 4", "--max-new-tokens", "30"];
    let guessed = [&plain[..], &["--prompt-lookup-num-tokens", "6"]].concat();
    assert_eq!(model.tokens(&guessed), model.tokens(&plain));
    let many = [&plain[..], &["--prompt-lookup-num-tokens", "16"]].concat();
    let ran = model.run("generate", &many);
    ran.fails(8, &["`prompt_lookup_num_tokens`", "0 to 15"]);
}

#[test]
fn draws_have_a_seed() {
    let model = Decoder::new();
    let draw = |seed: &str| {
        model.tokens(&["77", "--do-sample", "--temperature", "3", "--seed", seed])[0].clone()
    };
    assert_eq!(draw("5"), draw("5"));
    assert!((6..12).any(|seed: u32| draw(&seed.to_string()) != draw("5")));
}

#[test]
fn files_in_and_out() {
    let model = Decoder::new();
    let input = model.path("in.tsv");
    std::fs::write(&input, "id\tsource\n1\t12\n2\t3\n").unwrap();
    let (json, text) = (model.path("out.jsonl"), model.path("out.txt"));
    let from = ["--input", &input, "--column", "source"];
    for output in [&json, &text] {
        let ran = model
            .run("generate", &[&from[..], &["-o", output]].concat())
            .good();
        assert_eq!(ran.out, "");
    }
    let lines: Vec<Value> = std::fs::read_to_string(&json)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let sources: Vec<&Value> = lines.iter().map(|line| &line["source"]).collect();
    assert_eq!(sources, ["12", "3"]);
    assert_eq!(std::fs::read_to_string(&text).unwrap().lines().count(), 2);
    model
        .run(
            "generate",
            &[&from[..], &["-o", &model.path("out.csv")]].concat(),
        )
        .fails(9, &["`.csv`", ".txt or .jsonl"]);
    assert!(!std::path::Path::new(&model.path("out.csv")).exists());
}

/// What is shown token by token is what would be shown at the end.
#[test]
fn a_single_text_is_streamed() {
    let model = Decoder::new();
    let streamed = model.run("generate", &["31"]).good().out;
    let line = &model.run("generate", &["31", "--json"]).good().json_lines()[0];
    let text = line["sequences"][0]["text"].as_str().unwrap();
    assert_eq!(streamed, format!("{}\n", text.replace(['\n', '\r'], " ")));
}

#[test]
fn targets_are_scored_and_answers_weighed() {
    let model = Decoder::new();
    let args = ["1", "22", "--target", "5", "--target", "678", "--tokens"];
    let lines = model.run("score", &args).good().json_lines();
    let tiny = [&args[..], &["--batch-tokens", "1"]].concat();
    assert_eq!(model.run("score", &tiny).good().json_lines(), lines);
    assert_eq!(
        (&lines[0]["n_tokens"], &lines[1]["n_tokens"]),
        (&json!(2), &json!(4))
    );
    for line in &lines {
        let log_probs = line["log_probs"].as_array().unwrap();
        let sum: f64 = log_probs.iter().map(|x| x.as_f64().unwrap()).sum();
        let score = line["score"].as_f64().unwrap();
        assert!((sum - score).abs() < 1e-6 && score < 0.0);
        let perplexity = (-score / log_probs.len() as f64).exp();
        assert!((line["perplexity"].as_f64().unwrap() - perplexity).abs() < 1e-6);
    }
    let lines = model
        .run("score", &["1", "22", "--answers", "3,4,5"])
        .good()
        .json_lines();
    for line in lines {
        let all = line["probabilities"].as_array().unwrap();
        let sum: f64 = all.iter().map(|p| p.as_f64().unwrap()).sum();
        assert!(all.len() == 3 && (sum - 1.0).abs() < 1e-9);
    }
}

#[test]
fn mistakes_are_named() {
    let model = Decoder::new();
    for (args, code, part) in [
        (&["x", "--options", "{"][..], 8, "`--options`"),
        (&["x", "--options", r#"{"beams": 2}"#], 8, "`beams`"),
        (
            &["x", "--options", r#"{"num_beam_groups": 2}"#],
            9,
            "`num_beam_groups`",
        ),
        (
            &["x", "--num-beams", "2", "--options", r#"{"num_beams": 2}"#],
            8,
            "given twice",
        ),
        (&["x", "--temperature", "-1"], 2, ""),
        (&["x", "--top-p", "0"], 8, "`top_p`"),
        (
            &["x", "--num-return-sequences", "2"],
            8,
            "`num_return_sequences`",
        ),
        (
            &["1", "--options", r#"{"eos_token_id": 4000}"#],
            8,
            "`eos_token_id`",
        ),
        (
            &["1", "--options", r#"{"max_length": 1}"#],
            8,
            "max_new_tokens",
        ),
        // A byte beyond the tiny vocabulary.
        (&["\u{ff}"], 8, "outside the vocabulary"),
        (&[], 2, ""),
    ] {
        model.run("generate", args).fails(code, &[part]);
    }
    model
        .run("translate", &["x", "--to", "de"])
        .fails(8, &["`<2de>`", "--text-prefix"]);
    model
        .run("score", &["1", "2", "--target", "3"])
        .fails(8, &["1 targets for 2 texts"]);
    model
        .run("score", &["1", "--answers", "23"])
        .fails(8, &["`23` is 2 tokens"]);
    let encoder = testdata("goldens/t5-v1_1");
    let encoder = encoder.to_str().unwrap();
    let spiece = testdata("tokenizers/t5/spiece.model");
    let args = ["--tokenizer", spiece.to_str().unwrap(), "x"];
    run(&[&["generate", "--model", encoder], &args[..]].concat()).fails(6, &["decoder.block.0"]);
    run_with(&["generate", "--model", "/nowhere", "x"], b"").fails(4, &["/nowhere"]);
}
