//! Bias and mask of a block of scores: what sums begin with, and what is done to them afterwards.

use std::ops::Range;

use super::{MAX_QUERIES, Work};
use crate::micro::PANEL;
use crate::scores::{NoBias, NoMask, ScoreBias, ScoreMask, ScoresAt, modify};

impl<B: ScoreBias, M: ScoreMask> Work<'_, B, M> {
    /// Whether sums of scores begin with the bias.
    pub(super) fn begins_with_bias(&self) -> bool {
        self.planes.scores.is_some() && self.bias.is_relative()
    }

    /// The bias of a block of keys for the last of as many queries as a block may have, and behind it that of as many
    /// more keys: what the query before begins with is one value further on.
    pub(super) unsafe fn strip(
        &self,
        memory: *mut f32,
        query: usize,
        keys: &Range<usize>,
    ) -> *const f32 {
        let n = keys.len().next_multiple_of(PANEL) + MAX_QUERIES;
        let at = ScoresAt {
            row: self.task.row,
            head: self.head(),
            query: query + MAX_QUERIES - 1,
            first_key: keys.start,
        };
        // SAFETY: as in `run`; room was made for a block of keys and as many more as there are queries.
        unsafe {
            let strip = memory.add(self.room.strip);
            let values = std::slice::from_raw_parts_mut(strip, n);
            values.fill(0.0);
            modify(self.kernels.isa(), self.bias, &NoMask, at, true, values);
            strip.add(MAX_QUERIES - 1)
        }
    }

    /// Bias and mask of some keys of a block that begins at `start`; the bias only if sums did not begin with it.
    pub(super) unsafe fn modify(
        &self,
        memory: *mut f32,
        n: usize,
        first_query: usize,
        start: usize,
        keys: &Range<usize>,
        full: bool,
    ) {
        let isa = self.kernels.isa();
        for query in 0..n {
            let at = ScoresAt {
                row: self.task.row,
                head: self.head(),
                query: first_query + query,
                first_key: keys.start,
            };
            // SAFETY: as in `run`.
            unsafe {
                let scores = self.scores_of(memory, query, keys.start - start, keys.len());
                match self.begins_with_bias() {
                    true => modify(isa, &NoBias, self.mask, at, full, scores),
                    false => modify(isa, self.bias, self.mask, at, full, scores),
                }
            }
        }
    }
}
