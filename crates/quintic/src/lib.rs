//! Quintic: an exact and fast engine for the T5 family.

pub mod checkpoint;
mod error;
mod mmap;
mod tensor;

pub use error::{Error, ErrorKind, Result};
pub use mmap::MappedFile;
pub use tensor::{ByteOwner, DType, Tensor};
