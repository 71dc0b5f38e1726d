//! The encoder as Python holds it.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use numpy::{IntoPyArray, PyArray1, PyUntypedArrayMethods};
use numpy::{PyReadonlyArray2, PyReadonlyArray3, PyReadonlyArrayDyn};
use pyo3::prelude::*;
use quintic::batch::{PadRows, PaddedMask};
use quintic::calibrate::Plan;
use quintic::checkpoint::hub::HubOptions;
use quintic::checkpoint::{Checkpoint, Format, OpenOptions};
use quintic::config::{Family, T5Config};
use quintic::{
    BackendKind, Compute, ComputeChoice, ComputeType, DType, Error, Keep, LoadOptions,
    MatmulPrecision, Result, TextEncoder, WeightType,
};

use crate::guard;
use crate::request::{Output, Place, Request};
use crate::source::{Borrowed, Tensors};

/// Which files: a dictionary with all of these keys.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct Files {
    revision: Option<String>,
    variant: Option<String>,
    subfolder: Option<String>,
    cache_dir: Option<PathBuf>,
    token: Option<String>,
    local_files_only: bool,
    force_download: bool,
}

impl Files {
    pub(crate) fn hub(&self) -> HubOptions {
        HubOptions {
            revision: self.revision.clone(),
            cache_dir: self.cache_dir.clone(),
            variant: self.variant.clone(),
            subfolder: self.subfolder.clone(),
            // Else the environment decides, as in huggingface_hub.
            offline: self.local_files_only.then_some(true),
            refresh: self.force_download,
            token: self.token.clone(),
            ..HubOptions::default()
        }
    }

    pub(crate) fn load_options(&self) -> LoadOptions {
        LoadOptions {
            files: OpenOptions {
                variant: self.variant.clone(),
                subfolder: self.subfolder.clone(),
                prefix: None,
            },
            hub: self.hub(),
            ..LoadOptions::default()
        }
    }
}

/// How to compute: a dictionary with all of these keys.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct Computing {
    backend: String,
    /// `auto` is what the files are in.
    dtype: String,
    matmul_precision: Option<String>,
    threads: Option<NonZeroUsize>,
    fold_norm_gains: Option<bool>,
    /// A name of [`WeightType`].
    weights: Option<String>,
    /// Names of products that `weights` leaves out.
    keep: Option<Vec<String>>,
    /// A file that `quintic calibrate` wrote.
    plan: Option<PathBuf>,
}

impl Computing {
    pub(crate) fn backend(&self) -> Result<BackendKind> {
        BackendKind::parse(&self.backend)
    }

    /// The plan that is named, which has to be the checkpoint's.
    pub(crate) fn plan(&self, checkpoint: &Checkpoint) -> Result<Option<Plan>> {
        let path = self.plan.as_deref();
        path.map(|path| Plan::read_for(path, checkpoint))
            .transpose()
    }

    /// What was chosen, completed by a plan; with one, `auto` is what the plan was measured for.
    pub(crate) fn choice_by(
        &self,
        plan: Option<&Plan>,
        auto: impl FnOnce() -> Option<ComputeType>,
    ) -> Result<ComputeChoice> {
        match plan {
            Some(plan) => plan.complete(&self.choice(|| None)?),
            None => self.choice(auto),
        }
    }

    pub(crate) fn choice(
        &self,
        auto: impl FnOnce() -> Option<ComputeType>,
    ) -> Result<ComputeChoice> {
        let precision = self.matmul_precision.as_deref();
        Ok(ComputeChoice {
            dtype: match self.dtype.as_str() {
                "auto" => auto(),
                name => Some(ComputeType::parse(name)?),
            },
            matmul_precision: precision.map(MatmulPrecision::parse).transpose()?,
            threads: self.threads,
            fold_norm_gains: self.fold_norm_gains,
            weights: self.weights.as_deref().map(WeightType::parse).transpose()?,
            keep: self.keep.as_deref().map(keep_of).transpose()?,
        })
    }
}

fn keep_of(names: &[String]) -> Result<Keep> {
    match names {
        [] => Ok(Keep::default()),
        names => Keep::parse(&names.join(",")),
    }
}

/// Names of the products that stay as they are where others are kept in integers, as `keep` takes them.
pub(crate) fn kept(compute: &Compute) -> Vec<String> {
    match compute.keep == Keep::default() {
        true => Vec::new(),
        false => (compute.keep.names().split(','))
            .map(str::to_owned)
            .collect(),
    }
}

/// Where weights can be read again.
enum Stored {
    Files(Box<Checkpoint>),
    Tensors(Tensors),
}

/// A loaded encoder. Immutable; any number of threads may call it.
#[pyclass(frozen, module = "quintic._quintic")]
pub(crate) struct Encoder {
    pub(crate) encoder: TextEncoder,
    kind: BackendKind,
    stored: Stored,
}

#[pymethods]
impl Encoder {
    /// Loads the encoder of a path or repository id.
    #[staticmethod]
    fn load(
        py: Python<'_>,
        model: String,
        files: Files,
        computing: Computing,
    ) -> PyResult<Encoder> {
        guard::run(py, || {
            let checkpoint = files.load_options().open(&model)?;
            let backend = computing.backend()?;
            let packed = checkpoint.packed().filter(|_| backend.reads_packed());
            let config = quintic::config_of(&checkpoint)?;
            let auto = || match packed {
                Some(_) => None,
                None => stored_type(&config, &checkpoint),
            };
            let plan = computing.plan(&checkpoint)?;
            let compute = match backend {
                // It has one way of computing, whatever the files are in.
                BackendKind::Reference => computing.choice_by(plan.as_ref(), || None)?,
                BackendKind::Cpu | BackendKind::Cuda(_) => {
                    computing.choice_by(plan.as_ref(), auto)?
                }
            }
            .resolve(packed)?;
            let encoder = TextEncoder::from_checkpoint(&checkpoint, backend, &compute)?;
            if let Some(plan) = plan {
                encoder.start_scales(&plan.scales());
            }
            Ok(Encoder {
                encoder,
                kind: backend,
                stored: Stored::Files(Box::new(checkpoint)),
            })
        })
    }

    /// Makes an encoder of tensors in memory, named as in a checkpoint.
    #[staticmethod]
    fn from_tensors(
        py: Python<'_>,
        config_json: String,
        tensors: Vec<Borrowed>,
        computing: Computing,
    ) -> PyResult<Encoder> {
        guard::run(py, || {
            if computing.plan.is_some() {
                return Err(Error::input(
                    "`plan` is given for tensors in memory, but a plan is that of a model's files",
                ));
            }
            let config = T5Config::from_json(config_json.as_bytes())?;
            let mut tensors = Tensors::new(tensors)?;
            let compute = computing.choice(|| None)?.resolve(None)?;
            let kind = computing.backend()?;
            Ok(Encoder {
                encoder: TextEncoder::from_source(config, &mut tensors, kind, &compute)?,
                kind,
                stored: Stored::Tensors(tensors),
            })
        })
    }

    /// Hidden states of a padded batch: `(last, inner, attentions)`. `ids` is `[rows, len]`, or
    /// `embeddings` `[rows, len, d_model]` stands in its place; `mask` is `[rows, len]` or
    /// `[rows, len, len]`; `head_gains` `[layers, heads]`. Arrays come back flat; 16-bit types
    /// as their bits.
    #[pyo3(signature = (*, ids, embeddings, mask, pad_rows, head_gains, hidden_states, attentions, output))]
    #[expect(clippy::too_many_arguments, reason = "called with keywords, once")]
    fn forward<'py>(
        &self,
        py: Python<'py>,
        ids: PyReadonlyArray2<'py, i64>,
        embeddings: Option<PyReadonlyArray3<'py, f32>>,
        mask: Option<PyReadonlyArrayDyn<'py, bool>>,
        pad_rows: &str,
        head_gains: Option<PyReadonlyArray2<'py, f32>>,
        hidden_states: bool,
        attentions: bool,
        output: &str,
    ) -> PyResult<States<'py>> {
        let request = Request {
            rows: ids.shape()[0],
            len: ids.shape()[1],
            ids: ids.as_slice()?.to_vec(),
            embeddings: embeddings.as_ref().map(|e| e.as_slice()).transpose()?,
            mask: padded_mask(mask)?,
            pad_rows: pad_rows_of(pad_rows),
            head_gains: head_gains.as_ref().map(|g| g.as_slice()).transpose()?,
            hidden_states,
            attentions,
        };
        let output = Output::parse(output);
        let states = guard::run_interruptible(py, |signals| {
            request.run(&self.encoder, &|| signals.pending(), output)
        })?;
        Ok((
            states.last.into_py(py),
            states.inner.into_iter().map(|s| s.into_py(py)).collect(),
            states
                .attentions
                .into_iter()
                .map(|a| a.into_py(py))
                .collect(),
        ))
    }

    /// As `forward`, of the last states alone, which go to a CUDA device's memory: `address` is
    /// that of `[rows, len, d_model]` values of type `output`, `queue` a stream of the device.
    #[pyo3(signature = (*, ids, embeddings, mask, pad_rows, head_gains, output, address, queue))]
    #[expect(clippy::too_many_arguments, reason = "called with keywords, once")]
    fn forward_into(
        &self,
        py: Python<'_>,
        ids: PyReadonlyArray2<'_, i64>,
        embeddings: Option<PyReadonlyArray3<'_, f32>>,
        mask: Option<PyReadonlyArrayDyn<'_, bool>>,
        pad_rows: &str,
        head_gains: Option<PyReadonlyArray2<'_, f32>>,
        output: &str,
        address: u64,
        queue: u64,
    ) -> PyResult<()> {
        let request = Request {
            rows: ids.shape()[0],
            len: ids.shape()[1],
            ids: ids.as_slice()?.to_vec(),
            embeddings: embeddings.as_ref().map(|e| e.as_slice()).transpose()?,
            mask: padded_mask(mask)?,
            pad_rows: pad_rows_of(pad_rows),
            head_gains: head_gains.as_ref().map(|g| g.as_slice()).transpose()?,
            hidden_states: false,
            attentions: false,
        };
        guard::run_interruptible(py, |signals| {
            let place = Place {
                address,
                dtype: ComputeType::parse(output)?,
                queue,
            };
            // SAFETY: the package's own Python code calls this, with the memory and the current
            // stream of a tensor that it has just made of that shape on the encoder's device; the
            // allocator that made it keeps memory until its stream is done with it.
            unsafe { request.run_into(&self.encoder, &|| signals.pending(), &place) }
        })
    }

    /// `cpu`, or a CUDA device such as `cuda:0`.
    #[getter]
    fn device(&self) -> String {
        match self.kind {
            BackendKind::Cpu | BackendKind::Reference => "cpu".to_owned(),
            BackendKind::Cuda(ordinal) => format!("cuda:{ordinal}"),
        }
    }

    /// The tensor `name` as stored: type, shape, bytes.
    fn tensor<'py>(
        &self,
        py: Python<'py>,
        name: String,
    ) -> PyResult<(String, Vec<usize>, Bound<'py, PyArray1<u8>>)> {
        let (dtype, shape, bytes) = guard::run(py, || {
            let tensor = match &self.stored {
                Stored::Files(checkpoint) => checkpoint.take(&name)?,
                Stored::Tensors(tensors) => tensors.get(&name).cloned().ok_or_else(|| {
                    Error::checkpoint("is missing").at(format!("tensor `{name}`"))
                })?,
            };
            let bytes = tensor.bytes().to_vec();
            tensor.release();
            Ok((tensor.dtype(), tensor.shape().to_vec(), bytes))
        })?;
        Ok((dtype.to_string(), shape, bytes.into_pyarray(py)))
    }

    /// Whether there is a tensor `name` to be read again.
    fn has_tensor(&self, name: &str) -> bool {
        match &self.stored {
            Stored::Files(checkpoint) => checkpoint.contains(name),
            Stored::Tensors(tensors) => tensors.get(name).is_some(),
        }
    }

    /// Whether the products are packed in the files, so that single weights cannot be read.
    #[getter]
    fn is_packed(&self) -> bool {
        matches!(&self.stored, Stored::Files(checkpoint) if checkpoint.packed().is_some())
    }

    /// `safetensors` or another name of the weights' file format.
    #[getter]
    fn weights_format(&self) -> Option<&'static str> {
        match &self.stored {
            Stored::Files(checkpoint) => Some(match checkpoint.format() {
                Format::Safetensors => "safetensors",
                Format::Pytorch => "PyTorch's format",
                Format::Gguf => "GGUF",
                _ => "another format",
            }),
            Stored::Tensors(_) => None,
        }
    }

    /// Path of config.json, if there is one.
    #[getter]
    fn config_path(&self) -> Option<String> {
        match &self.stored {
            Stored::Files(checkpoint) => checkpoint
                .config_path()
                .map(|path| path.display().to_string()),
            Stored::Tensors(_) => None,
        }
    }

    /// Folder with tokenizer files, if there is one.
    #[getter]
    pub(crate) fn tokenizer_folder(&self) -> Option<String> {
        match &self.stored {
            Stored::Files(checkpoint) => checkpoint
                .tokenizer_folder()
                .map(|path| path.display().to_string()),
            Stored::Tensors(_) => None,
        }
    }

    /// The shape of the model under Hugging Face's names.
    #[getter]
    fn config<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, pyo3::types::PyDict>> {
        config_dict(py, self.encoder.config())
    }

    /// Whether feed-forward layers have two input products.
    #[getter]
    fn is_gated(&self) -> bool {
        self.encoder.config().feed_forward.gated
    }

    /// What a user should know about a model that loaded.
    #[getter]
    fn warnings(&self) -> Vec<String> {
        let mut warnings = self.encoder.config().warnings.clone();
        let surplus: Vec<&str> = self.encoder.surplus_tensors().take(8).collect();
        if !surplus.is_empty() {
            warnings.push(format!("tensors that are not used: {}", surplus.join(", ")));
        }
        warnings
    }

    #[getter]
    fn path(&self) -> String {
        self.encoder.path().display().to_string()
    }

    #[getter]
    fn backend(&self) -> &'static str {
        self.encoder.backend_name()
    }

    #[getter]
    fn isa(&self) -> Option<&'static str> {
        self.encoder.isa()
    }

    #[getter]
    fn threads(&self) -> usize {
        self.encoder.threads()
    }

    #[getter]
    fn dtype(&self) -> &'static str {
        self.encoder.compute().dtype.name()
    }

    #[getter]
    fn matmul_precision(&self) -> &'static str {
        self.encoder.compute().matmul_precision.name()
    }

    #[getter]
    fn fold_norm_gains(&self) -> bool {
        self.encoder.compute().fold_norm_gains
    }

    /// `as-stored`, `int8`, `int4` or `w8a8`.
    #[getter]
    fn weights(&self) -> &'static str {
        self.encoder.compute().weights.name()
    }

    /// Products that `weights` leaves out.
    #[getter]
    fn keep(&self) -> Vec<String> {
        kept(self.encoder.compute())
    }
}

impl Encoder {
    /// The tokenizer inside the weight file, if there is one.
    pub(crate) fn tokenizer_inside(&self) -> Result<Option<quintic::Tokenizer>> {
        match &self.stored {
            Stored::Files(checkpoint) => checkpoint.tokenizer(),
            Stored::Tensors(_) => Ok(None),
        }
    }
}

/// `(last, inner, attentions)`.
type States<'py> = (
    Bound<'py, PyAny>,
    Vec<Bound<'py, PyAny>>,
    Vec<Bound<'py, PyAny>>,
);

/// The type that transformers 5 would load: the config's word, else that of the weights.
pub(crate) fn stored_type(config: &T5Config, checkpoint: &Checkpoint) -> Option<ComputeType> {
    let named = match config.torch_dtype.as_deref() {
        Some("float32") => Some(ComputeType::F32),
        Some("bfloat16") => Some(ComputeType::Bf16),
        Some("float16") => Some(ComputeType::F16),
        _ => None,
    };
    named.or_else(|| {
        checkpoint
            .entries()
            .find_map(|(_, entry)| match entry.dtype() {
                Some(DType::F32) => Some(ComputeType::F32),
                Some(DType::BF16) => Some(ComputeType::Bf16),
                Some(DType::F16) => Some(ComputeType::F16),
                _ => None,
            })
    })
}

fn pad_rows_of(name: &str) -> PadRows {
    match name {
        "zero" => PadRows::Zero,
        _ => PadRows::Compute,
    }
}

fn padded_mask(mask: Option<PyReadonlyArrayDyn<'_, bool>>) -> PyResult<PaddedMask> {
    let Some(mask) = mask else {
        return Ok(PaddedMask::None);
    };
    let flags = mask.as_slice()?.to_vec();
    Ok(match mask.ndim() {
        2 => PaddedMask::Keys(flags),
        _ => PaddedMask::Pairs(flags),
    })
}

/// A shape under Hugging Face's names.
pub(crate) fn config_dict<'py>(
    py: Python<'py>,
    config: &T5Config,
) -> PyResult<Bound<'py, pyo3::types::PyDict>> {
    let dict = pyo3::types::PyDict::new(py);
    dict.set_item("model_type", config.family.map(Family::model_type))?;
    dict.set_item("vocab_size", config.vocab_size)?;
    dict.set_item("d_model", config.d_model)?;
    dict.set_item("d_kv", config.d_kv)?;
    dict.set_item("d_ff", config.d_ff)?;
    dict.set_item("num_layers", config.num_layers)?;
    dict.set_item("num_heads", config.num_heads)?;
    dict.set_item(
        "relative_attention_num_buckets",
        config.relative_attention_num_buckets,
    )?;
    dict.set_item(
        "relative_attention_max_distance",
        config.relative_attention_max_distance,
    )?;
    dict.set_item("layer_norm_epsilon", config.layer_norm_epsilon)?;
    // Of a model without config.json, which is either of the two.
    let activation = match config.feed_forward.gated {
        true => "gated-gelu",
        false => "relu",
    };
    dict.set_item("feed_forward_proj", activation)?;
    dict.set_item("pad_token_id", config.pad_token_id)?;
    dict.set_item("eos_token_id", config.eos_token_ids.first())?;
    Ok(dict)
}
