//! The innermost products: a few rows times one panel of 32 columns.
//!
//! Every instruction set provides the same two functions over the same packed panels, so
//! that all that stands above them is written once. Both sum over `k` in increasing order,
//! one term (f32) or one pair of terms (bf16) at a time and each element by itself: a row's
//! result depends neither on the rows beside it nor on how rows are grouped.

/// Columns of a panel of packed weights.
pub(crate) const PANEL: usize = 32;

/// Depth of a bf16 chunk: the `k` that one tile row or one cache line of an operand holds.
pub(crate) const CHUNK: usize = 32;

/// `c[rows, 32] (+)= a[rows, depth] b[depth, 32]` in f32; `b` may be kept in 16 bits, `T`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct F32Block<T = f32> {
    /// First row of `a`; rows are `a_row` elements apart.
    pub(crate) a: *const f32,
    pub(crate) a_row: usize,
    /// The panel: 32 adjacent columns for each `k`; of bf16 in the order of [`Bf16Block`].
    pub(crate) b: *const T,
    pub(crate) depth: usize,
    /// First row of the sums; rows are `c_row` elements apart.
    pub(crate) c: *mut f32,
    pub(crate) c_row: usize,
    /// Rows of this block, at most the kernel's own number.
    pub(crate) rows: usize,
    /// Whether the product is added to `c`; otherwise it replaces what is there. The product
    /// is summed by itself from zero, then added once.
    pub(crate) accumulate: bool,
    pub(crate) fetch: Fetch,
}

/// Lines that a product asks for while it multiplies, two for every `k` of f32 or chunk of bf16, half a step apart. A
/// kernel need not, and those of f32 over weights of 16 bits see to it by themselves.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Fetch {
    /// Any address will do: one that is not mapped does nothing.
    pub(crate) at: *const u8,
    /// Bytes from the first of two lines to the first of the next two.
    pub(crate) step: usize,
}

impl Fetch {
    /// How many bytes ahead of their use weights are asked for, if one call is all that reads them: they
    /// come from memory at the rate at which they are multiplied, and the hardware's own prefetching
    /// stops at every page.
    const AHEAD: usize = 4096;

    /// The same where lines that follow each other are found by the hardware: the first line of either half of a chunk
    /// of bf16, eight chunks and four pages ahead, has the page translated and its stream begun before it is needed. At the
    /// 30 GB/s that a core may get, 16 KiB take 0.5 us, several times the latency of memory.
    const FIRST_AHEAD: usize = 16 << 10;

    /// What will be read next by a call that reads from `b` on.
    pub(crate) fn along<T>(b: *const T) -> Self {
        Fetch {
            at: b.cast::<u8>().wrapping_add(Self::AHEAD),
            step: 128,
        }
    }

    /// The first lines of what will be read next by a call that reads chunks of bf16 from `b` on.
    pub(crate) fn firsts(b: *const u16) -> Self {
        Fetch {
            at: b.cast::<u8>().wrapping_add(Self::FIRST_AHEAD),
            step: CHUNK * PANEL * size_of::<u16>(),
        }
    }

    /// As [`Fetch::part`], of calls of so many chunks of bf16. With few calls not every line is asked for; the one beside
    /// it comes by itself.
    pub(crate) fn part_of_chunks(next: &[u8], number: usize, calls: usize, chunks: usize) -> Self {
        let a_chunk = next.len().div_ceil((calls * chunks).max(1));
        let step = a_chunk.next_multiple_of(128).max(128);
        Fetch {
            at: next.as_ptr().wrapping_add(number * chunks * step),
            step,
        }
    }

    /// A half of what is read next, sixteen lines a chunk: see [`Again::Next`].
    pub(crate) fn half(next: &[u8], number: usize) -> Self {
        Fetch {
            at: next.as_ptr().wrapping_add(number * (next.len() / 2)),
            step: 1024,
        }
    }

    /// The part of call `number` of `calls`, two or more, in fetching what the next ones read: so memory does
    /// not rest from the second call on.
    pub(crate) fn part(next: &[u8], number: usize, calls: usize) -> Self {
        let lines = next.len().div_ceil(64).div_ceil(calls);
        Fetch {
            at: next.as_ptr().wrapping_add(number * lines * 64),
            step: 64,
        }
    }
}

/// `c[rows, 32] (+)= a[rows, 32 * chunks] b[32 * chunks, 32]`, factors bf16, sums f32.
///
/// Row `r` and chunk `i` of `a` are the 32 adjacent values at
/// `a + (r / 16) * a_group + (r % 16) * a_row + i * a_chunk` (in elements). So a plain
/// row-major matrix has `a_group = 16 * a_row` and `a_chunk = 32`, and a matrix of tiles,
/// each of 16 adjacent rows of 64 bytes, has `a_row = 32`, `a_chunk = 512`.
///
/// A chunk of `b` is 1024 values: columns 0 to 15, then columns 16 to 31, and of each half
/// 16 pairs of `k`, each holding for 16 columns the values of `2 * pair` and
/// `2 * pair + 1` side by side: `b[((i * 2 + column / 16) * 16 + pair) * 32 + column % 16 * 2
/// + k % 2]`. That is the order that a tile product and a bf16 dot product both read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bf16Block {
    pub(crate) a: *const u16,
    pub(crate) a_row: usize,
    pub(crate) a_group: usize,
    pub(crate) a_chunk: usize,
    pub(crate) b: *const u16,
    pub(crate) chunks: usize,
    pub(crate) c: *mut f32,
    pub(crate) c_row: usize,
    /// Rows of this block, at most the kernel's own number. A kernel may read and compute
    /// the rows up to the next multiple of [`MicroBf16::row_multiple`], and write their
    /// sums: the caller provides the memory for both.
    pub(crate) rows: usize,
    pub(crate) accumulate: bool,
    pub(crate) again: Again,
    /// Nothing of it is asked for with [`Again::Memory`], sixteen lines a chunk with [`Again::Next`]; only by a kernel
    /// that [fetches](MicroBf16::fetches).
    pub(crate) fetch: Fetch,
}

/// What is read again soon, and should be in the nearest cache, and what comes from memory meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Again {
    /// `b`, by the blocks that follow; `a` passes by.
    B,
    /// `a`, by the blocks that follow; `b` passes by.
    A,
    /// `b`, which comes from memory now, what follows it in memory next.
    Memory,
    /// `b`, while what will be read in its place comes from memory: sixteen lines a chunk from [`Fetch::at`] on.
    Next,
}

/// `c[rows, 32] = first + a[rows, 32 * chunks] b[32 * chunks, 32]`, sums f32, factors in parts of bf16: the nearest one and the
/// nearest to the rest. `a` has two parts, `b` one or two; the product of what is left of both is left out, at most
/// 2^-16 of a term.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SplitBlock {
    /// For every 16 rows, `a_group` values apart, and each chunk a tile of the nearest bf16, 16 rows of 32 values, and one of
    /// the rest.
    pub(crate) a: *const u16,
    pub(crate) a_group: usize,
    /// The nearest bf16, as [`Bf16Block::b`].
    pub(crate) b: *const u16,
    /// The rest, if there is one: else null.
    pub(crate) rest: *const u16,
    pub(crate) chunks: usize,
    /// Whole blocks of 16 rows are written.
    pub(crate) c: *mut f32,
    pub(crate) c_row: usize,
    /// Rows of this block, at most the kernel's own number.
    pub(crate) rows: usize,
    /// Zeros, if there is nothing.
    pub(crate) first: Option<First>,
    /// As of a [`Bf16Block`]; `A` and `B` are the same.
    pub(crate) again: Again,
    pub(crate) fetch: Fetch,
}

/// What the sums of a block begin with: 32 values for row `r`, from `at + r * row` on. Rows may overlap, and go backwards:
/// with a step of minus one, a bias that depends on column minus row is a single strip.
#[derive(Clone, Copy, Debug)]
pub(crate) struct First {
    pub(crate) at: *const f32,
    pub(crate) row: isize,
}

/// The f32 product of an instruction set.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MicroF32 {
    /// Most rows of a block.
    pub(crate) max_rows: usize,
    /// # Safety
    ///
    /// The instruction set is available; all that the block names is allocated; no other
    /// thread touches its part of `c`; `0 < rows <= max_rows`.
    pub(crate) run: unsafe fn(&F32Block),
    pub(crate) narrow: Option<NarrowF32>,
}

/// f32 products of few rows with weights of 16 bits, which are widened in registers: with few rows,
/// writing a panel in f32 first takes longer than multiplying with it. Same sums, same bits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NarrowF32 {
    /// Most rows of a block.
    pub(crate) max_rows: usize,
    /// Most rows of a product that is worth widening its weights anew for each block.
    pub(crate) worth_rows: usize,
    /// Weights in bf16; the depth is a whole number of chunks.
    ///
    /// # Safety
    ///
    /// As [`MicroF32::run`].
    pub(crate) bf16: unsafe fn(&F32Block<u16>),
    /// Weights in f16.
    ///
    /// # Safety
    ///
    /// As [`MicroF32::run`].
    pub(crate) f16: unsafe fn(&F32Block<u16>),
}

/// The bf16 product of an instruction set.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MicroBf16 {
    /// Most rows of a block.
    pub(crate) max_rows: usize,
    /// Rows are computed in multiples of this, at most [`TILE_ROWS`](crate::operand::TILE_ROWS):
    /// operands and scratch have so many rows.
    #[cfg_attr(not(test), allow(dead_code, reason = "a promise that tests check"))]
    pub(crate) row_multiple: usize,
    /// Whether it asks for [`Bf16Block::fetch`].
    pub(crate) fetches: bool,
    /// Bytes of activations that stay in the second-level cache beside what passes by, where products are so fast that
    /// it matters; else 0.
    pub(crate) near_bytes: usize,
    /// # Safety
    ///
    /// As [`MicroF32::run`], up to the next multiple of `row_multiple` rows.
    pub(crate) run: unsafe fn(&Bf16Block),
    /// Called on a thread before its first block of a region, and after its last: AMX
    /// configures its tiles and releases them.
    ///
    /// # Safety
    ///
    /// The instruction set is available.
    pub(crate) enter: unsafe fn(),
    /// # Safety
    ///
    /// As `enter`.
    pub(crate) leave: unsafe fn(),
}

/// The product in two parts of bf16 of an instruction set. Each row is summed by itself, in the same way among any others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MicroSplit {
    /// Most rows of a block.
    pub(crate) max_rows: usize,
    /// # Safety
    ///
    /// As [`MicroBf16::run`], between its `enter` and `leave`, with memory for whole blocks of 16 rows.
    pub(crate) run: unsafe fn(&SplitBlock),
}

/// Calls `$f::<rows>($block)`, or `$f::<rows, MORE>($block)`.
macro_rules! by_rows {
    ($f:ident $($more:ident)?, $block:expr, $($rows:literal)*) => {
        by_rows!(@ $f [$($more)?], $block, $($rows)*)
    };
    (@ $f:ident $more:tt, $block:expr, $($rows:literal)*) => {
        match $block.rows {
            $($rows => by_rows!(@@ $f $rows $more)($block),)*
            rows => unreachable!("a block of {rows} rows"),
        }
    };
    (@@ $f:ident $rows:literal []) => { $f::<$rows> };
    (@@ $f:ident $rows:literal [$more:ident]) => { $f::<$rows, $more> };
}
pub(crate) use by_rows;

/// Plain loops that say what the blocks mean; also the portable kernels' oracle.
#[cfg(test)]
pub(crate) mod reference {
    use super::*;

    /// # Safety
    ///
    /// As [`MicroF32::run`].
    pub(crate) unsafe fn f32_block(block: &F32Block) {
        for row in 0..block.rows {
            for column in 0..PANEL {
                let mut sum = 0.0f64;
                for k in 0..block.depth {
                    // SAFETY: inside the matrices, by the caller's word.
                    unsafe {
                        sum += f64::from(*block.a.add(row * block.a_row + k))
                            * f64::from(*block.b.add(k * PANEL + column));
                    }
                }
                // SAFETY: as above.
                let c = unsafe { &mut *block.c.add(row * block.c_row + column) };
                *c = if block.accumulate {
                    (f64::from(*c) + sum) as f32
                } else {
                    sum as f32
                };
            }
        }
    }

    /// # Safety
    ///
    /// As [`MicroBf16::run`].
    pub(crate) unsafe fn bf16_block(block: &Bf16Block) {
        let wide = |bits: u16| f64::from(half::bf16::from_bits(bits));
        for row in 0..block.rows {
            for column in 0..PANEL {
                let mut sum = 0.0f64;
                for k in 0..CHUNK * block.chunks {
                    let (chunk, within) = (k / CHUNK, k % CHUNK);
                    let a = row / 16 * block.a_group
                        + row % 16 * block.a_row
                        + chunk * block.a_chunk
                        + within;
                    let b = ((chunk * 2 + column / 16) * 16 + within / 2) * 32
                        + column % 16 * 2
                        + within % 2;
                    // SAFETY: inside the matrices, by the caller's word.
                    unsafe { sum += wide(*block.a.add(a)) * wide(*block.b.add(b)) };
                }
                // SAFETY: as above.
                let c = unsafe { &mut *block.c.add(row * block.c_row + column) };
                *c = if block.accumulate {
                    (f64::from(*c) + sum) as f32
                } else {
                    sum as f32
                };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{for_each_isa, noise};

    /// Sums over `k` terms in f32 with factors below 1: each term passes through at most
    /// `k + 1` additions, each off by 2^-24 of at most `k`.
    fn near(found: f32, expected: f32, k: usize) -> bool {
        let k = k as f32 + 2.0;
        (found - expected).abs() <= 2.0 * k * k * 2f32.powi(-24)
    }

    #[test]
    fn f32_blocks_equal_plain_loops() {
        for_each_isa(|kernels| {
            let micro = kernels.table.f32;
            for rows in 1..=micro.max_rows {
                for depth in [0, 1, 2, 17, 128] {
                    for accumulate in [false, true] {
                        let mut next = noise(rows * 1000 + depth);
                        let (a_row, c_row) = (depth + 3, PANEL + 5);
                        let a: Vec<f32> = (0..rows * a_row).map(|_| next()).collect();
                        let b: Vec<f32> = (0..depth * PANEL).map(|_| next()).collect();
                        let mut found: Vec<f32> = (0..rows * c_row).map(|_| next()).collect();
                        let mut expected = found.clone();
                        let mut block = F32Block {
                            a: a.as_ptr(),
                            a_row,
                            b: b.as_ptr(),
                            depth,
                            c: found.as_mut_ptr(),
                            c_row,
                            rows,
                            accumulate,
                            fetch: Fetch::along(b.as_ptr()),
                        };
                        // SAFETY: everything was allocated; the instruction set is there.
                        unsafe {
                            (micro.run)(&block);
                            block.c = expected.as_mut_ptr();
                            reference::f32_block(&block);
                        }
                        for (at, (&found, &expected)) in found.iter().zip(&expected).enumerate() {
                            // What lies between rows must not change at all.
                            let outside = at % c_row >= PANEL;
                            assert!(
                                if outside {
                                    found == expected
                                } else {
                                    near(found, expected, depth)
                                },
                                "{} rows {rows}, depth {depth}, {at}: {found} {expected}",
                                kernels.isa()
                            );
                        }
                    }
                }
            }
        });
    }

    /// Bit by bit, since a row may be computed either way.
    #[test]
    fn narrow_blocks_equal_those_of_widened_panels() {
        for_each_isa(|kernels| {
            let (micro, widen) = (kernels.table.f32, kernels.table.rows);
            let Some(narrow) = micro.narrow else { return };
            for rows in 1..=narrow.max_rows {
                for (depth, is_bf16) in [(32, true), (128, true), (1, false), (37, false)] {
                    for accumulate in [false, true] {
                        let mut next = noise(rows * 1000 + depth);
                        let (a_row, c_row) = (depth + 3, PANEL + 5);
                        let a: Vec<f32> = (0..rows * a_row).map(|_| next()).collect();
                        let b: Vec<u16> = (0..depth * PANEL)
                            .map(|_| match is_bf16 {
                                true => half::bf16::from_f32(next()).to_bits(),
                                false => half::f16::from_f32(next()).to_bits(),
                            })
                            .collect();
                        let mut wide = vec![0.0f32; b.len()];
                        let mut found: Vec<f32> = (0..rows * c_row).map(|_| next()).collect();
                        let mut expected = found.clone();
                        let block = F32Block {
                            a: a.as_ptr(),
                            a_row,
                            b: b.as_ptr(),
                            depth,
                            c: found.as_mut_ptr(),
                            c_row,
                            rows,
                            accumulate,
                            fetch: Fetch::along(b.as_ptr()),
                        };
                        // SAFETY: everything was allocated; the instruction set is there.
                        unsafe {
                            let (run, widen) = match is_bf16 {
                                true => (narrow.bf16, widen.widen_bf16),
                                false => (narrow.f16, widen.widen_f16),
                            };
                            run(&block);
                            widen(&b, &mut wide);
                            for first in (0..rows).step_by(micro.max_rows) {
                                (micro.run)(&F32Block {
                                    a: a.as_ptr().add(first * a_row),
                                    a_row,
                                    b: wide.as_ptr(),
                                    depth,
                                    c: expected.as_mut_ptr().add(first * c_row),
                                    c_row,
                                    rows: micro.max_rows.min(rows - first),
                                    accumulate,
                                    fetch: Fetch::along(wide.as_ptr()),
                                });
                            }
                        }
                        assert_eq!(found, expected, "{} rows, depth {depth}", rows);
                    }
                }
            }
        });
    }

    #[test]
    fn bf16_blocks_equal_plain_loops() {
        for_each_isa(|kernels| {
            let Some(micro) = kernels.table.bf16 else {
                return;
            };
            let random = |n: usize, seed: usize| {
                let mut next = noise(seed);
                (0..n)
                    .map(|_| half::bf16::from_f32(next()).to_bits())
                    .collect::<Vec<u16>>()
            };
            for rows in 1..=micro.max_rows {
                for chunks in [0, 1, 3] {
                    for accumulate in [false, true] {
                        let whole = rows.next_multiple_of(micro.row_multiple);
                        let a_row = chunks * CHUNK + 6;
                        let a = random(whole * a_row, rows + chunks);
                        let b = random(chunks * CHUNK * PANEL, rows);
                        let mut found = vec![0.5f32; whole * PANEL];
                        let mut expected = found.clone();
                        let mut block = Bf16Block {
                            a: a.as_ptr(),
                            a_row,
                            a_group: 16 * a_row,
                            a_chunk: CHUNK,
                            b: b.as_ptr(),
                            chunks,
                            c: found.as_mut_ptr(),
                            c_row: PANEL,
                            rows,
                            accumulate,
                            again: Again::B,
                            fetch: Fetch::firsts(b.as_ptr()),
                        };
                        // SAFETY: everything was allocated; the instruction set is there.
                        unsafe {
                            (micro.enter)();
                            (micro.run)(&block);
                            (micro.leave)();
                            block.c = expected.as_mut_ptr();
                            reference::bf16_block(&block);
                        }
                        for at in 0..rows * PANEL {
                            assert!(
                                near(found[at], expected[at], chunks * CHUNK),
                                "{} rows {rows}, chunks {chunks}, {at}: {} {}",
                                kernels.isa(),
                                found[at],
                                expected[at]
                            );
                        }
                    }
                }
            }
        });
    }
}
