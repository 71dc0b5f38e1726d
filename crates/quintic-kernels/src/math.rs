//! Scalar functions without branches, which the compiler vectorises inside loops over lanes.
//!
//! `FMA` says whether the surrounding function has fused multiply-add enabled: without it,
//! `mul_add` would be a library call.

// Constants are split and named as in the sources; some digits exceed f32 on purpose.
#![allow(clippy::excessive_precision)]

use crate::Activation;

/// Lanes that row operations work on at a time: one AVX-512 vector, two of AVX2.
pub(crate) const LANES: usize = 16;

/// `a * b + c`.
#[inline(always)]
pub(crate) fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// `e^x` for any `x`; exactly 0 below -87.3, where the result would be subnormal, and infinite
/// above 88.7. NaN stays NaN.
///
/// # Numerics
///
/// `x = n ln 2 + r` with `ln 2` in two parts, then the polynomial of degree 6 of Cephes'
/// `expf` for `|r| <= ln 2 / 2`. Relative error below 2 ulp (tested over the whole range).
#[inline(always)]
pub(crate) fn exp<const FMA: bool>(x: f32) -> f32 {
    const LOWEST: f32 = -87.336_54;
    const HIGHEST: f32 = 88.722_83;
    // Adding and subtracting this rounds to a whole number, which then also stands in the low
    // bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    let inside = if x < LOWEST { LOWEST } else { x };
    let inside = if inside > HIGHEST { HIGHEST } else { inside };
    let shifted = fma::<FMA>(inside, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = fma::<FMA>(n, -0.693_359_375, inside);
    let r = fma::<FMA>(n, 2.121_944_4e-4, r);
    let p = 1.987_569_15e-4;
    let p = fma::<FMA>(p, r, 1.398_199_950_7e-3);
    let p = fma::<FMA>(p, r, 8.333_451_907_3e-3);
    let p = fma::<FMA>(p, r, 4.166_579_589_4e-2);
    let p = fma::<FMA>(p, r, 1.666_666_545_9e-1);
    let p = fma::<FMA>(p, r, 5.000_000_120_1e-1);
    let p = fma::<FMA>(p, r * r, r) + 1.0;
    // The exponent is added to that of the polynomial, which lies in [0.7, 1.5): `n` runs from
    // -126 to 128, and where it is one of the ends the polynomial is on the safe side of 1.
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()) << 23;
    let result = f32::from_bits(p.to_bits().wrapping_add(exponent));
    let result = if x.is_nan() { x } else { result };
    let result = if x < LOWEST { 0.0 } else { result };
    if x > HIGHEST { f32::INFINITY } else { result }
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
fn sigmoid<const FMA: bool>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<FMA>(-x))
}

/// The activation. Formulas as in `activations.py` of transformers.
///
/// # Numerics
///
/// A few ulp relative to the result, plus what f32 loses inside `e^x` for large arguments. The
/// tanh form of GELU is `x * sigmoid(2 u)`, which is the same function without the
/// cancellation of `1 + tanh(u)` for negative `u`.
#[inline(always)]
pub(crate) fn activate<const FMA: bool>(activation: Activation, x: f32) -> f32 {
    match activation {
        // Not `max`, which would turn a NaN into 0.
        Activation::Relu => {
            if x < 0.0 {
                0.0
            } else {
                x
            }
        }
        Activation::GeluTanh => {
            const TWO_ROOT_TWO_OVER_PI: f32 = 1.595_769_121_605_730_7;
            let cubic = fma::<FMA>(0.044715 * x * x, x, x);
            x * sigmoid::<FMA>(TWO_ROOT_TWO_OVER_PI * cubic)
        }
        Activation::GeluErf => {
            // 1 + erf(u) = erfc(-u), which does not cancel for negative u.
            0.5 * x * libm::erfcf(-x * std::f32::consts::FRAC_1_SQRT_2)
        }
        Activation::QuickGelu => x * sigmoid::<FMA>(1.702 * x),
        Activation::Silu => x * sigmoid::<FMA>(x),
        Activation::Tanh => libm::tanhf(x),
        Activation::Sigmoid => sigmoid::<FMA>(x),
        Activation::Linear => x,
    }
}

/// The tanh form of GELU for tests of its vector form.
#[cfg(test)]
pub(crate) fn activate_gelu_tanh_fma(x: f32) -> f32 {
    activate::<true>(Activation::GeluTanh, x)
}

/// The nearest bf16, ties to even; NaN stays NaN.
#[inline(always)]
pub(crate) fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    // A NaN could be rounded to infinity; 0x40 makes it quiet.
    let kept = bits >> 16 | 0x40;
    (if x.is_nan() { kept } else { rounded }) as u16
}

/// The value of a bf16.
#[inline(always)]
pub(crate) fn from_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// `x` as the sum of two bf16, the first the nearest to `x`, the second the nearest to the
/// rest: 16 bits of `x`. The rest of an infinite or NaN `x` is zero.
#[inline(always)]
pub(crate) fn split_bf16(x: f32) -> (u16, u16) {
    let high = to_bf16(x);
    let rest = x - from_bf16(high);
    // Where `high` has rounded to infinity the sum is infinite whatever is added.
    let rest = if rest.is_finite() { rest } else { 0.0 };
    (high, to_bf16(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ulps(found: f32, exact: f64) -> f64 {
        let nearest = exact as f32;
        let ulp = f64::from(f32::from_bits(nearest.abs().to_bits() + 1)) - f64::from(nearest.abs());
        (f64::from(found) - exact).abs() / ulp
    }

    #[test]
    fn exp_is_within_two_ulps() {
        let mut worst = 0.0f64;
        // Every 997th float is enough to meet every exponent and thousands of fractions.
        for bits in (0..=u32::MAX).step_by(997) {
            let x = f32::from_bits(bits);
            let exact = f64::from(x).exp();
            for found in [
                exp::<false>(x),
                if cfg!(target_feature = "fma") {
                    exp::<true>(x)
                } else {
                    exp::<false>(x)
                },
            ] {
                if x.is_nan() {
                    assert!(found.is_nan());
                } else if x < -87.336 {
                    assert!(f64::from(found) <= 1.2e-38, "{x}");
                } else if x > 88.7228 {
                    assert!(found > 3.4e38, "{x}");
                } else {
                    worst = worst.max(ulps(found, exact));
                }
            }
        }
        assert!(worst < 2.0, "{worst}");
        assert_eq!(exp::<false>(0.0), 1.0);
        assert_eq!(exp::<false>(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp::<false>(f32::INFINITY), f32::INFINITY);
        assert!(exp::<false>(88.7).is_finite());
    }

    #[test]
    fn activations_equal_their_formulas_in_f64() {
        let exact = |activation, x: f64| {
            let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
            match activation {
                Activation::Relu => x.max(0.0),
                // The same function as with tanh, which cancels for negative x, even in f64.
                Activation::GeluTanh => {
                    let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
                    x * sigmoid(2.0 * u)
                }
                Activation::GeluErf => 0.5 * x * libm::erfc(-x / std::f64::consts::SQRT_2),
                Activation::QuickGelu => x * sigmoid(1.702 * x),
                Activation::Silu => x * sigmoid(x),
                Activation::Tanh => x.tanh(),
                Activation::Sigmoid => sigmoid(x),
                Activation::Linear => x,
            }
        };
        for activation in Activation::ALL {
            for step in -4000..4000 {
                let x = step as f32 / 100.0;
                let (found, exact) = (
                    activate::<false>(activation, x),
                    exact(activation, f64::from(x)),
                );
                // e^u has an error of |u| ulp from rounding u; |u| is below 60 where the
                // result is not negligible.
                let bound = 1e-5 * exact.abs() + 1e-25;
                assert!(
                    (f64::from(found) - exact).abs() <= bound.max(2e-7 * exact.abs()),
                    "{activation:?}({x}): {found} {exact}"
                );
            }
            for x in [1e30f32, -1e30, f32::MAX, f32::MIN, 0.0] {
                assert!(
                    !activate::<false>(activation, x).is_nan(),
                    "{activation:?}({x})"
                );
            }
            assert!(
                activate::<false>(activation, f32::NAN).is_nan(),
                "{activation:?}"
            );
        }
    }

    #[test]
    fn bf16_rounds_as_the_half_crate_does() {
        for bits in (0..=u32::MAX).step_by(1009).chain([
            0x7f7f_ffff,
            0x7f80_0001,
            0xff80_0001,
            0x8000_8000,
            0x3f80_8000,
            0x3f81_8000,
        ]) {
            let x = f32::from_bits(bits);
            let (found, expected) = (to_bf16(x), half::bf16::from_f32(x));
            assert!(
                found == expected.to_bits() || (x.is_nan() && from_bf16(found).is_nan()),
                "{bits:x}"
            );
        }
    }

    #[test]
    fn two_parts_keep_sixteen_bits() {
        for bits in (0x0f00_0000..0x7f00_0000u32).step_by(10_007) {
            let x = f32::from_bits(bits);
            let (high, low) = split_bf16(x);
            let sum = f64::from(from_bf16(high)) + f64::from(from_bf16(low));
            // Half a unit of the seventeenth bit.
            assert!(
                (sum - f64::from(x)).abs() <= f64::from(x) * 2f64.powi(-17),
                "{x}"
            );
        }
        let (high, low) = split_bf16(f32::INFINITY);
        assert_eq!((from_bf16(high), low), (f32::INFINITY, 0));
        assert!(from_bf16(split_bf16(f32::NAN).0).is_nan());
    }
}
