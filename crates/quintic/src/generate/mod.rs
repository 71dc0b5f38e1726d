//! Generation: which token follows, with the meaning and the names of transformers.

mod rows;

pub use rows::DecoderRows;
