//! Products with codes of 8 and 4 bits, see [`quantised`](crate::quantised).
//!
//! A block of a panel is expanded in the worker's own memory and then multiplied like any other,
//! since what is expanded is exact; few rows go without that. The columns' factors are for
//! [`Plan::finish`].

use super::{BF16_DEPTH, BlockOf, F32_DEPTH, Plan};
use crate::micro::{Again, Bf16Block, CHUNK, F32Block, Fetch, PANEL};
use crate::pack::Storage;
use crate::quantised::{self, FewRows, INT8_CHUNK};

/// Room for a block of a panel, in f32: expanded, and behind that one chunk of int8.
pub(super) const ROOM: usize = EXPANDED + INT8_CHUNK / size_of::<f32>();

/// The same without the chunk; a block of bf16 is as large as one of f32.
const EXPANDED: usize = {
    let (f32, bf16) = (F32_DEPTH * PANEL, BF16_DEPTH * PANEL / 2);
    if f32 > bf16 { f32 } else { bf16 }
};

impl Plan<'_> {
    /// The chunks of a block's codes.
    fn codes(&self, block: &BlockOf<'_>) -> &[u8] {
        let storage = self.w.shape().storage;
        let first = storage.codes_bytes(block.k);
        &self.w.panel(block.panel, 0)[first..first + storage.codes_bytes(block.step)]
    }

    /// A block of a panel as rows of 32 f32.
    ///
    /// # Safety
    ///
    /// As [`Plan::run`].
    pub(super) unsafe fn expand_f32(&self, block: &BlockOf<'_>) -> *const f32 {
        let expand = self.table.quantised.int8_to_f32;
        // SAFETY: by the caller's word; a block has at most `F32_DEPTH` rows, whole chunks.
        unsafe { self.expand_codes(block, block.wide, expand) };
        block.wide
    }

    /// A block of a panel as chunks of bf16.
    ///
    /// # Safety
    ///
    /// As [`Plan::run`].
    pub(super) unsafe fn expand_bf16(&self, block: &BlockOf<'_>) -> *const u16 {
        let expand = self.table.quantised.int8_to_bf16;
        // SAFETY: by the caller's word; a block has at most `BF16_DEPTH` rows, whole chunks.
        unsafe { self.expand_codes(block, block.wide.cast(), expand) };
        block.wide.cast()
    }

    /// # Safety
    ///
    /// As [`Plan::run`]; `out` has room for every code of the block, in [`EXPANDED`].
    unsafe fn expand_codes<T>(
        &self,
        block: &BlockOf<'_>,
        out: *mut T,
        expand: unsafe fn(&[u8], &mut [T]),
    ) {
        let codes = self.codes(block);
        let n_codes = block.step.next_multiple_of(quantised::CHUNK) * PANEL;
        // SAFETY: by the caller's word; the chunk stands behind what is expanded.
        unsafe {
            let out = std::slice::from_raw_parts_mut(out, n_codes);
            if self.w.shape().storage != Storage::Int4 {
                return expand(codes, out);
            }
            let chunk = block.wide.add(EXPANDED).cast::<u8>();
            let chunk = std::slice::from_raw_parts_mut(chunk, INT8_CHUNK);
            for (codes, out) in codes
                .chunks_exact(quantised::INT4_CHUNK)
                .zip(out.chunks_exact_mut(INT8_CHUNK))
            {
                (self.table.quantised.int4_to_int8)(codes, chunk);
                expand(chunk, out);
            }
        }
    }

    /// Multiplies few rows of f32, if there is a kernel of its own for it.
    ///
    /// # Safety
    ///
    /// As [`Plan::run`].
    pub(super) unsafe fn few_f32(&self, block: &BlockOf<'_>) -> bool {
        let Some(run) = self.few(block, self.table.few_f32) else {
            return false;
        };
        // SAFETY: rows and `k` are inside the operand and the panel, rows inside the tile of
        // sums; so few rows are one call's.
        unsafe {
            run(&F32Block {
                a: (self.x.as_f32()).add(self.x.stride.at(block.first_row, 0) + block.k),
                a_row: self.x.stride.row,
                b: self.codes(block).as_ptr(),
                depth: block.step,
                c: block.sums,
                c_row: PANEL,
                rows: block.rows,
                accumulate: block.k > 0,
                fetch: Fetch::along(self.codes(block).as_ptr()),
            });
            self.finish(block, 0, block.rows);
        }
        true
    }

    /// Multiplies few rows of bf16, if there is a kernel of its own for it.
    ///
    /// # Safety
    ///
    /// As [`Plan::run`].
    pub(super) unsafe fn few_bf16(&self, block: &BlockOf<'_>) -> bool {
        let Some(run) = self.few(block, self.table.few_bf16) else {
            return false;
        };
        let at = self.x.stride.at(block.first_row, block.k);
        // SAFETY: as in `few_f32`.
        unsafe {
            run(&Bf16Block {
                a: self.x.as_bf16(0).add(at),
                a_row: self.x.stride.row,
                a_group: self.x.stride.group,
                a_chunk: self.x.stride.chunk,
                b: self.codes(block).as_ptr().cast(),
                chunks: block.step / CHUNK,
                c: block.sums,
                c_row: PANEL,
                rows: block.rows,
                accumulate: block.k > 0,
                again: Again::Memory,
                fetch: Fetch::along(self.codes(block).as_ptr()),
            });
            self.finish(block, 0, block.rows);
        }
        true
    }

    fn few<Block>(
        &self,
        block: &BlockOf<'_>,
        few: Option<FewRows<Block>>,
    ) -> Option<unsafe fn(&Block)> {
        let few = few?;
        let run = match self.w.shape().storage {
            Storage::Int8 => few.int8,
            Storage::Int4 => few.int4,
            _ => return None,
        };
        let fits = block.rows <= few.max_rows.min(self.micro_rows)
            && block.step.is_multiple_of(quantised::CHUNK);
        fits.then_some(run)
    }
}
