//! The vocabulary of a GGUF file: of a SentencePiece model, of a `tokenizer.json` that was made of
//! one, or of another GGUF file.

use std::path::Path;

use crate::checkpoint::Checkpoint;
use crate::limits::{MAX_TOKENIZER_BYTES, read_file};
use crate::output::gguf::Metadata;
use crate::tokenizer::sentencepiece::proto::{ModelProto, ModelType, PieceKind};
use crate::tokenizer::{SpieceOptions, Tokenizer, TokenizerChoice, unigram_model};
use crate::{Error, ErrorKind, Result};

/// Files that can be a SentencePiece model, in the order in which they are looked for.
const FILES: [&str; 2] = ["spiece.model", "tokenizer.model"];
const JSON: &str = "tokenizer.json";

/// Score of tokens that were added to the pieces, and of rows of the embedding that no token has:
/// llama.cpp's.
const ADDED_SCORE: f32 = -1000.0;
const UNUSED_SCORE: f32 = -10000.0;

/// What was found.
pub(super) enum Found {
    /// Pieces.
    Pieces(Box<Vocabulary>),
    /// Keys of a GGUF file, which stay as they are.
    Stored,
    /// Nothing, and why.
    Nothing(String),
}

/// Pieces with their rules, and the tokens that stand above them.
pub(super) struct Vocabulary {
    model: ModelProto,
    tokenizer: Tokenizer,
    /// Whether they are those of a `tokenizer.json`.
    pub(super) is_json: bool,
}

impl Vocabulary {
    /// The tokenizer in `named` (a file, or a folder with flags beside it), else the one beside the
    /// weights, else the one inside them. A SentencePiece model is taken before a
    /// `tokenizer.json`, since it is what a GGUF file describes.
    ///
    /// # Errors
    ///
    /// If `named` has none that a GGUF file can describe, or a file is damaged.
    pub(super) fn find(checkpoint: &Checkpoint, named: Option<&Path>) -> Result<Found> {
        if let Some(path) = named {
            if path.is_dir() {
                let found = Self::of_folder(path)?;
                return found.map(Self::found).ok_or_else(|| {
                    Error::new(
                        ErrorKind::NotFound,
                        format!(
                            "there is no `{}` or `{JSON}`, which a vocabulary is made of",
                            FILES.join("`, `")
                        ),
                    )
                    .at(path.display())
                });
            }
            let bytes = read_file(path, MAX_TOKENIZER_BYTES, ErrorKind::Tokenizer)?;
            let is_json = path
                .extension()
                .is_some_and(|ending| ending.eq_ignore_ascii_case("json"));
            let found = match is_json {
                true => Tokenizer::from_json_bytes(&bytes)
                    .and_then(|tokenizer| Self::of_json(&bytes, tokenizer)),
                false => Self::bare(&bytes),
            };
            return found.map(Self::found).map_err(|e| e.at(path.display()));
        }
        if checkpoint.gguf().is_some_and(|file| file.has_tokenizer()) {
            return Ok(Found::Stored);
        }
        if let Some(folder) = checkpoint.tokenizer_folder() {
            match Self::of_folder(folder) {
                Ok(Some(found)) => return Ok(Self::found(found)),
                Ok(None) => {}
                Err(error) if error.kind() == ErrorKind::Unsupported => {
                    return Ok(Found::Nothing(error.to_string()));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(match checkpoint.embedded_tokenizer()? {
            Some(model) => Self::found(Self::bare(model.bytes())?),
            None => Found::Nothing(format!(
                "there is no SentencePiece model and no `{JSON}` beside the weights"
            )),
        })
    }

    fn found(self) -> Found {
        Found::Pieces(Box::new(self))
    }

    fn of_folder(folder: &Path) -> Result<Option<Self>> {
        let read = |path: &Path| read_file(path, MAX_TOKENIZER_BYTES, ErrorKind::Tokenizer);
        let files = FILES.map(|name| folder.join(name));
        if let Some(path) = files.into_iter().find(|path| path.is_file()) {
            let bytes = read(&path)?;
            return Ok(Some(Vocabulary {
                model: ModelProto::parse(&bytes).map_err(|e| e.at(path.display()))?,
                tokenizer: Tokenizer::from_dir(folder, TokenizerChoice::Slow)?,
                is_json: false,
            }));
        }
        let path = folder.join(JSON);
        if !path.is_file() {
            return Ok(None);
        }
        let bytes = read(&path)?;
        let tokenizer = Tokenizer::from_dir(folder, TokenizerChoice::Fast)?;
        let found = Self::of_json(&bytes, tokenizer);
        found.map(Some).map_err(|e| e.at(path.display()))
    }

    fn bare(bytes: &[u8]) -> Result<Self> {
        let model = ModelProto::parse(bytes)?;
        let mut options = SpieceOptions::default();
        // mT5 has its sentinels among the pieces.
        if model.pieces.iter().any(|p| p.text.contains("<extra_id_0>")) {
            options.extra_ids = 0;
        }
        Ok(Vocabulary {
            model,
            tokenizer: Tokenizer::from_spiece_bytes(bytes, &options)?,
            is_json: false,
        })
    }

    fn of_json(bytes: &[u8], tokenizer: Tokenizer) -> Result<Self> {
        let framed = tokenizer.encode("", true)?;
        if framed.len() != 1 || framed.first().copied() != tokenizer.eos_id() {
            return Err(Error::unsupported(format!(
                "an empty text becomes {framed:?}, expected an end of sequence alone"
            )));
        }
        Ok(Vocabulary {
            model: unigram_model(bytes)?,
            tokenizer,
            is_json: true,
        })
    }

    /// Puts the keys of `tokenizer.ggml`, with a token for each of `vocab_size` rows of the
    /// embedding.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Tokenizer`] if there are more pieces than rows;
    /// [`ErrorKind::Unsupported`] for models that are neither unigram nor BPE.
    pub(super) fn put(&self, metadata: &mut Metadata, vocab_size: usize) -> Result<()> {
        let pieces = &self.model.pieces;
        if pieces.len() > vocab_size {
            return Err(Error::tokenizer(format!(
                "the tokenizer has {} pieces, but the model's vocabulary {vocab_size}",
                pieces.len()
            ))
            .hint("is the tokenizer another model's?"));
        }
        // BPE models are llama's to llama.cpp.
        let name = match self.model.trainer.model_type {
            ModelType::Unigram => "t5",
            ModelType::Bpe => "llama",
            other => {
                return Err(Error::unsupported(format!(
                    "`model_type` is {other:?}, expected Unigram or Bpe"
                )));
            }
        };
        let mut tokens = Vec::with_capacity(vocab_size);
        let mut scores = Vec::with_capacity(vocab_size);
        let mut kinds = Vec::with_capacity(vocab_size);
        for piece in pieces {
            tokens.push(piece.text.clone());
            scores.push(piece.score);
            kinds.push(kind_code(piece.kind));
        }
        for id in pieces.len()..vocab_size {
            let added = u32::try_from(id)
                .ok()
                .and_then(|id| self.tokenizer.token(id));
            let (token, score, kind) = match added {
                Some(token) => (token, ADDED_SCORE, PieceKind::UserDefined),
                None => (format!("[PAD{id}]"), UNUSED_SCORE, PieceKind::Unused),
            };
            tokens.push(token);
            scores.push(score);
            kinds.push(kind_code(kind));
        }
        metadata.put_text("tokenizer.ggml.model", name);
        metadata.put_text("tokenizer.ggml.pre", "default");
        metadata.put_texts("tokenizer.ggml.tokens", &tokens);
        metadata.put_f32s("tokenizer.ggml.scores", &scores);
        metadata.put_i32s("tokenizer.ggml.token_type", &kinds);
        let rules = &self.model.normalizer;
        metadata.put_bool("tokenizer.ggml.add_space_prefix", rules.add_dummy_prefix);
        metadata.put_bool(
            "tokenizer.ggml.remove_extra_whitespaces",
            rules.remove_extra_whitespaces,
        );
        if !rules.precompiled_charsmap.is_empty() {
            let key = "tokenizer.ggml.precompiled_charsmap";
            metadata.put_bytes(key, &rules.precompiled_charsmap);
        }
        for (key, id) in [
            ("eos_token_id", self.tokenizer.eos_id()),
            ("unknown_token_id", self.tokenizer.unk_id()),
            ("padding_token_id", self.tokenizer.pad_id()),
        ] {
            if let Some(id) = id {
                metadata.put_u32(&format!("tokenizer.ggml.{key}"), id);
            }
        }
        metadata.put_bool("tokenizer.ggml.add_bos_token", false);
        metadata.put_bool("tokenizer.ggml.add_eos_token", true);
        Ok(())
    }
}

/// SentencePiece's own numbers, which llama.cpp has taken over.
fn kind_code(kind: PieceKind) -> i32 {
    match kind {
        PieceKind::Normal => 1,
        PieceKind::Unknown => 2,
        PieceKind::Control => 3,
        PieceKind::UserDefined => 4,
        PieceKind::Unused => 5,
        PieceKind::Byte => 6,
    }
}
