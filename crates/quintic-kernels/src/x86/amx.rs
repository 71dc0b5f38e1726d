//! Products of bf16 and of bytes in AMX tiles.
//!
//! A tile holds 16 rows of 64 bytes: 16 rows and one chunk of `a`, or half a chunk of `b`, or
//! 16 by 16 sums. Up to 32 rows are two tiles of `a` by two of `b` with four tiles of sums,
//! which loads one tile per product, the least that eight tiles allow. Up to 16 rows are one
//! by two, which loads three tiles for two products and is bound by reading `b`: the spare
//! tiles hold a second chunk, so that loads go on while products wait for the chunk before.
//!
//! Intrinsics for tiles are not stable, `asm!` is. The compiler knows tiles as something to
//! clobber only and keeps nothing in them, but nor does it know what they hold: from the first
//! sum to the last store is one block. Only the configuration lasts, from `enter` to `leave`.
//!
//! # Numerics
//!
//! A tile product sums the 32 terms of a chunk, then adds them to the sum before (TDPBF16PS
//! in the Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2: rounded to
//! nearest, denormals are zeros). With `accumulate` the tiles start as `c`: the sum before is
//! continued, one addition per chunk. The other kernels add the whole product to `c` once; here
//! that would need a second pass over `c`, and the bits of different kernels differ anyway, as
//! far as the bound on rounding allows. Each row is summed by itself and in the same way in both
//! shapes, so its bits do not depend on the rows beside it.

use std::arch::asm;

use super::amx_fetch::{fetch_all, fetch_named, fetch_next};
use crate::micro::{Again, Bf16Block, MicroBf16, PANEL};
use crate::quantised::{Int8Block, MicroInt8};

pub(crate) const MICRO: MicroBf16 = MicroBf16 {
    max_rows: 2 * TILE_ROWS,
    row_multiple: TILE_ROWS,
    // Every CPU with AMX has 2 MiB. In a model of the loops 256 rows of depth 2,816, this many, were a quarter faster
    // than 512; 256 of depth 2,048 half as fast again.
    fetches: true,
    near_bytes: 256 * 2816 * size_of::<u16>(),
    run,
    enter,
    leave,
};

/// Bytes: the same tiles, in which a chunk is 64 `k`.
pub(crate) const MICRO_INT8: MicroInt8 = MicroInt8 {
    max_rows: 2 * TILE_ROWS,
    row_multiple: TILE_ROWS,
    fetches: true,
    offset: 0,
    run: run_int8,
    enter,
    leave,
};

/// Rows of a tile.
pub(super) const TILE_ROWS: usize = 16;

/// Bytes of a tile's row.
const LINE: usize = 64;

/// Bytes of a chunk of `b`: two tiles.
const B_CHUNK: usize = 2048;

/// How far ahead every line of `b` is asked for that comes from memory: four chunks, into the first level, an eighth of
/// a chunk between each two of its instructions. Requests in one go wait for each other while the tiles wait for them.
///
/// The hardware's prefetchers follow the lines of `b` by themselves, but stop at the end of a page of 4 KiB, that is
/// after every other chunk. Near the end this names what lies behind the panel, most often the next one, else memory
/// that may not exist: a prefetch of that does nothing.
pub(super) const AHEAD: usize = 4 * B_CHUNK;

/// A tile configuration, as LDTILECFG reads it.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// All eight tiles at their full size. There are no smaller ones for the last rows of a
/// matrix: a caller provides memory for whole tiles.
static FULL: Config = Config {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// Configures this thread's tiles. Other libraries in the process may have tiles of their own
/// shape, so nothing is taken for granted.
///
/// # Safety
///
/// AMX-TILE is available.
pub(super) unsafe fn enter() {
    // SAFETY: reads the static; what this zeroes, all tiles, is named.
    unsafe {
        asm!(
            "ldtilecfg [{}]",
            in(reg) &raw const FULL,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, preserves_flags),
        );
    }
}

/// Gives this thread's tiles back, so that the system need not save them.
///
/// # Safety
///
/// AMX-TILE is available.
pub(super) unsafe fn leave() {
    // SAFETY: touches tiles only, and all of them are named.
    unsafe {
        asm!(
            "tilerelease",
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, preserves_flags),
        );
    }
}

/// # Safety
///
/// As [`MicroBf16::run`]; AMX-TILE and AMX-BF16 are available, and this thread is between
/// [`enter`] and [`leave`].
unsafe fn run(block: &Bf16Block) {
    debug_assert!((1..=MICRO.max_rows).contains(&block.rows));
    // SAFETY: by the caller's word; a block of more than 16 rows has memory for 32.
    unsafe {
        match (block.again, block.rows > TILE_ROWS) {
            (Again::B, true) => two_by_two(block),
            (Again::B, false) => one_by_two(block),
            (Again::A, true) => two_by_two_near(block),
            (Again::A, false) => one_by_two_near(block),
            (Again::Memory, true) => two_by_two_from_memory(block),
            (Again::Memory, false) => one_by_two_from_memory(block),
            (Again::Next, true) => two_by_two_and_next(block),
            (Again::Next, false) => one_by_two_and_next(block),
        }
    }
}

/// # Safety
///
/// As [`MicroInt8::run`]; AMX-TILE and AMX-INT8 are available, and this thread is between
/// [`enter`] and [`leave`].
unsafe fn run_int8(block: &Int8Block) {
    debug_assert!((1..=MICRO_INT8.max_rows).contains(&block.rows));
    debug_assert!(block.a_row.is_multiple_of(size_of::<u16>()));
    // In units of two bytes; sums of integers are as wide as those of floats.
    let a_row = block.a_row / size_of::<u16>();
    let tiles = Bf16Block {
        a: block.a.cast(),
        a_row,
        a_group: TILE_ROWS * a_row,
        a_chunk: LINE / size_of::<u16>(),
        b: block.b.cast(),
        chunks: block.chunks,
        c: block.c.cast(),
        c_row: PANEL,
        rows: block.rows,
        accumulate: block.accumulate,
        again: block.again,
        fetch: block.fetch,
    };
    // SAFETY: by the caller's word; a block of more than 16 rows has memory for 32.
    unsafe {
        match (block.again, block.rows > TILE_ROWS) {
            (Again::A | Again::B, true) => two_by_two_int8(&tiles),
            (Again::A | Again::B, false) => one_by_two_int8(&tiles),
            (Again::Memory, true) => two_by_two_int8_from_memory(&tiles),
            (Again::Memory, false) => one_by_two_int8_from_memory(&tiles),
            (Again::Next, true) => two_by_two_int8_and_next(&tiles),
            (Again::Next, false) => one_by_two_int8_and_next(&tiles),
        }
    }
}

/// The kernels, with the product of their elements: pairs of bf16 or quads of bytes, four bytes
/// either way, so that nothing else differs.
macro_rules! kernels {
    ($product:literal, $load_a:literal, $load_b:literal, $fetch:ident, $two_by_two:ident, $one_by_two:ident) => {
/// Sums: tiles 0 and 1 for the first 16 rows, 2 and 3 for the others. Tiles 4 and 5 are `a`,
/// 6 and 7 are `b`.
///
/// # Safety
///
/// As [`run`], with memory for 32 rows.
unsafe fn $two_by_two(block: &Bf16Block) {
    let a_bytes = block.a.cast::<u8>();
    // `a` may be loaded with a hint that it is not needed again soon (T1): where it streams through
    // once per panel it must not displace the panel of `b` from the first level.
    //
    // There are not registers enough: `at` says whether sums are continued, then where they are, then what to fetch.
    // SAFETY: reads 32 rows of `a`, the chunks of `b` and, if they are continued, the sums, and
    // writes 32 rows of `c`; all of them exist by the caller's word. Every register and tile that
    // changes is named, and the block is taken to read and write any memory.
    unsafe {
        asm!(
            "test {at}, {at}",
            "jz 2f",
            "tileloadd tmm0, [{c} + {c_row}]",
            "tileloadd tmm1, [{c} + {c_row} + {line}]",
            // Sixteen rows on.
            "lea {at}, [{c} + 8 * {c_row}]",
            "lea {at}, [{at} + 8 * {c_row}]",
            "tileloadd tmm2, [{at} + {c_row}]",
            "tileloadd tmm3, [{at} + {c_row} + {line}]",
            "jmp 3f",
            "2:",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "3:",
            "mov {at}, [{fetch}]",
            "mov {step}, [{fetch} + 8]",
            "shr {step}, 1",
            "test {chunks}, {chunks}",
            "jz 5f",
            "4:",
            concat!($load_b, " tmm6, [{b} + {b_row}]"),
            $fetch!(0, 0),
            concat!($load_a, " tmm4, [{a0} + {a_row}]"),
            $fetch!(0, 1),
            concat!($load_b, " tmm7, [{b} + {b_row} + {b_half}]"),
            concat!($product, " tmm0, tmm4, tmm6"),
            $fetch!(0, 2),
            concat!($load_a, " tmm5, [{a1} + {a_row}]"),
            concat!($product, " tmm1, tmm4, tmm7"),
            $fetch!(0, 3),
            concat!($product, " tmm2, tmm5, tmm6"),
            "add {a0}, {a_chunk}",
            "add {a1}, {a_chunk}",
            "add {b}, {b_chunk}",
            concat!($product, " tmm3, tmm5, tmm7"),
            "dec {chunks}",
            "jnz 4b",
            "5:",
            "tilestored [{c} + {c_row}], tmm0",
            "tilestored [{c} + {c_row} + {line}], tmm1",
            "lea {c}, [{c} + 8 * {c_row}]",
            "lea {c}, [{c} + 8 * {c_row}]",
            "tilestored [{c} + {c_row}], tmm2",
            "tilestored [{c} + {c_row} + {line}], tmm3",
            at = inout(reg) usize::from(block.accumulate) => _,
            step = out(reg) _,
            fetch = in(reg) &raw const block.fetch,
            chunks = inout(reg) block.chunks => _,
            a0 = inout(reg) a_bytes => _,
            a1 = inout(reg) a_bytes.add(block.a_group * size_of::<u16>()) => _,
            a_row = in(reg) block.a_row * size_of::<u16>(),
            a_chunk = in(reg) block.a_chunk * size_of::<u16>(),
            b = inout(reg) block.b => _,
            b_row = in(reg) LINE,
            c = inout(reg) block.c => _,
            c_row = in(reg) block.c_row * size_of::<f32>(),
            line = const LINE,
            b_half = const B_CHUNK / 2,
            b_chunk = const B_CHUNK,
            ahead = const AHEAD,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// Sums: tiles 0 and 1. Tiles 2, 4 and 5 are `a` and `b` of every even chunk, 3, 6 and 7 of
/// every odd one: a chunk is loaded before the one in front of it is multiplied.
///
/// # Safety
///
/// As [`run`], with memory for 16 rows.
unsafe fn $one_by_two(block: &Bf16Block) {
    // SAFETY: reads 16 rows of `a`, the chunks of `b` and, if they are continued, the sums, and
    // writes 16 rows of `c`; all of them exist by the caller's word. Every register and tile that
    // changes is named, and the block is taken to read and write any memory.
    unsafe {
        asm!(
            "test {at}, {at}",
            "jz 2f",
            "tileloadd tmm0, [{c} + {c_row}]",
            "tileloadd tmm1, [{c} + {c_row} + {line}]",
            "jmp 3f",
            "2:",
            "tilezero tmm0",
            "tilezero tmm1",
            "3:",
            "mov {at}, [{fetch}]",
            "mov {step}, [{fetch} + 8]",
            "shr {step}, 1",
            // `chunks` counts those that are not yet loaded; `a` and `b` point to the next.
            "sub {chunks}, 1",
            "jb 6f",
            "tileloadd tmm4, [{b} + {b_row}]",
            concat!($load_a, " tmm2, [{a} + {a_row}]"),
            "tileloadd tmm5, [{b} + {b_row} + {b_half}]",
            "add {a}, {a_chunk}",
            "add {b}, {b_chunk}",
            "sub {chunks}, 2",
            "jb 5f",
            // At least two more: one behind the even chunk, which waits in its tiles, and the
            // next even one.
            "4:",
            concat!($load_b, " tmm6, [{b} + {b_row}]"),
            $fetch!(0, 0),
            concat!($load_a, " tmm3, [{a} + {a_row}]"),
            $fetch!(0, 1),
            concat!($load_b, " tmm7, [{b} + {b_row} + {b_half}]"),
            "add {a}, {a_chunk}",
            $fetch!(0, 2),
            concat!($product, " tmm0, tmm2, tmm4"),
            $fetch!(0, 3),
            concat!($product, " tmm1, tmm2, tmm5"),
            concat!($load_b, " tmm4, [{b} + {b_row} + {b_chunk}]"),
            $fetch!(1, 0),
            concat!($load_a, " tmm2, [{a} + {a_row}]"),
            $fetch!(1, 1),
            concat!($load_b, " tmm5, [{b} + {b_row} + {b_chunk} + {b_half}]"),
            "add {a}, {a_chunk}",
            $fetch!(1, 2),
            concat!($product, " tmm0, tmm3, tmm6"),
            $fetch!(1, 3),
            concat!($product, " tmm1, tmm3, tmm7"),
            "add {b}, 2 * {b_chunk}",
            "sub {chunks}, 2",
            "jae 4b",
            // None or one more, as -2 or -1 says.
            "5:",
            concat!($product, " tmm0, tmm2, tmm4"),
            concat!($product, " tmm1, tmm2, tmm5"),
            "test {chunks:l}, 1",
            "jz 6f",
            "tileloadd tmm6, [{b} + {b_row}]",
            concat!($load_a, " tmm3, [{a} + {a_row}]"),
            "tileloadd tmm7, [{b} + {b_row} + {b_half}]",
            concat!($product, " tmm0, tmm3, tmm6"),
            concat!($product, " tmm1, tmm3, tmm7"),
            "6:",
            "tilestored [{c} + {c_row}], tmm0",
            "tilestored [{c} + {c_row} + {line}], tmm1",
            at = inout(reg) usize::from(block.accumulate) => _,
            step = out(reg) _,
            fetch = in(reg) &raw const block.fetch,
            chunks = inout(reg) block.chunks => _,
            a = inout(reg) block.a => _,
            a_row = in(reg) block.a_row * size_of::<u16>(),
            a_chunk = in(reg) block.a_chunk * size_of::<u16>(),
            b = inout(reg) block.b => _,
            b_row = in(reg) LINE,
            c = in(reg) block.c,
            c_row = in(reg) block.c_row * size_of::<f32>(),
            line = const LINE,
            b_half = const B_CHUNK / 2,
            b_chunk = const B_CHUNK,
            ahead = const AHEAD,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}
    };
}

kernels!(
    "tdpbf16ps",
    "tileloaddt1",
    "tileloadd",
    fetch_named,
    two_by_two,
    one_by_two
);
kernels!(
    "tdpbf16ps",
    "tileloadd",
    "tileloadd",
    fetch_named,
    two_by_two_near,
    one_by_two_near
);
kernels!(
    "tdpbf16ps",
    "tileloadd",
    "tileloaddt1",
    fetch_all,
    two_by_two_from_memory,
    one_by_two_from_memory
);
kernels!(
    "tdpbf16ps",
    "tileloaddt1",
    "tileloadd",
    fetch_next,
    two_by_two_and_next,
    one_by_two_and_next
);
kernels!(
    "tdpbssd",
    "tileloaddt1",
    "tileloadd",
    fetch_named,
    two_by_two_int8,
    one_by_two_int8
);
kernels!(
    "tdpbssd",
    "tileloadd",
    "tileloaddt1",
    fetch_all,
    two_by_two_int8_from_memory,
    one_by_two_int8_from_memory
);

kernels!(
    "tdpbssd",
    "tileloaddt1",
    "tileloadd",
    fetch_next,
    two_by_two_int8_and_next,
    one_by_two_int8_and_next
);

/// Multiplies tiles of zeros `iterations` times, four products each into a sum of its own,
/// without touching memory: what the tile unit does at most. An iteration is 4 * 16 * 16 * 32
/// multiplications and as many additions, [`PEAK_FLOPS`] in all.
///
/// # Safety
///
/// As [`run`].
pub(crate) unsafe fn peak_loop(iterations: u64) {
    // SAFETY: changes nothing but what is named.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "tilezero tmm4",
            "tilezero tmm5",
            "tilezero tmm6",
            "tilezero tmm7",
            "test {count}, {count}",
            "jz 3f",
            "2:",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "dec {count}",
            "jnz 2b",
            "3:",
            count = inout(reg) iterations => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, nomem),
        );
    }
}

/// Floating-point operations of an iteration of [`peak_loop`].
pub(crate) const PEAK_FLOPS: u64 = 4 * 2 * 16 * 16 * 32;

// The tile unit is there or emulated on Linux only.
#[cfg(all(test, target_os = "linux"))]
#[path = "amx_tests.rs"]
mod tests;
