//! Products of bytes: weights are codes, and what flows in becomes codes, row by row.
//!
//! # Numerics
//!
//! A row becomes the nearest whole numbers to itself over its largest magnitude / 127; sums of
//! products are exact. The result is `sum * row's factor * column's factor`, three numbers of
//! f32, so all instruction sets give the same bits, and a row's bits depend on that row alone.

use std::sync::Mutex;

use super::{Ahead, MAX_PANELS, MAX_ROWS, SMALL, Scratch, scratch_of};
use crate::memory::{Buffer, Shared};
use crate::micro::PANEL;
use crate::operand::{Operand, row_stride};
use crate::pack::PackedMatrix;
use crate::pool::Pool;
use crate::quantised::{CHUNK, Int8Block, IntSums, RowCodes};
use crate::rowwise::{Finish, FinishBlock};
use crate::table::Table;

/// Depth of a block: a panel of it is 32 KiB.
const DEPTH: usize = 1024;

/// Rows that one thread makes codes of at a time.
const QUANTISED_ROWS: usize = 8;

/// Rows as codes.
struct Codes {
    /// Codes of a row, padded with zeros to whole chunks; rows are `row` bytes apart, and padded
    /// to whole calls of a kernel.
    codes: Buffer,
    row: usize,
    rows: Vec<RowCodes>,
}

impl Codes {
    fn of(table: &Table, pool: &Pool, scratch: &[Mutex<Scratch>], x: &Operand) -> Self {
        let row = row_stride(x.columns.next_multiple_of(CHUNK), 1);
        let padded = x.tokens.next_multiple_of(table.int8.row_multiple);
        let mut codes = Buffer::zeroed(padded * row);
        let mut rows = vec![RowCodes::default(); x.tokens];
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
                    let values =
                        std::slice::from_raw_parts_mut(scratch.f32(x.columns.max(1)), x.columns);
                    let out = start.get().add(token * row).cast::<i8>();
                    let out = std::slice::from_raw_parts_mut(out, row);
                    let codes = match x.row_f32(token) {
                        Some(values) => (table.quantised.quantise)(values, out),
                        None => {
                            x.read_row(token, values);
                            (table.quantised.quantise)(values, out)
                        }
                    };
                    *starts.get().add(token) = codes;
                }
            }
        });
        Codes { codes, row, rows }
    }
}

/// `x w^T`, finished as `finish` says.
pub(super) fn product(
    table: &Table,
    pool: &Pool,
    scratch: &[Mutex<Scratch>],
    x: &Operand,
    w: &PackedMatrix,
    finish: Finish,
) {
    let codes = Codes::of(table, pool, scratch, x);
    let plan = Plan::new(table, pool.threads(), &codes, w);
    pool.run(plan.n_tasks(), |task, worker| {
        let mut scratch = scratch_of(scratch, worker);
        // SAFETY: the table's instruction set is available; tasks cover different rows or
        // panels of a result that belongs to this operation.
        unsafe { plan.run(task, &mut scratch, &finish) }
    });
}

/// As the plan of other products.
struct Plan<'a> {
    table: &'a Table,
    x: &'a Codes,
    w: &'a PackedMatrix,
    block_rows: usize,
    panels: usize,
}

impl<'a> Plan<'a> {
    fn new(table: &'a Table, threads: usize, x: &'a Codes, w: &'a PackedMatrix) -> Self {
        let tokens = x.rows.len();
        let blocks = tokens.div_ceil(MAX_ROWS);
        let block_rows = tokens
            .div_ceil(blocks)
            .next_multiple_of(table.int8.max_rows);
        let panels = match block_rows.min(tokens) * x.row <= SMALL {
            true => 1,
            false => (w.shape().panels() / (4 * threads)).clamp(1, MAX_PANELS),
        };
        Plan {
            table,
            x,
            w,
            block_rows,
            panels,
        }
    }

    fn row_blocks(&self) -> usize {
        self.x.rows.len().div_ceil(self.block_rows)
    }

    fn n_tasks(&self) -> usize {
        self.row_blocks() * self.w.shape().panels().div_ceil(self.panels)
    }

    /// # Safety
    ///
    /// As the other plan's.
    unsafe fn run(&self, task: usize, scratch: &mut Scratch, finish: &Finish) {
        let (shape, micro) = (self.w.shape(), self.table.int8);
        let first_row = task % self.row_blocks() * self.block_rows;
        let rows = self.block_rows.min(self.x.rows.len() - first_row);
        let first_panel = task / self.row_blocks() * self.panels;
        let panels = self.panels.min(shape.panels() - first_panel);
        let depth = shape.depth.next_multiple_of(CHUNK);
        // A kernel may write whole blocks of rows.
        let tile = self.block_rows.next_multiple_of(32) * PANEL;
        let sums = scratch.f32(panels * tile).cast::<i32>();
        // SAFETY: by the caller's word.
        unsafe { (micro.enter)() };
        let mut k = 0;
        // A depth of zero still has sums: zeros.
        loop {
            let step = DEPTH.min(depth - k);
            let last = k + step == depth;
            for panel in 0..panels {
                let number = first_panel + panel;
                let next = match panel + 1 < panels {
                    true => (number + 1, k),
                    false if last => (first_panel + panels, 0),
                    false => (first_panel, k + step),
                };
                let mut ahead = self.ahead(next, step, rows);
                for row in (0..rows).step_by(micro.max_rows) {
                    ahead.fetch();
                    let block_rows = micro.max_rows.min(rows - row);
                    // SAFETY: rows and `k` are inside the codes and the panel, rows inside the
                    // tile of sums.
                    unsafe {
                        let sums = sums.add(panel * tile + row * PANEL);
                        let at = (first_row + row) * self.x.row + k;
                        (micro.run)(&Int8Block {
                            a: self.x.codes.as_ptr().add(at).cast(),
                            a_row: self.x.row,
                            b: self.w.panel(number, 0).as_ptr().add(k * PANEL).cast(),
                            chunks: step / CHUNK,
                            c: sums,
                            rows: block_rows,
                            accumulate: k > 0,
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

    /// # Safety
    ///
    /// As [`Plan::run`]; the sums exist.
    unsafe fn finish(
        &self,
        panel: usize,
        sums: *mut i32,
        token: usize,
        rows: usize,
        finish: &Finish,
    ) {
        let shape = self.w.shape();
        let Some(columns) = self.w.factors(panel) else {
            unreachable!("codes have factors")
        };
        // SAFETY: by the caller's word.
        unsafe {
            (self.table.quantised.finish)(&IntSums {
                sums,
                columns,
                offset: self.table.int8.offset,
                rows: &self.x.rows[token..token + rows],
            });
            (self.table.rows.finish)(&FinishBlock {
                sums: sums.cast(),
                rows,
                token,
                column: panel * shape.panel_columns(),
                columns: shape.columns,
                finish: *finish,
            });
        }
    }

    /// The weights of the next block, to be fetched while this one is multiplied.
    fn ahead(&self, (panel, k): (usize, usize), step: usize, rows: usize) -> Ahead {
        let calls = rows.div_ceil(self.table.int8.max_rows);
        if panel >= self.w.shape().panels() {
            return Ahead::nothing();
        }
        let bytes = self.w.panel(panel, 0);
        Ahead::of(&bytes[(k * PANEL).min(bytes.len())..], step * PANEL, calls)
    }
}
