//! The row operations that take the most time, by hand: left to the compiler, their lanes
//! are taken apart and put together again. All others are `rowwise`'s.

use std::arch::x86_64::*;

use crate::Activation;
use crate::micro::PANEL;
use crate::operand::Sink;
use crate::rowwise::{Finish, FinishBlock, Maxima, Rowwise};
use crate::x86::avx512;
use crate::x86::avx512_tiles::{join, split, to_bf16};

pub(crate) const ROWWISE: Rowwise = Rowwise {
    finish,
    max,
    maxima,
    exp: exp_row,
    exp_bf16: exp_row_bf16,
    dots,
    mix,
    ..avx512::ROWWISE
};

/// `sqrt(2 / pi)`.
const ROOT_TWO_OVER_PI: f32 = std::f32::consts::FRAC_2_SQRT_PI * std::f32::consts::FRAC_1_SQRT_2;

/// Lanes of a vector.
const LANES: usize = 16;

/// # Safety
///
/// As [`Rowwise::finish`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn finish(block: &FinishBlock) {
    let whole =
        |width: usize| block.column.is_multiple_of(width) && block.column + width <= block.columns;
    // SAFETY: by the caller's word.
    unsafe {
        match block.finish {
            Finish::Gate(Activation::GeluTanh, sink) if whole(LANES) => gate(block, &sink),
            Finish::Store(sink) if whole(PANEL) => store(block, &sink),
            Finish::Add { out, row } if whole(PANEL) => add(block, out.get(), row),
            _ => (avx512::ROWWISE.finish)(block),
        }
    }
}

/// # Safety
///
/// As [`Rowwise::finish`], of a gate with whole columns.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn gate(block: &FinishBlock, sink: &Sink) {
    for row in 0..block.rows {
        // SAFETY: by the caller's word; the sums of a panel's row are 32 values.
        unsafe {
            let sums = block.sums.add(row * PANEL);
            let gate = gelu_tanh(_mm512_loadu_ps(sums));
            let product = _mm512_mul_ps(gate, _mm512_loadu_ps(sums.add(LANES)));
            match sink.bf16_place(block.token + row, block.column) {
                Some(place) => {
                    _mm256_storeu_si256(place.cast(), _mm512_cvtepi32_epi16(to_bf16(product)));
                }
                None => {
                    let mut lanes = [0.0f32; LANES];
                    _mm512_storeu_ps(lanes.as_mut_ptr(), product);
                    sink.store(block.token + row, block.column, &lanes);
                }
            }
        }
    }
}

/// # Safety
///
/// As [`Rowwise::finish`], of a whole panel that is added.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn add(block: &FinishBlock, out: *mut f32, stride: usize) {
    for row in 0..block.rows {
        // SAFETY: by the caller's word; the sums of a panel's row are 32 values; a prefetch does nothing that could be
        // seen.
        unsafe {
            let sums = block.sums.add(row * PANEL);
            let out = out.add((block.token + row) * stride + block.column);
            // What the rows after these are added to: it arrives while their sums are made.
            let later = out.wrapping_add(block.rows * stride);
            _mm_prefetch::<_MM_HINT_ET0>(later.cast());
            _mm_prefetch::<_MM_HINT_ET0>(later.wrapping_add(LANES).cast());
            for half in [0, LANES] {
                let sum = _mm512_add_ps(
                    _mm512_loadu_ps(out.add(half)),
                    _mm512_loadu_ps(sums.add(half)),
                );
                _mm512_storeu_ps(out.add(half), sum);
            }
        }
    }
}

/// # Safety
///
/// As [`Rowwise::finish`], of a whole panel that is stored.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn store(block: &FinishBlock, sink: &Sink) {
    for row in 0..block.rows {
        let (token, column) = (block.token + row, block.column);
        // SAFETY: by the caller's word; the sums of a panel's row are 32 values; in every form a chunk's columns are
        // side by side.
        unsafe {
            let sums = block.sums.add(row * PANEL);
            let (a, b) = (_mm512_loadu_ps(sums), _mm512_loadu_ps(sums.add(LANES)));
            if let Some([high, low]) = sink.split_places(token, column) {
                let parts = split(a, b);
                _mm512_storeu_si512(high.cast(), parts.0);
                _mm512_storeu_si512(low.cast(), parts.1);
            } else if let Some(place) = sink.bf16_place(token, column) {
                _mm512_storeu_si512(place.cast(), join(to_bf16(a), to_bf16(b)));
            } else {
                let place = sink.f32_place(token, column);
                _mm512_storeu_ps(place, a);
                _mm512_storeu_ps(place.add(LANES), b);
            }
        }
    }
}

/// # Safety
///
/// As [`Rowwise::max`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn max(x: &[f32]) -> f32 {
    let lowest = _mm512_set1_ps(f32::NEG_INFINITY);
    let mut largest = [lowest; 4];
    let (blocks, rest) = x.as_chunks::<{ 4 * LANES }>();
    // Of two operands one of which is NaN the second is returned.
    for block in blocks {
        for (i, largest) in largest.iter_mut().enumerate() {
            // SAFETY: inside the block.
            let values = unsafe { _mm512_loadu_ps(block.as_ptr().add(i * LANES)) };
            *largest = _mm512_max_ps(values, *largest);
        }
    }
    for x in rest.chunks(LANES) {
        // SAFETY: the mask leaves out what is not in the chunk.
        let values = unsafe { _mm512_mask_loadu_ps(lowest, mask_of(x.len()), x.as_ptr()) };
        largest[0] = _mm512_max_ps(values, largest[0]);
    }
    let pair = |a, b| _mm512_max_ps(a, b);
    let [a, b, c, d] = largest;
    _mm512_reduce_max_ps(pair(pair(a, b), pair(c, d)))
}

/// # Safety
///
/// As [`Rowwise::maxima`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn maxima(rows: &Maxima) {
    let whole = rows.n / LANES * LANES;
    for row in 0..rows.rows {
        // SAFETY: by the caller's word; the mask leaves out what is behind the row.
        unsafe {
            let values = rows.values.add(row * rows.stride);
            let place = rows.largest.add(row).cast::<f32>();
            let mut largest = _mm512_loadu_ps(place);
            for at in (0..whole).step_by(LANES) {
                // Of two operands one of which is NaN the second is returned.
                largest = _mm512_max_ps(_mm512_loadu_ps(values.add(at)), largest);
            }
            if whole < rows.n {
                let mask = mask_of(rows.n - whole);
                let rest = _mm512_mask_loadu_ps(largest, mask, values.add(whole));
                largest = _mm512_max_ps(rest, largest);
            }
            _mm512_storeu_ps(place, largest);
        }
    }
}

/// # Safety
///
/// As [`Rowwise::exp`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn exp_row(x: &mut [f32], shift: f32) -> f32 {
    let shift = _mm512_set1_ps(shift);
    let mut sum = _mm512_setzero_ps();
    for x in x.chunks_mut(LANES) {
        let mask = mask_of(x.len());
        // SAFETY: the mask leaves out what is not in the chunk.
        unsafe {
            let values = _mm512_maskz_loadu_ps(mask, x.as_ptr());
            let values = _mm512_maskz_mov_ps(mask, exp(_mm512_sub_ps(values, shift)));
            _mm512_mask_storeu_ps(x.as_mut_ptr(), mask, values);
            sum = _mm512_add_ps(sum, values);
        }
    }
    _mm512_reduce_add_ps(sum)
}

/// # Safety
///
/// As [`Rowwise::exp_bf16`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn exp_row_bf16(x: &[f32], shift: f32, out: &mut [u16]) -> f32 {
    let shift = _mm512_set1_ps(shift);
    let mut sum = _mm512_setzero_ps();
    for (x, out) in x.chunks(LANES).zip(out[..x.len()].chunks_mut(LANES)) {
        let mask = mask_of(x.len());
        // SAFETY: the mask leaves out what is not in the chunks, which are as long.
        unsafe {
            let values = _mm512_maskz_loadu_ps(mask, x.as_ptr());
            let values = to_bf16(exp(_mm512_sub_ps(values, shift)));
            let values = _mm512_maskz_mov_epi32(mask, values);
            _mm512_mask_cvtepi32_storeu_epi16(out.as_mut_ptr().cast(), mask, values);
            let rounded = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(values));
            sum = _mm512_add_ps(sum, rounded);
        }
    }
    _mm512_reduce_add_ps(sum)
}

/// # Safety
///
/// As [`Rowwise::dots`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn dots(x: &[f32], b: *const f32, stride: usize, ahead: usize, out: &mut [f32]) {
    for (block, out) in out.chunks_mut(LANES).enumerate() {
        // The last row takes the places of those that are missing.
        let row = |i: usize| {
            let row = block * LANES + i.min(out.len() - 1);
            b.wrapping_add(row * stride)
        };
        let mut sums = [_mm512_setzero_ps(); LANES];
        for at in (0..x.len()).step_by(LANES) {
            let mask = mask_of((x.len() - at).min(LANES));
            // SAFETY: the mask leaves out what is not in the rows; those exist, by the caller's
            // word. A prefetch reads nothing that could be seen.
            unsafe {
                let x = _mm512_maskz_loadu_ps(mask, x.as_ptr().add(at));
                for (i, sum) in sums.iter_mut().enumerate() {
                    let row = row(i).wrapping_add(at);
                    let ahead = row.wrapping_add(ahead);
                    _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
                    *sum = _mm512_fmadd_ps(x, _mm512_maskz_loadu_ps(mask, row), *sum);
                }
            }
        }
        // SAFETY: the mask leaves out what is not in `out`.
        unsafe { _mm512_mask_storeu_ps(out.as_mut_ptr(), mask_of(out.len()), lane_sums(sums)) };
    }
}

/// The sum of the lanes of every vector. Which lanes are added to which does not depend on the
/// vector's place.
#[inline]
#[target_feature(enable = "avx512f")]
fn lane_sums(x: [__m512; LANES]) -> __m512 {
    let quarter = |x: &[__m512]| {
        // Lanes 0 and 2, 1 and 3 of each quarter of two vectors, then of four.
        let pair = |a: __m512, b: __m512| {
            _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b))
        };
        let (ab, cd) = (pair(x[0], x[1]), pair(x[2], x[3]));
        let (ab, cd) = (_mm512_castps_pd(ab), _mm512_castps_pd(cd));
        _mm512_add_ps(
            _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)),
            _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)),
        )
    };
    // Quarters 0 and 1, 2 and 3; then those sums.
    let join = |a: __m512, b: __m512| {
        _mm512_add_ps(
            _mm512_shuffle_f32x4::<0x88>(a, b),
            _mm512_shuffle_f32x4::<0xdd>(a, b),
        )
    };
    join(
        join(quarter(&x[..4]), quarter(&x[4..8])),
        join(quarter(&x[8..12]), quarter(&x[12..])),
    )
}

/// # Safety
///
/// As [`Rowwise::mix`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn mix(weights: &[f32], b: *const f32, stride: usize, ahead: usize, sums: &mut [f32]) {
    let mut first = 0;
    for sums in sums.chunks_mut(8 * LANES) {
        // SAFETY: by the caller's word.
        unsafe {
            match sums.len().div_ceil(LANES) {
                1 => mix_columns::<1>(weights, b.wrapping_add(first), stride, ahead, sums),
                2 => mix_columns::<2>(weights, b.wrapping_add(first), stride, ahead, sums),
                3 => mix_columns::<3>(weights, b.wrapping_add(first), stride, ahead, sums),
                4 => mix_columns::<4>(weights, b.wrapping_add(first), stride, ahead, sums),
                _ => mix_columns::<8>(weights, b.wrapping_add(first), stride, ahead, sums),
            }
        }
        first += sums.len();
    }
}

/// As many columns as `out` has: at most `N` vectors.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn mix_columns<const N: usize>(
    weights: &[f32],
    b: *const f32,
    stride: usize,
    ahead: usize,
    out: &mut [f32],
) {
    let masks: [__mmask16; N] = std::array::from_fn(|i| {
        let n = out.len().saturating_sub(i * LANES).min(LANES);
        ((1u32 << n) - 1) as __mmask16
    });
    let mut sums = [_mm512_setzero_ps(); N];
    let mut row = b;
    // SAFETY: the masks leave out what is not in the rows or in `out`; the rows exist, by the
    // caller's word. A prefetch reads nothing that could be seen.
    unsafe {
        for &weight in weights {
            let weight = _mm512_set1_ps(weight);
            let ahead = row.wrapping_add(ahead);
            for (i, sum) in sums.iter_mut().enumerate() {
                _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(i * LANES).cast());
                let values = _mm512_maskz_loadu_ps(masks[i], row.wrapping_add(i * LANES));
                *sum = _mm512_fmadd_ps(weight, values, *sum);
            }
            row = row.wrapping_add(stride);
        }
        for (i, sum) in sums.into_iter().enumerate() {
            let out = out.as_mut_ptr().wrapping_add(i * LANES);
            let sum = _mm512_add_ps(_mm512_maskz_loadu_ps(masks[i], out), sum);
            _mm512_mask_storeu_ps(out, masks[i], sum);
        }
    }
}

/// The first `n` lanes, at most 16.
fn mask_of(n: usize) -> __mmask16 {
    (u32::MAX >> (32 - n.clamp(1, LANES))) as __mmask16
}

/// [`math::activate`](crate::math::activate) of `GeluTanh`.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,fma")]
fn gelu_tanh(x: __m512) -> __m512 {
    let set = |value: f32| _mm512_set1_ps(value);
    let cubic = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_mul_ps(set(0.044_715), x), x), x, x);
    let exponential = exp(_mm512_mul_ps(set(-2.0 * ROOT_TWO_OVER_PI), cubic));
    _mm512_div_ps(x, _mm512_add_ps(set(1.0), exponential))
}

/// [`math::exp`](crate::math::exp).
#[inline]
#[target_feature(enable = "avx512f,avx512dq,fma")]
// The constants are Cephes'.
#[allow(clippy::excessive_precision)]
fn exp(x: __m512) -> __m512 {
    let set = |value: f32| _mm512_set1_ps(value);
    let (lowest, highest) = (set(-87.336_54), set(88.722_83));
    // The second operand is returned where one is NaN.
    let inside = _mm512_min_ps(highest, _mm512_max_ps(lowest, x));
    let round = set(12_582_912.0);
    let shifted = _mm512_fmadd_ps(inside, set(std::f32::consts::LOG2_E), round);
    let n = _mm512_sub_ps(shifted, round);
    let r = _mm512_fmadd_ps(n, set(-0.693_359_375), inside);
    let r = _mm512_fmadd_ps(n, set(2.121_944_4e-4), r);
    let mut p = set(1.987_569_15e-4);
    for c in [
        1.398_199_950_7e-3,
        8.333_451_907_3e-3,
        4.166_579_589_4e-2,
        1.666_666_545_9e-1,
        5.000_000_120_1e-1,
    ] {
        p = _mm512_fmadd_ps(p, r, set(c));
    }
    let p = _mm512_add_ps(_mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r), set(1.0));
    let exponent = _mm512_sub_epi32(_mm512_castps_si512(shifted), _mm512_castps_si512(round));
    let exponent = _mm512_slli_epi32::<23>(exponent);
    let result = _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), exponent));
    let low = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(x, lowest);
    let result = _mm512_mask_mov_ps(result, low, set(0.0));
    let high = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(x, highest);
    let result = _mm512_mask_mov_ps(result, high, set(f32::INFINITY));
    let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
    _mm512_mask_mov_ps(result, nan, x)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Isa, math};

    fn lanes(x: [f32; LANES], f: unsafe fn(__m512) -> __m512) -> [f32; LANES] {
        let mut out = [0.0; LANES];
        // SAFETY: the caller has found AVX-512.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), f(_mm512_loadu_ps(x.as_ptr()))) };
        out
    }

    /// Every 9,973rd float, sixteen at a time: the same functions as `math` has.
    #[test]
    fn vectors_equal_scalars() {
        if !Isa::Avx512.is_available() {
            return;
        }
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
        fn bf16(x: __m512) -> __m512 {
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(to_bf16(x)))
        }
        let all: Vec<f32> = (0..=u32::MAX).step_by(9973).map(f32::from_bits).collect();
        for x in all.as_chunks::<LANES>().0 {
            type Check = (unsafe fn(__m512) -> __m512, fn(f32) -> f32);
            let checks: [Check; 3] = [
                (exp, math::exp::<true>),
                (gelu_tanh, math::activate_gelu_tanh_fma),
                (bf16, |x| math::from_bf16(math::to_bf16(x))),
            ];
            for (vector, scalar) in checks {
                for (found, expected) in lanes(*x, vector).into_iter().zip(x.map(scalar)) {
                    // The two may multiply in another order; three ulp of an exponent of up to 88
                    // are 264 ulp of its power.
                    let near = (found - expected).abs() <= 3.0 * 88.0 * 6e-8 * expected.abs();
                    assert!(
                        near || found == expected || (found.is_nan() && expected.is_nan()),
                        "{found} {expected}"
                    );
                }
            }
        }
    }
}
