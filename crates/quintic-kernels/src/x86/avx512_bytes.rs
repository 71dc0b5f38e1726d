//! Products of bytes in AVX-512, by VNNI's dot product.
//!
//! VPDPBUSD multiplies bytes without a sign by bytes with one, and only the latter may come from
//! memory and be broadcast. So the weights are those without: 128 is added to each by flipping a bit,
//! once for all rows, and the row's sum of codes times 128 is taken off in the end
//! ([`MicroInt8::offset`]).
//!
//! # Registers
//!
//! Fourteen rows by 32 columns are 28 sums; with two vectors of weights, the bit to flip and a quad
//! of a row, that is all 32 registers. A compiler that has to fit it finds no such order: it moves sums
//! about in every round and computes each row's address from the one before. So this one shape is
//! written out. Of the 30 instructions of a quad that the two multiplying ports take 28 multiply:
//! 93 % of the peak are left.

use std::arch::asm;
use std::arch::x86_64::*;
use std::sync::atomic::{Ordering, compiler_fence};

use super::avx512_int8::ahead;
use crate::micro::{PANEL, by_rows};
use crate::quantised::{CHUNK, INT8_CHUNK, Int8Block, LINE, MicroInt8, QUAD, nothing};

pub(crate) const MICRO_VNNI: MicroInt8 = MicroInt8 {
    max_rows: MOST_ROWS,
    row_multiple: 1,
    fetches: false,
    offset: 128,
    run,
    enter: nothing,
    leave: nothing,
};

/// Rows of the shape that is written out.
const MOST_ROWS: usize = 14;

/// Columns of half a panel: lanes of a vector.
const HALF: usize = PANEL / 2;

/// # Safety
///
/// As [`MicroInt8::run`]; needs AVX512_VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
unsafe fn run(block: &Int8Block) {
    // SAFETY: by the caller's word.
    unsafe {
        match block.rows {
            MOST_ROWS => fourteen_rows(block),
            _ => by_rows!(few_rows, block, 1 2 3 4 5 6 7 8 9 10 11 12 13),
        }
    }
}

/// One half of a chunk's columns.
macro_rules! half {
    ($sums:ident, $half:literal, $a:ident, $b:expr, $block:ident) => {
        for quad in 0..CHUNK / QUAD {
            ahead($b.add(quad * LINE).cast());
            let codes = _mm512_loadu_si512($b.add(quad * LINE).cast());
            let codes = _mm512_xor_si512(codes, _mm512_set1_epi8(i8::MIN));
            for (row, sums) in $sums.iter_mut().enumerate() {
                let a = $a.add(row * $block.a_row + QUAD * quad).cast::<i32>();
                let a = _mm512_set1_epi32(a.read_unaligned());
                sums[$half] = _mm512_dpbusd_epi32(sums[$half], codes, a);
            }
        }
    };
}

/// Weights are read in the order in which they stand.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
unsafe fn few_rows<const ROWS: usize>(block: &Int8Block) {
    // SAFETY: rows and chunks are inside what the caller has allocated.
    unsafe {
        let mut sums = [[_mm512_setzero_si512(); 2]; ROWS];
        let (mut a, mut b) = (block.a, block.b);
        for _ in 0..block.chunks {
            half!(sums, 0, a, b, block);
            // Else the compiler mixes both halves, to load the quads of `a` once.
            compiler_fence(Ordering::SeqCst);
            half!(sums, 1, a, b.add(INT8_CHUNK / 2), block);
            a = a.add(CHUNK);
            b = b.add(INT8_CHUNK);
        }
        write(&sums, block);
    }
}

/// Writes sums to `c` or adds them.
///
/// # Safety
///
/// `c` has so many rows.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn write<const ROWS: usize>(sums: &[[__m512i; 2]; ROWS], block: &Int8Block) {
    for (row, sums) in sums.iter().enumerate() {
        for (half, &sum) in sums.iter().enumerate() {
            // SAFETY: by the caller's word.
            unsafe {
                let c = block.c.add(row * PANEL + half * HALF);
                let sum = match block.accumulate {
                    true => _mm512_add_epi32(_mm512_loadu_si512(c.cast()), sum),
                    false => sum,
                };
                _mm512_storeu_si512(c.cast(), sum);
            }
        }
    }
}

/// One row of a quad: its four bytes times those of both halves.
macro_rules! row {
    ($at:literal, $quad:literal, $first:literal, $second:literal) => {
        concat!(
            "vpbroadcastd zmm30, dword ptr [",
            $at,
            " + 4 * ",
            $quad,
            "]\n",
            "vpdpbusd zmm",
            $first,
            ", zmm28, zmm30\n",
            "vpdpbusd zmm",
            $second,
            ", zmm29, zmm30\n",
        )
    };
}

/// A quad of fourteen rows. Five of them are pointed to; the others lie one, two, four or eight rows
/// behind one of these.
macro_rules! quad {
    ($quad:literal) => {
        concat!(
            "vpxord zmm28, zmm31, zmmword ptr [{b} + 64 * ",
            $quad,
            "]\n",
            "vpxord zmm29, zmm31, zmmword ptr [{b} + 64 * ",
            $quad,
            " + 1024]\n",
            row!("{r0}", $quad, 0, 1),
            row!("{r0} + {row}", $quad, 2, 3),
            row!("{r0} + 2 * {row}", $quad, 4, 5),
            row!("{r3}", $quad, 6, 7),
            row!("{r0} + 4 * {row}", $quad, 8, 9),
            row!("{r3} + 2 * {row}", $quad, 10, 11),
            row!("{r6}", $quad, 12, 13),
            row!("{r3} + 4 * {row}", $quad, 14, 15),
            row!("{r0} + 8 * {row}", $quad, 16, 17),
            row!("{r9}", $quad, 18, 19),
            row!("{r6} + 4 * {row}", $quad, 20, 21),
            row!("{r3} + 8 * {row}", $quad, 22, 23),
            row!("{r12}", $quad, 24, 25),
            row!("{r12} + {row}", $quad, 26, 27),
        )
    };
}

/// # Safety
///
/// As [`run`], of a block of [`MOST_ROWS`] rows.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
unsafe fn fourteen_rows(block: &Int8Block) {
    const { assert!(CHUNK == 64 && INT8_CHUNK == 2048 && LINE == 64 && QUAD == 4) };
    let zero = _mm512_setzero_si512();
    let mut sums = [[zero; 2]; MOST_ROWS];
    if block.chunks > 0 {
        let [s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, s10, s11, s12, s13] = &mut sums;
        // SAFETY: reads `chunks` chunks of `b`, and as many from each of the fourteen rows of `a`, which
        // exist by the caller's word; writes registers that are named alone.
        unsafe {
            let row = |row: usize| block.a.add(row * block.a_row);
            asm!(
                "2:",
                quad!(0), quad!(1), quad!(2), quad!(3), quad!(4), quad!(5), quad!(6), quad!(7),
                quad!(8), quad!(9), quad!(10), quad!(11), quad!(12), quad!(13), quad!(14), quad!(15),
                "add {r0}, 64",
                "add {r3}, 64",
                "add {r6}, 64",
                "add {r9}, 64",
                "add {r12}, 64",
                "add {b}, 2048",
                "dec {chunks}",
                "jnz 2b",
                r0 = inout(reg) row(0) => _,
                r3 = inout(reg) row(3) => _,
                r6 = inout(reg) row(6) => _,
                r9 = inout(reg) row(9) => _,
                r12 = inout(reg) row(12) => _,
                row = in(reg) block.a_row,
                b = inout(reg) block.b => _,
                chunks = inout(reg) block.chunks => _,
                inout("zmm0") zero => s0[0], inout("zmm1") zero => s0[1],
                inout("zmm2") zero => s1[0], inout("zmm3") zero => s1[1],
                inout("zmm4") zero => s2[0], inout("zmm5") zero => s2[1],
                inout("zmm6") zero => s3[0], inout("zmm7") zero => s3[1],
                inout("zmm8") zero => s4[0], inout("zmm9") zero => s4[1],
                inout("zmm10") zero => s5[0], inout("zmm11") zero => s5[1],
                inout("zmm12") zero => s6[0], inout("zmm13") zero => s6[1],
                inout("zmm14") zero => s7[0], inout("zmm15") zero => s7[1],
                inout("zmm16") zero => s8[0], inout("zmm17") zero => s8[1],
                inout("zmm18") zero => s9[0], inout("zmm19") zero => s9[1],
                inout("zmm20") zero => s10[0], inout("zmm21") zero => s10[1],
                inout("zmm22") zero => s11[0], inout("zmm23") zero => s11[1],
                inout("zmm24") zero => s12[0], inout("zmm25") zero => s12[1],
                inout("zmm26") zero => s13[0], inout("zmm27") zero => s13[1],
                out("zmm28") _, out("zmm29") _, out("zmm30") _,
                in("zmm31") _mm512_set1_epi8(i8::MIN),
                options(readonly, nostack),
            );
        }
    }
    // SAFETY: `c` has so many rows by the caller's word.
    unsafe { write(&sums, block) };
}
