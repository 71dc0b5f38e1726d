//! How much guessing saves: texts are generated from one at a time, without guesses and with guesses
//! of several lengths, in turns.
//!
//! ```text
//! cargo run --release -p quintic --example lookup_speed -- MODEL FILE PREFIX [DTYPE [NEW_TOKENS [TEXTS]]]
//! ```
//!
//! Takes the file's longest lines, with `PREFIX` before each. The tokens of every run are compared with
//! those of the first before anything is printed.

use std::time::Instant;

use quintic::generate::{GenerateOptions, GenerationConfig, Sequence};
use quintic::tokenizer::{Tokenizer, TokenizerChoice};
use quintic::{ComputeChoice, ComputeType, LoadOptions, Seq2Seq, Sources};

const ROUNDS: usize = 5;
const GUESSED: [usize; 5] = [0, 3, 5, 10, 15];

fn main() -> quintic::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, file, prefix, rest @ ..] = &args[..] else {
        eprintln!("usage: lookup_speed MODEL FILE PREFIX [DTYPE [NEW_TOKENS [TEXTS]]]");
        std::process::exit(2);
    };
    let dtype = ComputeType::parse(rest.first().map_or("bf16", String::as_str))?;
    let number = |at: usize, default| rest.get(at).and_then(|n| n.parse().ok()).unwrap_or(default);
    let (new_tokens, n_texts) = (number(1, 100), number(2, 16));

    let options = LoadOptions {
        compute: ComputeChoice {
            dtype: Some(dtype),
            ..ComputeChoice::default()
        },
        ..LoadOptions::default()
    };
    let model = Seq2Seq::load(model, &options)?;
    let folder = model.folder().expect("a model folder");
    let tokenizer = Tokenizer::from_dir(folder, TokenizerChoice::Auto)?;
    let text = std::fs::read_to_string(file).expect("a text file");
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_by_key(|line| std::cmp::Reverse(line.len()));
    let texts: Vec<String> = lines
        .iter()
        .take(n_texts)
        .map(|line| format!("{prefix}{line}"))
        .collect();
    let sources: Vec<Vec<u32>> = texts
        .iter()
        .map(|text| tokenizer.encode(text, true))
        .collect::<quintic::Result<_>>()?;

    let mut times = vec![Vec::new(); GUESSED.len()];
    let mut plain: Option<Vec<Vec<Sequence>>> = None;
    for _ in 0..ROUNDS {
        for (way, &n_guessed) in GUESSED.iter().enumerate() {
            let mut config: GenerationConfig = model.generation_config()?;
            config.max_new_tokens = Some(new_tokens);
            config.prompt_lookup_num_tokens = n_guessed;
            let one = GenerateOptions {
                max_rows: 1,
                ..GenerateOptions::default()
            };
            let start = Instant::now();
            let mut found = Vec::new();
            for source in &sources {
                let source = std::slice::from_ref(source);
                found.extend(model.generate(Sources::Ids(source), &config, &one)?);
            }
            times[way].push(start.elapsed().as_secs_f64());
            let expected = plain.get_or_insert_with(|| found.clone());
            assert_eq!(&found, expected, "guesses of {n_guessed} changed a token");
        }
    }
    let tokens: usize = plain
        .iter()
        .flatten()
        .flatten()
        .map(|sequence| sequence.new_tokens().len())
        .sum();
    let from: usize = sources.iter().map(Vec::len).sum();
    println!("{n_texts} texts, {from} tokens read, {tokens} written, medians of {ROUNDS} rounds");
    let median = |times: &[f64]| {
        let mut times = times.to_vec();
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    let base = median(&times[0]);
    for (n_guessed, times) in GUESSED.iter().zip(&times) {
        let time = median(times);
        println!(
            "guesses of {n_guessed:2}: {:7.1} ms, {:6.1} tokens/s, {:.2} times as fast",
            time * 1e3,
            tokens as f64 / time,
            base / time
        );
    }
    Ok(())
}
