//! The model: config and tensors in, hidden states out.
//!
//! This is the last layer that knows a tensor's name and the first that knows nothing of
//! files or padding. A loaded [`Encoder`] is immutable: share it by reference between
//! threads.

mod decoder;
mod decoder_weights;
mod encoder;
mod pass;
mod weights;

pub use decoder::{Decoder, DecoderState, Feed};
pub use decoder_weights::{DecoderLayerParts, DecoderWeights, Head};
pub use encoder::{Encoded, Encoder};
pub use pass::{Interrupted, Pass};
pub(crate) use weights::EMBEDDING_NAMES;
pub use weights::{EncoderWeights, LayerParts, LayerWeights, Part, Product, TakeTensor};
