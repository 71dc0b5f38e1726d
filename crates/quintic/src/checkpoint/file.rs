//! One weight file of either format.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use super::entry::Entry;
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
}

impl Format {
    /// The format that the name of a weight file stands for.
    pub fn of_path(path: &Path) -> Option<Self> {
        let extension = path.extension()?.to_str()?.to_ascii_lowercase();
        match extension.as_str() {
            "safetensors" | "sft" => Some(Format::Safetensors),
            "bin" | "pt" | "pth" | "ckpt" => Some(Format::Pytorch),
            _ => None,
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::Safetensors => "safetensors",
            Format::Pytorch => "pytorch",
        })
    }
}

/// An open weight file.
pub(super) enum WeightFile {
    Safetensors(SafetensorsFile),
    Pytorch(PytorchFile),
}

impl WeightFile {
    /// Opens the file in the format of its name.
    pub(super) fn open(path: &Path) -> Result<Self> {
        match Format::of_path(path) {
            Some(Format::Safetensors) => SafetensorsFile::open(path).map(WeightFile::Safetensors),
            Some(Format::Pytorch) => PytorchFile::open(path).map(WeightFile::Pytorch),
            None => Err(Error::new(
                ErrorKind::Unsupported,
                "not a weight file by its name, expected one that ends in `.safetensors`, `.bin`, `.pt` or `.pth`",
            )
            .at(path.display())),
        }
    }

    pub(super) fn format(&self) -> Format {
        match self {
            WeightFile::Safetensors(_) => Format::Safetensors,
            WeightFile::Pytorch(_) => Format::Pytorch,
        }
    }

    pub(super) fn path(&self) -> &Path {
        match self {
            WeightFile::Safetensors(file) => file.path(),
            WeightFile::Pytorch(file) => file.path(),
        }
    }

    pub(super) fn entries(&self) -> &[Entry] {
        match self {
            WeightFile::Safetensors(file) => file.entries(),
            WeightFile::Pytorch(file) => file.entries(),
        }
    }

    pub(super) fn entry(&self, name: &str) -> Option<&Entry> {
        match self {
            WeightFile::Safetensors(file) => file.entry(name),
            WeightFile::Pytorch(file) => file.entry(name),
        }
    }

    pub(super) fn metadata(&self) -> Option<&BTreeMap<String, String>> {
        match self {
            WeightFile::Safetensors(file) => Some(file.metadata()),
            WeightFile::Pytorch(_) => None,
        }
    }

    pub(super) fn take(&self, name: &str) -> Result<Tensor> {
        match self {
            WeightFile::Safetensors(file) => file.take(name),
            WeightFile::Pytorch(file) => file.take(name),
        }
    }
}
