//! Which tensors an encoder is made of: names, shapes, and what may stand in for what.

use crate::checkpoint::TensorSource;
use crate::config::{Family, T5Config};
use crate::tensor::Tensor;
use crate::{Error, Result};

/// Where a model takes its tensors from; a checkpoint, or a map in a test.
pub trait TakeTensor {
    /// Whether there is a tensor `name`.
    fn contains(&self, name: &str) -> bool;

    /// Checks that all of these are there in these shapes, so that one error can name every
    /// gap.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Checkpoint`](crate::ErrorKind::Checkpoint) naming what is missing or has
    /// another shape.
    fn require(&mut self, wanted: &[(String, Vec<usize>)]) -> Result<()>;

    /// The tensor `name`, which must have `shape`.
    ///
    /// # Errors
    ///
    /// As [`TakeTensor::require`], and if the tensor cannot be read or is not of a float type.
    fn take(&mut self, name: &str, shape: &[usize]) -> Result<Tensor>;
}

impl TakeTensor for TensorSource<'_> {
    fn contains(&self, name: &str) -> bool {
        TensorSource::contains(self, name)
    }

    fn require(&mut self, wanted: &[(String, Vec<usize>)]) -> Result<()> {
        TensorSource::require(self, wanted.iter().map(|(name, shape)| (name, shape)))
    }

    fn take(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let tensor = TensorSource::take(self, name, shape)?;
        if !tensor.dtype().is_float() {
            return Err(Error::checkpoint(format!(
                "tensor `{name}` is of type {}, expected a weight in f32, f16 or bf16",
                tensor.dtype()
            )));
        }
        Ok(tensor)
    }
}

/// The tensors of one encoder layer, shapes as in the checkpoint (`[out, in]`).
#[derive(Debug)]
pub struct LayerWeights<T = Tensor> {
    /// Gain of the norm before attention, `[d_model]`.
    pub attention_norm: T,
    /// Query, key and value products, each `[n_heads * d_kv, d_model]`.
    pub qkv: [T; 3],
    /// Output product, `[d_model, n_heads * d_kv]`.
    pub output: T,
    /// Position bias `[num_buckets, n_heads]`: in layer 0, or in every layer (UMT5).
    pub bias: Option<T>,
    /// Gain of the norm before the feed-forward layer, `[d_model]`.
    pub feed_forward_norm: T,
    /// `wi`, or `wi_0` and `wi_1` if gated, each `[d_ff, d_model]`.
    pub feed_forward_in: Vec<T>,
    /// `wo`, `[d_model, d_ff]`.
    pub feed_forward_out: T,
}

/// Where the tensors of an encoder are, after [`EncoderWeights::check`] has found all of them.
///
/// They are taken one after another: a source that makes or reads a tensor when it is asked
/// need not hold the whole model beside what the backend makes of it.
#[derive(Clone, Debug)]
pub struct EncoderWeights {
    config: T5Config,
    /// Name of the embedding table, `[vocab_size, d_model]`.
    embedding: &'static str,
    per_layer_bias: bool,
}

/// Names under which checkpoints keep the embedding table. Most have several of them, all
/// equal; MADLAD has only the decoder's. The output head is never a stand-in.
const EMBEDDING_NAMES: [&str; 3] = [
    "shared.weight",
    "encoder.embed_tokens.weight",
    "decoder.embed_tokens.weight",
];

/// Gain of the last norm, `[d_model]`.
const FINAL_NORM: &str = "encoder.final_layer_norm.weight";

impl EncoderWeights {
    /// Finds every tensor of the encoder that `config` describes.
    ///
    /// # Errors
    ///
    /// As [`TakeTensor::require`]; also if the config and the tensors contradict each other
    /// on the gate or on which layers have a position bias.
    pub fn check(source: &mut dyn TakeTensor, config: &T5Config) -> Result<Self> {
        check_gate(source, config)?;
        let weights = EncoderWeights {
            per_layer_bias: per_layer_bias(source, config)?,
            embedding: EMBEDDING_NAMES
                .into_iter()
                .find(|name| source.contains(name))
                .unwrap_or(EMBEDDING_NAMES[0]),
            config: config.clone(),
        };
        let mut wanted = vec![
            (weights.embedding.to_owned(), weights.embedding_shape()),
            (FINAL_NORM.to_owned(), vec![config.d_model]),
        ];
        for layer in 0..config.num_layers {
            weights.visit(layer, &mut |name, shape| {
                wanted.push((name, shape));
                Ok(())
            })?;
        }
        source.require(&wanted)?;
        Ok(weights)
    }

    /// The embedding table, `[vocab_size, d_model]`.
    ///
    /// # Errors
    ///
    /// This and the two methods below: as [`TakeTensor::take`].
    pub fn take_embedding(&self, source: &mut dyn TakeTensor) -> Result<Tensor> {
        source.take(self.embedding, &self.embedding_shape())
    }

    /// The tensors of one layer.
    ///
    /// # Errors
    ///
    /// As [`EncoderWeights::take_embedding`].
    pub fn take_layer(&self, source: &mut dyn TakeTensor, layer: usize) -> Result<LayerWeights> {
        self.visit(layer, &mut |name, shape| source.take(&name, &shape))
    }

    /// The gain of the last norm, `[d_model]`.
    ///
    /// # Errors
    ///
    /// As [`EncoderWeights::take_embedding`].
    pub fn take_final_norm(&self, source: &mut dyn TakeTensor) -> Result<Tensor> {
        source.take(FINAL_NORM, &[self.config.d_model])
    }

    fn embedding_shape(&self) -> Vec<usize> {
        vec![self.config.vocab_size, self.config.d_model]
    }

    fn visit<T>(
        &self,
        layer: usize,
        get: &mut dyn FnMut(String, Vec<usize>) -> Result<T>,
    ) -> Result<LayerWeights<T>> {
        let has_bias = self.per_layer_bias || layer == 0;
        LayerWeights::visit(&self.config, layer, has_bias, get)
    }

    /// Whether a tensor that an encoder did not take belongs to the rest of a known model:
    /// the decoder, the head, further copies of the embedding.
    pub fn belongs_to_the_rest(name: &str) -> bool {
        EMBEDDING_NAMES.contains(&name)
            || name == "lm_head.weight"
            || name == "spiece_model"
            || name.starts_with("decoder.")
    }
}

impl<T> LayerWeights<T> {
    /// Calls `get` with name and shape of every tensor of a layer, and keeps what it returns.
    fn visit(
        config: &T5Config,
        layer: usize,
        has_bias: bool,
        get: &mut dyn FnMut(String, Vec<usize>) -> Result<T>,
    ) -> Result<Self> {
        let (d_model, d_ff, inner) = (config.d_model, config.d_ff, config.inner_dim());
        let mut get = |part: &str, shape: &[usize]| {
            get(
                format!("encoder.block.{layer}.layer.{part}.weight"),
                shape.to_vec(),
            )
        };
        let inputs: &[&str] = if config.feed_forward.gated {
            &["wi_0", "wi_1"]
        } else {
            &["wi"]
        };
        Ok(LayerWeights {
            attention_norm: get("0.layer_norm", &[d_model])?,
            qkv: [
                get("0.SelfAttention.q", &[inner, d_model])?,
                get("0.SelfAttention.k", &[inner, d_model])?,
                get("0.SelfAttention.v", &[inner, d_model])?,
            ],
            output: get("0.SelfAttention.o", &[d_model, inner])?,
            bias: if has_bias {
                let shape = [config.relative_attention_num_buckets, config.num_heads];
                Some(get("0.SelfAttention.relative_attention_bias", &shape)?)
            } else {
                None
            },
            feed_forward_norm: get("1.layer_norm", &[d_model])?,
            feed_forward_in: inputs
                .iter()
                .map(|input| get(&format!("1.DenseReluDense.{input}"), &[d_ff, d_model]))
                .collect::<Result<_>>()?,
            feed_forward_out: get("1.DenseReluDense.wo", &[d_model, d_ff])?,
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
