//! From a path to a backend, and to what is built on it of a checkpoint's tensors.

use std::path::{Path, PathBuf};

use crate::backend::Backend;
use crate::backend::cpu::Cpu;
use crate::backend::cuda::{self, Cuda};
use crate::backend::reference::{Reference, refuse_packed};
use crate::checkpoint::hub::{self, HubOptions};
use crate::checkpoint::{Checkpoint, OpenOptions, TensorSource, infer_shape};
use crate::compute::{Compute, ComputeChoice};
use crate::config::T5Config;
use crate::model::TakeTensor;
use crate::{Error, ErrorKind, Result};

/// Which backend computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum BackendKind {
    /// The kernels of this machine's CPU, see [`crate::backend::cpu`].
    #[default]
    Cpu,
    /// Plain loops with f64 sums, see [`crate::backend::reference`].
    Reference,
    /// The CUDA device of that number, see [`crate::backend::cuda`].
    Cuda(usize),
}

impl BackendKind {
    /// Every backend of this build, whether or not this machine can run it; of several devices
    /// the first.
    pub const ALL: [BackendKind; 3] = [
        BackendKind::Cpu,
        BackendKind::Cuda(0),
        BackendKind::Reference,
    ];

    /// Its name, such as `cpu`, without a device's number.
    pub fn name(self) -> &'static str {
        match self {
            BackendKind::Cpu => "cpu",
            BackendKind::Reference => "reference",
            BackendKind::Cuda(_) => "cuda",
        }
    }

    /// Whether this machine can run it.
    ///
    /// # Errors
    ///
    /// The reason why it cannot, most often
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported).
    pub fn available(self) -> Result<()> {
        let compute = Compute::default();
        match self {
            BackendKind::Cpu => Cpu::new(&compute).map(drop),
            BackendKind::Reference => Ok(()),
            BackendKind::Cuda(ordinal) => open_cuda(ordinal, &compute).map(drop),
        }
    }

    /// The backend of a name.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) if this build has none of it.
    pub fn parse(name: &str) -> Result<Self> {
        let device = |number: &str| number.parse().ok().map(BackendKind::Cuda);
        match name.split_once(':') {
            None if name == "cpu" => Some(BackendKind::Cpu),
            None if name == "reference" => Some(BackendKind::Reference),
            None if name == "cuda" => Some(BackendKind::Cuda(0)),
            Some(("cuda", number)) => device(number),
            _ => None,
        }
        .ok_or_else(|| {
            Error::unsupported(format!(
                "there is no backend `{name}` in this build, expected `cpu`, `reference`, `cuda` \
                 or, with a device's number, `cuda:1`"
            ))
        })
    }

    /// Whether it reads models that are [packed](crate::packed).
    pub fn reads_packed(self) -> bool {
        self == BackendKind::Cpu
    }
}

/// Choices that a model's path leaves open.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// Files of a checkpoint: variant, subfolder, prefix of the names.
    pub files: OpenOptions,
    /// Revision, cache and download of a repository id; variant and subfolder are those of
    /// `files`.
    pub hub: HubOptions,
    /// What computes.
    pub backend: BackendKind,
    /// How it computes.
    pub compute: ComputeChoice,
}

impl LoadOptions {
    /// Opens the files of `model`: a folder, a weight file or a cached repository id.
    ///
    /// # Errors
    ///
    /// As [`hub::resolve`] and [`Checkpoint::open`].
    pub fn open(&self, model: &str) -> Result<Checkpoint> {
        // What is downloaded is what is opened afterwards.
        let hub = HubOptions {
            variant: self.files.variant.clone(),
            subfolder: self.files.subfolder.clone(),
            ..self.hub.clone()
        };
        Checkpoint::open(hub::resolve(model, &hub)?, &self.files)
    }
}

/// What is built of a model's tensors on a backend, once it is known which.
pub(crate) trait Build {
    type Made;

    fn build<B: Backend + 'static>(
        self,
        backend: B,
        config: &T5Config,
        source: &mut dyn TakeTensor,
    ) -> Result<Self::Made>;
}

/// Opens a backend and builds on it; refuses products that are packed for another one.
pub(crate) fn build_on<F: Build>(
    kind: BackendKind,
    compute: &Compute,
    build: F,
    config: &T5Config,
    source: &mut dyn TakeTensor,
) -> Result<F::Made> {
    if let Some(packed) = source.packed() {
        match kind {
            BackendKind::Cpu => packed.check(compute)?,
            BackendKind::Reference => return Err(refuse_packed()),
            BackendKind::Cuda(_) => return Err(cuda::refuse_packed()),
        }
    }
    match kind {
        BackendKind::Cpu => build.build(Cpu::new(compute)?, config, source),
        BackendKind::Reference if *compute != Compute::default() => Err(Error::unsupported(
            "the reference backend computes in its one way only, but `dtype`, \
             `matmul_precision`, `threads`, `fold_norm_gains`, `weights` or `keep` was chosen",
        )),
        BackendKind::Reference => build.build(Reference, config, source),
        BackendKind::Cuda(_) if compute.threads.is_some() => Err(Error::unsupported(
            "the cuda backend computes on a device, but `threads` was chosen",
        )),
        BackendKind::Cuda(ordinal) => build.build(open_cuda(ordinal, compute)?, config, source),
    }
}

/// What a loaded model says of its files.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    /// Folder of config.json, where a sentence-transformers model has its modules.
    pub(crate) folder: Option<PathBuf>,
    /// Where the model was found on this machine.
    pub(crate) path: PathBuf,
    pub(crate) unused_tensors: Vec<String>,
    /// Of the tensors that were used.
    pub(crate) weight_bytes: u64,
}

impl Files {
    /// Of a model whose tensors come from anywhere.
    pub(crate) fn none() -> Self {
        Files {
            folder: None,
            path: PathBuf::new(),
            unused_tensors: Vec::new(),
            weight_bytes: 0,
        }
    }
}

/// Builds a checkpoint's model with `build`, and tells of its files.
pub(crate) fn from_checkpoint<M>(
    checkpoint: &Checkpoint,
    build: impl FnOnce(&T5Config, &mut dyn TakeTensor) -> Result<M>,
) -> Result<(M, T5Config, Files)> {
    let config = config_of(checkpoint)?;
    let mut source = TensorSource::new(checkpoint, shapes_from(checkpoint));
    let made = build(&config, &mut source).map_err(|e| place(e, checkpoint))?;
    // A surplus layer of the encoder means that the config is another model's.
    let unused = source.finish(|name| !name.starts_with("encoder.block."))?;
    let weight_bytes = checkpoint
        .entries()
        .filter(|(name, _)| unused.binary_search_by(|n| n.as_str().cmp(name)).is_err())
        .map(|(_, entry)| entry.n_bytes())
        .sum();
    let folder = checkpoint.config_path().and_then(Path::parent);
    let files = Files {
        folder: folder.map(Path::to_owned),
        path: checkpoint.path().to_owned(),
        unused_tensors: unused,
        weight_bytes,
    };
    Ok((made, config, files))
}

pub(crate) fn open_cuda(ordinal: usize, compute: &Compute) -> Result<Cuda> {
    let device = quintic_cuda::driver::open(ordinal)
        .map_err(|error| cuda::failed(error).at(format!("backend `cuda:{ordinal}`")))?;
    Cuda::new(device, compute)
}

/// Adds the file, if the error does not name it. A backend knows a packed tensor's name alone;
/// other errors with a place name the shard.
fn place(error: Error, checkpoint: &Checkpoint) -> Error {
    let path = checkpoint.path().display().to_string();
    let names_file = |place: &str| checkpoint.packed().is_none() || place.contains(&path);
    match error.place() {
        Some(place) if names_file(place) => error,
        _ => error.at(path),
    }
}

/// The config beside the weights, or what the tensors' shapes and a GGUF file's metadata say.
///
/// # Errors
///
/// As [`T5Config::from_file`] and [`infer_shape`].
pub fn config_of(checkpoint: &Checkpoint) -> Result<T5Config> {
    match checkpoint.config_path() {
        Some(path) => T5Config::from_file(path),
        None if checkpoint.packed().is_some() => Err(Error::new(
            ErrorKind::NotFound,
            "a packed model needs the config.json that it was written with",
        )
        .at(checkpoint.path().display())),
        None => {
            let shape = infer_shape(checkpoint)?;
            match checkpoint.gguf() {
                Some(file) => file.config(&shape),
                None => T5Config::from_inferred(&shape),
            }
            .map_err(|e| e.at(checkpoint.path().display()))
        }
    }
}

pub(crate) fn shapes_from(checkpoint: &Checkpoint) -> &'static str {
    match checkpoint.config_path() {
        Some(_) => "config.json",
        None => "the shapes of the other tensors",
    }
}
