//! Which tensors an encoder is made of: names, shapes, and what may stand in for what.

use crate::config::{Family, T5Config};
use crate::tensor::Tensor;
use crate::{Error, Result};

/// Where a model takes its tensors from; a checkpoint, or a map in a test.
pub trait TakeTensor {
    /// The tensor `name`, which must have `shape`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Checkpoint`](crate::ErrorKind::Checkpoint) if it is missing, has another
    /// shape, or cannot be read.
    fn take(&mut self, name: &str, shape: &[usize]) -> Result<Tensor>;

    /// Whether there is a tensor `name`.
    fn contains(&self, name: &str) -> bool;
}

/// The tensors of one encoder layer, shapes as in the checkpoint (`[out, in]`).
#[derive(Debug)]
pub struct LayerWeights {
    /// Gain of the norm before attention, `[d_model]`.
    pub attention_norm: Tensor,
    /// Query, key and value products, each `[n_heads * d_kv, d_model]`.
    pub qkv: [Tensor; 3],
    /// Output product, `[d_model, n_heads * d_kv]`.
    pub output: Tensor,
    /// Position bias `[num_buckets, n_heads]`: in layer 0, or in every layer (UMT5).
    pub bias: Option<Tensor>,
    /// Gain of the norm before the feed-forward layer, `[d_model]`.
    pub feed_forward_norm: Tensor,
    /// `wi`, or `wi_0` and `wi_1` if gated, each `[d_ff, d_model]`.
    pub feed_forward_in: Vec<Tensor>,
    /// `wo`, `[d_model, d_ff]`.
    pub feed_forward_out: Tensor,
}

/// The tensors of an encoder.
#[derive(Debug)]
pub struct EncoderWeights {
    /// Embedding table, `[vocab_size, d_model]`.
    pub embedding: Tensor,
    /// Layers, first to last.
    pub layers: Vec<LayerWeights>,
    /// Gain of the last norm, `[d_model]`.
    pub final_norm: Tensor,
}

/// Names under which checkpoints keep the embedding table. Most have several of them, all
/// equal; MADLAD has only the decoder's. The output head is never a stand-in.
const EMBEDDING_NAMES: [&str; 3] = [
    "shared.weight",
    "encoder.embed_tokens.weight",
    "decoder.embed_tokens.weight",
];

impl EncoderWeights {
    /// Takes every tensor of the encoder that `config` describes.
    ///
    /// # Errors
    ///
    /// As [`TakeTensor::take`]; also if the config and the tensors contradict each other on
    /// the gate or on which layers have a position bias.
    pub fn take(source: &mut dyn TakeTensor, config: &T5Config) -> Result<Self> {
        check_gate(source, config)?;
        let per_layer_bias = per_layer_bias(source, config)?;
        let name = EMBEDDING_NAMES
            .into_iter()
            .find(|name| source.contains(name))
            .unwrap_or(EMBEDDING_NAMES[0]);
        let embedding = source.take(name, &[config.vocab_size, config.d_model])?;
        let layers = (0..config.num_layers)
            .map(|layer| LayerWeights::take(source, config, layer, per_layer_bias || layer == 0))
            .collect::<Result<_>>()?;
        let final_norm = source.take("encoder.final_layer_norm.weight", &[config.d_model])?;
        Ok(EncoderWeights {
            embedding,
            layers,
            final_norm,
        })
    }

    /// Whether a tensor that an encoder did not take is expected to be left over: the
    /// decoder, the head, further copies of the embedding.
    pub fn may_be_left(name: &str) -> bool {
        EMBEDDING_NAMES.contains(&name) || name == "lm_head.weight" || name.starts_with("decoder.")
    }
}

impl LayerWeights {
    fn take(
        source: &mut dyn TakeTensor,
        config: &T5Config,
        layer: usize,
        has_bias: bool,
    ) -> Result<Self> {
        let (d_model, d_ff, inner) = (config.d_model, config.d_ff, config.inner_dim());
        let mut take = |part: &str, shape: &[usize]| {
            source.take(&format!("encoder.block.{layer}.layer.{part}.weight"), shape)
        };
        let inputs: &[&str] = if config.feed_forward.gated {
            &["wi_0", "wi_1"]
        } else {
            &["wi"]
        };
        Ok(LayerWeights {
            attention_norm: take("0.layer_norm", &[d_model])?,
            qkv: [
                take("0.SelfAttention.q", &[inner, d_model])?,
                take("0.SelfAttention.k", &[inner, d_model])?,
                take("0.SelfAttention.v", &[inner, d_model])?,
            ],
            output: take("0.SelfAttention.o", &[d_model, inner])?,
            bias: if has_bias {
                let shape = [config.relative_attention_num_buckets, config.num_heads];
                Some(take("0.SelfAttention.relative_attention_bias", &shape)?)
            } else {
                None
            },
            feed_forward_norm: take("1.layer_norm", &[d_model])?,
            feed_forward_in: inputs
                .iter()
                .map(|input| take(&format!("1.DenseReluDense.{input}"), &[d_ff, d_model]))
                .collect::<Result<_>>()?,
            feed_forward_out: take("1.DenseReluDense.wo", &[d_model, d_ff])?,
        })
    }
}

fn check_gate(source: &dyn TakeTensor, config: &T5Config) -> Result<()> {
    let has = |input: &str| {
        source.contains(&format!(
            "encoder.block.0.layer.1.DenseReluDense.{input}.weight"
        ))
    };
    let (found, said) = match config.feed_forward.gated {
        true if !has("wi_0") && has("wi") => ("one input product, `wi`", "gated"),
        false if !has("wi") && has("wi_0") => ("two input products, `wi_0` and `wi_1`", "ungated"),
        _ => return Ok(()),
    };
    Err(Error::checkpoint(format!(
        "the feed-forward layers have {found}, but the config says {said}"
    ))
    .hint("check `feed_forward_proj` and `is_gated_act` in config.json"))
}

/// UMT5 has a table in every layer, the others in layer 0 alone. The tensors decide; a
/// config that names a family must agree with them.
fn per_layer_bias(source: &dyn TakeTensor, config: &T5Config) -> Result<bool> {
    let n_tables = (0..config.num_layers)
        .filter(|layer| {
            source.contains(&format!(
                "encoder.block.{layer}.layer.0.SelfAttention.relative_attention_bias.weight"
            ))
        })
        .count();
    let per_layer = config.num_layers > 1 && n_tables == config.num_layers;
    let expected = match config.family {
        Some(Family::Umt5) => config.num_layers,
        Some(Family::T5 | Family::Mt5) => 1,
        None if per_layer => config.num_layers,
        None => 1,
    };
    if n_tables == expected {
        return Ok(per_layer);
    }
    if n_tables == 0 {
        // Missing altogether: let `take` name the tensor.
        return Ok(expected > 1);
    }
    let family = config
        .family
        .map_or("T5 without `model_type`", Family::model_type);
    Err(Error::checkpoint(format!(
        "found position-bias tables in {n_tables} of {} encoder layers, expected {expected} for `{family}`",
        config.num_layers
    ))
    .hint("`umt5` has a table in every layer, `t5` and `mt5` in the first alone; check `model_type` in config.json"))
}
