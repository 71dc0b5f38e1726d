//! Plain Rust that the compiler vectorises for the baseline of the target.

use crate::micro::{F32Block, MicroF32, PANEL, by_rows};

pub(crate) const MICRO_F32: MicroF32 = MicroF32 {
    narrow: None,
    max_rows: ROWS,
    run: run_f32,
};

/// Four rows by eight columns are eight vectors of SSE2 or NEON, half of the registers.
const ROWS: usize = 4;
const COLUMNS: usize = 8;

/// # Safety
///
/// As [`MicroF32::run`].
unsafe fn run_f32(block: &F32Block) {
    // SAFETY: by the caller's word.
    unsafe { by_rows!(rows, block, 1 2 3 4) }
}

#[inline]
unsafe fn rows<const ROWS: usize>(block: &F32Block) {
    for first in (0..PANEL).step_by(COLUMNS) {
        let mut sums = [[0.0f32; COLUMNS]; ROWS];
        for k in 0..block.depth {
            // SAFETY: rows and depth are inside what the caller has allocated.
            unsafe {
                let b = &*block.b.add(k * PANEL + first).cast::<[f32; COLUMNS]>();
                for (row, sums) in sums.iter_mut().enumerate() {
                    let value = *block.a.add(row * block.a_row + k);
                    for (sum, &b) in sums.iter_mut().zip(b) {
                        *sum += value * b;
                    }
                }
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            // SAFETY: as above; nobody else touches this part of `c`.
            unsafe {
                let c = &mut *block
                    .c
                    .add(row * block.c_row + first)
                    .cast::<[f32; COLUMNS]>();
                for (c, &sum) in c.iter_mut().zip(sums) {
                    *c = if block.accumulate { *c + sum } else { sum };
                }
            }
        }
    }
}

crate::rowwise::instantiate!(false);
crate::rows::instantiate!(crate::rows::Plain);

crate::quantised::instantiate!();
