//! Quintic: an exact and fast engine for the T5 family.

pub mod backend;
pub mod batch;
pub mod checkpoint;
pub mod config;
mod error;
#[doc(hidden)]
pub mod fuzzing;
mod limits;
mod mmap;
pub mod model;
pub mod output;
pub mod sentence;
mod tensor;
mod text_encoder;
pub mod tokenizer;

pub use error::{Error, ErrorKind, Result};
pub use mmap::MappedFile;
pub use tensor::{ByteOwner, DType, Tensor};
pub use text_encoder::{BackendKind, HiddenStates, LoadOptions, TextEncoder, config_of};
