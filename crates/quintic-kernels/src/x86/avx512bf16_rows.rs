//! Row operations that round to bf16, where the CPU has an instruction for it.
//!
//! It rounds to nearest as [`math::to_bf16`](crate::math::to_bf16) does, and takes subnormal values for zeros.

use std::arch::x86_64::*;

use crate::rowwise::Rowwise;
use crate::x86::avx512_rows;

pub(crate) const ROWWISE: Rowwise = Rowwise {
    exp_bf16,
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

/// The first `n` lanes, at most 16.
fn mask_of(n: usize) -> __mmask16 {
    ((1u32 << n.min(LANES)) - 1) as __mmask16
}

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
    let p = _mm512_fmadd_ps(set(0.040_917_402), r, set(0.167_539_76));
    let p = _mm512_fmadd_ps(p, r, set(0.500_089_3));
    let p = _mm512_fmadd_ps(p, r, set(1.0));
    let p = _mm512_fmadd_ps(p, r, set(1.0));
    // The constant's own low bits are zeros, and its others leave at the top.
    let exponent = _mm512_slli_epi32::<23>(_mm512_castps_si512(shifted));
    _mm512_castsi512_ps(_mm512_maskz_add_epi32(mask, _mm512_castps_si512(p), exponent))
}

#[cfg(test)]
mod tests {
    use super::*;
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
                assert!(near || (found == 0.0 && expected < 1.2e-38), "{x} {found} {expected}");
            }
            assert!((f64::from(sum) - exact).abs() <= exact * 1e-5, "{n}: {sum} {exact}");
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
        assert_eq!([found[0], found[2], found[3], found[4]], [0.0, 1.0, 0.0, 0.0]);
    }
}
