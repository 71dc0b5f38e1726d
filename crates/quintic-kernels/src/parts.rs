//! Products of f32 by products of bf16: every value in three parts.
//!
//! Where a tile unit multiplies bf16 many times as fast as vectors multiply f32, six of its products take less time than
//! one of theirs (Henry, Tang and Heinecke, "Leveraging the bfloat16 Artificial Intelligence Datatype for Higher-Precision
//! Computations", 2019).
//!
//! # Numerics
//!
//! The nearest bf16 to a value, the nearest to the rest, and the nearest to what that leaves are together the value
//! itself: three times eight bits, where f32 has 24 (but for parts below 2^-126, which are zeros). A value beyond bf16's
//! largest, 3.3895e38, becomes NaN, as infinity does. Of the nine products of parts the three smallest are left out, which are together
//! at most 2^-24 of the product of the values (the second part is at most 2^-8 of a value, the third 2^-17), as much as
//! one rounding to f32; all others are exact in f32, as every product of two bf16. They are summed in
//! f32, the small ones of each 32 `k` first, one addition for each 32 `k` and pair of parts. So a sum is as close to the
//! exact one as if f32 had been multiplied, and has other bits. A row's bits depend on that row alone.
//!
//! Weights of bf16 have one part, of f16 two.

use std::sync::Mutex;

use crate::memory::{Buffer, Shared};
use crate::micro::{Again, CHUNK, Fetch, PANEL};
use crate::operand::{Operand, TILE, TILE_ROWS};
use crate::pack::Storage;
use crate::pool::Pool;
use crate::scratch::{Scratch, scratch_of};

/// Parts of a value that flows in.
pub(crate) const PARTS: usize = 3;

/// `c[32, 32] (+)= a[32, 32 * chunks] b[32 * chunks, 32]`, both factors in parts of bf16, sums in f32.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PartsBlock {
    /// Two groups of 16 rows: for each chunk a tile of 16 rows by 32 columns for every part, largest first. Both may be the
    /// same, if there are 16 rows at most.
    pub(crate) a: [*const u16; 2],
    /// For each chunk every part, largest first, as a chunk of [`Bf16Block`](crate::micro::Bf16Block).
    pub(crate) b: *const u16,
    pub(crate) b_parts: usize,
    pub(crate) chunks: usize,
    /// Sums, rows adjacent.
    pub(crate) c: *mut f32,
    pub(crate) accumulate: bool,
    /// As of a [block of bf16](crate::micro::Bf16Block::again), if `b` has one part and stands where it is kept.
    pub(crate) again: Again,
    pub(crate) fetch: Fetch,
}

/// How an instruction set multiplies in parts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MicroParts {
    /// # Safety
    ///
    /// The instruction set is available; all that the block names exists, and 32 rows of `c`, which are this thread's;
    /// called between `enter` and `leave`.
    pub(crate) run: unsafe fn(&PartsBlock),
    /// Makes tiles of some columns of at most 16 rows of f32, that far apart: for each chunk all parts, zeros behind the
    /// last column.
    ///
    /// # Safety
    ///
    /// The instruction set is available; the rows exist, and room for whole tiles.
    pub(crate) split_rows: unsafe fn(*const f32, usize, usize, usize, *mut u16),
    /// Makes chunks of three parts of a panel of f32 of some depth, zeros behind it.
    ///
    /// # Safety
    ///
    /// The instruction set is available; so many rows of the panel exist, and room for whole chunks.
    pub(crate) split_f32: unsafe fn(*const f32, usize, *mut u16),
    /// The same of two parts, of f16.
    ///
    /// # Safety
    ///
    /// As `split_f32`.
    pub(crate) split_f16: unsafe fn(*const u16, usize, *mut u16),
    /// As [`MicroBf16::enter`](crate::micro::MicroBf16::enter).
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

/// Parts of weights that are kept so; `None` if they are not multiplied in parts.
pub(crate) fn parts_of(storage: Storage) -> Option<usize> {
    match storage {
        Storage::F32 | Storage::Rows => Some(3),
        Storage::F16 => Some(2),
        Storage::Bf16 => Some(1),
        _ => None,
    }
}

/// f32 that a worker needs for a block of weights of some depth in parts.
pub(crate) const fn room(depth: usize) -> usize {
    depth.next_multiple_of(CHUNK) * PANEL * PARTS / 2
}

/// What flows into a product, in parts.
pub(crate) struct InParts<'a> {
    /// `None` once it is given back.
    memory: Option<Buffer>,
    chunks: usize,
    scratch: &'a [Mutex<Scratch>],
}

impl<'a> InParts<'a> {
    /// The parts of an operand of f32.
    pub(crate) fn of(
        micro: &MicroParts,
        pool: &Pool,
        scratch: &'a [Mutex<Scratch>],
        x: &Operand,
    ) -> Self {
        let chunks = x.columns.div_ceil(CHUNK);
        let groups = x.tokens.div_ceil(TILE_ROWS);
        let group = chunks * PARTS * TILE;
        let mut memory = scratch_of(scratch, 0).take_shared(groups * group * size_of::<u16>());
        let start = Shared::new(memory.as_mut_ptr());
        pool.run(groups, |number, _| {
            let first = number * TILE_ROWS;
            // SAFETY: the instruction set is available; the rows exist, and groups do not overlap.
            unsafe {
                (micro.split_rows)(
                    x.as_f32().add(x.stride.at(first, 0)),
                    x.stride.row,
                    TILE_ROWS.min(x.tokens - first),
                    x.columns,
                    start.get().cast::<u16>().add(number * group),
                );
            }
        });
        InParts {
            memory: Some(memory),
            chunks,
            scratch,
        }
    }

    /// Both groups of 16 of `rows` rows from `first` on, from `k` on; the first one twice if there is no other.
    pub(crate) fn groups(&self, first: usize, rows: usize, k: usize) -> [*const u16; 2] {
        let Some(memory) = &self.memory else {
            unreachable!("given back when dropped")
        };
        let of = |group: usize| {
            let tile = (group * self.chunks + k / CHUNK) * PARTS;
            memory.as_ptr().cast::<u16>().wrapping_add(tile * TILE)
        };
        let group = first / TILE_ROWS;
        [of(group), of(group + usize::from(rows > TILE_ROWS))]
    }
}

impl Drop for InParts<'_> {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            scratch_of(self.scratch, 0).give_shared(memory);
        }
    }
}
