//! One array as a NumPy `.npy` file, version 1.0.
//!
//! Format: `numpy.lib.format` in NumPy's documentation.

use std::path::Path;

use super::{AtomicFile, convert};
use crate::{DType, Error, Result};

/// An `.npy` file in the making, row-major.
pub struct NpyWriter {
    file: AtomicFile,
    path: String,
    dtype: DType,
    left: usize,
    buffer: Vec<u8>,
}

impl NpyWriter {
    /// Starts an array of `shape`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) for a type that NumPy does
    /// not have, [`ErrorKind::Io`](crate::ErrorKind::Io) if the file cannot be written.
    pub fn create(path: &Path, dtype: DType, shape: &[usize]) -> Result<Self> {
        let descr = match dtype {
            DType::F32 => "<f4",
            DType::F16 => "<f2",
            other => {
                return Err(Error::unsupported(format!("NumPy has no type {other}"))
                    .at(path.display())
                    .hint("write f32 or f16, or a .safetensors file"));
            }
        };
        let left = shape
            .iter()
            .try_fold(1usize, |n, &dim| n.checked_mul(dim))
            .ok_or_else(|| Error::input(format!("shape {shape:?} overflows")).at(path.display()))?;
        let extents: String = shape.iter().map(|dim| format!("{dim}, ")).collect();
        let mut header = format!(
            "{{'descr': '{descr}', 'fortran_order': False, 'shape': ({}), }}",
            extents.trim_end_matches(if shape.len() == 1 { " " } else { ", " })
        );
        // Magic, version and length take 10 bytes; the data begins at a multiple of 64.
        let unpadded = 10 + header.len() + 1;
        header.extend(std::iter::repeat_n(
            ' ',
            unpadded.next_multiple_of(64) - unpadded,
        ));
        header.push('\n');
        let mut file = AtomicFile::create(path)?;
        file.write(b"\x93NUMPY\x01\x00")?;
        file.write(&(header.len() as u16).to_le_bytes())?;
        file.write(header.as_bytes())?;
        Ok(NpyWriter {
            file,
            path: path.display().to_string(),
            dtype,
            left,
            buffer: Vec::new(),
        })
    }

    /// Appends values.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if writing fails,
    /// [`ErrorKind::Input`](crate::ErrorKind::Input) if a value does not fit the type.
    ///
    /// # Panics
    ///
    /// If more is appended than the shape holds.
    pub fn append(&mut self, values: &[f32]) -> Result<()> {
        assert!(values.len() <= self.left, "the array holds no more");
        self.left -= values.len();
        self.buffer.clear();
        convert(values, self.dtype, &mut self.buffer).map_err(|e| e.at(&self.path))?;
        self.file.write(&self.buffer)
    }

    /// Gives the file its name.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if flushing or renaming fails.
    ///
    /// # Panics
    ///
    /// If the array is not complete.
    pub fn finish(self) -> Result<()> {
        assert_eq!(self.left, 0, "the array is incomplete");
        self.file.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_and_data() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.npy");
        for (shape, text) in [(&[2usize, 1][..], "(2, 1)"), (&[2][..], "(2,)")] {
            let mut writer = NpyWriter::create(&path, DType::F32, shape).unwrap();
            writer.append(&[1.0]).unwrap();
            writer.append(&[-2.0]).unwrap();
            writer.finish().unwrap();
            let bytes = std::fs::read(&path).unwrap();
            assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00");
            let header_len = u16::from_le_bytes([bytes[8], bytes[9]]) as usize;
            assert_eq!((10 + header_len) % 64, 0);
            let header = std::str::from_utf8(&bytes[10..10 + header_len]).unwrap();
            let expected = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {text}, }}");
            assert_eq!(header.trim_end(), expected);
            assert_eq!(bytes[10 + header_len..], [0, 0, 128, 63, 0, 0, 0, 192]);
        }
        assert!(NpyWriter::create(&path, DType::BF16, &[1]).is_err());
    }
}
