//! The search for scales and minima: blocks in which a value is `scale * code - min`.
//!
//! A block has groups of `N` values. A group's scale is `d * s` and its minimum `dmin * m`, with
//! `s` and `m` whole numbers of a few bits and `d` and `dmin` the block's, in f16. Sought is the
//! least sum of squared errors over the block, all values weighing the same. That is a problem of
//! whole numbers, solved here from two sides that are each easy: for given scales the best code of
//! a value is the nearest, and for given codes the best scale and minimum are those of a straight
//! line through the points (code, value), by least squares.
//!
//! 1. Each group by itself: lines over the whole range of its values and over narrower ones,
//!    which clip the outermost, then the line through the codes that they give, twice.
//! 2. The block: `d` and `dmin` from the largest scale and minimum, `s` and `m` the nearest.
//! 3. In turns: neighbours of `s` with the best `m` for them; the best `d` and `dmin` for all codes.
//!    Until nothing gets better, a few times at most.
//!
//! What is compared is the error of the values as they will be decoded, operation for operation. So
//! no step makes a block worse, and since step 2 is tried for the ranges alone, too, no block is
//! worse than rounding with the range of each group.
//!
//! A minimum cannot be negative: a group that lies above 0 is stored from 0 on.

use half::f16;

use super::large::BLOCK;
use super::{bounded, inverse, nearest, stored_scale};

/// What the range of a group's values is multiplied by for the first line.
const RANGES: [f32; 6] = [1.0, 0.94, 0.88, 0.82, 0.74, 0.64];

/// Lines through codes, one after the other, for each range.
const FITS: usize = 2;

/// Turns of step 3.
const TURNS: usize = 3;

/// Groups of a block at most.
const GROUPS: usize = 16;

/// A format: groups of `N` values.
#[derive(Clone, Copy, Debug)]
pub(super) struct Offset<const N: usize> {
    /// The largest code.
    pub(super) levels: f32,
    /// The largest `s` and `m`.
    pub(super) most: f32,
}

/// What was found. Of the arrays as many elements count as there are groups.
#[derive(Clone, Debug)]
pub(super) struct Block {
    pub(super) d: f16,
    pub(super) dmin: f16,
    pub(super) scales: [u8; GROUPS],
    pub(super) mins: [u8; GROUPS],
    pub(super) codes: [u8; BLOCK],
}

/// `scale * code - min`.
#[derive(Clone, Copy, Debug, Default)]
struct Line {
    scale: f32,
    min: f32,
}

/// Over the values of a group, with the codes that are nearest on a line.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    /// Of squared errors.
    errors: f64,
    /// Of codes.
    codes: f64,
    /// Of squared codes.
    squares: f64,
    /// Of codes times values.
    products: f64,
    /// Of values.
    values: f64,
}

/// Numbers of a block, with the sums of each group.
#[derive(Clone, Copy, Debug)]
struct Choice {
    d: f16,
    dmin: f16,
    scales: [f32; GROUPS],
    mins: [f32; GROUPS],
    sums: [Sums; GROUPS],
}

impl<const N: usize> Offset<N> {
    /// The numbers and codes of a block.
    pub(super) fn search(&self, values: &[f32; BLOCK]) -> Block {
        let groups = values.as_chunks::<N>().0;
        let plain = self.choose(groups, |group| self.whole_range(group));
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

    /// The line from the least value, or 0, to the largest.
    fn whole_range(&self, values: &[f32; N]) -> Line {
        let (least, largest) = values
            .iter()
            .fold((0.0, f32::NEG_INFINITY), |(least, largest), &value| {
                (f32::min(least, value), f32::max(largest, value))
            });
        Line {
            scale: (largest - least) / self.levels,
            min: -least,
        }
    }

    /// The best line that is found for a group by itself.
    fn fit(&self, values: &[f32; N]) -> Line {
        let whole = self.whole_range(values);
        let mut best = (f64::INFINITY, whole);
        for share in RANGES {
            // The same middle.
            let cut = (1.0 - share) / 2.0 * whole.scale * self.levels;
            let mut line = Line {
                scale: whole.scale * share,
                min: (whole.min - cut).max(0.0),
            };
            for fit in 0..=FITS {
                let sums = self.sums(values, line);
                if sums.errors < best.0 {
                    best = (sums.errors, line);
                }
                match sums.line(N) {
                    Some(next) if fit < FITS => line = next,
                    _ => break,
                }
            }
        }
        best.1
    }

    /// `d` and `dmin` for the largest numbers, and the nearest numbers.
    fn choose(&self, groups: &[[f32; N]], line: impl Fn(&[f32; N]) -> Line) -> Choice {
        let mut lines = [Line::default(); GROUPS];
        for (line_of, group) in lines.iter_mut().zip(groups) {
            *line_of = line(group);
        }
        let largest = |of: fn(&Line) -> f32| lines.iter().map(of).fold(0.0, f32::max);
        let d = stored_scale(largest(|line| line.scale) / self.most);
        let dmin = stored_scale(largest(|line| line.min) / self.most);
        let whole = |value: f32, unit: f16| {
            nearest(bounded(value * inverse(unit.to_f32()), 0.0, self.most))
        };
        let scales = lines.map(|line| whole(line.scale, d));
        let mins = lines.map(|line| whole(line.min, dmin));
        self.with(groups, d, dmin, scales, mins)
    }

    /// A choice of given numbers.
    fn with(
        &self,
        groups: &[[f32; N]],
        d: f16,
        dmin: f16,
        scales: [f32; GROUPS],
        mins: [f32; GROUPS],
    ) -> Choice {
        let mut sums = [Sums::default(); GROUPS];
        for (at, group) in groups.iter().enumerate() {
            sums[at] = self.sums(group, line(d, dmin, scales[at], mins[at]));
        }
        Choice {
            d,
            dmin,
            scales,
            mins,
            sums,
        }
    }

    /// Neighbours of the numbers, then `d` and `dmin` for them: whatever has the least error.
    fn improve(&self, groups: &[[f32; N]], from: &Choice) -> Choice {
        let mut best = *from;
        for (at, group) in groups.iter().enumerate() {
            for scale in [
                from.scales[at],
                from.scales[at] - 1.0,
                from.scales[at] + 1.0,
            ] {
                if !(0.0..=self.most).contains(&scale) {
                    continue;
                }
                let mut min = from.mins[at];
                // The best minimum for the codes, and for the codes that it gives.
                for _ in 0..2 {
                    let line = line(from.d, from.dmin, scale, min);
                    let sums = self.sums(group, line);
                    if sums.errors < best.sums[at].errors {
                        (best.scales[at], best.mins[at], best.sums[at]) = (scale, min, sums);
                    }
                    let mean = (f64::from(line.scale) * sums.codes - sums.values) / N as f64;
                    let next = mean as f32 * inverse(from.dmin.to_f32());
                    let next = nearest(bounded(next, 0.0, self.most));
                    if next == min {
                        break;
                    }
                    min = next;
                }
            }
        }
        let Some((d, dmin)) = best.units(N) else {
            return best;
        };
        let moved = self.with(groups, d, dmin, best.scales, best.mins);
        match moved.errors() < best.errors() {
            true => moved,
            false => best,
        }
    }

    fn sums(&self, values: &[f32; N], line: Line) -> Sums {
        // Partial sums side by side, as vectors hold them; their order is the same everywhere.
        const LANES: usize = 8;
        let inverse = inverse(line.scale);
        let mut lanes = [[0.0f32; LANES]; 5];
        for values in values.as_chunks::<LANES>().0 {
            for (lane, &value) in values.iter().enumerate() {
                let code = nearest(bounded((value + line.min) * inverse, 0.0, self.levels));
                let error = value - (line.scale * code - line.min);
                lanes[0][lane] += error * error;
                lanes[1][lane] += code;
                lanes[2][lane] += code * code;
                lanes[3][lane] += code * value;
                lanes[4][lane] += value;
            }
        }
        let [errors, codes, squares, products, values] =
            lanes.map(|lanes| lanes.iter().map(|&sum| f64::from(sum)).sum());
        Sums {
            errors,
            codes,
            squares,
            products,
            values,
        }
    }

    fn block(&self, groups: &[[f32; N]], choice: &Choice) -> Block {
        let mut codes = [0; BLOCK];
        for (at, (group, codes)) in groups.iter().zip(codes.chunks_exact_mut(N)).enumerate() {
            let line = line(choice.d, choice.dmin, choice.scales[at], choice.mins[at]);
            let inverse = inverse(line.scale);
            for (code, &value) in codes.iter_mut().zip(group) {
                *code = nearest(bounded((value + line.min) * inverse, 0.0, self.levels)) as u8;
            }
        }
        Block {
            d: choice.d,
            dmin: choice.dmin,
            scales: choice.scales.map(|scale| scale as u8),
            mins: choice.mins.map(|min| min as u8),
            codes,
        }
    }
}

/// The line of a group, as it is decoded.
fn line(d: f16, dmin: f16, scale: f32, min: f32) -> Line {
    Line {
        scale: d.to_f32() * scale,
        min: dmin.to_f32() * min,
    }
}

impl Sums {
    /// The line through the points by least squares, its minimum at least 0; `None` if codes do
    /// not determine one, or it does not rise.
    fn line(&self, n: usize) -> Option<Line> {
        let n = n as f64;
        let determinant = n * self.squares - self.codes * self.codes;
        let mut scale = (n * self.products - self.codes * self.values) / determinant;
        let mut min = (scale * self.codes - self.values) / n;
        if min < 0.0 {
            (scale, min) = (self.products / self.squares, 0.0);
        }
        let is_usable = scale > 0.0 && scale.is_finite() && min.is_finite();
        is_usable.then_some(Line {
            scale: scale as f32,
            min: min as f32,
        })
    }
}

impl Choice {
    fn errors(&self) -> f64 {
        self.sums.iter().map(|sums| sums.errors).sum()
    }

    /// The best `d` and `dmin` for the numbers and codes: least squares over the block, a value
    /// being `d * (scale * code) - dmin * min`. `None` if they are not determined, negative, or no
    /// finite f16.
    fn units(&self, n: usize) -> Option<(f16, f16)> {
        // Of (scale * code) and min: squares, and products with each other and with values.
        let [mut aa, mut ab, mut bb, mut ax, mut bx] = [0.0f64; 5];
        for (at, sums) in self.sums.iter().enumerate() {
            let (scale, min) = (f64::from(self.scales[at]), f64::from(self.mins[at]));
            aa += scale * scale * sums.squares;
            ab += scale * min * sums.codes;
            bb += min * min * n as f64;
            ax += scale * sums.products;
            bx += min * sums.values;
        }
        let (d, dmin) = match bb == 0.0 {
            true => (ax / aa, 0.0),
            false => {
                let determinant = aa * bb - ab * ab;
                (
                    (ax * bb - ab * bx) / determinant,
                    (ab * ax - aa * bx) / determinant,
                )
            }
        };
        if !(d > 0.0 && dmin >= 0.0) {
            return None;
        }
        let (d, dmin) = (stored_scale(d as f32), stored_scale(dmin as f32));
        (d.is_finite() && dmin.is_finite()).then_some((d, dmin))
    }
}
