//! What a pass can be given and keep: embeddings, gains of heads, attention weights, an early
//! end; and padding that is computed once for all of its kind.

#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicUsize, Ordering};

use quintic::backend::Pool;
use quintic::batch::{PackedBatch, PadRows, PaddedBatch, PaddedMask};
use quintic::config::T5Config;
use quintic::model::TakeTensor;
use quintic::synthetic::{SyntheticWeights, token_rows};
use quintic::{
    BackendKind, Compute, ComputeType, DType, ErrorKind, HiddenStates, Pass, RowsOptions,
    TextEncoder,
};

const BACKENDS: [BackendKind; 2] = [BackendKind::Reference, BackendKind::Cpu];
const VOCAB: usize = 50;

/// A small model: T5, or UMT5 with a bias table in every layer.
fn config(family: &str, d_kv: usize, (buckets, distance): (usize, usize)) -> T5Config {
    let config = format!(
        r#"{{"model_type": "{family}", "vocab_size": {VOCAB}, "d_model": 40, "d_kv": {d_kv},
            "d_ff": 48, "num_layers": 3, "num_heads": 3, "feed_forward_proj": "gated-gelu",
            "relative_attention_num_buckets": {buckets},
            "relative_attention_max_distance": {distance}}}"#
    );
    T5Config::from_json(config.as_bytes()).unwrap()
}

fn load_as(config: &T5Config, backend: BackendKind, dtype: ComputeType) -> TextEncoder {
    let mut weights = SyntheticWeights::new(config.clone(), DType::F32);
    let compute = Compute {
        dtype,
        ..Compute::default()
    };
    TextEncoder::from_source(config.clone(), &mut weights, backend, &compute).unwrap()
}

fn load(config: &T5Config, backend: BackendKind) -> TextEncoder {
    load_as(config, backend, ComputeType::F32)
}

fn small() -> [T5Config; 2] {
    [config("t5", 64, (32, 128)), config("umt5", 24, (8, 8))]
}

/// Ragged rows, one of them empty.
fn ragged() -> PackedBatch {
    PackedBatch::from_rows(&token_rows(&[7, 1, 0, 33, 12], VOCAB), VOCAB).unwrap()
}

/// A batch of every kind: ragged, holes that leave gaps, keys hidden, pairs, blind queries.
fn batches() -> Vec<PackedBatch> {
    let len = 9;
    let ids: Vec<i64> = token_rows(&[3 * len], VOCAB)[0]
        .iter()
        .map(|&id| i64::from(id))
        .collect();
    let padded = |mask| PaddedBatch::new(ids.clone(), 3, len, mask).unwrap();
    // The second row is all padding.
    let keys = || PaddedMask::Keys((0..3 * len).map(|i| i / len != 1 && i % 4 != 1).collect());
    let pairs = (0..3 * len * len).map(|i| i * 7919 % 11 < 4 && i / len % 5 != 0);
    let pairs = PaddedMask::Pairs(pairs.collect());
    let pack = |mask, pad_rows| padded(mask).pack(pad_rows, VOCAB).unwrap().0;
    let batches = vec![
        ragged(),
        pack(keys(), PadRows::Zero),
        pack(keys(), PadRows::Compute),
        pack(pairs, PadRows::Compute),
    ];
    assert!(batches[1].positions().is_some());
    batches
}

fn gains(config: &T5Config) -> Vec<f32> {
    (0..config.num_layers * config.num_heads)
        .map(|at| [1.0, 0.3, 0.0, -1.7][at % 4])
        .collect()
}

#[track_caller]
fn assert_near(found: &[f32], expected: &[f32], bound: f32, case: &str) {
    assert_eq!(found.len(), expected.len(), "{case}");
    let largest = expected.iter().fold(0.0f32, |max, x| max.max(x.abs()));
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!(
            (found - expected).abs() <= bound * largest,
            "{case}, value {at}: {found}, expected {expected} of {largest}"
        );
    }
}

#[test]
fn embeddings_take_the_place_of_the_tables_rows() {
    for config in small() {
        let mut weights = SyntheticWeights::new(config.clone(), DType::F32);
        let table = weights
            .take("shared.weight", &[VOCAB, config.d_model])
            .unwrap()
            .to_f32();
        for backend in BACKENDS {
            let encoder = load(&config, backend);
            for batch in batches() {
                let embeddings: Vec<f32> = batch
                    .ids()
                    .iter()
                    .flat_map(|&id| &table[id as usize * config.d_model..][..config.d_model])
                    .copied()
                    .collect();
                // The ids are those of nothing.
                let rows: Vec<Vec<u32>> = batch
                    .row_starts()
                    .windows(2)
                    .map(|bounds| vec![0; bounds[1] - bounds[0]])
                    .collect();
                let pass = Pass {
                    embeddings: Some(&embeddings),
                    keep_inner: true,
                    ..Pass::default()
                };
                let expected = encoder.hidden_states(&batch, true).unwrap();
                assert_eq!(encoder.run(&batch, &pass).unwrap(), expected);
                assert_eq!(expected.inner[0], embeddings);
                let pooled = encoder.run_pooled(&batch, Pool::Mean, &pass).unwrap();
                assert_eq!(pooled, encoder.pooled(&batch, Pool::Mean).unwrap());
                if batch == ragged() {
                    let blank = PackedBatch::from_rows(&rows, VOCAB).unwrap();
                    assert_eq!(encoder.run(&blank, &pass).unwrap(), expected);
                    assert_ne!(encoder.hidden_states(&blank, true).unwrap(), expected);
                }
            }
        }
    }
}

/// Everything that a pass keeps, on the CPU and by the reference.
#[test]
fn a_pass_with_everything_equals_the_reference() {
    for config in small() {
        let [reference, cpu] = BACKENDS.map(|backend| load(&config, backend));
        let gains = gains(&config);
        for (batch_idx, batch) in batches().iter().enumerate() {
            let n: Vec<usize> = batch.row_starts().windows(2).map(|b| b[1] - b[0]).collect();
            for head_gains in [None, Some(&gains[..])] {
                let pass = Pass {
                    head_gains,
                    keep_inner: true,
                    keep_attentions: true,
                    ..Pass::default()
                };
                let case = format!("d_kv {}, batch {batch_idx}", config.d_kv);
                let exact = reference.run(batch, &pass).unwrap();
                let found = cpu.run(batch, &pass).unwrap();
                // Three layers of f32 as in `cpu_backend`, which derives the bound, here relative
                // to the largest value.
                assert_near(&found.last, &exact.last, 4e-6, &case);
                for (found, exact) in found.inner.iter().zip(&exact.inner) {
                    assert_near(found, exact, 4e-6, &case);
                }
                assert_eq!(exact.attentions.len(), config.num_layers);
                assert_eq!(found.attentions.len(), config.num_layers);
                for (layer, exact) in exact.attentions.iter().enumerate() {
                    // A score's error is one of its weight's logarithm, and scores stay below ten.
                    assert_near(&found.attentions[layer], exact, 4e-5, &case);
                    let expected = n.iter().map(|n| config.num_heads * n * n);
                    assert_eq!(exact.len(), expected.sum::<usize>());
                    // A query's weights add up to the head's gain.
                    let mut rest = &exact[..];
                    for &n in &n {
                        for head in 0..config.num_heads {
                            let gain = gains[layer * config.num_heads + head];
                            let gain = head_gains.map_or(1.0, |_| f64::from(gain));
                            for _ in 0..n {
                                let (weights, later) = rest.split_at(n);
                                let sum: f64 = weights.iter().map(|&w| f64::from(w)).sum();
                                assert!((sum - gain).abs() < 1e-6, "{case}: {sum}, {gain}");
                                rest = later;
                            }
                        }
                    }
                    assert!(rest.is_empty());
                }
                // What is kept changes nothing, and gains do.
                let plain = reference.hidden_states(batch, true).unwrap();
                assert_eq!(head_gains.is_none(), plain.last == exact.last, "{case}");
                let without = Pass {
                    keep_inner: false,
                    keep_attentions: false,
                    ..pass
                };
                let alone = cpu.run(batch, &without).unwrap();
                assert_eq!(alone.last, found.last);
                assert!(alone.inner.is_empty() && alone.attentions.is_empty());
            }
        }
    }
}

/// The weights of both paths in bf16, where only the results are rounded.
#[test]
fn gains_of_one_change_no_bit_and_gains_of_zero_silence() {
    for config in small() {
        let n_gains = config.num_layers * config.num_heads;
        for backend in BACKENDS {
            for dtype in [ComputeType::F32, ComputeType::Bf16] {
                if (backend, dtype) == (BackendKind::Reference, ComputeType::Bf16) {
                    continue;
                }
                let encoder = load_as(&config, backend, dtype);
                for batch in batches() {
                    let with = |gain: f32| {
                        let gains = vec![gain; n_gains];
                        let pass = Pass {
                            head_gains: Some(&gains),
                            keep_attentions: true,
                            ..Pass::default()
                        };
                        encoder.run(&batch, &pass).unwrap()
                    };
                    assert_eq!(
                        with(1.0).last,
                        encoder.hidden_states(&batch, false).unwrap().last
                    );
                    let silent = with(0.0);
                    assert!(
                        silent
                            .attentions
                            .concat()
                            .iter()
                            .all(|&weight| weight == 0.0)
                    );
                    // Without attention a token's state depends on its id alone.
                    let state = |token: usize| {
                        silent.last[token * config.d_model..][..config.d_model].to_vec()
                    };
                    for a in 0..batch.n_tokens() {
                        let ids = batch.ids();
                        let b = ids.iter().position(|&id| id == ids[a]).unwrap();
                        assert_eq!(state(a), state(b), "{backend:?}, {dtype:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn lists_of_a_wrong_length_are_named() {
    let config = &small()[0];
    for backend in BACKENDS {
        let encoder = load(config, backend);
        let batch = ragged();
        let values = vec![0.0; 53 * 40 + 1];
        let embeddings = Pass {
            embeddings: Some(&values),
            ..Pass::default()
        };
        let head_gains = Pass {
            head_gains: Some(&values[..8]),
            ..Pass::default()
        };
        for (pass, message) in [
            (
                embeddings,
                "`embeddings` has 2121 elements, expected [tokens, d_model] with tokens = 53, \
                 d_model = 40",
            ),
            (
                head_gains,
                "`head_gains` has 8 elements, expected [num_layers, n_heads] with \
                 num_layers = 3, n_heads = 3",
            ),
        ] {
            let error = encoder.run(&batch, &pass).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Input);
            assert_eq!(error.message(), message);
            let error = encoder.run_pooled(&batch, Pool::First, &pass).unwrap_err();
            assert_eq!(error.message(), message);
        }
    }
}

/// Says stop when it is asked for the `n`-th time, counted from 0.
fn after(n: usize, asked: &AtomicUsize) -> impl Fn() -> bool + Sync {
    asked.store(0, Ordering::Relaxed);
    move || asked.fetch_add(1, Ordering::Relaxed) >= n
}

#[test]
fn an_interrupted_encoder_stays_as_it_was() {
    let config = &small()[1];
    for backend in BACKENDS {
        let encoder = load(config, backend);
        let batch = ragged();
        let expected = encoder.hidden_states(&batch, false).unwrap();
        let asked = AtomicUsize::new(0);
        let run = |n: usize| -> quintic::Result<HiddenStates> {
            let interrupted = after(n, &asked);
            let pass = Pass {
                interrupted: Some(&interrupted),
                ..Pass::default()
            };
            let states = encoder.run(&batch, &pass);
            let n_asked = asked.load(Ordering::Relaxed);
            let interrupted = after(n, &asked);
            let pass = Pass {
                interrupted: Some(&interrupted),
                ..Pass::default()
            };
            let vectors = encoder.run_pooled(&batch, Pool::Last, &pass);
            assert_eq!(asked.load(Ordering::Relaxed), n_asked);
            assert_eq!(states.is_ok(), vectors.is_ok());
            states
        };
        for n in 0..config.num_layers {
            let error = run(n).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Interrupted);
            assert_eq!(asked.load(Ordering::Relaxed), n + 1, "once a layer");
            assert_eq!(encoder.hidden_states(&batch, false).unwrap(), expected);
        }
        assert_eq!(run(config.num_layers).unwrap(), expected);

        // Even by a panic.
        let panics = || -> bool { panic!("no more") };
        let pass = Pass {
            interrupted: Some(&panics),
            ..Pass::default()
        };
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            encoder.run(&batch, &pass).is_ok()
        }));
        assert!(caught.is_err());
        assert_eq!(encoder.hidden_states(&batch, false).unwrap(), expected);
    }
}

#[test]
fn rows_tell_of_their_progress_and_end_early() {
    let config = &small()[0];
    let rows = token_rows(&[3, 9, 1, 4, 0, 4], VOCAB);
    for backend in BACKENDS {
        let encoder = load(config, backend);
        for pool in [None, Some(Pool::Mean)] {
            let expected = encoder.encode_rows(&rows, 8, pool).unwrap();
            let heard = std::sync::Mutex::new(Vec::new());
            let progress = |done: usize, all: usize| heard.lock().unwrap().push((done, all));
            let asked = AtomicUsize::new(0);
            // Batches of rows 1; 3, 5; 0, 2, 4: three layers each.
            for (n, expected_progress) in [
                (0, vec![]),
                (2, vec![]),
                (3, vec![(1, 6)]),
                (8, vec![(1, 6), (3, 6)]),
                (9, vec![(1, 6), (3, 6), (6, 6)]),
            ] {
                let interrupted = after(n, &asked);
                let options = RowsOptions {
                    interrupted: Some(&interrupted),
                    progress: Some(&progress),
                };
                let found = encoder.encode_rows_with(&rows, 8, pool, &options);
                match found {
                    Ok(found) => assert_eq!((found, n), (expected.clone(), 9)),
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::Interrupted);
                        assert!(n < 9);
                    }
                }
                assert_eq!(
                    std::mem::take(&mut *heard.lock().unwrap()),
                    expected_progress
                );
            }
            let found = encoder.encode_rows_with(&rows, 8, pool, &RowsOptions::default());
            assert_eq!(found.unwrap(), expected);
        }
    }
}

/// A row of `len` columns: padding, real tokens with or without a hole, padding.
struct Row {
    left: usize,
    real: usize,
    hole: bool,
    /// Another id at this column, if it is padding.
    odd: Option<usize>,
}

/// Rows around the reach on either side and on both, with holes, with mixed ids of padding, all
/// padding, without padding.
fn rows_around(reach: usize) -> (PaddedBatch, usize) {
    let len = 2 * reach + 12;
    let row = |left: usize, real: usize| Row {
        left,
        real,
        hole: real > 2,
        odd: None,
    };
    let mut rows = vec![row(0, len), row(0, 1), row(len - 1, 1), row(len / 2, 0)];
    for pads in [reach - 1, reach, reach + 1, reach + 2] {
        // On the right, on the left, on both sides.
        rows.push(row(0, len - pads));
        rows.push(row(pads, len - pads));
        rows.push(row(pads, len - 2 * pads));
    }
    // From the end to the one that stands for all beyond, and one nearer than that.
    for odd in [0, 1, 2, 3, 4, len - 7, len - 6, len - 5, len - 2, len - 1] {
        rows.push(Row {
            odd: Some(odd),
            ..row(reach + 3, 4)
        });
    }
    let (mut ids, mut keys, mut n_kept) = (Vec::new(), Vec::new(), 0);
    for (row_idx, row) in rows.iter().enumerate() {
        let right = len - row.left - row.real;
        let is_real = |column: usize| {
            let inside = row.left <= column && column < row.left + row.real;
            inside && !(row.hole && column == row.left + 1)
        };
        for column in 0..len {
            ids.push(match is_real(column) {
                true => 1 + ((row_idx * 31 + column * 17) % (VOCAB - 1)) as i64,
                false if row.odd == Some(column) => 7,
                false => 0,
            });
            keys.push(is_real(column));
        }
        // A side with an odd one from the last to be computed on stays whole.
        let (first, end) = (row.left, row.left + row.real);
        let odd = |side: std::ops::Range<usize>| row.odd.is_some_and(|odd| side.contains(&odd));
        let (left, right) = match row.real {
            0 => (row.left, right),
            _ => (
                if odd(0..(first + 1).saturating_sub(reach)) {
                    first
                } else {
                    first.min(reach)
                },
                if odd(end + reach - 1..len) {
                    right
                } else {
                    right.min(reach)
                },
            ),
        };
        n_kept += left + row.real + right;
    }
    let batch = PaddedBatch::new(ids, rows.len(), len, PaddedMask::Keys(keys)).unwrap();
    (batch, n_kept)
}

/// All hidden states in the padded shape, and how many tokens were computed for them.
fn padded_states(
    encoder: &TextEncoder,
    batch: &PaddedBatch,
    reach: Option<usize>,
) -> (Vec<Vec<f32>>, usize) {
    let (packed, layout) = batch.pack_sharing(PadRows::Compute, VOCAB, reach).unwrap();
    let states = encoder.hidden_states(&packed, true).unwrap();
    let all = states.inner.iter().chain([&states.last]);
    let d_model = encoder.config().d_model;
    (
        all.map(|state| layout.unpack(state, d_model)).collect(),
        packed.n_tokens(),
    )
}

#[test]
fn shared_padding_keeps_every_bit() {
    for config in [
        config("t5", 24, (32, 128)),
        config("umt5", 16, (32, 128)),
        config("t5", 64, (8, 8)),
        config("umt5", 24, (8, 9)),
    ] {
        let reach = config.bias_reach();
        let (batch, n_kept) = rows_around(reach);
        for backend in BACKENDS {
            for dtype in ComputeType::ALL {
                if backend == BackendKind::Reference && dtype != ComputeType::F32 {
                    continue;
                }
                let encoder = load_as(&config, backend, dtype);
                let (whole, n_whole) = padded_states(&encoder, &batch, None);
                let (shared, n_shared) = padded_states(&encoder, &batch, Some(reach));
                assert_eq!(n_whole, batch.rows() * batch.len());
                assert_eq!(n_shared, n_kept);
                assert!(n_shared < n_whole);
                for (layer, (shared, whole)) in shared.iter().zip(&whole).enumerate() {
                    assert!(
                        shared
                            .iter()
                            .zip(whole)
                            .all(|(a, b)| a.to_bits() == b.to_bits()),
                        "{backend:?}, {dtype:?}, reach {reach}, layer {layer}"
                    );
                }
                // One less would not do.
                let (wrong, _) = padded_states(&encoder, &batch, Some(reach - 1));
                assert!(wrong.last() != whole.last(), "{backend:?}, reach {reach}");
            }
        }
    }
}

/// Whatever is real, however long: more than a block of the CPU's keys, on one side.
#[test]
fn shared_padding_of_a_long_row_keeps_every_bit() {
    let config = config("umt5", 24, (32, 128));
    let encoder = load(&config, BackendKind::Cpu);
    let (left, real, right) = (300, 530, 194);
    let len = left + real + right;
    let mut ids = vec![0i64; len];
    for (column, id) in ids[left..left + real].iter_mut().enumerate() {
        *id = (column * column % VOCAB) as i64;
    }
    let keys = (0..len).map(|column| (left..left + real).contains(&column));
    let batch = PaddedBatch::new(ids, 1, len, PaddedMask::Keys(keys.collect())).unwrap();
    let (whole, n_whole) = padded_states(&encoder, &batch, None);
    let (shared, n_shared) = padded_states(&encoder, &batch, Some(config.bias_reach()));
    assert_eq!((n_whole, n_shared), (len, 91 + real + 91));
    assert_eq!(whole, shared);
}
