//! Inputs that depend on nothing, and operands made of them.

use half::{bf16, f16};

use super::bounds::SINGLE;
use super::{Subject, Worst};
use crate::Result;
use crate::backend::reference::Rows;
use crate::backend::{Backend, Epilogue, Weights};
use crate::compute::ComputeType;
use crate::tensor::Tensor;

/// Columns of noise that operands are picked from.
pub(super) const NOISE: usize = 63;

/// The value as the type holds it.
pub(super) fn rounded(dtype: ComputeType, value: f32) -> f32 {
    match dtype {
        ComputeType::F32 => value,
        ComputeType::Bf16 => bf16::from_f32(value).to_f32(),
        ComputeType::F16 => f16::from_f32(value).to_f32(),
    }
}

/// Numbers in [-1, 1] that look random and that the type holds.
pub(super) fn noise(dtype: ComputeType, n: usize, seed: usize) -> Vec<f32> {
    // xorshift64 (Marsaglia 2003).
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

pub(super) fn stacked(rows: usize, columns: usize, values: &[f32]) -> Weights {
    Weights::Stacked(vec![tensor(rows, columns, values)])
}

/// Where rows of these lengths begin.
pub(super) fn row_starts(lengths: &[usize]) -> Vec<usize> {
    let mut starts = vec![0];
    for length in lengths {
        starts.push(starts[starts.len() - 1] + length);
    }
    starts
}

/// An operand of the backend, and the numbers that it holds.
pub(super) struct Made<B: Backend> {
    pub(super) own: B::Operand,
    pub(super) exact: Rows,
}

/// Which column of the base a column of an operand repeats, and by which power of two.
pub(super) type Pick = (usize, f32);

/// Picks of noise, different in neighbouring columns.
pub(super) fn picks_of_noise(columns: usize, seed: usize) -> Vec<Pick> {
    (0..columns)
        .map(|column| {
            // 25 and 63 have no common divisor: 63 columns in a row are all different.
            let at = (column * 25 + column / NOISE * 11 + seed) % NOISE;
            let sign = if (column / NOISE + column).is_multiple_of(3) {
                -1.0
            } else {
                1.0
            };
            (at, sign)
        })
        .collect()
}

/// Rows of noise; behind it a column that gives every row a mean square of 1, and `more` columns
/// that `fill` fills with values whose squares add up to 1 at most.
pub(super) fn base(
    dtype: ComputeType,
    tokens: usize,
    more: usize,
    seed: usize,
    fill: impl Fn(usize, &mut [f32]),
) -> Rows {
    let noise = noise(dtype, tokens * NOISE, seed);
    let mut rows = Rows::zeros(tokens, NOISE + 1 + more);
    let columns = rows.columns as f64;
    for token in 0..tokens {
        let row = rows.row_mut(token);
        row[..NOISE].copy_from_slice(&noise[token * NOISE..][..NOISE]);
        fill(token, &mut row[NOISE + 1..]);
        let squares: f64 = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        row[NOISE] = (columns - squares).max(0.0).sqrt() as f32;
    }
    rows
}

/// What reads an operand.
#[derive(Clone, Copy, Debug)]
pub(super) enum Reader {
    Product,
    /// An attention, or a cache before it.
    Attention,
    /// An attention alone, all of it.
    Fused {
        d_kv: usize,
    },
}

/// An operand of picked columns of `base`, see the [module](super) docs.
pub(super) fn make<B: Backend>(
    subject: &Subject<'_, B>,
    worst: &mut Worst,
    base: &Rows,
    picks: &[Pick],
    reader: Reader,
) -> Result<Made<B>> {
    let backend = subject.backend;
    let (tokens, depth, columns) = (base.rows, base.columns, picks.len());
    let stream = backend.stream(tokens, depth, &base.data);
    let gain = backend.prepare_gain(Tensor::from_f32("gain", vec![depth], &vec![1.0; depth]))?;
    let mut normed = backend.operand(tokens, depth);
    backend.rms_norm(&stream, Some(&gain), 0.0, &mut normed);
    let actual = read(subject, &normed, tokens, depth)?;
    // The column that sets the mean square is rounded to the type, and nobody picks it.
    let is_picked = |at: usize| at % depth != NOISE;
    let keep = |values: &[f32]| -> Vec<f32> {
        let kept = values.iter().enumerate().filter(|(at, _)| is_picked(*at));
        kept.map(|(_, &value)| value).collect()
    };
    let (found, wanted) = (keep(&actual), keep(&base.data));
    worst.compare("input", &found, &wanted, |at| {
        (depth as f64 / 2.0 + 10.0) * SINGLE * f64::from(wanted[at].abs())
    });

    let mut selection = vec![0.0; columns * depth];
    for (column, &(at, factor)) in picks.iter().enumerate() {
        selection[column * depth + at] = factor;
    }
    let selection = backend.prepare_matrix(stacked(columns, depth, &selection), None)?;
    let mut own = match reader {
        Reader::Product => backend.operand(tokens, columns),
        Reader::Attention => backend.attention_operand(tokens, columns),
        Reader::Fused { d_kv } => backend.fused_operand(tokens, columns, d_kv),
    };
    backend.linear(&normed, &selection, Epilogue::Store(&mut own));
    let mut exact = Rows::zeros(tokens, columns);
    for token in 0..tokens {
        let row = &actual[token * depth..][..depth];
        for (out, &(at, factor)) in exact.row_mut(token).iter_mut().zip(picks) {
            *out = row[at] * factor;
        }
    }
    Ok(Made { own, exact })
}

/// An operand of noise.
pub(super) fn make_noise<B: Backend>(
    subject: &Subject<'_, B>,
    worst: &mut Worst,
    tokens: usize,
    columns: usize,
    seed: usize,
) -> Result<Made<B>> {
    let base = base(subject.dtype(), tokens, 0, seed, |_, _| ());
    make(
        subject,
        worst,
        &base,
        &picks_of_noise(columns, seed),
        Reader::Product,
    )
}

/// The values of an operand.
pub(super) fn read<B: Backend>(
    subject: &Subject<'_, B>,
    operand: &B::Operand,
    tokens: usize,
    columns: usize,
) -> Result<Vec<f32>> {
    let backend = subject.backend;
    let mut identity = vec![0.0; columns * columns];
    for column in 0..columns {
        identity[column * columns + column] = 1.0;
    }
    let identity = backend.prepare_matrix(stacked(columns, columns, &identity), None)?;
    let mut stream = backend.stream(tokens, columns, &vec![0.0; tokens * columns]);
    backend.linear(operand, &identity, Epilogue::Add(&mut stream));
    backend.read_stream(&stream)
}
