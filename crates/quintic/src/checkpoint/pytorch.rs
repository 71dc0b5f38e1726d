//! PyTorch files (`pytorch_model.bin`, `.pt`, `.pth`), read by the `pytorch-reader` crate.
//!
//! A pickle is a program. This reader never runs one: the crate interprets the few calls
//! that rebuild tensors, and a file that asks for anything else is refused, as
//! `torch.load(weights_only=True)` would. A whole module that was saved as an object is read
//! as its `state_dict()`; its class is not looked at.
//!
//! # Memory
//!
//! Opening holds names, types and shapes. [`PytorchFile::take`] reads one tensor's bytes
//! into memory that the returned [`Tensor`] owns, in row-major order whatever the strides in
//! the file: the crate does not say where a tensor's bytes lie, so they cannot be mapped.
//! Nothing is cached. Two tensors that share a storage (tied embeddings) are read, and held,
//! once each if both are taken. Prefer safetensors where a model has both.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pytorch_reader::{FileFormat, PickleValue, PytorchReader};

use super::entry::{Entry, list_names};
use crate::{Error, ErrorKind, Result, Tensor};

/// Keys under which training scripts nest a model's weights.
const NESTS: [&str; 4] = ["state_dict", "model_state_dict", "model", "module"];

/// An open PyTorch file: zip (1.6 and later) or the legacy stream before it.
pub struct PytorchFile {
    path: PathBuf,
    entries: Vec<Entry>,
    tensors: HashMap<String, pytorch_reader::Tensor>,
    by_name: HashMap<String, usize>,
    n_file_bytes: u64,
}

impl PytorchFile {
    /// Reads the pickle of the file. Weights nested under `state_dict`,
    /// `model_state_dict`, `model` or `module` get the names they have there.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Checkpoint`] if the file is damaged, asks for other Python objects than
    /// tensors and plain values, or holds no tensor; [`ErrorKind::Unsupported`] for the tar
    /// files written before PyTorch 0.1.10; [`ErrorKind::NotFound`] and [`ErrorKind::Io`]
    /// from opening.
    pub fn open(path: &Path) -> Result<Self> {
        let n_file_bytes = check_container(path).map_err(|error| error.at(path.display()))?;
        let tensors = read(path).map_err(|error| error.at(path.display()))?;
        let mut entries: Vec<_> = tensors
            .iter()
            .map(|(name, tensor)| entry(name, tensor))
            .collect();
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        let by_name = entries
            .iter()
            .enumerate()
            .map(|(idx, entry)| (entry.name.clone(), idx))
            .collect();
        Ok(PytorchFile {
            path: path.to_path_buf(),
            entries,
            tensors,
            by_name,
            n_file_bytes,
        })
    }

    /// Where the file was found.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All tensors, sorted by name.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The tensor of that name.
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.by_name.get(name).map(|&idx| &self.entries[idx])
    }

    /// Reads the tensor into memory of its own, in row-major order.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Checkpoint`] if there is no such tensor, if its storage is damaged, or
    /// if it is larger than the whole file (which only a broadcast view can be);
    /// [`ErrorKind::Unsupported`] if [`DType`](crate::DType) lacks its element type.
    pub fn take(&self, name: &str) -> Result<Tensor> {
        self.take_inner(name)
            .map_err(|error| error.at(self.path.display()))
    }

    fn take_inner(&self, name: &str) -> Result<Tensor> {
        let place = || format!("tensor `{name}`");
        let (Some(entry), Some(tensor)) = (self.entry(name), self.tensors.get(name)) else {
            return Err(Error::checkpoint("there is no such tensor").at(place()));
        };
        let dtype = entry.supported_dtype()?;
        if entry.n_bytes > self.n_file_bytes {
            return Err(Error::checkpoint(format!(
                "shape {:?} of {dtype} takes {} bytes, the whole file has {}",
                entry.shape, entry.n_bytes, self.n_file_bytes
            ))
            .at(place()));
        }
        let bytes = tensor.read().map_err(|error| {
            Error::checkpoint(format!("cannot read the values: {error}"))
                .source_error(error)
                .at(place())
        })?;
        Tensor::new(
            name,
            dtype,
            entry.shape.clone(),
            Arc::new(to_little_endian(bytes, dtype)),
            0,
        )
    }
}

/// The crate gives values in the machine's byte order, a [`Tensor`] holds little-endian.
fn to_little_endian(mut bytes: Vec<u8>, dtype: crate::DType) -> Vec<u8> {
    if cfg!(target_endian = "big") {
        for value in bytes.chunks_exact_mut(dtype.size_bytes()) {
            value.reverse();
        }
    }
    bytes
}

/// Refuses what the crate would misread or read without bound, with a better word than its
/// own. Returns the size of the file.
fn check_container(path: &Path) -> Result<u64> {
    let io = |doing: &'static str| {
        move |error: std::io::Error| {
            let kind = match error.kind() {
                std::io::ErrorKind::NotFound => ErrorKind::NotFound,
                _ => ErrorKind::Io,
            };
            Error::new(kind, format!("cannot {doing}: {error}")).source_error(error)
        }
    };
    // Asked before opening, which would wait for ever on a pipe that nobody writes to.
    let metadata = std::fs::metadata(path).map_err(io("read the size of the file"))?;
    if !metadata.is_file() {
        return Err(Error::new(ErrorKind::Io, "not a regular file"));
    }
    if metadata.len() == 0 {
        return Err(Error::checkpoint(
            "the file is empty, expected a PyTorch file",
        ));
    }
    let file = std::fs::File::open(path).map_err(io("open the file"))?;
    let mut start = Vec::new();
    std::io::Read::read_to_end(&mut std::io::Read::take(file, 512), &mut start)
        .map_err(io("read the file"))?;
    if start.starts_with(b"version https://git-lfs") {
        return Err(Error::checkpoint(
            "the file is a Git LFS pointer, expected the weights themselves",
        )
        .hint("run `git lfs pull` in the model's folder"));
    }
    if start.get(257..262) == Some(b"ustar") {
        // Older than T5 itself; and a sparse tar entry may claim any length.
        return Err(Error::unsupported(
            "tar files written before PyTorch 0.1.10 are not read, supported are zip and legacy pickle files",
        ));
    }
    if start.get(8) == Some(&b'{') && start[4..8] == [0; 4] {
        return Err(
            Error::checkpoint("the file is a safetensors file, expected a PyTorch file")
                .hint("rename it to end in `.safetensors`"),
        );
    }
    Ok(metadata.len())
}

fn read(path: &Path) -> Result<HashMap<String, pytorch_reader::Tensor>> {
    // The values first: they show what else than tensors the pickle asks for.
    let values = PytorchReader::read_pickle_data(path, None).map_err(damaged)?;
    let mut foreign = Vec::new();
    find_foreign(&values, "", &mut foreign);
    if !foreign.is_empty() {
        foreign.sort();
        return Err(Error::checkpoint(format!(
            "the pickle asks for Python objects other than tensors and plain values: {}",
            list_names(&foreign, 5)
        ))
        .hint("load the file in PyTorch if you trust it, and save only its `state_dict()`, best as safetensors"));
    }
    let reader = match nest(&values) {
        Some(key) => PytorchReader::with_top_level_key(path, key),
        None => PytorchReader::new(path),
    }
    .map_err(damaged)?;
    if reader.is_empty() {
        let what = match reader.metadata().format_type {
            FileFormat::Pickle => "a plain pickle without tensors",
            _ => "a PyTorch file without tensors",
        };
        return Err(Error::checkpoint(format!(
            "the file is {what}, expected weights"
        )));
    }
    Ok(reader.into_tensors())
}

fn damaged(error: pytorch_reader::PytorchError) -> Error {
    Error::checkpoint(format!("cannot be read as a PyTorch file: {error}"))
        .hint("was the download or copy cut short?")
        .source_error(error)
}

/// Collects `place: type` of every value that is neither a tensor nor plain.
fn find_foreign(value: &PickleValue, place: &str, found: &mut Vec<String>) {
    let child = |key: &str| match place {
        "" => key.to_owned(),
        _ => format!("{place}.{key}"),
    };
    match value {
        PickleValue::Dict(items) => {
            for (key, value) in items {
                find_foreign(value, &child(key), found);
            }
        }
        PickleValue::List(items) => {
            for (idx, value) in items.iter().enumerate() {
                find_foreign(value, &child(&idx.to_string()), found);
            }
        }
        PickleValue::Unsupported(class) if !is_harmless(class) => found.push(match place {
            "" => class.clone(),
            _ => format!("{place}: {class}"),
        }),
        _ => {}
    }
}

/// Classes that `torch.save` itself writes beside plain values.
fn is_harmless(class: &str) -> bool {
    const CLASSES: [&str; 6] = [
        "torch.Tensor",
        "torch.TypedStorage",
        "torch.UntypedStorage",
        "torch.Size",
        "torch.device",
        "int", // wider than 64 bits
    ];
    const DTYPES: [&str; 12] = [
        "float", "float64", "float32", "float16", "bfloat16", "half", "double", "int64", "int32",
        "uint8", "int8", "bool",
    ];
    CLASSES.contains(&class)
        || class
            .strip_prefix("torch.")
            .is_some_and(|dtype| DTYPES.contains(&dtype))
}

/// The key that holds the weights, if they are not at the top.
fn nest(values: &PickleValue) -> Option<&'static str> {
    let PickleValue::Dict(items) = values else {
        return None;
    };
    let is_tensor = |value: &PickleValue| matches!(value, PickleValue::Unsupported(class) if class == "torch.Tensor");
    if items.values().any(is_tensor) {
        return None;
    }
    NESTS
        .into_iter()
        .find(|&key| matches!(items.get(key), Some(PickleValue::Dict(inner)) if inner.values().any(is_tensor)))
}

fn entry(name: &str, tensor: &pytorch_reader::Tensor) -> Entry {
    use pytorch_reader::DType;
    let dtype = match tensor.dtype() {
        DType::F64 => "F64",
        DType::F32 => "F32",
        DType::F16 => "F16",
        DType::BF16 => "BF16",
        DType::I64 => "I64",
        DType::I32 => "I32",
        DType::I16 => "I16",
        DType::I8 => "I8",
        DType::U64 => "U64",
        DType::U32 => "U32",
        DType::U16 => "U16",
        DType::U8 => "U8",
        DType::Bool => "BOOL",
    };
    Entry {
        name: name.to_owned(),
        dtype: dtype.to_owned(),
        shape: tensor.shape().to_vec(),
        n_bytes: tensor.byte_len() as u64,
        start: 0,
    }
}
