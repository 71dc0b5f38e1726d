//! Token ids and masks from a safetensors file.

use std::path::Path;

use quintic::batch::{PaddedBatch, PaddedMask};
use quintic::checkpoint::SafetensorsFile;
use quintic::{DType, Error, Result, Tensor};

/// The batch in `path`: `input_ids` and at most one of `attention_mask`, `document_ids`.
///
/// # Errors
///
/// If a tensor is missing, unknown, of a wrong type or shape, or a mask holds anything but 0
/// and 1.
pub(crate) fn read(path: &Path) -> Result<PaddedBatch> {
    let file = SafetensorsFile::open(path)?;
    read_tensors(&file).map_err(|e| e.at_if_placeless(path.display()))
}

fn read_tensors(file: &SafetensorsFile) -> Result<PaddedBatch> {
    for entry in file.entries() {
        if !["input_ids", "attention_mask", "document_ids"].contains(&entry.name()) {
            return Err(Error::input(format!(
                "tensor `{}` is not one of `input_ids`, `attention_mask`, `document_ids`",
                entry.name()
            )));
        }
    }
    let ids = file.take("input_ids")?;
    let [rows, len] = *ids.shape() else {
        return Err(Error::input(format!(
            "`input_ids` has shape {:?}, expected [rows, len]",
            ids.shape()
        )));
    };
    let mask = file
        .entry("attention_mask")
        .map(|_| file.take("attention_mask"))
        .transpose()?;
    let documents = file
        .entry("document_ids")
        .map(|_| file.take("document_ids"))
        .transpose()?;
    let mask = match (mask, documents) {
        (Some(_), Some(_)) => {
            return Err(Error::input(
                "there are both `attention_mask` and `document_ids`, expected one of them",
            ));
        }
        (None, None) => PaddedMask::None,
        (None, Some(documents)) => {
            check_shape(&documents, &[rows, len])?;
            PaddedMask::Documents(integers(&documents)?)
        }
        (Some(mask), None) if mask.shape().len() == 3 => {
            check_shape(&mask, &[rows, len, len])?;
            PaddedMask::Pairs(flags(&mask)?)
        }
        (Some(mask), None) => {
            check_shape(&mask, &[rows, len])?;
            PaddedMask::Keys(flags(&mask)?)
        }
    };
    PaddedBatch::new(integers(&ids)?, rows, len, mask)
}

fn check_shape(tensor: &Tensor, expected: &[usize]) -> Result<()> {
    if tensor.shape() == expected {
        return Ok(());
    }
    Err(Error::input(format!(
        "`{}` has shape {:?}, expected {expected:?} to go with `input_ids`",
        tensor.name(),
        tensor.shape()
    )))
}

pub(crate) fn integers(tensor: &Tensor) -> Result<Vec<i64>> {
    let bytes = tensor.bytes();
    Ok(match tensor.dtype() {
        DType::I64 => bytes
            .chunks_exact(8)
            .map(|b| i64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]))
            .collect(),
        DType::I32 => bytes
            .chunks_exact(4)
            .map(|b| i64::from(i32::from_le_bytes([b[0], b[1], b[2], b[3]])))
            .collect(),
        DType::U8 | DType::Bool => bytes.iter().map(|&byte| i64::from(byte)).collect(),
        other => {
            return Err(Error::input(format!(
                "`{}` is of type {other}, expected i64 or i32",
                tensor.name()
            )));
        }
    })
}

fn flags(tensor: &Tensor) -> Result<Vec<bool>> {
    let wrong = |slot: usize, value: f64| {
        Error::input(format!(
            "`{}` holds {value} at element {slot}, expected 0 or 1",
            tensor.name()
        ))
    };
    if tensor.dtype().is_float() {
        return tensor
            .to_f32()
            .into_iter()
            .enumerate()
            .map(|(slot, value)| match value {
                0.0 => Ok(false),
                1.0 => Ok(true),
                other => Err(wrong(slot, f64::from(other))),
            })
            .collect();
    }
    integers(tensor)?
        .into_iter()
        .enumerate()
        .map(|(slot, value)| match value {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(wrong(slot, other as f64)),
        })
        .collect()
}
