//! Relative positions to rows of a bias table.

/// Maps `key - query` to a bucket, as `_relative_position_bucket` of transformers does
/// (first in Mesh TensorFlow; Raffel et al. 2020, section 2.1).
///
/// Near distances have a bucket each, far ones share buckets of logarithmically growing
/// width, and everything from `max_distance` on shares the last. A bidirectional map gives
/// half of the buckets to each direction; a unidirectional one sends all future keys to
/// bucket 0.
///
/// # Numerics
///
/// transformers computes the logarithm in f32; where the true value is a whole number
/// (distances 16, 32, 64 for 32 buckets and 128), the rounding decides the bucket. The
/// thresholds are therefore computed here in the same f32 steps, from a logarithm that is
/// rounded correctly, and kept as a table of integers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buckets {
    bidirectional: bool,
    /// Buckets of one direction.
    n_buckets: usize,
    /// Bucket of each distance below `max_distance`.
    near: Vec<u32>,
}

impl Buckets {
    /// The map of an encoder: both directions.
    ///
    /// # Panics
    ///
    /// If `n_buckets` is below 4 or `max_distance` not above `n_buckets / 4`: a config that
    /// says so has been refused.
    pub fn bidirectional(n_buckets: usize, max_distance: usize) -> Self {
        Self::new(true, n_buckets / 2, max_distance)
    }

    /// The map of a decoder: the past only, with all buckets.
    ///
    /// # Panics
    ///
    /// If `n_buckets` is below 2 or `max_distance` not above `n_buckets / 2`.
    pub fn unidirectional(n_buckets: usize, max_distance: usize) -> Self {
        Self::new(false, n_buckets, max_distance)
    }

    fn new(bidirectional: bool, n_buckets: usize, max_distance: usize) -> Self {
        let max_exact = n_buckets / 2;
        assert!(
            max_exact > 0 && max_distance > max_exact,
            "{n_buckets} {max_distance}"
        );
        // Python's `math.log` is f64; as the divisor of an f32 tensor it is rounded to f32.
        let log_range = (max_distance as f64 / max_exact as f64).ln() as f32;
        let bucket = |distance: usize| {
            if distance < max_exact {
                return distance as u32;
            }
            let ratio = distance as f32 / max_exact as f32;
            let log = f64::from(ratio).ln() as f32;
            let step = log / log_range * (n_buckets - max_exact) as f32;
            (max_exact + step as usize).min(n_buckets - 1) as u32
        };
        // Past `max_distance` the logarithm is at least the whole range.
        let near = (0..=max_distance).map(bucket).collect();
        Buckets {
            bidirectional,
            n_buckets,
            near,
        }
    }

    /// The smallest distance from which on, in both directions, the bucket stays the same; at
    /// least 1.
    pub fn reach(&self) -> usize {
        // Buckets never fall with the distance.
        let last = (self.n_buckets - 1) as u32;
        self.near.partition_point(|&bucket| bucket < last)
    }

    /// Bucket of a key at `key - query = distance`.
    pub fn of(&self, distance: i64) -> usize {
        let (half, far) = if self.bidirectional {
            (
                if distance > 0 { self.n_buckets } else { 0 },
                distance.unsigned_abs(),
            )
        } else {
            (
                0,
                if distance < 0 {
                    distance.unsigned_abs()
                } else {
                    0
                },
            )
        };
        let far = usize::try_from(far).unwrap_or(usize::MAX);
        half + self
            .near
            .get(far)
            .map_or(self.n_buckets - 1, |&bucket| bucket as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// First distances of the shared buckets, for the published 32/128.
    #[test]
    fn bucket_starts_of_the_published_shape() {
        let starts = |buckets: &Buckets, sign: i64, limit: i64| -> Vec<i64> {
            (1..limit)
                .filter(|&d| buckets.of(sign * d) != buckets.of(sign * (d - 1)))
                .collect()
        };
        let encoder = Buckets::bidirectional(32, 128);
        let expected = [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91];
        assert_eq!(starts(&encoder, -1, 1000), expected);
        assert_eq!(starts(&encoder, 1, 1000), expected);
        assert_eq!(encoder.reach(), 91);
        assert_eq!((encoder.of(0), encoder.of(-1), encoder.of(1)), (0, 1, 17));
        assert_eq!((encoder.of(-5000), encoder.of(5000)), (15, 31));
        assert_eq!((encoder.of(i64::MIN), encoder.of(i64::MAX)), (15, 31));

        let decoder = Buckets::unidirectional(32, 128);
        let far: Vec<i64> = starts(&decoder, -1, 1000).into_iter().skip(15).collect();
        assert_eq!(
            far,
            [
                16, 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113
            ]
        );
        assert_eq!(decoder.reach(), 113);
        assert_eq!(
            (decoder.of(7), decoder.of(0), decoder.of(-5000)),
            (0, 0, 31)
        );
    }
}
