//! The f32 product in AVX2 with FMA.
//!
//! Six rows by two vectors of columns are 12 sums, which with two vectors of `b` and one
//! broadcast of `a` fit into 16 registers; a panel is passed over twice, 16 columns at a time.
//!
//! Few rows widen weights of 16 bits in registers, of which that takes two: so five rows.

use std::arch::x86_64::*;

use crate::micro::{CHUNK, F32Block, MicroF32, NarrowF32, PANEL, by_rows};

pub(crate) const MICRO_F32: MicroF32 = MicroF32 {
    narrow: Some(NarrowF32 {
        max_rows: 5,
        worth_rows: 64,
        bf16: run_f32_over_bf16,
        f16: run_f32_over_f16,
    }),
    max_rows: 6,
    run: run_f32,
};

/// How far ahead few rows ask for weights, in values of 16 bits: 4 KiB. The hardware's own prefetching stops
/// at every page.
const AHEAD: usize = 2048;

/// Writes the sums of half a panel's columns to `c` or adds them. A macro: passed to a function, the sums
/// would leave their registers.
macro_rules! write {
    ($sums:ident, $block:ident, $half:ident) => {
        for (row, sums) in $sums.iter().enumerate() {
            for (quarter, &sum) in sums.iter().enumerate() {
                let c = $block.c.add(row * $block.c_row + $half * 16 + quarter * 8);
                let sum = if $block.accumulate {
                    _mm256_add_ps(_mm256_loadu_ps(c), sum)
                } else {
                    sum
                };
                _mm256_storeu_ps(c, sum);
            }
        }
    };
}

/// # Safety
///
/// As [`MicroF32::run`]; needs AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
unsafe fn run_f32(block: &F32Block) {
    // SAFETY: by the caller's word.
    unsafe { by_rows!(rows, block, 1 2 3 4 5 6) }
}

#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn rows<const ROWS: usize>(block: &F32Block) {
    for half in 0..2 {
        // SAFETY: rows and depth are inside what the caller has allocated.
        unsafe {
            let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
            let (mut a, mut b) = (block.a, block.b.add(half * 16));
            let mut ahead = block.fetch.at;
            for _ in 0..block.depth {
                if half == 0 {
                    _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
                    _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(64).cast());
                    ahead = ahead.wrapping_add(block.fetch.step);
                }
                let columns = [_mm256_loadu_ps(b), _mm256_loadu_ps(b.add(8))];
                for (row, sums) in sums.iter_mut().enumerate() {
                    let value = _mm256_set1_ps(*a.add(row * block.a_row));
                    sums[0] = _mm256_fmadd_ps(value, columns[0], sums[0]);
                    sums[1] = _mm256_fmadd_ps(value, columns[1], sums[1]);
                }
                a = a.add(1);
                b = b.add(PANEL);
            }
            write!(sums, block, half);
        }
    }
}

/// # Safety
///
/// As [`NarrowF32::bf16`]; needs AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
unsafe fn run_f32_over_bf16(block: &F32Block<u16>) {
    // SAFETY: by the caller's word.
    unsafe { by_rows!(rows_over_bf16, block, 1 2 3 4 5) }
}

/// # Safety
///
/// As [`NarrowF32::f16`]; needs AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn run_f32_over_f16(block: &F32Block<u16>) {
    // SAFETY: by the caller's word.
    unsafe { by_rows!(rows_over_f16, block, 1 2 3 4 5) }
}

/// Chunk by chunk, first one half of its columns, then the other, so that weights are read in the order in
/// which they stand. Sums of the half that is not being computed wait in memory: there are registers for one.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn rows_over_bf16<const ROWS: usize>(block: &F32Block<u16>) {
    debug_assert_eq!(block.depth % CHUNK, 0, "chunks of bf16");
    // SAFETY: rows and depth are inside what the caller has allocated.
    unsafe {
        let mut kept = [[[_mm256_setzero_ps(); 2]; ROWS]; 2];
        let (mut a, mut b) = (block.a, block.b);
        for _ in 0..block.depth / CHUNK {
            for kept in &mut kept {
                let mut sums = *kept;
                for pair in 0..CHUNK / 2 {
                    _mm_prefetch::<_MM_HINT_T0>(b.wrapping_add(AHEAD).cast());
                    let pairs = [
                        _mm256_loadu_si256(b.cast()),
                        _mm256_loadu_si256(b.add(16).cast()),
                    ];
                    // First the even `k` of a pair, then the odd one.
                    let even = pairs.map(|pairs| _mm256_slli_epi32::<16>(pairs));
                    let high = _mm256_set1_epi32(0xffff_0000_u32 as i32);
                    let odd = pairs.map(|pairs| _mm256_and_si256(pairs, high));
                    for (k, columns) in [even, odd].into_iter().enumerate() {
                        let columns = columns.map(|columns| _mm256_castsi256_ps(columns));
                        for (row, sums) in sums.iter_mut().enumerate() {
                            let value = *a.add(row * block.a_row + 2 * pair + k);
                            let value = _mm256_set1_ps(value);
                            sums[0] = _mm256_fmadd_ps(value, columns[0], sums[0]);
                            sums[1] = _mm256_fmadd_ps(value, columns[1], sums[1]);
                        }
                    }
                    b = b.add(32);
                }
                *kept = sums;
            }
            a = a.add(CHUNK);
        }
        for (half, sums) in kept.iter().enumerate() {
            write!(sums, block, half);
        }
    }
}

/// Sixteen columns, then the others: their lines are in the nearest cache by then.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn rows_over_f16<const ROWS: usize>(block: &F32Block<u16>) {
    for half in 0..2 {
        // SAFETY: rows and depth are inside what the caller has allocated.
        unsafe {
            let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
            let (mut a, mut b) = (block.a, block.b.add(half * 16));
            for _ in 0..block.depth {
                if half == 0 {
                    _mm_prefetch::<_MM_HINT_T0>(b.wrapping_add(AHEAD).cast());
                }
                let columns = [
                    _mm256_cvtph_ps(_mm_loadu_si128(b.cast())),
                    _mm256_cvtph_ps(_mm_loadu_si128(b.add(8).cast())),
                ];
                for (row, sums) in sums.iter_mut().enumerate() {
                    let value = _mm256_set1_ps(*a.add(row * block.a_row));
                    sums[0] = _mm256_fmadd_ps(value, columns[0], sums[0]);
                    sums[1] = _mm256_fmadd_ps(value, columns[1], sums[1]);
                }
                a = a.add(1);
                b = b.add(PANEL);
            }
            write!(sums, block, half);
        }
    }
}

crate::rowwise::instantiate!("avx2,fma,f16c", true);
crate::rows::instantiate!("avx2,fma,f16c", crate::x86::rows::Avx2);
