//! The search for scales: blocks in which a value is `scale * code`, codes having a sign.
//!
//! As [`super::offset`], which has the reasons, without minima. A block has 16 groups of 16 values;
//! a group's scale is `d * s`, `s` a whole number with a sign. There is one negative code more than
//! there are positive ones, so the sign of a scale matters: the value of the largest size may take
//! the outermost code.

use half::f16;

use super::large::BLOCK;
use super::{bounded, inverse, nearest, stored_scale};

/// Values of a group.
const GROUP: usize = 16;
const GROUPS: usize = BLOCK / GROUP;

/// What the size of a group's largest value is multiplied by for the first scale.
const RANGES: [f32; 6] = [1.0, 0.95, 0.9, 0.84, 0.76, 0.66];

/// Scales through codes, one after the other, for each range and sign.
const FITS: usize = 1;

/// Turns of finding neighbours of the numbers and the block's scale.
const TURNS: usize = 3;

/// A format. The largest code and number are one less in size than the least ones.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scaled {
    /// The least code.
    pub(super) least: f32,
    /// The least `s`.
    pub(super) least_scale: f32,
}

/// What was found. Codes are counted from the least one on.
#[derive(Clone, Debug)]
pub(super) struct Block {
    pub(super) d: f16,
    pub(super) scales: [i8; GROUPS],
    pub(super) codes: [u8; BLOCK],
}

/// Over the values of a group, with the codes that are nearest for a scale.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    /// Of squared errors.
    errors: f64,
    /// Of squared codes.
    squares: f64,
    /// Of codes times values.
    products: f64,
}

#[derive(Clone, Copy, Debug)]
struct Choice {
    d: f16,
    scales: [f32; GROUPS],
    sums: [Sums; GROUPS],
}

type Groups = [[f32; GROUP]];

impl Scaled {
    /// The largest value, in units of `d`.
    pub(super) const fn reach(&self) -> f32 {
        self.least * self.least_scale
    }

    /// The numbers and codes of a block.
    pub(super) fn search(&self, values: &[f32; BLOCK]) -> Block {
        let groups = values.as_chunks::<GROUP>().0;
        let plain = self.choose(groups, |group| extreme(group) / self.least);
        let mut found = self.choose(groups, |group| self.fit(group));
        for _ in 0..TURNS {
            let next = self.improve(groups, &found);
            let is_better = next.errors() < found.errors();
            found = next;
            if !is_better {
                break;
            }
        }
        let best = match found.errors() < plain.errors() {
            true => found,
            false => plain,
        };
        self.block(groups, &best)
    }

    /// The best scale that is found for a group by itself.
    fn fit(&self, values: &[f32; GROUP]) -> f32 {
        let extreme = extreme(values);
        let mut best = (f64::INFINITY, 0.0);
        for outermost in [self.least, -self.least - 1.0] {
            for share in RANGES {
                let mut scale = extreme * share / outermost;
                for fit in 0..=FITS {
                    let sums = self.sums(values, scale);
                    if sums.errors < best.0 {
                        best = (sums.errors, scale);
                    }
                    let next = (sums.products / sums.squares) as f32;
                    if fit == FITS || !next.is_finite() {
                        break;
                    }
                    scale = next;
                }
            }
        }
        best.1
    }

    /// `d` for the scale of the largest size, and the nearest numbers.
    fn choose(&self, groups: &Groups, scale: impl Fn(&[f32; GROUP]) -> f32) -> Choice {
        let mut scales = [0.0; GROUPS];
        for (scale_of, group) in scales.iter_mut().zip(groups) {
            *scale_of = scale(group);
        }
        let d = stored_scale(extreme(&scales) / self.least_scale);
        let inverse = inverse(d.to_f32());
        let scales = scales.map(|scale| nearest(self.bounded_scale(scale * inverse)));
        self.with(groups, d, scales)
    }

    fn bounded_scale(&self, scale: f32) -> f32 {
        bounded(scale, self.least_scale, -self.least_scale - 1.0)
    }

    fn with(&self, groups: &Groups, d: f16, scales: [f32; GROUPS]) -> Choice {
        let mut sums = [Sums::default(); GROUPS];
        for (at, group) in groups.iter().enumerate() {
            sums[at] = self.sums(group, d.to_f32() * scales[at]);
        }
        Choice { d, scales, sums }
    }

    /// Neighbours of the numbers, then `d` for them: whatever has the least error.
    fn improve(&self, groups: &Groups, from: &Choice) -> Choice {
        let mut best = *from;
        for (at, group) in groups.iter().enumerate() {
            for scale in [from.scales[at] - 1.0, from.scales[at] + 1.0] {
                if self.bounded_scale(scale) != scale {
                    continue;
                }
                let sums = self.sums(group, from.d.to_f32() * scale);
                if sums.errors < best.sums[at].errors {
                    (best.scales[at], best.sums[at]) = (scale, sums);
                }
            }
        }
        let Some(d) = best.unit() else {
            return best;
        };
        let moved = self.with(groups, d, best.scales);
        match moved.errors() < best.errors() {
            true => moved,
            false => best,
        }
    }

    fn code(&self, value: f32, inverse: f32) -> f32 {
        nearest(bounded(value * inverse, self.least, -self.least - 1.0))
    }

    fn sums(&self, values: &[f32; GROUP], scale: f32) -> Sums {
        const LANES: usize = 8;
        let inverse = inverse(scale);
        let mut lanes = [[0.0f32; LANES]; 3];
        for values in values.as_chunks::<LANES>().0 {
            for (lane, &value) in values.iter().enumerate() {
                let code = self.code(value, inverse);
                let error = value - scale * code;
                lanes[0][lane] += error * error;
                lanes[1][lane] += code * code;
                lanes[2][lane] += code * value;
            }
        }
        let [errors, squares, products] =
            lanes.map(|lanes| lanes.iter().map(|&sum| f64::from(sum)).sum());
        Sums {
            errors,
            squares,
            products,
        }
    }

    fn block(&self, groups: &Groups, choice: &Choice) -> Block {
        let mut codes = [0; BLOCK];
        for (at, (group, codes)) in groups.iter().zip(codes.chunks_exact_mut(GROUP)).enumerate() {
            let inverse = inverse(choice.d.to_f32() * choice.scales[at]);
            for (code, &value) in codes.iter_mut().zip(group) {
                *code = (self.code(value, inverse) - self.least) as u8;
            }
        }
        Block {
            d: choice.d,
            scales: choice.scales.map(|scale| scale as i8),
            codes,
        }
    }
}

/// The value of the largest size, the first of several.
fn extreme(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |extreme: f32, &value| {
        if value.abs() > extreme.abs() {
            value
        } else {
            extreme
        }
    })
}

impl Choice {
    fn errors(&self) -> f64 {
        self.sums.iter().map(|sums| sums.errors).sum()
    }

    /// The best `d` for the numbers and codes by least squares; `None` if it is not determined, or
    /// no finite f16.
    fn unit(&self) -> Option<f16> {
        let [mut squares, mut products] = [0.0f64; 2];
        for (scale, sums) in self.scales.iter().zip(&self.sums) {
            let scale = f64::from(*scale);
            squares += scale * scale * sums.squares;
            products += scale * sums.products;
        }
        let d = stored_scale((products / squares) as f32);
        d.is_finite().then_some(d)
    }
}
