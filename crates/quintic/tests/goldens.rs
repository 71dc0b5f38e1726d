//! Every layer of thirteen tiny models against transformers in float64.
//!
//! `testdata/README.md` says how the files were made and what the tensors mean.

#![allow(clippy::unwrap_used)]

mod golden_files;

use std::path::Path;

use golden_files::{batch, goldens};

use quintic::batch::{PadRows, PaddedBatch, PaddedMask};
use quintic::checkpoint::{Checkpoint, OpenOptions, SafetensorsFile};
use quintic::{BackendKind, Compute, TextEncoder};

fn load(folder: &Path) -> TextEncoder {
    let checkpoint = Checkpoint::open(folder, &OpenOptions::default()).unwrap();
    TextEncoder::from_checkpoint(&checkpoint, BackendKind::Reference, &Compute::default()).unwrap()
}

/// Whether a result is expected at each position under `PadRows::Zero`.
fn real(batch: &PaddedBatch) -> Vec<bool> {
    match batch.mask() {
        PaddedMask::None => vec![true; batch.ids().len()],
        PaddedMask::Keys(keys) => keys.clone(),
        PaddedMask::Pairs(pairs) => pairs
            .chunks_exact(batch.len())
            .map(|keys| keys.contains(&true))
            .collect(),
        PaddedMask::Documents(documents) => documents.iter().map(|&d| d >= 0).collect(),
    }
}

/// All hidden states in the padded shape.
fn states(encoder: &TextEncoder, batch: &PaddedBatch, pad_rows: PadRows) -> Vec<Vec<f32>> {
    let config = encoder.config();
    let (packed, layout) = batch.pack(pad_rows, config.vocab_size).unwrap();
    let states = encoder.hidden_states(&packed, true).unwrap();
    let mut all = states.inner;
    all.push(states.last);
    all.iter()
        .map(|state| layout.unpack(state, config.d_model))
        .collect()
}

/// Checks one case in one mode; returns how many states were compared.
fn check(encoder: &TextEncoder, file: &SafetensorsFile, case: &str, pad_rows: PadRows) -> usize {
    let batch = batch(file, case);
    let real = real(&batch);
    let d_model = encoder.config().d_model;
    let mode = match pad_rows {
        PadRows::Zero => "zero",
        PadRows::Compute => "compute",
    };
    let limits = file
        .take(&format!("{case}.f32_error.{mode}"))
        .unwrap()
        .to_f32();
    let found = states(encoder, &batch, pad_rows);
    assert_eq!(found.len(), limits.len(), "{case}: number of states");
    for (layer, (found, &limit)) in found.iter().zip(&limits).enumerate() {
        let part = |end: &str| {
            file.take(&format!("{case}.hidden_states.{layer}.{end}"))
                .unwrap()
                .to_f32()
        };
        let (high, low) = (part("hi"), part("lo"));
        assert_eq!(found.len(), high.len());
        for (slot, &value) in found.iter().enumerate() {
            if pad_rows == PadRows::Zero && !real[slot / d_model] {
                assert_eq!(value, 0.0, "{case}, layer {layer}: padding is not zero");
                continue;
            }
            let expected = f64::from(high[slot]) + f64::from(low[slot]);
            let distance = (f64::from(value) - expected).abs();
            // `<=` and not `>`: a NaN must fail.
            assert!(
                distance <= 2.0 * f64::from(limit),
                "{case}, {mode}, layer {layer}, value {slot}: {value} is {distance:e} from \
                 {expected}, transformers in float32 stays within {limit:e}"
            );
        }
    }
    found.len()
}

#[test]
fn every_layer_is_within_twice_the_error_of_transformers_in_float32() {
    let mut n_states = 0;
    let mut n_models = 0;
    for entry in std::fs::read_dir(goldens()).unwrap() {
        let folder = entry.unwrap().path();
        if !folder.is_dir() {
            continue;
        }
        n_models += 1;
        let encoder = load(&folder);
        let file = SafetensorsFile::open(&folder.join("cases.safetensors")).unwrap();
        let cases: Vec<String> = file
            .entries()
            .iter()
            .filter_map(|entry| entry.name().strip_suffix(".input_ids").map(str::to_owned))
            .collect();
        assert!(!cases.is_empty());
        for case in cases {
            for pad_rows in [PadRows::Zero, PadRows::Compute] {
                n_states += check(&encoder, &file, &case, pad_rows);
            }
        }
    }
    assert_eq!(n_models, 13);
    assert!(n_states >= 13 * 2 * 2, "{n_states}");
}
