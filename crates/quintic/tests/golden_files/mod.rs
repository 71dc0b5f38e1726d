//! Reading the golden models.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use quintic::batch::{PaddedBatch, PaddedMask};
use quintic::checkpoint::SafetensorsFile;

/// Their folder.
pub(crate) fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/goldens")
}

fn integers(file: &SafetensorsFile, name: &str) -> Vec<i64> {
    let tensor = file.take(name).unwrap();
    let bytes = tensor.bytes().chunks_exact(8);
    bytes
        .map(|b| i64::from_le_bytes(b.try_into().unwrap()))
        .collect()
}

/// The ids and mask of a case.
pub(crate) fn batch(file: &SafetensorsFile, case: &str) -> PaddedBatch {
    let ids_name = format!("{case}.input_ids");
    let shape = file.entry(&ids_name).unwrap().shape().to_vec();
    let mask_name = format!("{case}.attention_mask");
    let documents_name = format!("{case}.document_ids");
    let mask = match file.entry(&mask_name) {
        Some(entry) => {
            let flags = integers(file, &mask_name)
                .into_iter()
                .map(|flag| flag == 1)
                .collect();
            match entry.shape().len() {
                2 => PaddedMask::Keys(flags),
                _ => PaddedMask::Pairs(flags),
            }
        }
        None if file.entry(&documents_name).is_some() => {
            PaddedMask::Documents(integers(file, &documents_name))
        }
        None => PaddedMask::None,
    };
    PaddedBatch::new(integers(file, &ids_name), shape[0], shape[1], mask).unwrap()
}
