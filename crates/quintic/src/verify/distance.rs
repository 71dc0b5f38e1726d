//! How far values are from those that they should be.

/// Differences of many values from a reference, summed up.
#[derive(Clone, Debug, PartialEq)]
pub struct Distance {
    /// Number of values.
    pub n_values: usize,
    /// The asked-for quantiles of |difference|, in their order. Quantile `q` is the smallest
    /// difference that at least a share `q` of all differences does not exceed.
    pub quantiles: Vec<f64>,
    /// The largest |difference|; NaN if a value is NaN on either side.
    pub max: f64,
    /// Root mean square of the differences over that of the reference: 0 where nothing differs,
    /// infinite where the reference is all zeros and something does.
    pub relative_rms: f64,
}

impl Distance {
    /// Of pairs (reference, found). Differences are taken in f64. Equal infinities do not
    /// differ; NaN differs from everything, itself included.
    ///
    /// Holds 8 bytes a value.
    pub fn between(pairs: impl IntoIterator<Item = (f64, f64)>, quantiles: &[f64]) -> Distance {
        let (mut error, mut size) = (0.0, 0.0);
        let mut absolute: Vec<f64> = pairs
            .into_iter()
            .map(|(reference, found)| {
                let difference = if reference == found {
                    0.0
                } else {
                    (reference - found).abs()
                };
                error += difference * difference;
                size += reference * reference;
                difference
            })
            .collect();
        // NaN sorts last, so it shows in the maximum.
        absolute.sort_unstable_by(f64::total_cmp);
        Distance {
            n_values: absolute.len(),
            quantiles: quantiles.iter().map(|&q| quantile(&absolute, q)).collect(),
            max: quantile(&absolute, 1.0),
            relative_rms: if error == 0.0 {
                0.0
            } else {
                (error / size).sqrt()
            },
        }
    }
}

/// The smallest of `sorted` that at least a share `q` of them does not exceed; 0 of nothing.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    match sorted.len() {
        0 => 0.0,
        n => sorted[((n as f64 * q).ceil() as usize).clamp(1, n) - 1],
    }
}

/// Cosine of the angle between two vectors, in f64. Equal vectors have 1, zeros included;
/// a zero vector and another one have 0; NaN with a NaN.
///
/// # Panics
///
/// If the lengths differ.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len(), "vectors of one length");
    if a == b {
        return 1.0;
    }
    let (mut product, mut a_square, mut b_square) = (0.0, 0.0, 0.0);
    for (&a, &b) in a.iter().zip(b) {
        let (a, b) = (f64::from(a), f64::from(b));
        product += a * b;
        a_square += a * a;
        b_square += b * b;
    }
    if a_square == 0.0 || b_square == 0.0 {
        return 0.0;
    }
    // The roots apart: their product neither overflows nor vanishes for any f32. Rounding may
    // leave it above 1. `clamp` keeps NaN.
    (product / a_square.sqrt() / b_square.sqrt()).clamp(-1.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_by_hand() {
        // 98 values do not differ, one by 0.5 and one by 2.
        let pairs = (0..100).map(|i| {
            let found = match i {
                7 => 3.0,
                8 => 1.5,
                _ => 1.0,
            };
            (1.0, found)
        });
        let distance = Distance::between(pairs, &[0.5, 0.98, 0.981, 0.99, 0.991]);
        assert_eq!(distance.n_values, 100);
        assert_eq!(distance.quantiles, [0.0, 0.0, 0.5, 0.5, 2.0]);
        assert_eq!(distance.max, 2.0);
        // The sums of squares, 4.25 and 100, are exact.
        assert_eq!(distance.relative_rms, (4.25f64 / 100.0).sqrt());
    }

    #[test]
    fn nan_is_never_equal_and_equal_infinities_are() {
        let of = |pair| Distance::between([pair, (1.0, 1.0)], &[0.5]);
        let nan = of((f64::NAN, f64::NAN));
        assert!(nan.max.is_nan() && nan.relative_rms.is_nan());
        assert_eq!(nan.quantiles, [0.0]);
        let infinite = of((f64::INFINITY, f64::INFINITY));
        assert_eq!((infinite.max, infinite.relative_rms), (0.0, 0.0));
        assert_eq!(of((0.0, f64::INFINITY)).max, f64::INFINITY);
    }

    #[test]
    fn nothing_and_zeros() {
        let nothing = Distance::between([], &[0.5]);
        assert_eq!((nothing.n_values, nothing.max), (0, 0.0));
        assert_eq!(nothing.relative_rms, 0.0);
        let zeros = Distance::between([(0.0, 1.0)], &[]);
        assert_eq!(zeros.relative_rms, f64::INFINITY);
    }

    #[test]
    fn cosines_by_hand() {
        assert_eq!(cosine(&[3.0, 4.0], &[4.0, 3.0]), 24.0 / 25.0);
        assert_eq!(cosine(&[1.0, 0.0], &[-2.0, 0.0]), -1.0);
        assert_eq!(cosine(&[0.0, 0.0], &[0.0, 0.0]), 1.0);
        assert_eq!(cosine(&[0.0, 0.0], &[1.0, 0.0]), 0.0);
        assert!(cosine(&[f32::NAN, 0.0], &[1.0, 0.0]).is_nan());
        let large = [f32::MAX, f32::MAX, f32::MAX];
        let small = [1e-38, 1e-38, 1.000001e-38];
        let found = cosine(&large, &small);
        assert!((1.0 - 1e-12..=1.0).contains(&found), "{found}");
    }
}
