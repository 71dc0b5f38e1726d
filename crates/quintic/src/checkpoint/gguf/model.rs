//! What the metadata says about the model.
//!
//! Shapes are the tensors'; what the metadata says of them has to agree. Three things are nowhere
//! in the file and are what llama.cpp takes them for: the activation (tanh GELU if gated, else
//! ReLU), the distance of the last position bucket (128), and that the decoder's output is scaled
//! if, and only if, there is no head of its own (as transformers does; llama.cpp never scales,
//! which changes no choice of a token).

use super::GgufFile;
use super::metadata::place;
use crate::checkpoint::InferredShape;
use crate::config::T5Config;
use crate::{Error, Result};

/// Architectures that are a T5.
const ARCHITECTURES: [&str; 2] = ["t5", "t5encoder"];

impl GgufFile {
    /// Refuses other models than a T5.
    pub(in crate::checkpoint) fn check_architecture(&self) -> Result<()> {
        self.architecture().map(|_| ())
    }

    fn architecture(&self) -> Result<&'static str> {
        const KEY: &str = "general.architecture";
        let expected = "expected `t5` or `t5encoder`";
        let found = self.metadata.text(KEY)?.ok_or_else(|| {
            Error::checkpoint(format!("is missing, {expected}"))
                .at(place(KEY))
                .hint("convert the model again with llama.cpp's `convert_hf_to_gguf.py`")
        })?;
        ARCHITECTURES
            .into_iter()
            .find(|&known| known == found)
            .ok_or_else(|| {
                Error::unsupported(format!("found `{found}`, {expected}")).at(place(KEY))
            })
    }

    /// The config of the model whose tensors have this shape.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Checkpoint`](crate::ErrorKind::Checkpoint) if metadata and tensors contradict
    /// each other, else as [`T5Config::from_inferred`].
    pub(crate) fn config(&self, shape: &InferredShape) -> Result<T5Config> {
        let arch = self.architecture()?;
        let metadata = &self.metadata;
        let with_decoder = |n: usize| (shape.n_decoder_layers > 0).then_some(n);
        for (key, expected) in [
            ("vocab_size", Some(shape.vocab_size)),
            ("embedding_length", Some(shape.d_model)),
            ("feed_forward_length", Some(shape.d_ff)),
            ("block_count", Some(shape.n_layers)),
            ("decoder_block_count", with_decoder(shape.n_decoder_layers)),
            ("attention.head_count", Some(shape.n_heads)),
            ("attention.key_length", Some(shape.d_kv)),
            ("attention.value_length", Some(shape.d_kv)),
            ("attention.relative_buckets_count", Some(shape.n_buckets)),
        ] {
            let key = format!("{arch}.{key}");
            let (Some(found), Some(expected)) = (metadata.whole(&key)?, expected) else {
                continue;
            };
            if found != expected as u64 {
                return Err(Error::checkpoint(format!(
                    "found {found}, expected {expected} from the tensors"
                ))
                .at(place(&key)));
            }
        }
        let mut shape = shape.clone();
        let eps = |name: &str| metadata.number(&format!("{arch}.attention.{name}"));
        let found = match eps("layer_norm_rms_epsilon")? {
            Some(eps) => Some(eps),
            None => eps("layer_norm_epsilon")?,
        };
        if let Some(eps) = found {
            if !eps.is_finite() || eps < 0.0 {
                return Err(Error::checkpoint(format!(
                    "found {eps}, expected a finite number of at least 0"
                ))
                .at(place(&format!("{arch}.attention.layer_norm_rms_epsilon"))));
            }
            shape.eps = eps;
        }
        let mut config = T5Config::from_inferred(&shape)?;
        if let Some(id) = self.token(&format!("{arch}.decoder_start_token_id"))? {
            config.decoder_start_token_id = Some(id);
        }
        if let Some(id) = self.token("tokenizer.ggml.padding_token_id")? {
            config.pad_token_id = Some(id);
        }
        if let Some(id) = self.token("tokenizer.ggml.eos_token_id")? {
            config.eos_token_ids = vec![id];
        }
        Ok(config)
    }

    /// How many tokens the model was made for, which bounds nothing in a T5.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Checkpoint`](crate::ErrorKind::Checkpoint) if it is no whole number.
    pub(crate) fn context_length(&self) -> Result<Option<u64>> {
        let arch = self.architecture()?;
        self.metadata.whole(&format!("{arch}.context_length"))
    }

    fn token(&self, key: &str) -> Result<Option<u32>> {
        let Some(id) = self.metadata.whole(key)? else {
            return Ok(None);
        };
        u32::try_from(id).map(Some).map_err(|_| {
            Error::checkpoint(format!("found {id}, expected a token id")).at(place(key))
        })
    }
}
