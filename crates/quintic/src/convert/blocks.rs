//! Blocks of quantised weights as llama.cpp defines them, bit for bit those of its reference
//! implementations (`quantize_row_q8_0_ref`, `quantize_row_q4_0_ref`).

use half::f16;

/// Values of a block.
pub(super) const BLOCK: usize = 32;

/// An f16 scale and 32 bytes: the scale is the largest size over 127, in f32 until it is stored,
/// and values are rounded to the nearest, halves away from zero.
pub(super) fn q8_0(values: &[f32; BLOCK], out: &mut Vec<u8>) {
    let largest = values
        .iter()
        .fold(0.0, |largest: f32, value| largest.max(value.abs()));
    let scale = largest / 127.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    out.extend(f16::from_f32(scale).to_le_bytes());
    // Saturates where the scale has no finite inverse; f16 makes that scale zero.
    out.extend(
        values
            .iter()
            .map(|value| ((value * inverse).round() as i8) as u8),
    );
}

/// An f16 scale and 32 half bytes, from 0 to 15 for -8 to 7: the value of the largest size, the
/// first of several, becomes -8. Value `i` is in the low half of byte `i`, value `i + 16` in the
/// high half.
pub(super) fn q4_0(values: &[f32; BLOCK], out: &mut Vec<u8>) {
    let extreme = values.iter().fold(values[0], |extreme: f32, &value| {
        if value.abs() > extreme.abs() {
            value
        } else {
            extreme
        }
    });
    let scale = extreme / -8.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    out.extend(f16::from_f32(scale).to_le_bytes());
    let code = |value: f32| ((value * inverse + 8.5) as u8).min(15);
    let (low, high) = values.split_at(BLOCK / 2);
    out.extend(
        low.iter()
            .zip(high)
            .map(|(&low, &high)| code(low) | (code(high) << 4)),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(f: impl Fn(usize) -> f32) -> [f32; BLOCK] {
        std::array::from_fn(f)
    }

    #[test]
    fn q8_0_by_hand() {
        // The scale is 1, and halves go away from zero.
        let values = block(|i| match i {
            0 => -127.0,
            1 => 2.5,
            2 => -2.5,
            3 => 0.49,
            _ => 0.0,
        });
        let mut out = Vec::new();
        q8_0(&values, &mut out);
        assert_eq!(out.len(), 34);
        assert_eq!(out[..6], [0x00, 0x3c, 129, 3, 253, 0]);
        out.clear();
        q8_0(&[0.0; BLOCK], &mut out);
        assert_eq!(out, [0; 34]);
    }

    #[test]
    fn q4_0_by_hand() {
        // 4 is the extreme and becomes -8: the scale is -0.5.
        let values = block(|i| match i {
            0 => 4.0,
            16 => -4.0,
            1 => 1.0,
            17 => -0.26,
            _ => 0.0,
        });
        let mut out = Vec::new();
        q4_0(&values, &mut out);
        assert_eq!(out.len(), 18);
        // -4 would be 8, which is 16 and has no code: 15. -0.26 / -0.5 rounds to 1.
        assert_eq!(out[..5], [0x00, 0xb8, 0xf0, 0x96, 0x88]);
        // Of two extremes the first decides.
        out.clear();
        q4_0(&block(|i| if i % 2 == 0 { -1.0 } else { 1.0 }), &mut out);
        assert_eq!(f16::from_le_bytes([out[0], out[1]]).to_f32(), 0.125);
        assert_eq!(out[2..4], [0x00, 0xff]);
    }
}
