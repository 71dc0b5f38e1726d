//! The keys of a file and their values.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::read::Reader;
use crate::mmap::MappedFile;
use crate::{Error, Result};

/// A value as it is stored; texts and lists stay in the file.
#[derive(Clone, Copy, Debug)]
enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text { start: usize },
    List { kind: u32, len: u64, start: usize },
}

/// Most texts of a list that are read; the largest vocabulary of the family has 256 thousand.
const MAX_TEXTS: u64 = 1 << 22;

const U8: u32 = 0;
const I8: u32 = 1;
const I32: u32 = 5;
const F32: u32 = 6;
const TEXT: u32 = 8;
const LIST: u32 = 9;

/// Bytes of a value of fixed size.
fn size(kind: u32) -> Option<u64> {
    Some(match kind {
        U8 | I8 | 7 => 1,
        2 | 3 => 2,
        4 | I32 | F32 => 4,
        10..=12 => 8,
        _ => return None,
    })
}

/// What a type is called in messages.
fn kind_name(kind: u32) -> &'static str {
    const NAMES: [&str; 13] = [
        "u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "a text", "a list", "u64", "i64",
        "f64",
    ];
    NAMES
        .get(kind as usize)
        .copied()
        .unwrap_or("of an unknown type")
}

/// All keys of a file.
pub(super) struct Metadata {
    map: Arc<MappedFile>,
    values: BTreeMap<String, (u32, Value)>,
    /// Where a key, its type and its value stand in the file, in its order.
    pairs: Vec<(String, Range<usize>)>,
}

impl Metadata {
    /// Reads `n` keys. Lists are passed over, not kept.
    pub(super) fn read(map: &Arc<MappedFile>, reader: &mut Reader<'_>, n: u64) -> Result<Self> {
        let (mut values, mut pairs) = (BTreeMap::new(), Vec::new());
        for _ in 0..n {
            let start = reader.position();
            let key = reader.text("a key")?.to_owned();
            let kind = reader.u32("the type of a value")?;
            let value = read_value(reader, kind).map_err(|error| error.at(place(&key)))?;
            if values.insert(key.clone(), (kind, value)).is_some() {
                return Err(Error::checkpoint("appears twice").at(place(&key)));
            }
            pairs.push((key, start..reader.position()));
        }
        Ok(Metadata {
            map: Arc::clone(map),
            values,
            pairs,
        })
    }

    /// The bytes of key, type and value of all keys that begin so.
    pub(super) fn pairs<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a [u8]> {
        let pairs = self.pairs.iter();
        pairs
            .filter(move |(key, _)| key.starts_with(prefix))
            .map(|(_, range)| self.map.bytes().get(range.clone()).unwrap_or_default())
    }

    /// The whole number of a key, which must not be negative.
    pub(super) fn whole(&self, key: &str) -> Result<Option<u64>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(&(_, Value::Unsigned(n))) => Ok(Some(n)),
            Some(&(_, Value::Signed(n))) if n >= 0 => Ok(Some(n as u64)),
            Some(&(_, Value::Signed(n))) => Err(Error::checkpoint(format!(
                "found {n}, expected a number of at least 0"
            ))
            .at(place(key))),
            Some(&(kind, _)) => Err(self.wrong(key, kind, "a whole number")),
        }
    }

    /// The number of a key; of an f32, the shortest decimal number that it is the nearest f32 to,
    /// since that is what was meant.
    pub(super) fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(&(kind, Value::Float(x))) => Ok(Some(match kind {
                F32 => (x as f32).to_string().parse().unwrap_or(x),
                _ => x,
            })),
            Some(&(kind, _)) => Err(self.wrong(key, kind, "a float")),
        }
    }

    pub(super) fn boolean(&self, key: &str) -> Result<Option<bool>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(&(_, Value::Bool(flag))) => Ok(Some(flag)),
            Some(&(kind, _)) => Err(self.wrong(key, kind, "a bool")),
        }
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(&(_, Value::Text { start })) => {
                let text = self.at(start).long_text("the text");
                text.map(Some).map_err(|error| error.at(place(key)))
            }
            Some(&(kind, _)) => Err(self.wrong(key, kind, "a text")),
        }
    }

    /// The texts of a list.
    pub(super) fn texts(&self, key: &str) -> Result<Option<Vec<&str>>> {
        let Some((len, mut reader)) = self.list(key, &[TEXT], "a list of texts")? else {
            return Ok(None);
        };
        if len > MAX_TEXTS {
            return Err(Error::checkpoint(format!(
                "the list has {len} texts, expected at most {MAX_TEXTS}"
            ))
            .at(place(key)));
        }
        // Not sized by `len`, which the bytes behind it have to bear out.
        let mut texts = Vec::new();
        for _ in 0..len {
            let text = reader.long_text("a text of the list");
            texts.push(text.map_err(|error| error.at(place(key)))?);
        }
        Ok(Some(texts))
    }

    /// The bytes of a list of u8 or i8.
    pub(super) fn bytes(&self, key: &str) -> Result<Option<&[u8]>> {
        self.raw(key, &[U8, I8], "a list of bytes")
    }

    /// The values of a list of f32.
    pub(super) fn floats(&self, key: &str) -> Result<Option<Vec<f32>>> {
        let bytes = self.raw(key, &[F32], "a list of f32")?;
        Ok(bytes.map(|bytes| words(bytes).map(f32::from_le_bytes).collect()))
    }

    /// The values of a list of i32.
    pub(super) fn integers(&self, key: &str) -> Result<Option<Vec<i32>>> {
        let bytes = self.raw(key, &[I32], "a list of i32")?;
        Ok(bytes.map(|bytes| words(bytes).map(i32::from_le_bytes).collect()))
    }

    fn raw(&self, key: &str, kinds: &[u32], expected: &str) -> Result<Option<&[u8]>> {
        let Some((len, mut reader)) = self.list(key, kinds, expected)? else {
            return Ok(None);
        };
        let n = kinds.first().and_then(|&kind| size(kind)).unwrap_or(1);
        let bytes = reader.take(len.saturating_mul(n), "the list");
        bytes.map(Some).map_err(|error| error.at(place(key)))
    }

    fn list(&self, key: &str, kinds: &[u32], expected: &str) -> Result<Option<(u64, Reader<'_>)>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(&(_, Value::List { kind, len, start })) if kinds.contains(&kind) => {
                Ok(Some((len, self.at(start))))
            }
            Some(&(_, Value::List { kind, .. })) => {
                let found = format!("found a list of {}, expected {expected}", kind_name(kind));
                Err(Error::checkpoint(found).at(place(key)))
            }
            Some(&(kind, _)) => Err(self.wrong(key, kind, expected)),
        }
    }

    fn at(&self, start: usize) -> Reader<'_> {
        Reader::new(self.map.bytes().get(start..).unwrap_or_default())
    }

    fn wrong(&self, key: &str, kind: u32, expected: &str) -> Error {
        let found = format!("found {}, expected {expected}", kind_name(kind));
        Error::checkpoint(found).at(place(key))
    }
}

/// Where a key is, for errors.
pub(super) fn place(key: &str) -> String {
    format!("metadata `{key}`")
}

fn words(bytes: &[u8]) -> impl Iterator<Item = [u8; 4]> {
    bytes.as_chunks::<4>().0.iter().copied()
}

fn read_value(reader: &mut Reader<'_>, kind: u32) -> Result<Value> {
    let start = reader.position();
    match kind {
        TEXT => {
            reader.long_text("the text")?;
            Ok(Value::Text { start })
        }
        LIST => {
            let kind = reader.u32("the type of a list")?;
            let len = reader.u64("the length of a list")?;
            let start = reader.position();
            match (kind, size(kind)) {
                (TEXT, _) => {
                    for _ in 0..len {
                        reader.long_text("a text of the list")?;
                    }
                }
                (_, Some(n)) => {
                    reader.take(len.saturating_mul(n), "the list")?;
                }
                (LIST, _) => return Err(Error::unsupported("a list of lists is not read")),
                _ => {
                    return Err(Error::checkpoint(format!(
                        "a list of the unknown type {kind}"
                    )));
                }
            }
            Ok(Value::List { kind, len, start })
        }
        _ => {
            let Some(n) = size(kind) else {
                return Err(Error::checkpoint(format!("has the unknown type {kind}")));
            };
            let mut wide = [0; 8];
            wide[..n as usize].copy_from_slice(reader.take(n, "the value")?);
            let bits = u64::from_le_bytes(wide);
            Ok(match kind {
                I8 => Value::Signed((bits as i8).into()),
                3 => Value::Signed((bits as i16).into()),
                I32 => Value::Signed((bits as i32).into()),
                11 => Value::Signed(bits as i64),
                F32 => Value::Float(f32::from_bits(bits as u32).into()),
                12 => Value::Float(f64::from_bits(bits)),
                7 if bits > 1 => {
                    return Err(Error::checkpoint(format!("found {bits}, expected a bool")));
                }
                7 => Value::Bool(bits == 1),
                _ => Value::Unsigned(bits),
            })
        }
    }
}
