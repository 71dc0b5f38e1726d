//! The backend against the reference, operation by operation, on every instruction set of this
//! machine; whole models are compared in `tests/`.

use std::path::Path;

use super::*;
use crate::ErrorKind;
use crate::backend::reference::{Reference, Rows};
use crate::backend::{Keys, Visible};
use crate::batch::{Mask, PackedBatch};
use crate::checkpoint::{Checkpoint, OpenOptions};
use crate::loading::BackendKind;
use crate::text_encoder::TextEncoder;

/// Half the distance of 1.0 to the next f32: the relative error of a rounding.
const ROUNDING: f64 = 1.0 / (1u64 << 24) as f64;

fn for_each_isa(compute: &Compute, test: impl Fn(Cpu)) {
    for isa in Isa::available() {
        test(Cpu::with_isa(isa, compute).unwrap());
    }
}

/// Numbers in [-1, 1) that look random.
fn noise(n: usize, seed: usize) -> Vec<f32> {
    let mut state = (seed as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(n).collect()
}

fn tensor(rows: usize, columns: usize, values: &[f32]) -> Tensor {
    Tensor::from_f32("w", vec![rows, columns], values)
}

fn stacked(rows: usize, columns: usize, values: &[f32]) -> Weights {
    Weights::Stacked(vec![tensor(rows, columns, values)])
}

fn stream(cpu: &Cpu, x: &Rows) -> Stream {
    let ids: Vec<u32> = (0..x.rows as u32).collect();
    cpu.embed(&tensor(x.rows, x.columns, &x.data), &ids)
}

/// A step of a decoder's self-attention, on any backend: keys and values of `qkv` go into the
/// cache, then its queries attend.
fn step<B: Backend>(
    backend: &B,
    cache: &mut B::KvCache,
    qkv: &B::Operand,
    row_starts: &[usize],
    bias: &B::Bias,
    (n_heads, d_kv): (usize, usize),
) -> B::Operand {
    let (inner, tokens) = (n_heads * d_kv, row_starts[row_starts.len() - 1]);
    backend.append_kv(cache, qkv, inner, row_starts);
    let mut out = backend.operand(tokens, inner);
    let attention = Attention {
        n_heads,
        d_kv,
        queries: qkv,
        row_starts,
        keys: Keys::Cache(cache),
        bias: Some(bias),
        positions: None,
        visible: Visible::Causal,
        head_gains: None,
    };
    backend.attend(&attention, &mut out);
    out
}

#[test]
fn a_growing_cache_equals_the_reference_at_every_step() {
    let (n_heads, d_kv) = (3, 16);
    let inner = n_heads * d_kv;
    // New tokens of each row; the fourth step outgrows the first capacity, the last the second.
    let steps = [
        [3, 1, 0],
        [1, 1, 1],
        [1, 0, 2],
        [1, 40, 1],
        [1, 1, 1],
        [90, 0, 1],
        [1, 1, 1],
    ];
    let buckets = || Buckets::unidirectional(8, 20);
    let table = tensor(8, n_heads, &noise(8 * n_heads, 1));
    for_each_isa(&Compute::default(), |cpu| {
        let bias = cpu.prepare_bias(table.clone(), buckets()).unwrap();
        let exact_bias = Reference.prepare_bias(table.clone(), buckets()).unwrap();
        let mut cache = cpu.kv_cache(3, n_heads, d_kv);
        let mut exact_cache = Reference.kv_cache(3, n_heads, d_kv);
        assert!(cache.is_empty());
        for (at, new) in steps.into_iter().enumerate() {
            let row_starts = [0, new[0], new[0] + new[1], new[0] + new[1] + new[2]];
            let tokens = row_starts[3];
            let qkv = Rows::new(tokens, 3 * inner, noise(tokens * 3 * inner, 10 + at));
            let mut own = cpu.attention_operand(tokens, 3 * inner);
            for token in 0..tokens {
                for (column, &value) in qkv.row(token).iter().enumerate() {
                    own.set(token, column, value);
                }
            }
            let sizes = (n_heads, d_kv);
            let out = step(&cpu, &mut cache, &own, &row_starts, &bias, sizes);
            let exact = step(
                &Reference,
                &mut exact_cache,
                &qkv,
                &row_starts,
                &exact_bias,
                sizes,
            );
            for row in 0..3 {
                assert_eq!(cache.len(row), exact_cache.len(row));
            }
            // A score is a sum of d_kv products below 1 and a bias; its error moves a weight by
            // as much. e^x and the sums over fewer than 128 keys add as many roundings at most.
            let bound = ((d_kv * (d_kv + 2)) as f64 + 140.0) * 2.0 * ROUNDING;
            for token in 0..tokens {
                for (column, &expected) in exact.row(token).iter().enumerate() {
                    let found = out.get(token, column);
                    assert!(
                        f64::from(found - expected).abs() <= bound,
                        "{:?}, step {at}, token {token}, column {column}: {found}, expected {expected}",
                        cpu.isa()
                    );
                }
            }
        }
    });
}

/// Weights and results of an attention, under every mask, over rows with and without gaps, with
/// gains and without.
#[test]
fn attention_weights_equal_the_reference() {
    let row_starts = [0, 1, 1, 19, 52];
    let tokens = row_starts[4];
    let n_pairs = 1 + 18 * 18 + 33 * 33;
    let keys: Vec<bool> = (0..tokens).map(|t| t > 0 && t % 3 != 1).collect();
    // Every fifth query sees nothing, the others less than half.
    let pairs: Vec<bool> = (0..n_pairs)
        .map(|at| at * 7919 % 11 < 4 && at / 7 % 5 != 0)
        .collect();
    let nothing = vec![false; tokens];
    let masks = [
        Mask::Full,
        Mask::Keys(keys),
        Mask::Keys(nothing),
        Mask::Pairs(pairs),
    ];
    let positions: Vec<u32> = (0..tokens as u32).map(|t| t * t % 97 / 2 + t).collect();
    for (n_heads, d_kv) in [(3, 16), (2, 64), (1, 5)] {
        let inner = n_heads * d_kv;
        let qkv = Rows::new(tokens, 3 * inner, noise(tokens * 3 * inner, 21));
        let table = tensor(8, n_heads, &noise(8 * n_heads, 22));
        let gains: Vec<f32> = noise(n_heads, 23).iter().map(|x| 2.0 * x).collect();
        let buckets = || Buckets::bidirectional(8, 20);
        let exact_bias = Reference.prepare_bias(table.clone(), buckets()).unwrap();
        for_each_isa(&Compute::default(), |cpu| {
            let bias = cpu.prepare_bias(table.clone(), buckets()).unwrap();
            let mut own = cpu.fused_operand(tokens, 3 * inner, d_kv);
            for token in 0..tokens {
                for (column, &value) in qkv.row(token).iter().enumerate() {
                    own.set(token, column, value);
                }
            }
            let mut out = cpu.operand(tokens, inner);
            let mut exact_out = Rows::zeros(tokens, inner);
            for (mask_idx, mask) in masks.iter().enumerate() {
                for positions in [None, Some(&positions[..])] {
                    for head_gains in [None, Some(&gains[..])] {
                        let attention = Attention {
                            n_heads,
                            d_kv,
                            queries: &own,
                            row_starts: &row_starts,
                            keys: Keys::Fused,
                            bias: Some(&bias),
                            positions,
                            visible: Visible::Mask(mask),
                            head_gains,
                        };
                        let exact = Attention {
                            n_heads,
                            d_kv,
                            queries: &qkv,
                            row_starts: &row_starts,
                            keys: Keys::Fused,
                            bias: Some(&exact_bias),
                            positions,
                            visible: Visible::Mask(mask),
                            head_gains,
                        };
                        let case = format!(
                            "{:?}, {n_heads} x {d_kv}, mask {mask_idx}, gaps {}, gains {}",
                            cpu.isa(),
                            positions.is_some(),
                            head_gains.is_some()
                        );
                        // A score is a sum of d_kv products below 1 and a bias below 1, rounded
                        // twice, and two scores move a weight; then one rounding on each side.
                        let bound = (2.0 * (2.0 * d_kv as f64 + 1.0) + 2.0) * ROUNDING;
                        let found = cpu.attention_weights(&attention).unwrap();
                        let expected = Reference.attention_weights(&exact).unwrap();
                        assert_eq!(found.len(), n_heads * n_pairs);
                        assert_eq!(expected.len(), n_heads * n_pairs);
                        for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
                            let allowed = bound * f64::from(expected.abs());
                            let difference = f64::from(found - expected).abs();
                            assert!(difference <= allowed, "{case}, {at}: {found}, {expected}");
                        }
                        cpu.attend(&attention, &mut out);
                        Reference.attend(&exact, &mut exact_out);
                        // As for a growing cache, times a gain below 2.
                        let bound = ((d_kv * (d_kv + 2)) as f64 + 140.0) * 4.0 * ROUNDING;
                        for token in 0..tokens {
                            for (column, &expected) in exact_out.row(token).iter().enumerate() {
                                let found = out.get(token, column);
                                let difference = f64::from(found - expected).abs();
                                assert!(difference <= bound, "{case}: {found}, {expected}");
                            }
                        }
                    }
                }
            }
        });
    }
}

#[test]
fn logits_equal_the_reference() {
    let (rows, d_model, vocab, scale) = (3, 70, 131, 0.125f32);
    let x = Rows::new(rows, d_model, noise(rows * d_model, 2));
    let head = noise(vocab * d_model, 3);
    let exact = Reference.logits(&x, &stacked(vocab, d_model, &head), scale);
    for_each_isa(&Compute::default(), |cpu| {
        let matrix = cpu
            .prepare_matrix(stacked(vocab, d_model, &head), None)
            .unwrap();
        let logits = cpu
            .read_logits(&cpu.logits(&stream(&cpu, &x), &matrix, scale))
            .unwrap();
        for (at, (&found, &expected)) in logits.iter().zip(&exact.data).enumerate() {
            let w = &head[at % vocab * d_model..][..d_model];
            let sizes = x.row(at / vocab).iter().zip(w);
            let size: f64 = sizes.map(|(x, w)| f64::from((x * w).abs())).sum();
            // What the kernels promise for a product, the scale, and the reference's rounding.
            let bound = f64::from(scale) * size * (d_model as f64 + 3.0) * ROUNDING;
            assert!(
                f64::from(found - expected).abs() <= bound,
                "{at}: {found}, {expected}"
            );
        }
    });
}

#[test]
fn weights_that_f16_cannot_hold_are_refused_by_name() {
    let compute = Compute {
        dtype: ComputeType::F16,
        ..Compute::default()
    };
    let cpu = Cpu::with_isa(Isa::Portable, &compute).unwrap();
    let name = "encoder.block.3.layer.1.DenseReluDense.wo.weight";
    let weight = |value| Tensor::from_f32(name, vec![2, 2], &[1.0, -2.0, 3.0, value]);
    let fine = || tensor(2, 2, &[0.0; 4]);
    for weights in [
        Weights::Stacked(vec![weight(70000.0)]),
        Weights::Stacked(vec![fine(), weight(70000.0)]),
        Weights::Gated {
            gate: fine(),
            up: weight(70000.0),
        },
    ] {
        let error = cpu.prepare_matrix(weights, None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert_eq!(error.place(), Some(format!("tensor `{name}`").as_str()));
        assert_eq!(
            error.message(),
            "a weight is 70000, which f16 cannot hold (up to 65504)"
        );
        assert_eq!(error.hint_text(), Some("compute in bf16 or f32"));
    }
    for value in [65504.0, -65504.0, f32::INFINITY] {
        let weights = Weights::Stacked(vec![weight(value)]);
        assert!(cpu.prepare_matrix(weights, None).is_ok());
    }
    // Other types hold it.
    let cpu = Cpu::with_isa(Isa::Portable, &Compute::default()).unwrap();
    assert!(
        cpu.prepare_matrix(Weights::Stacked(vec![weight(70000.0)]), None)
            .is_ok()
    );
}

#[test]
fn a_folded_gain_is_the_gain_of_the_norm() {
    let (tokens, d_model, columns, eps) = (5, 96, 40, 1e-6);
    let x = Rows::new(tokens, d_model, noise(tokens * d_model, 6));
    let gain: Vec<f32> = noise(d_model, 7).iter().map(|x| 1.5 + x).collect();
    let w = noise(columns * d_model, 8);
    let fold = Compute {
        fold_norm_gains: true,
        ..Compute::default()
    };
    for_each_isa(&fold, |cpu| {
        assert!(cpu.folds_gains());
        let x = stream(&cpu, &x);
        let product = |gain: Option<&Vec<f32>>, matrix: &PackedMatrix| {
            let mut normed = cpu.operand(tokens, d_model);
            cpu.rms_norm(&x, gain, eps, &mut normed);
            let mut out = Stream::zeroed(tokens, columns);
            cpu.linear(&normed, matrix, Epilogue::Add(&mut out));
            cpu.read_stream(&out).unwrap()
        };
        let plain = cpu
            .prepare_matrix(stacked(columns, d_model, &w), None)
            .unwrap();
        let folded = Tensor::from_f32("gain", vec![d_model], &gain);
        let folded = cpu
            .prepare_matrix(stacked(columns, d_model, &w), Some(folded))
            .unwrap();
        let (apart, together) = (product(Some(&gain), &plain), product(None, &folded));
        for (at, (&apart, &together)) in apart.iter().zip(&together).enumerate() {
            // Of each side: a rounding of each factor, and a sum of d_model terms. Normed values
            // are at most sqrt(d_model) and have a mean square of 1, gains are at most 2.5.
            let w = &w[at % columns * d_model..][..d_model];
            let norm = w.iter().map(|&w| f64::from(w * w)).sum::<f64>().sqrt();
            let size = 2.5 * norm * (d_model as f64).sqrt();
            let bound = 2.0 * (d_model as f64 + 6.0) * ROUNDING * size;
            assert!(
                f64::from(apart - together).abs() <= bound,
                "{at}: {apart}, {together}"
            );
        }
    });
}

#[test]
fn a_model_with_folded_gains_is_nearly_the_same() {
    for name in ["t5-v1_1", "umt5"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../testdata/goldens")
            .join(name);
        let checkpoint = Checkpoint::open(folder, &OpenOptions::default()).unwrap();
        let states = |fold_norm_gains| {
            let compute = Compute {
                fold_norm_gains,
                ..Compute::default()
            };
            let encoder =
                TextEncoder::from_checkpoint(&checkpoint, BackendKind::Cpu, &compute).unwrap();
            let rows = [vec![3, 1, 4, 1, 5, 9, 2, 6], vec![5], vec![35; 40]];
            let batch = PackedBatch::from_rows(&rows, encoder.config().vocab_size).unwrap();
            encoder.hidden_states(&batch, false).unwrap().last
        };
        let (apart, together) = (states(false), states(true));
        let largest = apart.iter().fold(0.0f32, |max, x| max.max(x.abs()));
        let differences = apart.iter().zip(&together).map(|(a, b)| (a - b).abs());
        // Some thousand roundings.
        let furthest = differences.fold(0.0f32, f32::max);
        assert!(
            furthest <= 1e-4 * largest,
            "{name}: {furthest} of {largest}"
        );
    }
}

/// In a process of its own, whose environment is its own, too.
#[test]
fn an_unknown_instruction_set_is_an_error() {
    const UNKNOWN: &str = "sse9";
    if std::env::var(kernels::ISA_VARIABLE).is_ok_and(|name| name == UNKNOWN) {
        let error = Cpu::new(&Compute::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert_eq!(error.place(), Some(kernels::ISA_VARIABLE));
        assert!(error.message().contains("`sse9`"), "{error}");
        assert!(error.message().contains("portable, avx2"), "{error}");
        return;
    }
    let itself = concat!(module_path!(), "::an_unknown_instruction_set_is_an_error");
    let (_, itself) = itself.split_once("::").unwrap();
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", itself])
        .env(kernels::ISA_VARIABLE, UNKNOWN)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("1 passed"), "{text}");
}

#[test]
fn an_instruction_set_that_is_missing_here_is_an_error() {
    for isa in Isa::ALL.into_iter().filter(|isa| !isa.is_available()) {
        let error = Cpu::with_isa(isa, &Compute::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.message().contains(isa.name()), "{error}");
    }
}
