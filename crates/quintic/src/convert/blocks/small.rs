//! Blocks of 32 values, bit for bit those of llama.cpp's reference implementations
//! (`quantize_row_q8_0_ref` and its like).

use half::f16;

use super::inverse;

/// Values of a block.
const BLOCK: usize = 32;

fn put_f16(out: &mut [u8], value: f32) {
    out[..2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
}

/// An f16 scale and 32 bytes: the scale is the largest size over 127, in f32 until it is stored,
/// and values are rounded to the nearest, halves away from zero.
pub(super) fn q8_0(values: &[f32], out: &mut [u8]) {
    let largest = values
        .iter()
        .fold(0.0, |largest: f32, value| largest.max(value.abs()));
    let scale = largest / 127.0;
    let inverse = inverse(scale);
    put_f16(out, scale);
    // Saturates where the scale has no finite inverse; f16 makes that scale zero.
    for (out, value) in out[2..].iter_mut().zip(values) {
        *out = ((value * inverse).round() as i8) as u8;
    }
}

/// An f16 scale and 32 half bytes, from 0 to 15 for -8 to 7: the value of the largest size, the
/// first of several, becomes -8. Value `i` is in the low half of byte `i`, value `i + 16` in the
/// high half.
pub(super) fn q4_0(values: &[f32], out: &mut [u8]) {
    let scale = extreme(values) / -8.0;
    let inverse = inverse(scale);
    put_f16(out, scale);
    let codes = codes(values, |value| ((value * inverse + 8.5) as u8).min(15));
    halves(&codes, &mut out[2..]);
}

/// An f16 scale, an f16 minimum and 32 half bytes: the least value becomes 0, the largest 15.
pub(super) fn q4_1(values: &[f32], out: &mut [u8]) {
    let (least, largest) = range(values);
    let scale = (largest - least) / 15.0;
    let inverse = inverse(scale);
    put_f16(out, scale);
    put_f16(&mut out[2..], least);
    let codes = codes(values, |value| {
        (((value - least) * inverse + 0.5) as u8).min(15)
    });
    halves(&codes, &mut out[4..]);
}

/// As [`q4_0`] with 5 bits, for -16 to 15: between scale and half bytes stand 32 fifth bits.
pub(super) fn q5_0(values: &[f32], out: &mut [u8]) {
    let scale = extreme(values) / -16.0;
    let inverse = inverse(scale);
    put_f16(out, scale);
    let codes = codes(values, |value| ((value * inverse + 16.5) as u8).min(31));
    fifth_bits(&codes, &mut out[2..]);
    halves(&codes, &mut out[6..]);
}

/// As [`q4_1`] with 5 bits: between minimum and half bytes stand 32 fifth bits.
pub(super) fn q5_1(values: &[f32], out: &mut [u8]) {
    let (least, largest) = range(values);
    let scale = (largest - least) / 31.0;
    let inverse = inverse(scale);
    put_f16(out, scale);
    put_f16(&mut out[2..], least);
    let codes = codes(values, |value| {
        (((value - least) * inverse + 0.5) as u8).min(31)
    });
    fifth_bits(&codes, &mut out[4..]);
    halves(&codes, &mut out[8..]);
}

/// The value of the largest size, the first of several.
fn extreme(values: &[f32]) -> f32 {
    values.iter().fold(values[0], |extreme, &value| {
        if value.abs() > extreme.abs() {
            value
        } else {
            extreme
        }
    })
}

/// The least and the largest value.
fn range(values: &[f32]) -> (f32, f32) {
    values.iter().fold(
        (f32::INFINITY, f32::NEG_INFINITY),
        |(least, largest), &v| (least.min(v), largest.max(v)),
    )
}

fn codes(values: &[f32], code: impl Fn(f32) -> u8) -> [u8; BLOCK] {
    let mut codes = [0; BLOCK];
    for (out, &value) in codes.iter_mut().zip(values) {
        *out = code(value);
    }
    codes
}

/// The low 4 bits of code `i` in the low half of byte `i`, of code `i + 16` in the high half.
fn halves(codes: &[u8; BLOCK], out: &mut [u8]) {
    let (low, high) = codes.split_at(BLOCK / 2);
    for (out, (low, high)) in out.iter_mut().zip(low.iter().zip(high)) {
        *out = low & 15 | high << 4;
    }
}

/// Bit 4 of code `i` as bit `i` of four bytes.
fn fifth_bits(codes: &[u8; BLOCK], out: &mut [u8]) {
    let bits = codes
        .iter()
        .enumerate()
        .fold(0u32, |bits, (at, code)| bits | u32::from(code >> 4) << at);
    out[..4].copy_from_slice(&bits.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(f: impl Fn(usize) -> f32) -> [f32; BLOCK] {
        std::array::from_fn(f)
    }

    fn encoded<const N: usize>(encode: fn(&[f32], &mut [u8]), values: &[f32; BLOCK]) -> [u8; N] {
        let mut out = [0xee; N];
        encode(values, &mut out);
        out
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
        let out: [u8; 34] = encoded(q8_0, &values);
        assert_eq!(out[..6], [0x00, 0x3c, 129, 3, 253, 0]);
        assert_eq!(encoded(q8_0, &[0.0; BLOCK]), [0; 34]);
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
        let out: [u8; 18] = encoded(q4_0, &values);
        // -4 would be 8, which is 16 and has no code: 15. -0.26 / -0.5 rounds to 1.
        assert_eq!(out[..5], [0x00, 0xb8, 0xf0, 0x96, 0x88]);
        // Of two extremes the first decides.
        let out: [u8; 18] = encoded(q4_0, &block(|i| if i % 2 == 0 { -1.0 } else { 1.0 }));
        assert_eq!(f16::from_le_bytes([out[0], out[1]]).to_f32(), 0.125);
        assert_eq!(out[2..4], [0x00, 0xff]);
    }

    #[test]
    fn q5_0_by_hand() {
        // -8 becomes -16: the scale is 0.5. 8 would be 32 and has no code: 31.
        let values = block(|i| match i {
            0 => -8.0,
            1 => 8.0,
            17 => 0.76,
            _ => 0.0,
        });
        let out: [u8; 22] = encoded(q5_0, &values);
        assert_eq!(out[..2], [0x00, 0x38]);
        // All but the first have the fifth bit: 16 stands for 0.
        assert_eq!(out[2..6], [0xfe, 0xff, 0xff, 0xff]);
        assert_eq!(out[6..9], [0x00, 0x2f, 0x00]);
    }

    #[test]
    fn minima_by_hand() {
        // From -1 to 14: the scale is 1. The middle goes up.
        let values = block(|i| match i {
            0 => -1.0,
            1 => 14.0,
            16 => 0.5,
            _ => 0.0,
        });
        let out: [u8; 20] = encoded(q4_1, &values);
        assert_eq!(out[..4], [0x00, 0x3c, 0x00, 0xbc]);
        assert_eq!(out[4..7], [0x20, 0x1f, 0x11]);
        // From -1 to 30.
        let values = block(|i| match i {
            0 => -1.0,
            1 => 30.0,
            16 => 15.0,
            _ => 0.0,
        });
        let out: [u8; 24] = encoded(q5_1, &values);
        assert_eq!(out[..4], [0x00, 0x3c, 0x00, 0xbc]);
        assert_eq!(out[4..8], [0x02, 0x00, 0x01, 0x00]);
        assert_eq!(out[8..11], [0x00, 0x1f, 0x11]);
        // Equal values are the minimum.
        let out: [u8; 24] = encoded(q5_1, &[0.75; BLOCK]);
        assert_eq!(out[..4], [0x00, 0x00, 0x00, 0x3a]);
        assert_eq!(out[4..], [0; 20]);
    }
}
