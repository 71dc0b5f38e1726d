//! Queries, keys and values of a task as products of bf16 read them: tile by tile, with every term of a product.

use std::ops::Range;

use super::{Attention, Work, terms};
use crate::micro::{CHUNK, PANEL};
use crate::scores::{ScoreBias, ScoreMask};
use crate::tiles::{self, TileOf};

/// Among the terms of a score: the one that the nearest bf16 of a factor first belong to, the last one that they belong to,
/// and the one of what they leave.
struct Places {
    high: usize,
    high_again: usize,
    low: usize,
}

impl Places {
    /// `part` says which part of the factor a term has.
    fn of(planes: usize, part: impl Fn(&(usize, usize)) -> usize) -> Self {
        let terms = terms(planes);
        let is = |wanted: usize| move |found: usize| found == wanted;
        let parts = || terms.iter().map(&part);
        let places = (
            parts().position(is(0)),
            parts().rposition(is(0)),
            parts().position(is(1)),
        );
        let (Some(high), Some(high_again), Some(low)) = places else {
            unreachable!("queries and keys have two parts")
        };
        Places {
            high,
            high_again,
            low,
        }
    }
}

impl<B: ScoreBias, M: ScoreMask> Work<'_, B, M> {
    /// A tile in all terms, `step` values apart from `to` on. `make` writes both parts, whose places it adds.
    ///
    /// # Safety
    ///
    /// As `make`; the tile of every term exists.
    unsafe fn in_terms(
        make: unsafe fn(&TileOf<'_>),
        tile: &TileOf<'_>,
        places: &Places,
        to: *mut u16,
        step: usize,
    ) {
        // SAFETY: by the caller's word; tiles of different terms do not overlap.
        unsafe {
            let place = |term: usize| to.add(term * step);
            make(&TileOf {
                high: place(places.high),
                low: place(places.low),
                ..*tile
            });
            if places.high_again != places.high {
                let again = place(places.high_again);
                std::ptr::copy_nonoverlapping(place(places.high), again, tiles::SIZE);
            }
        }
    }

    /// Keys in panels of 32, each with all terms of the product.
    ///
    /// # Safety
    ///
    /// As [`Work::pack`]: there is room at `to`.
    pub(super) unsafe fn key_tiles(&self, to: *mut u16) {
        let Attention { d_kv, keys, .. } = *self.attention;
        let chunks = d_kv.div_ceil(CHUNK);
        let n = self.seen.len();
        let term = chunks * CHUNK * PANEL;
        let panel = terms(self.planes.scores).len() * term;
        let places = Places::of(self.planes.scores, |&(_, key)| key);
        for first in (0..n.next_multiple_of(PANEL)).step_by(tiles::ROWS) {
            for chunk in 0..chunks {
                let tile = TileOf {
                    x: keys.keys,
                    token: keys.starts[self.task.row] + self.seen.start + first,
                    rows: tiles::ROWS.min(n.saturating_sub(first)),
                    column: keys.key_column + self.head() * d_kv + chunk * CHUNK,
                    columns: CHUNK.min(d_kv - chunk * CHUNK),
                    high: std::ptr::null_mut(),
                    low: std::ptr::null_mut(),
                };
                let half = first % PANEL / tiles::ROWS * tiles::SIZE;
                // SAFETY: by the caller's word.
                unsafe {
                    let to = to.add(first / PANEL * panel + half + chunk * CHUNK * PANEL);
                    Self::in_terms(self.kernels.table.tiles.keys, &tile, &places, to, term);
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

    /// Queries of a block in groups of 16, each with all terms of the product.
    ///
    /// # Safety
    ///
    /// As [`Work::load_queries`]: there is room at `to`.
    pub(super) unsafe fn query_tiles(&self, to: *mut u16, queries: &Range<usize>) {
        let Attention { d_kv, .. } = *self.attention;
        let chunks = d_kv.div_ceil(CHUNK);
        let term = chunks * tiles::SIZE;
        let places = Places::of(self.planes.scores, |&(query, _)| query);
        let first = self.attention.row_starts[self.task.row] + queries.start;
        for group in (0..queries.len()).step_by(tiles::ROWS) {
            for chunk in 0..chunks {
                let tile = TileOf {
                    x: self.attention.queries,
                    token: first + group,
                    rows: tiles::ROWS.min(queries.len() - group),
                    column: self.head() * d_kv + chunk * CHUNK,
                    columns: CHUNK.min(d_kv - chunk * CHUNK),
                    high: std::ptr::null_mut(),
                    low: std::ptr::null_mut(),
                };
                // SAFETY: by the caller's word.
                unsafe {
                    let to = to.add(group * self.room.query_row + chunk * tiles::SIZE);
                    Self::in_terms(self.kernels.table.tiles.rows, &tile, &places, to, term);
                }
            }
        }
    }
}
