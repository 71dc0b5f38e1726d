//! Checkpoints from bytes that never were on disk, for the fuzz targets: a file system call
//! for each of millions of inputs would take most of the time.

use std::path::{Path, PathBuf};

use super::file::{Format, WeightFile};
use super::gguf::GgufFile;
use super::layout::Layout;
use super::safetensors::SafetensorsFile;
use super::shards::ShardIndex;
use super::{Checkpoint, OpenOptions};
use crate::mmap::MappedFile;
use crate::{Error, ErrorKind, Result};

const FILE: &str = "model.safetensors";
const GGUF_FILE: &str = "model.gguf";
const INDEX: &str = "model.safetensors.index.json";

/// [`Checkpoint::open`] of one safetensors file.
///
/// # Errors
///
/// As [`Checkpoint::open`].
pub fn open_safetensors(bytes: Vec<u8>, options: &OpenOptions) -> Result<Checkpoint> {
    let file = open_file(FILE, bytes)?;
    Checkpoint::from_files(layout(FILE, false), vec![file], options)
}

/// [`Checkpoint::open`] of one GGUF file.
///
/// # Errors
///
/// As [`Checkpoint::open`].
pub fn open_gguf(bytes: Vec<u8>, options: &OpenOptions) -> Result<Checkpoint> {
    let file = GgufFile::from_map(MappedFile::in_memory(Path::new(GGUF_FILE), bytes))?;
    let layout = Layout {
        format: Format::Gguf,
        ..layout(GGUF_FILE, false)
    };
    Checkpoint::from_files(layout, vec![WeightFile::Gguf(file)], options)
}

/// [`Checkpoint::open`] of an index, with the shards that lie beside it.
///
/// # Errors
///
/// As [`Checkpoint::open`].
pub fn open_sharded(
    index: &str,
    shards: &[(&str, &[u8])],
    options: &OpenOptions,
) -> Result<Checkpoint> {
    let index = ShardIndex::parse(Path::new(INDEX), index)?;
    let files = index.check_shards(Format::Safetensors, |wanted| {
        match shards.iter().find(|(name, _)| *name == wanted) {
            Some((name, bytes)) => open_file(name, bytes.to_vec()),
            None => Err(Error::new(
                ErrorKind::NotFound,
                format!("shard `{wanted}` is not beside the index"),
            )),
        }
    })?;
    Checkpoint::from_files(layout(INDEX, true), files, options)
}

fn open_file(name: &str, bytes: Vec<u8>) -> Result<WeightFile> {
    let map = MappedFile::in_memory(Path::new(name), bytes);
    SafetensorsFile::from_map(map).map(WeightFile::Safetensors)
}

fn layout(name: &str, is_index: bool) -> Layout {
    Layout {
        weights: PathBuf::from(name),
        is_index,
        format: Format::Safetensors,
        config: None,
        tokenizer: None,
    }
}
