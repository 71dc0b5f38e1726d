//! One weight file of either format.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use super::entry::Entry;
use super::gguf::GgufFile;
use super::pytorch::PytorchFile;
use super::safetensors::SafetensorsFile;
use crate::{Error, ErrorKind, Result, Tensor};

/// How the tensors of a checkpoint are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Format {
    /// `.safetensors`: mapped, so that taking a tensor costs no memory.
    Safetensors,
    /// `.bin`, `.pt`, `.pth`: every tensor taken is read into memory.
    Pytorch,
    /// `.gguf`: mapped, like safetensors.
    Gguf,
}

/// Endings of weight files, for errors.
pub(super) const ENDINGS: &str = "`.safetensors`, `.bin`, `.pt`, `.pth` or `.gguf`";

impl Format {
    /// The format that the name of a weight file stands for.
    pub fn of_path(path: &Path) -> Option<Self> {
        let extension = path.extension()?.to_str()?.to_ascii_lowercase();
        match extension.as_str() {
            "safetensors" | "sft" => Some(Format::Safetensors),
            "bin" | "pt" | "pth" | "ckpt" => Some(Format::Pytorch),
            "gguf" => Some(Format::Gguf),
            _ => None,
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::Safetensors => "safetensors",
            Format::Pytorch => "pytorch",
            Format::Gguf => "gguf",
        })
    }
}

/// An open weight file.
pub(super) enum WeightFile {
    Safetensors(SafetensorsFile),
    Pytorch(PytorchFile),
    Gguf(GgufFile),
}

impl WeightFile {
    /// Opens the file in the format of its name.
    pub(super) fn open(path: &Path) -> Result<Self> {
        match Format::of_path(path) {
            Some(Format::Safetensors) => SafetensorsFile::open(path).map(WeightFile::Safetensors),
            Some(Format::Pytorch) => PytorchFile::open(path).map(WeightFile::Pytorch),
            Some(Format::Gguf) => GgufFile::open(path).map(WeightFile::Gguf),
            None => Err(Error::new(
                ErrorKind::Unsupported,
                format!("not a weight file by its name, expected one that ends in {ENDINGS}"),
            )
            .at(path.display())),
        }
    }

    pub(super) fn format(&self) -> Format {
        match self {
            WeightFile::Safetensors(_) => Format::Safetensors,
            WeightFile::Pytorch(_) => Format::Pytorch,
            WeightFile::Gguf(_) => Format::Gguf,
        }
    }

    pub(super) fn path(&self) -> &Path {
        match self {
            WeightFile::Safetensors(file) => file.path(),
            WeightFile::Pytorch(file) => file.path(),
            WeightFile::Gguf(file) => file.path(),
        }
    }

    pub(super) fn entries(&self) -> &[Entry] {
        match self {
            WeightFile::Safetensors(file) => file.entries(),
            WeightFile::Pytorch(file) => file.entries(),
            WeightFile::Gguf(file) => file.entries(),
        }
    }

    pub(super) fn entry(&self, name: &str) -> Option<&Entry> {
        match self {
            WeightFile::Safetensors(file) => file.entry(name),
            WeightFile::Pytorch(file) => file.entry(name),
            WeightFile::Gguf(file) => file.entry(name),
        }
    }

    pub(super) fn metadata(&self) -> Option<&BTreeMap<String, String>> {
        match self {
            WeightFile::Safetensors(file) => Some(file.metadata()),
            WeightFile::Pytorch(_) | WeightFile::Gguf(_) => None,
        }
    }

    pub(super) fn gguf(&self) -> Option<&GgufFile> {
        match self {
            WeightFile::Gguf(file) => Some(file),
            WeightFile::Safetensors(_) | WeightFile::Pytorch(_) => None,
        }
    }

    pub(super) fn take(&self, name: &str) -> Result<Tensor> {
        match self {
            WeightFile::Safetensors(file) => file.take(name),
            WeightFile::Pytorch(file) => file.take(name),
            WeightFile::Gguf(file) => file.take(name),
        }
    }
}
