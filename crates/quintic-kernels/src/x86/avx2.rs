//! The f32 product in AVX2 with FMA.
//!
//! Six rows by two vectors of columns are 12 sums, which with two vectors of `b` and one
//! broadcast of `a` fit into 16 registers; a panel is passed over twice, 16 columns at a time.

use std::arch::x86_64::*;

use crate::micro::{F32Block, MicroF32, PANEL};

pub(crate) const MICRO_F32: MicroF32 = MicroF32 {
    narrow: None,
    max_rows: 6,
    run: run_f32,
};

/// # Safety
///
/// As [`MicroF32::run`]; needs AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
unsafe fn run_f32(block: &F32Block) {
    // SAFETY: by the caller's word.
    unsafe {
        match block.rows {
            1 => rows::<1>(block),
            2 => rows::<2>(block),
            3 => rows::<3>(block),
            4 => rows::<4>(block),
            5 => rows::<5>(block),
            6 => rows::<6>(block),
            n => unreachable!("a block of {n} rows"),
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn rows<const ROWS: usize>(block: &F32Block) {
    for half in 0..2 {
        // SAFETY: rows and depth are inside what the caller has allocated.
        unsafe {
            let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
            let (mut a, mut b) = (block.a, block.b.add(half * 16));
            for _ in 0..block.depth {
                let columns = [_mm256_loadu_ps(b), _mm256_loadu_ps(b.add(8))];
                for (row, sums) in sums.iter_mut().enumerate() {
                    let value = _mm256_set1_ps(*a.add(row * block.a_row));
                    sums[0] = _mm256_fmadd_ps(value, columns[0], sums[0]);
                    sums[1] = _mm256_fmadd_ps(value, columns[1], sums[1]);
                }
                a = a.add(1);
                b = b.add(PANEL);
            }
            for (row, sums) in sums.iter().enumerate() {
                for (quarter, &sum) in sums.iter().enumerate() {
                    let c = block.c.add(row * block.c_row + half * 16 + quarter * 8);
                    let sum = if block.accumulate {
                        _mm256_add_ps(_mm256_loadu_ps(c), sum)
                    } else {
                        sum
                    };
                    _mm256_storeu_ps(c, sum);
                }
            }
        }
    }
}

crate::rowwise::instantiate!("avx2,fma,f16c", true);
crate::rows::instantiate!("avx2,fma,f16c", crate::x86::rows::Avx2);
