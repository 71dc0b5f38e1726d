//! Writing safetensors of known shapes piece by piece, without holding a tensor in memory.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::{AtomicFile, convert};
use crate::{DType, Error, Result};

/// Name, element type and shape of a tensor to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorSpec {
    /// Name in the file.
    pub name: String,
    /// Element type in the file.
    pub dtype: DType,
    /// Extents, outermost first.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// A spec.
    pub fn new(name: impl Into<String>, dtype: DType, shape: &[usize]) -> Self {
        TensorSpec {
            name: name.into(),
            dtype,
            shape: shape.to_vec(),
        }
    }

    fn size_bytes(&self) -> Result<u64> {
        if matches!(self.dtype, DType::Blocks(_)) {
            return Err(Error::unsupported(format!(
                "safetensors files have no type for blocks of {}",
                self.dtype
            ))
            .at(format!("tensor `{}`", self.name)));
        }
        self.dtype
            .n_bytes(&self.shape)
            .map(|n| n as u64)
            .ok_or_else(|| {
                Error::input(format!("shape {:?} overflows", self.shape))
                    .at(format!("tensor `{}`", self.name))
            })
    }
}

/// A safetensors file in the making. Each tensor is appended to in its own order.
pub struct SafetensorsWriter {
    file: AtomicFile,
    path: String,
    tensors: Vec<Progress>,
    buffer: Vec<u8>,
}

struct Progress {
    spec: TensorSpec,
    next: u64,
    end: u64,
}

impl SafetensorsWriter {
    /// Starts a file of the given tensors and text metadata.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if the file cannot be written,
    /// [`ErrorKind::Input`](crate::ErrorKind::Input) if a shape overflows.
    pub fn create(path: &Path, specs: &[TensorSpec], metadata: &[(&str, String)]) -> Result<Self> {
        // The format asks for data that begins at a multiple of 8.
        Self::create_aligned(path, specs, metadata, 8)
    }

    /// [`SafetensorsWriter::create`] of a file whose data begins at a multiple of `alignment`
    /// bytes, itself a multiple of 8.
    ///
    /// # Errors
    ///
    /// As [`SafetensorsWriter::create`].
    pub fn create_aligned(
        path: &Path,
        specs: &[TensorSpec],
        metadata: &[(&str, String)],
        alignment: usize,
    ) -> Result<Self> {
        let mut header = Map::new();
        if !metadata.is_empty() {
            let metadata: Map<_, _> = metadata
                .iter()
                .map(|(key, value)| ((*key).to_owned(), json!(value)))
                .collect();
            header.insert("__metadata__".to_owned(), Value::Object(metadata));
        }
        let mut offset = 0u64;
        let mut tensors = Vec::with_capacity(specs.len());
        for spec in specs {
            let end = offset
                .checked_add(spec.size_bytes()?)
                .ok_or_else(|| Error::input("the file would be too large"))?;
            header.insert(
                spec.name.clone(),
                json!({
                    "dtype": spec.dtype.safetensors_name(),
                    "shape": spec.shape,
                    "data_offsets": [offset, end],
                }),
            );
            tensors.push(Progress {
                spec: spec.clone(),
                next: offset,
                end,
            });
            offset = end;
        }
        let mut header = Value::Object(header).to_string().into_bytes();
        let data_start = (8 + header.len()).next_multiple_of(alignment);
        header.resize(data_start - 8, b' ');
        let data_start = data_start as u64;
        for tensor in &mut tensors {
            tensor.next += data_start;
            tensor.end += data_start;
        }
        let mut file = AtomicFile::create(path)?;
        file.write(&(header.len() as u64).to_le_bytes())?;
        file.write(&header)?;
        Ok(SafetensorsWriter {
            file,
            path: path.display().to_string(),
            tensors,
            buffer: Vec::new(),
        })
    }

    /// Appends f32 values to tensor `tensor_idx`, converted to its type.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if writing fails,
    /// [`ErrorKind::Input`](crate::ErrorKind::Input) if a value does not fit the type.
    ///
    /// # Panics
    ///
    /// If more is appended than the shape holds.
    pub fn append(&mut self, tensor_idx: usize, values: &[f32]) -> Result<()> {
        self.buffer.clear();
        let spec = &self.tensors[tensor_idx].spec;
        convert(values, spec.dtype, &mut self.buffer)
            .map_err(|e| e.at(format!("tensor `{}`", spec.name)).at(&self.path))?;
        self.append_buffer(tensor_idx)
    }

    /// Appends integers to tensor `tensor_idx` of type i64.
    ///
    /// # Errors
    ///
    /// As [`SafetensorsWriter::append`].
    ///
    /// # Panics
    ///
    /// If the tensor is of another type, or more is appended than the shape holds.
    pub fn append_i64(&mut self, tensor_idx: usize, values: &[i64]) -> Result<()> {
        assert_eq!(self.tensors[tensor_idx].spec.dtype, DType::I64);
        self.buffer.clear();
        self.buffer
            .extend(values.iter().flat_map(|value| value.to_le_bytes()));
        self.append_buffer(tensor_idx)
    }

    /// Appends stored values of any type to tensor `tensor_idx`, as they are.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if writing fails.
    ///
    /// # Panics
    ///
    /// If more is appended than the shape holds.
    pub fn append_bytes(&mut self, tensor_idx: usize, bytes: &[u8]) -> Result<()> {
        write(&mut self.file, &mut self.tensors[tensor_idx], bytes)
    }

    fn append_buffer(&mut self, tensor_idx: usize) -> Result<()> {
        write(&mut self.file, &mut self.tensors[tensor_idx], &self.buffer)
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
        for tensor in &self.tensors {
            assert_eq!(
                tensor.next, tensor.end,
                "tensor `{}` is incomplete",
                tensor.spec.name
            );
        }
        self.file.finish()
    }
}

fn write(file: &mut AtomicFile, tensor: &mut Progress, bytes: &[u8]) -> Result<()> {
    let end = tensor.next + bytes.len() as u64;
    assert!(
        end <= tensor.end,
        "tensor `{}` holds no more",
        tensor.spec.name
    );
    file.write_at(tensor.next, bytes)?;
    tensor.next = end;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interleaved_appends_are_read_back_by_the_crate() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let specs = [
            TensorSpec::new("a", DType::BF16, &[2, 2]),
            TensorSpec::new("ids", DType::I64, &[2]),
            TensorSpec::new("none", DType::F32, &[0, 4]),
        ];
        let mut writer =
            SafetensorsWriter::create(&path, &specs, &[("format", "pt".to_owned())]).unwrap();
        writer.append(0, &[1.0, 2.0]).unwrap();
        writer.append_i64(1, &[7, -8]).unwrap();
        writer.append(0, &[3.0, 4.0]).unwrap();
        assert!(!path.exists());
        writer.finish().unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let file = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let a = file.tensor("a").unwrap();
        assert_eq!(
            (a.shape(), a.data()),
            (&[2, 2][..], &[128, 63, 0, 64, 64, 64, 128, 64][..])
        );
        assert_eq!(file.tensor("ids").unwrap().data()[..8], 7i64.to_le_bytes());
        assert_eq!(file.tensor("none").unwrap().data().len(), 0);
    }

    #[test]
    #[should_panic(expected = "tensor `a` is incomplete")]
    fn an_incomplete_file_gets_no_name() {
        let folder = tempfile::tempdir().unwrap();
        let specs = [TensorSpec::new("a", DType::F32, &[2])];
        let writer = SafetensorsWriter::create(&folder.path().join("x"), &specs, &[]).unwrap();
        let _ = writer.finish();
    }

    #[test]
    fn an_overflowing_shape_is_refused() {
        let specs = [TensorSpec::new("a", DType::F32, &[usize::MAX, 2])];
        let folder = tempfile::tempdir().unwrap();
        let error = SafetensorsWriter::create(&folder.path().join("x"), &specs, &[])
            .err()
            .unwrap();
        assert!(error.to_string().contains("overflows"));
    }
}
