//! Weights as integers of 8 or 4 bits, and activations as integers of 8 or 16.
//!
//! # What is stored
//!
//! A column's weights are `factor * code` with a factor in f32 and codes of -127 to 127. A code of
//! [`Storage::Int8`](crate::Storage::Int8) is a byte. One of [`Storage::Int4`](crate::Storage::Int4)
//! is `multiplier * q`: `q` of -8 to 7 in four bits, and a multiplier of -15 to 15 in a byte for
//! each group of 32 `k`. So four bits are a shorter way to write eight: they are expanded without
//! rounding, and everything that reads codes reads both.
//!
//! Codes are exact in bf16, which has 8 bits of precision, and in f32. A product multiplies by
//! codes, and the sum by the factor, once: no weight is rounded again.
//!
//! # Order
//!
//! A panel is chunks of 64 `k`, filled up with zeros, and the factors of its 32 columns behind
//! them. A chunk of int8 is 2048 bytes: columns 0 to 15, then 16 to 31, and of either half 16
//! quads of `k`, each with four adjacent codes for every column: the order that byte dot products
//! of AVX-512 VNNI and of AMX read. A chunk of int4 is 1024 bytes, in which a byte has `q + 8` of
//! a place in an even quad in its lower half and of the same place in the next quad in its upper
//! half; then the multipliers: columns 0 to 15 for `k` below 32, for `k` from 32 on, then columns
//! 16 to 31.

use crate::micro::{Again, Fetch, PANEL};

/// Depth of a chunk.
pub(crate) const CHUNK: usize = 64;

/// Adjacent `k` of a column.
pub(crate) const QUAD: usize = 4;

/// `k` that share a multiplier.
const GROUP: usize = 32;

/// Bytes of a chunk of int8.
pub(crate) const INT8_CHUNK: usize = CHUNK * PANEL;

/// Bytes of a chunk's q, two a byte.
pub(crate) const INT4_CODES: usize = INT8_CHUNK / 2;

/// Bytes of a chunk of int4.
pub(crate) const INT4_CHUNK: usize = INT4_CODES + CHUNK / GROUP * PANEL;

/// Bytes of a panel's factors.
pub(crate) const FACTORS: usize = PANEL * size_of::<f32>();

/// Largest code.
const LARGEST: f32 = 127.0;

/// Sums that squares of weights are collected in.
const LANES: usize = 16;

/// Smallest code, of weights alone.
const SMALLEST_CODE: f32 = -128.0;

/// Largest code of 16 bits: a high byte of 127 and a low one of 127.
const LARGEST_WIDE: f32 = 127.0 * HIGH + 127.0;

/// What a high byte counts.
const HIGH: f32 = 256.0;

/// Most depth of a product whose sums are exact in i32: weights of -128 meet low bytes of -128, and
/// `(2^17 - 1) * 128 * 128 < 2^31`.
pub const MAX_INT_DEPTH: usize = (1 << 17) - 1;

/// Columns of half a panel.
const HALF: usize = PANEL / 2;

/// Place of a code in the bytes of a panel's codes.
fn place(k: usize, column: usize) -> usize {
    let (chunk, within) = (k / CHUNK, k % CHUNK);
    let line = (chunk * 2 + column / HALF) * (CHUNK / QUAD) + within / QUAD;
    (line * HALF + column % HALF) * QUAD + within % QUAD
}

/// Adding and subtracting this rounds an f32 of less than 2^22 to a whole number, half to even.
const ROUND: f32 = 12_582_912.0;

/// The code nearest to `value` times `inverse`, half to even. Whole instructions on every CPU, where
/// rounding by its name is a call on those before SSE4.1. What is not finite times zero gives no code
/// that means anything: its factor is a NaN, and whoever writes codes writes zeros.
#[inline(always)]
fn nearest(value: f32, inverse: f32) -> i32 {
    let bits = (value * inverse + ROUND).to_bits();
    bits.wrapping_sub(ROUND.to_bits()) as i32
}

/// The factor of a column or row whose largest magnitude has these bits and becomes the code
/// `most`, and what it is multiplied with to become codes. With a value that is not finite the factor is NaN, so that
/// none of the column's results is. What is so small that its inverse is not finite becomes zeros.
#[inline(always)]
fn factors(largest_bits: u32, most: f32) -> (f32, f32) {
    let largest = f32::from_bits(largest_bits);
    let inverse = most / largest;
    if !largest.is_finite() {
        (f32::NAN, 0.0)
    } else if inverse.is_finite() {
        (largest / most, inverse)
    } else {
        (0.0, 0.0)
    }
}

/// Bits of the largest magnitude; those of NaN and infinity are above all others.
#[inline(always)]
fn largest_bits(values: &[f32]) -> u32 {
    values
        .iter()
        .fold(0, |most, value| most.max(value.to_bits() & 0x7fff_ffff))
}

/// A column's codes: `weight * inverse`, each rounded to the nearest code, stand for the code times `factor`. Both are zero
/// for a column of zeros; of one that is not finite the factor is NaN and the inverse zero.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Step {
    pub(crate) factor: f32,
    pub(crate) inverse: f32,
}

/// Writes a column of int8, see [`Quantised::step`].
pub(crate) fn write_int8(panel: &mut [u8], column: usize, weights: &[f32], step: Step) {
    // Else codes stay zeros.
    if step.inverse != 0.0 {
        for (k, &weight) in weights.iter().enumerate() {
            let code = nearest(weight, step.inverse).clamp(i8::MIN.into(), i8::MAX.into());
            panel[place(k, column)] = code as u8;
        }
    }
    write_factor(panel, column, step.factor);
}

fn write_factor(panel: &mut [u8], column: usize, factor: f32) {
    let at = panel.len() - FACTORS + column * size_of::<f32>();
    panel[at..][..size_of::<f32>()].copy_from_slice(&factor.to_le_bytes());
}

/// Largest magnitudes of `q` and of a multiplier.
const LARGEST_Q: f32 = 8.0;
const LARGEST_MULTIPLIER: f32 = 15.0;

/// Writes a column of int4. The factor lets the largest weight be `15 * -8` or `-15 * -8`; of
/// each group the multiplier with the least squared error is taken.
pub(crate) fn write_int4(panel: &mut [u8], column: usize, weights: &[f32]) {
    let largest = f32::from_bits(largest_bits(weights));
    let inverse = LARGEST_Q * LARGEST_MULTIPLIER / largest;
    let (factor, inverse) = match (largest.is_finite(), inverse.is_finite()) {
        (false, _) => (f32::NAN, 0.0),
        (true, true) => (largest / (LARGEST_Q * LARGEST_MULTIPLIER), inverse),
        (true, false) => (0.0, 0.0),
    };
    let depth = weights.len().next_multiple_of(CHUNK);
    for first in (0..depth).step_by(GROUP) {
        let mut group = [0.0f32; GROUP];
        let weights = weights.get(first..).unwrap_or_default();
        for (value, weight) in group.iter_mut().zip(weights) {
            // A NaN times zero would be a NaN.
            *value = if inverse == 0.0 {
                0.0
            } else {
                weight * inverse
            };
        }
        let multiplier = best_multiplier(&group);
        let chunk = &mut panel[first / CHUNK * INT4_CHUNK..][..INT4_CHUNK];
        let groups = CHUNK / GROUP;
        let at =
            INT4_CODES + (column / HALF * groups + first / GROUP % groups) * HALF + column % HALF;
        chunk[at] = multiplier as i8 as u8;
        for (k, value) in group.iter().enumerate() {
            let q = (nearest_q(*value, 1.0 / multiplier) + LARGEST_Q) as u8;
            let place = place(first % CHUNK + k, column);
            // Two quads of a half, 64 bytes each, are the halves of 64 bytes.
            let (line, within) = (place / (2 * LINE), place % (2 * LINE));
            let (upper, within) = (within / LINE, within % LINE);
            chunk[line * LINE + within] |= q << (4 * upper);
        }
    }
    write_factor(panel, column, factor);
}

/// Bytes of a quad of 16 columns.
pub(crate) const LINE: usize = HALF * QUAD;

/// The `q` whose product with the inverse's inverse is nearest to `value`.
#[inline(always)]
fn nearest_q(value: f32, inverse: f32) -> f32 {
    let q = (value * inverse + ROUND) - ROUND;
    q.clamp(-LARGEST_Q, LARGEST_Q - 1.0)
}

/// The multiplier with the least squared error for values of -120 to 120; the first of equals.
fn best_multiplier(group: &[f32; GROUP]) -> f32 {
    let largest = f32::from_bits(largest_bits(group));
    // Much smaller ones cut the largest value off by more than all others gain, and larger ones
    // than needed round all more coarsely.
    let first = (largest * (0.7 / LARGEST_Q)).floor().max(1.0) as i32;
    let last = (largest * (1.2 / (LARGEST_Q - 1.0)))
        .ceil()
        .clamp(1.0, LARGEST_MULTIPLIER) as i32;
    let (mut best, mut least) = (1.0, f32::INFINITY);
    for multiplier in first..=last {
        for multiplier in [multiplier as f32, -multiplier as f32] {
            let inverse = 1.0 / multiplier;
            let mut errors = [0.0f32; 8];
            for values in group.as_chunks::<8>().0 {
                for (sum, &value) in errors.iter_mut().zip(values) {
                    let error = value - multiplier * nearest_q(value, inverse);
                    *sum += error * error;
                }
            }
            let error: f32 = errors.iter().sum();
            if error < least {
                (best, least) = (multiplier, error);
            }
        }
    }
    best
}

/// `c[rows, 32] (+)= a[rows, 64 * chunks] (b + offset)[64 * chunks, 32]` in integers, which
/// nothing rounds: every kernel gives the same.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Int8Block {
    /// First row of `a`; rows are `a_row` bytes apart, an even number.
    pub(crate) a: *const i8,
    pub(crate) a_row: usize,
    /// Chunks of a panel.
    pub(crate) b: *const i8,
    pub(crate) chunks: usize,
    /// First row of the sums; rows are 32 elements apart.
    pub(crate) c: *mut i32,
    /// Rows of this block, at most the kernel's own number.
    pub(crate) rows: usize,
    /// Whether the product is added to `c`; otherwise it replaces what is there. Sums wrap around.
    pub(crate) accumulate: bool,
    /// As of a [block of bf16](crate::micro::Bf16Block::again).
    pub(crate) again: Again,
    /// As of a block of bf16, for a kernel that [fetches](MicroInt8::fetches).
    pub(crate) fetch: Fetch,
}

/// The product of bytes of an instruction set.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MicroInt8 {
    /// Most rows of a block.
    pub(crate) max_rows: usize,
    /// Rows are computed in multiples of this: `a` and `c` have so many rows.
    pub(crate) row_multiple: usize,
    /// Whether it asks for [`Int8Block::fetch`].
    pub(crate) fetches: bool,
    /// What the kernel adds to every weight: 128 where one factor has to be without a sign.
    pub(crate) offset: i32,
    /// # Safety
    ///
    /// The instruction set is available; all that the block names is allocated, up to the next
    /// multiple of `row_multiple` rows; no other thread touches its part of `c`; `0 < rows <=
    /// max_rows`.
    pub(crate) run: unsafe fn(&Int8Block),
    /// As [`MicroBf16::enter`](crate::micro::MicroBf16::enter).
    pub(crate) enter: unsafe fn(),
    /// As [`MicroBf16::leave`](crate::micro::MicroBf16::leave).
    pub(crate) leave: unsafe fn(),
}

/// Products of few rows with codes, which are widened in registers: with few rows, expanding a
/// panel first takes longer than multiplying with it. Same sums, same bits; the depth is a whole
/// number of chunks, and the block's `b` points to a chunk of codes.
///
/// What `int8` and `int4` ask for is what [`MicroInt8::run`] does.
#[derive(Debug)]
pub(crate) struct FewRows<Block> {
    /// Most rows of a block.
    pub(crate) max_rows: usize,
    pub(crate) int8: unsafe fn(&Block),
    pub(crate) int4: unsafe fn(&Block),
}

// Derived, they would ask for the block's.
impl<Block> Clone for FewRows<Block> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<Block> Copy for FewRows<Block> {}

/// Sums of integers of a panel, to be replaced by what they stand for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IntSums<'a> {
    /// `[rows, 32]` of i32, rows adjacent; becomes f32.
    pub(crate) sums: *mut i32,
    /// Of the panel's columns.
    pub(crate) columns: &'a [f32; PANEL],
    /// What the kernel added to every weight.
    pub(crate) offset: i32,
    /// Of each row.
    pub(crate) rows: &'a [RowCodes],
}

/// What belongs to a row of codes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct RowCodes {
    /// The row is this times its codes.
    pub(crate) factor: f32,
    /// Sum of its codes.
    pub(crate) sum: i32,
}

/// What an instruction set does with codes. All are `unsafe` to call for one reason: the
/// instruction set must be there. What else they ask for stands at each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Quantised {
    /// Chunks of int8 as bf16 in the order of [`Bf16Block`](crate::micro::Bf16Block): `out` has
    /// as many values as there are codes.
    pub(crate) int8_to_bf16: unsafe fn(&[u8], &mut [u16]),
    /// Chunks of int8 as rows of 32 f32.
    pub(crate) int8_to_f32: unsafe fn(&[u8], &mut [f32]),
    /// Chunks of int4 as chunks of int8.
    pub(crate) int4_to_int8: unsafe fn(&[u8], &mut [u8]),
    /// Multiplies rows of 32 sums by factors of columns. The sums exist.
    pub(crate) scale_columns: unsafe fn(*mut f32, usize, &[f32; PANEL]),
    /// The step of a column of int8, with the least squared error of what the codes stand for. Tried are 0.80, 0.81 … 1.00 times the
    /// step with which the weight of the largest magnitude, the first of equals, is the code -128; what is
    /// cut off counts as an error. Of each the factor is the one that fits its codes best, which is by little another
    /// number than the step. Squares are summed in f32, in [`LANES`] sums that are then added from the first on, so that
    /// every instruction set finds the same.
    pub(crate) step: unsafe fn(&[f32]) -> Step,
    /// The nearest codes to a row over its largest magnitude / 127; zeros behind them.
    pub(crate) quantise: unsafe fn(&[f32], &mut [i8]) -> RowCodes,
    /// The nearest codes of 16 bits to a row over its largest magnitude / 32,639, as high bytes, then low
    /// bytes: a code is 256 times the high one and the low one, both with a sign. Zeros behind
    /// them.
    pub(crate) quantise_wide: unsafe fn(&[f32], [&mut [i8]; 2]) -> [RowCodes; 2],
    /// `(sum - offset * row's sum) * row's factor * column's factor`. The sums exist.
    pub(crate) finish: unsafe fn(&IntSums<'_>),
    /// The same for high and low bytes, a row each in turns: of two rows of sums the first is 256 times
    /// the other one's worth. A result takes the place of row `n` where two rows of sums of row
    /// `2 * n` and `2 * n + 1` have been. The sums exist.
    pub(crate) finish_wide: unsafe fn(&IntSums<'_>),
}

/// Compiles the bodies of this module for an instruction set, as `QUANTISED`.
macro_rules! instantiate {
    ($features:literal) => {
        crate::quantised::instantiate!(@ #[target_feature(enable = $features)]);
    };
    () => {
        crate::quantised::instantiate!(@);
    };
    (@ $(#[$feature:meta])?) => {
        pub(crate) const QUANTISED: crate::quantised::Quantised = crate::quantised::Quantised {
            int8_to_bf16: codes::int8_to_bf16,
            int8_to_f32: codes::int8_to_f32,
            int4_to_int8: codes::int4_to_int8,
            scale_columns: codes::scale_columns,
            step: codes::step,
            quantise: codes::quantise,
            quantise_wide: codes::quantise_wide,
            finish: codes::finish,
            finish_wide: codes::finish_wide,
        };

        /// The bodies of `quantised`, compiled for this instruction set.
        mod codes {
            // The one thing that every function here asks for: the instruction set.
            #![allow(clippy::missing_safety_doc)]
            use crate::micro::PANEL;
            use crate::quantised::{IntSums, RowCodes, Step, body};

            $(#[$feature])?
            pub(super) unsafe fn int8_to_bf16(codes: &[u8], out: &mut [u16]) {
                body::int8_to_bf16(codes, out)
            }
            $(#[$feature])?
            pub(super) unsafe fn int8_to_f32(codes: &[u8], out: &mut [f32]) {
                body::int8_to_f32(codes, out)
            }
            $(#[$feature])?
            pub(super) unsafe fn int4_to_int8(codes: &[u8], out: &mut [u8]) {
                body::int4_to_int8(codes, out)
            }
            $(#[$feature])?
            pub(super) unsafe fn scale_columns(sums: *mut f32, rows: usize, by: &[f32; PANEL]) {
                // SAFETY: by the caller's word.
                unsafe { body::scale_columns(sums, rows, by) }
            }
            $(#[$feature])?
            pub(super) unsafe fn step(weights: &[f32]) -> Step {
                body::step(weights)
            }
            $(#[$feature])?
            pub(super) unsafe fn quantise(row: &[f32], out: &mut [i8]) -> RowCodes {
                body::quantise(row, out)
            }
            $(#[$feature])?
            pub(super) unsafe fn quantise_wide(row: &[f32], out: [&mut [i8]; 2]) -> [RowCodes; 2] {
                body::quantise_wide(row, out)
            }
            $(#[$feature])?
            pub(super) unsafe fn finish(sums: &IntSums<'_>) {
                // SAFETY: by the caller's word.
                unsafe { body::finish(sums) }
            }
            $(#[$feature])?
            pub(super) unsafe fn finish_wide(sums: &IntSums<'_>) {
                // SAFETY: by the caller's word.
                unsafe { body::finish_wide(sums) }
            }
        }
    };
}
pub(crate) use instantiate;

/// The bodies. Always inlined, so that they are compiled with the features of their caller.
pub(crate) mod body {
    use super::*;

    type Quads = [i32; HALF];

    /// The quads of 16 columns.
    #[inline(always)]
    fn quads(line: &[u8]) -> Quads {
        let mut quads = [0; HALF];
        for (quad, bytes) in quads.iter_mut().zip(line.as_chunks::<QUAD>().0) {
            *quad = i32::from_le_bytes(*bytes);
        }
        quads
    }

    /// Code `k` of a quad as f32.
    #[inline(always)]
    fn code(quad: i32, k: usize) -> f32 {
        ((quad << (24 - 8 * k)) >> 24) as f32
    }

    #[inline(always)]
    pub(crate) fn int8_to_bf16(codes: &[u8], out: &mut [u16]) {
        let chunks = codes.as_chunks::<INT8_CHUNK>().0;
        for (chunk, out) in chunks.iter().zip(out.as_chunks_mut::<INT8_CHUNK>().0) {
            // A chunk is two of bf16, each with its halves one after the other.
            let (first, second) = out.split_at_mut(INT8_CHUNK / 2);
            for (half, codes) in chunk.as_chunks::<{ INT8_CHUNK / 2 }>().0.iter().enumerate() {
                let lines = codes.as_chunks::<LINE>().0;
                for (quad, line) in lines.iter().enumerate() {
                    let out = match quad < CHUNK / QUAD / 2 {
                        true => &mut first[half * LINE * 8..],
                        false => &mut second[half * LINE * 8..],
                    };
                    let out = &mut out[quad % 8 * LINE..][..LINE];
                    let quads = quads(line);
                    for (pair, out) in out.as_chunks_mut::<{ LINE / 2 }>().0.iter_mut().enumerate()
                    {
                        for (two, &quad) in out.as_chunks_mut::<2>().0.iter_mut().zip(&quads) {
                            let bits = |k| code(quad, k).to_bits() >> 16;
                            *two = [bits(2 * pair) as u16, bits(2 * pair + 1) as u16];
                        }
                    }
                }
            }
        }
    }

    #[inline(always)]
    pub(crate) fn int8_to_f32(codes: &[u8], out: &mut [f32]) {
        let chunks = codes.as_chunks::<INT8_CHUNK>().0;
        for (chunk, out) in chunks.iter().zip(out.as_chunks_mut::<INT8_CHUNK>().0) {
            for (half, codes) in chunk.as_chunks::<{ INT8_CHUNK / 2 }>().0.iter().enumerate() {
                let lines = codes.as_chunks::<LINE>().0;
                for (line, rows) in lines.iter().zip(out.as_chunks_mut::<{ QUAD * PANEL }>().0) {
                    let quads = quads(line);
                    for (k, row) in rows.as_chunks_mut::<PANEL>().0.iter_mut().enumerate() {
                        for (out, &quad) in row[half * HALF..][..HALF].iter_mut().zip(&quads) {
                            *out = code(quad, k);
                        }
                    }
                }
            }
        }
    }

    #[inline(always)]
    pub(crate) fn int4_to_int8(codes: &[u8], out: &mut [u8]) {
        let chunks = codes.as_chunks::<INT4_CHUNK>().0;
        for (chunk, out) in chunks.iter().zip(out.as_chunks_mut::<INT8_CHUNK>().0) {
            let (codes, multipliers) = chunk.split_at(INT4_CODES);
            let lines = codes.as_chunks::<LINE>().0;
            let outs = out.as_chunks_mut::<{ 2 * LINE }>().0;
            // Four lines of 8 `k` a group.
            for (at, (line, out)) in lines.iter().zip(outs).enumerate() {
                let multipliers = &multipliers[at / 4 * HALF..][..HALF];
                let mut wide = [0u8; LINE];
                for (wide, multiplier) in wide.as_chunks_mut::<QUAD>().0.iter_mut().zip(multipliers)
                {
                    *wide = [*multiplier; QUAD];
                }
                let (lower, upper) = out.split_at_mut(LINE);
                for i in 0..LINE {
                    // The product is inside a byte, so it may be computed modulo 256.
                    lower[i] = (line[i] & 15).wrapping_sub(8).wrapping_mul(wide[i]);
                    upper[i] = (line[i] >> 4).wrapping_sub(8).wrapping_mul(wide[i]);
                }
            }
        }
    }

    /// # Safety
    ///
    /// As [`Quantised::scale_columns`].
    #[inline(always)]
    pub(crate) unsafe fn scale_columns(sums: *mut f32, rows: usize, by: &[f32; PANEL]) {
        for row in 0..rows {
            // SAFETY: by the caller's word.
            let sums = unsafe { &mut *sums.add(row * PANEL).cast::<[f32; PANEL]>() };
            for (sum, by) in sums.iter_mut().zip(by) {
                *sum *= by;
            }
        }
    }

    #[inline(always)]
    pub(crate) fn step(weights: &[f32]) -> Step {
        let (factor, inverse) = factors(largest_bits(weights), -SMALLEST_CODE);
        if inverse == 0.0 {
            return Step { factor, inverse };
        }
        let most = f32::from_bits(largest_bits(weights));
        let largest = weights.iter().find(|weight| weight.abs() == most);
        let sign = -1.0f32.copysign(largest.copied().unwrap_or(most));
        let (mut best, mut least) = (Step { factor, inverse }, f32::INFINITY);
        for percent in (80..=100).rev() {
            let share = percent as f32 / 100.0;
            let inverse = sign * inverse / share;
            let [squares, products, codes] = sums(weights, inverse);
            // The best factor of these codes is by `products / codes` larger than the step.
            let fit = products / codes;
            let error = share * share * (squares - products * fit);
            if error < least {
                least = error;
                best = Step {
                    factor: sign * factor * share * (1.0 + fit),
                    inverse,
                };
            }
        }
        best
    }

    /// Of the distances of weights over a step to their codes: the sums of their squares, of their products with the
    /// codes, and of the codes' squares.
    #[inline(always)]
    fn sums(weights: &[f32], inverse: f32) -> [f32; 3] {
        let (blocks, rest) = weights.as_chunks::<LANES>();
        let mut sums = [[0.0f32; LANES]; 3];
        for block in blocks {
            add(&mut sums, block, inverse);
        }
        let mut last = [0.0; LANES];
        last[..rest.len()].copy_from_slice(rest);
        add(&mut sums, &last, inverse);
        sums.map(|lanes| lanes.iter().fold(0.0, |sum, lane| sum + lane))
    }

    #[inline(always)]
    fn add(sums: &mut [[f32; LANES]; 3], weights: &[f32; LANES], inverse: f32) {
        for i in 0..LANES {
            let value = weights[i] * inverse;
            let code = ((value + ROUND) - ROUND).clamp(SMALLEST_CODE, LARGEST);
            let distance = value - code;
            sums[0][i] += distance * distance;
            sums[1][i] += distance * code;
            sums[2][i] += code * code;
        }
    }

    // Both are one flat loop: of rows cut into blocks the compiler gathers one lane from each of many.

    #[inline(always)]
    pub(crate) fn quantise(row: &[f32], out: &mut [i8]) -> RowCodes {
        let (factor, inverse) = factors(largest_bits(row), LARGEST);
        let (out, padding) = out.split_at_mut(row.len());
        padding.fill(0);
        if inverse == 0.0 {
            out.fill(0);
            return RowCodes { factor, sum: 0 };
        }
        let mut sum = 0i32;
        for (out, &value) in out.iter_mut().zip(row) {
            let code = nearest(value, inverse);
            sum = sum.wrapping_add(code);
            *out = code as i8;
        }
        RowCodes { factor, sum }
    }

    #[inline(always)]
    pub(crate) fn quantise_wide(row: &[f32], out: [&mut [i8]; 2]) -> [RowCodes; 2] {
        let (factor, inverse) = factors(largest_bits(row), LARGEST_WIDE);
        let [highs, lows] = out.map(|out| {
            let (out, padding) = out.split_at_mut(row.len());
            padding.fill(0);
            out
        });
        if inverse == 0.0 {
            highs.fill(0);
            lows.fill(0);
            return [RowCodes { factor, sum: 0 }; 2];
        }
        let mut sums = [0i32; 2];
        for ((high, low), &value) in highs.iter_mut().zip(lows).zip(row) {
            let code = nearest(value, inverse);
            let upper = (code + 128) >> 8;
            let lower = code - (upper << 8);
            sums[0] = sums[0].wrapping_add(upper);
            sums[1] = sums[1].wrapping_add(lower);
            *high = upper as i8;
            *low = lower as i8;
        }
        sums.map(|sum| RowCodes { factor, sum })
    }

    /// # Safety
    ///
    /// As [`Quantised::finish`].
    #[inline(always)]
    pub(crate) unsafe fn finish(block: &IntSums<'_>) {
        for (row, codes) in block.rows.iter().enumerate() {
            let shift = block.offset.wrapping_mul(codes.sum);
            // SAFETY: by the caller's word.
            let sums = unsafe { &mut *block.sums.add(row * PANEL).cast::<[i32; PANEL]>() };
            for (sum, column) in sums.iter_mut().zip(block.columns) {
                let value = sum.wrapping_sub(shift) as f32 * codes.factor * column;
                *sum = value.to_bits() as i32;
            }
        }
    }

    /// # Safety
    ///
    /// As [`Quantised::finish_wide`].
    #[inline(always)]
    pub(crate) unsafe fn finish_wide(block: &IntSums<'_>) {
        for (row, codes) in block.rows.as_chunks::<2>().0.iter().enumerate() {
            let shifts = codes.map(|codes| block.offset.wrapping_mul(codes.sum));
            // SAFETY: by the caller's word. Rows are read before their place is written: it is at
            // most the first one's own.
            let [high, low] = unsafe {
                let sums = block.sums.add(2 * row * PANEL);
                sums.cast::<[[i32; PANEL]; 2]>().read()
            };
            // SAFETY: by the caller's word.
            let out = unsafe { &mut *block.sums.add(row * PANEL).cast::<[f32; PANEL]>() };
            for i in 0..PANEL {
                let high = high[i].wrapping_sub(shifts[0]) as f32;
                let low = low[i].wrapping_sub(shifts[1]) as f32;
                out[i] = (high * HIGH + low) * codes[0].factor * block.columns[i];
            }
        }
    }
}

/// Plain loops over bytes: the product where there is nothing better, and every kernel's oracle.
pub(crate) const MICRO_PLAIN: MicroInt8 = MicroInt8 {
    max_rows: 4,
    row_multiple: 1,
    fetches: false,
    offset: 0,
    run: run_plain,
    enter: nothing,
    leave: nothing,
};

/// There is no state to set up.
///
/// # Safety
///
/// None.
pub(crate) unsafe fn nothing() {}

/// # Safety
///
/// As [`MicroInt8::run`].
unsafe fn run_plain(block: &Int8Block) {
    for row in 0..block.rows {
        // SAFETY: by the caller's word.
        let c = unsafe { &mut *block.c.add(row * PANEL).cast::<[i32; PANEL]>() };
        let mut sums = [0i32; PANEL];
        for chunk in 0..block.chunks {
            // SAFETY: by the caller's word.
            let (a, b) = unsafe {
                (
                    &*block
                        .a
                        .add(row * block.a_row + chunk * CHUNK)
                        .cast::<[i8; CHUNK]>(),
                    &*block.b.add(chunk * INT8_CHUNK).cast::<[i8; INT8_CHUNK]>(),
                )
            };
            for (half, b) in b.as_chunks::<{ INT8_CHUNK / 2 }>().0.iter().enumerate() {
                let sums = &mut sums[half * HALF..][..HALF];
                for (a, line) in a.as_chunks::<QUAD>().0.iter().zip(b.as_chunks::<LINE>().0) {
                    let a = a.map(i32::from);
                    for (sum, b) in sums.iter_mut().zip(line.as_chunks::<QUAD>().0) {
                        for k in 0..QUAD {
                            *sum = sum.wrapping_add(a[k] * i32::from(b[k]));
                        }
                    }
                }
            }
        }
        for (c, sum) in c.iter_mut().zip(sums) {
            *c = if block.accumulate {
                c.wrapping_add(sum)
            } else {
                sum
            };
        }
    }
}
