//! The shape of a model without `config.json`, from the shapes of its tensors.

use super::Checkpoint;
use crate::{Error, Result};

/// What the tensors of a checkpoint say about its model.
///
/// Three things leave no trace in the tensors, and take the values that every published T5
/// encoder without a config has: the activation (tanh GELU if gated, else ReLU), the
/// distance at which the last position bucket begins, and the epsilon of the norms.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct InferredShape {
    /// Width of the residual stream.
    pub d_model: usize,
    /// Width of one attention head.
    pub d_kv: usize,
    /// Width between the projections of the feed-forward.
    pub d_ff: usize,
    /// Attention heads per layer.
    pub n_heads: usize,
    /// Layers of the encoder.
    pub n_layers: usize,
    /// Layers of the decoder; 0 for an encoder alone.
    pub n_decoder_layers: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Rows of the position bias table.
    pub n_buckets: usize,
    /// Whether the feed-forward is gated (`wi_0` and `wi_1`) or plain (`wi`).
    pub is_gated: bool,
    /// Whether every layer has a position bias table of its own, as in UMT5, or the first
    /// layer's is shared, as in T5. A stack of one layer counts as sharing.
    pub has_bias_per_layer: bool,
    /// Whether there is an output head, `lm_head.weight`.
    pub has_lm_head: bool,
    /// Distance of the last bucket: [`InferredShape::MAX_DISTANCE`], by convention.
    pub max_distance: usize,
    /// Added to the mean square: [`InferredShape::EPS`], by convention.
    pub eps: f64,
}

impl InferredShape {
    /// `relative_attention_max_distance` of every published T5 encoder.
    pub const MAX_DISTANCE: usize = 128;
    /// `layer_norm_epsilon` of every published T5 encoder.
    pub const EPS: f64 = 1e-6;

    #[cfg(test)]
    pub(crate) fn for_tests(is_gated: bool, has_bias_per_layer: bool) -> Self {
        InferredShape {
            d_model: 24,
            d_kv: 8,
            d_ff: 40,
            n_heads: 2,
            n_layers: 3,
            n_decoder_layers: 0,
            vocab_size: 50,
            n_buckets: 16,
            is_gated,
            has_bias_per_layer,
            has_lm_head: false,
            max_distance: Self::MAX_DISTANCE,
            eps: Self::EPS,
        }
    }

    /// `feed_forward_proj` as a config would say it: `gated-gelu` or `relu`.
    pub fn feed_forward_proj(&self) -> &'static str {
        match self.is_gated {
            true => "gated-gelu",
            false => "relu",
        }
    }
}

/// Reads the model's shape off its tensors. Values are not read.
///
/// # Errors
///
/// [`ErrorKind::Checkpoint`](crate::ErrorKind::Checkpoint) if a tensor that is needed is
/// missing or has a shape no T5 has, if layers are missing in between, or if only some
/// layers have a position bias.
pub fn infer_shape(checkpoint: &Checkpoint) -> Result<InferredShape> {
    infer(checkpoint).map_err(|error| error.at(checkpoint.path().display()))
}

fn infer(checkpoint: &Checkpoint) -> Result<InferredShape> {
    const EMBEDDINGS: [&str; 3] = [
        "shared.weight",
        "encoder.embed_tokens.weight",
        "decoder.embed_tokens.weight",
    ];
    let Some(embedding) = EMBEDDINGS
        .into_iter()
        .find(|name| checkpoint.contains(name))
    else {
        return Err(Error::checkpoint(format!(
            "there is no embedding, expected one of {}",
            super::entry::list_names(EMBEDDINGS, EMBEDDINGS.len())
        )));
    };
    let [vocab_size, d_model] = matrix(checkpoint, embedding)?;
    let block = "encoder.block.0.layer";
    let q = format!("{block}.0.SelfAttention.q.weight");
    let [inner, q_width] = matrix(checkpoint, &q)?;
    if q_width != d_model {
        return Err(Error::checkpoint(format!(
            "has shape [{inner}, {q_width}], expected [_, {d_model}] from `{embedding}`"
        ))
        .at(format!("tensor `{q}`")));
    }
    let bias = format!("{block}.0.SelfAttention.relative_attention_bias.weight");
    let [n_buckets, n_heads] = matrix(checkpoint, &bias)?;
    if inner % n_heads != 0 {
        return Err(Error::checkpoint(format!(
            "has {inner} rows, expected a multiple of the {n_heads} heads of `{bias}`"
        ))
        .at(format!("tensor `{q}`")));
    }
    let is_gated = checkpoint.contains(&format!("{block}.1.DenseReluDense.wi_0.weight"));
    let wi = if is_gated { "wi_0" } else { "wi" };
    let [d_ff, _] = matrix(checkpoint, &format!("{block}.1.DenseReluDense.{wi}.weight"))?;
    let n_layers = count_layers(checkpoint, "encoder")?;
    let n_decoder_layers = count_layers(checkpoint, "decoder")?;
    Ok(InferredShape {
        d_model,
        d_kv: inner / n_heads,
        d_ff,
        n_heads,
        n_layers,
        n_decoder_layers,
        vocab_size,
        n_buckets,
        is_gated,
        has_bias_per_layer: has_bias_per_layer(checkpoint, n_layers)?,
        has_lm_head: checkpoint.contains("lm_head.weight"),
        max_distance: InferredShape::MAX_DISTANCE,
        eps: InferredShape::EPS,
    })
}

/// Extents of a tensor that must have two, neither of them 0.
fn matrix(checkpoint: &Checkpoint, name: &str) -> Result<[usize; 2]> {
    let place = |error: Error| error.at(format!("tensor `{}{name}`", checkpoint.prefix()));
    let entry = checkpoint.entry(name).ok_or_else(|| {
        place(Error::checkpoint(
            "is missing, the model's shape depends on it",
        ))
    })?;
    match *entry.shape() {
        [rows, columns] if rows > 0 && columns > 0 => Ok([rows, columns]),
        ref shape => Err(place(Error::checkpoint(format!(
            "has shape {shape:?}, expected two extents above 0"
        )))),
    }
}

/// Layers of a stack, which must be numbered without gaps from 0.
fn count_layers(checkpoint: &Checkpoint, stack: &str) -> Result<usize> {
    let prefix = format!("{stack}.block.");
    let mut layers: Vec<usize> = checkpoint
        .names()
        .filter_map(|name| name.strip_prefix(&prefix)?.split('.').next()?.parse().ok())
        .collect();
    layers.sort_unstable();
    layers.dedup();
    match layers
        .iter()
        .enumerate()
        .find(|&(expected, &layer)| layer != expected)
    {
        Some((expected, layer)) => Err(Error::checkpoint(format!(
            "`{stack}.block.{expected}` is missing, found `{stack}.block.{layer}`"
        ))),
        None => Ok(layers.len()),
    }
}

fn has_bias_per_layer(checkpoint: &Checkpoint, n_layers: usize) -> Result<bool> {
    let n_biases = (0..n_layers)
        .filter(|layer| {
            checkpoint.contains(&format!(
                "encoder.block.{layer}.layer.0.SelfAttention.relative_attention_bias.weight"
            ))
        })
        .count();
    match n_biases {
        1 => Ok(false),
        all if all == n_layers => Ok(true),
        some => Err(Error::checkpoint(format!(
            "{some} of {n_layers} encoder layers have a `relative_attention_bias`, expected the first alone or all"
        ))),
    }
}
