//! Numbers for draws.

/// SplitMix64 (Steele, Lea, Flood 2014): a request's own sequence, so that what it draws does not
/// depend on what else is generated.
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    /// The sequence of a seed for one of its rows.
    pub(super) fn new(seed: u64, row: u64) -> Self {
        let mut random = Random(seed);
        // Neighbouring seeds and rows must not give shifted copies of one sequence.
        let start = random
            .next()
            .wrapping_add(row.wrapping_mul(0xd1b5_4a32_d192_ed03));
        Random(Random(start).next())
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In `[0, 1)`, 53 bits.
    fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// An index by weights that add up to about 1; one with weight 0 is never drawn unless all
    /// are 0.
    pub(super) fn draw(&mut self, weights: &[f64]) -> usize {
        let total: f64 = weights.iter().sum();
        let mut left = self.uniform() * total;
        let mut last = 0;
        for (index, &weight) in weights.iter().enumerate() {
            if weight > 0.0 {
                last = index;
                left -= weight;
                if left < 0.0 {
                    break;
                }
            }
        }
        last
    }
}
