//! Writing GGUF files, version 3: metadata, a list of tensors, their values.
//!
//! Format: `docs/gguf.md` of the ggml repository. Numbers are little-endian; the values begin at a
//! multiple of 32 bytes, and so does each tensor's.

use std::path::Path;

use super::AtomicFile;
use crate::{BlockType, Error, Result};

/// At what multiples tensors begin: the format's default, which needs no key.
const ALIGNMENT: u64 = 32;
const VERSION: u32 = 3;

/// Codes of the types of metadata.
mod code {
    pub(super) const U8: u32 = 0;
    pub(super) const U32: u32 = 4;
    pub(super) const I32: u32 = 5;
    pub(super) const F32: u32 = 6;
    pub(super) const BOOL: u32 = 7;
    pub(super) const TEXT: u32 = 8;
    pub(super) const ARRAY: u32 = 9;
}

/// How a tensor's values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[allow(non_camel_case_types, reason = "the formats' own names")]
pub enum GgmlType {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// bfloat16.
    BF16,
    /// Blocks of 32: an f16 scale and 32 bytes.
    Q8_0,
    /// Blocks of 32: an f16 scale and 32 half bytes.
    Q4_0,
    /// Blocks of 32: an f16 scale, an f16 minimum and 32 half bytes.
    Q4_1,
    /// Blocks of 32: an f16 scale and 32 times 5 bits.
    Q5_0,
    /// Blocks of 32: an f16 scale, an f16 minimum and 32 times 5 bits.
    Q5_1,
    /// Blocks of 256: 2 bits, with a scale and a minimum of 4 bits for 16 values.
    Q2_K,
    /// Blocks of 256: 3 bits, with a scale of 6 bits for 16 values.
    Q3_K,
    /// Blocks of 256: 4 bits, with a scale and a minimum of 6 bits for 32 values.
    Q4_K,
    /// Blocks of 256: 5 bits, with a scale and a minimum of 6 bits for 32 values.
    Q5_K,
    /// Blocks of 256: 6 bits, with a scale of 8 bits for 16 values.
    Q6_K,
}

impl GgmlType {
    /// Its number in a file.
    pub const fn code(self) -> u32 {
        match self {
            GgmlType::F32 => 0,
            GgmlType::F16 => 1,
            GgmlType::Q4_0 => 2,
            GgmlType::Q4_1 => 3,
            GgmlType::Q5_0 => 6,
            GgmlType::Q5_1 => 7,
            GgmlType::Q8_0 => 8,
            GgmlType::Q2_K => 10,
            GgmlType::Q3_K => 11,
            GgmlType::Q4_K => 12,
            GgmlType::Q5_K => 13,
            GgmlType::Q6_K => 14,
            GgmlType::BF16 => 30,
        }
    }

    /// As files are named after it: `f16`, `q4_k`.
    pub const fn name(self) -> &'static str {
        match self {
            GgmlType::F32 => "f32",
            GgmlType::F16 => "f16",
            GgmlType::BF16 => "bf16",
            GgmlType::Q8_0 => "q8_0",
            GgmlType::Q4_0 => "q4_0",
            GgmlType::Q4_1 => "q4_1",
            GgmlType::Q5_0 => "q5_0",
            GgmlType::Q5_1 => "q5_1",
            GgmlType::Q2_K => "q2_k",
            GgmlType::Q3_K => "q3_k",
            GgmlType::Q4_K => "q4_k",
            GgmlType::Q5_K => "q5_k",
            GgmlType::Q6_K => "q6_k",
        }
    }

    /// The format by which its blocks are decoded, `None` for plain floats.
    pub const fn blocks(self) -> Option<BlockType> {
        Some(match self {
            GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => return None,
            GgmlType::Q8_0 => BlockType::Q8_0,
            GgmlType::Q4_0 => BlockType::Q4_0,
            GgmlType::Q4_1 => BlockType::Q4_1,
            GgmlType::Q5_0 => BlockType::Q5_0,
            GgmlType::Q5_1 => BlockType::Q5_1,
            GgmlType::Q2_K => BlockType::Q2_K,
            GgmlType::Q3_K => BlockType::Q3_K,
            GgmlType::Q4_K => BlockType::Q4_K,
            GgmlType::Q5_K => BlockType::Q5_K,
            GgmlType::Q6_K => BlockType::Q6_K,
        })
    }

    /// Values of a block, of which a row has a whole number.
    pub const fn block_len(self) -> usize {
        match self.blocks() {
            Some(blocks) => blocks.values(),
            None => 1,
        }
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        match (self.blocks(), self) {
            (Some(blocks), _) => blocks.bytes(),
            (None, GgmlType::F32) => 4,
            (None, _) => 2,
        }
    }
}

/// Keys and values, in the order in which they are put.
#[derive(Clone, Debug, Default)]
pub struct Metadata {
    count: u64,
    bytes: Vec<u8>,
}

impl Metadata {
    fn key(&mut self, key: &str, code: u32) {
        self.count += 1;
        text(&mut self.bytes, key);
        self.bytes.extend(code.to_le_bytes());
    }

    fn array(&mut self, key: &str, code: u32, len: usize) {
        self.key(key, code::ARRAY);
        self.bytes.extend(code.to_le_bytes());
        self.bytes.extend((len as u64).to_le_bytes());
    }

    /// An unsigned number.
    pub fn put_u32(&mut self, key: &str, value: u32) {
        self.key(key, code::U32);
        self.bytes.extend(value.to_le_bytes());
    }

    /// A float.
    pub fn put_f32(&mut self, key: &str, value: f32) {
        self.key(key, code::F32);
        self.bytes.extend(value.to_le_bytes());
    }

    /// True or false.
    pub fn put_bool(&mut self, key: &str, value: bool) {
        self.key(key, code::BOOL);
        self.bytes.push(u8::from(value));
    }

    /// A text.
    pub fn put_text(&mut self, key: &str, value: &str) {
        self.key(key, code::TEXT);
        text(&mut self.bytes, value);
    }

    /// A list of texts.
    pub fn put_texts<S: AsRef<str>>(&mut self, key: &str, values: &[S]) {
        self.array(key, code::TEXT, values.len());
        for value in values {
            text(&mut self.bytes, value.as_ref());
        }
    }

    /// A list of floats.
    pub fn put_f32s(&mut self, key: &str, values: &[f32]) {
        self.array(key, code::F32, values.len());
        self.bytes
            .extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }

    /// A list of numbers.
    pub fn put_i32s(&mut self, key: &str, values: &[i32]) {
        self.array(key, code::I32, values.len());
        self.bytes
            .extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }

    /// A key with its type and value, as a file has them. What it says is not looked at.
    pub(crate) fn put_stored(&mut self, pair: &[u8]) {
        self.count += 1;
        self.bytes.extend(pair);
    }

    /// Bytes.
    pub fn put_bytes(&mut self, key: &str, values: &[u8]) {
        self.array(key, code::U8, values.len());
        self.bytes.extend(values);
    }
}

fn text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufTensor {
    /// Its name in the file.
    pub name: String,
    /// How its values are stored.
    pub dtype: GgmlType,
    /// Extents, outermost first; the file lists them the other way round.
    pub shape: Vec<usize>,
}

impl GgufTensor {
    /// Bytes of its values.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Input`](crate::ErrorKind::Input) if a row is no whole number of blocks, or the
    /// shape overflows.
    pub fn n_bytes(&self) -> Result<u64> {
        let place = |error: Error| error.at(format!("tensor `{}`", self.name));
        let block = self.dtype.block_len();
        let row = self.shape.last().copied().unwrap_or(1);
        if !row.is_multiple_of(block) {
            return Err(place(Error::input(format!(
                "a row has {row} values, expected a multiple of {block} for blocks of {:?}",
                self.dtype
            ))));
        }
        self.shape
            .iter()
            .try_fold(1u64, |n, &dim| n.checked_mul(dim as u64))
            .map(|n_values| n_values / block as u64)
            .and_then(|n_blocks| n_blocks.checked_mul(self.dtype.block_bytes() as u64))
            .ok_or_else(|| place(Error::input(format!("shape {:?} overflows", self.shape))))
    }
}

/// A GGUF file in the making; tensors are written in their order.
pub struct GgufWriter {
    file: AtomicFile,
    /// Bytes of each tensor.
    sizes: Vec<u64>,
    /// The one that is being written, and its bytes so far.
    current: usize,
    done: u64,
}

impl GgufWriter {
    /// Starts a file.
    ///
    /// # Errors
    ///
    /// As [`GgufTensor::n_bytes`]; [`ErrorKind::Io`](crate::ErrorKind::Io) if the file cannot be
    /// written.
    pub fn create(path: &Path, metadata: &Metadata, tensors: &[GgufTensor]) -> Result<Self> {
        let mut head = b"GGUF".to_vec();
        head.extend(VERSION.to_le_bytes());
        head.extend((tensors.len() as u64).to_le_bytes());
        head.extend(metadata.count.to_le_bytes());
        head.extend(&metadata.bytes);
        let mut offset = 0u64;
        let mut sizes = Vec::with_capacity(tensors.len());
        for tensor in tensors {
            text(&mut head, &tensor.name);
            head.extend((tensor.shape.len() as u32).to_le_bytes());
            for &dim in tensor.shape.iter().rev() {
                head.extend((dim as u64).to_le_bytes());
            }
            head.extend(tensor.dtype.code().to_le_bytes());
            head.extend(offset.to_le_bytes());
            let size = tensor.n_bytes()?;
            offset = offset
                .checked_add(size)
                .and_then(|end| end.checked_next_multiple_of(ALIGNMENT))
                .ok_or_else(|| Error::input("the file would be too large"))?;
            sizes.push(size);
        }
        head.resize(head.len().next_multiple_of(ALIGNMENT as usize), 0);
        let mut file = AtomicFile::create(path)?;
        file.write(&head)?;
        let mut writer = GgufWriter {
            file,
            sizes,
            current: 0,
            done: 0,
        };
        writer.close_complete()?;
        Ok(writer)
    }

    /// Appends stored values to the tensor that is due.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if writing fails.
    ///
    /// # Panics
    ///
    /// If the tensor holds no more.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let size = self.sizes.get(self.current).copied().unwrap_or(0);
        self.done += bytes.len() as u64;
        assert!(self.done <= size, "tensor {} holds no more", self.current);
        self.file.write(bytes)?;
        self.close_complete()
    }

    /// Goes on to the next tensor that has values, over what fills the complete ones up.
    fn close_complete(&mut self) -> Result<()> {
        while self.sizes.get(self.current) == Some(&self.done) {
            let padding = self.done.next_multiple_of(ALIGNMENT) - self.done;
            self.file
                .write(&[0; ALIGNMENT as usize][..padding as usize])?;
            (self.current, self.done) = (self.current + 1, 0);
        }
        Ok(())
    }

    /// Gives the file its name.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if flushing or renaming fails.
    ///
    /// # Panics
    ///
    /// If a tensor is not complete.
    pub fn finish(self) -> Result<()> {
        assert_eq!(self.current, self.sizes.len(), "a tensor is incomplete");
        self.file.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str, dtype: GgmlType, shape: &[usize]) -> GgufTensor {
        GgufTensor {
            name: name.to_owned(),
            dtype,
            shape: shape.to_vec(),
        }
    }

    #[test]
    fn bytes_by_hand() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.gguf");
        let mut metadata = Metadata::default();
        metadata.put_u32("n", 7);
        metadata.put_texts("l", &["a"]);
        let tensors = [
            tensor("t", GgmlType::F16, &[1, 3]),
            tensor("e", GgmlType::F32, &[0]),
            tensor("q", GgmlType::Q4_0, &[32]),
        ];
        let mut writer = GgufWriter::create(&path, &metadata, &tensors).unwrap();
        writer.append(&[1, 2]).unwrap();
        writer.append(&[3, 4, 5, 6]).unwrap();
        writer.append(&[9; 18]).unwrap();
        assert!(!path.exists());
        writer.finish().unwrap();
        let mut expected = b"GGUF\x03\0\0\0".to_vec();
        let number = |value: u64| value.to_le_bytes();
        expected.extend([number(3), number(2)].concat());
        expected.extend(
            [
                &number(1)[..],
                b"n",
                &4u32.to_le_bytes(),
                &7u32.to_le_bytes(),
            ]
            .concat(),
        );
        expected.extend(
            [
                &number(1)[..],
                b"l",
                &9u32.to_le_bytes(),
                &8u32.to_le_bytes(),
            ]
            .concat(),
        );
        expected.extend([&number(1)[..], &number(1), b"a"].concat());
        for (name, dims, code, offset) in [
            (b"t", &[3u64, 1][..], 1u32, 0u64),
            (b"e", &[0], 0, 32),
            (b"q", &[32], 2, 32),
        ] {
            expected.extend([&number(1)[..], name].concat());
            expected.extend((dims.len() as u32).to_le_bytes());
            expected.extend(dims.iter().flat_map(|dim| dim.to_le_bytes()));
            expected.extend(code.to_le_bytes());
            expected.extend(offset.to_le_bytes());
        }
        expected.resize(expected.len().next_multiple_of(32), 0);
        let data = expected.len();
        expected.extend([1, 2, 3, 4, 5, 6]);
        expected.resize(data + 32, 0);
        expected.extend([9; 18]);
        expected.resize(data + 64, 0);
        assert_eq!(std::fs::read(&path).unwrap(), expected);
    }

    #[test]
    fn rows_are_whole_blocks() {
        assert_eq!(
            tensor("x", GgmlType::Q8_0, &[2, 64]).n_bytes().unwrap(),
            4 * 34
        );
        let error = tensor("x", GgmlType::Q8_0, &[32, 33])
            .n_bytes()
            .unwrap_err();
        assert!(error.to_string().contains("a row has 33 values"), "{error}");
        assert!(
            tensor("x", GgmlType::F32, &[usize::MAX, 2])
                .n_bytes()
                .is_err()
        );
    }

    #[test]
    #[should_panic(expected = "a tensor is incomplete")]
    fn an_incomplete_file_gets_no_name() {
        let folder = tempfile::tempdir().unwrap();
        let tensors = [tensor("x", GgmlType::F32, &[1])];
        let path = folder.path().join("x");
        let writer = GgufWriter::create(&path, &Metadata::default(), &tensors).unwrap();
        let _ = writer.finish();
    }
}
