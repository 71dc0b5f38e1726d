//! Products in AVX-512: f32 by fused multiply-add, bf16 by AVX512_BF16's dot product.
//!
//! Fourteen rows by two vectors of columns are 28 sums, which with two vectors of `b` and one
//! broadcast of `a` fill the 32 registers. More sums than the multiply-add's latency times its
//! throughput (8 to 10) are needed to keep the unit busy; the rest of them saves loads.

use std::arch::x86_64::*;
use std::sync::atomic::{Ordering, compiler_fence};

use crate::micro::{Bf16Block, CHUNK, F32Block, MicroBf16, MicroF32, NarrowF32, PANEL, by_rows};

pub(crate) const MICRO_F32: MicroF32 = MicroF32 {
    max_rows: 14,
    run: run_f32,
    narrow: Some(NarrowF32 {
        max_rows: IN_ORDER,
        worth_rows: 128,
        bf16: run_f32_over_bf16::<true>,
        f16: run_f32_over_f16::<true>,
    }),
};

/// The same for cores whose own prefetcher is enough, as Zen 4's: asking it for more made one row a tenth slower.
pub(crate) const MICRO_F32_UNFETCHED: MicroF32 = MicroF32 {
    narrow: Some(NarrowF32 {
        max_rows: IN_ORDER,
        worth_rows: 2 * IN_ORDER,
        bf16: run_f32_over_bf16::<false>,
        f16: run_f32_over_f16::<false>,
    }),
    ..MICRO_F32
};

pub(crate) const MICRO_BF16: MicroBf16 = MicroBf16 {
    max_rows: 14,
    row_multiple: 1,
    fetches: false,
    near_bytes: 0,
    run: run_bf16,
    enter: nothing,
    leave: nothing,
};

/// How many bytes ahead of their use weights are asked for. With few rows they come from
/// memory at the rate at which they are multiplied, and the hardware's own prefetching stops
/// at every page.
const AHEAD: usize = 2048;

/// How far ahead few rows of f32 fetch weights of bf16, in values: 8 KiB into the second-level cache,
/// which has many times the first-level cache's room for lines on their way, and the last KiB into
/// the first-level cache.
const FAR: usize = 4096;
const NEAR: usize = 512;

/// With so few rows weights of bf16 are read in the order in which they stand, which memory serves up
/// to twice as fast as reading columns 0 to 15 and 16 to 31 in turns, 1 KiB apart. Whole blocks of
/// rows, of which there are many, read both halves at once and load the values of `a` once for both:
/// their weights come from the nearest caches.
const IN_ORDER: usize = 13;

/// From so many rows of f32 on, loading a value of `a` for each half of the columns costs more than
/// reading weights out of order, if they were fetched in order: 8 rows gain an eighth, 12 a quarter.
const MANY: usize = 8;

/// How far ahead they are fetched then, in values of bf16: 4 KiB. Relative to where is read: 13 rows leave no
/// register for another address, without which they take twice the time.
const AHEAD_BOTH: usize = 2048;

/// There is no state to set up.
///
/// # Safety
///
/// None.
unsafe fn nothing() {}

/// Writes sums to `c` or adds them. A macro: passed to a function, the sums would leave their
/// registers.
macro_rules! write {
    ($sums:ident, $block:ident) => {
        for (row, sums) in $sums.iter().enumerate() {
            let c = $block.c.add(row * $block.c_row);
            let halves = if $block.accumulate {
                [
                    _mm512_add_ps(_mm512_loadu_ps(c), sums[0]),
                    _mm512_add_ps(_mm512_loadu_ps(c.add(16)), sums[1]),
                ]
            } else {
                *sums
            };
            _mm512_storeu_ps(c, halves[0]);
            _mm512_storeu_ps(c.add(16), halves[1]);
        }
    };
}

/// One half of a chunk's columns.
macro_rules! in_order {
    ($sums:ident, $half:literal, $chunk:ident, $b:expr, $block:ident) => {
        for pair in 0..16 {
            let columns = as_bf16(_mm512_loadu_si512($b.add(pair * 32).cast()));
            for (row, sums) in $sums.iter_mut().enumerate() {
                let a = $chunk.add(row * $block.a_row + 2 * pair).cast::<i32>();
                let a = as_bf16(_mm512_set1_epi32(a.read_unaligned()));
                sums[$half] = _mm512_dpbf16_ps(sums[$half], columns, a);
            }
        }
    };
}

/// # Safety
///
/// As [`MicroF32::run`]; needs AVX-512 F.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn run_f32(block: &F32Block) {
    // SAFETY: by the caller's word.
    unsafe { by_rows!(f32_rows, block, 1 2 3 4 5 6 7 8 9 10 11 12 13 14) }
}

/// # Safety
///
/// As [`NarrowF32::bf16`]; needs AVX-512 F.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn run_f32_over_bf16<const FETCHES: bool>(block: &F32Block<u16>) {
    // SAFETY: by the caller's word.
    unsafe { by_rows!(f32_rows_over_bf16 FETCHES, block, 1 2 3 4 5 6 7 8 9 10 11 12 13) }
}

/// # Safety
///
/// As [`NarrowF32::f16`]; needs AVX-512 F.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn run_f32_over_f16<const FETCHES: bool>(block: &F32Block<u16>) {
    // SAFETY: by the caller's word.
    unsafe { by_rows!(f32_rows_over_f16 FETCHES, block, 1 2 3 4 5 6 7 8 9 10 11 12 13) }
}

/// # Safety
///
/// As [`MicroBf16::run`]; needs AVX512_BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn run_bf16(block: &Bf16Block) {
    // SAFETY: by the caller's word.
    unsafe { by_rows!(bf16_rows, block, 1 2 3 4 5 6 7 8 9 10 11 12 13 14) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn f32_rows<const ROWS: usize>(block: &F32Block) {
    // SAFETY: rows and depth are inside what the caller has allocated.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
        let (mut a, mut b) = (block.a, block.b);
        let mut ahead = block.fetch.at;
        for _ in 0..block.depth {
            _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
            _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(64).cast());
            ahead = ahead.wrapping_add(block.fetch.step);
            let columns = [_mm512_loadu_ps(b), _mm512_loadu_ps(b.add(16))];
            for (row, sums) in sums.iter_mut().enumerate() {
                let value = _mm512_set1_ps(*a.add(row * block.a_row));
                sums[0] = _mm512_fmadd_ps(value, columns[0], sums[0]);
                sums[1] = _mm512_fmadd_ps(value, columns[1], sums[1]);
            }
            a = a.add(1);
            b = b.add(PANEL);
        }
        write!(sums, block);
    }
}

/// Asks for the line that comes [`FAR`] after `b`, and again for the one that comes [`NEAR`] after it.
#[inline]
#[target_feature(enable = "avx512f")]
fn fetch(b: *const u16) {
    _mm_prefetch::<_MM_HINT_T1>(b.wrapping_add(FAR).cast());
    _mm_prefetch::<_MM_HINT_T0>(b.wrapping_add(NEAR).cast());
}

/// One half of a chunk's columns: first the even `k` of a pair, then the odd one.
macro_rules! in_order_f32 {
    ($sums:ident, $half:literal, $a:ident, $b:expr, $block:ident) => {
        for pair in 0..CHUNK / 2 {
            if FETCHES {
                fetch($b.add(pair * 32));
            }
            let pairs = _mm512_loadu_si512($b.add(pair * 32).cast());
            let even = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs));
            let odd = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000_u32 as i32));
            let odd = _mm512_castsi512_ps(odd);
            for (row, sums) in $sums.iter_mut().enumerate() {
                let a = $a.add(row * $block.a_row + 2 * pair);
                sums[$half] = _mm512_fmadd_ps(even, _mm512_set1_ps(*a), sums[$half]);
                sums[$half] = _mm512_fmadd_ps(odd, _mm512_set1_ps(*a.add(1)), sums[$half]);
            }
        }
    };
}

/// Both halves of a chunk's columns: a value of `a` is loaded once for two sums. Fetched in the order in
/// which weights stand, whatever the order of reading.
macro_rules! both_halves_f32 {
    ($sums:ident, $a:ident, $b:expr, $block:ident) => {
        for pair in 0..CHUNK / 2 {
            let ahead = $b.wrapping_add(2 * pair * 32 + AHEAD_BOTH);
            _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
            _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(32).cast());
            let pairs = [
                _mm512_loadu_si512($b.add(pair * 32).cast()),
                _mm512_loadu_si512($b.add(pair * 32 + 512).cast()),
            ];
            let even = pairs.map(|pairs| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)));
            for (row, sums) in $sums.iter_mut().enumerate() {
                let a = _mm512_set1_ps(*$a.add(row * $block.a_row + 2 * pair));
                sums[0] = _mm512_fmadd_ps(even[0], a, sums[0]);
                sums[1] = _mm512_fmadd_ps(even[1], a, sums[1]);
            }
            let high = _mm512_set1_epi32(0xffff_0000_u32 as i32);
            let odd = pairs.map(|pairs| _mm512_castsi512_ps(_mm512_and_si512(pairs, high)));
            for (row, sums) in $sums.iter_mut().enumerate() {
                let a = _mm512_set1_ps(*$a.add(row * $block.a_row + 2 * pair + 1));
                sums[0] = _mm512_fmadd_ps(odd[0], a, sums[0]);
                sums[1] = _mm512_fmadd_ps(odd[1], a, sums[1]);
            }
        }
    };
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn f32_rows_over_bf16<const ROWS: usize, const FETCHES: bool>(block: &F32Block<u16>) {
    debug_assert_eq!(block.depth % CHUNK, 0, "chunks of bf16");
    // SAFETY: rows and depth are inside what the caller has allocated.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
        let (mut a, mut b) = (block.a, block.b);
        for _ in 0..block.depth / CHUNK {
            if FETCHES && ROWS >= MANY {
                both_halves_f32!(sums, a, b, block);
            } else {
                in_order_f32!(sums, 0, a, b, block);
                compiler_fence(Ordering::SeqCst);
                in_order_f32!(sums, 1, a, b.add(512), block);
            }
            a = a.add(CHUNK);
            b = b.add(1024);
        }
        write!(sums, block);
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn f32_rows_over_f16<const ROWS: usize, const FETCHES: bool>(block: &F32Block<u16>) {
    // SAFETY: rows and depth are inside what the caller has allocated.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
        let (mut a, mut b) = (block.a, block.b);
        for _ in 0..block.depth {
            if FETCHES {
                fetch(b);
            }
            let half = |at: *const u16| _mm512_cvtph_ps(_mm256_loadu_si256(at.cast()));
            let columns = [half(b), half(b.add(16))];
            for (row, sums) in sums.iter_mut().enumerate() {
                let value = _mm512_set1_ps(*a.add(row * block.a_row));
                sums[0] = _mm512_fmadd_ps(value, columns[0], sums[0]);
                sums[1] = _mm512_fmadd_ps(value, columns[1], sums[1]);
            }
            a = a.add(1);
            b = b.add(PANEL);
        }
        write!(sums, block);
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn bf16_rows<const ROWS: usize>(block: &Bf16Block) {
    debug_assert_eq!(block.a_group, 16 * block.a_row, "rows are not in tiles");
    // SAFETY: rows and chunks are inside what the caller has allocated.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
        let (mut chunk, mut b) = (block.a, block.b);
        for _ in 0..block.chunks {
            if ROWS <= IN_ORDER {
                // Each sum takes its terms in the order of `k` here as below. Not a loop over the
                // halves: sums at an index that varies would live in memory. The value of `a` comes
                // last, so that it is loaded by the instruction that multiplies.
                in_order!(sums, 0, chunk, b, block);
                // Else the compiler mixes both halves, to load the pairs of `a` once.
                compiler_fence(Ordering::SeqCst);
                in_order!(sums, 1, chunk, b.add(512), block);
                chunk = chunk.add(block.a_chunk);
                b = b.add(1024);
                continue;
            }
            // Pairs of `k` are adjacent in `a`, and side by side in `b`.
            let mut a = chunk;
            for pair in 0..16 {
                let ahead = b.wrapping_add(AHEAD / 2 + pair * 64);
                _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
                _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(32).cast());
                let columns = [
                    as_bf16(_mm512_loadu_si512(b.add(pair * 32).cast())),
                    as_bf16(_mm512_loadu_si512(b.add(pair * 32 + 512).cast())),
                ];
                for (row, sums) in sums.iter_mut().enumerate() {
                    let pair = a.add(row * block.a_row).cast::<i32>().read_unaligned();
                    let pair = as_bf16(_mm512_set1_epi32(pair));
                    sums[0] = _mm512_dpbf16_ps(sums[0], pair, columns[0]);
                    sums[1] = _mm512_dpbf16_ps(sums[1], pair, columns[1]);
                }
                a = a.add(2);
            }
            chunk = chunk.add(block.a_chunk);
            b = b.add(1024);
        }
        write!(sums, block);
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn as_bf16(bits: __m512i) -> __m512bh {
    // SAFETY: both are 512 bits without an invalid pattern.
    unsafe { std::mem::transmute(bits) }
}

crate::rowwise::instantiate!("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c", true);
crate::rows::instantiate!(
    "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c",
    crate::x86::rows::Avx512
);
