//! Attention of few queries, as a decoder's step has: one a row.
//!
//! Packing a row's keys and values into panels costs as much as reading them, which only many
//! queries make up for. Here they are read where they stand, once: a key is a dot product, a value
//! is added to sums in registers.

use std::ops::Range;

use super::{KEY_BLOCK, Work, f32_row};
use crate::operand::Sink;
use crate::scores::{ScoreBias, ScoreMask, ScoresAt, modify};

/// Rows with at most so many queries are computed this way. By AVX-512 it pays up to about eight
/// queries, by other instruction sets for one alone, which is what a decoder's step has. A row's
/// bits depend on its own number of queries, not on its company.
pub(super) const FEW: usize = 1;

impl<B: ScoreBias, M: ScoreMask> Work<'_, B, M> {
    /// Attention of a task's queries, one after the other, all in f32.
    ///
    /// # Safety
    ///
    /// As [`Work::run`].
    pub(super) unsafe fn run_few(&self, memory: *mut f32, out: &Sink) {
        for query in self.task.queries.clone() {
            // SAFETY: by the caller's word.
            unsafe { self.few_query(memory, query, out) }
        }
    }

    unsafe fn few_query(&self, memory: *mut f32, query: usize, out: &Sink) {
        let (rows, task, attention) = (&self.kernels.table.rows, self.task, self.attention);
        let d_kv = attention.d_kv;
        let token = attention.row_starts[task.row] + query;
        let position = query + self.offset;
        let alone = position..position + 1;
        let seen = self.mask.visible(task.row, alone.clone(), self.n_keys);
        let seen = seen.start.min(self.n_keys)..seen.end.min(self.n_keys);
        let gain = attention.head_gain(task.head);
        let mut max = f32::NEG_INFINITY;
        let mut sum = 0.0f32;
        // SAFETY: the room has a block of scores and `d_kv` sums; queries, keys and values were
        // checked to lie inside their operands; the instruction set is available.
        unsafe {
            let q = f32_row(attention.queries, token, task.head * d_kv, d_kv);
            let sums = std::slice::from_raw_parts_mut(memory.add(self.room.sums), d_kv);
            sums.fill(0.0);
            for first in seen.clone().step_by(KEY_BLOCK) {
                let keys = first..(first + KEY_BLOCK).min(seen.end);
                let scores = memory.add(self.room.scores);
                let scores = std::slice::from_raw_parts_mut(scores, keys.len());
                let (k, v) = self.keys_values(&keys);
                (rows.dots)(q, k.0, k.1, scores);
                let full = self.mask.is_full(task.row, alone.clone(), keys.clone());
                let at = ScoresAt {
                    row: task.row,
                    head: task.head,
                    query: position,
                    first_key: keys.start,
                };
                modify(self.kernels.isa(), self.bias, self.mask, at, full, scores);
                let new = (rows.max)(scores);
                let new = if new > max { new } else { max };
                if first > seen.start && new > max {
                    let factor = match max == f32::NEG_INFINITY {
                        true => 0.0,
                        false => crate::math::exp::<false>(max - new),
                    };
                    sum *= factor;
                    (rows.scale)(sums, factor);
                }
                max = new;
                // Before any key was seen there is nothing to subtract.
                let shift = if max == f32::NEG_INFINITY { 0.0 } else { max };
                sum += (rows.exp)(scores, shift);
                (rows.mix)(scores, v.0, v.1, sums);
            }
            if max == f32::NEG_INFINITY && sum == 0.0 {
                self.mean_of_values(out, token, gain);
                return;
            }
            (rows.scale)(sums, gain / sum);
            self.write(out, token, 0, sums);
        }
    }

    /// The first of some keys and the first of their values, each with the distance between rows.
    fn keys_values(&self, keys: &Range<usize>) -> ((*const f32, usize), (*const f32, usize)) {
        let all = &self.attention.keys;
        let token = all.starts[self.task.row] + keys.start;
        let column = self.task.head * self.attention.d_kv;
        let at = |operand: &crate::Operand, first: usize| {
            let row = operand.stride.row;
            let start = operand.as_f32().wrapping_add(token * row + first + column);
            (start, row)
        };
        (
            at(all.keys, all.key_column),
            at(all.values, all.value_column),
        )
    }
}
