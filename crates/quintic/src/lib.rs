//! Quintic: text encoders of the T5 family, with the numbers that Hugging Face gives.
//!
//! Load, tokenize, pack, encode:
//!
//! ```
//! # fn main() -> quintic::Result<()> {
//! use quintic::backend::Pool;
//! use quintic::batch::PackedBatch;
//! use quintic::{LoadOptions, TextEncoder, Tokenizer};
//!
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/goldens/byt5");
//! // A model folder, a diffusers folder, a weight file, or an id in the Hugging Face cache.
//! let encoder = TextEncoder::load(folder, &LoadOptions::default())?;
//! // `Tokenizer::from_dir` reads the files beside a model; bytes need none.
//! let tokenizer = Tokenizer::bytes(125)?;
//! let rows = [tokenizer.encode("42", true)?, tokenizer.encode("1 + 1", true)?];
//!
//! // Rows of different length are laid end to end; there is no padding.
//! let batch = PackedBatch::from_rows(&rows, encoder.config().vocab_size)?;
//! let states = encoder.hidden_states(&batch, false)?.last;
//! assert_eq!(states.len(), (3 + 6) * encoder.config().d_model);
//!
//! let vectors = encoder.pooled(&batch, Pool::Mean)?;
//! assert_eq!(vectors.len(), 2 * encoder.config().d_model);
//! # Ok(())
//! # }
//! ```
//!
//! Hugging Face's padded tensors and masks go through [`batch::PaddedBatch`], the conditioning
//! contracts of diffusion pipelines through [`preset::Preset`], results to disk through
//! [`output`].
//!
//! Shapes in these docs use one alphabet: `rows` and `len` of a padded batch, `tokens` of all
//! rows of a packed one, `d_model`, `n_heads`, `d_kv`, `d_ff`, `vocab`. Config fields keep
//! Hugging Face's spelling.

pub mod backend;
pub mod batch;
pub mod calibrate;
pub mod checkpoint;
mod compute;
pub mod config;
pub mod convert;
mod error;
#[doc(hidden)]
pub mod fuzzing;
pub mod generate;
mod keep;
mod limits;
mod loading;
mod mmap;
pub mod model;
pub mod output;
pub mod packed;
pub mod preset;
pub mod sentence;
mod seq2seq;
pub mod suite;
pub mod synthetic;
mod tensor;
mod text_encoder;
pub mod tokenizer;
pub mod verify;
mod weight_type;

pub use compute::{Compute, ComputeChoice, ComputeType, MatmulPrecision};
pub use error::{Error, ErrorKind, Result};
pub use keep::{Keep, Site, Stack};
pub use loading::{BackendKind, LoadOptions, config_of};
pub use mmap::MappedFile;
pub use model::{Interrupted, Pass};
pub use quintic_kernels::BlockType;
pub use seq2seq::{Decode, Decoded, Seq2Seq, Sources};
pub use tensor::{ByteOwner, DType, Tensor};
pub use text_encoder::{HiddenStates, RowsOptions, TextEncoder, activation_bytes_per_token};
pub use tokenizer::{SpieceOptions, Tokenizer, TokenizerChoice};
pub use weight_type::{ProductKind, WeightType};

/// The README's Rust code is compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
