//! Quintic: an exact and fast engine for the T5 family.

mod error;

pub use error::{Error, ErrorKind, Result};
