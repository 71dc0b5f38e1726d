//! What the tokenizer tests share: test data, reference vectors, rebuilt tokenizer.json.

#![allow(dead_code)] // each test binary uses a part
#![allow(clippy::unwrap_used)] // a failing unwrap in a test is the report

use std::path::{Path, PathBuf};

use quintic::Tokenizer;
use serde_json::{Value, json};

/// The workspace root.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A file or folder below `testdata/tokenizers`.
pub(crate) fn data(path: &str) -> PathBuf {
    root().join("testdata/tokenizers").join(path)
}

/// A file of the tokenizers that `make fetch` brings: in `QUINTIC_TOKENIZERS`, or in
/// `.cache/tokenizers`.
pub(crate) fn fetched(name: &str) -> PathBuf {
    let folder = match std::env::var_os("QUINTIC_TOKENIZERS") {
        Some(folder) => PathBuf::from(folder),
        None => root().join(".cache/tokenizers"),
    };
    let path = folder.join(name);
    assert!(
        path.is_file(),
        "{} is not there: run `make fetch`",
        path.display()
    );
    path
}

/// A model folder made of copies of files.
pub(crate) fn folder(files: &[(PathBuf, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (source, name) in files {
        std::fs::copy(source, dir.path().join(name))
            .unwrap_or_else(|error| panic!("{}: {error}", source.display()));
    }
    dir
}

/// The flag files of a set-up, and one model file.
pub(crate) fn with_flags(flags: &str, model: PathBuf, name: &'static str) -> tempfile::TempDir {
    let mut files = vec![(model, name)];
    for flag_file in [
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
    ] {
        let path = data(flags).join(flag_file);
        if path.is_file() {
            files.push((path, flag_file));
        }
    }
    folder(&files)
}

/// Sets one key of the folder's `tokenizer_config.json`.
pub(crate) fn set_flag(dir: &Path, key: &str, value: Value) {
    let path = dir.join("tokenizer_config.json");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|_| "{}".to_owned());
    let mut config: Value = serde_json::from_str(&text).unwrap();
    config[key] = value;
    std::fs::write(path, config.to_string()).unwrap();
}

/// One line of `tokenizer_vectors.jsonl`: a text and what each reference makes of it.
pub(crate) struct Vector(Value);

impl Vector {
    pub(crate) fn text(&self) -> &str {
        self.0["text"].as_str().unwrap()
    }

    pub(crate) fn ids(&self, set_up: &str) -> Vec<u32> {
        serde_json::from_value(self.0[set_up].clone()).unwrap()
    }

    pub(crate) fn decoded(&self, field: &str) -> &str {
        self.0[field].as_str().unwrap()
    }
}

/// The reference vectors: 86 texts.
pub(crate) fn vectors() -> Vec<Vector> {
    let path = root().join("testdata/expected/tokenizer_vectors.jsonl");
    let text = std::fs::read_to_string(path).unwrap();
    let lines = text.lines().skip(1);
    let vectors: Vec<_> = lines
        .map(|line| Vector(serde_json::from_str(line).unwrap()))
        .collect();
    assert_eq!(vectors.len(), 86);
    vectors
}

/// Checks the ids of all texts.
pub(crate) fn check_ids(set_up: &str, tokenizer: &Tokenizer) {
    for vector in vectors() {
        let found = tokenizer.encode(vector.text(), true).unwrap();
        assert_eq!(found, vector.ids(set_up), "{set_up}: {:?}", vector.text());
    }
}

/// Checks the text decoded from a set-up's ids.
pub(crate) fn check_decoded(field: &str, set_up: &str, skip: bool, tokenizer: &Tokenizer) {
    for vector in vectors() {
        let found = tokenizer.decode(&vector.ids(set_up), skip).unwrap();
        assert_eq!(found, vector.decoded(field), "{field}: {:?}", vector.text());
    }
}

/// Rebuilds a published T5 `tokenizer.json` from its header and `spiece.model`.
///
/// The three published files hold the pieces, scores and charsmap of `spiece.model` and
/// the 100 sentinels, value for value; they differ in their headers only.
pub(crate) fn t5_json(name: &str) -> Vec<u8> {
    let path = data("t5").join(name).join("tokenizer.template.json");
    let mut json: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let model = std::fs::read(data("t5/spiece.model")).unwrap();
    let mut vocab = Vec::new();
    let mut charsmap = Vec::new();
    for (number, value) in fields(&model) {
        match number {
            1 => {
                let mut piece = String::new();
                let mut score = 0f32;
                for (number, value) in fields(value) {
                    match number {
                        1 => piece = String::from_utf8(value.to_vec()).unwrap(),
                        2 => score = f32::from_le_bytes(value.try_into().unwrap()),
                        _ => {}
                    }
                }
                vocab.push(json!([piece, f64::from(score)]));
            }
            3 => {
                for (number, value) in fields(value) {
                    if number == 2 {
                        charsmap = value.to_vec();
                    }
                }
            }
            _ => {}
        }
    }
    for sentinel in (0..100).rev() {
        vocab.push(json!([format!("<extra_id_{sentinel}>"), 0.0]));
    }
    json["model"]["vocab"] = Value::Array(vocab);
    for normalizer in json["normalizer"]["normalizers"].as_array_mut().unwrap() {
        if normalizer["type"] == "Precompiled" {
            normalizer["precompiled_charsmap"] = json!(base64(&charsmap));
        }
    }
    serde_json::to_vec(&json).unwrap()
}

/// Fields of a protobuf message, varints left out.
pub(crate) fn fields(mut bytes: &[u8]) -> Vec<(u64, &[u8])> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        value
    }
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes);
        let len = match tag & 7 {
            0 => {
                varint(&mut bytes);
                continue;
            }
            1 => 8,
            2 => varint(&mut bytes) as usize,
            _ => 4,
        };
        fields.push((tag >> 3, &bytes[..len]));
        bytes = &bytes[len..];
    }
    fields
}

/// One protobuf field that holds bytes.
pub(crate) fn field(number: u64, value: &[u8]) -> Vec<u8> {
    let mut out = varint(number << 3 | 2);
    out.extend(varint(value.len() as u64));
    out.extend_from_slice(value);
    out
}

/// One protobuf field that holds a number.
pub(crate) fn number_field(number: u64, value: u64) -> Vec<u8> {
    let mut out = varint(number << 3);
    out.extend(varint(value));
    out
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

/// A piece of a SentencePiece model.
pub(crate) fn piece(text: &str, score: f32, kind: u64) -> Vec<u8> {
    let mut message = field(1, text.as_bytes());
    message.push(2 << 3 | 5);
    message.extend(score.to_le_bytes());
    message.extend(number_field(3, kind));
    field(1, &message)
}

pub(crate) fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let mut word = [0; 4];
        word[1..1 + chunk.len()].copy_from_slice(chunk);
        let word = u32::from_be_bytes(word);
        for digit in 0..4 {
            if digit > chunk.len() {
                out.push('=');
            } else {
                out.push(char::from(DIGITS[(word >> (18 - 6 * digit) & 63) as usize]));
            }
        }
    }
    out
}
