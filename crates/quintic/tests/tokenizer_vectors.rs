//! Ids and decoded texts of the reference tokenizers, for everything that the repository's
//! own files can build. `tokenizer_vectors_fetched.rs` has the others.
//!
//! | set-up in `tokenizer_vectors.jsonl` | built from |
//! | --- | --- |
//! | `sp_t5` | `spiece.model` alone |
//! | `t5_slow_legacy`, `t5_slow` | `spiece.model`, bare constructor, `legacy` on and off |
//! | `t5_slow_flux`, `_sd3`, `_cogvideox` | `spiece.model` and that model's flag files |
//! | `t5_slow_flux_legacy_false` | the same with `legacy` set to false |
//! | `t5_fast_flan`, `_flux`, `_sd3` | that model's `tokenizer.json` |
//! | `byt5`, `byt5_published` | nothing; the published flags |

#![allow(clippy::unwrap_used)] // a failing unwrap in a test is the report

mod common;

use common::{check_decoded, check_ids, data, set_flag, t5_json, with_flags};
use quintic::{SpieceOptions, Tokenizer, TokenizerChoice};
use serde_json::{Value, json};

fn t5_spiece() -> Vec<u8> {
    std::fs::read(data("t5/spiece.model")).unwrap()
}

fn t5_bare(legacy: bool) -> Tokenizer {
    let mut options = SpieceOptions::default();
    options.legacy = legacy;
    Tokenizer::from_spiece_bytes(&t5_spiece(), &options).unwrap()
}

#[test]
fn sentencepiece_alone() {
    let tokenizer = Tokenizer::raw_spiece(&t5_spiece()).unwrap();
    check_ids("sp_t5", &tokenizer);
    check_decoded("dec_sp_t5", "sp_t5", false, &tokenizer);
    assert_eq!(tokenizer.vocab_size(), 32000);
    assert_eq!(tokenizer.eos_id(), Some(1));
    assert_eq!(tokenizer.pad_id(), Some(0));
    assert_eq!(tokenizer.unk_id(), Some(2));
}

#[test]
fn seqio_vector() {
    let model = std::fs::read(data("spm-small/seqio_sentencepiece.model")).unwrap();
    let tokenizer = Tokenizer::raw_spiece(&model).unwrap();
    let ids = tokenizer.encode("this is a test", true).unwrap();
    assert_eq!(ids, [11, 8, 6, 3, 8, 6, 3, 5, 10]);
}

#[test]
fn t5_bare_constructor() {
    check_ids("t5_slow_legacy", &t5_bare(true));
    let tokenizer = t5_bare(false);
    check_ids("t5_slow", &tokenizer);
    check_decoded("dec_t5_slow_skip", "t5_slow", true, &tokenizer);
    let from_file = Tokenizer::from_file(&data("t5/spiece.model")).unwrap();
    check_ids("t5_slow_legacy", &from_file);
    assert_eq!(tokenizer.vocab_size(), 32100);
    assert_eq!(tokenizer.token_id("<extra_id_0>"), Some(32099));
    assert_eq!(tokenizer.token(32000).as_deref(), Some("<extra_id_99>"));
}

#[test]
fn t5_published_flags() {
    for name in ["flux", "sd3", "cogvideox"] {
        let dir = with_flags(
            &format!("t5/{name}"),
            data("t5/spiece.model"),
            "spiece.model",
        );
        for choice in [TokenizerChoice::Slow, TokenizerChoice::Auto] {
            let tokenizer = Tokenizer::from_dir(dir.path(), choice).unwrap();
            check_ids(&format!("t5_slow_{name}"), &tokenizer);
            let length = if name == "cogvideox" { 226 } else { 512 };
            assert_eq!(tokenizer.model_max_length(), Some(length));
        }
        if name == "flux" {
            set_flag(dir.path(), "legacy", json!(false));
            let tokenizer = Tokenizer::from_dir(dir.path(), TokenizerChoice::Slow).unwrap();
            check_ids("t5_slow_flux_legacy_false", &tokenizer);
            assert!(tokenizer.describe().ends_with("legacy false"));
        }
    }
}

#[test]
fn t5_tokenizer_json() {
    for name in ["flan", "flux", "sd3"] {
        let json = t5_json(name);
        let tokenizer = Tokenizer::from_json_bytes(&json).unwrap();
        let set_up = format!("t5_fast_{name}");
        check_ids(&set_up, &tokenizer);
        if name == "flan" {
            check_decoded("dec_t5_fast_flan", &set_up, false, &tokenizer);
            check_decoded("dec_t5_fast_flan_skip", &set_up, true, &tokenizer);
            assert_eq!(tokenizer.vocab_size(), 32100);
            assert_eq!(tokenizer.eos_id(), Some(1));
            assert_eq!(tokenizer.pad_id(), Some(0));
            assert_eq!(tokenizer.unk_id(), Some(2));
            continue;
        }
        // In the published folder the flag files are applied on top, to the same effect.
        let dir = with_flags(
            &format!("t5/{name}"),
            data("t5/spiece.model"),
            "spiece.model",
        );
        std::fs::write(dir.path().join("tokenizer.json"), json).unwrap();
        let tokenizer = Tokenizer::from_dir(dir.path(), TokenizerChoice::Auto).unwrap();
        check_ids(&set_up, &tokenizer);
        assert_eq!(tokenizer.model_max_length(), Some(512));
    }
}

#[test]
fn truncation_and_padding_of_a_tokenizer_json_are_switched_off() {
    let mut json: Value = serde_json::from_slice(&t5_json("flux")).unwrap();
    json["truncation"] = json!({
        "direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0
    });
    json["padding"] = json!({
        "strategy": {"Fixed": 48}, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"
    });
    let tokenizer = Tokenizer::from_json_bytes(json.to_string().as_bytes()).unwrap();
    check_ids("t5_fast_flux", &tokenizer);
}

/// The three-hyphen pieces of a long row all score the same, so only rounding decides where
/// the single hyphen goes. The reference reads scores with a parser that may be off in the
/// last bit, and so must we: serde_json's feature `float_roundtrip` would break this.
#[test]
fn ties_are_broken_as_in_the_reference() {
    let row = "-".repeat(55);
    let expected = |place: usize| {
        let mut ids = vec![14817; 18];
        ids.insert(place, 18);
        [vec![3], ids, vec![1]].concat()
    };
    let fast = Tokenizer::from_json_bytes(&t5_json("flux")).unwrap();
    assert_eq!(fast.encode(&row, true).unwrap(), expected(2));
    assert_eq!(t5_bare(true).encode(&row, true).unwrap(), expected(0));
}

#[test]
fn bytes() {
    let tokenizer = Tokenizer::bytes(125).unwrap();
    check_ids("byt5", &tokenizer);
    check_decoded("dec_byt5_skip", "byt5", true, &tokenizer);
    assert_eq!(tokenizer.vocab_size(), 384);
    assert_eq!(tokenizer.token_id("<extra_id_0>"), Some(259));
    let dir = common::folder(&[(data("byt5/tokenizer_config.json"), "tokenizer_config.json")]);
    let tokenizer = Tokenizer::from_dir(dir.path(), TokenizerChoice::Auto).unwrap();
    check_ids("byt5_published", &tokenizer);
}

/// The vectors that transformers' own tests publish.
#[test]
fn published_vectors() {
    let path = common::root().join("testdata/expected/published_tokenizer_vectors.json");
    let vectors: Vec<Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let bare = Tokenizer::bytes(125).unwrap();
    let dir = common::folder(&[(data("byt5/tokenizer_config.json"), "tokenizer_config.json")]);
    let flagged = Tokenizer::from_dir(dir.path(), TokenizerChoice::Slow).unwrap();
    let mut checked = 0;
    for vector in &vectors {
        let text = vector["text"].as_str().unwrap();
        let ids: Vec<u32> = serde_json::from_value(vector["ids"].clone()).unwrap();
        let found = match vector["tokenizer"].as_str().unwrap() {
            "t5" => t5_bare(true).encode(text, true),
            "t5 legacy=False" => t5_bare(false).encode(text, true),
            "t5 no eos" => t5_bare(true).encode(text, false),
            "byt5" if text.contains("</s>") => flagged.encode(text, true),
            "byt5" => bare.encode(text, true),
            // These need a fetched model.
            kind => {
                assert!(kind.starts_with("umt5"), "unknown set-up {kind}");
                continue;
            }
        };
        assert_eq!(found.unwrap(), ids, "{vector}");
        checked += 1;
    }
    assert_eq!(checked, 13);
}

/// Further rules of transformers' `test_tokenization_t5.py`.
#[test]
fn rules_of_the_reference_tests() {
    let legacy = t5_bare(true);
    for (with, without) in [
        ("hi</s>", "hi"),
        ("I went to the gym</s>", "I went to the gym"),
        ("</s>", ""),
    ] {
        let ids = |text: &str| legacy.encode(text, true).unwrap();
        assert_eq!(ids(with), ids(without));
    }
    let current = t5_bare(false);
    for text in ["", " ", "▁", " ▁"] {
        assert_eq!(current.encode(text, false).unwrap(), [0; 0], "{text:?}");
    }
    let ids = [0, 1960, 19, 2, 1245, 239, 1];
    let text = legacy.decode(&ids, false).unwrap();
    assert_eq!(text, "<pad> Today is<unk> nice day</s>");
}

#[test]
fn truncation_keeps_the_end_of_sequence() {
    let dir = with_flags("t5/flux", data("t5/spiece.model"), "spiece.model");
    let left = with_flags("t5/flux", data("t5/spiece.model"), "spiece.model");
    set_flag(left.path(), "truncation_side", json!("left"));
    let left = Tokenizer::from_dir(left.path(), TokenizerChoice::Slow).unwrap();
    let fast = Tokenizer::from_json_bytes(&t5_json("flux")).unwrap();
    let slow = Tokenizer::from_dir(dir.path(), TokenizerChoice::Slow).unwrap();
    for tokenizer in [&slow, &fast] {
        let text = "A long paragraph for summarization.";
        let ids = tokenizer.encode(text, true).unwrap();
        assert_eq!(ids, [71, 307, 8986, 21, 4505, 1635, 1707, 5, 1]);
        assert_eq!(tokenizer.encode_truncated(text, 9).unwrap(), ids);
        assert_eq!(
            tokenizer.encode_truncated(text, 4).unwrap(),
            [71, 307, 8986, 1]
        );
        assert_eq!(tokenizer.encode_truncated(text, 1).unwrap(), [1]);
        let error = tokenizer.encode_truncated(text, 0).unwrap_err();
        assert!(error.message().starts_with("`max_length` is 0"), "{error}");
        // An end of sequence in the text counts as text: it may be cut off.
        assert_eq!(tokenizer.encode_truncated("long</s>", 2).unwrap(), [307, 1]);
    }
    let ids = left.encode_truncated("A long paragraph for summarization.", 4);
    assert_eq!(ids.unwrap(), [1635, 1707, 5, 1]);
}

/// A megabyte of text must not take minutes, whatever the text looks like.
#[test]
fn long_texts_take_linear_time() {
    let started = std::time::Instant::now();
    let bpe = include_bytes!("../../../testdata/tokenizers/spm-small/test_model.model");
    let slow = t5_bare(false);
    let raw = Tokenizer::raw_spiece(bpe).unwrap();
    for unit in ["a", "ab ", "<extra_id_0>", "日本", "\u{301}", " "] {
        let text = unit.repeat((1 << 20) / unit.len());
        for tokenizer in [&slow, &raw] {
            tokenizer.encode(&text, true).unwrap();
        }
    }
    assert!(started.elapsed().as_secs() < 60, "{:?}", started.elapsed());
}

#[test]
fn tokenizers_are_shared_between_threads() {
    fn check<T: Send + Sync>() {}
    check::<Tokenizer>();
}
