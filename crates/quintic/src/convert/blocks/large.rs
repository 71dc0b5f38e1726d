//! Blocks of 256 values: how what the searches found is packed.

use super::offset::{self, Offset};
use super::scaled::Scaled;

/// Values of a block.
pub(super) const BLOCK: usize = 256;

/// Values that share their bits' bytes with the same values of other groups.
const GROUP: usize = 32;

pub(super) const Q2_K: Offset<16> = Offset {
    levels: 3.0,
    most: 15.0,
};
pub(super) const Q4_K: Offset<32> = Offset {
    levels: 15.0,
    most: 63.0,
};
pub(super) const Q5_K: Offset<32> = Offset {
    levels: 31.0,
    most: 63.0,
};
pub(super) const Q3_K: Scaled = Scaled {
    least: -4.0,
    least_scale: -32.0,
};
pub(super) const Q6_K: Scaled = Scaled {
    least: -32.0,
    least_scale: -128.0,
};

/// Scales and minima of 4 bits, numbers of 2 bits, `d`, `dmin`.
pub(super) fn q2_k(values: &[f32], out: &mut [u8]) {
    let block = Q2_K.search(whole(values));
    for (out, (scale, min)) in out.iter_mut().zip(block.scales.iter().zip(&block.mins)) {
        *out = scale | min << 4;
    }
    pairs(&block.codes, &mut out[16..80]);
    out[80..82].copy_from_slice(&block.d.to_le_bytes());
    out[82..84].copy_from_slice(&block.dmin.to_le_bytes());
}

/// Third bits, numbers of 2 bits, scales of 6 bits, `d`.
pub(super) fn q3_k(values: &[f32], out: &mut [u8]) {
    let block = Q3_K.search(whole(values));
    out.fill(0);
    single_bits(&block.codes, 2, &mut out[..32]);
    pairs(&block.codes, &mut out[32..96]);
    for (at, &scale) in block.scales.iter().enumerate() {
        // From -32 on.
        let scale = (scale + 32) as u8;
        out[96 + at % 8] |= (scale & 15) << (4 * (at / 8));
        out[104 + at % 4] |= scale >> 4 << (2 * (at / 4));
    }
    out[108..110].copy_from_slice(&block.d.to_le_bytes());
}

/// `d`, `dmin`, scales and minima of 6 bits, numbers of 4 bits.
pub(super) fn q4_k(values: &[f32], out: &mut [u8]) {
    let block = Q4_K.search(whole(values));
    head(&block, out);
    half_bytes(&block.codes, &mut out[16..]);
}

/// As [`q4_k`], with fifth bits in front of the numbers.
pub(super) fn q5_k(values: &[f32], out: &mut [u8]) {
    let block = Q5_K.search(whole(values));
    head(&block, out);
    out[16..48].fill(0);
    single_bits(&block.codes, 4, &mut out[16..48]);
    half_bytes(&block.codes, &mut out[48..]);
}

/// The low 4 bits of the numbers, the high 2, scales of 8 bits, `d`.
pub(super) fn q6_k(values: &[f32], out: &mut [u8]) {
    let block = Q6_K.search(whole(values));
    // Of each half of the block: groups 0 and 1 in the low halves of 64 bytes, 2 and 3 in the high.
    for (codes, out) in block.codes.chunks_exact(128).zip(out.chunks_exact_mut(64)) {
        let (low, high) = codes.split_at(64);
        for (out, (low, high)) in out.iter_mut().zip(low.iter().zip(high)) {
            *out = low & 15 | high << 4;
        }
    }
    let high: [u8; BLOCK] = std::array::from_fn(|at| block.codes[at] >> 4);
    pairs(&high, &mut out[128..192]);
    for (out, &scale) in out[192..208].iter_mut().zip(&block.scales) {
        *out = scale as u8;
    }
    out[208..210].copy_from_slice(&block.d.to_le_bytes());
}

fn whole(values: &[f32]) -> &[f32; BLOCK] {
    match values.first_chunk() {
        Some(values) => values,
        None => panic!("a block of {} values is cut short", values.len()),
    }
}

/// `d`, `dmin`, and 8 scales and minima of 6 bits in 12 bytes: the high bits of the last four
/// stand above the first four.
fn head(block: &offset::Block, out: &mut [u8]) {
    out[..2].copy_from_slice(&block.d.to_le_bytes());
    out[2..4].copy_from_slice(&block.dmin.to_le_bytes());
    let (scales, mins) = (&block.scales, &block.mins);
    for at in 0..4 {
        out[4 + at] = scales[at] | scales[4 + at] >> 4 << 6;
        out[8 + at] = mins[at] | mins[4 + at] >> 4 << 6;
        out[12 + at] = scales[4 + at] & 15 | (mins[4 + at] & 15) << 4;
    }
}

/// The low 4 bits of codes: two groups in 32 bytes, the first in the low halves.
fn half_bytes(codes: &[u8; BLOCK], out: &mut [u8]) {
    for (codes, out) in codes.chunks_exact(64).zip(out.chunks_exact_mut(GROUP)) {
        let (low, high) = codes.split_at(GROUP);
        for (out, (low, high)) in out.iter_mut().zip(low.iter().zip(high)) {
            *out = low & 15 | high << 4;
        }
    }
}

/// The low 2 bits of codes: four groups in 32 bytes, the first in the lowest bits.
fn pairs(codes: &[u8; BLOCK], out: &mut [u8]) {
    for (codes, out) in codes.chunks_exact(128).zip(out.chunks_exact_mut(GROUP)) {
        for (at, out) in out.iter_mut().enumerate() {
            *out = (0..4).fold(0, |byte, group| {
                byte | (codes[GROUP * group + at] & 3) << (2 * group)
            });
        }
    }
}

/// Bit `bit` of codes: group `g` in bit `g` of 32 bytes.
fn single_bits(codes: &[u8; BLOCK], bit: u8, out: &mut [u8]) {
    for (at, out) in out.iter_mut().enumerate() {
        *out = (0..8).fold(0, |byte, group| {
            byte | (codes[GROUP * group + at] >> bit & 1) << group
        });
    }
}
