//! What a `tokenizer.json` has in common with a SentencePiece model: pieces, scores, rules.

use std::collections::HashSet;

use serde::Deserialize;
use serde_json::Value;

use super::fast_check::decode_base64;
use super::sentencepiece::{ModelProto, NormalizerSpec, Piece, PieceKind, TrainerSpec};
use crate::{Error, Result};

#[derive(Deserialize)]
struct Outline {
    model: Model,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    added_tokens: Vec<Added>,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type", default)]
    kind: Option<String>,
    #[serde(default)]
    unk_id: Option<usize>,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    vocab: Value,
}

#[derive(Deserialize)]
struct Added {
    id: usize,
    content: String,
    #[serde(default)]
    special: bool,
}

/// The SentencePiece unigram model that a `tokenizer.json` was made of, as far as the file says.
///
/// Pieces that the file adds as tokens are control pieces if they are special, and user-defined if
/// not. Sentinels at the end of the pieces are left out: they stand above a SentencePiece model.
/// Where outer spaces go, and how added tokens stand to the text beside them, SentencePiece has
/// rules of its own.
///
/// # Errors
///
/// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) for other models than unigram, and for
/// rules that a SentencePiece model does not have;
/// [`ErrorKind::Tokenizer`](crate::ErrorKind::Tokenizer) for a damaged file.
pub(crate) fn unigram_model(json: &[u8]) -> Result<ModelProto> {
    let outline: Outline = serde_json::from_slice(json)
        .map_err(|cause| Error::tokenizer(format!("not a tokenizer.json: {cause}")))?;
    let Value::Array(vocab) = &outline.model.vocab else {
        let found = outline.model.kind.as_deref().unwrap_or("without a type");
        return Err(Error::unsupported(format!(
            "the model is `{found}`, expected `Unigram`: others have no scores"
        ))
        .at("model"));
    };
    let unk_id = outline.model.unk_id.filter(|&id| id < vocab.len());
    let unk_id = unk_id.ok_or_else(|| {
        Error::unsupported("there is no `unk_id`, expected the id of a piece").at("model")
    })?;
    let mut pieces = Vec::with_capacity(vocab.len());
    for (id, entry) in vocab.iter().enumerate() {
        let piece = piece(entry).map_err(|error| error.at(format!("piece {id}")).at("model"))?;
        pieces.push(piece);
    }
    pieces[unk_id].kind = PieceKind::Unknown;
    if outline.model.byte_fallback {
        let bytes: HashSet<String> = (0..=u8::MAX).map(|b| format!("<0x{b:02X}>")).collect();
        for piece in &mut pieces {
            if bytes.contains(&piece.text) {
                piece.kind = PieceKind::Byte;
            }
        }
    }
    let mut is_sentinel = vec![false; pieces.len()];
    for token in &outline.added_tokens {
        let Some(piece) = pieces.get_mut(token.id) else {
            continue;
        };
        if piece.text != token.content {
            return Err(Error::unsupported(format!(
                "token `{}` has the id {} of the piece `{}`",
                token.content, token.id, piece.text
            ))
            .at("added_tokens"));
        }
        is_sentinel[token.id] = token.content.starts_with("<extra_id_");
        if piece.kind == PieceKind::Normal {
            piece.kind = match token.special {
                true => PieceKind::Control,
                false => PieceKind::UserDefined,
            };
        }
    }
    let n_sentinels = is_sentinel.iter().rev().take_while(|&&is| is).count();
    pieces.truncate(pieces.len() - n_sentinels);
    let normalizer = rules(&outline.normalizer, &outline.pre_tokenizer)?;
    Ok(ModelProto {
        pieces,
        trainer: TrainerSpec {
            byte_fallback: outline.model.byte_fallback,
            ..TrainerSpec::default()
        },
        normalizer,
        denormalizer: None,
    })
}

fn piece(entry: &Value) -> Result<Piece> {
    let parts = entry.as_array().map(Vec::as_slice);
    match parts {
        Some([Value::String(text), score]) if score.is_number() => Ok(Piece {
            text: text.clone(),
            // As where models are read: equal scores have equal bits.
            score: score.as_f64().unwrap_or_default() as f32 + 0.0,
            kind: PieceKind::Normal,
        }),
        _ => Err(Error::tokenizer(format!(
            "found {entry}, expected a piece and its score"
        ))),
    }
}

/// The flags of a SentencePiece model that do what these two do.
fn rules(normalizer: &Value, pre_tokenizer: &Value) -> Result<NormalizerSpec> {
    let mut spec = NormalizerSpec {
        remove_extra_whitespaces: false,
        ..NormalizerSpec::default()
    };
    let mut strips = false;
    for (at, rule) in steps(normalizer, "normalizers").iter().enumerate() {
        match rule["type"].as_str() {
            Some("Precompiled") if at == 0 => {
                let charsmap = rule["precompiled_charsmap"].as_str();
                spec.precompiled_charsmap = charsmap.and_then(decode_base64).ok_or_else(|| {
                    Error::tokenizer("`precompiled_charsmap` is not base64").at("normalizer")
                })?;
            }
            // Spaces at an end of the text alone: part of the same flag.
            Some("Strip") => strips = true,
            Some("Replace")
                if rule["pattern"]["Regex"] == " {2,}"
                    && matches!(rule["content"].as_str(), Some(" " | "\u{2581}")) =>
            {
                spec.remove_extra_whitespaces = true;
            }
            _ => return Err(unknown("normalizer", rule)),
        }
    }
    let steps = steps(pre_tokenizer, "pretokenizers");
    let metaspace = match steps.as_slice() {
        [metaspace] => metaspace,
        [split, metaspace] if split["type"] == "WhitespaceSplit" => {
            spec.remove_extra_whitespaces = true;
            metaspace
        }
        _ => return Err(unknown("pre_tokenizer", pre_tokenizer)),
    };
    if metaspace["type"] != "Metaspace" || metaspace["replacement"] != "\u{2581}" {
        return Err(unknown("pre_tokenizer", metaspace));
    }
    spec.add_dummy_prefix = match (&metaspace["prepend_scheme"], &metaspace["add_prefix_space"]) {
        (Value::String(scheme), _) => scheme != "never",
        (_, Value::Bool(adds)) => *adds,
        _ => true,
    };
    match strips && !spec.remove_extra_whitespaces {
        true => Err(Error::unsupported(
            "`Strip` without a rule for repeated spaces, expected both or neither",
        )
        .at("normalizer")),
        false => Ok(spec),
    }
}

/// The members of a sequence, or the one step that there is.
fn steps<'a>(value: &'a Value, key: &str) -> Vec<&'a Value> {
    match (value, &value[key]) {
        (Value::Null, _) => Vec::new(),
        (_, Value::Array(steps)) => steps.iter().collect(),
        (one, _) => vec![one],
    }
}

fn unknown(place: &str, rule: &Value) -> Error {
    let kind = rule["type"].as_str().unwrap_or("null");
    Error::unsupported(format!(
        "`{kind}` with these settings is no rule of a SentencePiece model"
    ))
    .at(place.to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn file() -> Value {
        json!({
            "added_tokens": [
                {"id": 0, "content": "<pad>", "special": true},
                {"id": 1, "content": "<unk>", "special": true},
                {"id": 3, "content": "b", "special": false},
                {"id": 5, "content": "<extra_id_0>", "special": true},
                {"id": 6, "content": "above", "special": true},
            ],
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Precompiled", "precompiled_charsmap": "YWI="},
                {"type": "Strip", "strip_left": false, "strip_right": true},
                {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "\u{2581}"},
            ]},
            "pre_tokenizer": {"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always"},
            "model": {"type": "Unigram", "unk_id": 1, "byte_fallback": true, "vocab": [
                ["<pad>", 0.0], ["<unk>", 0], ["a", -1.5], ["b", -2.0], ["<0x0A>", -0.0], ["<extra_id_0>", 0.0],
            ]},
        })
    }

    fn model(file: &Value) -> Result<ModelProto> {
        unigram_model(file.to_string().as_bytes())
    }

    #[test]
    fn pieces_and_rules() {
        let found = model(&file()).unwrap();
        let kinds: Vec<_> = found.pieces.iter().map(|piece| piece.kind).collect();
        let expected = [
            PieceKind::Control,
            PieceKind::Unknown,
            PieceKind::Normal,
            PieceKind::UserDefined,
            PieceKind::Byte,
        ];
        assert_eq!(kinds, expected);
        assert_eq!(found.pieces[2].score, -1.5);
        assert_eq!(found.pieces[4].score.to_bits(), 0);
        assert!(found.trainer.byte_fallback);
        let rules = &found.normalizer;
        assert_eq!(rules.precompiled_charsmap, b"ab");
        assert!(rules.add_dummy_prefix && rules.remove_extra_whitespaces);
        // Without a flag, bytes are pieces as others are, and no rule is one that keeps all.
        let mut file = file();
        file["model"]["byte_fallback"] = json!(false);
        file["normalizer"] = Value::Null;
        file["pre_tokenizer"] =
            json!({"type": "Metaspace", "replacement": "\u{2581}", "add_prefix_space": false});
        let found = model(&file).unwrap();
        assert_eq!(found.pieces[4].kind, PieceKind::Normal);
        let rules = &found.normalizer;
        assert!(!rules.add_dummy_prefix && !rules.remove_extra_whitespaces);
        assert!(rules.precompiled_charsmap.is_empty());
    }

    #[test]
    fn what_no_sentencepiece_model_does_is_named() {
        type Change = fn(&mut Value);
        let cases: [(Change, &str); 9] = [
            (
                |f| f["model"] = json!({"type": "BPE", "vocab": {"a": 0}}),
                "model: the model is `BPE`",
            ),
            (
                |f| f["model"]["unk_id"] = Value::Null,
                "model: there is no `unk_id`",
            ),
            (|f| f["model"]["vocab"][2] = json!(["a", "b"]), "piece 2"),
            (
                |f| f["added_tokens"][2]["id"] = json!(2),
                "token `b` has the id 2 of the piece `a`",
            ),
            (
                |f| f["normalizer"] = json!({"type": "NFKC"}),
                "normalizer: `NFKC`",
            ),
            (
                |f| f["normalizer"]["normalizers"][2]["content"] = json!("x"),
                "normalizer: `Replace`",
            ),
            (
                |f| f["normalizer"]["normalizers"][0]["precompiled_charsmap"] = json!("?"),
                "base64",
            ),
            (
                |f| f["pre_tokenizer"] = Value::Null,
                "pre_tokenizer: `null`",
            ),
            (
                |f| {
                    f["normalizer"].as_object_mut().unwrap()["normalizers"]
                        .as_array_mut()
                        .unwrap()
                        .truncate(2);
                },
                "`Strip` without",
            ),
        ];
        for (change, expected) in cases {
            let mut file = file();
            change(&mut file);
            let error = model(&file).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
