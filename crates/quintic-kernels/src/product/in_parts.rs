//! Blocks of f32 that are multiplied in parts of bf16, see [`crate::parts`].

use super::{Ahead, BlockOf, F32_DEPTH, Plan, again_of};
use crate::micro::{Again, CHUNK, Fetch, PANEL};
use crate::pack::Storage;
use crate::parts::{InParts, MicroParts, PartsBlock, parts_of};

impl Plan<'_> {
    /// # Safety
    ///
    /// As [`Plan::run`].
    pub(super) unsafe fn parts_block(
        &self,
        block: &BlockOf<'_>,
        micro: &MicroParts,
        x: &InParts<'_>,
    ) {
        let storage = self.w.shape().storage;
        let Some(b_parts) = parts_of(storage) else {
            unreachable!("looked at when the weights were told to be in parts")
        };
        let panel = || self.w.panel(block.panel, 0).as_ptr();
        let room = block.wide.wrapping_add(F32_DEPTH * PANEL).cast::<u16>();
        // SAFETY: `k` is inside the panel, which is aligned; `wide_room` has made room for a block in f32 and in parts.
        let b = unsafe {
            match storage {
                Storage::Bf16 => panel().cast::<u16>().add(block.k * PANEL),
                Storage::F16 => {
                    let panel = panel().cast::<u16>().add(block.k * PANEL);
                    (micro.split_f16)(panel, block.step, room);
                    room.cast_const()
                }
                Storage::Rows => {
                    self.expand_rows(block);
                    (micro.split_f32)(block.wide, block.step, room);
                    room.cast_const()
                }
                _ => {
                    let panel = panel().cast::<f32>().add(block.k * PANEL);
                    (micro.split_f32)(panel, block.step, room);
                    room.cast_const()
                }
            }
        };
        let calls = block.rows.div_ceil(self.micro_rows);
        let (next, chunks) = (self.next_bytes(block), block.step.div_ceil(CHUNK));
        let mut ahead = Ahead::of(next, calls);
        for (call, row) in (0..block.rows).step_by(self.micro_rows).enumerate() {
            ahead.fetch();
            let (again, fetch) = match (b_parts, calls) {
                // Making parts has asked for the first half.
                (2 | 3, 1) => (Again::Next, Fetch::half(next, 1)),
                _ => again_of(next, call, calls, chunks),
            };
            let rows = self.micro_rows.min(block.rows - row);
            // SAFETY: by the caller's word; the tile of sums has whole blocks of rows.
            unsafe {
                (micro.run)(&PartsBlock {
                    a: x.groups(block.first_row + row, rows, block.k),
                    b,
                    b_parts,
                    chunks,
                    c: block.sums.add(row * PANEL),
                    accumulate: block.k > 0,
                    again,
                    fetch,
                });
                self.finish(block, row, rows);
            }
        }
    }
}
