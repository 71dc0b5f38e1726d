//! Generation: which token follows, with the meaning and the names of transformers.
//!
//! A [`Request`] is a source, the decoder's first tokens and a [`GenerationConfig`]; [`generate`]
//! runs any number of them over [`DecoderRows`], which is all that it asks of a model. Below it a
//! request is a state machine that is given its rows' scores and says how they go on: sequences by
//! themselves (`single`), or beams (`beam`); `processors` are the rules that change scores, `lookup` guesses at
//! tokens so that several are scored at a time.

mod beam;
mod config;
mod driver;
mod labels;
mod lookup;
mod processors;
mod random;
mod request;
mod rows;
mod search;
mod single;
#[cfg(test)]
mod tests;

pub use config::{EarlyStopping, GenerationConfig};
pub use driver::{GenerateOptions, Listener, generate};
pub use labels::{IGNORED_LABEL, shift_right};
pub use request::{Event, Finish, Request, Sequence, Stop};
pub use rows::{DecoderRows, Logits};
