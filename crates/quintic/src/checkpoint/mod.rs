//! Checkpoints: from a path to named tensors, whatever the layout on disk.
//!
//! ```text
//! hub::resolve     "google/flan-t5-small" -> a folder        (local cache, or download)
//! Checkpoint::open a folder or file       -> names, entries  (headers only)
//! TensorSource     names and shapes       -> tensors         (every gap, every left-over)
//! ```
//!
//! What [`Checkpoint::open`] accepts:
//!
//! - a model folder: `config.json` and `model.safetensors` or `pytorch_model.bin`, whole or
//!   in shards with an index, of a variant such as `fp16` or without one. Safetensors win
//!   where both are there.
//! - a diffusers pipeline: the text encoder that `model_index.json` says is a T5, with the
//!   tokenizer of the same number.
//! - one weight file: an encoder alone, or a checkpoint that holds it among other models,
//!   under a prefix such as `text_encoders.t5xxl.transformer.`.
//!
//! - a GGUF file of a T5 as llama.cpp writes it, with its config and tokenizer.
//! - 8-bit floats with or without the scales that ComfyUI writes beside them.
//! - what `quintic convert --pack` writes: `model.packed.safetensors` in a model folder.
//!
//! Names are those of transformers, without the prefix; the names of the encoder that Wan's
//! repository publishes are turned into them. Nothing is chosen silently: a
//! variant that is not there, two encoders in one file, an index that disagrees with its
//! shards are errors that say what there is.
//!
//! ```no_run
//! use quintic::checkpoint::{Checkpoint, OpenOptions, TensorSource, hub};
//!
//! let folder = hub::resolve("google/flan-t5-small", &hub::HubOptions::default())?;
//! let checkpoint = Checkpoint::open(&folder, &OpenOptions::default())?;
//! let mut source = TensorSource::new(&checkpoint, "config.json");
//! let embedding = source.take("shared.weight", &[32128, 512])?;
//! let left_over = source.finish(|name| name.starts_with("decoder."))?;
//! # Ok::<(), quintic::Error>(())
//! ```
//!
//! # Memory
//!
//! Safetensors files are mapped: a taken [`Tensor`] is a range of the map, and its pages are
//! read when they are first used. PyTorch files are read tensor by tensor into memory, see
//! [`PytorchFile`].
//!
//! # Trust
//!
//! Files are taken as hostile. Lengths are checked against the file before they size
//! anything, pickles are interpreted and never run, and an index cannot name a file outside
//! its folder.
//!
//! # Sources
//!
//! The safetensors format: <https://huggingface.co/docs/safetensors>. Names of files and
//! variants: transformers' and diffusers' `save_pretrained`. Prefixes: ComfyUI's
//! `text_encoders.*` checkpoints.

mod entry;
mod file;
mod gguf;
mod header;
pub mod hub;
pub(crate) mod in_memory;
mod infer;
mod layout;
pub(crate) mod packed;
mod pipeline;
mod prefix;
mod pytorch;
mod safetensors;
mod scales;
mod shards;
mod source;
mod wan;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

pub use self::entry::Entry;
pub use self::file::Format;
pub use self::gguf::GgufFile;
pub use self::infer::{InferredShape, infer_shape};
pub use self::layout::OpenOptions;
pub use self::packed::{Packed, PackedEntry};
pub use self::pytorch::PytorchFile;
pub use self::safetensors::{MAX_HEADER_BYTES, SafetensorsFile};
pub use self::source::TensorSource;

use self::file::WeightFile;
use self::layout::Layout;
pub(crate) use self::layout::TOKENIZER_FILES;
use self::shards::ShardIndex;
use crate::model::EMBEDDING_NAMES;
use crate::tokenizer::{SpieceOptions, Tokenizer};
use crate::{DType, Error, Result, Tensor};

/// Name under which ComfyUI's encoders carry their SentencePiece model.
const EMBEDDED_TOKENIZER: &str = "spiece_model";

/// The open weights of one model.
pub struct Checkpoint {
    layout: Layout,
    files: Vec<WeightFile>,
    prefix: String,
    /// Name without prefix to file and entry, for the names under the prefix.
    names: BTreeMap<String, (usize, Entry)>,
    /// If its matrices are packed: how.
    packed: Option<Packed>,
    /// Of weights in 8-bit floats, by name without prefix.
    scales: BTreeMap<String, f32>,
}

impl Checkpoint {
    /// Finds the files of the model at `path` and reads their headers, not their values.
    ///
    /// # Errors
    ///
    /// - [`ErrorKind::NotFound`](crate::ErrorKind::NotFound): no such path, no weights, no
    ///   weights of this variant, a shard that is missing, a pipeline without a T5;
    /// - [`ErrorKind::Checkpoint`](crate::ErrorKind::Checkpoint): a damaged file, an index
    ///   that disagrees with its shards, no T5 encoder or several in the file;
    /// - [`ErrorKind::Config`](crate::ErrorKind::Config): a damaged `model_index.json`;
    /// - [`ErrorKind::Input`](crate::ErrorKind::Input): options that do not fit the path;
    /// - [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported): another file format;
    /// - [`ErrorKind::Io`](crate::ErrorKind::Io): a file that cannot be read.
    pub fn open(path: impl AsRef<Path>, options: &OpenOptions) -> Result<Self> {
        let layout = layout::find(path.as_ref(), options)?;
        let files = if layout.is_index {
            ShardIndex::open(&layout.weights)?.open_shards(layout.format)?
        } else {
            vec![WeightFile::open(&layout.weights)?]
        };
        Checkpoint::from_files(layout, files, options)
    }

    /// The model in these files: which of their names are its own.
    fn from_files(layout: Layout, files: Vec<WeightFile>, options: &OpenOptions) -> Result<Self> {
        let names = all_names(&files);
        let packed = match files.first().and_then(WeightFile::metadata) {
            Some(metadata) => {
                Packed::read(metadata).map_err(|error| error.at(layout.weights.display()))?
            }
            None => None,
        };
        let (prefix, mut names) = if let Some(file) = files.first().and_then(WeightFile::gguf) {
            (String::new(), gguf_names(file, names, options)?)
        } else if packed.is_some() && options.prefix.as_ref().is_none_or(String::is_empty) {
            (String::new(), names)
        } else if options.prefix.is_none() && wan::is_wan(|name| names.contains_key(name)) {
            (String::new(), rename(names, wan::transformers_name))
        } else {
            let all = names.keys().map(String::as_str);
            let prefix = prefix::find(all, options.prefix.as_deref())
                .map_err(|error| error.at(layout.weights.display()))?;
            let names = strip(names, &prefix);
            (prefix, names)
        };
        let scales = scales::take(&files, &mut names, &prefix)?;
        Ok(Checkpoint {
            layout,
            files,
            prefix,
            names,
            packed,
            scales,
        })
    }

    /// Names of all tensors under the prefix, without it, sorted.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.names.keys().map(String::as_str)
    }

    /// Type, shape and size of a tensor. [`Entry::name`] is its name in the file.
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.names.get(name).map(|(_, entry)| entry)
    }

    /// All tensors under the prefix by their name without it, sorted.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = (&str, &Entry)> {
        self.names
            .iter()
            .map(|(name, (_, entry))| (name.as_str(), entry))
    }

    /// Whether there is such a tensor.
    pub fn contains(&self, name: &str) -> bool {
        self.names.contains_key(name)
    }

    /// The tensor, under its name without the prefix. May be called again.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Checkpoint`](crate::ErrorKind::Checkpoint) if there is no such tensor
    /// or its values are damaged; [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported)
    /// if [`DType`] lacks its element type.
    pub fn take(&self, name: &str) -> Result<Tensor> {
        let Some((file, entry)) = self.names.get(name) else {
            return Err(Error::checkpoint("there is no such tensor")
                .at(format!("tensor `{}{name}`", self.prefix))
                .at(self.layout.weights.display()));
        };
        let mut tensor = self.files[*file].take(&entry.name)?;
        if let Some(&scale) = self.scales.get(name) {
            tensor = tensor.with_scale(scale);
        }
        Ok(if entry.name == name {
            tensor
        } else {
            tensor.with_name(name)
        })
    }

    /// The file that holds the tensor.
    pub fn file_of(&self, name: &str) -> Option<&Path> {
        self.names
            .get(name)
            .map(|&(file, _)| self.files[file].path())
    }

    /// How the matrices are packed, if they are; see [`crate::packed`].
    pub fn packed(&self) -> Option<&Packed> {
        self.packed.as_ref()
    }

    /// How many weights in 8-bit floats have a scale of their own.
    pub fn n_scales(&self) -> usize {
        self.scales.len()
    }

    /// How the tensors are stored.
    pub fn format(&self) -> Format {
        self.layout.format
    }

    /// The weight file, or the index of the shards.
    pub fn path(&self) -> &Path {
        &self.layout.weights
    }

    /// Every weight file, in the order of their names.
    pub fn weight_files(&self) -> impl ExactSizeIterator<Item = &Path> {
        self.files.iter().map(WeightFile::path)
    }

    /// The model's `config.json`; `None` for a single file, and for a folder without one.
    pub fn config_path(&self) -> Option<&Path> {
        self.layout.config.as_deref()
    }

    /// The folder of the tokenizer's files; `None` for a single file, and for a folder
    /// without any.
    pub fn tokenizer_folder(&self) -> Option<&Path> {
        self.layout.tokenizer.as_deref()
    }

    /// What was stripped from the names, such as `text_encoders.t5xxl.transformer.`; empty
    /// for most.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The `__metadata__` of the first safetensors header; empty for files of other formats.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, &str)> {
        let metadata = self.files.first().and_then(WeightFile::metadata);
        metadata
            .into_iter()
            .flatten()
            .map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// The GGUF file that this is, which has metadata of its own.
    pub fn gguf(&self) -> Option<&GgufFile> {
        self.files.first().and_then(WeightFile::gguf)
    }

    /// The tokenizer inside the weight file: a GGUF file's, or the one that
    /// [`embedded_tokenizer`](Checkpoint::embedded_tokenizer) finds, with the default
    /// [`SpieceOptions`].
    ///
    /// # Errors
    ///
    /// As [`embedded_tokenizer`](Checkpoint::embedded_tokenizer) and
    /// [`Tokenizer::from_spiece_bytes`];
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) for a GGUF file's tokenizer that
    /// is no SentencePiece unigram model.
    pub fn tokenizer(&self) -> Result<Option<Tokenizer>> {
        let at_path = |error: Error| error.at(self.layout.weights.display());
        match self.gguf() {
            Some(file) => file.tokenizer().map_err(at_path),
            None => self
                .embedded_tokenizer()?
                .map(|model| {
                    Tokenizer::from_spiece_bytes(model.bytes(), &SpieceOptions::default())
                        .map_err(at_path)
                })
                .transpose(),
        }
    }

    /// What a user should know about what is in the file, beside what the model's config says.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Checkpoint`](crate::ErrorKind::Checkpoint) if it is damaged.
    pub fn warnings(&self) -> Result<Vec<String>> {
        let mut warnings = Vec::new();
        if let Some(file) = self.gguf()
            && file
                .lacks_charsmap()
                .map_err(|error| error.at(self.layout.weights.display()))?
        {
            warnings.push(
                "the tokenizer in the file has no `precompiled_charsmap`: text is not normalised, \
                 so that ids of unusual characters may differ from those of the model's own tokenizer"
                    .to_owned(),
            );
        }
        for name in EMBEDDING_NAMES {
            if !self.contains(name) {
                continue;
            }
            // One that cannot be taken says so where it is needed.
            let n = self.take(name).map_or(0, |table| table.count_special());
            if n > 0 {
                warnings.push(format!(
                    "`{name}` has {n} values that are NaN or infinite; NaN is read as 0"
                ));
            }
        }
        Ok(warnings)
    }

    /// The SentencePiece model inside the file, as ComfyUI's UMT5 encoders carry it in
    /// tensor `spiece_model`, under the prefix or a part of it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Checkpoint`](crate::ErrorKind::Checkpoint) if the tensor is no list of
    /// bytes.
    pub fn embedded_tokenizer(&self) -> Result<Option<Tensor>> {
        let mut prefix = self.prefix.as_str();
        loop {
            let name = format!("{prefix}{EMBEDDED_TOKENIZER}");
            if let Some(file) = self.files.iter().find(|file| file.entry(&name).is_some()) {
                let tensor = file.take(&name)?;
                return match (tensor.dtype(), tensor.shape()) {
                    (DType::U8, [_]) => Ok(Some(tensor)),
                    (dtype, shape) => Err(Error::checkpoint(format!(
                        "has shape {shape:?} of {dtype}, expected one extent of u8"
                    ))
                    .at(format!("tensor `{name}`"))
                    .at(file.path().display())),
                };
            }
            // `a.b.` -> `a.` -> ``
            match prefix.trim_end_matches('.').rfind('.') {
                Some(dot) => prefix = &prefix[..=dot],
                None if prefix.is_empty() => return Ok(None),
                None => prefix = "",
            }
        }
    }
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Checkpoint({}, {} tensors)",
            self.layout,
            self.names.len()
        )
    }
}

/// Every tensor of every file, under its full name. No name is in two files: an index gives
/// each tensor one shard, and a shard that holds others than its own has been refused.
fn all_names(files: &[WeightFile]) -> BTreeMap<String, (usize, Entry)> {
    let entries = |(idx, file): (usize, &WeightFile)| -> Vec<_> {
        file.entries()
            .iter()
            .map(|entry| (entry.name.clone(), (idx, entry.clone())))
            .collect()
    };
    files.iter().enumerate().flat_map(entries).collect()
}

/// A name whose new form is taken keeps its old one, so that it is reported as left over
/// rather than hidden.
fn rename(
    names: BTreeMap<String, (usize, Entry)>,
    transformers_name: impl Fn(&str) -> String,
) -> BTreeMap<String, (usize, Entry)> {
    let new_name = |name: &String| {
        let new = transformers_name(name);
        if names.contains_key(&new) {
            name.clone()
        } else {
            new
        }
    };
    names
        .iter()
        .map(|(name, found)| (new_name(name), found.clone()))
        .collect()
}

/// Transformers' names of a GGUF file's tensors; with an empty prefix, those of the file.
fn gguf_names(
    file: &GgufFile,
    names: BTreeMap<String, (usize, Entry)>,
    options: &OpenOptions,
) -> Result<BTreeMap<String, (usize, Entry)>> {
    let at_path = |error: Error| error.at(file.path().display());
    match options.prefix.as_deref() {
        Some("") => return Ok(names),
        Some(prefix) => {
            return Err(at_path(Error::input(format!(
                "prefix `{prefix}` was asked for, but names in a GGUF file have none"
            ))));
        }
        None => {}
    }
    file.check_architecture().map_err(at_path)?;
    let contains = |name: &str| file.entry(name).is_some();
    Ok(rename(names, |name| {
        gguf::transformers_name(name, contains)
    }))
}

fn strip(
    names: BTreeMap<String, (usize, Entry)>,
    prefix: &str,
) -> BTreeMap<String, (usize, Entry)> {
    if prefix.is_empty() {
        return names;
    }
    names
        .into_iter()
        .filter_map(|(name, found)| Some((name.strip_prefix(prefix)?.to_owned(), found)))
        .collect()
}
