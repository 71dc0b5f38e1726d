//! Models in another form: other types, other files.
//!
//! [`to_safetensors`] writes a model folder or a single file in the names of transformers,
//! [`to_gguf`] a file in llama.cpp's layout. [`crate::packed`] has a form of its own.
//!
//! # Numerics
//!
//! A value is rounded once, from the type in which it is stored to the one that is asked for, to
//! the nearest and in the middle to even. Blocks of quantised weights are those of llama.cpp.
//!
//! # Memory and failure
//!
//! One tensor at a time is read, in pieces where the file is mapped. What is written has another
//! name until it is complete: a process that is killed leaves what was there before as it was, and
//! beside it a file or folder `.quintic-*.tmp`.

mod blocks;
pub(crate) mod companions;
mod gguf;
mod safetensors;
mod values;
mod vocabulary;

use std::path::PathBuf;

pub use self::gguf::{GgufOptions, GgufWeights, to_gguf};
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
    /// Tensors that were to be quantised, but whose rows are no whole blocks: they are f16.
    pub not_quantised: Vec<String>,
    /// What the reader should know.
    pub notes: Vec<String>,
}
