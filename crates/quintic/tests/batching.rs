//! A row's result does not depend on its company: same bits alone, packed, reordered, padded.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use quintic::backend::Pool;
use quintic::batch::{PackedBatch, PadRows, PaddedBatch, PaddedMask};
use quintic::checkpoint::{Checkpoint, OpenOptions};
use quintic::{BackendKind, Compute, TextEncoder};

const MODELS: [&str; 3] = ["t5-v1_1", "umt5", "t5-v1_0"];

fn load(name: &str) -> TextEncoder {
    load_on(name, BackendKind::Reference)
}

fn load_on(name: &str, backend: BackendKind) -> TextEncoder {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../testdata/goldens")
        .join(name);
    let checkpoint = Checkpoint::open(folder, &OpenOptions::default()).unwrap();
    TextEncoder::from_checkpoint(&checkpoint, backend, &Compute::default()).unwrap()
}

/// Rows of awkward lengths with ids that depend on the row alone.
fn rows(vocab_size: usize) -> Vec<Vec<u32>> {
    let id = |row: usize, i: usize| ((row * 7919 + i * 104_729 + i * i) % vocab_size) as u32;
    [1, 2, 3, 7, 8, 9, 31, 0, 33, 64, 65, 5]
        .into_iter()
        .enumerate()
        .map(|(row, len)| (0..len).map(|i| id(row, i)).collect())
        .collect()
}

fn encode(encoder: &TextEncoder, rows: &[Vec<u32>]) -> Vec<Vec<f32>> {
    let batch = PackedBatch::from_rows(rows, encoder.config().vocab_size).unwrap();
    let states = encoder.hidden_states(&batch, false).unwrap().last;
    let d_model = encoder.config().d_model;
    batch
        .row_starts()
        .windows(2)
        .map(|bounds| states[bounds[0] * d_model..bounds[1] * d_model].to_vec())
        .collect()
}

#[test]
fn alone_packed_and_reordered_give_the_same_bits() {
    for name in MODELS {
        let encoder = load(name);
        let rows = rows(encoder.config().vocab_size);
        let together = encode(&encoder, &rows);
        let mut reversed: Vec<_> = rows.clone();
        reversed.reverse();
        let mut backwards = encode(&encoder, &reversed);
        backwards.reverse();
        for (row_idx, row) in rows.iter().enumerate() {
            let alone = encode(&encoder, std::slice::from_ref(row));
            assert_eq!(alone[0], together[row_idx], "{name}, row {row_idx}");
            assert_eq!(alone[0], backwards[row_idx], "{name}, row {row_idx}");
        }
    }
}

#[test]
fn padding_on_either_side_changes_no_bit_of_a_real_token() {
    for name in MODELS {
        let encoder = load(name);
        let (vocab_size, d_model) = (encoder.config().vocab_size, encoder.config().d_model);
        for row in rows(vocab_size).iter().filter(|row| !row.is_empty()) {
            let expected = &encode(&encoder, std::slice::from_ref(row))[0];
            for (before, after) in [(0, 5), (4, 0), (3, 2)] {
                let pads = |n: usize| std::iter::repeat_n(0i64, n);
                let ids = pads(before)
                    .chain(row.iter().map(|&id| i64::from(id)))
                    .chain(pads(after));
                let ids: Vec<i64> = ids.collect();
                let len = ids.len();
                let real = before..before + row.len();
                let mask = PaddedMask::Keys((0..len).map(|i| real.contains(&i)).collect());
                let batch = PaddedBatch::new(ids, 1, len, mask).unwrap();
                for pad_rows in [PadRows::Zero, PadRows::Compute] {
                    let (packed, layout) = batch.pack(pad_rows, vocab_size).unwrap();
                    let states = encoder.hidden_states(&packed, false).unwrap().last;
                    let padded = layout.unpack(&states, d_model);
                    let found = &padded[real.start * d_model..real.end * d_model];
                    assert_eq!(
                        found,
                        expected,
                        "{name}, {before} + {} + {after}",
                        row.len()
                    );
                }
            }
        }
    }
}

/// Documents packed into one row are the rows that they would be by themselves: positions are
/// relative, so where a document stands does not matter.
#[test]
fn documents_equal_rows_of_their_own() {
    let encoder = load("t5-v1_1");
    let (vocab_size, d_model) = (encoder.config().vocab_size, encoder.config().d_model);
    let rows: Vec<Vec<u32>> = rows(vocab_size)
        .into_iter()
        .filter(|row| !row.is_empty())
        .collect();
    let expected = encode(&encoder, &rows).concat();
    let ids: Vec<i64> = rows.iter().flatten().map(|&id| i64::from(id)).collect();
    let documents: Vec<i64> = rows
        .iter()
        .enumerate()
        .flat_map(|(row, ids)| std::iter::repeat_n(row as i64 * 3, ids.len()))
        .collect();
    let len = ids.len();
    let batch = PaddedBatch::new(ids, 1, len, PaddedMask::Documents(documents)).unwrap();
    for pad_rows in [PadRows::Zero, PadRows::Compute] {
        let (packed, layout) = batch.pack(pad_rows, vocab_size).unwrap();
        let states = encoder.hidden_states(&packed, false).unwrap().last;
        assert_eq!(layout.unpack(&states, d_model), expected, "{pad_rows:?}");
    }
}

#[test]
fn pooled_vectors_are_the_pools_of_the_states() {
    let encoder = load("umt5");
    let rows = rows(encoder.config().vocab_size);
    let batch = PackedBatch::from_rows(&rows, encoder.config().vocab_size).unwrap();
    let d_model = encoder.config().d_model;
    let states = encode(&encoder, &rows);
    let first = encoder.pooled(&batch, Pool::First).unwrap();
    let last = encoder.pooled(&batch, Pool::Last).unwrap();
    let mean = encoder.pooled(&batch, Pool::Mean).unwrap();
    for (row, states) in states.iter().enumerate() {
        let at = row * d_model..(row + 1) * d_model;
        if states.is_empty() {
            assert!(mean[at].iter().all(|&value| value == 0.0));
            continue;
        }
        assert_eq!(first[at.clone()], states[..d_model]);
        assert_eq!(last[at.clone()], states[states.len() - d_model..]);
        let n_tokens = states.len() / d_model;
        for (column, &found) in mean[at].iter().enumerate() {
            let sum: f64 = (0..n_tokens)
                .map(|t| f64::from(states[t * d_model + column]))
                .sum();
            assert_eq!(found, (sum / n_tokens as f64) as f32);
        }
    }
}

#[test]
fn planned_batches_give_every_row_what_it_is_alone() {
    for backend in [BackendKind::Reference, BackendKind::Cpu] {
        let encoder = load_on("t5-v1_1", backend);
        let rows = rows(encoder.config().vocab_size);
        let d_model = encoder.config().d_model;
        let alone: Vec<Vec<f32>> = rows
            .iter()
            .map(|row| encode(&encoder, std::slice::from_ref(row)).remove(0))
            .collect();
        for max_tokens in [0, 1, 40, 65, 100_000] {
            let states = encoder.encode_rows(&rows, max_tokens, None).unwrap();
            assert_eq!(states, alone, "{backend:?}, {max_tokens}");
            for pool in [Pool::Mean, Pool::First, Pool::Last] {
                let vectors = encoder.encode_rows(&rows, max_tokens, Some(pool)).unwrap();
                for (row, vector) in rows.iter().zip(vectors) {
                    let vocab_size = encoder.config().vocab_size;
                    let batch = PackedBatch::from_rows(&[row], vocab_size).unwrap();
                    assert_eq!(vector, encoder.pooled(&batch, pool).unwrap());
                    assert_eq!(vector.len(), d_model);
                }
            }
        }
    }
}

#[test]
fn rows_to_plan_may_be_none_or_empty_and_errors_name_them() {
    let encoder = load("t5-v1_1");
    let (vocab_size, d_model) = (encoder.config().vocab_size, encoder.config().d_model);
    let none: [Vec<u32>; 0] = [];
    assert!(encoder.encode_rows(&none, 8, None).unwrap().is_empty());
    let empty: [&[u32]; 2] = [&[], &[]];
    let states = encoder.encode_rows(&empty, 8, None).unwrap();
    assert_eq!(states, [[], []] as [[f32; 0]; 2]);
    let vectors = encoder.encode_rows(&empty, 8, Some(Pool::Mean)).unwrap();
    assert_eq!(vectors, vec![vec![0.0; d_model]; 2]);

    // In the third row of the input, which would be the first to be computed.
    let rows = [vec![1], vec![], vec![2, 3, vocab_size as u32, 4]];
    let error = encoder.encode_rows(&rows, 8, None).unwrap_err();
    assert_eq!(error.kind(), quintic::ErrorKind::Input);
    assert_eq!(
        error.to_string(),
        format!(
            "row 2, token 2: token id {vocab_size} is outside the vocabulary, expected 0 to {}",
            vocab_size - 1
        )
    );
}
