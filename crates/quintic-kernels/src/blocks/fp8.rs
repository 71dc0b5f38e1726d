//! Floats of eight bits, as in the OCP 8-bit floating point specification.

/// A float type of one byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fp8 {
    /// Sign, 4 bits of exponent with bias 7, 3 of fraction. No infinity; `S.1111.111` is NaN,
    /// so that the largest value is 448. The one that others call `e4m3fn`.
    E4M3,
    /// Sign, 5 bits of exponent with bias 15, 2 of fraction: the upper byte of an f16. Largest
    /// value 57344; has infinities and NaN.
    E5M2,
}

impl Fp8 {
    /// The value of a byte, exactly.
    #[inline(always)]
    pub fn decode(self, byte: u8) -> f32 {
        match self {
            Fp8::E4M3 => from_e4m3(byte),
            Fp8::E5M2 => from_f16(u16::from(byte) << 8),
        }
    }

    /// Whether the byte is NaN or infinite.
    #[inline(always)]
    pub const fn is_special(self, byte: u8) -> bool {
        match self {
            Fp8::E4M3 => byte & 0x7f == 0x7f,
            Fp8::E5M2 => byte & 0x7c == 0x7c,
        }
    }
}

/// Exponent and fraction are moved to their places in f32, and the exponent's bias is corrected; a
/// subnormal value is its fraction, a whole number, times a power of two. Without branches, so that
/// loops over it vectorise, and without arithmetic on subnormal f32, which takes processors a
/// hundred times as long.
#[inline(always)]
fn from_e4m3(byte: u8) -> f32 {
    let bits = u32::from(byte);
    let magnitude = bits & 0x7f;
    let subnormal = magnitude as i32 as f32 * f32::from_bits((127 - 9) << 23);
    let value = if magnitude < 8 {
        subnormal.to_bits()
    } else {
        (magnitude << 20) + (120 << 23)
    };
    let value = if magnitude == 0x7f {
        0x7fc0_0000
    } else {
        value
    };
    f32::from_bits(value | (bits & 0x80) << 24)
}

/// The value of an f16, by integer steps that vectorise, as above. Infinities and NaN get the
/// largest exponent.
#[inline(always)]
pub(crate) fn from_f16(bits: u16) -> f32 {
    let bits = u32::from(bits);
    let magnitude = bits & 0x7fff;
    let subnormal = magnitude as i32 as f32 * f32::from_bits((127 - 24) << 23);
    let value = if magnitude < 0x400 {
        subnormal.to_bits()
    } else {
        (magnitude << 13) + (112 << 23)
    };
    let value = if magnitude >= 0x7c00 {
        magnitude << 13 | 0x7f80_0000
    } else {
        value
    };
    f32::from_bits(value | (bits & 0x8000) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By the formula: sign, exponent, fraction.
    fn by_formula(byte: u8, exponent_bits: u32, bias: i32) -> f64 {
        let fraction_bits = 7 - exponent_bits;
        let sign = if byte & 0x80 == 0 { 1.0 } else { -1.0 };
        let exponent = i32::from(byte & 0x7f) >> fraction_bits;
        let fraction = f64::from(byte & ((1 << fraction_bits) - 1)) / f64::from(1 << fraction_bits);
        sign * match exponent {
            0 => fraction * 2f64.powi(1 - bias),
            exponent => (1.0 + fraction) * 2f64.powi(exponent - bias),
        }
    }

    #[test]
    fn every_f16_has_the_value_of_the_half_crate() {
        for bits in 0..=u16::MAX {
            let (found, expected) = (from_f16(bits), half::f16::from_bits(bits).to_f32());
            assert!(
                found.to_bits() == expected.to_bits() || (found.is_nan() && expected.is_nan()),
                "{bits:#x}: {found} {expected}"
            );
        }
    }

    #[test]
    fn every_byte_has_the_value_of_the_formula() {
        for byte in 0..=u8::MAX {
            let found = Fp8::E4M3.decode(byte);
            match Fp8::E4M3.is_special(byte) {
                true => assert!(found.is_nan(), "{byte:#x}"),
                false => {
                    let expected = by_formula(byte, 4, 7) as f32;
                    assert_eq!(found.to_bits(), expected.to_bits(), "{byte:#x}");
                }
            }
            let found = Fp8::E5M2.decode(byte);
            match (Fp8::E5M2.is_special(byte), byte & 3) {
                (true, 0) => assert_eq!(found.abs(), f32::INFINITY, "{byte:#x}"),
                (true, _) => assert!(found.is_nan(), "{byte:#x}"),
                (false, _) => {
                    let expected = by_formula(byte, 5, 15) as f32;
                    assert_eq!(found.to_bits(), expected.to_bits(), "{byte:#x}");
                }
            }
        }
        let special = |kind: Fp8| (0..=u8::MAX).filter(|&byte| kind.is_special(byte)).count();
        assert_eq!((special(Fp8::E4M3), special(Fp8::E5M2)), (2, 8));
        assert_eq!(Fp8::E4M3.decode(0x7e), 448.0);
        assert_eq!(Fp8::E5M2.decode(0x7b), 57344.0);
        assert_eq!(Fp8::E4M3.decode(0x01), 2f32.powi(-9));
    }
}
