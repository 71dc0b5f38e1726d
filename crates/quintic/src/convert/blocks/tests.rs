//! Every type: what is decoded, and how far it is from what was encoded.

use super::large::{self, BLOCK};
use super::offset::Offset;
use super::scaled::Scaled;
use super::*;

const TYPES: [GgmlType; 10] = [
    GgmlType::Q8_0,
    GgmlType::Q4_0,
    GgmlType::Q4_1,
    GgmlType::Q5_0,
    GgmlType::Q5_1,
    GgmlType::Q2_K,
    GgmlType::Q3_K,
    GgmlType::Q4_K,
    GgmlType::Q5_K,
    GgmlType::Q6_K,
];

/// Numbers that look random.
struct Random(u64);

impl Random {
    /// In (0, 1].
    fn share(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 40) + 1) as f32 / (1 << 24) as f32
    }

    /// Normally distributed, by Box and Muller.
    fn normal(&mut self) -> f32 {
        let (size, angle) = (self.share(), self.share());
        (-2.0 * size.ln()).sqrt() * (std::f32::consts::TAU * angle).cos()
    }
}

/// As weights are: normally distributed, some with values far out, one range above 0, one below.
fn kinds_of_values() -> Vec<(&'static str, Vec<f32>)> {
    const N: usize = 64 * BLOCK;
    let mut random = Random(7);
    let mut values = |f: &mut dyn FnMut(f32, usize) -> f32| -> Vec<f32> {
        (0..N).map(|at| f(random.normal(), at)).collect()
    };
    vec![
        ("normal", values(&mut |x, _| x)),
        (
            "outliers",
            values(&mut |x, at| if at % 61 == 5 { 8.0 * x } else { x }),
        ),
        // As T5's query weights are; scales of blocks are subnormal in f16.
        ("small", values(&mut |x, _| 2e-3 * x)),
        ("tiny", values(&mut |x, _| 1e-6 * x)),
        ("vanishing", values(&mut |x, _| 1e-30 * x)),
        ("large", values(&mut |x, _| 1e5 * x.clamp(-0.6, 0.6))),
        ("above", values(&mut |x, _| 3.0 + 0.1 * x.clamp(-4.0, 4.0))),
        ("below", values(&mut |x, _| -3.0 + 0.1 * x)),
        (
            "uneven groups",
            values(&mut |x, at| x * f32::powi(2.0, -((at / 16 % 7) as i32))),
        ),
        (
            "spikes",
            values(&mut |x, at| if at % 100 == 0 { x } else { 0.0 }),
        ),
        ("equal", values(&mut |_, at| (at / 512) as f32 - 10.0)),
        ("zeros", values(&mut |_, _| 0.0)),
    ]
}

fn encoded(kind: GgmlType, values: &[f32]) -> Vec<u8> {
    let encoder = Encoder::of(kind).unwrap();
    let mut bytes = vec![0xee; values.len() / encoder.values * encoder.bytes];
    encoder.encode(values, &mut bytes);
    bytes
}

fn decoded(kind: GgmlType, bytes: &[u8], n: usize) -> Vec<f32> {
    let mut values = vec![f32::NAN; n];
    kind.blocks().unwrap().decode(bytes, &mut values);
    values
}

/// Sum of squared errors.
fn errors(found: &[f32], expected: &[f32]) -> f64 {
    let squares = found
        .iter()
        .zip(expected)
        .map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2));
    squares.sum()
}

/// What rounding to f16 costs at most: half a unit in the last of 11 bits, or of subnormal
/// numbers, where the least one stands for whatever is smaller and not 0.
fn f16_error(value: f32) -> f32 {
    (value * f32::powi(2.0, -11)).max(f32::powi(2.0, -24))
}

fn range(values: &[f32]) -> (f32, f32) {
    values
        .iter()
        .fold((f32::INFINITY, f32::NEG_INFINITY), |(least, most), &x| {
            (least.min(x), most.max(x))
        })
}

/// The value of the largest size, the first of several.
fn extreme(values: &[f32]) -> f32 {
    let further = |a: f32, &b: &f32| if b.abs() > a.abs() { b } else { a };
    values.iter().fold(0.0, further)
}

/// How far any value of a block of 32 may be from what it stands for.
fn bound_of_32(kind: GgmlType, values: &[f32]) -> f32 {
    let (least, most) = range(values);
    let size = extreme(values).abs();
    // Half a step. What is wrong with the scale counts as often as the largest code says.
    let with_min = |levels: f32| {
        let step = (most - least) / levels;
        step / 2.0 + levels * f16_error(step) + f16_error(least.abs())
    };
    // Of signed codes one is missing above: a whole step.
    let signed = |levels: f32| size / levels + levels * f16_error(size / levels);
    match kind {
        GgmlType::Q8_0 => size / 254.0 + 127.0 * f16_error(size / 127.0),
        GgmlType::Q4_0 => signed(8.0),
        GgmlType::Q5_0 => signed(16.0),
        GgmlType::Q4_1 => with_min(15.0),
        GgmlType::Q5_1 => with_min(31.0),
        other => panic!("{other:?}"),
    }
}

/// The largest root mean square of a block's errors. The search is no worse than scales over the
/// range of each group, of which any value's error is bounded as follows.
///
/// Let `S` be the largest scale of a group, range over levels, and `M` the largest minimum. `d` is
/// `S / most` but for its rounding, so a group's scale is wrong by at most half of `d`, or, where
/// the number is the largest, by `most` times what rounding cost: `scale_error` is the sum of both.
/// `min_error` likewise. A value between the outermost codes is wrong by half a step, one beyond
/// them by the error of the minimum and, above, as many times that of the scale as there are levels.
fn bound_with_minima<const N: usize>(format: Offset<N>, values: &[f32]) -> f32 {
    let (mut scale, mut min) = (0.0f32, 0.0f32);
    for group in values.chunks_exact(N) {
        let (least, most) = range(group);
        scale = scale.max((most - least.min(0.0)) / format.levels);
        min = min.max(-least);
    }
    let error = |largest: f32| {
        let unit = largest / format.most;
        (unit + f16_error(unit)) / 2.0 + format.most * f16_error(unit)
    };
    let (scale_error, min_error) = (error(scale), error(min));
    (scale + scale_error) / 2.0 + min_error + format.levels * scale_error
}

/// As [`bound_with_minima`]. A scale of the other sign than the largest, and a value of the other
/// sign than its group's largest, have one number, one code less: a whole unit, a whole step.
fn bound_of_scaled(format: Scaled, values: &[f32]) -> f32 {
    let (codes, numbers) = (-format.least, -format.least_scale);
    let scale = extreme(values).abs() / codes;
    let unit = scale / numbers;
    let scale_error = unit + f16_error(unit) + numbers * f16_error(unit);
    scale + scale_error + codes * scale_error
}

fn bound_of_256(kind: GgmlType, values: &[f32]) -> f32 {
    match kind {
        GgmlType::Q2_K => bound_with_minima(large::Q2_K, values),
        GgmlType::Q4_K => bound_with_minima(large::Q4_K, values),
        GgmlType::Q5_K => bound_with_minima(large::Q5_K, values),
        GgmlType::Q3_K => bound_of_scaled(large::Q3_K, values),
        GgmlType::Q6_K => bound_of_scaled(large::Q6_K, values),
        other => panic!("{other:?}"),
    }
}

#[test]
fn errors_stay_below_what_the_steps_allow() {
    for kind in TYPES {
        let block = kind.block_len();
        for (name, values) in kinds_of_values() {
            let found = decoded(kind, &encoded(kind, &values), values.len());
            for (at, (found, values)) in found
                .chunks_exact(block)
                .zip(values.chunks_exact(block))
                .enumerate()
            {
                let (error, bound) = match block {
                    BLOCK => {
                        let mean = errors(found, values) / block as f64;
                        (mean.sqrt() as f32, bound_of_256(kind, values))
                    }
                    _ => {
                        let errors = found.iter().zip(values).map(|(a, b)| (a - b).abs());
                        (errors.fold(0.0, f32::max), bound_of_32(kind, values))
                    }
                };
                // Bound and values are computed in f32: a few roundings of the largest value.
                let slack = 4.0 * f32::EPSILON * extreme(values).abs();
                assert!(
                    error <= bound + slack,
                    "{kind:?}, {name}, block {at}: {error} > {bound}"
                );
            }
        }
    }
}

/// Scales and minima over the range of each group, written down once more.
fn plain_with_minima<const N: usize>(format: Offset<N>, values: &[f32]) -> Vec<f32> {
    let groups = || values.chunks_exact(N);
    let scale = |group: &[f32]| {
        let (least, most) = range(group);
        (most - least.min(0.0)) / format.levels
    };
    let min = |group: &[f32]| -range(group).0.min(0.0);
    let unit = |largest: f32| f16::from_f32(largest / format.most).to_f32();
    let d = unit(groups().map(scale).fold(0.0, f32::max));
    let dmin = unit(groups().map(min).fold(0.0, f32::max));
    let rounded = |value: f32, unit: f32| match unit {
        0.0 => 0.0,
        unit => unit * (value / unit).round().min(format.most),
    };
    let mut found = Vec::new();
    for group in groups() {
        let (scale, min) = (rounded(scale(group), d), rounded(min(group), dmin));
        found.extend(group.iter().map(|&x| match scale {
            0.0 => -min,
            scale => scale * ((x + min) / scale).round().clamp(0.0, format.levels) - min,
        }));
    }
    found
}

/// As [`plain_with_minima`]: the value of the largest size takes the outermost code.
fn plain_of_scaled(format: Scaled, values: &[f32]) -> Vec<f32> {
    let groups = || values.chunks_exact(16);
    let scale = |group: &[f32]| extreme(group) / format.least;
    let scales: Vec<f32> = groups().map(scale).collect();
    let d = f16::from_f32(extreme(&scales) / format.least_scale).to_f32();
    let mut found = Vec::new();
    for (group, scale) in groups().zip(scales) {
        let number = (scale / d)
            .round()
            .clamp(format.least_scale, -format.least_scale - 1.0);
        let scale = if d == 0.0 { 0.0 } else { d * number };
        found.extend(group.iter().map(|&x| match scale {
            0.0 => 0.0,
            scale => scale * (x / scale).round().clamp(format.least, -format.least - 1.0),
        }));
    }
    found
}

fn plain(kind: GgmlType, values: &[f32]) -> Vec<f32> {
    match kind {
        GgmlType::Q2_K => plain_with_minima(large::Q2_K, values),
        GgmlType::Q4_K => plain_with_minima(large::Q4_K, values),
        GgmlType::Q5_K => plain_with_minima(large::Q5_K, values),
        GgmlType::Q3_K => plain_of_scaled(large::Q3_K, values),
        GgmlType::Q6_K => plain_of_scaled(large::Q6_K, values),
        other => panic!("{other:?}"),
    }
}

const LARGE: [GgmlType; 5] = [
    GgmlType::Q2_K,
    GgmlType::Q3_K,
    GgmlType::Q4_K,
    GgmlType::Q5_K,
    GgmlType::Q6_K,
];

#[test]
fn the_search_beats_the_range_in_every_block_and_clearly_on_the_whole() {
    for kind in LARGE {
        for (name, values) in kinds_of_values() {
            let found = decoded(kind, &encoded(kind, &values), values.len());
            let (mut ours, mut theirs) = (0.0, 0.0);
            for (at, (found, values)) in found
                .chunks_exact(BLOCK)
                .zip(values.chunks_exact(BLOCK))
                .enumerate()
            {
                let (a, b) = (errors(found, values), errors(&plain(kind, values), values));
                // Squares are summed in f32, 256 of them.
                assert!(
                    a <= b * (1.0 + 1e-5),
                    "{kind:?}, {name}, block {at}: {a} > {b}"
                );
                (ours, theirs) = (ours + a, theirs + b);
            }
            let ratio = (ours / theirs).sqrt();
            println!("{kind:?} {name}: {ratio:.4} of the error of the ranges");
            if matches!(name, "normal" | "outliers" | "small") {
                assert!(ratio < 0.98, "{kind:?}, {name}: {ratio}");
            }
        }
    }
}

/// The bytes say what the search found: decoded by the formula of the type, bit for bit.
#[test]
fn blocks_of_256_are_packed_as_they_are_read() {
    fn of_offset<const N: usize>(format: Offset<N>, values: &[f32; BLOCK]) -> Vec<f32> {
        let block = format.search(values);
        let (d, dmin) = (block.d.to_f32(), block.dmin.to_f32());
        let value = |at: usize| {
            let (scale, min) = (block.scales[at / N], block.mins[at / N]);
            (d * f32::from(scale)) * f32::from(block.codes[at]) - dmin * f32::from(min)
        };
        (0..BLOCK).map(value).collect()
    }
    fn of_scaled(format: Scaled, values: &[f32; BLOCK]) -> Vec<f32> {
        let block = format.search(values);
        let value = |at: usize| {
            let code = f32::from(block.codes[at]) + format.least;
            (block.d.to_f32() * f32::from(block.scales[at / 16])) * code
        };
        (0..BLOCK).map(value).collect()
    }
    let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
    for (name, values) in kinds_of_values() {
        for block in values.as_chunks::<BLOCK>().0 {
            for kind in LARGE {
                let expected = match kind {
                    GgmlType::Q2_K => of_offset(large::Q2_K, block),
                    GgmlType::Q4_K => of_offset(large::Q4_K, block),
                    GgmlType::Q5_K => of_offset(large::Q5_K, block),
                    GgmlType::Q3_K => of_scaled(large::Q3_K, block),
                    _ => of_scaled(large::Q6_K, block),
                };
                let found = decoded(kind, &encoded(kind, block), BLOCK);
                assert!(found.iter().all(|x| x.is_finite()), "{kind:?}, {name}");
                assert_eq!(bits(found), bits(expected), "{kind:?}, {name}");
            }
        }
    }
}

#[test]
fn what_is_at_the_end_of_the_range_is_stored() {
    for kind in TYPES {
        let encoder = Encoder::of(kind).unwrap();
        for sign in [1.0, -1.0] {
            let mut values = vec![0.0; encoder.values];
            values[3] = sign * encoder.largest;
            let found = decoded(kind, &encoded(kind, &values), values.len());
            assert!(found.iter().all(|x| x.is_finite()), "{kind:?}: {found:?}");
            // A whole step where a code is missing; in 2 bits with scales of 4 bits, the
            // largest positive value has 3 steps, and is exact.
            let error = (found[3] - values[3]).abs() / encoder.largest;
            assert!(error <= 0.26, "{kind:?}, {sign}: {error}");
        }
    }
}

#[test]
fn scales_that_are_not_zero_stay_so() {
    assert_eq!(stored_scale(0.0), f16::ZERO);
    assert_eq!(stored_scale(1e-30).to_bits(), 1);
    assert_eq!(stored_scale(-1e-30).to_bits(), 0x8001);
    assert_eq!(stored_scale(0.5), f16::from_f32(0.5));
    for (value, expected) in [(2.5, 2.0), (-3.5, -4.0), (127.49, 127.0), (0.0, 0.0)] {
        assert_eq!(nearest(value), expected);
    }
    assert_eq!(bounded(f32::NAN, -4.0, 3.0), -4.0);
    assert_eq!(bounded(f32::INFINITY, -4.0, 3.0), 3.0);
}
