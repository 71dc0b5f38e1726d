//! Stored tensors: a name, an element type, a shape and bytes that somebody else owns.
//!
//! Nothing here computes. A [`Tensor`] is how a checkpoint hands a weight to a backend:
//! usually a range of a memory map, so that making one costs no memory.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use quintic_kernels::{BlockType, Fp8};

use crate::{Error, Result};

/// Element type of a stored tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    BF16,
    /// Signed 64-bit integer.
    I64,
    /// Signed 32-bit integer.
    I32,
    /// Unsigned byte.
    U8,
    /// One byte, 0 or 1.
    Bool,
    /// A float of 8 bits with 4 of exponent, without infinities ("fn"). A tensor of it may have a
    /// [scale](Tensor::scale).
    F8E4M3,
    /// A float of 8 bits with 5 of exponent, see [`DType::F8E4M3`].
    F8E5M2,
    /// Blocks of quantised values, as GGUF files have them. A row is a whole number of blocks.
    Blocks(BlockType),
}

impl DType {
    /// Every type.
    pub(crate) fn all() -> impl Iterator<Item = DType> {
        const PLAIN: [DType; 9] = [
            DType::F32,
            DType::F16,
            DType::BF16,
            DType::F8E4M3,
            DType::F8E5M2,
            DType::I64,
            DType::I32,
            DType::U8,
            DType::Bool,
        ];
        PLAIN
            .into_iter()
            .chain(BlockType::ALL.into_iter().map(DType::Blocks))
    }

    /// Size of one element in bytes.
    ///
    /// # Panics
    ///
    /// For a block type, whose elements have no size of their own: see [`DType::n_bytes`].
    pub const fn size_bytes(self) -> usize {
        match self {
            DType::I64 => 8,
            DType::F32 | DType::I32 => 4,
            DType::F16 | DType::BF16 => 2,
            DType::U8 | DType::Bool | DType::F8E4M3 | DType::F8E5M2 => 1,
            DType::Blocks(_) => panic!("a value of a block has no size of its own"),
        }
    }

    /// Bytes of a tensor; `None` if they are too many to count, or if its rows are no whole number
    /// of blocks.
    pub fn n_bytes(self, shape: &[usize]) -> Option<usize> {
        let n = shape
            .iter()
            .try_fold(1usize, |n, &dim| n.checked_mul(dim))?;
        match self {
            DType::Blocks(kind) => {
                kind.bytes_of(shape.last().copied().unwrap_or(1))?;
                kind.bytes_of(n)
            }
            plain => n.checked_mul(plain.size_bytes()),
        }
    }

    /// Whether the type can hold a weight.
    pub const fn is_float(self) -> bool {
        matches!(
            self,
            DType::F32
                | DType::F16
                | DType::BF16
                | DType::F8E4M3
                | DType::F8E5M2
                | DType::Blocks(_)
        )
    }

    /// Whether the type holds weights in fewer than 16 bits.
    pub const fn is_quantized(self) -> bool {
        matches!(self, DType::F8E4M3 | DType::F8E5M2 | DType::Blocks(_))
    }

    /// The kind of an 8-bit float type.
    pub(crate) const fn fp8(self) -> Option<Fp8> {
        match self {
            DType::F8E4M3 => Some(Fp8::E4M3),
            DType::F8E5M2 => Some(Fp8::E5M2),
            _ => None,
        }
    }

    /// The name in a safetensors header, such as `BF16`; of a block type, that of GGUF.
    pub const fn safetensors_name(self) -> &'static str {
        match self {
            DType::F32 => "F32",
            DType::F16 => "F16",
            DType::BF16 => "BF16",
            DType::I64 => "I64",
            DType::I32 => "I32",
            DType::U8 => "U8",
            DType::Bool => "BOOL",
            DType::F8E4M3 => "F8_E4M3",
            DType::F8E5M2 => "F8_E5M2",
            DType::Blocks(kind) => kind.name(),
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::I64 => "i64",
            DType::I32 => "i32",
            DType::U8 => "u8",
            DType::Bool => "bool",
            DType::F8E4M3 => "f8_e4m3",
            DType::F8E5M2 => "f8_e5m2",
            DType::Blocks(kind) => kind.name(),
        })
    }
}

/// Whoever keeps a tensor's bytes alive: a memory map, a vector.
pub trait ByteOwner: Send + Sync {
    /// The bytes; always the same ones.
    fn bytes(&self) -> &[u8];

    /// Says that `range` will not be read soon. Reading it again gives the same bytes.
    fn release(&self, range: Range<usize>) {
        let _ = range;
    }
}

impl ByteOwner for Vec<u8> {
    fn bytes(&self) -> &[u8] {
        self
    }
}

/// A named, typed, shaped range of bytes in row-major, little-endian order.
///
/// Cloning shares the bytes. They may start at any address: safetensors files made by
/// other tools are not always aligned, so readers must not assume it.
#[derive(Clone)]
pub struct Tensor {
    name: Arc<str>,
    dtype: DType,
    shape: Vec<usize>,
    owner: Arc<dyn ByteOwner>,
    start: usize,
    end: usize,
    /// Of an 8-bit float type; else 1.
    scale: f32,
    nan_as_zero: bool,
}

impl Tensor {
    /// A view of bytes `start..start + len` of `owner`, where `len` follows from the shape.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Checkpoint`](crate::ErrorKind::Checkpoint) if the shape overflows or the
    /// range does not lie inside the owner.
    pub fn new(
        name: impl Into<Arc<str>>,
        dtype: DType,
        shape: Vec<usize>,
        owner: Arc<dyn ByteOwner>,
        start: usize,
    ) -> Result<Self> {
        let name = name.into();
        let len = dtype.n_bytes(&shape).ok_or_else(|| {
            let what = match dtype {
                DType::Blocks(kind)
                    if shape.last().is_some_and(|&n| kind.bytes_of(n).is_none()) =>
                {
                    format!(
                        "has rows that are no whole blocks of {} values",
                        kind.values()
                    )
                }
                _ => "overflows".to_owned(),
            };
            Error::checkpoint(format!("shape {shape:?} of {dtype} {what}"))
                .at(format!("tensor `{name}`"))
        })?;
        let available = owner.bytes().len();
        match start.checked_add(len) {
            Some(end) if end <= available => {
                Ok(Tensor { name, dtype, shape, owner, start, end, scale: 1.0, nan_as_zero: false })
            }
            _ => Err(Error::checkpoint(format!(
                "shape {shape:?} of {dtype} needs {len} bytes from byte {start} on, the data has {available}"
            ))
            .at(format!("tensor `{name}`"))),
        }
    }

    /// A tensor that owns its values.
    ///
    /// # Panics
    ///
    /// If `values` is not as long as the shape says.
    pub fn from_f32(name: impl Into<Arc<str>>, shape: Vec<usize>, values: &[f32]) -> Self {
        assert_eq!(
            shape.iter().product::<usize>(),
            values.len(),
            "shape {shape:?}"
        );
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        let end = bytes.len();
        Tensor {
            name: name.into(),
            dtype: DType::F32,
            shape,
            owner: Arc::new(bytes),
            start: 0,
            end,
            scale: 1.0,
            nan_as_zero: false,
        }
    }

    /// The same bytes, each value multiplied by `scale` in f32.
    ///
    /// # Panics
    ///
    /// If the type is no 8-bit float: others carry their scales in themselves.
    #[must_use]
    pub fn with_scale(mut self, scale: f32) -> Self {
        assert!(self.dtype.fp8().is_some(), "a scale of {}", self.dtype);
        self.scale = scale;
        self
    }

    /// The same bytes, of which those that are NaN are read as 0.
    ///
    /// # Panics
    ///
    /// If the type is no 8-bit float.
    #[must_use]
    pub fn with_nan_as_zero(mut self) -> Self {
        assert!(self.dtype.fp8().is_some(), "NaN of {}", self.dtype);
        self.nan_as_zero = true;
        self
    }

    /// What each value of an 8-bit float type is multiplied by; 1 for other types.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// Whether NaN is read as 0, see [`Tensor::with_nan_as_zero`].
    pub fn reads_nan_as_zero(&self) -> bool {
        self.nan_as_zero
    }

    /// How many values of an 8-bit float type are NaN or infinite. Reads all of them.
    pub(crate) fn count_special(&self) -> usize {
        match self.dtype.fp8() {
            None => 0,
            Some(kind) => {
                let special = |&&byte: &&u8| kind.is_special(byte);
                self.bytes().iter().filter(special).count()
            }
        }
    }

    /// The same bytes under another name.
    #[must_use]
    pub fn with_name(mut self, name: impl Into<Arc<str>>) -> Self {
        self.name = name.into();
        self
    }

    /// Name in the checkpoint.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Extents, outermost first; empty for a scalar.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn n_elements(&self) -> usize {
        // Their product was counted when the tensor was made.
        self.shape.iter().product()
    }

    /// The raw bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.owner.bytes()[self.start..self.end]
    }

    /// Gives the memory of a mapped tensor back to the system, which reads it from the file
    /// again if need be: for whoever has made a copy and will not come back.
    pub fn release(&self) {
        self.owner.release(self.start..self.end);
    }

    /// Writes elements `from..from + out.len()` as f32. Exact for f32, f16 and bf16; an 8-bit float
    /// is multiplied by the tensor's scale in f32; blocks give what [`BlockType::decode`] says.
    ///
    /// # Panics
    ///
    /// If the range is not inside the tensor, or the type is not a float type.
    pub fn read_f32(&self, from: usize, out: &mut [f32]) {
        if let DType::Blocks(kind) = self.dtype {
            return kind.decode_from(self.bytes(), from, out);
        }
        let size = self.dtype.size_bytes();
        let bytes = &self.bytes()[from * size..(from + out.len()) * size];
        match self.dtype {
            DType::F32 => {
                for (out, bytes) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                    *out = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                }
            }
            DType::F16 => {
                for (out, bytes) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                    *out = half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
                }
            }
            DType::BF16 => {
                for (out, bytes) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                    *out = half::bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
                }
            }
            DType::F8E4M3 => self.read_fp8(Fp8::E4M3, bytes, out),
            DType::F8E5M2 => self.read_fp8(Fp8::E5M2, bytes, out),
            DType::I64 | DType::I32 | DType::U8 | DType::Bool | DType::Blocks(_) => {
                panic!(
                    "tensor `{}` of type {} is not a weight",
                    self.name, self.dtype
                )
            }
        }
    }

    fn read_fp8(&self, kind: Fp8, bytes: &[u8], out: &mut [f32]) {
        for (out, &byte) in out.iter_mut().zip(bytes) {
            let value = kind.decode(byte);
            *out = match self.nan_as_zero && value.is_nan() {
                true => 0.0,
                false => value * self.scale,
            };
        }
    }

    /// A tensor of f32 with the same values, see [`Tensor::read_f32`].
    pub(crate) fn widened(&self) -> Tensor {
        Tensor::from_f32(self.name.clone(), self.shape.clone(), &self.to_f32())
    }

    /// All elements as f32, see [`Tensor::read_f32`].
    ///
    /// # Panics
    ///
    /// If the type is not a float type.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.n_elements()];
        self.read_f32(0, &mut out);
        out
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}{:?}", self.name, self.dtype, self.shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_float_type_from_an_odd_address() {
        let mut bytes = vec![0xAA];
        bytes.extend(half::bf16::from_f32(1.5).to_le_bytes());
        bytes.extend(half::f16::from_f32(-2.25).to_le_bytes());
        bytes.extend(3.125f32.to_le_bytes());
        let owner: Arc<dyn ByteOwner> = Arc::new(bytes);
        for (dtype, start, expected) in [
            (DType::BF16, 1, 1.5),
            (DType::F16, 3, -2.25),
            (DType::F32, 5, 3.125),
        ] {
            let tensor = Tensor::new("x", dtype, vec![1], owner.clone(), start).unwrap();
            assert_eq!(tensor.to_f32(), [expected]);
        }
    }

    #[test]
    fn eight_bit_floats_have_a_scale_and_may_read_nan_as_zero() {
        let owner: Arc<dyn ByteOwner> = Arc::new(vec![0x38, 0xb8, 0x7f, 0x01]);
        let tensor = Tensor::new("x", DType::F8E4M3, vec![4], owner, 0).unwrap();
        assert_eq!(tensor.count_special(), 1);
        let values = tensor.to_f32();
        assert_eq!(
            (values[0], values[1], values[3]),
            (1.0, -1.0, 2f32.powi(-9))
        );
        assert!(values[2].is_nan());
        let tensor = tensor.with_scale(0.3).with_nan_as_zero();
        assert_eq!(tensor.to_f32(), [0.3, -0.3, 0.0, 0.3 * 2f32.powi(-9)]);
    }

    #[test]
    fn blocks_are_read_from_any_value_on() {
        let kind = BlockType::Q8_0;
        // Two rows of two blocks: scale 2, values 0, 1, ...
        let block: Vec<u8> = half::f16::from_f32(2.0)
            .to_le_bytes()
            .into_iter()
            .chain(0..32)
            .collect();
        let owner: Arc<dyn ByteOwner> = Arc::new(block.repeat(4));
        let dtype = DType::Blocks(kind);
        let tensor = Tensor::new("x", dtype, vec![2, 64], owner.clone(), 0).unwrap();
        assert_eq!((tensor.n_elements(), tensor.bytes().len()), (128, 4 * 34));
        let mut part = [0.0; 3];
        tensor.read_f32(95, &mut part);
        assert_eq!(part, [62.0, 0.0, 2.0]);
        let error = Tensor::new("x", dtype, vec![4, 48], owner, 0).unwrap_err();
        assert_eq!(
            error.message(),
            "shape [4, 48] of Q8_0 has rows that are no whole blocks of 32 values"
        );
    }

    #[test]
    fn refuses_ranges_outside_the_data() {
        let owner: Arc<dyn ByteOwner> = Arc::new(vec![0u8; 16]);
        let at =
            |shape: Vec<usize>, start| Tensor::new("w", DType::F32, shape, owner.clone(), start);
        assert!(at(vec![4], 0).is_ok());
        assert!(at(vec![0], 16).is_ok());
        let error = at(vec![4], 1).unwrap_err().to_string();
        assert_eq!(
            error,
            "tensor `w`: shape [4] of f32 needs 16 bytes from byte 1 on, the data has 16"
        );
        assert!(at(vec![usize::MAX, 2], 0).is_err());
        assert!(at(vec![1], usize::MAX).is_err());
    }
}
