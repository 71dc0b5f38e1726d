//! The SentencePiece model in the metadata.
//!
//! llama.cpp's converter takes the pieces of `spiece.model` apart into lists, and fills them up to
//! the rows of the embedding table: tokens of `added_tokens.json` at their ids, `[PADn]` at the
//! others. What was filled up is taken off again, so that the ids are those of the model's own
//! tokenizer: sentinels stand where `T5Tokenizer` puts them.

use super::GgufFile;
use super::metadata::place;
use crate::tokenizer::{
    LlamaOptions, ModelProto, ModelType, NormalizerSpec, Piece, PieceKind, SpieceOptions,
    Tokenizer, TrainerSpec,
};
use crate::{Error, Result};

const MODEL: &str = "tokenizer.ggml.model";
const TOKENS: &str = "tokenizer.ggml.tokens";
const SCORES: &str = "tokenizer.ggml.scores";
const TYPES: &str = "tokenizer.ggml.token_type";
const CHARSMAP: &str = "tokenizer.ggml.precompiled_charsmap";

/// How many sentinels tokenizers put above their pieces: UMT5's, T5's, none.
const SENTINELS: [usize; 3] = [300, 100, 0];

impl GgufFile {
    /// Whether there is a tokenizer in the metadata, of whatever kind.
    pub(crate) fn has_tokenizer(&self) -> bool {
        // What is damaged is there.
        !matches!(
            self.metadata.text(MODEL),
            Ok(None | Some("none" | "no_vocab"))
        )
    }

    /// The bytes of every key of the tokenizer, with its type and value.
    pub(crate) fn tokenizer_pairs(&self) -> impl Iterator<Item = &[u8]> {
        self.metadata.pairs("tokenizer.")
    }

    /// The tokenizer in the metadata, `None` if there is none.
    ///
    /// A `t5` is `T5Tokenizer` with its published flags. A `llama` is a BPE model, Pile-T5's, and
    /// `LlamaTokenizer` with the flags that are published with it: no space behind added tokens
    /// (`legacy` false), white space as it is.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) for other tokenizers;
    /// [`ErrorKind::Checkpoint`](crate::ErrorKind::Checkpoint) and
    /// [`ErrorKind::Tokenizer`](crate::ErrorKind::Tokenizer) for one that is damaged.
    pub(in crate::checkpoint) fn tokenizer(&self) -> Result<Option<Tokenizer>> {
        let metadata = &self.metadata;
        let model_type = match metadata.text(MODEL)? {
            None | Some("none" | "no_vocab") => return Ok(None),
            Some("t5") => ModelType::Unigram,
            Some("llama") => ModelType::Bpe,
            Some(other) => {
                return Err(Error::unsupported(format!(
                    "found `{other}`, expected `t5`, a SentencePiece unigram model, or `llama`, \
                     its BPE model"
                ))
                .at(place(MODEL))
                .hint("name the model's own tokenizer instead"));
            }
        };
        if metadata.boolean("tokenizer.ggml.add_eos_token")? == Some(false) {
            return Err(Error::unsupported(
                "found false, expected true: a T5 reads an end of sequence behind each text",
            )
            .at(place("tokenizer.ggml.add_eos_token"))
            .hint("name the model's own tokenizer instead"));
        }
        let mut pieces = self.pieces()?;
        let n_tokens = pieces.len();
        while pieces.last().is_some_and(is_padding) {
            pieces.pop();
        }
        let extra_ids = match take_sentinels(&mut pieces) {
            0 if pieces
                .iter()
                .any(|piece| piece.text.contains("<extra_id_0>")) =>
            {
                0
            }
            // Filled up, so that there is room for them.
            0 => SENTINELS
                .into_iter()
                .find(|&n| pieces.len() + n <= n_tokens)
                .unwrap_or(0),
            n => n,
        };
        let model = ModelProto {
            trainer: TrainerSpec {
                model_type,
                // The format has no flag for it.
                byte_fallback: pieces.iter().any(|piece| piece.kind == PieceKind::Byte),
                ..TrainerSpec::default()
            },
            normalizer: self.normalizer(model_type)?,
            pieces,
            denormalizer: None,
        };
        let extra_ids = extra_ids as u32;
        match model_type {
            ModelType::Bpe => self.llama(model, extra_ids),
            _ => {
                let options = SpieceOptions {
                    extra_ids,
                    ..SpieceOptions::default()
                };
                Tokenizer::from_model(model, &options)
            }
        }
        .map(Some)
    }

    fn llama(&self, mut model: ModelProto, extra_ids: u32) -> Result<Tokenizer> {
        let metadata = &self.metadata;
        let token = |role: &str| -> Result<Option<(usize, String)>> {
            let key = format!("tokenizer.ggml.{role}_token_id");
            let Some(id) = metadata.whole(&key)? else {
                return Ok(None);
            };
            let id = usize::try_from(id).unwrap_or(usize::MAX);
            let n = model.pieces.len();
            let piece = model.pieces.get(id).ok_or_else(|| {
                Error::checkpoint(format!(
                    "found {id}, expected less than {n}, one of the pieces"
                ))
                .at(place(&key))
            })?;
            Ok(Some((id, piece.text.clone())))
        };
        let (bos, eos, unk, pad) = (
            token("bos")?,
            token("eos")?,
            token("unknown")?,
            token("padding")?,
        );
        // llama.cpp's converter makes it a control piece where the flag files list it as special.
        let is_unknown = |piece: &Piece| piece.kind == PieceKind::Unknown;
        if let Some((id, _)) = &unk
            && !model.pieces.iter().any(is_unknown)
        {
            model.pieces[*id].kind = PieceKind::Unknown;
        }
        let text = |token: Option<(usize, String)>| token.map(|(_, text)| text);
        let options = LlamaOptions {
            bos: text(bos),
            eos: text(eos),
            unk: text(unk),
            pad: text(pad),
            add_bos: metadata
                .boolean("tokenizer.ggml.add_bos_token")?
                .unwrap_or(false),
            extra_ids,
        };
        Tokenizer::llama_from_model(model, options)
    }

    /// Whether there is a tokenizer that lacks the rules by which text is normalised.
    pub(in crate::checkpoint) fn lacks_charsmap(&self) -> Result<bool> {
        let has_tokens = self.metadata.text(MODEL)? == Some("t5");
        let charsmap = self.metadata.bytes(CHARSMAP)?;
        Ok(has_tokens && charsmap.is_none_or(<[u8]>::is_empty))
    }

    fn pieces(&self) -> Result<Vec<Piece>> {
        let missing = |key: &str| Error::checkpoint("is missing").at(place(key));
        let metadata = &self.metadata;
        let tokens = metadata.texts(TOKENS)?.ok_or_else(|| missing(TOKENS))?;
        let scores = metadata.floats(SCORES)?.ok_or_else(|| missing(SCORES))?;
        let kinds = metadata.integers(TYPES)?.ok_or_else(|| missing(TYPES))?;
        for (key, n) in [(SCORES, scores.len()), (TYPES, kinds.len())] {
            if n != tokens.len() {
                return Err(Error::checkpoint(format!(
                    "has {n} elements, expected {}, one for each token",
                    tokens.len()
                ))
                .at(place(key)));
            }
        }
        tokens
            .iter()
            .zip(scores.iter().zip(&kinds))
            .enumerate()
            .map(|(id, (&text, (&score, &kind)))| {
                let kind = PieceKind::of_number(u64::try_from(kind).unwrap_or(0))
                    .map_err(|error| error.at(format!("{}, element {id}", place(TYPES))))?;
                Ok(Piece {
                    text: text.to_owned(),
                    // As where models are read: equal scores have equal bits.
                    score: score + 0.0,
                    kind,
                })
            })
            .collect()
    }

    fn normalizer(&self, model_type: ModelType) -> Result<NormalizerSpec> {
        let metadata = &self.metadata;
        let default = NormalizerSpec {
            // llama.cpp writes no flag for a `llama`, and changes no white space there.
            remove_extra_whitespaces: model_type == ModelType::Unigram,
            ..NormalizerSpec::default()
        };
        let flag = |key: &str, default: bool| Ok(metadata.boolean(key)?.unwrap_or(default));
        Ok(NormalizerSpec {
            precompiled_charsmap: metadata.bytes(CHARSMAP)?.unwrap_or_default().to_vec(),
            add_dummy_prefix: flag("tokenizer.ggml.add_space_prefix", default.add_dummy_prefix)?,
            remove_extra_whitespaces: flag(
                "tokenizer.ggml.remove_extra_whitespaces",
                default.remove_extra_whitespaces,
            )?,
            escape_whitespaces: default.escape_whitespaces,
        })
    }
}

/// Whether a token only fills the list up: `[PAD7]`.
fn is_padding(piece: &Piece) -> bool {
    let number = piece.text.strip_prefix("[PAD");
    let number = number.and_then(|rest| rest.strip_suffix(']'));
    piece.kind == PieceKind::Unused
        && number.is_some_and(|n| !n.is_empty() && n.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Takes sentinels of the flag files off the end, `<extra_id_0>` last, and counts them. They are
/// control pieces if `tokenizer_config.json` has them as special tokens.
fn take_sentinels(pieces: &mut Vec<Piece>) -> usize {
    let is_sentinel = |piece: &Piece, n: usize| {
        matches!(piece.kind, PieceKind::UserDefined | PieceKind::Control)
            && piece.text == format!("<extra_id_{n}>")
    };
    let n = pieces
        .iter()
        .rev()
        .enumerate()
        .take_while(|&(n, piece)| is_sentinel(piece, n))
        .count();
    pieces.truncate(pieces.len() - n);
    n
}
