//! Models in another form: other types, other files.
//!
//! [`to_safetensors`] writes a model folder or a single file in the names of transformers,
//! [`to_gguf`] a file in llama.cpp's layout. [`crate::packed`] has a form of its own.
//!
//! # Numerics
//!
//! A value is rounded once, from the type in which it is stored to the one that is asked for, to
//! the nearest and in the middle to even. Quantised weights are in llama.cpp's blocks: those of 32
//! values bit for bit the ones of its reference implementations, those of 256 (`_K`) the result of
//! a search of our own for the least sum of squared errors, in which all values weigh the same.
//!
//! # Memory and failure
//!
//! One tensor at a time is read, in pieces where the file is mapped. What is written has another
//! name until it is complete: a process that is killed leaves what was there before as it was, and
//! beside it a file or folder `.quintic-*.tmp`.

mod blocks;
pub(crate) mod companions;
mod gguf;
mod gguf_weights;
mod safetensors;
mod values;
mod vocabulary;

use std::path::PathBuf;

pub use self::gguf::{GgufOptions, to_gguf};
pub use self::gguf_weights::GgufWeights;
pub use self::safetensors::{SafetensorsOptions, to_safetensors};

/// Told of tensors that are done, and of how many.
pub type Progress<'a> = &'a mut dyn FnMut(usize, usize);

/// What was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Written {
    /// Files, relative to the folder; of a single file its path.
    pub files: Vec<PathBuf>,
    /// Bytes of the tensors.
    pub tensor_bytes: u64,
    /// Values beyond the range of the type that became its largest.
    pub n_saturated: u64,
    /// Tensors that were to be quantised, but whose rows are no whole blocks of any type: they are
    /// f16.
    pub not_quantised: Vec<String>,
    /// Tensors whose rows are no whole blocks of the type asked for, and are of another.
    pub other_blocks: Vec<OtherBlocks>,
    /// What the reader should know.
    pub notes: Vec<String>,
}

/// A tensor in blocks of another type than was asked for: see [`GgufWeights`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OtherBlocks {
    /// Its name in the file.
    pub tensor: String,
    /// The type that its place would have, such as `q4_k`.
    pub wanted: &'static str,
    /// The type that it has, such as `q5_0`.
    pub found: &'static str,
}
