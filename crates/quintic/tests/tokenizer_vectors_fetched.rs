//! Ids and decoded texts of the reference tokenizers whose files are too large or not
//! free enough for the repository. `make fetch` brings them.
//!
//! | set-up in `tokenizer_vectors.jsonl` | built from |
//! | --- | --- |
//! | `sp_mt5`, `sp_umt5_recon`, `sp_llama` | the SentencePiece model alone |
//! | `mt5_slow_legacy`, `mt5_slow` | mT5's model, bare constructor without sentinels |
//! | `mt5_slow_hunyuan` | mT5's model and HunyuanDiT's flag files |
//! | `umt5_slow_recon_legacy`, `umt5_slow_recon` | UMT5's model and Wan's flag files, `legacy` as there and false |
//! | `umt5_fast` | UMT5's `tokenizer.json` |
//! | `pile_t5_slow` | Llama's model as `LlamaTokenizer`, `legacy` false |
//!
//! The folder is `QUINTIC_TOKENIZERS`, or `.cache/tokenizers` in the workspace.

#![allow(clippy::unwrap_used)] // a failing unwrap in a test is the report

mod common;

use common::{check_decoded, check_ids, fetched, set_flag, with_flags};
use quintic::{SpieceOptions, Tokenizer, TokenizerChoice};
use serde_json::{Value, json};

fn read(name: &str) -> Vec<u8> {
    std::fs::read(fetched(name)).unwrap()
}

#[test]
fn sentencepiece_alone() {
    for (set_up, name) in [
        ("sp_mt5", "mt5/spiece.model"),
        ("sp_umt5_recon", "umt5/spiece.model"),
        ("sp_llama", "pile-t5/tokenizer.model"),
    ] {
        check_ids(set_up, &Tokenizer::raw_spiece(&read(name)).unwrap());
    }
}

#[test]
fn mt5() {
    let model = read("mt5/spiece.model");
    let mut options = SpieceOptions::default();
    options.extra_ids = 0;
    let legacy = Tokenizer::from_spiece_bytes(&model, &options).unwrap();
    check_ids("mt5_slow_legacy", &legacy);
    options.legacy = false;
    let current = Tokenizer::from_spiece_bytes(&model, &options).unwrap();
    check_ids("mt5_slow", &current);
    assert_eq!(current.vocab_size(), 250_100);
    assert_eq!(current.token_id("▁<extra_id_0>"), Some(250_099));
    let dir = with_flags("mt5", fetched("mt5/spiece.model"), "spiece.model");
    let tokenizer = Tokenizer::from_dir(dir.path(), TokenizerChoice::Auto).unwrap();
    check_ids("mt5_slow_hunyuan", &tokenizer);
    assert_eq!(tokenizer.model_max_length(), Some(256));
}

fn umt5(legacy: Option<bool>) -> Tokenizer {
    let dir = with_flags("umt5", fetched("umt5/spiece.model"), "spiece.model");
    if let Some(legacy) = legacy {
        set_flag(dir.path(), "legacy", json!(legacy));
    }
    Tokenizer::from_dir(dir.path(), TokenizerChoice::Slow).unwrap()
}

#[test]
fn umt5_slow() {
    check_ids("umt5_slow_recon_legacy", &umt5(None));
    let tokenizer = umt5(Some(false));
    check_ids("umt5_slow_recon", &tokenizer);
    assert_eq!(tokenizer.vocab_size(), 256_300);
    assert_eq!(tokenizer.token_id("<extra_id_0>"), Some(256_299));
    assert_eq!(tokenizer.model_max_length(), None);
}

#[test]
fn umt5_tokenizer_json() {
    let tokenizer = Tokenizer::from_file(&fetched("umt5/tokenizer.json")).unwrap();
    check_ids("umt5_fast", &tokenizer);
    check_decoded("dec_umt5_skip", "umt5_fast", true, &tokenizer);
    let dir = with_flags("umt5", fetched("umt5/tokenizer.json"), "tokenizer.json");
    let tokenizer = Tokenizer::from_dir(dir.path(), TokenizerChoice::Auto).unwrap();
    check_ids("umt5_fast", &tokenizer);
}

#[test]
fn pile_t5() {
    let dir = with_flags(
        "pile-t5",
        fetched("pile-t5/tokenizer.model"),
        "tokenizer.model",
    );
    let tokenizer = Tokenizer::from_dir(dir.path(), TokenizerChoice::Auto).unwrap();
    check_ids("pile_t5_slow", &tokenizer);
    assert_eq!(tokenizer.eos_id(), Some(2));
    assert_eq!(tokenizer.pad_id(), None);
}

/// The vectors for UMT5 that transformers' own tests publish.
#[test]
fn published_vectors() {
    let path = common::root().join("testdata/expected/published_tokenizer_vectors.json");
    let vectors: Vec<Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let tokenizer = umt5(Some(false));
    let mut checked = 0;
    for vector in &vectors {
        if vector["tokenizer"].as_str().unwrap().starts_with("umt5") {
            let ids: Vec<u32> = serde_json::from_value(vector["ids"].clone()).unwrap();
            let text = vector["text"].as_str().unwrap();
            assert_eq!(tokenizer.encode(text, true).unwrap(), ids, "{vector}");
            checked += 1;
        }
    }
    assert_eq!(checked, 5);
}

/// The files that the other vector test rebuilds are the published ones, value for value.
#[test]
fn rebuilt_tokenizer_json_files_are_the_published_ones() {
    for name in ["flan", "flux", "sd3"] {
        let published = read(&format!("t5/{name}/tokenizer.json"));
        let published: Value = serde_json::from_slice(&published).unwrap();
        let rebuilt: Value = serde_json::from_slice(&common::t5_json(name)).unwrap();
        assert!(rebuilt == published, "{name}");
    }
}
