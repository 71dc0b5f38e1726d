//! Which tensors an encoder is made of: names, shapes, and what may stand in for what.

use crate::backend::{PackedWeights, Weights};
use crate::checkpoint::{Packed, TensorSource};
use crate::config::{Family, T5Config};
use crate::keep::{Site, Stack};
use crate::tensor::Tensor;
use crate::weight_type::ProductKind;
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

    /// How the source's products are packed, if they are.
    fn packed(&self) -> Option<&Packed> {
        None
    }

    /// The packed product `name`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Checkpoint`](crate::ErrorKind::Checkpoint) if it is not there or not packed.
    fn take_packed(&mut self, name: &str) -> Result<PackedWeights> {
        Err(Error::checkpoint("nothing is packed").at(format!("tensor `{name}`")))
    }
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
        if tensor.dtype().fp8().is_some() {
            return checked_fp8(self, name, tensor);
        }
        if !tensor.dtype().is_float() {
            return Err(Error::checkpoint(format!(
                "tensor `{name}` is of type {}, expected a weight in a float type or in blocks",
                tensor.dtype()
            )));
        }
        Ok(tensor)
    }

    fn packed(&self) -> Option<&Packed> {
        TensorSource::packed(self)
    }

    fn take_packed(&mut self, name: &str) -> Result<PackedWeights> {
        TensorSource::take_packed(self, name)
    }
}

/// An embedding table may have NaN among its 8-bit floats, which are read as 0, as ComfyUI does:
/// published files have some. In any other weight they mean damage.
fn checked_fp8(source: &TensorSource<'_>, name: &str, tensor: Tensor) -> Result<Tensor> {
    if EMBEDDING_NAMES.contains(&name) {
        return Ok(tensor.with_nan_as_zero());
    }
    match tensor.count_special() {
        0 => Ok(tensor),
        n => Err(Error::checkpoint(format!(
            "{n} of {} values are NaN or infinite, expected finite weights",
            tensor.n_elements()
        ))
        .at(format!("tensor `{name}`"))
        .at(source.checkpoint().path().display())),
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

/// The products of a layer, each of which a backend packs as one matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Product {
    /// Query, key and value.
    Qkv,
    /// Of attention.
    Output,
    /// `wi`, or `wi_0` and `wi_1` if gated.
    FeedForwardIn,
    /// `wo`.
    FeedForwardOut,
}

impl Product {
    /// Every product.
    pub const ALL: [Product; 4] = [
        Product::Qkv,
        Product::Output,
        Product::FeedForwardIn,
        Product::FeedForwardOut,
    ];

    /// Name of its packed matrix, such as `encoder.block.0.qkv`.
    pub fn name(self, layer: usize) -> String {
        let product = match self {
            Product::Qkv => "qkv",
            Product::Output => "output",
            Product::FeedForwardIn => "feed_forward_in",
            Product::FeedForwardOut => "feed_forward_out",
        };
        format!("encoder.block.{layer}.{product}")
    }

    /// What it is to a backend.
    pub fn site(self, layer: usize) -> Site {
        Site {
            stack: Stack::Encoder,
            layer,
            kind: match self {
                Product::Qkv => ProductKind::Qkv,
                Product::Output => ProductKind::O,
                Product::FeedForwardIn => ProductKind::Wi,
                Product::FeedForwardOut => ProductKind::Wo,
            },
        }
    }

    /// Columns of result and input, and whether it is gated.
    fn shape(self, config: &T5Config) -> (usize, usize, bool) {
        let (d_model, d_ff, inner) = (config.d_model, config.d_ff, config.inner_dim());
        match self {
            Product::Qkv => (3 * inner, d_model, false),
            Product::Output => (d_model, inner, false),
            Product::FeedForwardIn => (d_ff, d_model, config.feed_forward.gated),
            Product::FeedForwardOut => (d_model, d_ff, false),
        }
    }
}

/// What a backend prepares a layer from.
#[derive(Debug)]
pub struct LayerParts {
    /// Gain of the norm before attention; `None` if it is folded into the product.
    pub attention_norm: Option<Tensor>,
    /// Query, key and value.
    pub qkv: Part,
    /// Output of attention.
    pub output: Part,
    /// Position bias, if the layer has a table of its own.
    pub bias: Option<Tensor>,
    /// Gain of the norm before the feed-forward layer; `None` if it is folded.
    pub feed_forward_norm: Option<Tensor>,
    /// Into the feed-forward layer.
    pub feed_forward_in: Part,
    /// Out of it.
    pub feed_forward_out: Part,
}

impl LayerParts {
    /// The weights of a product.
    pub fn part(&self, product: Product) -> &Part {
        match product {
            Product::Qkv => &self.qkv,
            Product::Output => &self.output,
            Product::FeedForwardIn => &self.feed_forward_in,
            Product::FeedForwardOut => &self.feed_forward_out,
        }
    }

    /// All but the products.
    pub fn others(&self) -> impl Iterator<Item = &Tensor> {
        [&self.attention_norm, &self.bias, &self.feed_forward_norm]
            .into_iter()
            .flatten()
    }
}

/// Weights of a product, and the gain that is to be folded into them.
#[derive(Debug)]
pub struct Part {
    /// The weights.
    pub weights: Weights,
    /// Multiplies each column of the product's input.
    pub gain: Option<Tensor>,
}

impl From<Weights> for Part {
    fn from(weights: Weights) -> Self {
        Part {
            weights,
            gain: None,
        }
    }
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
    /// If products are packed: whether gains are folded into them.
    packed: Option<bool>,
}

/// Names under which checkpoints keep the embedding table. Most have several of them, all
/// equal; MADLAD has only the decoder's. The output head is never a stand-in.
pub(crate) const EMBEDDING_NAMES: [&str; 3] = [
    "shared.weight",
    "encoder.embed_tokens.weight",
    "decoder.embed_tokens.weight",
];

/// Gain of the last norm, `[d_model]`.
const FINAL_NORM: &str = "encoder.final_layer_norm.weight";

const ATTENTION_NORM: &str = "0.layer_norm";
const FEED_FORWARD_NORM: &str = "1.layer_norm";
const BIAS: &str = "0.SelfAttention.relative_attention_bias";

fn tensor_name(layer: usize, part: &str) -> String {
    format!("encoder.block.{layer}.layer.{part}.weight")
}

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
            embedding: embedding_name(source),
            config: config.clone(),
            packed: source.packed().map(|packed| packed.fold_norm_gains),
        };
        let mut wanted = vec![
            (weights.embedding.to_owned(), weights.embedding_shape()),
            (FINAL_NORM.to_owned(), vec![config.d_model]),
        ];
        for layer in 0..config.num_layers {
            if let Some(folded) = weights.packed {
                weights.want_packed(source, layer, folded, &mut wanted)?;
                continue;
            }
            weights.visit(layer, &mut |name, shape| {
                wanted.push((name, shape));
                Ok(())
            })?;
        }
        source.require(&wanted)?;
        Ok(weights)
    }

    /// Checks a layer's packed products, and adds to `wanted` what else it needs.
    fn want_packed(
        &self,
        source: &dyn TakeTensor,
        layer: usize,
        folded: bool,
        wanted: &mut Vec<(String, Vec<usize>)>,
    ) -> Result<()> {
        for product in Product::ALL {
            let name = product.name(layer);
            let (columns, depth, gated) = product.shape(&self.config);
            let place = || format!("tensor `{name}`");
            if !source.contains(&name) {
                // To be named with everything else that is missing.
                wanted.push((name, Vec::new()));
                continue;
            }
            let Some(found) = source
                .packed()
                .and_then(|packed| packed.matrices.get(&name))
            else {
                return Err(
                    Error::checkpoint("the metadata does not say how it is packed").at(place()),
                );
            };
            if (found.columns, found.depth, found.gated) != (columns, depth, gated) {
                let kind = |gated| if gated { "gated" } else { "ungated" };
                return Err(Error::checkpoint(format!(
                    "packed as {} x {}, {}, expected {columns} x {depth}, {} from config.json",
                    found.columns,
                    found.depth,
                    kind(found.gated),
                    kind(gated),
                ))
                .at(place())
                .hint("do the weights and config.json belong to the same model?"));
            }
        }
        if !folded {
            let d_model = vec![self.config.d_model];
            wanted.push((tensor_name(layer, ATTENTION_NORM), d_model.clone()));
            wanted.push((tensor_name(layer, FEED_FORWARD_NORM), d_model));
        }
        if self.has_bias(layer) {
            wanted.push((tensor_name(layer, BIAS), self.bias_shape()));
        }
        Ok(())
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

    /// The parts of one layer, as they are stored: packed, or in several tensors. With `folds`
    /// the gains of its norms go with the products behind them.
    ///
    /// # Errors
    ///
    /// As [`EncoderWeights::take_embedding`];
    /// [`ErrorKind::Input`](crate::ErrorKind::Input) if a packed model folds and is not to, or
    /// the other way round.
    pub fn take_parts(
        &self,
        source: &mut dyn TakeTensor,
        layer: usize,
        folds: bool,
    ) -> Result<LayerParts> {
        if let Some(folded) = self.packed {
            if folded != folds {
                return Err(Error::input(format!(
                    "`fold_norm_gains` is `{folds}`, but the model is packed for `{folded}`"
                )));
            }
            return self.take_packed_parts(source, layer, folded);
        }
        let weights = self.take_layer(source, layer)?;
        let mut inputs = weights.feed_forward_in;
        let inputs = match (inputs.pop(), inputs.pop()) {
            (Some(up), Some(gate)) => Weights::Gated { gate, up },
            (only, _) => Weights::Stacked(only.into_iter().collect()),
        };
        let (attention_norm, qkv_gain) = split_gain(weights.attention_norm, folds);
        let (feed_forward_norm, inputs_gain) = split_gain(weights.feed_forward_norm, folds);
        Ok(LayerParts {
            attention_norm,
            qkv: Part {
                weights: Weights::Stacked(weights.qkv.into()),
                gain: qkv_gain,
            },
            output: Weights::Stacked(vec![weights.output]).into(),
            bias: weights.bias,
            feed_forward_norm,
            feed_forward_in: Part {
                weights: inputs,
                gain: inputs_gain,
            },
            feed_forward_out: Weights::Stacked(vec![weights.feed_forward_out]).into(),
        })
    }

    fn take_packed_parts(
        &self,
        source: &mut dyn TakeTensor,
        layer: usize,
        folded: bool,
    ) -> Result<LayerParts> {
        let d_model = [self.config.d_model];
        let mut gain = |part: &str| match folded {
            true => Ok(None),
            false => source.take(&tensor_name(layer, part), &d_model).map(Some),
        };
        let attention_norm = gain(ATTENTION_NORM)?;
        let feed_forward_norm = gain(FEED_FORWARD_NORM)?;
        let bias = match self.has_bias(layer) {
            true => Some(source.take(&tensor_name(layer, BIAS), &self.bias_shape())?),
            false => None,
        };
        let mut part = |product: Product| {
            let packed = source.take_packed(&product.name(layer))?;
            Ok::<Part, Error>(Weights::Packed(packed).into())
        };
        Ok(LayerParts {
            attention_norm,
            qkv: part(Product::Qkv)?,
            output: part(Product::Output)?,
            bias,
            feed_forward_norm,
            feed_forward_in: part(Product::FeedForwardIn)?,
            feed_forward_out: part(Product::FeedForwardOut)?,
        })
    }

    fn has_bias(&self, layer: usize) -> bool {
        self.per_layer_bias || layer == 0
    }

    fn bias_shape(&self) -> Vec<usize> {
        let config = &self.config;
        vec![config.relative_attention_num_buckets, config.num_heads]
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
        LayerWeights::visit(&self.config, layer, self.has_bias(layer), get)
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
        let mut get = |part: &str, shape: &[usize]| get(tensor_name(layer, part), shape.to_vec());
        let inputs: &[&str] = if config.feed_forward.gated {
            &["wi_0", "wi_1"]
        } else {
            &["wi"]
        };
        Ok(LayerWeights {
            attention_norm: get(ATTENTION_NORM, &[d_model])?,
            qkv: [
                get("0.SelfAttention.q", &[inner, d_model])?,
                get("0.SelfAttention.k", &[inner, d_model])?,
                get("0.SelfAttention.v", &[inner, d_model])?,
            ],
            output: get("0.SelfAttention.o", &[d_model, inner])?,
            bias: if has_bias {
                let shape = [config.relative_attention_num_buckets, config.num_heads];
                Some(get(BIAS, &shape)?)
            } else {
                None
            },
            feed_forward_norm: get(FEED_FORWARD_NORM, &[d_model])?,
            feed_forward_in: inputs
                .iter()
                .map(|input| get(&format!("1.DenseReluDense.{input}"), &[d_ff, d_model]))
                .collect::<Result<_>>()?,
            feed_forward_out: get("1.DenseReluDense.wo", &[d_model, d_ff])?,
        })
    }
}

/// Under which name the embedding table is there.
pub(super) fn embedding_name(source: &dyn TakeTensor) -> &'static str {
    EMBEDDING_NAMES
        .into_iter()
        .find(|name| source.contains(name))
        .unwrap_or(EMBEDDING_NAMES[0])
}

/// A norm's gain by itself, and the gain that goes with the product behind it.
pub(super) fn split_gain(gain: Tensor, folds: bool) -> (Option<Tensor>, Option<Tensor>) {
    match folds {
        true => (None, Some(gain)),
        false => (Some(gain), None),
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
