//! Stored tensors: a name, an element type, a shape and bytes that somebody else owns.
//!
//! Nothing here computes. A [`Tensor`] is how a checkpoint hands a weight to a backend:
//! usually a range of a memory map, so that making one costs no memory.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

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
}

impl DType {
    /// Size of one element in bytes.
    pub const fn size_bytes(self) -> usize {
        match self {
            DType::I64 => 8,
            DType::F32 | DType::I32 => 4,
            DType::F16 | DType::BF16 => 2,
            DType::U8 | DType::Bool => 1,
        }
    }

    /// Whether the type can hold a weight.
    pub const fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::F16 | DType::BF16)
    }

    /// The name in a safetensors header, such as `BF16`.
    pub const fn safetensors_name(self) -> &'static str {
        match self {
            DType::F32 => "F32",
            DType::F16 => "F16",
            DType::BF16 => "BF16",
            DType::I64 => "I64",
            DType::I32 => "I32",
            DType::U8 => "U8",
            DType::Bool => "BOOL",
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
        let len = shape
            .iter()
            .try_fold(1usize, |n, &dim| n.checked_mul(dim))
            .and_then(|n| n.checked_mul(dtype.size_bytes()))
            .ok_or_else(|| {
                Error::checkpoint(format!("shape {shape:?} of {dtype} overflows"))
                    .at(format!("tensor `{name}`"))
            })?;
        let available = owner.bytes().len();
        match start.checked_add(len) {
            Some(end) if end <= available => {
                Ok(Tensor { name, dtype, shape, owner, start, end })
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
        (self.end - self.start) / self.dtype.size_bytes()
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

    /// Writes elements `from..from + out.len()` as f32. Exact for f32, f16 and bf16.
    ///
    /// # Panics
    ///
    /// If the range is not inside the tensor, or the type is not a float type.
    pub fn read_f32(&self, from: usize, out: &mut [f32]) {
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
            DType::I64 | DType::I32 | DType::U8 | DType::Bool => {
                panic!(
                    "tensor `{}` of type {} is not a weight",
                    self.name, self.dtype
                )
            }
        }
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
