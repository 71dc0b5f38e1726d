//! SentencePiece models (`spiece.model`, `tokenizer.model`): unigram and BPE.
//!
//! The reference is SentencePiece 0.2.3. The aim is the same ids for every text, which
//! includes its rules for ties, unknown characters and rounding.

mod bpe;
mod check;
mod double_array;
mod model;
mod normalizer;
pub(crate) mod proto;
mod trie;
mod unigram;

pub(crate) use model::{EncodedPiece, SentencePiece};
pub(crate) use normalizer::{SPACE_SYMBOL, check_charsmap};
pub(crate) use proto::{ModelProto, ModelType, NormalizerSpec, Piece, PieceKind, TrainerSpec};
