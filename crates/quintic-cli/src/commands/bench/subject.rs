//! The model that is measured: a synthetic one or one from files, whole or cut.

use std::collections::HashSet;

use quintic::backend::PackedWeights;
use quintic::checkpoint::{Checkpoint, Packed, TensorSource};
use quintic::config::T5Config;
use quintic::model::TakeTensor;
use quintic::synthetic::{self, SyntheticWeights};
use quintic::{
    BackendKind, Compute, ComputeType, DType, Error, ErrorKind, Keep, MatmulPrecision, ProductKind,
    Result, Seq2Seq, Site, Stack, Tensor, TextEncoder, WeightType, config_of,
};

use crate::args::{BenchArgs, TokenizerKind};
use crate::model;

pub(super) enum Subject {
    Synthetic { config: T5Config, stored: DType },
    Files(Box<Checkpoint>, T5Config),
}

/// What is loaded of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Half {
    Encoder,
    Both,
}

pub(super) enum Model {
    Encoder(TextEncoder),
    Both(Seq2Seq),
}

/// A model, and what running it reads.
pub(super) struct Loaded {
    pub(super) model: Model,
    pub(super) weights: WeightBytes,
}

impl Loaded {
    pub(super) fn encoder(&self) -> &TextEncoder {
        match &self.model {
            Model::Encoder(encoder) => encoder,
            Model::Both(both) => both.encoder(),
        }
    }
}

/// Bytes of the products, norms and bias tables as they are kept in memory. Without the
/// embedding table, of which a pass reads a few rows, unless it is the output head too.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct WeightBytes {
    /// Read once a source: the encoder, and what makes cross-attention's keys and values.
    pub(super) once: u64,
    /// Read once a step of the decoder.
    pub(super) step: u64,
}

impl Subject {
    pub(super) fn of(shape: &str, args: &BenchArgs) -> Result<Self> {
        let files = &args.files;
        if files.tokenizer.is_some() || files.tokenizer_kind != TokenizerKind::Auto {
            return Err(Error::input(
                "`--tokenizer` and `--tokenizer-kind` have nothing to do with `bench`",
            ));
        }
        if let Some(config) = synthetic::config(shape) {
            for (flag, is_given) in [
                ("--subfolder", files.subfolder.is_some()),
                ("--variant", files.variant.is_some()),
                ("--prefix", files.prefix.is_some()),
                ("--revision", files.revision.is_some()),
                ("--cache-dir", files.cache_dir.is_some()),
                ("--download", files.download),
            ] {
                if is_given {
                    return Err(Error::input(format!(
                        "`{flag}` has nothing to do with the synthetic shape `{shape}`"
                    ))
                    .hint(format!("a folder of that name is `./{shape}`")));
                }
            }
            let stored = match args.stored.as_deref().or(args.compute.dtype.as_deref()) {
                Some("bf16") => DType::BF16,
                Some("f16") => DType::F16,
                _ => DType::F32,
            };
            return Ok(Subject::Synthetic { config, stored });
        }
        if args.stored.is_some() {
            return Err(Error::input(
                "`--stored` is for synthetic shapes, a model's files have their own type",
            ));
        }
        let checkpoint = model::open(shape, files).map_err(no_such_shape)?;
        let config = config_of(&checkpoint)?;
        Ok(Subject::Files(Box::new(checkpoint), config))
    }

    /// How the model is packed, if it is.
    pub(super) fn packed(&self) -> Option<&Packed> {
        match self {
            Subject::Synthetic { .. } => None,
            Subject::Files(checkpoint, _) => checkpoint.packed(),
        }
    }

    /// Layers of the whole model.
    pub(super) fn n_layers(&self) -> usize {
        let (Subject::Synthetic { config, .. } | Subject::Files(_, config)) = self;
        config.num_layers
    }

    /// The config of the first `layers` layers.
    ///
    /// # Errors
    ///
    /// If the model has fewer.
    pub(super) fn config(&self, layers: Option<usize>) -> Result<T5Config> {
        let (Subject::Synthetic { config, .. } | Subject::Files(_, config)) = self;
        let mut config = config.clone();
        if let Some(layers) = layers {
            if layers > config.num_layers {
                return Err(Error::input(format!(
                    "found `--layers {layers}`, the model has {}",
                    config.num_layers
                )));
            }
            config.num_layers = layers;
            config.num_decoder_layers = layers.min(config.num_decoder_layers);
        }
        Ok(config)
    }

    /// A small part of a model: few layers, and where values may be left out, few tokens.
    pub(super) fn slice(&self, config: &T5Config, layers: usize) -> T5Config {
        let mut slice = config.clone();
        slice.num_layers = layers.min(config.num_layers);
        slice.num_decoder_layers = layers.min(config.num_decoder_layers);
        if let Subject::Synthetic { .. } = self {
            slice.vocab_size = config.vocab_size.min(1000);
        }
        slice
    }

    /// Loads the part of the model that `config` describes.
    pub(super) fn load(
        &self,
        config: T5Config,
        half: Half,
        backend: BackendKind,
        compute: &Compute,
    ) -> Result<Loaded> {
        let load = |source: &mut dyn TakeTensor| {
            let kept = match backend {
                BackendKind::Reference => Kept::AsStored,
                _ if compute.dtype != ComputeType::F32
                    || compute.matmul_precision == MatmulPrecision::Medium =>
                {
                    Kept::Halved
                }
                _ => Kept::AsStored,
            };
            let mut source = Counting::new(source, kept, compute);
            let model = match half {
                Half::Encoder => Model::Encoder(TextEncoder::from_source(
                    config.clone(),
                    &mut source,
                    backend,
                    compute,
                )?),
                Half::Both => Model::Both(Seq2Seq::from_source(
                    config.clone(),
                    &mut source,
                    backend,
                    compute,
                )?),
            };
            let weights = source.weights(&model);
            Ok(Loaded { model, weights })
        };
        match self {
            Subject::Synthetic { stored, .. } => {
                load(&mut SyntheticWeights::new(config.clone(), *stored))
            }
            Subject::Files(checkpoint, whole) => {
                let mut source = TensorSource::new(checkpoint, "config.json");
                let loaded = load(&mut source)
                    .map_err(|e: Error| e.at_if_placeless(checkpoint.path().display()))?;
                // Layers that the config does not know mean that it is another model's.
                if config.num_layers == whole.num_layers {
                    source.finish(|name| {
                        !name.starts_with("encoder.block.")
                            && (half == Half::Encoder || !name.starts_with("decoder.block."))
                    })?;
                }
                Ok(loaded)
            }
        }
    }
}

/// What is not found as a model may be a misspelt shape.
fn no_such_shape(error: Error) -> Error {
    if error.kind() != ErrorKind::NotFound {
        return error;
    }
    let known: Vec<_> = synthetic::shapes().collect();
    let known = format!("synthetic shapes are {}", known.join(", "));
    let hint = match error.hint_text() {
        Some(hint) => format!("{known}; for a model, {hint}"),
        None => format!("{known}; anything else is a model"),
    };
    let message = Error::new(error.kind(), error.message());
    match error.place() {
        Some(place) => message.at(place).hint(hint),
        None => message.hint(hint),
    }
}

/// How a backend keeps weights.
#[derive(Clone, Copy)]
enum Kept {
    /// In the type of the files.
    AsStored,
    /// In 16 bits.
    Halved,
}

/// Counts what is taken.
struct Counting<'a> {
    source: &'a mut dyn TakeTensor,
    kept: Kept,
    integers: WeightType,
    keep: Keep,
    weights: WeightBytes,
    /// Of the embedding table, if it is the head.
    table: u64,
    /// Tables are taken twice, for looking up and for the head.
    taken: HashSet<String>,
}

impl<'a> Counting<'a> {
    fn new(source: &'a mut dyn TakeTensor, kept: Kept, compute: &Compute) -> Self {
        Counting {
            source,
            kept,
            integers: compute.weights,
            keep: compute.keep,
            weights: WeightBytes::default(),
            table: 0,
            taken: HashSet::new(),
        }
    }

    fn weights(&self, model: &Model) -> WeightBytes {
        let mut weights = self.weights;
        match model {
            Model::Encoder(_) => {}
            // A head that repeats the table is stored, and counted, by itself.
            Model::Both(both) if both.is_tied() && !self.taken.contains(HEAD) => {
                weights.step += self.table;
            }
            Model::Both(_) => {}
        }
        weights
    }

    fn count(&mut self, name: &str, bytes: u64) {
        let is_cross = name.contains("EncDecAttention.k") || name.contains("EncDecAttention.v");
        if name == HEAD || name.starts_with("decoder.") && !is_cross && name != DECODER_TABLE {
            self.weights.step += bytes;
        } else if name.starts_with("encoder.block.") || name == ENCODER_NORM || is_cross {
            self.weights.once += bytes;
        } else {
            self.table = bytes;
        }
    }
}

/// Bytes of so many weights in integers; factors of columns are too few to count.
fn integer_bytes(weights: WeightType, n: u64) -> Option<u64> {
    match weights {
        WeightType::AsStored => None,
        WeightType::Int8 | WeightType::W8A8 => Some(n),
        // Half a byte each, and a multiplier for 32 of them.
        WeightType::Int4 => Some(n / 2 + n / 32),
    }
}

/// Which product a tensor of two dimensions belongs to; a table counts as the head that it may be.
fn site_of(name: &str) -> Site {
    let part = name.trim_end_matches(".weight");
    let kind = match part.rsplit('.').next() {
        Some("q" | "k" | "v") => ProductKind::Qkv,
        Some("o") => ProductKind::O,
        Some("wi" | "wi_0" | "wi_1") => ProductKind::Wi,
        Some("wo") => ProductKind::Wo,
        _ => return Site::HEAD,
    };
    let stack = match name.starts_with("encoder.") {
        true => Stack::Encoder,
        false => Stack::Decoder,
    };
    // Names are `encoder.block.3.layer...`: what backends are asked for has a number here.
    let layer = name.split('.').nth(2).and_then(|layer| layer.parse().ok());
    let layer = layer.unwrap_or(0);
    Site { stack, layer, kind }
}

const HEAD: &str = "lm_head.weight";
const DECODER_TABLE: &str = "decoder.embed_tokens.weight";
const ENCODER_NORM: &str = "encoder.final_layer_norm.weight";

impl TakeTensor for Counting<'_> {
    fn contains(&self, name: &str) -> bool {
        self.source.contains(name)
    }

    fn require(&mut self, wanted: &[(String, Vec<usize>)]) -> Result<()> {
        self.source.require(wanted)
    }

    fn take(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let tensor = self.source.take(name, shape)?;
        let is_product = shape.len() == 2 && !name.contains("_bias.");
        let n = tensor.n_elements() as u64;
        let in_integers = match is_product && !self.keep.contains(site_of(name)) {
            true => integer_bytes(self.integers, n),
            false => None,
        };
        let bytes = match (in_integers, self.kept, is_product) {
            (Some(bytes), ..) => bytes,
            (None, Kept::Halved, true) if !tensor.dtype().is_quantized() => 2 * n,
            _ => tensor.bytes().len() as u64,
        };
        if self.taken.insert(name.to_owned()) {
            self.count(name, bytes);
        }
        Ok(tensor)
    }

    fn packed(&self) -> Option<&Packed> {
        self.source.packed()
    }

    fn take_packed(&mut self, name: &str) -> Result<PackedWeights> {
        let weights = self.source.take_packed(name)?;
        self.count(name, weights.bytes.n_elements() as u64);
        Ok(weights)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_step_reads_is_counted_apart() {
        let compute = Compute::default();
        let bytes = |name: &str, half| {
            let config = synthetic::config(name).unwrap();
            let mut slice = config.clone();
            (slice.num_layers, slice.num_decoder_layers) = (2, 3);
            slice.vocab_size = 1000;
            let subject = Subject::Synthetic {
                config,
                stored: DType::F32,
            };
            let loaded = subject
                .load(slice, half, BackendKind::Cpu, &compute)
                .unwrap();
            loaded.weights
        };
        // d_model 128, inner 128, d_ff 256, 2 heads, 32 buckets; gated, with a head of its own.
        let encoder = 4 * (2 * (4 * 128 * 128 + 3 * 128 * 256 + 2 * 128) + 32 * 2 + 128);
        let alone = bytes("tiny", Half::Encoder);
        assert_eq!((alone.once, alone.step), (encoder, 0));
        let both = bytes("tiny", Half::Both);
        assert_eq!(both.once, encoder + 4 * 3 * 2 * 128 * 128);
        let layer = 6 * 128 * 128 + 3 * 128 * 256 + 3 * 128;
        assert_eq!(both.step, 4 * (3 * layer + 32 * 2 + 128 + 1000 * 128));
        // Not gated, 8 heads of 64; the embedding is the head.
        let tied = bytes("t5-small", Half::Both);
        let layer = 6 * 512 * 512 + 2 * 512 * 2048 + 3 * 512;
        assert_eq!(tied.step, 4 * (3 * layer + 32 * 8 + 512 + 1000 * 512));
    }
}
