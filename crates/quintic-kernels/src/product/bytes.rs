//! Products of bytes: weights are codes, and what flows in becomes codes, row by row.
//!
//! # Numerics
//!
//! A row becomes the nearest whole numbers to itself over its largest magnitude / 127; sums of
//! products are exact. The result is `sum * row's factor * column's factor`, three numbers of
//! f32, so all instruction sets give the same bits, and a row's bits depend on that row alone.
//!
//! Of [`Storage::Int8Wide`](crate::Storage::Int8Wide) a row becomes the nearest whole numbers to itself over its
//! largest magnitude / 32,639: 16 bits, that is a row of high bytes and one of low bytes, which are
//! multiplied like two rows. `256 * high sum + low sum` is rounded three times to f32. The rounding of
//! a row is at most a 65,278th of its largest magnitude: finer than bf16's for all values above a
//! 128th of it.

use std::sync::Mutex;

use super::{Ahead, MAX_PANELS, MAX_ROWS, SMALL, Tasks, again_of};
use crate::memory::{Buffer, Shared};
use crate::micro::{Again, Fetch, PANEL};
use crate::operand::{Operand, row_stride};
use crate::pack::{PackedMatrix, Storage};
use crate::pool::Pool;
use crate::quantised::{CHUNK, Int8Block, IntSums, RowCodes};
use crate::rowwise::{Finish, FinishBlock};
use crate::scratch::{Scratch, scratch_of};
use crate::table::Table;

/// Depth of a block: a panel of it is 32 KiB.
const DEPTH: usize = 1024;

/// The same of 4-bit codes, which become bytes in the worker's memory first: 16 KiB stay in the
/// first-level cache.
const EXPANDED_DEPTH: usize = 512;

/// Rows that one thread makes codes of at a time.
const QUANTISED_ROWS: usize = 8;

/// Tokens as rows of codes.
struct Codes {
    /// Codes of a row, padded with zeros to whole chunks; rows are `row` bytes apart, and padded
    /// to whole calls of a kernel.
    codes: Buffer,
    row: usize,
    rows: Vec<RowCodes>,
    /// Rows of a token: one, or of high and of low bytes.
    planes: usize,
}

impl Codes {
    fn of(
        table: &Table,
        pool: &Pool,
        scratch: &[Mutex<Scratch>],
        x: &Operand,
        planes: usize,
    ) -> Self {
        let row = row_stride(x.columns.next_multiple_of(CHUNK), 1);
        let n_rows = x.tokens * planes;
        let padded = n_rows.next_multiple_of(table.int8.row_multiple);
        let mut codes = Buffer::zeroed(padded * row);
        let mut rows = vec![RowCodes::default(); n_rows];
        let (start, starts) = (
            Shared::new(codes.as_mut_ptr()),
            Shared::new(rows.as_mut_ptr()),
        );
        pool.run(x.tokens.div_ceil(QUANTISED_ROWS), |task, worker| {
            let first = task * QUANTISED_ROWS;
            let mut scratch = scratch_of(scratch, worker);
            for token in first..x.tokens.min(first + QUANTISED_ROWS) {
                // SAFETY: rows of different tasks differ, and were allocated.
                unsafe {
                    let room =
                        std::slice::from_raw_parts_mut(scratch.f32(x.columns.max(1)), x.columns);
                    let values = match x.row_f32(token) {
                        Some(values) => values,
                        None => {
                            x.read_row(token, room);
                            room
                        }
                    };
                    let first = token * planes;
                    let out = |plane: usize| {
                        let out = start.get().add((first + plane) * row).cast::<i8>();
                        std::slice::from_raw_parts_mut(out, row)
                    };
                    let rows = starts.get().add(first);
                    if planes == 1 {
                        *rows = (table.quantised.quantise)(values, out(0));
                    } else {
                        let [high, low] = (table.quantised.quantise_wide)(values, [out(0), out(1)]);
                        *rows = high;
                        *rows.add(1) = low;
                    }
                }
            }
        });
        Codes {
            codes,
            row,
            rows,
            planes,
        }
    }
}

/// As the plan of other products.
pub(super) struct Plan<'a> {
    table: &'a Table,
    x: Codes,
    w: &'a PackedMatrix,
    /// Rows of codes of a block, and of a call of the kernel: whole tokens.
    block_rows: usize,
    micro_rows: usize,
    panels: usize,
}

impl<'a> Plan<'a> {
    /// Makes codes of `x`, in so many bytes a value.
    pub(super) fn new(
        table: &'a Table,
        pool: &Pool,
        scratch: &[Mutex<Scratch>],
        x: &Operand,
        planes: usize,
        w: &'a PackedMatrix,
    ) -> Self {
        let x = Codes::of(table, pool, scratch, x, planes);
        let rows = x.rows.len();
        let micro_rows = table.int8.max_rows / planes * planes;
        let blocks = rows.div_ceil(MAX_ROWS);
        let block_rows = rows.div_ceil(blocks).next_multiple_of(micro_rows);
        let panels = match block_rows.min(rows) * x.row <= SMALL {
            true => 1,
            false => (w.shape().panels() / (4 * pool.threads())).clamp(1, MAX_PANELS),
        };
        Plan {
            table,
            x,
            w,
            block_rows,
            micro_rows,
            panels,
        }
    }
}

impl Tasks for Plan<'_> {
    fn tokens(&self) -> usize {
        self.x.rows.len() / self.x.planes
    }

    fn block_tokens(&self) -> usize {
        self.block_rows / self.x.planes
    }

    fn cut_to(&mut self, tokens: usize) {
        let rows = (tokens * self.x.planes).next_multiple_of(self.micro_rows);
        self.block_rows = self.block_rows.min(rows);
    }

    fn panels(&self) -> usize {
        self.panels
    }

    fn weights(&self) -> &PackedMatrix {
        self.w
    }

    unsafe fn run(&self, task: usize, scratch: &mut Scratch, finish: &Finish) {
        let (shape, micro) = (self.w.shape(), self.table.int8);
        let first_row = task % self.row_blocks() * self.block_rows;
        let rows = self.block_rows.min(self.x.rows.len() - first_row);
        let first_panel = task / self.row_blocks() * self.panels;
        let panels = self.panels.min(shape.panels() - first_panel);
        let depth = shape.depth.next_multiple_of(CHUNK);
        // A kernel may write whole blocks of rows.
        let tile = self.block_rows.next_multiple_of(32) * PANEL;
        let (most, n_expanded) = match self.is_expanded() {
            true => (EXPANDED_DEPTH, EXPANDED_DEPTH * PANEL / size_of::<f32>()),
            false => (DEPTH, 0),
        };
        let room = scratch.f32(n_expanded + panels * tile);
        // SAFETY: the room was just made; codes are in front of sums.
        let (expanded, sums) = unsafe { (room.cast::<u8>(), room.add(n_expanded).cast::<i32>()) };
        // SAFETY: by the caller's word.
        unsafe { (micro.enter)() };
        let mut k = 0;
        // A depth of zero still has sums: zeros.
        loop {
            let step = most.min(depth - k);
            let last = k + step == depth;
            for panel in 0..panels {
                let number = first_panel + panel;
                let next = match panel + 1 < panels {
                    true => (number + 1, k),
                    false if last => (first_panel + panels, 0),
                    false => (first_panel, k + step),
                };
                let calls = rows.div_ceil(self.micro_rows);
                let next = self.next_bytes(next, step);
                let mut ahead = match micro.fetches {
                    true => Ahead::of(&[], calls),
                    false => Ahead::of(next, calls),
                };
                // SAFETY: by the caller's word; there is room for a block.
                let codes = unsafe { self.codes(number, k, step, expanded) };
                for (call, row) in (0..rows).step_by(self.micro_rows).enumerate() {
                    ahead.fetch();
                    let block_rows = self.micro_rows.min(rows - row);
                    let (again, fetch) = match self.is_expanded() && calls == 1 {
                        // Bytes are near, what they are made of is not.
                        true => (
                            Again::B,
                            Fetch::part_of_chunks(next, call, calls, step / CHUNK),
                        ),
                        false => again_of(next, call, calls, step / CHUNK),
                    };
                    // SAFETY: rows and `k` are inside the codes and the panel, rows inside the
                    // tile of sums.
                    unsafe {
                        let sums = sums.add(panel * tile + row * PANEL);
                        let at = (first_row + row) * self.x.row + k;
                        (micro.run)(&Int8Block {
                            a: self.x.codes.as_ptr().add(at).cast(),
                            a_row: self.x.row,
                            b: codes,
                            chunks: step / CHUNK,
                            c: sums,
                            rows: block_rows,
                            accumulate: k > 0,
                            again,
                            fetch,
                        });
                        if last {
                            self.finish(number, sums, first_row + row, block_rows, finish);
                        }
                    }
                }
            }
            k += step;
            if last {
                break;
            }
        }
        // SAFETY: by the caller's word.
        unsafe { (micro.leave)() };
    }
}

impl Plan<'_> {
    fn is_expanded(&self) -> bool {
        self.w.shape().storage == Storage::Int4Wide
    }

    /// The codes of a block of a panel as bytes, in `room` if they are not stored so.
    ///
    /// # Safety
    ///
    /// As [`Tasks::run`]; `room` has a byte for each code of the block.
    unsafe fn codes(&self, panel: usize, k: usize, step: usize, room: *mut u8) -> *const i8 {
        let storage = self.w.shape().storage;
        let first = storage.codes_bytes(k);
        let codes = &self.w.panel(panel, 0)[first..first + storage.codes_bytes(step)];
        if !self.is_expanded() {
            return codes.as_ptr().cast();
        }
        // SAFETY: by the caller's word; a block is whole chunks.
        unsafe {
            let out = std::slice::from_raw_parts_mut(room, step * PANEL);
            (self.table.quantised.int4_to_int8)(codes, out);
        }
        room.cast_const().cast()
    }

    /// # Safety
    ///
    /// As [`Tasks::run`]; the sums exist, of whole tokens.
    unsafe fn finish(
        &self,
        panel: usize,
        sums: *mut i32,
        first_row: usize,
        rows: usize,
        finish: &Finish,
    ) {
        let shape = self.w.shape();
        let Some(columns) = self.w.factors(panel) else {
            unreachable!("codes have factors")
        };
        // SAFETY: by the caller's word.
        unsafe {
            let finish_sums = match self.x.planes {
                1 => self.table.quantised.finish,
                _ => self.table.quantised.finish_wide,
            };
            finish_sums(&IntSums {
                sums,
                columns,
                offset: self.table.int8.offset,
                rows: &self.x.rows[first_row..first_row + rows],
            });
            (self.table.rows.finish)(&FinishBlock {
                sums: sums.cast(),
                rows: rows / self.x.planes,
                token: first_row / self.x.planes,
                column: panel * shape.panel_columns(),
                columns: shape.columns,
                finish: *finish,
            });
        }
    }

    /// The weights of the next block, to be fetched while this one is multiplied.
    fn next_bytes(&self, (panel, k): (usize, usize), step: usize) -> &[u8] {
        if panel >= self.w.shape().panels() {
            return &[];
        }
        let (bytes, storage) = (self.w.panel(panel, 0), self.w.shape().storage);
        let first = storage.codes_bytes(k).min(bytes.len());
        let end = (first + storage.codes_bytes(step)).min(bytes.len());
        &bytes[first..end]
    }
}
