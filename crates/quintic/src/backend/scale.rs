//! The powers of two by which a feed-forward layer's values fit into f16.

/// The largest number of f16.
pub(crate) const LARGEST: f32 = 65_504.0;
/// How much room is left above the largest value met so far.
pub(crate) const HEADROOM: f32 = 8.0;

/// Exponents of one feed-forward layer: its first product is multiplied by `2^-inner` before it is
/// rounded to f16, and what leaves the activation or the gate by `2^-outer`. Whoever reads the
/// values multiplies by the opposite in f32. Both are exact but for numbers that become subnormal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scale {
    /// Of the product.
    pub inner: i32,
    /// Of what leaves the activation or the gate.
    pub outer: i32,
}

impl Scale {
    /// Largest exponent that there is a use for: `2^-116` brings the largest f32 into f16 with a
    /// factor of 8 of room.
    pub const MAX_EXPONENT: i32 = 116;

    /// The least that a layer needs whose largest magnitudes are `product`, and `gated` behind the
    /// activation or the gate. Values up to half of the largest f16 need none; above, there is a
    /// factor of 8 of room for larger ones.
    ///
    /// Infinities and NaN say nothing, and change nothing.
    pub fn for_peaks(product: f32, gated: f32) -> Self {
        Scale {
            inner: raised(0, product),
            outer: raised(0, gated),
        }
    }

    /// What the product is multiplied by.
    pub(crate) fn inner_factor(self) -> f32 {
        (-self.inner as f32).exp2()
    }

    /// What the result of the gate is multiplied by.
    pub(crate) fn outer_factor(self) -> f32 {
        (-self.outer as f32).exp2()
    }

    /// The larger exponents of both.
    pub(crate) fn max(self, other: Self) -> Self {
        Scale {
            inner: self.inner.max(other.inner),
            outer: self.outer.max(other.outer),
        }
    }
}

/// An exponent that `peak` fits with, no less than there is.
pub(crate) fn raised(exponent: i32, peak: f32) -> i32 {
    let fits = peak * (-exponent as f32).exp2() <= LARGEST / 2.0;
    match fits || !peak.is_finite() {
        true => exponent,
        // At most `MAX_EXPONENT`, since a peak is below 2^128 and the largest f16 above 2^15.
        false => (peak / LARGEST * HEADROOM).log2().ceil() as i32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peaks_fit_with_room() {
        assert_eq!(Scale::for_peaks(100.0, 32_752.0), Scale::default());
        for peak in [32_753.0, 65_504.0, 65_505.0, 1e6, 3.3e9, f32::MAX] {
            let scale = Scale::for_peaks(peak, peak);
            assert_eq!(scale.inner, scale.outer);
            let scaled = peak * scale.outer_factor();
            assert!(scaled <= LARGEST, "{peak}: {scaled}");
            // Room, and no more than twice what was wanted.
            assert!(scaled * HEADROOM <= LARGEST, "{peak}: {scaled}");
            assert!((1..=Scale::MAX_EXPONENT).contains(&scale.outer));
            assert!(scaled * HEADROOM * 2.0 > LARGEST, "{peak}: {scaled}");
        }
        for peak in [f32::NAN, f32::INFINITY, 0.0] {
            assert_eq!(Scale::for_peaks(peak, peak), Scale::default());
        }
    }
}
