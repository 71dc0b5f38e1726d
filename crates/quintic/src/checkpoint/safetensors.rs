//! Safetensors files, mapped: an eight-byte header length, a JSON header, the values.
//!
//! The header is read and checked here rather than by the `safetensors` crate, whose errors
//! name no file and mostly no tensor, and which keeps the last of two equal names. What it
//! accepts is the same otherwise, but for white space in front of the header, which the format
//! forbids; its table of element types is used as it is.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use super::entry::Entry;
use super::header::{Header, RawEntry};
use crate::mmap::MappedFile;
use crate::{ByteOwner, Error, Result, Tensor};

/// Longest header accepted, the limit of the format's reference reader.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;

const LENGTH_BYTES: usize = 8;

/// An open safetensors file. Only the header is in memory; tensors are ranges of the map.
#[derive(Debug)]
pub struct SafetensorsFile {
    map: Arc<MappedFile>,
    entries: Vec<Entry>,
    by_name: HashMap<String, usize>,
    metadata: BTreeMap<String, String>,
}

impl SafetensorsFile {
    /// Maps the file and checks its header: every tensor has a known element type, as many
    /// bytes as its type and shape say, and bytes of its own; together they fill the file.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Checkpoint`](crate::ErrorKind::Checkpoint) naming the file and, where it
    /// is about one, the tensor; [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) and
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) from opening.
    pub fn open(path: &Path) -> Result<Self> {
        SafetensorsFile::from_map(MappedFile::open(path)?)
    }

    /// [`SafetensorsFile::open`] for a file that is mapped already.
    pub(super) fn from_map(map: MappedFile) -> Result<Self> {
        let place = |error: Error| error.at(map.path().display());
        let (header, data_start) = read_header(map.bytes()).map_err(place)?;
        let data_len = map.bytes().len() - data_start;
        let entries = check(header.entries, data_start, data_len).map_err(place)?;
        let by_name = entries
            .iter()
            .enumerate()
            .map(|(idx, entry)| (entry.name.clone(), idx))
            .collect();
        Ok(SafetensorsFile {
            map: Arc::new(map),
            entries,
            by_name,
            metadata: header.metadata,
        })
    }

    /// Where the file was found.
    pub fn path(&self) -> &Path {
        self.map.path()
    }

    /// All tensors in the order of their bytes.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The tensor of that name.
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.by_name.get(name).map(|&idx| &self.entries[idx])
    }

    /// The `__metadata__` of the header.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
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

/// The parsed header and the position of the first value.
fn read_header(bytes: &[u8]) -> Result<(Header, usize)> {
    if bytes.is_empty() {
        return Err(Error::checkpoint(
            "the file is empty, expected a safetensors header",
        ));
    }
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() else {
        return Err(Error::checkpoint(format!(
            "the file has {} bytes, expected at least the {LENGTH_BYTES} of the header length",
            bytes.len()
        )));
    };
    if let Some(error) = other_format(bytes) {
        return Err(error);
    }
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES {
        return Err(Error::checkpoint(format!(
            "the header length is {length} bytes, expected at most {MAX_HEADER_BYTES}"
        ))
        .hint("the file is damaged or is no safetensors file"));
    }
    let length = length as usize; // at most MAX_HEADER_BYTES
    let Some(header) = rest.get(..length) else {
        return Err(Error::checkpoint(format!(
            "the header has {length} bytes, the file ends after {} of them",
            rest.len()
        ))
        .hint("was the download or copy cut short?"));
    };
    if header.first() != Some(&b'{') {
        return Err(
            Error::checkpoint("the header does not start with `{`, expected JSON")
                .hint("the file is damaged or is no safetensors file"),
        );
    }
    let header = std::str::from_utf8(header).map_err(|error| {
        Error::checkpoint(format!("the header is not UTF-8: {error}")).source_error(error)
    })?;
    let header = serde_json::from_str(header).map_err(|error| {
        Error::checkpoint(format!("the header cannot be read: {error}")).source_error(error)
    })?;
    Ok((header, LENGTH_BYTES + length))
}

/// What else the file may be, if its first bytes say so.
fn other_format(bytes: &[u8]) -> Option<Error> {
    if bytes.starts_with(b"version https://git-lfs") {
        return Some(
            Error::checkpoint("the file is a Git LFS pointer, expected the weights themselves")
                .hint("run `git lfs pull` in the model's folder"),
        );
    }
    let found = if bytes.starts_with(b"PK\x03\x04") {
        "a zip archive, as PyTorch writes"
    } else if bytes.starts_with(b"GGUF") {
        "a GGUF file"
    } else if bytes.starts_with(b"<!DOCTYPE") || bytes.starts_with(b"<html") {
        "an HTML page"
    } else {
        return None;
    };
    Some(Error::checkpoint(format!(
        "the file is {found}, expected a safetensors file"
    )))
}

/// Checks every entry by itself, then that their ranges fill the data without overlap.
fn check(raw: Vec<(String, RawEntry)>, data_start: usize, data_len: usize) -> Result<Vec<Entry>> {
    let mut entries = Vec::with_capacity(raw.len());
    for (name, raw) in raw {
        let place = format!("tensor `{name}`");
        entries
            .push(check_entry(name, raw, data_start, data_len).map_err(|error| error.at(place))?);
    }
    entries.sort_by_key(|entry| (entry.start, entry.n_bytes));
    check_ranges(&entries, data_start, data_len)?;
    Ok(entries)
}

fn check_entry(name: String, raw: RawEntry, data_start: usize, data_len: usize) -> Result<Entry> {
    let RawEntry {
        dtype,
        shape,
        data_offsets: (begin, end),
    } = raw;
    let Ok(known) = serde_json::from_value::<safetensors::Dtype>(dtype.as_str().into()) else {
        return Err(Error::checkpoint(format!(
            "unknown element type `{dtype}`, expected one of the safetensors format such as `F32`"
        )));
    };
    if begin > end {
        return Err(Error::checkpoint(format!(
            "data offsets [{begin}, {end}] run backwards"
        )));
    }
    if end > data_len as u64 {
        return Err(Error::checkpoint(format!(
            "data offsets [{begin}, {end}] lie outside the data, which has {data_len} bytes"
        ))
        .hint("was the download or copy cut short?"));
    }
    let expected = n_bytes(&shape, known.bitsize() as u64)
        .map_err(|what| Error::checkpoint(format!("shape {shape:?} of {dtype} {what}")))?;
    if end - begin != expected {
        return Err(Error::checkpoint(format!(
            "data offsets [{begin}, {end}] hold {} bytes, expected {expected} for shape {shape:?} of {dtype}",
            end - begin
        )));
    }
    let to_usize = |&dim: &u64| {
        usize::try_from(dim)
            .map_err(|_| Error::checkpoint(format!("shape {shape:?} of {dtype} overflows")))
    };
    let shape = shape.iter().map(to_usize).collect::<Result<_>>()?;
    Ok(Entry {
        name,
        dtype,
        shape,
        n_bytes: expected,
        start: data_start + begin as usize,
    })
}

/// Bytes of a tensor, or why there is no such number.
fn n_bytes(shape: &[u64], bits: u64) -> Result<u64, &'static str> {
    // Extents first, as the reference reader counts: a 0 behind a huge extent makes no bytes.
    let bits = shape
        .iter()
        .try_fold(1u64, |n, &dim| n.checked_mul(dim))
        .and_then(|n| n.checked_mul(bits))
        .ok_or("overflows")?;
    match bits % 8 {
        0 => Ok(bits / 8),
        _ => Err("does not fill whole bytes"),
    }
}

/// `entries` are sorted by position and lie inside the data.
fn check_ranges(entries: &[Entry], data_start: usize, data_len: usize) -> Result<()> {
    let mut next = data_start;
    let mut before = None::<&Entry>;
    for entry in entries {
        if let Some(before) = before.filter(|_| entry.start < next) {
            return Err(Error::checkpoint(format!(
                "the bytes overlap those of tensor `{}`",
                before.name
            ))
            .at(format!("tensor `{}`", entry.name)));
        }
        if entry.start > next {
            return Err(Error::checkpoint(format!(
                "{} bytes before the data belong to no tensor",
                entry.start - next
            ))
            .at(format!("tensor `{}`", entry.name)));
        }
        next = entry.start + entry.n_bytes as usize;
        before = Some(entry);
    }
    match data_start + data_len - next {
        0 => Ok(()),
        extra => Err(Error::checkpoint(format!(
            "the file has {extra} bytes after the last tensor, expected none"
        ))),
    }
}
