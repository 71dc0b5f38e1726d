//! Quintic: an exact and fast engine for the T5 family.

pub mod config;
mod error;
mod limits;
mod tensor;

pub use error::{Error, ErrorKind, Result};
pub use tensor::{ByteOwner, DType, Tensor};
