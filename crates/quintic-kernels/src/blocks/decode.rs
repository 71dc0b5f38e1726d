//! The bodies: a group of 32 values each, from the bytes of its block.
//!
//! Always inlined, and loops over arrays of fixed length, so that they are compiled with the
//! features of their caller and vectorise there.

use super::fp8::from_f16;
use super::{BlockType, GROUP};

/// The values of a group.
pub(crate) type Group = [f32; GROUP];

/// What [`BlockType::IQ4_NL`] and [`BlockType::IQ4_XS`] choose from.
const TABLE: [i8; 16] = [
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
];

/// Group `index` of a block. `block` has the block's bytes.
#[inline(always)]
pub(crate) fn group(kind: BlockType, block: &[u8], index: usize) -> Group {
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

/// 16 bytes to 32 numbers: the low halves of all, then the high halves.
#[inline(always)]
fn halves(bytes: &[u8; 16]) -> [u8; GROUP] {
    let mut out = [0; GROUP];
    for (idx, &byte) in bytes.iter().enumerate() {
        out[idx] = byte & 15;
        out[16 + idx] = byte >> 4;
    }
    out
}

/// Adds bit `i` of `bits` to number `i`, as its bit 4.
#[inline(always)]
fn fifth_bits(numbers: &mut [u8; GROUP], bits: u32) {
    for (idx, number) in numbers.iter_mut().enumerate() {
        *number |= ((bits >> idx & 1) << 4) as u8;
    }
}

#[inline(always)]
fn q4_0(block: &[u8; 18]) -> Group {
    let (d, numbers) = (f16(block, 0), halves(part(block, 2)));
    numbers.map(|q| d * f32::from(q as i8 - 8))
}

#[inline(always)]
fn q4_1(block: &[u8; 20]) -> Group {
    let (d, m, numbers) = (f16(block, 0), f16(block, 2), halves(part(block, 4)));
    numbers.map(|q| d * f32::from(q) + m)
}

#[inline(always)]
fn q5_0(block: &[u8; 22]) -> Group {
    let (d, mut numbers) = (f16(block, 0), halves(part(block, 6)));
    fifth_bits(&mut numbers, u32::from_le_bytes(*part(block, 2)));
    numbers.map(|q| d * f32::from(q as i8 - 16))
}

#[inline(always)]
fn q5_1(block: &[u8; 24]) -> Group {
    let (d, m, mut numbers) = (f16(block, 0), f16(block, 2), halves(part(block, 8)));
    fifth_bits(&mut numbers, u32::from_le_bytes(*part(block, 4)));
    numbers.map(|q| d * f32::from(q) + m)
}

#[inline(always)]
fn q8_0(block: &[u8; 34]) -> Group {
    let (d, numbers) = (f16(block, 0), part::<GROUP>(block, 2));
    numbers.map(|q| f32::from(q as i8) * d)
}

/// Scales of 4 bits with minima of 4 bits, numbers of 2 bits, `d`, `dmin`. Each half of the block
/// has 32 bytes of numbers, the first of its four groups in the lowest bits.
#[inline(always)]
fn q2_k(block: &[u8; 84], index: usize) -> Group {
    let (d, dmin) = (f16(block, 80), f16(block, 82));
    let numbers: &[u8; GROUP] = part(block, 16 + index / 4 * GROUP);
    let shift = 2 * (index % 4);
    let mut out = [0.0; GROUP];
    for (half, out) in out.chunks_exact_mut(16).enumerate() {
        let scales = block[2 * index + half];
        let (scale, min) = (d * f32::from(scales & 15), dmin * f32::from(scales >> 4));
        for (out, q) in out.iter_mut().zip(&numbers[half * 16..]) {
            *out = scale * f32::from(q >> shift & 3) - min;
        }
    }
    out
}

/// The third bits of the numbers, a bit of 32 bytes a group, set where nothing is subtracted;
/// numbers of 2 bits as in `Q2_K`; 16 scales of 6 bits; `d`. The low 4 bits of scale `i` are in
/// byte `i % 8`, its high 2 bits in byte `8 + i % 4`.
#[inline(always)]
fn q3_k(block: &[u8; 110], index: usize) -> Group {
    let (high, scales): (&[u8; GROUP], &[u8; 12]) = (part(block, 0), part(block, 96));
    let d = f16(block, 108);
    let numbers: &[u8; GROUP] = part(block, 32 + index / 4 * GROUP);
    let shift = 2 * (index % 4);
    let mut out = [0.0; GROUP];
    for (half, out) in out.chunks_exact_mut(16).enumerate() {
        let i = 2 * index + half;
        let low = scales[i % 8] >> (4 * (i / 8)) & 15;
        let scale = low | (scales[8 + i % 4] >> (2 * (i / 4)) & 3) << 4;
        let scale = d * f32::from(scale as i8 - 32);
        for (idx, out) in out.iter_mut().enumerate() {
            let at = half * 16 + idx;
            let q = (numbers[at] >> shift & 3) as i8;
            let absent = (!(high[at] >> index) & 1) << 2;
            *out = scale * f32::from(q - absent as i8);
        }
    }
    out
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
fn q4_k(block: &[u8; 144], index: usize) -> Group {
    let (scale, min) = scale_and_min(part(block, 4), index);
    let (scale, min) = (f16(block, 0) * scale, f16(block, 2) * min);
    let numbers: &[u8; GROUP] = part(block, 16 + index / 2 * GROUP);
    let shift = 4 * (index % 2);
    numbers.map(|q| scale * f32::from(q >> shift & 15) - min)
}

/// As `Q4_K`; in front of the numbers stand their fifth bits, a bit of 32 bytes a group.
#[inline(always)]
fn q5_k(block: &[u8; 176], index: usize) -> Group {
    let (scale, min) = scale_and_min(part(block, 4), index);
    let (scale, min) = (f16(block, 0) * scale, f16(block, 2) * min);
    let high: &[u8; GROUP] = part(block, 16);
    let numbers: &[u8; GROUP] = part(block, 48 + index / 2 * GROUP);
    let shift = 4 * (index % 2);
    let mut out = [0.0; GROUP];
    for (idx, out) in out.iter_mut().enumerate() {
        let q = numbers[idx] >> shift & 15 | (high[idx] >> index & 1) << 4;
        *out = scale * f32::from(q) - min;
    }
    out
}

/// The low 4 bits of the numbers, the high 2, scales of 8 bits, `d`. Of each half of the block,
/// 64 bytes hold the low bits: two groups in the low halves, two in the high ones; and 32 bytes
/// the high bits, as in `Q2_K`.
#[inline(always)]
fn q6_k(block: &[u8; 210], index: usize) -> Group {
    let d = f16(block, 208);
    let (upper, within) = (index / 4, index % 4);
    let low: &[u8; GROUP] = part(block, upper * 64 + within % 2 * GROUP);
    let high: &[u8; GROUP] = part(block, 128 + upper * GROUP);
    let (low_shift, high_shift) = (4 * (within / 2), 2 * within);
    let mut out = [0.0; GROUP];
    for (half, out) in out.chunks_exact_mut(16).enumerate() {
        let scale = d * f32::from(block[192 + 2 * index + half] as i8);
        for (idx, out) in out.iter_mut().enumerate() {
            let at = half * 16 + idx;
            let q = low[at] >> low_shift & 15 | (high[at] >> high_shift & 3) << 4;
            *out = scale * f32::from(q as i8 - 32);
        }
    }
    out
}

#[inline(always)]
fn chosen(numbers: &[u8; GROUP], scale: f32) -> Group {
    numbers.map(|q| scale * f32::from(TABLE[usize::from(q & 15)]))
}

#[inline(always)]
fn iq4_nl(block: &[u8; 18]) -> Group {
    chosen(&halves(part(block, 2)), f16(block, 0))
}

/// `d`; the high 2 bits of 8 scales; their low 4 bits; 16 bytes of numbers a group.
#[inline(always)]
fn iq4_xs(block: &[u8; 136], index: usize) -> Group {
    let high = u16::from_le_bytes(*part(block, 2)) >> (2 * index) & 3;
    let low = block[4 + index / 2] >> (4 * (index % 2)) & 15;
    let scale = (low | (high as u8) << 4) as i8 - 32;
    let scale = f16(block, 0) * f32::from(scale);
    chosen(&halves(part(block, 8 + 16 * index)), scale)
}
