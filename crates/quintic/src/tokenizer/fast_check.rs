//! Refuses `tokenizer.json` files that the `tokenizers` crate would take in and then fail
//! on without an error: by a panic, by a huge allocation, or by overflowing the stack.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use super::sentencepiece::check_charsmap;
use crate::{Error, Result};

/// The crate keeps the pieces in nested hash maps and drops them recursively: a piece of
/// megabytes would overflow the stack. Real pieces have up to about a hundred bytes.
const MAX_PIECE_BYTES: usize = 1000;

/// How many times longer the rules of a file may make a text. Rules that double it one after
/// the other would fill any memory from a text of one letter; published files stay below
/// 1000 as [`growth`] counts.
const MAX_GROWTH: f64 = 4096.0;

/// Bytes that the texts of all added tokens may have after normalization, which takes the
/// crate two seconds for so many. 300 sentinels under a published charsmap reach 1 MB.
const MAX_ADDED_BYTES: f64 = 16.0 * 1024.0 * 1024.0;

#[derive(Deserialize)]
struct Outline {
    model: Model,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    decoder: Value,
    #[serde(default)]
    added_tokens: Vec<Added>,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type", default)]
    kind: Option<String>,
    #[serde(default)]
    unk_id: Option<u64>,
    #[serde(default)]
    vocab: Vocab,
}

#[derive(Deserialize)]
struct Added {
    id: u64,
    content: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Vocab {
    List(Vec<(String, f64)>),
    Other(IgnoredAny),
}

impl Default for Vocab {
    fn default() -> Self {
        Vocab::Other(IgnoredAny)
    }
}

/// Checks the parts that the crate takes on trust.
pub(crate) fn check_json(json: &[u8]) -> Result<()> {
    let outline: Outline = serde_json::from_slice(json)
        .map_err(|cause| Error::tokenizer(format!("not a tokenizer.json: {cause}")))?;
    if let Vocab::List(vocab) = &outline.model.vocab {
        check_unigram(vocab, outline.model.unk_id).map_err(|error| error.at("model"))?;
    } else if outline.model.kind.as_deref() == Some("Unigram") {
        return Err(Error::tokenizer(
            "`vocab` of a Unigram model is not a list of pieces and scores",
        )
        .at("model"));
    }
    for (index, token) in outline.added_tokens.iter().enumerate() {
        let place = format_args!("added_tokens[{index}]").to_string();
        if token.id >= 1 << 31 {
            return Err(
                Error::tokenizer(format!("id is {}, expected less than 2^31", token.id)).at(place),
            );
        }
        check_len(&token.content).map_err(|error| error.at(place))?;
    }
    let normalized = growth(&outline.normalizer).map_err(|error| error.at("normalizer"))?;
    let cut = growth(&outline.pre_tokenizer).map_err(|error| error.at("pre_tokenizer"))?;
    check_growth(normalized * cut, "the normalizer and the pre-tokenizer")?;
    // The crate normalizes added tokens when it loads them, before there is any text.
    let added: usize = outline
        .added_tokens
        .iter()
        .map(|token| token.content.len())
        .sum();
    if normalized * added as f64 > MAX_ADDED_BYTES {
        return Err(Error::tokenizer(format!(
            "added tokens of {added} bytes can become {normalized:.0} times longer, expected at \
             most {MAX_ADDED_BYTES:.0} bytes after that"
        ))
        .at("normalizer"));
    }
    let decoded = growth(&outline.decoder).map_err(|error| error.at("decoder"))?;
    check_growth(decoded, "the decoder")
}

fn check_unigram(vocab: &[(String, f64)], unk_id: Option<u64>) -> Result<()> {
    if vocab.is_empty() {
        return Err(Error::tokenizer("`vocab` is empty, expected some pieces"));
    }
    if let Some(unk_id) = unk_id.filter(|&id| id >= vocab.len() as u64) {
        return Err(Error::tokenizer(format!(
            "`unk_id` is {unk_id}, expected less than {} (the number of pieces)",
            vocab.len()
        )));
    }
    for (index, (piece, score)) in vocab.iter().enumerate() {
        if !score.is_finite() {
            return Err(Error::tokenizer(format!(
                "score of piece {index} is {score}, expected a number"
            )));
        }
        check_len(piece).map_err(|error| error.at(format_args!("piece {index}")))?;
    }
    Ok(())
}

fn check_len(text: &str) -> Result<()> {
    match text.len() {
        len if len > MAX_PIECE_BYTES => Err(Error::tokenizer(format!(
            "its text has {len} bytes, expected at most {MAX_PIECE_BYTES}"
        ))),
        _ => Ok(()),
    }
}

fn check_growth(growth: f64, what: &str) -> Result<()> {
    match growth > MAX_GROWTH {
        true => Err(Error::tokenizer(format!(
            "{what} can make a text {growth:.0} times longer, expected at most {MAX_GROWTH:.0}"
        ))),
        false => Ok(()),
    }
}

/// The most bytes that one byte of a text can become by all rules inside `value`, one after
/// the other. Also checks the charsmaps in it.
fn growth(value: &Value) -> Result<f64> {
    match value {
        Value::Object(object) => {
            // The crate goes by the keys where there is no `type`.
            let kind = object.get("type").and_then(Value::as_str);
            let is = |name, key| kind == Some(name) || object.contains_key(key);
            let mut total = if is("Replace", "pattern") {
                replace_growth(object)
            } else if is("Metaspace", "replacement") {
                // A piece of one byte may get a replaced space of 4 bytes in front.
                5.0
            } else if is("ByteLevel", "trim_offsets") {
                // A space in front, and bytes from 0x80 on become characters of two bytes.
                4.0
            } else {
                1.0
            };
            for (key, value) in object {
                total *= match (key.as_str(), value) {
                    ("precompiled_charsmap", Value::String(text)) => {
                        let blob = decode_base64(text).ok_or_else(|| {
                            Error::tokenizer("`precompiled_charsmap` is not base64")
                        })?;
                        check_charsmap(&blob)?.max(1) as f64
                    }
                    _ => growth(value)?,
                };
            }
            Ok(total)
        }
        Value::Array(list) => list
            .iter()
            .try_fold(1.0, |total, value| Ok(total * growth(value)?)),
        _ => Ok(1.0),
    }
}

/// A `Replace` puts its content in place of a text of fixed length, or, where an expression
/// or an empty text may match nothing, in front of every byte.
fn replace_growth(rule: &Map<String, Value>) -> f64 {
    let len = |value: Option<&Value>| value.and_then(Value::as_str).map_or(0, str::len) as f64;
    let content = len(rule.get("content"));
    let pattern = rule
        .get("pattern")
        .and_then(|pattern| pattern.get("String"));
    match len(pattern) {
        0.0 => content + 1.0,
        pattern => (content / pattern).max(1.0),
    }
}

/// Standard base64 with padding; `None` for anything else.
pub(super) fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=');
    if !text.len().is_multiple_of(4) || text.len() - digits.len() > 2 {
        return None;
    }
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let mut bits = 0u32;
    let mut n_bits = 0;
    for digit in digits.bytes() {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        n_bits += 6;
        if n_bits >= 8 {
            n_bits -= 8;
            bytes.push((bits >> n_bits) as u8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn growth_is_the_product_of_all_rules() {
        let replace = |pattern: Value, content: &str| json!({"type": "Replace", "pattern": pattern, "content": content});
        let of = |value: &Value| growth(value).unwrap();
        assert_eq!(of(&Value::Null), 1.0);
        assert_eq!(of(&replace(json!({"String": "ab"}), "abc")), 1.5);
        assert_eq!(of(&replace(json!({"String": "ab"}), "")), 1.0);
        assert_eq!(of(&replace(json!({"String": ""}), "ab")), 3.0);
        assert_eq!(of(&replace(json!({"Regex": " {2,}"}), "\u{2581}")), 4.0);
        let twice = json!({"type": "Sequence", "normalizers": [
            replace(json!({"String": "a"}), "aa"),
            {"type": "Sequence", "normalizers": [replace(json!({"String": "b"}), "bbb")]},
        ]});
        assert_eq!(of(&twice), 6.0);
    }

    #[test]
    fn base64_is_decoded() {
        assert_eq!(decode_base64("").as_deref(), Some(&[][..]));
        assert_eq!(decode_base64("YQ==").as_deref(), Some(&b"a"[..]));
        assert_eq!(decode_base64("YWI=").as_deref(), Some(&b"ab"[..]));
        assert_eq!(decode_base64("+/8A").as_deref(), Some(&[0xfb, 0xff, 0][..]));
        assert_eq!(decode_base64("Y"), None);
        assert_eq!(decode_base64("Y-=="), None);
        assert_eq!(decode_base64("===="), None);
    }
}
