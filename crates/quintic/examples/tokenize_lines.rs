//! Tokenizes JSON lines from standard input; `tools/tokenizer_fuzz.py` drives it.
//!
//! ```text
//! tokenize_lines dir DIR auto|fast|slow      the tokenizer of a folder
//! tokenize_lines file FILE                   one file, no flags
//! tokenize_lines spiece FILE LEGACY EXTRA    spiece.model with flags (true|false, a number)
//! tokenize_lines raw FILE                    SentencePiece only
//! tokenize_lines bytes EXTRA                 ByT5
//! ```
//!
//! A line that is a string gives the list of its ids, framed. A line
//! `{"text": …, "max_length": …}` gives truncated ids, `{"ids": […], "skip": …}` gives a
//! string. What cannot be done gives `{"error": …}`.

use std::io::{BufRead, BufWriter, Write};
use std::path::Path;

use quintic::{Result, SpieceOptions, Tokenizer, TokenizerChoice};
use serde_json::{Value, json};

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let tokenizer = load(&args)?;
    eprintln!("{}", tokenizer.describe());
    let mut out = BufWriter::new(std::io::stdout().lock());
    for line in std::io::stdin().lock().lines() {
        let answer = match answer(&tokenizer, &serde_json::from_str(&line?)?) {
            Ok(value) => value,
            Err(error) => json!({"error": error.to_string()}),
        };
        writeln!(out, "{answer}")?;
    }
    out.flush()?;
    Ok(())
}

fn load(args: &[String]) -> std::result::Result<Tokenizer, Box<dyn std::error::Error>> {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    Ok(match args.as_slice() {
        ["dir", dir, choice] => {
            let choice = match *choice {
                "fast" => TokenizerChoice::Fast,
                "slow" => TokenizerChoice::Slow,
                _ => TokenizerChoice::Auto,
            };
            Tokenizer::from_dir(Path::new(dir), choice)?
        }
        ["file", file] => Tokenizer::from_file(Path::new(file))?,
        ["spiece", file, legacy, extra_ids] => {
            let mut options = SpieceOptions::default();
            options.legacy = legacy.parse()?;
            options.extra_ids = extra_ids.parse()?;
            Tokenizer::from_spiece_bytes(&std::fs::read(file)?, &options)?
        }
        ["raw", file] => Tokenizer::raw_spiece(&std::fs::read(file)?)?,
        ["bytes", extra_ids] => Tokenizer::bytes(extra_ids.parse()?)?,
        _ => return Err("see the head of the file for the arguments".into()),
    })
}

fn answer(tokenizer: &Tokenizer, line: &Value) -> Result<Value> {
    if let Some(text) = line.as_str() {
        return Ok(json!(tokenizer.encode(text, true)?));
    }
    if let (Some(text), Some(length)) = (line["text"].as_str(), line["max_length"].as_u64()) {
        return Ok(json!(tokenizer.encode_truncated(text, length as usize)?));
    }
    let ids: Vec<u32> = serde_json::from_value(line["ids"].clone()).unwrap_or_default();
    let skip = line["skip"].as_bool().unwrap_or(false);
    Ok(json!(tokenizer.decode(&ids, skip)?))
}
