//! SentencePiece models and `tokenizer.json`, each with a text to use them on.

use quintic::tokenizer::{SpieceOptions, Tokenizer};

/// An input of both tokenizer targets: one byte of flags, the length of a text, the text,
/// then the file.
pub struct Parts<'a> {
    pub flags: u8,
    pub text: String,
    pub model: &'a [u8],
    pub model_start: usize,
}

impl<'a> Parts<'a> {
    pub fn of(input: &'a [u8]) -> Self {
        let (&[flags, len], rest) = input.split_first_chunk::<2>().unwrap_or((&[0, 0], &[]));
        let (text, model) = rest.split_at(usize::from(len).min(rest.len()));
        Parts {
            flags,
            text: String::from_utf8_lossy(text).into_owned(),
            model,
            model_start: input.len() - model.len(),
        }
    }

    /// The input with these parts.
    pub fn join(flags: u8, text: &str, model: &[u8]) -> Vec<u8> {
        let mut input = vec![flags, text.len() as u8];
        input.extend(text.as_bytes());
        input.extend(model);
        input
    }
}

/// A SentencePiece model: alone, and under the rules of transformers' slow tokenizer.
pub fn spiece(input: &[u8]) {
    let parts = Parts::of(input);
    let raw = Tokenizer::raw_spiece(parts.model);
    if let Ok(raw) = &raw {
        exercise(raw, &parts);
        let (ids, size) = (raw.encode(&parts.text, false), raw.vocab_size());
        assert!(ids.into_iter().flatten().all(|id| (id as usize) < size));
    }
    let mut options = SpieceOptions::default();
    options.legacy = parts.flags & 1 == 1;
    options.extra_ids = [100, 0, 1, 300][usize::from(parts.flags >> 1 & 3)];
    if let Ok(slow) = Tokenizer::from_spiece_bytes(parts.model, &options) {
        assert!(raw.is_ok(), "a model that is refused alone was accepted");
        exercise(&slow, &parts);
    }
}

/// A `tokenizer.json`.
pub fn tokenizer_json(input: &[u8]) {
    let parts = Parts::of(input);
    if let Ok(tokenizer) = Tokenizer::from_json_bytes(parts.model) {
        exercise(&tokenizer, &parts);
    }
}

/// Encodes, decodes, truncates; errors are fine, what is returned must be sound.
fn exercise(tokenizer: &Tokenizer, parts: &Parts<'_>) {
    let text = parts.text.as_str();
    for special in [false, true] {
        if let Ok(ids) = tokenizer.encode(text, special) {
            let _ = tokenizer.decode(&ids, special);
            for &id in ids.iter().take(8) {
                if let Some(token) = tokenizer.token(id) {
                    let _ = tokenizer.token_id(&token);
                }
            }
        }
    }
    for max_length in [0, 1, 3] {
        if let Ok(ids) = tokenizer.encode_truncated(text, max_length) {
            assert!(ids.len() <= max_length, "{ids:?} for {max_length}");
        }
    }
    // Ids that no text led to.
    let ids: Vec<u32> = text.bytes().map(u32::from).chain([u32::MAX]).collect();
    for ids in [&ids[..ids.len() - 1], &ids[..]] {
        let _ = tokenizer.decode(ids, parts.flags & 8 == 8);
    }
    let _ = tokenizer.token_id(text);
    let _ = (tokenizer.eos_id(), tokenizer.pad_id(), tokenizer.unk_id());
    assert!(!tokenizer.describe().is_empty());
}
