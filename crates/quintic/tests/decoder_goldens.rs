//! Decoders of tiny models against transformers in float64: every layer and the logits.
//!
//! `testdata/README.md` says how the files were made and what the tensors mean.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use quintic::checkpoint::{Checkpoint, OpenOptions, SafetensorsFile};
use quintic::{BackendKind, Compute, ComputeType, Decode, Decoded, Seq2Seq, Sources};

const MODELS: usize = 7;
const ROWS: usize = 3;

fn folders() -> Vec<PathBuf> {
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/decoder_goldens");
    let entries = std::fs::read_dir(goldens).unwrap();
    let folders: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .collect();
    assert_eq!(folders.len(), MODELS);
    folders
}

fn load(folder: &Path, backend: BackendKind, compute: &Compute) -> Seq2Seq {
    let checkpoint = Checkpoint::open(folder, &OpenOptions::default()).unwrap();
    Seq2Seq::from_checkpoint(&checkpoint, backend, compute).unwrap()
}

/// The cases of one model.
struct Cases(SafetensorsFile);

impl Cases {
    fn open(folder: &Path) -> Self {
        Cases(SafetensorsFile::open(&folder.join("cases.safetensors")).unwrap())
    }

    fn ids(&self, name: &str) -> Vec<Vec<u32>> {
        let read = |row: usize| {
            let tensor = self.0.take(&format!("{row}.{name}")).unwrap();
            let ids = tensor.bytes().chunks_exact(8);
            ids.map(|b| u32::try_from(i64::from_le_bytes(b.try_into().unwrap())).unwrap())
                .collect()
        };
        (0..ROWS).map(read).collect()
    }

    fn values(&self, row: usize, name: &str) -> Vec<f64> {
        let part = |end: &str| {
            self.0
                .take(&format!("{row}.{name}.{end}"))
                .unwrap()
                .to_f32()
        };
        let (high, low) = (part("hi"), part("lo"));
        high.iter()
            .zip(&low)
            .map(|(&high, &low)| f64::from(high) + f64::from(low))
            .collect()
    }

    /// The largest error of transformers in float32, of each hidden state and of the logits.
    fn f32_errors(&self, row: usize) -> Vec<f32> {
        self.0.take(&format!("{row}.f32_error")).unwrap().to_f32()
    }
}

fn decode(model: &Seq2Seq, sources: &[Vec<u32>], rows: &[Vec<u32>]) -> Decoded {
    model
        .decode(&Decode {
            sources: Sources::Ids(sources),
            rows,
            targets: None,
            keep_logits: true,
            keep_inner: true,
            interrupted: None,
        })
        .unwrap()
}

fn worst(found: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let distances = found
        .iter()
        .zip(expected)
        .map(|(a, b)| (f64::from(*a) - b).abs());
    // Not `max`, which drops a NaN.
    distances.fold(0.0, |a, b| if b <= a { a } else { b })
}

#[test]
fn every_layer_is_within_twice_the_error_of_transformers_in_float32() {
    for folder in folders() {
        let cases = Cases::open(&folder);
        let (sources, rows) = (cases.ids("source"), cases.ids("row"));
        for backend in [BackendKind::Reference, BackendKind::Cpu] {
            let model = load(&folder, backend, &Compute::default());
            let config = model.config().clone();
            let decoded = decode(&model, &sources, &rows);
            let mut states = decoded.inner;
            states.push(decoded.last);
            let mut first = 0;
            for (row, ids) in rows.iter().enumerate() {
                let limits = cases.f32_errors(row);
                let tokens = first..first + ids.len();
                first = tokens.end;
                assert_eq!(limits.len(), states.len() + 1);
                let of = |values: &[f32], width: usize| {
                    values[tokens.start * width..tokens.end * width].to_vec()
                };
                for (layer, state) in states.iter().enumerate() {
                    let expected = cases.values(row, &format!("hidden_states.{layer}"));
                    let distance = worst(&of(state, config.d_model), &expected);
                    let limit = 2.0 * f64::from(limits[layer]);
                    assert!(
                        distance <= limit,
                        "{folder:?} {backend:?} row {row} layer {layer}: {distance:e}, {limit:e}"
                    );
                }
                let expected = cases.values(row, "logits");
                let distance = worst(&of(&decoded.logits, config.vocab_size), &expected);
                let limit = 2.0 * f64::from(limits[states.len()]);
                assert!(
                    distance <= limit,
                    "{folder:?} {backend:?} row {row} logits: {distance:e}, {limit:e}"
                );
            }
        }
    }
}

/// Feeding a row in pieces, with other rows beside it that come, go and change places, gives the
/// logits of feeding it at once.
#[test]
fn step_by_step_is_all_at_once() {
    for folder in folders() {
        let cases = Cases::open(&folder);
        let (sources, rows) = (cases.ids("source"), cases.ids("row"));
        for backend in [BackendKind::Reference, BackendKind::Cpu] {
            let model = load(&folder, backend, &Compute::default());
            let vocab = model.config().vocab_size;
            let whole = decode(&model, &sources, &rows).logits;
            let at = |row: usize, token: usize| {
                let before: usize = rows[..row].iter().map(Vec::len).sum();
                &whole[(before + token) * vocab..][..vocab]
            };
            let mut steps = model.rows(Sources::Ids(&sources), None).unwrap();
            // Row 1 first, then row 0 twice and row 2, and row 1 leaves.
            steps.admit(&[1]).unwrap();
            steps.advance(&[&rows[1][..2]], &[1]).unwrap();
            assert_near(&steps.logits().unwrap().values, at(1, 1));
            steps.admit(&[0, 2]).unwrap();
            assert_eq!(steps.n_rows(), 3);
            steps
                .advance(&[&rows[1][2..3], &rows[0][..7], &rows[2][..1]], &[1; 3])
                .unwrap();
            let logits = steps.logits().unwrap().values;
            for (slot, (row, token)) in [(1, 2), (0, 6), (2, 0)].into_iter().enumerate() {
                assert_near(&logits[slot * vocab..][..vocab], at(row, token));
            }
            steps.select(&[1, 0, 1]);
            let other = [(rows[0][7] + 1) % vocab as u32];
            steps
                .advance(&[&rows[0][7..8], &rows[1][3..], &other], &[1; 3])
                .unwrap();
            let logits = steps.logits().unwrap().values;
            assert_near(&logits[..vocab], at(0, 7));
            assert_near(&logits[vocab..2 * vocab], at(1, 3));
            // The copy went another way, and did not lead the first one astray.
            steps.select(&[0]);
            for token in 8..rows[0].len() {
                steps.advance(&[&rows[0][token..=token]], &[1]).unwrap();
                let logits = steps.logits().unwrap().values;
                assert_near(&logits, at(0, token));
                let top = &steps.top(3).unwrap()[0];
                let mut falling = logits.clone();
                falling.sort_by(|a, b| b.total_cmp(a));
                let max = falling[0];
                let total: f64 = logits.iter().map(|&x| f64::from(x - max).exp()).sum();
                assert_eq!(top.len(), 3);
                for (chosen, expected) in top.iter().zip(falling) {
                    assert_eq!(logits[chosen.id as usize], expected);
                    let log_prob = f64::from(expected - max) - total.ln();
                    assert!((f64::from(chosen.log_prob) - log_prob).abs() < 1e-5);
                }
            }
        }
    }
}

/// What was fed for nothing and taken back leaves no trace, and what is scored beside other tokens
/// is what is scored alone: bit for bit on the CPU, where at most 16 tokens come at a time.
#[test]
fn tokens_are_scored_together_and_taken_back() {
    for folder in folders() {
        let cases = Cases::open(&folder);
        let (sources, rows) = (cases.ids("source"), cases.ids("row"));
        for (backend, dtype) in [
            (BackendKind::Reference, ComputeType::F32),
            (BackendKind::Cpu, ComputeType::F32),
            (BackendKind::Cpu, ComputeType::Bf16),
            (BackendKind::Cpu, ComputeType::F16),
        ] {
            let compute = Compute {
                dtype,
                ..Compute::default()
            };
            let model = load(&folder, backend, &compute);
            let vocab = model.config().vocab_size;
            // Row 0 token by token.
            let mut steps = model.rows(Sources::Ids(&sources), None).unwrap();
            steps.admit(&[0]).unwrap();
            let mut expected = Vec::new();
            for token in &rows[0] {
                steps.advance(&[&[*token]], &[1]).unwrap();
                expected.extend(steps.logits().unwrap().values);
            }
            // The same beside row 1, in pieces that go astray behind their middle.
            let wrong = |token: u32| (token + 1) % vocab as u32;
            let mut steps = model.rows(Sources::Ids(&sources), None).unwrap();
            steps.admit(&[1, 0]).unwrap();
            let mut at = 0;
            let mut found = Vec::new();
            for n in 1.. {
                // With those that go astray, no more than get the bits of one.
                let end = (at + n.min(12)).min(rows[0].len());
                let mut fed = rows[0][at..end].to_vec();
                fed.extend(rows[0].iter().take(n % 4).map(|&token| wrong(token)));
                let fed_beside = &rows[1][..n % 2 + 1];
                let n_scored = [1, fed.len()];
                steps.advance(&[fed_beside, &fed], &n_scored).unwrap();
                let logits = steps.logits().unwrap();
                assert_eq!(logits.log_sums.len(), 1 + fed.len());
                let own = &logits.values[vocab..];
                found.extend_from_slice(&own[..(end - at) * vocab]);
                let top = steps.top(1).unwrap();
                for (top, scores) in top.iter().zip(logits.values.chunks_exact(vocab)) {
                    assert!(
                        scores
                            .iter()
                            .all(|&score| score <= scores[top[0].id as usize])
                    );
                }
                steps.take_back(&[fed_beside.len(), n % 4]);
                at = end;
                if at == rows[0].len() {
                    break;
                }
            }
            match backend {
                BackendKind::Reference => assert_near(&found, &expected),
                _ => assert_eq!(found, expected, "{folder:?} {dtype:?}"),
            }
            // Some of what was fed, with one of it scored.
            steps.take_back(&[0, rows[0].len() - 1]);
            let both: [&[u32]; 2] = [&rows[1], &rows[0][1..5]];
            steps.advance(&both, &[2, 1]).unwrap();
            let logits = steps.logits().unwrap();
            assert_eq!(logits.log_sums.len(), 3);
            let (last, expected) = (&logits.values[2 * vocab..], &expected[4 * vocab..5 * vocab]);
            match backend {
                BackendKind::Reference => assert_near(last, expected),
                _ => assert_eq!(last, expected, "{folder:?} {dtype:?}"),
            }
        }
    }
}

/// Sums over keys run in another order where a row is fed in pieces.
fn assert_near(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        let bound = 2e-5 * expected.abs().max(1.0);
        assert!((found - expected).abs() <= bound, "{found} {expected}");
    }
}

/// bf16's own rounding, 2^-8 a value, over a handful of layers.
#[test]
fn half_precision_is_near() {
    for folder in folders() {
        let cases = Cases::open(&folder);
        let (sources, rows) = (cases.ids("source"), cases.ids("row"));
        let exact = load(&folder, BackendKind::Reference, &Compute::default());
        let expected = decode(&exact, &sources, &rows).logits;
        let rms = |values: &mut dyn Iterator<Item = f64>| {
            let squares: Vec<f64> = values.map(|value| value * value).collect();
            (squares.iter().sum::<f64>() / squares.len() as f64).sqrt()
        };
        let size = rms(&mut expected.iter().map(|&value| f64::from(value)));
        for dtype in [ComputeType::Bf16, ComputeType::F16] {
            let compute = Compute {
                dtype,
                ..Compute::default()
            };
            let model = load(&folder, BackendKind::Cpu, &compute);
            let found = decode(&model, &sources, &rows).logits;
            let mut differences = found
                .iter()
                .zip(&expected)
                .map(|(&a, &b)| f64::from(a) - f64::from(b));
            let error = rms(&mut differences) / size;
            assert!(error < 0.04, "{folder:?} {dtype:?}: {error}");
        }
    }
}
