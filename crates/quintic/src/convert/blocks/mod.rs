//! Blocks of quantised weights in llama.cpp's layouts.
//!
//! Blocks of 32 values (`small`) are bit for bit those of llama.cpp's reference implementations,
//! each a formula. Blocks of 256 values (`large`) leave a choice: a few scales of few bits for
//! many values. It is made here by a search of our own for the least sum of squared errors, in
//! `scaled` (scales alone) and `offset` (scales and minima). Layouts are those that
//! [`BlockType`](crate::BlockType) documents and decodes.

mod large;
mod offset;
mod scaled;
mod small;
#[cfg(test)]
mod tests;

use half::f16;

use crate::output::gguf::GgmlType;

/// How values become blocks of one type.
#[derive(Clone, Copy, Debug)]
pub(super) struct Encoder {
    /// Values of a block.
    pub(super) values: usize,
    /// Bytes of a block.
    pub(super) bytes: usize,
    /// Values beyond it have no scale in f16.
    pub(super) largest: f32,
    encode: Encode,
}

/// From the values of a block to its bytes.
type Encode = fn(&[f32], &mut [u8]);

impl Encoder {
    /// The encoder of a type, `None` for plain floats.
    pub(super) fn of(kind: GgmlType) -> Option<Self> {
        let (steps, encode): (f32, Encode) = match kind {
            GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => return None,
            GgmlType::Q8_0 => (127.0, small::q8_0),
            GgmlType::Q4_0 => (8.0, small::q4_0),
            GgmlType::Q5_0 => (16.0, small::q5_0),
            // The least value is stored as it is.
            GgmlType::Q4_1 => (1.0, small::q4_1),
            GgmlType::Q5_1 => (1.0, small::q5_1),
            // Scale or minimum of a group at their largest, times that of the block.
            GgmlType::Q2_K => (large::Q2_K.most, large::q2_k),
            GgmlType::Q3_K => (large::Q3_K.reach(), large::q3_k),
            GgmlType::Q4_K => (large::Q4_K.most, large::q4_k),
            GgmlType::Q5_K => (large::Q5_K.most, large::q5_k),
            GgmlType::Q6_K => (large::Q6_K.reach(), large::q6_k),
        };
        Some(Encoder {
            values: kind.block_len(),
            bytes: kind.block_bytes(),
            largest: f16::MAX.to_f32() * steps,
            encode,
        })
    }

    /// Fills `out` with the blocks of `values`.
    ///
    /// # Panics
    ///
    /// If `values` are no whole blocks, or `out` is not as long as they are.
    pub(super) fn encode(&self, values: &[f32], out: &mut [u8]) {
        assert!(
            values.len().is_multiple_of(self.values)
                && values.len() / self.values * self.bytes == out.len(),
            "{} values to {} bytes in blocks of {} and {}",
            values.len(),
            out.len(),
            self.values,
            self.bytes
        );
        let blocks = values.chunks_exact(self.values);
        for (block, out) in blocks.zip(out.chunks_exact_mut(self.bytes)) {
            (self.encode)(block, out);
        }
    }
}

/// The f16 that a scale of a block becomes: the nearest, but not 0 unless the scale is, since what
/// a block is divided by must not vanish.
fn stored_scale(scale: f32) -> f16 {
    let nearest = f16::from_f32(scale);
    match nearest.to_f32() == 0.0 && scale != 0.0 {
        true => f16::MIN_POSITIVE_SUBNORMAL.copysign(nearest),
        false => nearest,
    }
}

/// What a division by `scale` multiplies by; 0 where there is no scale.
fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

/// The nearest whole number, in the middle the even one. `value` is at most 2^22 in size: the sum
/// then has no bits behind the point. Four additions at a time on any processor, which
/// `f32::round` is not.
fn nearest(value: f32) -> f32 {
    const SHIFT: f32 = 1.5 * (1u32 << 23) as f32;
    (value + SHIFT) - SHIFT
}

/// As [`f32::clamp`], but what is no number becomes `low`: a value times the inverse of a scale
/// that is nearly 0.
fn bounded(value: f32, low: f32, high: f32) -> f32 {
    let value = if value > low { value } else { low };
    if value < high { value } else { high }
}
