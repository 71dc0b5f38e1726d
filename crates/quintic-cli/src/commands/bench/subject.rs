//! The model that is measured: a synthetic one or one from files, whole or cut.

use quintic::backend::PackedWeights;
use quintic::checkpoint::{Checkpoint, Packed, TensorSource};
use quintic::config::T5Config;
use quintic::model::TakeTensor;
use quintic::synthetic::{self, SyntheticWeights};
use quintic::{
    BackendKind, Compute, ComputeType, DType, Error, ErrorKind, MatmulPrecision, Result, Tensor,
    TextEncoder, config_of,
};

use crate::args::{BenchArgs, TokenizerKind};
use crate::model;

pub(super) enum Subject {
    Synthetic { config: T5Config, stored: DType },
    Files(Box<Checkpoint>, T5Config),
}

/// An encoder, and what one pass over it reads.
pub(super) struct Loaded {
    pub(super) encoder: TextEncoder,
    /// Bytes of the products, norms and bias tables as they are kept in memory. Without the
    /// embedding table, of which a pass reads a few rows.
    pub(super) weight_bytes: u64,
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
        }
        Ok(config)
    }

    /// A small part of a model: few layers, and where values may be left out, few tokens.
    pub(super) fn slice(&self, config: &T5Config, layers: usize) -> T5Config {
        let mut slice = config.clone();
        slice.num_layers = layers.min(config.num_layers);
        if let Subject::Synthetic { .. } = self {
            slice.vocab_size = config.vocab_size.min(1000);
        }
        slice
    }

    /// Loads the part of the model that `config` describes.
    pub(super) fn load(
        &self,
        config: T5Config,
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
            let mut source = Counting {
                source,
                kept,
                bytes: 0,
            };
            let encoder = TextEncoder::from_source(config.clone(), &mut source, backend, compute)?;
            Ok(Loaded {
                encoder,
                weight_bytes: source.bytes,
            })
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
                    source.finish(|name| !name.starts_with("encoder.block."))?;
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

/// Counts what is taken but the embedding table.
struct Counting<'a> {
    source: &'a mut dyn TakeTensor,
    kept: Kept,
    bytes: u64,
}

impl TakeTensor for Counting<'_> {
    fn contains(&self, name: &str) -> bool {
        self.source.contains(name)
    }

    fn require(&mut self, wanted: &[(String, Vec<usize>)]) -> Result<()> {
        self.source.require(wanted)
    }

    fn take(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let tensor = self.source.take(name, shape)?;
        let is_layer = name.starts_with("encoder.block.");
        if is_layer || name == "encoder.final_layer_norm.weight" {
            let is_product = is_layer && shape.len() == 2 && !name.contains("_bias.");
            let size = match (self.kept, is_product) {
                (Kept::Halved, true) => 2,
                _ => tensor.dtype().size_bytes(),
            };
            self.bytes += (tensor.n_elements() * size) as u64;
        }
        Ok(tensor)
    }

    fn packed(&self) -> Option<&Packed> {
        self.source.packed()
    }

    fn take_packed(&mut self, name: &str) -> Result<PackedWeights> {
        let weights = self.source.take_packed(name)?;
        self.bytes += weights.bytes.n_elements() as u64;
        Ok(weights)
    }
}
