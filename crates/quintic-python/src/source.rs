//! Weights that Python objects hold.

use std::collections::BTreeMap;
use std::sync::Arc;

use pyo3::prelude::*;
use quintic::model::TakeTensor;
use quintic::{ByteOwner, DType, Error, Result, Tensor};

/// One tensor in memory that Python owns: contiguous, row-major, in the machine's byte order.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct Borrowed {
    name: String,
    dtype: String,
    shape: Vec<usize>,
    address: usize,
    /// The object that keeps the memory alive.
    owner: Py<PyAny>,
}

/// Memory of a Python object.
struct Memory {
    address: usize,
    len: usize,
    /// Held, never looked at.
    _owner: Py<PyAny>,
}

impl ByteOwner for Memory {
    fn bytes(&self) -> &[u8] {
        if self.len == 0 {
            return &[];
        }
        // SAFETY: the package passes the address of a contiguous tensor of this many bytes
        // together with the object that owns it, which lives as long as `self`. Python may
        // write to it meanwhile, as to any array that is shared; the bytes are read as floats
        // alone, for which every pattern is valid.
        unsafe { std::slice::from_raw_parts(self.address as *const u8, self.len) }
    }
}

/// Tensors by name.
pub(crate) struct Tensors(BTreeMap<String, Tensor>);

impl Tensors {
    /// # Errors
    ///
    /// If a type is not one of a weight.
    pub(crate) fn new(borrowed: Vec<Borrowed>) -> Result<Self> {
        borrowed
            .into_iter()
            .map(|tensor| Ok((tensor.name.clone(), tensor.into_tensor()?)))
            .collect::<Result<_>>()
            .map(Tensors)
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Tensor> {
        self.0.get(name)
    }
}

impl Borrowed {
    fn into_tensor(self) -> Result<Tensor> {
        let dtype = match self.dtype.as_str() {
            "f32" => DType::F32,
            "bf16" => DType::BF16,
            "f16" => DType::F16,
            other => {
                return Err(Error::unsupported(format!(
                    "weights of type `{other}` cannot be used, expected float32, bfloat16 or float16"
                ))
                .at(format!("tensor `{}`", self.name)));
            }
        };
        let len = self.shape.iter().product::<usize>() * dtype.size_bytes();
        let owner = Memory {
            address: self.address,
            len,
            _owner: self.owner,
        };
        Tensor::new(self.name, dtype, self.shape, Arc::new(owner), 0)
    }
}

impl TakeTensor for Tensors {
    fn contains(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    fn require(&mut self, wanted: &[(String, Vec<usize>)]) -> Result<()> {
        let missing: Vec<&str> = wanted
            .iter()
            .filter(|(name, _)| !self.0.contains_key(name))
            .map(|(name, _)| name.as_str())
            .collect();
        if !missing.is_empty() {
            return Err(Error::checkpoint(format!(
                "{} of the tensors that the config implies are missing: `{}`",
                missing.len(),
                missing.join("`, `")
            )));
        }
        wanted
            .iter()
            .try_for_each(|(name, shape)| self.take(name, shape).map(drop))
    }

    fn take(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let place = format!("tensor `{name}`");
        let Some(tensor) = self.0.get(name) else {
            return Err(Error::checkpoint("is missing").at(place));
        };
        if tensor.shape() != shape {
            return Err(Error::checkpoint(format!(
                "has shape {:?}, expected {shape:?} from the config",
                tensor.shape()
            ))
            .at(place));
        }
        Ok(tensor.clone())
    }
}
