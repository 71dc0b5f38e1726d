//! The product of bytes in AVX2.
//!
//! VPMADDUBSW saturates sums of two products at 16 bits, so bytes are widened and multiplied by
//! VPMADDWD, whose sums are exact in 32: of four adjacent `k` two sums, which stay apart until the
//! end. Four columns fill a vector; a pass over the depth takes 16 columns of up to three rows,
//! twelve sums.

use std::arch::x86_64::*;

use crate::micro::{PANEL, by_rows};
use crate::quantised::{CHUNK, INT8_CHUNK, Int8Block, LINE, MicroInt8, QUAD, nothing};

pub(crate) const MICRO: MicroInt8 = MicroInt8 {
    max_rows: 3,
    row_multiple: 1,
    fetches: false,
    offset: 0,
    run,
    enter: nothing,
    leave: nothing,
};

/// # Safety
///
/// As [`MicroInt8::run`]; needs AVX2.
#[target_feature(enable = "avx2")]
unsafe fn run(block: &Int8Block) {
    // SAFETY: by the caller's word.
    unsafe { by_rows!(rows, block, 1 2 3) }
}

#[inline]
#[target_feature(enable = "avx2")]
unsafe fn rows<const ROWS: usize>(block: &Int8Block) {
    for half in 0..2 {
        // SAFETY: rows and chunks are inside what the caller has allocated.
        unsafe {
            let mut sums = [[_mm256_setzero_si256(); 4]; ROWS];
            for chunk in 0..block.chunks {
                let a = block.a.add(chunk * CHUNK);
                let b = block.b.add(chunk * INT8_CHUNK + half * INT8_CHUNK / 2);
                for quad in 0..CHUNK / QUAD {
                    let line = b.add(quad * LINE);
                    let mut wide = [_mm256_setzero_si256(); ROWS];
                    for (row, wide) in wide.iter_mut().enumerate() {
                        let a = a.add(row * block.a_row + QUAD * quad).cast::<i32>();
                        let a = _mm_cvtepi8_epi16(_mm_cvtsi32_si128(a.read_unaligned()));
                        *wide = _mm256_broadcastq_epi64(a);
                    }
                    for four in 0..4 {
                        let codes = _mm_loadu_si128(line.add(four * 16).cast());
                        let codes = _mm256_cvtepi8_epi16(codes);
                        for (sums, wide) in sums.iter_mut().zip(wide) {
                            let products = _mm256_madd_epi16(codes, wide);
                            sums[four] = _mm256_add_epi32(sums[four], products);
                        }
                    }
                }
            }
            for (row, sums) in sums.iter().enumerate() {
                for two in 0..2 {
                    // Sums of columns 0, 1, 4, 5, 2, 3, 6, 7, put in order.
                    let sum = _mm256_hadd_epi32(sums[2 * two], sums[2 * two + 1]);
                    let sum = _mm256_permute4x64_epi64::<0b11_01_10_00>(sum);
                    let c = block.c.add(row * PANEL + half * PANEL / 2 + two * 8);
                    let sum = match block.accumulate {
                        true => _mm256_add_epi32(_mm256_loadu_si256(c.cast()), sum),
                        false => sum,
                    };
                    _mm256_storeu_si256(c.cast(), sum);
                }
            }
        }
    }
}

crate::quantised::instantiate!("avx2,fma,f16c");
