//! Products in two parts of bf16 by tiles: see [`SplitBlock`].
//!
//! Sums of 32 rows and 32 columns stay in tiles 0 to 3 while all products of a chunk's parts are added, and what is loaded
//! serves two of them: six loads for the eight products with weights in one part, eight for twelve with two. Up to 16 rows
//! are one tile by two.

use std::arch::asm;

use super::amx::{AHEAD, TILE_ROWS};
use super::amx_fetch::{fetch_all, fetch_named, fetch_next};
use crate::micro::{Again, MicroSplit, SplitBlock};

pub(crate) const MICRO: MicroSplit = MicroSplit {
    max_rows: 2 * TILE_ROWS,
    run,
};

/// # Safety
///
/// As [`MicroSplit::run`]; AMX-TILE and AMX-BF16 are available, and this thread's tiles are configured.
unsafe fn run(block: &SplitBlock) {
    debug_assert!((1..=MICRO.max_rows).contains(&block.rows));
    let has_rest = !block.rest.is_null();
    // SAFETY: by the caller's word; a block of more than 16 rows has memory for 32.
    unsafe {
        match (block.again, has_rest, block.rows > TILE_ROWS) {
            (Again::A | Again::B, false, true) => one_part(block),
            (Again::A | Again::B, false, false) => one_part_of_16(block),
            (Again::A | Again::B, true, true) => two_parts(block),
            (Again::A | Again::B, true, false) => two_parts_of_16(block),
            (Again::Memory, false, true) => one_part_from_memory(block),
            (Again::Memory, false, false) => one_part_of_16_from_memory(block),
            (Again::Memory, true, true) => two_parts_from_memory(block),
            (Again::Memory, true, false) => two_parts_of_16_from_memory(block),
            (Again::Next, false, true) => one_part_and_next(block),
            (Again::Next, false, false) => one_part_of_16_and_next(block),
            (Again::Next, true, true) => two_parts_and_next(block),
            (Again::Next, true, false) => two_parts_of_16_and_next(block),
        }
    }
}

/// Of a chunk all products of 32 rows: tiles 4 and 5 are `a`, 6 and 7 `b`.
macro_rules! products {
    (1, $fetch:ident) => {
        concat!(
            "tileloadd tmm6, [{b} + {row}]\n",
            "tileloadd tmm4, [{a0} + {row} + 1024]\n",
            $fetch!(0, 0),
            "\ntileloadd tmm7, [{b} + {row} + 1024]\n",
            "tdpbf16ps tmm0, tmm4, tmm6\n",
            $fetch!(0, 1),
            "\ntileloadd tmm5, [{a1} + {row} + 1024]\n",
            "tdpbf16ps tmm1, tmm4, tmm7\n",
            $fetch!(0, 2),
            "\ntdpbf16ps tmm2, tmm5, tmm6\n",
            "tileloadd tmm4, [{a0} + {row}]\n",
            $fetch!(0, 3),
            "\ntdpbf16ps tmm3, tmm5, tmm7\n",
            "tileloadd tmm5, [{a1} + {row}]\n",
            "tdpbf16ps tmm0, tmm4, tmm6\n",
            "tdpbf16ps tmm1, tmm4, tmm7\n",
            "tdpbf16ps tmm2, tmm5, tmm6\n",
            "tdpbf16ps tmm3, tmm5, tmm7\n",
        )
    };
    (2, $fetch:ident) => {
        concat!(
            "tileloadd tmm6, [{rest} + {row}]\n",
            "tileloadd tmm4, [{a0} + {row}]\n",
            $fetch!(rest, 0),
            "\ntileloadd tmm7, [{rest} + {row} + 1024]\n",
            "tdpbf16ps tmm0, tmm4, tmm6\n",
            "tileloadd tmm5, [{a1} + {row}]\n",
            "tdpbf16ps tmm1, tmm4, tmm7\n",
            $fetch!(rest, 1),
            "\ntdpbf16ps tmm2, tmm5, tmm6\n",
            "tileloadd tmm6, [{b} + {row}]\n",
            "tdpbf16ps tmm3, tmm5, tmm7\n",
            $fetch!(rest, 2),
            "\ntileloadd tmm7, [{b} + {row} + 1024]\n",
            "tdpbf16ps tmm0, tmm4, tmm6\n",
            "tdpbf16ps tmm1, tmm4, tmm7\n",
            "tileloadd tmm4, [{a0} + {row} + 1024]\n",
            "tdpbf16ps tmm2, tmm5, tmm6\n",
            $fetch!(rest, 3),
            "\ntdpbf16ps tmm3, tmm5, tmm7\n",
            "tileloadd tmm5, [{a1} + {row} + 1024]\n",
            "tdpbf16ps tmm0, tmm4, tmm6\n",
            "tdpbf16ps tmm1, tmm4, tmm7\n",
            "tdpbf16ps tmm2, tmm5, tmm6\n",
            "tdpbf16ps tmm3, tmm5, tmm7\n",
        )
    };
}

/// The same of 16 rows: tiles 2 and 3 are `a`, 4 to 7 `b`.
macro_rules! products_of_16 {
    (1, $fetch:ident) => {
        concat!(
            "tileloadd tmm4, [{b} + {row}]\n",
            $fetch!(0, 0),
            "\ntileloadd tmm3, [{a0} + {row} + 1024]\n",
            $fetch!(0, 1),
            "\ntileloadd tmm5, [{b} + {row} + 1024]\n",
            $fetch!(0, 2),
            "\ntileloadd tmm2, [{a0} + {row}]\n",
            $fetch!(0, 3),
            "\ntdpbf16ps tmm0, tmm3, tmm4\n",
            "tdpbf16ps tmm1, tmm3, tmm5\n",
            "tdpbf16ps tmm0, tmm2, tmm4\n",
            "tdpbf16ps tmm1, tmm2, tmm5\n",
        )
    };
    (2, $fetch:ident) => {
        concat!(
            "tileloadd tmm2, [{a0} + {row}]\n",
            $fetch!(rest, 0),
            "\ntileloadd tmm4, [{rest} + {row}]\n",
            $fetch!(rest, 1),
            "\ntileloadd tmm5, [{rest} + {row} + 1024]\n",
            "tdpbf16ps tmm0, tmm2, tmm4\n",
            $fetch!(rest, 2),
            "\ntileloadd tmm6, [{b} + {row}]\n",
            "tdpbf16ps tmm1, tmm2, tmm5\n",
            "tileloadd tmm7, [{b} + {row} + 1024]\n",
            $fetch!(rest, 3),
            "\ntdpbf16ps tmm0, tmm2, tmm6\n",
            "tileloadd tmm3, [{a0} + {row} + 1024]\n",
            "tdpbf16ps tmm1, tmm2, tmm7\n",
            "tdpbf16ps tmm0, tmm3, tmm6\n",
            "tdpbf16ps tmm1, tmm3, tmm7\n",
        )
    };
}

/// What the sums of 32 or of 16 rows begin with.
macro_rules! begin {
    (32) => {
        concat!(
            "test {at}, {at}\n",
            "jz 2f\n",
            "tileloadd tmm0, [{at} + {step}]\n",
            "tileloadd tmm1, [{at} + {step} + 64]\n",
            // Sixteen rows on.
            "lea {at}, [{at} + 8 * {step}]\n",
            "lea {at}, [{at} + 8 * {step}]\n",
            "tileloadd tmm2, [{at} + {step}]\n",
            "tileloadd tmm3, [{at} + {step} + 64]\n",
            "jmp 3f\n",
            "2:\n",
            "tilezero tmm0\n",
            "tilezero tmm1\n",
            "tilezero tmm2\n",
            "tilezero tmm3\n",
            "3:\n",
        )
    };
    (16) => {
        concat!(
            "test {at}, {at}\n",
            "jz 2f\n",
            "tileloadd tmm0, [{at} + {step}]\n",
            "tileloadd tmm1, [{at} + {step} + 64]\n",
            "jmp 3f\n",
            "2:\n",
            "tilezero tmm0\n",
            "tilezero tmm1\n",
            "3:\n",
        )
    };
}

/// Where sums go.
macro_rules! end {
    (32) => {
        concat!(
            "tilestored [{c} + {c_row}], tmm0\n",
            "tilestored [{c} + {c_row} + 64], tmm1\n",
            "lea {c}, [{c} + 8 * {c_row}]\n",
            "lea {c}, [{c} + 8 * {c_row}]\n",
            "tilestored [{c} + {c_row}], tmm2\n",
            "tilestored [{c} + {c_row} + 64], tmm3\n",
        )
    };
    (16) => {
        concat!(
            "tilestored [{c} + {c_row}], tmm0\n",
            "tilestored [{c} + {c_row} + 64], tmm1\n",
        )
    };
}

macro_rules! kernel {
    ($name:ident, $rows:tt, $products:expr) => {
        /// # Safety
        ///
        /// As [`run`].
        unsafe fn $name(block: &SplitBlock) {
            let (first, first_row) = match block.first {
                Some(first) => (first.at, first.row * size_of::<f32>() as isize),
                None => (std::ptr::null(), 0),
            };
            // There are not registers enough: `at` says where sums begin, null for zeros, then what to fetch, `step` likewise.
            //
            // SAFETY: reads whole groups of `a`, the chunks of `b` and what the sums begin with, and writes whole blocks of
            // rows of `c`; all of them exist by the caller's word. Every register and tile that changes is named, and the
            // block is taken to read and write any memory.
            unsafe {
                asm!(
                    begin!($rows),
                    "mov {at}, [{fetch}]",
                    "mov {step}, [{fetch} + 8]",
                    "shr {step}, 1",
                    "test {chunks}, {chunks}",
                    "jz 5f",
                    "4:",
                    $products,
                    "add {a0}, 2048",
                    "add {a1}, 2048",
                    "add {b}, 2048",
                    "add {rest}, 2048",
                    "dec {chunks}",
                    "jnz 4b",
                    "5:",
                    end!($rows),
                    at = inout(reg) first => _,
                    step = inout(reg) first_row => _,
                    fetch = in(reg) &raw const block.fetch,
                    chunks = inout(reg) block.chunks => _,
                    a0 = inout(reg) block.a => _,
                    a1 = inout(reg) block.a.wrapping_add(block.a_group) => _,
                    row = in(reg) 64usize,
                    b = inout(reg) block.b => _,
                    rest = inout(reg) block.rest => _,
                    c = inout(reg) block.c => _,
                    c_row = in(reg) block.c_row * size_of::<f32>(),
                    ahead = const AHEAD,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    };
}

kernel!(one_part, 32, products!(1, fetch_named));
kernel!(one_part_of_16, 16, products_of_16!(1, fetch_named));
kernel!(two_parts, 32, products!(2, fetch_named));
kernel!(two_parts_of_16, 16, products_of_16!(2, fetch_named));
kernel!(one_part_from_memory, 32, products!(1, fetch_all));
kernel!(
    one_part_of_16_from_memory,
    16,
    products_of_16!(1, fetch_all)
);
kernel!(two_parts_from_memory, 32, products!(2, fetch_all));
kernel!(
    two_parts_of_16_from_memory,
    16,
    products_of_16!(2, fetch_all)
);
kernel!(one_part_and_next, 32, products!(1, fetch_next));
kernel!(one_part_of_16_and_next, 16, products_of_16!(1, fetch_next));
kernel!(two_parts_and_next, 32, products!(2, fetch_next));
kernel!(two_parts_of_16_and_next, 16, products_of_16!(2, fetch_next));

// The tile unit is there or emulated on Linux only.
#[cfg(all(test, target_os = "linux"))]
#[path = "amx_split_tests.rs"]
mod tests;
