//! A SentencePiece model as the vocabulary of a GGUF file.

use std::path::Path;

use crate::checkpoint::Checkpoint;
use crate::limits::{MAX_TOKENIZER_BYTES, read_file};
use crate::output::gguf::Metadata;
use crate::tokenizer::sentencepiece::proto::{ModelProto, ModelType, PieceKind};
use crate::tokenizer::{SpieceOptions, Tokenizer, TokenizerChoice};
use crate::{Error, ErrorKind, Result};

/// Files that can be a SentencePiece model, in the order in which they are looked for.
const FILES: [&str; 2] = ["spiece.model", "tokenizer.model"];

/// Score of tokens that were added to the pieces, and of rows of the embedding that no token has:
/// llama.cpp's.
const ADDED_SCORE: f32 = -1000.0;
const UNUSED_SCORE: f32 = -10000.0;

/// A SentencePiece model and the tokens that stand above its pieces.
pub(super) struct Vocabulary {
    model: ModelProto,
    tokenizer: Tokenizer,
}

impl Vocabulary {
    /// The model in `named` (a file, or a folder with flags beside it), else the one beside the
    /// weights, else the one inside them; `None` if there is none.
    ///
    /// # Errors
    ///
    /// If `named` has none, or a file is damaged.
    pub(super) fn find(checkpoint: &Checkpoint, named: Option<&Path>) -> Result<Option<Self>> {
        let folder = match named {
            Some(path) if path.is_dir() => Some(path),
            Some(path) => {
                let bytes = read_file(path, MAX_TOKENIZER_BYTES, ErrorKind::Tokenizer)?;
                let vocabulary = Self::bare(&bytes).map_err(|e| e.at(path.display()))?;
                return Ok(Some(vocabulary));
            }
            None => checkpoint.tokenizer_folder(),
        };
        let files = |folder: &Path| FILES.map(|name| folder.join(name));
        let file = folder.and_then(|folder| files(folder).into_iter().find(|path| path.is_file()));
        if let (Some(folder), Some(path)) = (folder, file) {
            let bytes = read_file(&path, MAX_TOKENIZER_BYTES, ErrorKind::Tokenizer)?;
            return Ok(Some(Vocabulary {
                model: ModelProto::parse(&bytes).map_err(|e| e.at(path.display()))?,
                tokenizer: Tokenizer::from_dir(folder, TokenizerChoice::Slow)?,
            }));
        }
        match (named, checkpoint.embedded_tokenizer()?) {
            (Some(path), _) => Err(Error::new(
                ErrorKind::NotFound,
                format!(
                    "there is no `{}`, which a vocabulary is made of",
                    FILES.join("` or `")
                ),
            )
            .at(path.display())),
            (None, Some(model)) => Self::bare(model.bytes()).map(Some),
            (None, None) => Ok(None),
        }
    }

    fn bare(bytes: &[u8]) -> Result<Self> {
        Ok(Vocabulary {
            model: ModelProto::parse(bytes)?,
            tokenizer: Tokenizer::from_spiece_bytes(bytes, &SpieceOptions::default())?,
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
