//! Products whose results are used up section by section, and never stand in memory whole.

use std::sync::Mutex;

use super::{Plan, Tasks, bytes};
use crate::memory::Shared;
use crate::micro::PANEL;
use crate::operand::Operand;
use crate::pack::PackedMatrix;
use crate::pool::Pool;
use crate::rowwise::Finish;
use crate::scratch::{Scratch, scratch_of};
use crate::table::Table;

/// Panels of a section of [`product_in_sections`]: a whole number of any task's panels.
const SECTION_PANELS: usize = 24;

/// Columns of a section of [`product_in_sections`].
pub(crate) const SECTION: usize = SECTION_PANELS * PANEL;

/// Most rows of a section: with its columns, 192 KiB.
const SECTION_ROWS: usize = 64;

/// Part of a product's result, whose memory is used again for the next one.
pub(crate) struct Section<'a> {
    /// Row of the first value.
    pub(crate) first_row: usize,
    /// Number of the section in its rows: its first column is `SECTION` times this.
    pub(crate) number: usize,
    /// `[rows, columns]`.
    pub(crate) values: &'a [f32],
    pub(crate) columns: usize,
}

/// `scale * x w^T`, section by section: each is handed to `take` while it is in a near cache, and then
/// forgotten. Bit for bit what [`product`] stores.
pub(crate) fn product_in_sections(
    table: &Table,
    pool: &Pool,
    scratch: &[Mutex<Scratch>],
    x: &Operand,
    w: &PackedMatrix,
    scale: f32,
    take: impl Fn(&Section<'_>) + Sync,
) {
    let shape = w.shape();
    assert_eq!(
        (x.columns, shape.gated),
        (shape.depth, false),
        "product of [{}, {}] with weights of depth {}",
        x.tokens,
        x.columns,
        shape.depth
    );
    if x.tokens == 0 || shape.columns == 0 {
        return;
    }
    match shape.storage.planes() {
        Some(planes) => {
            let plan = bytes::Plan::new(table, pool, scratch, x, planes, w);
            run_in_sections(plan, pool, scratch, scale, take);
        }
        None => {
            let plan = Plan::new(table, pool, scratch, x, w);
            run_in_sections(plan, pool, scratch, scale, take);
        }
    }
}

fn run_in_sections(
    mut plan: impl Tasks,
    pool: &Pool,
    scratch: &[Mutex<Scratch>],
    scale: f32,
    take: impl Fn(&Section<'_>) + Sync,
) {
    let shape = plan.weights().shape();
    plan.cut_to(SECTION_ROWS);
    let row_blocks = plan.row_blocks();
    let n_sections = shape.panels().div_ceil(SECTION_PANELS);
    pool.run(n_sections * row_blocks, |task, worker| {
        let mut scratch = scratch_of(scratch, worker);
        let (number, row_block) = (task / row_blocks, task % row_blocks);
        let first_row = row_block * plan.block_tokens();
        let rows = plan.block_tokens().min(plan.tokens() - first_row);
        let first = number * SECTION;
        let columns = SECTION.min(shape.columns - first);
        let values = scratch.section(rows * columns);
        let finish = Finish::Scale {
            // Rows and columns are counted from those of the whole result.
            out: Shared::new(values.wrapping_sub(first_row * columns + first)),
            row: columns,
            scale,
        };
        let panels = number * SECTION_PANELS..((number + 1) * SECTION_PANELS).min(shape.panels());
        for panel in panels.step_by(plan.panels()) {
            let task = panel / plan.panels() * row_blocks + row_block;
            // SAFETY: the table's instruction set is available; the section's memory has room for its
            // rows and columns, and is this worker's.
            unsafe { plan.run(task, &mut scratch, &finish) }
        }
        // SAFETY: every element was written: the section's panels cover its columns.
        let values = unsafe { std::slice::from_raw_parts(values, rows * columns) };
        take(&Section {
            first_row,
            number,
            values,
            columns,
        });
    });
}
