//! The backend against the reference on an emulated device: the kernels' own sources, and
//! everything around them but the driver and cuBLASLt.

use std::sync::Arc;

use half::{bf16, f16};
use quintic_cuda_emulator::EmulatedDevice;

use super::*;
use crate::backend::reference::{Reference, Rows};
use crate::backend::{Keys, Visible};
use crate::batch::Mask;

/// Half the distance of 1.0 to the next f32: the relative error of a rounding.
const ROUNDING: f64 = 1.0 / (1u64 << 24) as f64;

pub(super) fn emulated() -> Arc<EmulatedDevice> {
    Arc::new(EmulatedDevice::new(1 << 30))
}

fn compute(dtype: ComputeType) -> Compute {
    Compute {
        dtype,
        ..Compute::default()
    }
}

pub(super) fn backend(device: &Arc<EmulatedDevice>, dtype: ComputeType) -> Cuda {
    Cuda::new(Arc::clone(device) as Arc<dyn Device>, &compute(dtype)).unwrap()
}

/// The relative error of rounding to a type.
fn unit(dtype: ComputeType) -> f64 {
    match dtype {
        ComputeType::F32 => ROUNDING,
        ComputeType::Bf16 => 1.0 / 256.0,
        ComputeType::F16 => 1.0 / 2048.0,
    }
}

fn rounded(dtype: ComputeType, value: f32) -> f32 {
    match dtype {
        ComputeType::F32 => value,
        ComputeType::Bf16 => bf16::from_f32(value).to_f32(),
        ComputeType::F16 => f16::from_f32(value).to_f32(),
    }
}

/// Numbers in [-1, 1) that look random and that the type holds.
pub(super) fn noise(dtype: ComputeType, n: usize, seed: usize) -> Vec<f32> {
    let mut state = (seed as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        rounded(dtype, (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0)
    };
    std::iter::repeat_with(next).take(n).collect()
}

pub(super) fn tensor(rows: usize, columns: usize, values: &[f32]) -> Tensor {
    Tensor::from_f32("w", vec![rows, columns], values)
}

pub(super) fn operand(cuda: &Cuda, x: &Rows) -> Operand {
    let contents = match cuda.element {
        Element::F32 => cuda.memory.upload(&x.data),
        Element::Bf16 => {
            let values: Vec<bf16> = x.data.iter().map(|&v| bf16::from_f32(v)).collect();
            cuda.memory.upload(&values)
        }
        Element::F16 => {
            let values: Vec<f16> = x.data.iter().map(|&v| f16::from_f32(v)).collect();
            cuda.memory.upload(&values)
        }
    };
    Operand::new(x.rows, x.columns, contents)
}

pub(super) fn values(cuda: &Cuda, x: &Operand) -> Vec<f32> {
    let (contents, count) = (x.contents().unwrap(), x.tokens * x.columns);
    let values = match cuda.element {
        Element::F32 => contents.read::<f32>(0, count).unwrap(),
        Element::Bf16 => {
            let values: Vec<bf16> = contents.read(0, count).unwrap();
            values.iter().map(|v| v.to_f32()).collect()
        }
        Element::F16 => {
            let values: Vec<f16> = contents.read(0, count).unwrap();
            values.iter().map(|v| v.to_f32()).collect()
        }
    };
    values.iter().map(|v| v / x.scale).collect()
}

/// Masks for rows with these bounds: none, some keys, no key at all, pairs of which every fifth
/// query has none.
fn masks(row_starts: &[usize]) -> Vec<Mask> {
    let tokens = row_starts[row_starts.len() - 1];
    let n_pairs: usize = row_starts.windows(2).map(|b| (b[1] - b[0]).pow(2)).sum();
    vec![
        Mask::Full,
        Mask::Keys((0..tokens).map(|t| t > 0 && t % 3 != 1).collect()),
        Mask::Keys(vec![false; tokens]),
        Mask::Pairs(
            (0..n_pairs)
                .map(|at| at * 7919 % 11 < 4 && at / 7 % 5 != 0)
                .collect(),
        ),
    ]
}

struct Case<'a> {
    dtype: ComputeType,
    heads: (usize, usize),
    row_starts: &'a [usize],
    visible: Visible<'a>,
    positions: Option<&'a [u32]>,
    gains: Option<&'a [f32]>,
    bias: Option<Buckets>,
}

/// Results and weights, forwards and backwards, within what roundings allow.
fn check_attention(case: &Case<'_>) {
    let device = emulated();
    let cuda = backend(&device, case.dtype);
    let (n_heads, d_kv) = case.heads;
    let inner = n_heads * d_kv;
    let tokens = case.row_starts[case.row_starts.len() - 1];
    let qkv = Rows::new(
        tokens,
        3 * inner,
        noise(case.dtype, tokens * 3 * inner, tokens + d_kv),
    );
    let table = tensor(64, n_heads, &noise(ComputeType::F32, 64 * n_heads, 22));
    let bias = case
        .bias
        .clone()
        .map(|buckets| cuda.prepare_bias(table.clone(), buckets).unwrap());
    let exact_bias = case
        .bias
        .clone()
        .map(|buckets| Reference.prepare_bias(table.clone(), buckets).unwrap());
    let own = operand(&cuda, &qkv);
    let attention = Attention {
        n_heads,
        d_kv,
        queries: &own,
        row_starts: case.row_starts,
        keys: Keys::Fused,
        bias: bias.as_ref(),
        positions: case.positions,
        visible: case.visible,
        head_gains: case.gains,
    };
    let exact = Attention {
        n_heads,
        d_kv,
        queries: &qkv,
        row_starts: case.row_starts,
        keys: Keys::Fused,
        bias: exact_bias.as_ref(),
        positions: case.positions,
        visible: case.visible,
        head_gains: case.gains,
    };
    let name = format!(
        "{:?}, {n_heads} x {d_kv}, rows {:?}, {:?}, gaps {}, gains {}, bias {}",
        case.dtype,
        case.row_starts,
        match case.visible {
            Visible::Causal => "causal",
            Visible::Mask(Mask::Full) => "full",
            Visible::Mask(Mask::Keys(_)) => "keys",
            Visible::Mask(Mask::Pairs(_)) => "pairs",
        },
        case.positions.is_some(),
        case.gains.is_some(),
        case.bias.is_some(),
    );
    let mut expected = Rows::zeros(tokens, inner);
    Reference.attend(&exact, &mut expected);
    let run = |backwards| {
        device.run_backwards(backwards);
        let mut out = cuda.operand(tokens, inner);
        cuda.attend(&attention, &mut out);
        values(&cuda, &out)
    };
    let found = run(false);
    assert_eq!(found, run(true), "{name}: depends on the order of threads");
    // A score is a sum of d_kv products below 1 and a bias below 1, scaled: its error moves a
    // weight by as much; the exponential and the sums over keys add a rounding each. Weights
    // and results are rounded to the type, one after the other; values are below 1, gains below 2.
    let longest = case.row_starts.windows(2).map(|b| b[1] - b[0]).max();
    let longest = longest.unwrap_or(0) as f64;
    let score = (d_kv * (d_kv + 4)) as f64 + 8.0;
    let exact_part = 2.0 * (score + longest + 16.0) * ROUNDING;
    let bound = 2.0 * (exact_part + 2.1 * unit(case.dtype));
    for (at, (found, expected)) in found.iter().zip(&expected.data).enumerate() {
        let difference = f64::from(found - expected).abs();
        assert!(
            difference <= bound,
            "{name}, token {}, column {}: {found}, expected {expected}",
            at / inner,
            at % inner
        );
    }
    let found = cuda.attention_weights(&attention).unwrap();
    let expected = Reference.attention_weights(&exact).unwrap();
    assert_eq!(found.len(), expected.len(), "{name}");
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        let allowed = exact_part * f64::from(expected.abs()) + 1e-37;
        let difference = f64::from(found - expected).abs();
        assert!(difference <= allowed, "{name}, {at}: {found}, {expected}");
    }
}

#[test]
fn attention_equals_the_reference_in_every_form() {
    let row_starts = [0, 1, 1, 19, 52];
    let positions: Vec<u32> = (0..52).map(|t| t * t % 97 / 2 + t).collect();
    let masks = masks(&row_starts);
    for dtype in ComputeType::ALL {
        for heads in [(3, 8), (2, 64), (1, 128), (2, 5)] {
            let gains: Vec<f32> = noise(ComputeType::F32, heads.0, 23)
                .iter()
                .map(|x| 2.0 * x)
                .collect();
            for (at, visible) in masks
                .iter()
                .map(Visible::Mask)
                .chain([Visible::Causal])
                .enumerate()
            {
                check_attention(&Case {
                    dtype,
                    heads,
                    row_starts: &row_starts,
                    visible,
                    positions: (at % 2 == 0).then_some(&positions),
                    gains: (at % 3 != 1).then_some(&gains),
                    bias: (at != 3).then(|| Buckets::bidirectional(32, 20)),
                });
                check_attention(&Case {
                    dtype,
                    heads,
                    row_starts: &row_starts,
                    visible,
                    positions: (at % 2 == 1).then_some(&positions),
                    gains: None,
                    bias: Some(Buckets::bidirectional(32, 128)),
                });
            }
        }
    }
}

#[test]
fn tiles_of_attention_equal_the_reference_around_their_edges() {
    let full = Mask::Full;
    for dtype in [ComputeType::Bf16, ComputeType::F16] {
        for d_kv in [64, 128] {
            // Around the tile and the warp's share of it; the reach of the bias around the
            // distances between tiles.
            let with_reach = |reach: usize| {
                let mut candidates = [8, 16, 32, 64]
                    .into_iter()
                    .flat_map(|n| (2 * n..200).map(move |far| Buckets::bidirectional(n, far)));
                candidates.find(|buckets| buckets.reach() == reach).unwrap()
            };
            for length in [1, 15, 16, 17, 63, 64, 65, 127, 129, 160, 230] {
                let row_starts = [0, 3, 3 + length, 5 + length];
                for visible in [Visible::Mask(&full), Visible::Causal] {
                    check_attention(&Case {
                        dtype,
                        heads: (1, d_kv),
                        row_starts: &row_starts,
                        visible,
                        positions: None,
                        gains: None,
                        bias: Some(Buckets::bidirectional(32, 128)),
                    });
                }
            }
            for reach in 63..=66 {
                check_attention(&Case {
                    dtype,
                    heads: (1, d_kv),
                    row_starts: &[0, 200],
                    visible: Visible::Mask(&full),
                    positions: None,
                    gains: None,
                    bias: Some(with_reach(reach)),
                });
            }
        }
    }
}
