//! GGUF files, as llama.cpp writes them: a header, metadata, a table of tensors, the values.
//!
//! The file is mapped. The header is copied out of it and checked; tensors stay ranges of the
//! map, quantised ones in their blocks.
//!
//! ```text
//! read      lengths and bounds: a claimed length never sizes anything
//! metadata  keys to values
//! types     element types: names, values and bytes of a block
//! names     llama.cpp's names of tensors to those of transformers
//! model     what the metadata says about the model
//! tokenizer the tokenizer in the metadata
//! ```
//!
//! Versions 2 and 3 are read, little endian, in one file. The architecture has to be `t5` or
//! `t5encoder`.
//!
//! # Source
//!
//! The format: `docs/gguf.md` of <https://github.com/ggml-org/ggml>; names and keys:
//! `gguf.constants` of the Python package `gguf` 0.19.

mod metadata;
mod model;
mod names;
mod read;
mod tokenizer;
mod types;

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use self::metadata::Metadata;
use self::read::Reader;
use super::entry::Entry;
use crate::mmap::MappedFile;
use crate::{ByteOwner, Error, Result, Tensor};

pub(super) use self::names::transformers_name;

const MAGIC: &[u8; 4] = b"GGUF";

/// Most tensors and keys of a file; the largest T5 has 560 tensors, and files have 50 keys.
const MAX_COUNT: u64 = 1 << 16;

/// Where values begin if the file does not say.
const DEFAULT_ALIGNMENT: u64 = 32;

/// Most extents of a tensor.
const MAX_RANK: u32 = 4;

/// An open GGUF file. Only the header is in memory; tensors are ranges of the map.
pub struct GgufFile {
    map: Arc<MappedFile>,
    version: u32,
    metadata: Metadata,
    entries: Vec<Entry>,
    by_name: HashMap<String, usize>,
}

impl GgufFile {
    /// Maps the file and checks its header: every tensor has a known element type and bytes of its
    /// own inside the file.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Checkpoint`](crate::ErrorKind::Checkpoint) naming the file and, where it is
    /// about one, the tensor or key; [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) for
    /// other versions, big endian files and parts of a split file;
    /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) and
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) from opening.
    pub fn open(path: &Path) -> Result<Self> {
        GgufFile::from_map(MappedFile::open(path)?)
    }

    /// [`GgufFile::open`] for a file that is mapped already.
    pub(super) fn from_map(map: MappedFile) -> Result<Self> {
        let map = Arc::new(map);
        GgufFile::parse(&map).map_err(|error| error.at(map.path().display()))
    }

    fn parse(map: &Arc<MappedFile>) -> Result<Self> {
        let bytes = map.bytes();
        let mut reader = Reader::new(bytes);
        let version = check_start(&mut reader)?;
        let n_tensors = count(&mut reader, "tensors")?;
        let n_keys = count(&mut reader, "keys")?;
        let metadata = Metadata::read(map, &mut reader, n_keys)?;
        if let Some(parts) = metadata.whole("split.count")?.filter(|&parts| parts > 1) {
            return Err(Error::unsupported(format!(
                "the file is one of {parts} parts, expected a whole model in one file"
            ))
            .at("metadata `split.count`")
            .hint("join the parts with `llama-gguf-split --merge`"));
        }
        let mut entries = Vec::new();
        for _ in 0..n_tensors {
            entries.push(read_entry(&mut reader)?);
        }
        let alignment = alignment(&metadata)?;
        place(&mut entries, reader.position() as u64, alignment, bytes)?;
        let by_name = entries
            .iter()
            .enumerate()
            .map(|(idx, entry)| (entry.name.clone(), idx))
            .collect();
        Ok(GgufFile {
            map: Arc::clone(map),
            version,
            metadata,
            entries,
            by_name,
        })
    }

    /// Where the file was found.
    pub fn path(&self) -> &Path {
        self.map.path()
    }

    /// Version of the format, 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// All tensors in the order of their bytes, under the names that they have in the file.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The tensor of that name.
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.by_name.get(name).map(|&idx| &self.entries[idx])
    }

    /// A view of the tensor's bytes in the map. Nothing is read or copied.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Checkpoint`](crate::ErrorKind::Checkpoint) if there is no such tensor,
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) if
    /// [`DType`](crate::DType) lacks its element type.
    pub fn take(&self, name: &str) -> Result<Tensor> {
        let place = |error: Error| error.at(self.path().display());
        let entry = self.entry(name).ok_or_else(|| {
            place(Error::checkpoint("there is no such tensor").at(format!("tensor `{name}`")))
        })?;
        let dtype = entry.supported_dtype().map_err(place)?;
        let owner: Arc<dyn ByteOwner> = self.map.clone();
        Tensor::new(name, dtype, entry.shape.clone(), owner, entry.start).map_err(place)
    }
}

/// Magic and version.
fn check_start(reader: &mut Reader<'_>) -> Result<u32> {
    let start = reader.rest();
    if start.starts_with(b"version https://git-lfs") {
        return Err(Error::checkpoint(
            "the file is a Git LFS pointer, expected the weights themselves",
        )
        .hint("run `git lfs pull` in the model's folder"));
    }
    if !start.starts_with(MAGIC) {
        return Err(
            Error::checkpoint("the file does not start with `GGUF`, expected a GGUF file")
                .hint("the file is damaged or is no GGUF file"),
        );
    }
    reader.take(MAGIC.len() as u64, "the magic")?;
    let version = reader.u32("the version")?;
    match version {
        2 | 3 => Ok(version),
        _ if version & 0xffff == 0 && version != 0 => Err(Error::unsupported(
            "the file is in big-endian order, expected little-endian",
        )),
        _ => Err(
            Error::unsupported(format!("GGUF version {version}, expected 2 or 3"))
                .hint("convert the model again with a recent llama.cpp"),
        ),
    }
}

fn count(reader: &mut Reader<'_>, of: &str) -> Result<u64> {
    let n = reader.u64(&format!("the number of {of}"))?;
    if n > MAX_COUNT {
        return Err(Error::checkpoint(format!(
            "the header claims {n} {of}, expected at most {MAX_COUNT}"
        )));
    }
    Ok(n)
}

fn alignment(metadata: &Metadata) -> Result<u64> {
    match metadata.whole("general.alignment")? {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(n) if n.is_power_of_two() => Ok(n),
        Some(n) => Err(
            Error::checkpoint(format!("found {n}, expected a power of two"))
                .at("metadata `general.alignment`"),
        ),
    }
}

/// One line of the table of tensors. `start` is still counted from the first value.
fn read_entry(reader: &mut Reader<'_>) -> Result<Entry> {
    let name = reader.text("the name of a tensor")?.to_owned();
    let place = format!("tensor `{name}`");
    read_shape(reader, name).map_err(|error| error.at(place))
}

fn read_shape(reader: &mut Reader<'_>, name: String) -> Result<Entry> {
    let rank = reader.u32("its rank")?;
    if rank > MAX_RANK {
        return Err(Error::checkpoint(format!(
            "has {rank} extents, expected at most {MAX_RANK}"
        )));
    }
    let mut dims = Vec::new();
    for _ in 0..rank {
        dims.push(reader.u64("its extents")?);
    }
    let id = reader.u32("its element type")?;
    let offset = reader.u64("its offset")?;
    // The file has the extent of adjacent values first.
    dims.reverse();
    let kind = types::of_id(id).ok_or_else(|| {
        Error::checkpoint(format!("unknown element type {id}, expected one of GGML's"))
    })?;
    let n_bytes = kind
        .n_bytes(&dims)
        .map_err(|what| Error::checkpoint(format!("shape {dims:?} of {} {what}", kind.name)))?;
    let overflows = |_| Error::checkpoint(format!("shape {dims:?} of {} overflows", kind.name));
    let shape = dims
        .iter()
        .map(|&dim| usize::try_from(dim))
        .collect::<Result<_, _>>()
        .map_err(overflows)?;
    Ok(Entry {
        name,
        dtype: kind.name.to_owned(),
        shape,
        n_bytes,
        start: usize::try_from(offset).map_err(overflows)?,
    })
}

/// Checks where values lie, and counts from the start of the file. Sorts by position.
fn place(entries: &mut [Entry], header: u64, alignment: u64, bytes: &[u8]) -> Result<()> {
    let len = bytes.len() as u64;
    let data = header
        .checked_next_multiple_of(alignment)
        .ok_or_else(|| Error::checkpoint("the alignment overflows"))?;
    let mut seen = HashSet::new();
    for entry in entries.iter_mut() {
        let wrong = |what: String| Error::checkpoint(what).at(format!("tensor `{}`", entry.name));
        if !seen.insert(entry.name.clone()) {
            return Err(wrong("appears twice".to_owned()));
        }
        let offset = entry.start as u64;
        if !offset.is_multiple_of(alignment) {
            return Err(wrong(format!(
                "begins at byte {offset} of the data, expected a multiple of {alignment}"
            )));
        }
        let start = data.checked_add(offset);
        let end = start.and_then(|start| start.checked_add(entry.n_bytes));
        match (start, end) {
            (Some(start), Some(end)) if end <= len => entry.start = start as usize,
            _ => {
                return Err(wrong(format!(
                    "needs {} bytes from byte {offset} of the data on, which begins at byte {data} \
                     of the {len} of the file",
                    entry.n_bytes
                ))
                .hint("was the download or copy cut short?"));
            }
        }
    }
    entries.sort_by_key(|entry| (entry.start, entry.n_bytes));
    for pair in entries.windows(2) {
        if pair[0].start + pair[0].n_bytes as usize > pair[1].start {
            return Err(Error::checkpoint(format!(
                "the bytes overlap those of tensor `{}`",
                pair[0].name
            ))
            .at(format!("tensor `{}`", pair[1].name)));
        }
    }
    Ok(())
}
