//! The bodies: a group of 32 values each, from the bytes of its block.
//!
//! Every format is `scale * (number - offset) - min`, with scale and minimum for 16 values. What is
//! particular to a format is how it packs its numbers: that is undone eight bytes at a time in
//! plain words, here; the arithmetic that follows is the same for all and belongs to the
//! instruction sets ([`Raw::values`] is its plain form).

use super::fp8::from_f16;
use super::{BlockType, GROUP};

/// The values of a group.
pub(crate) type Group = [f32; GROUP];

/// What [`BlockType::IQ4_NL`] and [`BlockType::IQ4_XS`] choose from.
pub(crate) const TABLE: [i8; 16] = [
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
];

/// A group before the arithmetic.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Raw {
    /// 32 numbers of a byte, the first in the lowest bits.
    pub(crate) numbers: Numbers,
    /// Whether a number is the index of one in [`TABLE`].
    pub(crate) chooses: bool,
    /// What is subtracted from a number.
    pub(crate) offset: i32,
    /// Of the first 16 values, and of the others.
    pub(crate) scale: [f32; 2],
    /// What is subtracted at last. Zero changes no bit.
    pub(crate) min: [f32; 2],
}

type Numbers = [u64; GROUP / 8];

/// The same byte eight times.
const fn each(byte: u8) -> u64 {
    byte as u64 * 0x0101_0101_0101_0101
}

impl Raw {
    /// `scale * (number - offset) - min`, each operation in f32 by itself.
    #[inline(always)]
    pub(crate) fn values(&self) -> Group {
        let mut out = [0.0; GROUP];
        for (at, out) in out.iter_mut().enumerate() {
            let number = (self.numbers[at / 8] >> (8 * (at % 8))) as u8;
            let number = match self.chooses {
                true => i32::from(TABLE[usize::from(number & 15)]),
                false => i32::from(number),
            };
            let (scale, min) = (self.scale[at / 16], self.min[at / 16]);
            *out = scale * (number - self.offset) as f32 - min;
        }
        out
    }
}

/// Group `index` of a block. `block` has the block's bytes.
#[inline(always)]
pub(crate) fn group(kind: BlockType, block: &[u8], index: usize) -> Group {
    raw(kind, block, index).values()
}

/// Group `index` of a block, before the arithmetic.
#[inline(always)]
pub(crate) fn raw(kind: BlockType, block: &[u8], index: usize) -> Raw {
    match kind {
        BlockType::Q4_0 => q4_0(part(block, 0)),
        BlockType::Q4_1 => q4_1(part(block, 0)),
        BlockType::Q5_0 => q5_0(part(block, 0)),
        BlockType::Q5_1 => q5_1(part(block, 0)),
        BlockType::Q8_0 => q8_0(part(block, 0)),
        BlockType::Q2_K => q2_k(part(block, 0), index),
        BlockType::Q3_K => q3_k(part(block, 0), index),
        BlockType::Q4_K => q4_k(part(block, 0), index),
        BlockType::Q5_K => q5_k(part(block, 0), index),
        BlockType::Q6_K => q6_k(part(block, 0), index),
        BlockType::IQ4_NL => iq4_nl(part(block, 0)),
        BlockType::IQ4_XS => iq4_xs(part(block, 0), index),
    }
}

/// `N` bytes from `at` on.
#[inline(always)]
fn part<const N: usize>(bytes: &[u8], at: usize) -> &[u8; N] {
    match bytes[at..].first_chunk() {
        Some(part) => part,
        None => panic!("a block of {} bytes is cut short", bytes.len()),
    }
}

#[inline(always)]
fn f16(bytes: &[u8], at: usize) -> f32 {
    from_f16(u16::from_le_bytes(*part(bytes, at)))
}

#[inline(always)]
fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(*part(bytes, at))
}

/// Some bits of each of 32 bytes: those above `shift` that `mask` keeps.
#[inline(always)]
fn bits(bytes: &[u8], at: usize, shift: usize, mask: u8) -> Numbers {
    let bytes: &[u8; GROUP] = part(bytes, at);
    let eight = |from: usize| word(bytes, from) >> shift & each(mask);
    [eight(0), eight(8), eight(16), eight(24)]
}

/// 16 bytes to 32 numbers: the low halves of all, then the high halves.
#[inline(always)]
fn halves(bytes: &[u8], at: usize) -> Numbers {
    let (first, second) = (word(bytes, at), word(bytes, at + 8));
    let low = each(15);
    [
        first & low,
        second & low,
        first >> 4 & low,
        second >> 4 & low,
    ]
}

/// Numbers with further bits above theirs.
#[inline(always)]
fn above(numbers: Numbers, high: Numbers, shift: usize) -> Numbers {
    let eight = |at: usize| numbers[at] | high[at] << shift;
    [eight(0), eight(1), eight(2), eight(3)]
}

/// Bit `i` of the 32 bits from `at` on as number `i`.
#[inline(always)]
fn spread(bytes: &[u8], at: usize) -> Numbers {
    let eight = |byte: u8| {
        // Byte `i` keeps bit `i`, if it is set; then it becomes 0x80 or more.
        let kept = each(byte) & 0x8040_2010_0804_0201;
        (kept + each(0x7f)) >> 7 & each(1)
    };
    let [a, b, c, d] = *part(bytes, at);
    [eight(a), eight(b), eight(c), eight(d)]
}

#[inline(always)]
fn scaled(numbers: Numbers, offset: i32, scale: f32, min: f32) -> Raw {
    Raw {
        numbers,
        chooses: false,
        offset,
        scale: [scale; 2],
        min: [min; 2],
    }
}

#[inline(always)]
fn q4_0(block: &[u8; 18]) -> Raw {
    scaled(halves(block, 2), 8, f16(block, 0), 0.0)
}

#[inline(always)]
fn q4_1(block: &[u8; 20]) -> Raw {
    scaled(halves(block, 4), 0, f16(block, 0), -f16(block, 2))
}

#[inline(always)]
fn q5_0(block: &[u8; 22]) -> Raw {
    let numbers = above(halves(block, 6), spread(block, 2), 4);
    scaled(numbers, 16, f16(block, 0), 0.0)
}

#[inline(always)]
fn q5_1(block: &[u8; 24]) -> Raw {
    let numbers = above(halves(block, 8), spread(block, 4), 4);
    scaled(numbers, 0, f16(block, 0), -f16(block, 2))
}

/// Numbers with a sign: its bit, turned over, makes them begin at 0.
#[inline(always)]
fn q8_0(block: &[u8; 34]) -> Raw {
    let eight = |at: usize| word(block, at) ^ each(0x80);
    let numbers = [eight(2), eight(10), eight(18), eight(26)];
    scaled(numbers, 128, f16(block, 0), 0.0)
}

/// Scales of 4 bits with minima of 4 bits, numbers of 2 bits, `d`, `dmin`. Each half of the block
/// has 32 bytes of numbers, the first of its four groups in the lowest bits.
#[inline(always)]
fn q2_k(block: &[u8; 84], index: usize) -> Raw {
    let (d, dmin) = (f16(block, 80), f16(block, 82));
    let [first, second]: [u8; 2] = *part(block, 2 * index);
    let scale = |both: u8| d * f32::from(both & 15);
    let min = |both: u8| dmin * f32::from(both >> 4);
    Raw {
        numbers: bits(block, 16 + index / 4 * GROUP, 2 * (index % 4), 3),
        chooses: false,
        offset: 0,
        scale: [scale(first), scale(second)],
        min: [min(first), min(second)],
    }
}

/// The third bits of the numbers, a bit of 32 bytes a group; numbers of 2 bits as in `Q2_K`; 16
/// scales of 6 bits; `d`. The low 4 bits of scale `i` are in byte `i % 8`, its high 2 bits in byte
/// `8 + i % 4`.
#[inline(always)]
fn q3_k(block: &[u8; 110], index: usize) -> Raw {
    let (scales, d): (&[u8; 12], f32) = (part(block, 96), f16(block, 108));
    let scale = |i: usize| {
        let low = scales[i % 8] >> (4 * (i / 8)) & 15;
        let scale = low | (scales[8 + i % 4] >> (2 * (i / 4)) & 3) << 4;
        d * f32::from(scale as i8 - 32)
    };
    let low = bits(block, 32 + index / 4 * GROUP, 2 * (index % 4), 3);
    Raw {
        numbers: above(low, bits(block, 0, index, 1), 2),
        chooses: false,
        offset: 4,
        scale: [scale(2 * index), scale(2 * index + 1)],
        min: [0.0; 2],
    }
}

/// Scale and minimum of group `index`, 6 bits each, of the 12 bytes that hold those of 8 groups.
#[inline(always)]
fn scale_and_min(packed: &[u8; 12], index: usize) -> (f32, f32) {
    let (scale, min) = match index {
        0..4 => (packed[index] & 63, packed[4 + index] & 63),
        _ => {
            let both = packed[4 + index];
            (
                both & 15 | packed[index - 4] >> 2 & 0x30,
                both >> 4 | packed[index] >> 2 & 0x30,
            )
        }
    };
    (f32::from(scale), f32::from(min))
}

/// `d`, `dmin`, scales and minima, numbers of 4 bits: 32 bytes for two groups, the first in the
/// low halves.
#[inline(always)]
fn q4_k(block: &[u8; 144], index: usize) -> Raw {
    let (scale, min) = scale_and_min(part(block, 4), index);
    let numbers = bits(block, 16 + index / 2 * GROUP, 4 * (index % 2), 15);
    scaled(numbers, 0, f16(block, 0) * scale, f16(block, 2) * min)
}

/// As `Q4_K`; in front of the numbers stand their fifth bits, a bit of 32 bytes a group.
#[inline(always)]
fn q5_k(block: &[u8; 176], index: usize) -> Raw {
    let (scale, min) = scale_and_min(part(block, 4), index);
    let low = bits(block, 48 + index / 2 * GROUP, 4 * (index % 2), 15);
    let numbers = above(low, bits(block, 16, index, 1), 4);
    scaled(numbers, 0, f16(block, 0) * scale, f16(block, 2) * min)
}

/// The low 4 bits of the numbers, the high 2, scales of 8 bits, `d`. Of each half of the block,
/// 64 bytes hold the low bits: two groups in the low halves, two in the high ones; and 32 bytes
/// the high bits, as in `Q2_K`.
#[inline(always)]
fn q6_k(block: &[u8; 210], index: usize) -> Raw {
    let d = f16(block, 208);
    let (upper, within) = (index / 4, index % 4);
    let low = bits(block, upper * 64 + within % 2 * GROUP, 4 * (within / 2), 15);
    let high = bits(block, 128 + upper * GROUP, 2 * within, 3);
    let [first, second]: [u8; 2] = *part(block, 192 + 2 * index);
    let scale = |scale: u8| d * f32::from(scale as i8);
    Raw {
        numbers: above(low, high, 4),
        chooses: false,
        offset: 32,
        scale: [scale(first), scale(second)],
        min: [0.0; 2],
    }
}

#[inline(always)]
fn chosen(numbers: Numbers, scale: f32) -> Raw {
    Raw {
        chooses: true,
        ..scaled(numbers, 0, scale, 0.0)
    }
}

#[inline(always)]
fn iq4_nl(block: &[u8; 18]) -> Raw {
    chosen(halves(block, 2), f16(block, 0))
}

/// `d`; the high 2 bits of 8 scales; their low 4 bits; 16 bytes of numbers a group.
#[inline(always)]
fn iq4_xs(block: &[u8; 136], index: usize) -> Raw {
    let high = u16::from_le_bytes(*part(block, 2)) >> (2 * index) & 3;
    let low = block[4 + index / 2] >> (4 * (index % 2)) & 15;
    let scale = (low | (high as u8) << 4) as i8 - 32;
    let scale = f16(block, 0) * f32::from(scale);
    chosen(halves(block, 8 + 16 * index), scale)
}
