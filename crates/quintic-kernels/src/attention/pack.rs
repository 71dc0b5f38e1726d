//! Queries, keys and values of a task as products of bf16 read them: tile by tile, in two parts.

use std::ops::Range;

use super::{Attention, SCORE_PARTS, Work};
use crate::micro::{CHUNK, PANEL};
use crate::scores::{ScoreBias, ScoreMask};
use crate::tiles::{self, TileOf};

impl<B: ScoreBias, M: ScoreMask> Work<'_, B, M> {
    /// Keys in panels of 32, both parts of a panel one behind the other.
    ///
    /// # Safety
    ///
    /// As [`Work::pack`]: there is room at `to`.
    pub(super) unsafe fn key_tiles(&self, to: *mut u16) {
        let Attention { d_kv, keys, .. } = *self.attention;
        let chunks = d_kv.div_ceil(CHUNK);
        let n = self.seen.len();
        let part = chunks * CHUNK * PANEL;
        let panel = SCORE_PARTS * part;
        for first in (0..n.next_multiple_of(PANEL)).step_by(tiles::ROWS) {
            for chunk in 0..chunks {
                let half = first % PANEL / tiles::ROWS * tiles::SIZE;
                // SAFETY: by the caller's word; tiles of different parts do not overlap.
                unsafe {
                    let high = to.add(first / PANEL * panel + chunk * CHUNK * PANEL + half);
                    (self.kernels.table.tiles.keys)(&TileOf {
                        x: keys.keys,
                        token: keys.starts[self.task.row] + self.seen.start + first,
                        rows: tiles::ROWS.min(n.saturating_sub(first)),
                        column: keys.key_column + self.head() * d_kv + chunk * CHUNK,
                        columns: CHUNK.min(d_kv - chunk * CHUNK),
                        high,
                        low: high.add(part),
                    });
                }
            }
        }
    }

    /// Values in panels of 32 columns, for each part.
    ///
    /// # Safety
    ///
    /// As [`Work::pack`]: there is room at `to`.
    pub(super) unsafe fn value_tiles(&self, to: *mut u16, padded: usize) {
        let Attention { d_kv, keys, .. } = *self.attention;
        let n = self.seen.len();
        for panel in 0..d_kv.div_ceil(PANEL) {
            for first in (0..n).step_by(CHUNK) {
                // SAFETY: by the caller's word.
                unsafe {
                    let high = to.add((panel * padded + first) * PANEL);
                    (self.kernels.table.tiles.values)(&TileOf {
                        x: keys.values,
                        token: keys.starts[self.task.row] + self.seen.start + first,
                        rows: CHUNK.min(n - first),
                        column: keys.value_column + self.head() * d_kv + panel * PANEL,
                        columns: PANEL.min(d_kv - panel * PANEL),
                        high,
                        low: match self.planes.values {
                            1 => std::ptr::null_mut(),
                            _ => high.add(2 * self.room.plane),
                        },
                    });
                }
            }
        }
    }

    /// Queries of a block in groups of 16, as [`SplitBlock::a`](crate::micro::SplitBlock::a).
    ///
    /// # Safety
    ///
    /// As [`Work::load_queries`]: there is room at `to`.
    pub(super) unsafe fn query_tiles(&self, to: *mut u16, queries: &Range<usize>) {
        let Attention { d_kv, .. } = *self.attention;
        let chunks = d_kv.div_ceil(CHUNK);
        let first = self.attention.row_starts[self.task.row] + queries.start;
        for group in (0..queries.len()).step_by(tiles::ROWS) {
            for chunk in 0..chunks {
                // SAFETY: by the caller's word; tiles of different parts do not overlap.
                unsafe {
                    let high =
                        to.add(group * self.room.query_row + chunk * SCORE_PARTS * tiles::SIZE);
                    (self.kernels.table.tiles.rows)(&TileOf {
                        x: self.attention.queries,
                        token: first + group,
                        rows: tiles::ROWS.min(queries.len() - group),
                        column: self.head() * d_kv + chunk * CHUNK,
                        columns: CHUNK.min(d_kv - chunk * CHUNK),
                        high,
                        low: high.add(tiles::SIZE),
                    });
                }
            }
        }
    }
}
