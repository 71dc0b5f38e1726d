//! One JSON object a row.

use std::path::Path;

use serde_json::Value;

use super::AtomicFile;
use crate::Result;

/// A JSON-lines file in the making.
pub struct JsonlWriter {
    file: AtomicFile,
}

impl JsonlWriter {
    /// Starts a file.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if the file cannot be written.
    pub fn create(path: &Path) -> Result<Self> {
        Ok(JsonlWriter {
            file: AtomicFile::create(path)?,
        })
    }

    /// Appends a line. f32 values given as [`rows`] print in their shortest exact form.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if writing fails.
    pub fn append(&mut self, row: &Value) -> Result<()> {
        self.file.write(row.to_string().as_bytes())?;
        self.file.write(b"\n")
    }

    /// Gives the file its name.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if flushing or renaming fails.
    pub fn finish(self) -> Result<()> {
        self.file.finish()
    }
}

/// An f32 vector as JSON numbers that read back to the same f32; JSON has no NaN or
/// infinity, which become null.
pub fn vector(values: &[f32]) -> Value {
    let number = |&value: &f32| {
        // The shortest text that is this f32, not the 17 digits of its widening to f64.
        let shortest = format!("{value:?}").parse::<f64>().ok();
        shortest
            .and_then(serde_json::Number::from_f64)
            .map_or(Value::Null, Value::Number)
    };
    Value::Array(values.iter().map(number).collect())
}

/// `[rows, width]` values as a list of vectors.
pub fn rows(values: &[f32], width: usize) -> Value {
    Value::Array(values.chunks_exact(width).map(vector).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_exact() {
        let value = rows(&[0.1, -3.0, 1e-30, f32::NAN], 2);
        assert_eq!(value.to_string(), "[[0.1,-3.0],[1e-30,null]]");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.jsonl");
        let mut writer = JsonlWriter::create(&path).unwrap();
        writer
            .append(&serde_json::json!({"a": vector(&[0.2])}))
            .unwrap();
        writer.append(&value).unwrap();
        writer.finish().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, "{\"a\":[0.2]}\n[[0.1,-3.0],[1e-30,null]]\n");
    }
}
