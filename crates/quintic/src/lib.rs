//! Quintic: an exact and fast engine for the T5 family.

mod error;
mod tensor;
pub mod tokenizer;

pub use error::{Error, ErrorKind, Result};
pub use tensor::{ByteOwner, DType, Tensor};
pub use tokenizer::{SpieceOptions, Tokenizer, TokenizerChoice};
