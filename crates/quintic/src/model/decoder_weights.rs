//! Which tensors a decoder is made of: names, shapes, and what serves as its output head.

use super::TakeTensor;
use super::weights::{embedding_name, split_gain};
use crate::backend::Weights;
use crate::config::{Family, T5Config};
use crate::model::Part;
use crate::tensor::Tensor;
use crate::{Error, Result};

/// Gain of the last norm, `[d_model]`.
const FINAL_NORM: &str = "decoder.final_layer_norm.weight";

/// The output head, `[vocab, d_model]`, where it is not the embedding table.
const HEAD: &str = "lm_head.weight";

/// Name of a decoder tensor.
fn tensor_name(layer: usize, part: &str) -> String {
    format!("decoder.block.{layer}.layer.{part}.weight")
}

/// What a backend prepares a decoder layer from. Gains are `None` where they go with a product.
#[derive(Debug)]
pub struct DecoderLayerParts {
    /// Gain of the norm before self-attention.
    pub attention_norm: Option<Tensor>,
    /// Query, key and value of self-attention.
    pub qkv: Part,
    /// Output of self-attention.
    pub output: Part,
    /// Position bias `[num_buckets, n_heads]`: in layer 0, or in every layer (UMT5).
    pub bias: Option<Tensor>,
    /// Gain of the norm before cross-attention.
    pub cross_norm: Option<Tensor>,
    /// Query of cross-attention.
    pub cross_query: Part,
    /// Key and value of cross-attention, which read the encoder's hidden states.
    pub cross_keys: Part,
    /// Output of cross-attention.
    pub cross_output: Part,
    /// Gain of the norm before the feed-forward layer.
    pub feed_forward_norm: Option<Tensor>,
    /// Into the feed-forward layer.
    pub feed_forward_in: Part,
    /// Out of it.
    pub feed_forward_out: Part,
}

/// The output head: its weights and the factor of what flows into it.
#[derive(Debug)]
pub struct Head {
    /// `[vocab, d_model]`.
    pub weights: Tensor,
    /// Whether `weights` are the embedding table.
    pub is_tied: bool,
    /// Factor of the scores: `d_model^-0.5` or 1.
    pub scale: f32,
}

/// Where the tensors of a decoder are, after [`DecoderWeights::check`] has found all of them.
#[derive(Clone, Debug)]
pub struct DecoderWeights {
    config: T5Config,
    per_layer_bias: bool,
    has_head: bool,
    embedding: &'static str,
}

impl DecoderWeights {
    /// Finds every tensor of the decoder that `config` describes.
    ///
    /// # Errors
    ///
    /// As [`TakeTensor::require`]; [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) for
    /// a packed model, in which there is no decoder, and for a model without one.
    pub fn check(source: &mut dyn TakeTensor, config: &T5Config) -> Result<Self> {
        if source.packed().is_some() {
            return Err(Error::unsupported(
                "a packed model holds an encoder alone, but its decoder was asked for",
            )
            .hint("name the model that was packed"));
        }
        if config.num_decoder_layers == 0 {
            return Err(
                Error::unsupported("the model has no decoder, which generation needs")
                    .at("field `num_decoder_layers`"),
            );
        }
        let bias = |layer: usize| tensor_name(layer, BIAS);
        let per_layer_bias = match config.family {
            Some(Family::Umt5) => true,
            Some(_) => false,
            None => {
                config.num_decoder_layers > 1
                    && (0..config.num_decoder_layers).all(|layer| source.contains(&bias(layer)))
            }
        };
        if !per_layer_bias
            && let Some(layer) =
                (1..config.num_decoder_layers).find(|&layer| source.contains(&bias(layer)))
        {
            return Err(Error::checkpoint(format!(
                "decoder layer {layer} has a position-bias table of its own, which `t5` and `mt5` \
                 have in layer 0 alone"
            ))
            .at(format!("tensor `{}`", bias(layer)))
            .hint("check `model_type` in config.json"));
        }
        let weights = DecoderWeights {
            per_layer_bias,
            has_head: source.contains(HEAD),
            embedding: embedding_name(source),
            config: config.clone(),
        };
        let mut wanted = vec![
            (weights.embedding.to_owned(), weights.head_shape().to_vec()),
            (FINAL_NORM.to_owned(), vec![config.d_model]),
        ];
        if weights.has_head {
            wanted.push((HEAD.to_owned(), weights.head_shape().to_vec()));
        }
        for layer in 0..config.num_decoder_layers {
            weights.visit(layer, &mut |name, shape| {
                wanted.push((name, shape));
                Ok(())
            })?;
        }
        source.require(&wanted)?;
        if !weights.has_head && config.tie_word_embeddings == Some(false) {
            return Err(Error::checkpoint(
                "`tie_word_embeddings` is false, but there is no output head",
            )
            .at(format!("tensor `{HEAD}`")));
        }
        Ok(weights)
    }

    /// The parts of one layer. With `folds` the gains of its norms go with the products behind
    /// them.
    ///
    /// # Errors
    ///
    /// As [`TakeTensor::take`].
    pub fn take_parts(
        &self,
        source: &mut dyn TakeTensor,
        layer: usize,
        folds: bool,
    ) -> Result<DecoderLayerParts> {
        let t = self.visit(layer, &mut |name, shape| source.take(&name, &shape))?;
        let inputs = match <[Tensor; 2]>::try_from(t.feed_forward_in) {
            Ok([gate, up]) => Weights::Gated { gate, up },
            Err(only) => Weights::Stacked(only),
        };
        let [q, k, v] = t.cross_qkv;
        let (attention_norm, qkv_gain) = split_gain(t.attention_norm, folds);
        let (cross_norm, query_gain) = split_gain(t.cross_norm, folds);
        let (feed_forward_norm, inputs_gain) = split_gain(t.feed_forward_norm, folds);
        let with = |weights, gain| Part { weights, gain };
        Ok(DecoderLayerParts {
            attention_norm,
            qkv: with(Weights::Stacked(t.qkv.into()), qkv_gain),
            output: Weights::Stacked(vec![t.output]).into(),
            bias: t.bias,
            cross_norm,
            cross_query: with(Weights::Stacked(vec![q]), query_gain),
            cross_keys: Weights::Stacked(vec![k, v]).into(),
            cross_output: Weights::Stacked(vec![t.cross_output]).into(),
            feed_forward_norm,
            feed_forward_in: with(inputs, inputs_gain),
            feed_forward_out: Weights::Stacked(vec![t.feed_forward_out]).into(),
        })
    }

    /// The gain of the last norm, `[d_model]`.
    ///
    /// # Errors
    ///
    /// As [`TakeTensor::take`].
    pub fn take_final_norm(&self, source: &mut dyn TakeTensor) -> Result<Tensor> {
        source.take(FINAL_NORM, &[self.config.d_model])
    }

    /// The output head.
    ///
    /// The tensors decide whether it is tied, since transformers 5 writes `tie_word_embeddings`
    /// as true for every T5: it is if there is no `lm_head.weight`, or if that equals the
    /// embedding table. What flows into the head is scaled by `d_model^-0.5` if
    /// `scale_decoder_outputs` says so, else if the head is tied (v1.0). For UMT5 that field is
    /// not followed: transformers 5 makes it true for heads that were trained without the factor
    /// (4.57 scales only if `tie_word_embeddings` is true, which published UMT5 says is false).
    /// mT5 is never scaled, as in transformers 5; no published one is tied.
    ///
    /// # Errors
    ///
    /// As [`TakeTensor::take`].
    pub fn take_head(&self, source: &mut dyn TakeTensor) -> Result<Head> {
        let shape = self.head_shape();
        let own = match self.has_head {
            true => Some(source.take(HEAD, &shape)?),
            false => None,
        };
        let table = source.take(self.embedding, &shape)?;
        let own = own.filter(|head| {
            self.config.tie_word_embeddings == Some(false)
                || head.dtype() != table.dtype()
                || head.bytes() != table.bytes()
        });
        let is_tied = own.is_none();
        let is_scaled = match (self.config.family, self.config.scale_decoder_outputs) {
            (Some(Family::Mt5), _) => false,
            (Some(Family::Umt5), _) | (_, None) => is_tied,
            (_, Some(scales)) => scales,
        };
        Ok(Head {
            weights: own.unwrap_or(table),
            is_tied,
            scale: match is_scaled {
                true => (self.config.d_model as f64).powf(-0.5) as f32,
                false => 1.0,
            },
        })
    }

    fn head_shape(&self) -> [usize; 2] {
        [self.config.vocab_size, self.config.d_model]
    }

    /// Calls `get` with name and shape of every tensor of a layer, and keeps what it returns.
    fn visit<T>(
        &self,
        layer: usize,
        get: &mut dyn FnMut(String, Vec<usize>) -> Result<T>,
    ) -> Result<LayerTensors<T>> {
        let config = &self.config;
        let (d_model, d_ff, inner) = (config.d_model, config.d_ff, config.inner_dim());
        let mut get = |part: &str, shape: &[usize]| get(tensor_name(layer, part), shape.to_vec());
        let mut three = |attention: &str| -> Result<[T; 3]> {
            let mut part = |letter| get(&format!("{attention}.{letter}"), &[inner, d_model]);
            Ok([part('q')?, part('k')?, part('v')?])
        };
        let qkv = three("0.SelfAttention")?;
        let cross_qkv = three("1.EncDecAttention")?;
        let inputs: &[&str] = match config.feed_forward.gated {
            true => &["wi_0", "wi_1"],
            false => &["wi"],
        };
        Ok(LayerTensors {
            attention_norm: get("0.layer_norm", &[d_model])?,
            qkv,
            output: get("0.SelfAttention.o", &[d_model, inner])?,
            bias: match self.per_layer_bias || layer == 0 {
                true => {
                    let shape = [config.relative_attention_num_buckets, config.num_heads];
                    Some(get(BIAS, &shape)?)
                }
                false => None,
            },
            cross_norm: get("1.layer_norm", &[d_model])?,
            cross_qkv,
            cross_output: get("1.EncDecAttention.o", &[d_model, inner])?,
            feed_forward_norm: get("2.layer_norm", &[d_model])?,
            feed_forward_in: inputs
                .iter()
                .map(|input| get(&format!("2.DenseReluDense.{input}"), &[d_ff, d_model]))
                .collect::<Result<_>>()?,
            feed_forward_out: get("2.DenseReluDense.wo", &[d_model, d_ff])?,
        })
    }
}

const BIAS: &str = "0.SelfAttention.relative_attention_bias";

struct LayerTensors<T> {
    attention_norm: T,
    qkv: [T; 3],
    output: T,
    bias: Option<T>,
    cross_norm: T,
    cross_qkv: [T; 3],
    cross_output: T,
    feed_forward_norm: T,
    feed_forward_in: Vec<T>,
    feed_forward_out: T,
}
