//! Row operations that round to bf16, where the CPU has an instruction for it.
//!
//! It rounds to nearest as [`math::to_bf16`](crate::math::to_bf16) does, and takes subnormal values for zeros.

use std::arch::x86_64::*;

use crate::Activation;
use crate::micro::{CHUNK, PANEL};
use crate::operand::Sink;
use crate::rowwise::{Finish, FinishBlock, NormBlock, Rowwise};
use crate::x86::avx512_rows;

pub(crate) const ROWWISE: Rowwise = Rowwise {
    exp_bf16,
    finish,
    norm,
    ..avx512_rows::ROWWISE
};

/// Lanes of a vector.
const LANES: usize = 16;

/// # Safety
///
/// As [`Rowwise::exp_bf16`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn exp_bf16(x: &[f32], shift: f32, out: &mut [u16]) -> f32 {
    assert_eq!(x.len(), out.len());
    let shift = _mm512_set1_ps(shift);
    // Each pair of lanes is 1 and 1: a dot product sums what was rounded.
    let ones = _mm512_set1_epi32(0x3f80_3f80);
    // SAFETY: as many bits, all of which may be set in any way.
    let ones = unsafe { std::mem::transmute::<__m512i, __m512bh>(ones) };
    let mut sums = [_mm512_setzero_ps(); 2];
    let (blocks, rest) = x.as_chunks::<{ 4 * LANES }>();
    let (out_blocks, out_rest) = out.as_chunks_mut::<{ 4 * LANES }>();
    for (x, out) in blocks.iter().zip(out_blocks) {
        for (half, sum) in sums.iter_mut().enumerate() {
            let at = half * 2 * LANES;
            // SAFETY: inside both blocks.
            unsafe {
                let values = |at: usize| {
                    let values = _mm512_loadu_ps(x.as_ptr().add(at));
                    power(u16::MAX, _mm512_sub_ps(values, shift))
                };
                let rounded = _mm512_cvtne2ps_pbh(values(at + LANES), values(at));
                *sum = _mm512_dpbf16_ps(*sum, rounded, ones);
                let bits = std::mem::transmute::<__m512bh, __m512i>(rounded);
                _mm512_storeu_si512(out.as_mut_ptr().add(at).cast(), bits);
            }
        }
    }
    for (x, out) in rest.chunks(2 * LANES).zip(out_rest.chunks_mut(2 * LANES)) {
        // SAFETY: the masks leave out what is not in the chunks, which are as long.
        unsafe {
            let values = |half: usize| {
                let mask = mask_of(x.len().saturating_sub(half * LANES));
                let values = _mm512_maskz_loadu_ps(mask, x.as_ptr().wrapping_add(half * LANES));
                power(mask, _mm512_sub_ps(values, shift))
            };
            let rounded = _mm512_cvtne2ps_pbh(values(1), values(0));
            sums[0] = _mm512_dpbf16_ps(sums[0], rounded, ones);
            let bits = std::mem::transmute::<__m512bh, __m512i>(rounded);
            let mask = (u64::MAX >> (64 - x.len().min(2 * LANES))) as __mmask32;
            _mm512_mask_storeu_epi16(out.as_mut_ptr().cast(), mask, bits);
        }
    }
    _mm512_reduce_add_ps(_mm512_add_ps(sums[0], sums[1]))
}

/// `sqrt(2 / pi)`.
const ROOT_TWO_OVER_PI: f32 = std::f32::consts::FRAC_2_SQRT_PI * std::f32::consts::FRAC_1_SQRT_2;

/// # Safety
///
/// As [`Rowwise::finish`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn finish(block: &FinishBlock) {
    let whole =
        |width: usize| block.column.is_multiple_of(width) && block.column + width <= block.columns;
    // SAFETY: by the caller's word.
    unsafe {
        match block.finish {
            Finish::Gate(Activation::GeluTanh, sink)
                if whole(LANES) && sink.bf16_place(0, 0).is_some() =>
            {
                gate(block, &sink);
            }
            Finish::Store(sink) if whole(PANEL) && sink.bf16_place(0, 0).is_some() => {
                store(block, &sink);
            }
            Finish::Store(sink) if whole(PANEL) && sink.split_places(0, 0).is_some() => {
                store_split(block, &sink);
            }
            _ => (avx512_rows::ROWWISE.finish)(block),
        }
    }
}

/// Both halves of a row of sums.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn sums_of(block: &FinishBlock, row: usize) -> (__m512, __m512) {
    // SAFETY: by the caller's word; the sums of a panel's row are 32 values.
    unsafe {
        let sums = block.sums.add(row * PANEL);
        (_mm512_loadu_ps(sums), _mm512_loadu_ps(sums.add(LANES)))
    }
}

/// Asks for the line that will be written when the rows after these are finished; any address will do.
#[inline]
#[target_feature(enable = "avx512f")]
fn fetch_to_write<T>(place: *mut T) {
    _mm_prefetch::<_MM_HINT_ET0>(place.cast());
}

/// 32 values, rounded, side by side.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn rounded(a: __m512, b: __m512) -> __m512i {
    // SAFETY: both are 512 bits without an invalid pattern.
    unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(b, a)) }
}

/// # Safety
///
/// As [`Rowwise::finish`], of a whole panel that is stored in bf16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn store(block: &FinishBlock, sink: &Sink) {
    for row in 0..block.rows {
        let place = |row: usize| sink.bf16_place(block.token + row, block.column);
        let (Some(place), Some(later)) = (place(row), place(row + block.rows)) else {
            unreachable!("the form was looked at")
        };
        // SAFETY: by the caller's word; a chunk's columns are side by side in every form.
        unsafe {
            let (a, b) = sums_of(block, row);
            fetch_to_write(later);
            _mm512_storeu_si512(place.cast(), rounded(a, b));
        }
    }
}

/// # Safety
///
/// As [`Rowwise::finish`], of a whole panel that is stored in two parts.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn store_split(block: &FinishBlock, sink: &Sink) {
    for row in 0..block.rows {
        let places = |row: usize| sink.split_places(block.token + row, block.column);
        let (Some([high, low]), Some(later)) = (places(row), places(row + block.rows)) else {
            unreachable!("the form was looked at")
        };
        // SAFETY: by the caller's word; a chunk's columns are side by side.
        unsafe {
            let (a, b) = sums_of(block, row);
            fetch_to_write(later[0]);
            fetch_to_write(later[1]);
            let parts = rounded(a, b);
            let rest = |x: __m512, high: __m256i| {
                let high = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(high));
                let rest = _mm512_sub_ps(x, _mm512_castsi512_ps(high));
                // Where the first part is infinite, nothing is to be added.
                const NOT_FINITE: i32 = 0x99;
                let finite = _knot_mask16(_mm512_fpclass_ps_mask::<NOT_FINITE>(rest));
                _mm512_maskz_mov_ps(finite, rest)
            };
            let a = rest(a, _mm512_castsi512_si256(parts));
            let b = rest(b, _mm512_extracti64x4_epi64::<1>(parts));
            _mm512_storeu_si512(high.cast(), parts);
            _mm512_storeu_si512(low.cast(), rounded(a, b));
        }
    }
}

/// # Safety
///
/// As [`Rowwise::finish`], of a gate with whole columns that is stored in bf16.
///
/// # Numerics
///
/// `gelu(x) = x / (1 + e^(-2 sqrt(2/pi) (x + 0.044715 x^3)))`. The power has a relative error of 7e-6 as that of
/// [`power`] has, and the reciprocal one of some 1e-7 (14 bits, then a step of Newton's). The exponent is kept to
/// what f32 holds twice over, so that neither of them overflows: what is cut off is less than 1e-36 of the gate.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn gate(block: &FinishBlock, sink: &Sink) {
    let set = |value: f32| _mm512_set1_ps(value);
    let scale = -2.0 * ROOT_TWO_OVER_PI * std::f32::consts::LOG2_E;
    let (linear, cubic) = (set(scale), set(scale * 0.044_715));
    let (lowest, highest) = (set(-120.0), set(120.0));
    let round = set(12_582_912.0);
    let (one, two) = (set(1.0), set(2.0));
    for row in 0..block.rows {
        let place = |row: usize| sink.bf16_place(block.token + row, block.column);
        let (Some(place), Some(later)) = (place(row), place(row + block.rows)) else {
            unreachable!("the form was looked at")
        };
        // SAFETY: by the caller's word.
        unsafe {
            let (x, up) = sums_of(block, row);
            fetch_to_write(later);
            // A power of two: the second operand is returned where one is NaN.
            let exponent = _mm512_fmadd_ps(_mm512_mul_ps(x, x), cubic, linear);
            let exponent = _mm512_mul_ps(x, exponent);
            let exponent = _mm512_min_ps(highest, _mm512_max_ps(lowest, exponent));
            let shifted = _mm512_add_ps(exponent, round);
            let r = _mm512_sub_ps(exponent, _mm512_sub_ps(shifted, round));
            let mut p = set(POWERS_OF_TWO[0]);
            for coefficient in &POWERS_OF_TWO[1..] {
                p = _mm512_fmadd_ps(p, r, set(*coefficient));
            }
            p = _mm512_fmadd_ps(p, r, one);
            let whole = _mm512_slli_epi32::<23>(_mm512_castps_si512(shifted));
            let power = _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), whole));
            let sum = _mm512_add_ps(power, one);
            let reciprocal = _mm512_rcp14_ps(sum);
            let reciprocal = _mm512_mul_ps(reciprocal, _mm512_fnmadd_ps(sum, reciprocal, two));
            let gate = _mm512_mul_ps(x, reciprocal);
            let bits = _mm512_cvtneps_pbh(_mm512_mul_ps(gate, up));
            _mm256_storeu_si256(place.cast(), std::mem::transmute::<__m256bh, __m256i>(bits));
        }
    }
}

/// Coefficients of `2^r`, `|r| <= 1/2`, from the fourth power down to the first: those of [`power`], with `ln 2` in them.
const POWERS_OF_TWO: [f32; 4] = {
    let ln = std::f64::consts::LN_2;
    [
        (POWERS[0] * ln * ln * ln * ln) as f32,
        (POWERS[1] * ln * ln * ln) as f32,
        (POWERS[2] * ln * ln) as f32,
        ln as f32,
    ]
};

/// # Safety
///
/// As [`Rowwise::norm`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn norm(block: &NormBlock<'_>) {
    let columns = block.columns;
    if !columns.is_multiple_of(4 * LANES) || block.out.bf16_place(0, 0).is_none() {
        // SAFETY: by the caller's word.
        return unsafe { (avx512_rows::ROWWISE.norm)(block) };
    }
    for (row, x) in block.x.chunks_exact(columns).enumerate() {
        let mut sums = [_mm512_setzero_ps(); 4];
        for x in x.as_chunks::<{ 4 * LANES }>().0 {
            for (i, sum) in sums.iter_mut().enumerate() {
                // SAFETY: inside the chunk.
                let x = unsafe { _mm512_loadu_ps(x.as_ptr().add(i * LANES)) };
                *sum = _mm512_fmadd_ps(x, x, *sum);
            }
        }
        let [a, b, c, d] = sums;
        let sum = _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d)));
        let scale = _mm512_set1_ps(1.0 / (sum / columns as f32 + block.eps).sqrt());
        for (chunk, x) in x.as_chunks::<CHUNK>().0.iter().enumerate() {
            let column = chunk * CHUNK;
            let Some(place) = block.out.bf16_place(block.token + row, column) else {
                unreachable!("the form was looked at")
            };
            // SAFETY: inside the chunk, and as many gains; by the caller's word for the place.
            unsafe {
                let half = |half: usize| {
                    let x = _mm512_mul_ps(_mm512_loadu_ps(x.as_ptr().add(half * LANES)), scale);
                    match block.gain {
                        Some(gain) => {
                            let gain = gain[column..column + CHUNK].as_ptr().add(half * LANES);
                            _mm512_mul_ps(x, _mm512_loadu_ps(gain))
                        }
                        None => x,
                    }
                };
                _mm512_storeu_si512(place.cast(), rounded(half(0), half(1)));
            }
        }
    }
}

/// The first `n` lanes, at most 16.
fn mask_of(n: usize) -> __mmask16 {
    ((1u32 << n.min(LANES)) - 1) as __mmask16
}

/// Coefficients of `e^r`, `|r| <= ln 2 / 2`, from the fourth power down to the second.
const POWERS: [f64; 3] = [0.040_917_402_9, 0.167_539_759_6, 0.500_089_309_7];

/// `e^x` for what is rounded to bf16 next, of the lanes of `mask`; zeros elsewhere and below -87.3. NaN stays NaN.
/// `x` is at most 88.
///
/// # Numerics
///
/// `x = n ln 2 + r`, then a polynomial of degree 4 that was fitted to `e^r` for `|r| <= ln 2 / 2` by least squares
/// of the relative error, which is at most 6.2e-6 there. `n ln 2` rounded once adds `|n| 2^-25` at most: 4e-6 at -87. A
/// rounding to bf16 adds up to 3.9e-3.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
fn power(mask: __mmask16, x: __m512) -> __m512 {
    let set = |value: f32| _mm512_set1_ps(value);
    // As in `math::exp`: adding it rounds to a whole number, which then stands in the low bits.
    let round = set(12_582_912.0);
    let mask = _mm512_mask_cmp_ps_mask::<_CMP_NLT_UQ>(mask, x, set(-87.336_54));
    let shifted = _mm512_fmadd_ps(x, set(std::f32::consts::LOG2_E), round);
    let n = _mm512_sub_ps(shifted, round);
    let r = _mm512_fnmadd_ps(n, set(std::f32::consts::LN_2), x);
    let p = _mm512_fmadd_ps(set(POWERS[0] as f32), r, set(POWERS[1] as f32));
    let p = _mm512_fmadd_ps(p, r, set(POWERS[2] as f32));
    let p = _mm512_fmadd_ps(p, r, set(1.0));
    let p = _mm512_fmadd_ps(p, r, set(1.0));
    // The constant's own low bits are zeros, and its others leave at the top.
    let exponent = _mm512_slli_epi32::<23>(_mm512_castps_si512(shifted));
    _mm512_castsi512_ps(_mm512_maskz_add_epi32(
        mask,
        _mm512_castps_si512(p),
        exponent,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operand::{Form, Operand};
    use crate::{Isa, math};

    /// Beside the scalar functions, for every length that a row may end with.
    #[test]
    fn powers_are_those_of_scalars_rounded() {
        if !Isa::Avx512Bf16.is_available() {
            return;
        }
        let values: Vec<f32> = (0..700).map(|i| i as f32 * -0.131_7).collect();
        for n in 0..=values.len() {
            let (x, shift) = (&values[..n], 0.75);
            let mut out = vec![7u16; n];
            // SAFETY: the instruction set is there; both are as long.
            let sum = unsafe { exp_bf16(x, shift, &mut out) };
            let mut exact = 0.0f64;
            for (&x, &bits) in x.iter().zip(&out) {
                let found = math::from_bf16(bits);
                let expected = f64::from(x - shift).exp();
                exact += f64::from(found);
                // Half a step of bf16, and what the polynomial is off.
                let near = (f64::from(found) - expected).abs() <= expected * (2f64.powi(-8) + 2e-5);
                assert!(
                    near || (found == 0.0 && expected < 1.2e-38),
                    "{x} {found} {expected}"
                );
            }
            assert!(
                (f64::from(sum) - exact).abs() <= exact * 1e-5,
                "{n}: {sum} {exact}"
            );
        }
    }

    #[test]
    fn what_is_hidden_weighs_nothing_and_what_is_no_number_stays() {
        if !Isa::Avx512Bf16.is_available() {
            return;
        }
        let x = [f32::NEG_INFINITY, f32::NAN, 0.0, -1e30, -88.0];
        let mut out = [7u16; 5];
        // SAFETY: as above.
        let sum = unsafe { exp_bf16(&x, 0.0, &mut out) };
        assert!(sum.is_nan());
        let found = out.map(math::from_bf16);
        assert!(found[1].is_nan());
        assert_eq!(
            [found[0], found[2], found[3], found[4]],
            [0.0, 1.0, 0.0, 0.0]
        );
    }

    /// Every sum that is stored, beside f64: over what gates have, and far outside of it.
    #[test]
    fn gates_are_those_of_f64_rounded() {
        if !Isa::Avx512Bf16.is_available() {
            return;
        }
        let gates: Vec<f32> = (-3000..3000)
            .map(|i| i as f32 * 0.01)
            .chain([1e4, -1e4, 1e9, -1e9, 0.0, -0.0, f32::NAN])
            .collect();
        for form in [Form::Bf16, Form::Bf16Tiles] {
            for some in gates.chunks(LANES) {
                let mut sums = [1.5f32; PANEL];
                sums[..some.len()].copy_from_slice(some);
                let mut out = Operand::zeroed(form, 1, LANES);
                // SAFETY: the instruction set is there; sums and result are this thread's.
                unsafe {
                    finish(&FinishBlock {
                        sums: sums.as_ptr(),
                        rows: 1,
                        token: 0,
                        column: 0,
                        columns: LANES,
                        finish: Finish::Gate(Activation::GeluTanh, out.sink()),
                    });
                }
                for (column, &x) in some.iter().enumerate() {
                    let (found, x) = (f64::from(out.get(0, column)), f64::from(x));
                    let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
                    let expected = 1.5 * x / (1.0 + (-2.0 * inner).exp());
                    // Half a step of bf16, what the power is off, what is cut off and what is subnormal.
                    let bound = expected.abs() * (2f64.powi(-8) + 2e-5) + x.abs() * 2e-36 + 2e-38;
                    assert!(
                        (found - expected).abs() <= bound || (found.is_nan() && x.is_nan()),
                        "{x} {found} {expected}"
                    );
                }
            }
        }
    }

    /// Bits, beside the functions for CPUs that do not round to bf16.
    #[test]
    fn what_is_stored_is_what_other_cpus_store() {
        if !Isa::Avx512Bf16.is_available() {
            return;
        }
        let (rows, columns) = (33, 3 * PANEL);
        let mut sums: Vec<f32> = (0..rows * PANEL)
            .map(|i| (i as f32 * 0.37).sin() * 10f32.powi((i % 11) as i32 - 5))
            .collect();
        sums[5] = f32::INFINITY;
        for form in [Form::F32, Form::Bf16, Form::Bf16Tiles, Form::Split] {
            let stored = |finish: unsafe fn(&FinishBlock)| {
                let mut out = Operand::zeroed(form, rows, columns);
                for column in (0..columns).step_by(PANEL) {
                    // SAFETY: as above.
                    unsafe {
                        finish(&FinishBlock {
                            sums: sums.as_ptr(),
                            rows,
                            token: 0,
                            column,
                            columns,
                            finish: Finish::Store(out.sink()),
                        });
                    }
                }
                let all = (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column)));
                all.map(|(row, column)| out.get(row, column).to_bits())
                    .collect::<Vec<_>>()
            };
            let plain = stored(crate::portable::ROWWISE.finish);
            assert_eq!(stored(finish), plain, "{form:?}");
            assert_eq!(stored(avx512_rows::ROWWISE.finish), plain, "{form:?}");
        }
    }
}
