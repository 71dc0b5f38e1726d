//! Products of f32 by tiles of bf16, in three parts of each value: see [`crate::parts`].
//!
//! Sums stay in tiles 0 to 3, for 32 rows and 32 columns; of a chunk, two tiles of a part of `b` stay in 6 and 7 while the
//! parts of `a` that meet it pass through 4 and 5. That is 18 loads for 24 products where `b` has three parts, and eight
//! for twelve where it has one.

use std::arch::asm;
use std::arch::x86_64::*;

use super::amx::{enter, leave};
use crate::math::LANES;
use crate::micro::{CHUNK, PANEL};
use crate::operand::TILE;
use crate::parts::{MicroParts, PARTS, PartsBlock};

pub(crate) const MICRO: MicroParts = MicroParts {
    run,
    split_rows,
    split_f32,
    split_f16,
    enter,
    leave,
};

/// # Safety
///
/// As [`MicroParts::run`]; AMX-TILE and AMX-BF16 are available, and this thread is between
/// [`enter`] and [`leave`].
unsafe fn run(block: &PartsBlock) {
    // SAFETY: by the caller's word.
    unsafe {
        match block.b_parts {
            1 => one_part(block),
            2 => two_parts(block),
            3 => three_parts(block),
            n => unreachable!("weights in {n} parts"),
        }
    }
}

/// Loads both tiles of a part of a chunk of `b`.
macro_rules! b_part {
    ($part:literal) => {
        concat!(
            "tileloadd tmm6, [{b} + {row} + 2048 * ",
            $part,
            "]\n",
            "tileloadd tmm7, [{b} + {row} + 1024 + 2048 * ",
            $part,
            "]\n",
        )
    };
}

/// Multiplies a part of a chunk of `a` with them.
macro_rules! a_part {
    ($part:literal) => {
        concat!(
            "tileloadd tmm4, [{a0} + {row} + 1024 * ",
            $part,
            "]\n",
            "tdpbf16ps tmm0, tmm4, tmm6\n",
            "tdpbf16ps tmm1, tmm4, tmm7\n",
            "tileloadd tmm5, [{a1} + {row} + 1024 * ",
            $part,
            "]\n",
            "tdpbf16ps tmm2, tmm5, tmm6\n",
            "tdpbf16ps tmm3, tmm5, tmm7\n",
        )
    };
}

macro_rules! kernel {
    ($name:ident, $b_parts:literal, $terms:expr) => {
        /// # Safety
        ///
        /// As [`run`].
        unsafe fn $name(block: &PartsBlock) {
            // SAFETY: reads 32 rows of `a`, the chunks of `b` and, if they are continued, the sums, and writes 32 rows of
            // sums; all of them exist by the caller's word. Every register and tile that changes is named, and the block is
            // taken to read and write any memory.
            unsafe {
                asm!(
                    "test {accumulate}, {accumulate}",
                    "jz 2f",
                    "tileloadd tmm0, [{c} + {c_row}]",
                    "tileloadd tmm1, [{c} + {c_row} + 64]",
                    "tileloadd tmm2, [{c} + {c_row} + 2048]",
                    "tileloadd tmm3, [{c} + {c_row} + 2112]",
                    "jmp 3f",
                    "2:",
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    "3:",
                    "test {chunks}, {chunks}",
                    "jz 5f",
                    "4:",
                    $terms,
                    "add {a0}, 3072",
                    "add {a1}, 3072",
                    concat!("add {b}, 2048 * ", $b_parts),
                    "dec {chunks}",
                    "jnz 4b",
                    "5:",
                    "tilestored [{c} + {c_row}], tmm0",
                    "tilestored [{c} + {c_row} + 64], tmm1",
                    "tilestored [{c} + {c_row} + 2048], tmm2",
                    "tilestored [{c} + {c_row} + 2112], tmm3",
                    accumulate = in(reg) usize::from(block.accumulate),
                    chunks = inout(reg) block.chunks => _,
                    a0 = inout(reg) block.a[0] => _,
                    a1 = inout(reg) block.a[1] => _,
                    b = inout(reg) block.b => _,
                    row = in(reg) 64usize,
                    c = in(reg) block.c,
                    c_row = in(reg) PANEL * size_of::<f32>(),
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    };
}

/// The products of so many parts of `b`: of each, with those parts of `a` that are not too small together. Small ones first.
macro_rules! terms {
    (1) => {
        concat!(b_part!(0), a_part!(2), a_part!(1), a_part!(0))
    };
    (2) => {
        concat!(b_part!(1), a_part!(1), a_part!(0), terms!(1))
    };
    (3) => {
        concat!(b_part!(2), a_part!(0), terms!(2))
    };
}

kernel!(one_part, 1, terms!(1));
kernel!(two_parts, 2, terms!(2));
kernel!(three_parts, 3, terms!(3));

/// The three parts of sixteen values.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512vl,avx512bf16")]
fn parts_of(x: __m512) -> [__m256i; PARTS] {
    // SAFETY: both are 256 bits without an invalid pattern.
    let rounded =
        |x: __m512| unsafe { std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(x)) };
    let rest = |x: __m512, part: __m256i| {
        let part = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(part));
        let rest = _mm512_sub_ps(x, _mm512_castsi512_ps(part));
        // Where a part is infinite or no number, nothing is to be added.
        const NOT_FINITE: i32 = 0x99;
        let finite = _knot_mask16(_mm512_fpclass_ps_mask::<NOT_FINITE>(rest));
        _mm512_maskz_mov_ps(finite, rest)
    };
    let high = rounded(x);
    let x = rest(x, high);
    let middle = rounded(x);
    [high, middle, rounded(rest(x, middle))]
}

/// # Safety
///
/// As [`MicroParts::split_rows`]; needs AVX512_BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn split_rows(x: *const f32, stride: usize, rows: usize, columns: usize, out: *mut u16) {
    for (chunk, first) in (0..columns).step_by(CHUNK).enumerate() {
        for row in 0..rows {
            for half in 0..2 {
                let first = first + half * LANES;
                let n = columns.saturating_sub(first).min(LANES);
                let mask = ((1u32 << n) - 1) as __mmask16;
                // SAFETY: by the caller's word; the mask leaves out what does not exist.
                unsafe {
                    let x = _mm512_maskz_loadu_ps(mask, x.wrapping_add(row * stride + first));
                    let out = out.add(chunk * PARTS * TILE + row * CHUNK + half * LANES);
                    for (part, bits) in parts_of(x).into_iter().enumerate() {
                        _mm256_storeu_si256(out.add(part * TILE).cast(), bits);
                    }
                }
            }
        }
    }
}

/// Writes the chunks of a block of weights, whose rows `row` gives in vectors of sixteen columns.
///
/// # Safety
///
/// As [`MicroParts::split_f32`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn split_panel<const N: usize>(
    depth: usize,
    out: *mut u16,
    row: impl Fn(usize, usize) -> __m512,
) {
    for chunk in 0..depth.div_ceil(CHUNK) {
        for pair in 0..CHUNK / 2 {
            let k = chunk * CHUNK + 2 * pair;
            for half in 0..2 {
                let value = |k: usize| match k < depth {
                    true => row(k, half),
                    false => _mm512_setzero_ps(),
                };
                let (even, odd) = (parts_of(value(k)), parts_of(value(k + 1)));
                for part in 0..N {
                    let odd = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(odd[part]));
                    let both = _mm512_or_si512(_mm512_cvtepu16_epi32(even[part]), odd);
                    let at = (chunk * N + part) * 2 * TILE + half * TILE + pair * CHUNK;
                    // SAFETY: by the caller's word.
                    unsafe { _mm512_storeu_si512(out.add(at).cast(), both) };
                }
            }
        }
    }
}

/// How far ahead of their use weights are asked for, in rows of a panel.
const AHEAD: usize = 32;

/// # Safety
///
/// As [`MicroParts::split_f32`]; needs AVX512_BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn split_f32(panel: *const f32, depth: usize, out: *mut u16) {
    // SAFETY: by the caller's word. A prefetch reads nothing that could be seen.
    unsafe {
        split_panel::<3>(depth, out, |k, half| {
            let at = panel.add(k * PANEL + half * LANES);
            _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD * PANEL).cast());
            _mm512_loadu_ps(at)
        });
    }
}

/// # Safety
///
/// As [`MicroParts::split_f16`]; needs AVX512_BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn split_f16(panel: *const u16, depth: usize, out: *mut u16) {
    // SAFETY: by the caller's word. A prefetch reads nothing that could be seen.
    unsafe {
        split_panel::<2>(depth, out, |k, half| {
            let at = panel.add(k * PANEL + half * LANES);
            _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD * PANEL).cast());
            _mm512_cvtph_ps(_mm256_loadu_si256(at.cast()))
        });
    }
}
