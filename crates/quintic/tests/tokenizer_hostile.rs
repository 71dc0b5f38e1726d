//! Damaged and hostile tokenizer files: each is refused with its own message, and none
//! panics, hangs or asks for much memory.

#![allow(clippy::unwrap_used)] // a failing unwrap in a test is the report

mod common;

use std::path::Path;

use common::{base64, data, field, folder, number_field, piece, set_flag, t5_json};
use proptest::prelude::*;
use quintic::{ErrorKind, SpieceOptions, Tokenizer, TokenizerChoice};
use serde_json::{Value, json};

const NORMAL: u64 = 1;
const UNKNOWN: u64 = 2;
const CONTROL: u64 = 3;
const BYTE: u64 = 6;

/// A small unigram model with some more bytes at its end.
fn model(more: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = [
        piece("<unk>", 0.0, UNKNOWN),
        piece("</s>", 0.0, CONTROL),
        piece("\u{2581}", -2.0, NORMAL),
        piece("a", -3.0, NORMAL),
    ]
    .concat();
    bytes.extend(more.concat());
    bytes
}

fn charsmap(blob: &[u8]) -> Vec<u8> {
    field(3, &field(2, blob))
}

/// Size of the trie, the trie, the replacements.
fn blob(units: &[u32], replacements: &[u8]) -> Vec<u8> {
    let mut blob = ((units.len() * 4) as u32).to_le_bytes().to_vec();
    blob.extend(units.iter().flat_map(|unit| unit.to_le_bytes()));
    blob.extend(replacements);
    blob
}

/// A trie that maps `a` to `value`, and may be damaged at the place of `a`.
fn trie(value: u32, a: Option<u32>) -> Vec<u32> {
    let mut units = vec![0; 512];
    units[0] = 256 << 10;
    let place = 256 ^ 0x61;
    units[place] = a.unwrap_or(((place ^ 300) as u32) << 10 | 1 << 8 | 0x61);
    units[300] = value | 1 << 31;
    units
}

fn load(spiece: &[u8]) -> quintic::Result<Tokenizer> {
    Tokenizer::from_spiece_bytes(spiece, &SpieceOptions::default())
}

#[test]
fn a_sound_small_model_loads() {
    let tokenizer = load(&model(&[])).unwrap();
    assert_eq!(tokenizer.encode("aa a", true).unwrap(), [2, 3, 3, 2, 3, 1]);
    let more = charsmap(&blob(&trie(0, None), b"aaa\0"));
    let tokenizer = load(&model(&[more])).unwrap();
    assert_eq!(tokenizer.encode("a", true).unwrap(), [2, 3, 3, 3, 1]);
}

#[test]
fn spiece_models_are_refused_with_a_reason() {
    let trainer = |fields: &[Vec<u8>]| field(2, &fields.concat());
    let long = "a".repeat(8000);
    let mut cut_off = model(&[]);
    cut_off.truncate(cut_off.len() - 1);
    let mut not_utf8 = field(1, &[0xff, 0xfe]);
    not_utf8 = field(1, &not_utf8);
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty file", vec![], "the model has 0 pieces"),
        ("cut off", cut_off, "a field has"),
        (
            "endless varint",
            vec![0xff; 32],
            "a varint is longer than 10 bytes",
        ),
        ("cut off varint", vec![0x0a, 0x80], "a varint is cut off"),
        (
            "length beyond the end",
            vec![0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
            "a field has 9223372036854775807 bytes, but 0 are left",
        ),
        ("field 0", vec![0x02, 0x00], "field number is 0"),
        ("group", vec![0x0b], "field 1 has wire type 3"),
        (
            "wrong wire type",
            vec![0x08, 0x01],
            "field 1 holds a varint, expected bytes",
        ),
        (
            "not UTF-8",
            model(&[not_utf8]),
            "field 1 is not UTF-8 from its byte 0 on",
        ),
        (
            "a zip file",
            b"PK\x03\x04\x14\0\0\0\x08\0".to_vec(),
            "not a SentencePiece model",
        ),
        (
            "piece type",
            model(&[piece("b", 0.0, 9)]),
            "piece type is 9, expected 1 to 6",
        ),
        (
            "model type",
            model(&[trainer(&[number_field(3, 7)])]),
            "`model_type` is 7",
        ),
        (
            "word model",
            model(&[trainer(&[number_field(3, 3)])]),
            "`model_type` is Word",
        ),
        (
            "empty piece",
            model(&[piece("", 0.0, NORMAL)]),
            "its text is empty",
        ),
        (
            "zero byte",
            model(&[piece("b\0", 0.0, NORMAL)]),
            "its text has a zero byte",
        ),
        (
            "long piece",
            model(&[piece(&long, 0.0, NORMAL)]),
            "its text has 8000 bytes",
        ),
        (
            "twice",
            model(&[piece("a", -1.0, NORMAL)]),
            "its text `a` is piece 3 already",
        ),
        (
            "NaN",
            model(&[piece("b", f32::NAN, NORMAL)]),
            "its score is NaN",
        ),
        (
            "infinite",
            model(&[piece("b", f32::NEG_INFINITY, NORMAL)]),
            "its score is -inf",
        ),
        (
            "no unknown",
            piece("a", -1.0, NORMAL),
            "no piece of type unknown",
        ),
        (
            "two unknown",
            model(&[piece("<u>", 0.0, UNKNOWN)]),
            "pieces 0 and 4 are both of type unknown",
        ),
        (
            "only unknown",
            piece("<unk>", 0.0, UNKNOWN),
            "no normal pieces",
        ),
        (
            "byte piece without fallback",
            model(&[piece("<0x41>", 0.0, BYTE)]),
            "is there although `byte_fallback` is false",
        ),
        (
            "missing byte pieces",
            model(&[trainer(&[number_field(35, 1)])]),
            "byte piece `<0x00>` is missing",
        ),
        (
            "short charsmap",
            model(&[charsmap(&[1, 2])]),
            "charsmap has 2 bytes",
        ),
        (
            "charsmap longer than the file",
            model(&[charsmap(&[0xff, 0xff, 0xff, 0xff, 0])]),
            "charsmap says its trie has 4294967295 bytes, but 1 are left",
        ),
        (
            "odd trie",
            model(&[charsmap(&[3, 0, 0, 0, 1, 2, 3])]),
            "trie has 3 bytes, expected a positive multiple of 4",
        ),
        (
            "trie that points outside",
            model(&[charsmap(&blob(
                &trie(0, Some(1 << 30 | 1 << 8 | 0x61)),
                b"\0",
            ))]),
            "points to unit",
        ),
        (
            "trie with a cycle",
            model(&[charsmap(&blob(&trie(0, Some(0x61 << 10 | 0x61)), b"\0"))]),
            "a path returns to unit",
        ),
        (
            "replacement outside",
            model(&[charsmap(&blob(&trie(9, None), b"b\0"))]),
            "charsmap points to replacement 9",
        ),
        (
            "replacement without an end",
            model(&[charsmap(&blob(&trie(0, None), b"b"))]),
            "charsmap points to replacement 0",
        ),
        (
            "replacement inside a character",
            model(&[charsmap(&blob(&trie(1, None), "é\0".as_bytes()))]),
            "charsmap points to replacement 1",
        ),
        (
            "replacements that are not UTF-8",
            model(&[charsmap(&blob(&trie(0, None), &[0xff, 0]))]),
            "charsmap has replacements that are not UTF-8",
        ),
    ];
    for (name, bytes, expected) in cases {
        let error = load(&bytes).err().unwrap_or_else(|| panic!("{name} loads"));
        assert!(error.to_string().contains(expected), "{name}: {error}");
    }
}

#[test]
fn errors_name_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let error = Tokenizer::from_dir(dir.path(), TokenizerChoice::Auto).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.message().contains("`tokenizer.json`"), "{error}");
    let error = Tokenizer::from_dir(dir.path(), TokenizerChoice::Fast).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    for name in ["spiece.model", "tokenizer.json"] {
        std::fs::write(dir.path().join(name), "nonsense").unwrap();
        let error = Tokenizer::from_dir(dir.path(), TokenizerChoice::Auto).unwrap_err();
        assert!(error.place().unwrap().contains(name), "{error}");
    }
}

/// The T5 header over a vocabulary of four pieces, with one change.
fn small_json(change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut json: Value = serde_json::from_slice(&t5_json("flux")).unwrap();
    json["model"]["vocab"] = json!([["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0], ["▁", -2.0]]);
    json["added_tokens"].as_array_mut().unwrap().truncate(3);
    json["normalizer"] = Value::Null;
    change(&mut json);
    json.to_string().into_bytes()
}

#[test]
fn tokenizer_json_files_are_refused_with_a_reason() {
    let precompiled = |blob: &[u8]| {
        let text = base64(blob);
        small_json(|json| {
            json["normalizer"] = json!({"type": "Sequence", "normalizers": [
                {"type": "Precompiled", "precompiled_charsmap": text}
            ]});
        })
    };
    let deep = "[".repeat(100_000);
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty", vec![], "not a tokenizer.json"),
        ("not JSON", b"{\"model\": ".to_vec(), "EOF while parsing"),
        ("deep", deep.into_bytes(), "not a tokenizer.json"),
        ("no model", b"{}".to_vec(), "missing field `model`"),
        (
            "empty vocabulary",
            small_json(|json| json["model"]["vocab"] = json!([])),
            "`vocab` is empty",
        ),
        (
            "vocabulary of another kind",
            small_json(|json| json["model"]["vocab"] = json!({"a": 1})),
            "is not a list of pieces and scores",
        ),
        (
            "unknown id outside",
            small_json(|json| json["model"]["unk_id"] = json!(4)),
            "`unk_id` is 4, expected less than 4",
        ),
        (
            "infinite score",
            String::from_utf8(small_json(|_| {}))
                .unwrap()
                .replace("-2.0", "-1e999")
                .into_bytes(),
            "number out of range",
        ),
        (
            "long piece",
            small_json(|json| json["model"]["vocab"][3][0] = json!("a".repeat(5000))),
            "its text has 5000 bytes, expected at most 1000",
        ),
        (
            "id of an added token",
            small_json(|json| json["added_tokens"][2]["id"] = json!(1u64 << 40)),
            "id is 1099511627776",
        ),
        (
            // The crate would take all memory while it looks for this token.
            "token that normalizes to nothing",
            small_json(|json| {
                json["normalizer"] =
                    json!({"type": "Strip", "strip_left": true, "strip_right": true});
                json["added_tokens"][2]["content"] = json!(" ");
                json["added_tokens"][2]["normalized"] = json!(true);
            }),
            "its normalized form is empty",
        ),
        (
            "unknown normalizer",
            small_json(|json| json["normalizer"] = json!({"type": "Nothing"})),
            "data did not match any variant",
        ),
        (
            "charsmap that is no base64",
            small_json(|json| {
                json["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": "?"});
            }),
            "`precompiled_charsmap` is not base64",
        ),
        (
            // The crate would reserve 8 GiB for this trie.
            "huge trie",
            precompiled(&[0xfc, 0xff, 0xff, 0xff, 0]),
            "charsmap says its trie has 4294967292 bytes",
        ),
        (
            // The crate would index past the end of this one.
            "trie that points outside",
            precompiled(&blob(&trie(0, Some(1 << 30 | 1 << 8 | 0x61)), b"\0")),
            "points to unit",
        ),
        (
            "replacement outside",
            precompiled(&blob(&trie(9, None), b"b\0")),
            "charsmap points to replacement 9",
        ),
        (
            // 2^64 letters of one.
            "rules that double the text",
            small_json(|json| {
                let rule = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
                json["normalizer"] = json!({"type": "Sequence", "normalizers": vec![rule; 64]});
            }),
            "times longer, expected at most 4096",
        ),
        (
            "many long tokens that grow",
            small_json(|json| {
                let rule = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "a".repeat(800)});
                json["normalizer"] = rule;
                let mut token = json["added_tokens"][2].clone();
                token["content"] = "a".repeat(900).into();
                let tokens = json["added_tokens"].as_array_mut().unwrap();
                tokens.extend(vec![token; 30]);
            }),
            "can become 800 times longer, expected at most 16777216 bytes",
        ),
        (
            "rules of the decoder that double the text",
            small_json(|json| {
                let rule = json!({"type": "Replace", "pattern": {"Regex": "a?"}, "content": "aa"});
                json["decoder"] = json!({"type": "Sequence", "decoders": vec![rule; 10]});
            }),
            "the decoder can make a text 59049 times longer",
        ),
    ];
    for (name, json, expected) in cases {
        let error = Tokenizer::from_json_bytes(&json)
            .err()
            .unwrap_or_else(|| panic!("{name} loads"));
        assert!(error.to_string().contains(expected), "{name}: {error}");
        assert_eq!(error.kind(), ErrorKind::Tokenizer, "{name}");
    }
}

#[test]
fn a_template_that_repeats_the_text_is_not_cut() {
    let twice = small_json(|json| {
        let single = json["post_processor"]["single"].as_array_mut().unwrap();
        single.insert(0, single[0].clone());
    });
    let tokenizer = Tokenizer::from_json_bytes(&twice).unwrap();
    let ids = tokenizer.encode("a", true).unwrap();
    let error = tokenizer.encode_truncated("a", ids.len() - 1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(error.message().contains("so it cannot be cut"), "{error}");

    // What is cut off must not be combined: this would be 999^5 pieces.
    let six_times = small_json(|json| {
        let single = json["post_processor"]["single"].as_array_mut().unwrap();
        *single = vec![single[0].clone(); 6];
    });
    let tokenizer = Tokenizer::from_json_bytes(&six_times).unwrap();
    assert!(tokenizer.encode_truncated(&"a b ".repeat(500), 1).is_err());
}

#[test]
fn flags_are_refused_with_a_reason() {
    let cases = [
        (
            "legacy",
            json!("yes"),
            "legacy: found a string, expected true or false",
        ),
        ("extra_ids", json!(-1), "extra_ids: found the number -1"),
        (
            "extra_ids",
            json!(1u64 << 40),
            "expected a number from 0 to 1048576",
        ),
        (
            "extra_ids",
            json!(7),
            "`extra_ids` is 7, but `additional_special_tokens` has 100",
        ),
        (
            "eos_token",
            json!(1),
            "eos_token: found the number 1, expected a string or an object",
        ),
        (
            "eos_token",
            json!(null),
            "`eos_token` is null, expected a token",
        ),
        (
            "eos_token",
            json!({"lstrip": true}),
            "a token has no `content`",
        ),
        (
            "additional_special_tokens",
            json!("a"),
            "expected a list of tokens",
        ),
        (
            "added_tokens_decoder",
            json!([]),
            "added_tokens_decoder: found a list",
        ),
        (
            "added_tokens_decoder",
            json!({"x": {}}),
            "key `x` is not a token id",
        ),
        (
            "added_tokens_decoder",
            json!({"4294967295": {"content": "a"}}),
            "key `4294967295` is not a token id",
        ),
        (
            "added_tokens_decoder",
            json!({"5": {"content": "a", "lstrip": 1}}),
            "lstrip: found the number 1",
        ),
        (
            "sp_model_kwargs",
            json!({"enable_sampling": true}),
            "asks for `enable_sampling`",
        ),
        (
            "sp_model_kwargs",
            json!([]),
            "sp_model_kwargs: found a list",
        ),
        ("init_inputs", json!([1]), "`init_inputs` is not empty"),
        (
            "tokenizer_class",
            json!("BertTokenizer"),
            "tokenizer class `BertTokenizer`",
        ),
        ("truncation_side", json!("up"), "expected `left` or `right`"),
        (
            "model_max_length",
            json!("long"),
            "model_max_length: found a string",
        ),
    ];
    for (key, value, expected) in cases {
        let dir = common::with_flags("t5/flux", data("t5/spiece.model"), "spiece.model");
        set_flag(dir.path(), key, value.clone());
        let error = Tokenizer::from_dir(dir.path(), TokenizerChoice::Auto)
            .err()
            .unwrap_or_else(|| panic!("{key}: {value} loads"));
        assert!(
            error.to_string().contains(expected),
            "{key}: {value}: {error}"
        );
    }
    // Sampling that is switched off asks for nothing.
    let dir = common::with_flags("t5/flux", data("t5/spiece.model"), "spiece.model");
    set_flag(
        dir.path(),
        "sp_model_kwargs",
        json!({"enable_sampling": false, "alpha": 0.1}),
    );
    Tokenizer::from_dir(dir.path(), TokenizerChoice::Auto).unwrap();
}

#[test]
fn damaged_flag_files_are_refused() {
    for (name, text) in [
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", "{"),
        ("special_tokens_map.json", "{\"eos_token\": []}"),
        ("added_tokens.json", "{\"a\": -1}"),
        ("config.json", "nonsense"),
    ] {
        let dir = folder(&[(data("t5/spiece.model"), "spiece.model")]);
        std::fs::write(dir.path().join(name), text).unwrap();
        let error = Tokenizer::from_dir(dir.path(), TokenizerChoice::Auto).unwrap_err();
        assert!(error.to_string().contains(name), "{name}: {error}");
    }
}

#[test]
fn ids_outside_the_vocabulary_are_errors() {
    let slow = Tokenizer::from_file(&data("t5/spiece.model")).unwrap();
    let raw = Tokenizer::raw_spiece(&std::fs::read(data("t5/spiece.model")).unwrap()).unwrap();
    let bytes = Tokenizer::bytes(125).unwrap();
    for (tokenizer, id) in [
        (&slow, 32100),
        (&raw, 32000),
        (&bytes, 384),
        (&bytes, u32::MAX),
    ] {
        let error = tokenizer.decode(&[id], false).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Input);
        assert!(
            error.message().starts_with(&format!("id {id} is not in")),
            "{error}"
        );
        assert_eq!(tokenizer.token(id), None);
    }
}

/// Whatever loads must also work.
fn use_it(tokenizer: &Tokenizer) {
    for text in [
        "",
        "a b",
        "\u{0} é 日本 <extra_id_0></s>",
        "ﬁ²\u{301}\u{ad}\u{3000}🍕",
    ] {
        if let Ok(ids) = tokenizer.encode(text, true) {
            let _ = tokenizer.decode(&ids, false);
            let _ = tokenizer.encode_truncated(text, 2);
        }
    }
}

fn try_dir(dir: &Path) {
    for choice in [TokenizerChoice::Auto, TokenizerChoice::Slow] {
        if let Ok(tokenizer) = Tokenizer::from_dir(dir, choice) {
            use_it(&tokenizer);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = load(&bytes).map(|tokenizer| use_it(&tokenizer));
        let _ = Tokenizer::from_json_bytes(&bytes);
    }

    #[test]
    fn damaged_models_never_panic(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<Option<prop::sample::Index>>(),
    ) {
        for name in ["spm-small/seqio_sentencepiece.model", "spm-small/test_model.model"] {
            let mut bytes = std::fs::read(data(name)).unwrap();
            for (place, value) in &changes {
                let place = place.index(bytes.len());
                bytes[place] = *value;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            let _ = load(&bytes).map(|tokenizer| use_it(&tokenizer));
        }
    }

    #[test]
    fn damaged_charsmaps_never_panic(
        changes in proptest::collection::vec((0usize..512, any::<u32>()), 1..4),
        replacements in proptest::collection::vec(any::<u8>(), 0..8),
    ) {
        let mut units = trie(0, None);
        for (place, value) in changes {
            units[place] = value;
        }
        let blob = blob(&units, &replacements);
        let _ = load(&model(&[charsmap(&blob)])).map(|tokenizer| use_it(&tokenizer));
        let json = small_json(|json| {
            json["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": base64(&blob)});
        });
        let _ = Tokenizer::from_json_bytes(&json).map(|tokenizer| use_it(&tokenizer));
    }

    #[test]
    fn damaged_json_never_panics(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut json = small_json(|_| {});
        for (place, value) in &changes {
            let place = place.index(json.len());
            json[place] = *value;
        }
        let _ = Tokenizer::from_json_bytes(&json).map(|tokenizer| use_it(&tokenizer));
        let dir = folder(&[(data("spm-small/test_model.model"), "spiece.model")]);
        let mut flags = std::fs::read(data("t5/sd3/tokenizer_config.json")).unwrap();
        for (place, value) in &changes {
            let place = place.index(flags.len());
            flags[place] = *value;
        }
        std::fs::write(dir.path().join("tokenizer_config.json"), flags).unwrap();
        try_dir(dir.path());
    }
}
