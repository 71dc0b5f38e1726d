//! Products of f32 by tiles of bf16, in three parts of each value: see [`crate::parts`].
//!
//! Sums stay in tiles 0 to 3, for 32 rows and 32 columns; of a chunk, two tiles of a part of `b` stay in 6 and 7 while the
//! parts of `a` that meet it pass through 4 and 5. That is 18 loads for 24 products where `b` has three parts, and eight
//! for twelve where it has one.

use std::arch::asm;
use std::arch::x86_64::*;

use super::amx::{AHEAD, enter, leave};
use super::amx_fetch::{fetch_all, fetch_named, fetch_next};
use crate::math::LANES;
use crate::micro::{Again, CHUNK, PANEL};
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
        match (block.b_parts, block.again) {
            (1, Again::A | Again::B) => one_part(block),
            (1, Again::Memory) => one_part_from_memory(block),
            (1, Again::Next) => one_part_and_next(block),
            // Parts that were just made are near; what the next ones are made of need not be.
            (2, Again::Next) => two_parts_and_next(block),
            (2, _) => two_parts(block),
            (3, Again::Next) => three_parts_and_next(block),
            (3, _) => three_parts(block),
            (n, _) => unreachable!("weights in {n} parts"),
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
                    at = inout(reg) block.fetch.at => _,
                    step = in(reg) block.fetch.step / 2,
                    chunks = inout(reg) block.chunks => _,
                    a0 = inout(reg) block.a[0] => _,
                    a1 = inout(reg) block.a[1] => _,
                    b = inout(reg) block.b => _,
                    row = in(reg) 64usize,
                    ahead = const AHEAD,
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
    (1, $fetch:ident) => {
        concat!(
            b_part!(0),
            $fetch!(0, 0),
            a_part!(2),
            $fetch!(0, 1),
            a_part!(1),
            $fetch!(0, 2),
            a_part!(0),
            $fetch!(0, 3)
        )
    };
    (2, $fetch:ident) => {
        concat!(b_part!(1), a_part!(1), a_part!(0), terms!(1, $fetch))
    };
    (3, fetch_next) => {
        concat!(
            b_part!(2),
            fetch_next!(0, 0),
            a_part!(0),
            fetch_next!(0, 1),
            b_part!(1),
            a_part!(1),
            fetch_next!(0, 2),
            a_part!(0),
            fetch_next!(0, 3),
            terms!(1, fetch_next)
        )
    };
    (3, $fetch:ident) => {
        concat!(b_part!(2), a_part!(0), terms!(2, $fetch))
    };
}

kernel!(one_part, 1, terms!(1, fetch_named));
kernel!(one_part_from_memory, 1, terms!(1, fetch_all));
kernel!(one_part_and_next, 1, terms!(1, fetch_next));
kernel!(two_parts, 2, terms!(2, fetch_named));
kernel!(two_parts_and_next, 2, terms!(2, fetch_next));
kernel!(three_parts, 3, terms!(3, fetch_named));
// Values of f32 take twice as many lines as those of 16 bits.
kernel!(three_parts_and_next, 3, terms!(3, fetch_next));

/// The parts of sixteen values, each in the upper half of 32 bits. Of three, and of two of f16, the last one is all of the
/// rest, so that its lower half is zeros. Rounded as integers, halves away from zero: a third of the instructions of a
/// conversion and its way back. What is not finite, or rounds to infinity, leaves NaN.
#[inline]
#[target_feature(enable = "avx512f")]
fn parts_of<const N: usize>(x: __m512) -> [__m512i; N] {
    let half = _mm512_set1_epi32(0x8000);
    let upper = _mm512_set1_epi32(UPPER);
    let mut rest = x;
    let mut parts = [_mm512_setzero_si512(); N];
    for part in &mut parts[..N - 1] {
        let bits = _mm512_add_epi32(_mm512_castps_si512(rest), half);
        *part = _mm512_and_si512(bits, upper);
        rest = _mm512_sub_ps(rest, _mm512_castsi512_ps(*part));
    }
    parts[N - 1] = _mm512_castps_si512(rest);
    parts
}

/// The upper half of 32 bits.
const UPPER: i32 = 0xffff_0000_u32 as i32;

/// # Safety
///
/// As [`MicroParts::split_rows`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn split_rows(x: *const f32, stride: usize, rows: usize, columns: usize, out: *mut u16) {
    // The upper halves of sixteen lanes, then of another sixteen.
    let mut order = [0u16; CHUNK];
    for (i, order) in order.iter_mut().enumerate() {
        *order = 2 * i as u16 + 1;
    }
    // SAFETY: so many values are there.
    let order = unsafe { _mm512_loadu_si512(order.as_ptr().cast()) };
    for (chunk, first) in (0..columns).step_by(CHUNK).enumerate() {
        for row in 0..rows {
            let half = |half: usize| {
                let first = first + half * LANES;
                let n = columns.saturating_sub(first).min(LANES);
                let mask = ((1u32 << n) - 1) as __mmask16;
                // SAFETY: by the caller's word; the mask leaves out what does not exist.
                unsafe { _mm512_maskz_loadu_ps(mask, x.wrapping_add(row * stride + first)) }
            };
            let (a, b) = (parts_of::<PARTS>(half(0)), parts_of::<PARTS>(half(1)));
            for part in 0..PARTS {
                let bits = _mm512_permutex2var_epi16(a[part], order, b[part]);
                let at = (chunk * PARTS + part) * TILE + row * CHUNK;
                // SAFETY: by the caller's word.
                unsafe { _mm512_storeu_si512(out.add(at).cast(), bits) };
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
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn split_panel<const N: usize>(
    depth: usize,
    out: *mut u16,
    row: impl Fn(usize, usize) -> __m512,
) {
    let upper = _mm512_set1_epi32(UPPER);
    for chunk in 0..depth.div_ceil(CHUNK) {
        for pair in 0..CHUNK / 2 {
            let k = chunk * CHUNK + 2 * pair;
            for half in 0..2 {
                let value = |k: usize| match k < depth {
                    true => row(k, half),
                    false => _mm512_setzero_ps(),
                };
                let (even, odd) = (parts_of::<N>(value(k)), parts_of::<N>(value(k + 1)));
                for part in 0..N {
                    let even = _mm512_srli_epi32::<16>(even[part]);
                    // `(odd & upper) | even`.
                    let both = _mm512_ternarylogic_epi32::<0xec>(odd[part], even, upper);
                    let at = (chunk * N + part) * 2 * TILE + half * TILE + pair * CHUNK;
                    // SAFETY: by the caller's word.
                    unsafe { _mm512_storeu_si512(out.add(at).cast(), both) };
                }
            }
        }
    }
}

/// How far ahead of their use weights are asked for, in rows of a panel: into the second-level cache half a block, so that of the
/// next one the first half is on its way when this one is multiplied, and from there into the first.
const FAR: usize = 64;
const NEAR: usize = 16;

/// Asks for what is read soon; what is not there does no harm.
#[inline(always)]
fn ahead<T>(at: *const T) {
    // SAFETY: a prefetch reads nothing that could be seen.
    unsafe {
        _mm_prefetch::<_MM_HINT_T1>(at.wrapping_add(FAR * PANEL).cast());
        _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(NEAR * PANEL).cast());
    }
}

/// # Safety
///
/// As [`MicroParts::split_f32`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn split_f32(panel: *const f32, depth: usize, out: *mut u16) {
    // SAFETY: by the caller's word.
    unsafe {
        split_panel::<3>(depth, out, |k, half| {
            let at = panel.add(k * PANEL + half * LANES);
            ahead(at);
            _mm512_loadu_ps(at)
        });
    }
}

/// # Safety
///
/// As [`MicroParts::split_f16`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn split_f16(panel: *const u16, depth: usize, out: *mut u16) {
    // SAFETY: by the caller's word.
    unsafe {
        split_panel::<2>(depth, out, |k, half| {
            let at = panel.add(k * PANEL + half * LANES);
            ahead(at);
            _mm512_cvtph_ps(_mm256_loadu_si256(at.cast()))
        });
    }
}
