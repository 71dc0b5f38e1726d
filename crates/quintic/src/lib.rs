//! Quintic: an exact and fast engine for the T5 family.

pub mod backend;
pub mod batch;
pub mod config;
mod error;
mod limits;
pub mod model;
mod tensor;

pub use error::{Error, ErrorKind, Result};
pub use tensor::{ByteOwner, DType, Tensor};
