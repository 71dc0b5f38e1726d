//! Results on disk: safetensors, `.npy`, JSON lines.
//!
//! Every writer writes to a temporary file in the folder of its target and renames it when
//! [`finish`](safetensors::SafetensorsWriter::finish) is called: a reader never sees half a
//! file, and a failed or killed run leaves an older file as it was.

mod atomic;
pub(crate) mod folder;
pub mod gguf;
pub mod jsonl;
pub mod npy;
pub mod safetensors;

use crate::{DType, Error, Result};

pub use atomic::AtomicFile;

/// Appends `values` to `bytes` as little-endian elements of `dtype`, rounded to nearest even.
///
/// # Errors
///
/// [`ErrorKind::Input`](crate::ErrorKind::Input) if a finite value is beyond the range of f16,
/// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) if `dtype` is not a float type.
fn convert(values: &[f32], dtype: DType, bytes: &mut Vec<u8>) -> Result<()> {
    match dtype {
        DType::F32 => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        DType::BF16 => {
            bytes.extend(
                values
                    .iter()
                    .flat_map(|&v| half::bf16::from_f32(v).to_le_bytes()),
            );
        }
        DType::F16 => {
            for &value in values {
                let narrow = half::f16::from_f32(value);
                if narrow.is_infinite() && value.is_finite() {
                    return Err(Error::input(format!(
                        "{value} is beyond the range of f16 (65504)"
                    ))
                    .hint("write f32 or bf16 instead"));
                }
                bytes.extend(narrow.to_le_bytes());
            }
        }
        other => {
            return Err(Error::unsupported(format!(
                "hidden states cannot be {other}"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversion_rounds_and_refuses_overflow() {
        let mut bytes = Vec::new();
        convert(&[1.0, -2.5], DType::BF16, &mut bytes).unwrap();
        assert_eq!(bytes, [0x80, 0x3f, 0x20, 0xc0]);
        bytes.clear();
        convert(&[65504.0, f32::INFINITY], DType::F16, &mut bytes).unwrap();
        assert_eq!(bytes, [0xff, 0x7b, 0x00, 0x7c]);
        let error = convert(&[70000.0], DType::F16, &mut bytes)
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("70000 is beyond the range of f16"),
            "{error}"
        );
        assert!(convert(&[1.0], DType::I64, &mut bytes).is_err());
    }
}
