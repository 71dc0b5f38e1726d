//! Attention of few queries, as a decoder's step has: one a row, or some that were guessed.
//!
//! Packing a row's keys and values into panels costs as much as reading them, which only many
//! queries make up for. Here they are read where they stand, once: a key is a dot product, a value
//! is added to sums in registers. A token's heads stand side by side, and tokens far apart; so
//! several heads go together over a few tokens at a time, and memory is read in long pieces.

use std::ops::Range;

use super::{Attention, KEY_BLOCK, Room, Work, f32_row};
use crate::operand::{Form, Sink};
use crate::scores::{ScoreBias, ScoreMask, ScoresAt, modify};

/// Most queries of a row that are computed this way. A row's bits depend on its own number of
/// queries, not on its company.
///
/// By AVX-512 it pays up to about eight queries, by other instruction sets for one alone: in an
/// encoder, the row of one token. A decoder's tokens are to get the same bits whether they come
/// one by one or several at a time, as those do that were guessed; so up to
/// [`Attention::SAME_BITS`] of them go this way.
pub(super) fn few(attention: &Attention<'_>) -> usize {
    match (attention.queries.form, attention.queries_are_last) {
        // Their dot products would have to be joined first.
        (Form::Split, _) => 0,
        (_, true) => Attention::SAME_BITS,
        (_, false) => 1,
    }
}

/// Tokens over which all heads of a task go before the next ones. A row's bits depend on it.
const TOKENS: usize = 16;

/// Heads of a task, where `rows` rows have few queries: enough tasks that no thread waits long,
/// few enough that what they read lies together.
pub(super) fn heads_of_a_task(n_heads: usize, rows: usize, threads: usize) -> usize {
    let tasks = match threads {
        1 => 1,
        _ => (2 * threads).div_ceil(rows.max(1)),
    };
    n_heads.div_ceil(tasks)
}

/// What one head has found so far.
#[derive(Clone, Copy)]
struct Softmax {
    max: f32,
    sum: f32,
}

impl<B: ScoreBias, M: ScoreMask> Work<'_, B, M> {
    /// Scores and sums of every head.
    pub(super) fn lay_out_few(&self) -> Room {
        let heads = self.task.heads.len();
        let score_row = KEY_BLOCK.min(self.n_keys).next_multiple_of(16);
        let sums = heads * score_row;
        Room {
            score_row,
            sums,
            total: sums + heads * self.attention.d_kv.next_multiple_of(16),
            ..Room::default()
        }
    }

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
        let seen = (self.mask).visible(task.row, position..position + 1, self.n_keys);
        let seen = seen.start.min(self.n_keys)..seen.end.min(self.n_keys);
        let nothing = Softmax {
            max: f32::NEG_INFINITY,
            sum: 0.0,
        };
        let mut found = vec![nothing; task.heads.len()];
        // SAFETY: the room has a block of scores and `d_kv` sums for each head; queries, keys and
        // values were checked to lie inside their operands; the instruction set is available.
        unsafe {
            for head in 0..task.heads.len() {
                self.sums_of(memory, head).fill(0.0);
            }
            for first in seen.clone().step_by(KEY_BLOCK) {
                let keys = first..(first + KEY_BLOCK).min(seen.end);
                self.few_scores(memory, token, &keys);
                for (head, found) in found.iter_mut().enumerate() {
                    let is_first = first == seen.start;
                    self.few_weights(memory, head, position, &keys, is_first, found);
                }
                self.few_sums(memory, &keys);
            }
            for (at, found) in found.into_iter().enumerate() {
                let head = task.heads.start + at;
                let gain = attention.head_gain(head);
                if found.max == f32::NEG_INFINITY && found.sum == 0.0 {
                    self.mean_of_values(out, token, head, gain);
                    continue;
                }
                let sums = self.sums_of(memory, at);
                (rows.scale)(sums, gain / found.sum);
                self.write(out, token, head * d_kv, sums);
            }
        }
    }

    /// Products of the query with a block of keys, of every head.
    unsafe fn few_scores(&self, memory: *mut f32, token: usize, keys: &Range<usize>) {
        let (task, attention) = (self.task, self.attention);
        let d_kv = attention.d_kv;
        let all = &attention.keys;
        let stride = all.keys.stride.row;
        for first in (0..keys.len()).step_by(TOKENS) {
            let n = TOKENS.min(keys.len() - first);
            for (at, head) in task.heads.clone().enumerate() {
                let key = all.starts[task.row] + keys.start + first;
                let column = all.key_column + head * d_kv;
                // SAFETY: as in `few_query`.
                unsafe {
                    let q = f32_row(attention.queries, token, head * d_kv, d_kv);
                    let k = all.keys.as_f32().add(key * stride + column);
                    let scores = memory.add(at * self.room.score_row + first);
                    let scores = std::slice::from_raw_parts_mut(scores, n);
                    let ahead = self.ahead(at, stride);
                    (self.kernels.table.rows.dots)(q, k, stride, ahead, scores);
                }
            }
        }
    }

    /// One head's scores of a block of keys become weights, and what came before is scaled to them.
    unsafe fn few_weights(
        &self,
        memory: *mut f32,
        at: usize,
        position: usize,
        keys: &Range<usize>,
        is_first: bool,
        found: &mut Softmax,
    ) {
        let (rows, task) = (&self.kernels.table.rows, self.task);
        let full = self
            .mask
            .is_full(task.row, position..position + 1, keys.clone());
        let place = ScoresAt {
            row: task.row,
            head: task.heads.start + at,
            query: position,
            first_key: keys.start,
        };
        // SAFETY: as in `few_query`.
        unsafe {
            let scores = memory.add(at * self.room.score_row);
            let scores = std::slice::from_raw_parts_mut(scores, keys.len());
            modify(
                self.kernels.isa(),
                self.bias,
                self.mask,
                place,
                full,
                scores,
            );
            let new = (rows.max)(scores);
            let new = if new > found.max { new } else { found.max };
            if !is_first && new > found.max {
                let factor = match found.max == f32::NEG_INFINITY {
                    true => 0.0,
                    false => crate::math::exp::<false>(found.max - new),
                };
                found.sum *= factor;
                (rows.scale)(self.sums_of(memory, at), factor);
            }
            found.max = new;
            // Before any key was seen there is nothing to subtract.
            let shift = if new == f32::NEG_INFINITY { 0.0 } else { new };
            found.sum += (rows.exp)(scores, shift);
        }
    }

    /// Adds a block of values by their weights, of every head.
    unsafe fn few_sums(&self, memory: *mut f32, keys: &Range<usize>) {
        let (task, attention) = (self.task, self.attention);
        let all = &attention.keys;
        let stride = all.values.stride.row;
        for first in (0..keys.len()).step_by(TOKENS) {
            let n = TOKENS.min(keys.len() - first);
            for (at, head) in task.heads.clone().enumerate() {
                let key = all.starts[task.row] + keys.start + first;
                let column = all.value_column + head * attention.d_kv;
                // SAFETY: as in `few_query`.
                unsafe {
                    let v = all.values.as_f32().add(key * stride + column);
                    let weights = memory.add(at * self.room.score_row + first);
                    let weights = std::slice::from_raw_parts(weights, n);
                    let ahead = self.ahead(at, stride);
                    let sums = self.sums_of(memory, at);
                    (self.kernels.table.rows.mix)(weights, v, stride, ahead, sums);
                }
            }
        }
    }

    /// How far ahead of what a head reads stands what is read next: the token's next head, or the
    /// first head of the tokens that follow.
    fn ahead(&self, at: usize, stride: usize) -> usize {
        let d_kv = self.attention.d_kv;
        match at + 1 < self.task.heads.len() {
            true => d_kv,
            false => (TOKENS * stride).saturating_sub(at * d_kv),
        }
    }

    /// The sums of a head of the task.
    #[allow(clippy::mut_from_ref, reason = "the memory is the task's own")]
    unsafe fn sums_of(&self, memory: *mut f32, at: usize) -> &mut [f32] {
        let d_kv = self.attention.d_kv;
        let start = self.room.sums + at * d_kv.next_multiple_of(16);
        // SAFETY: as in `few_query`.
        unsafe { std::slice::from_raw_parts_mut(memory.add(start), d_kv) }
    }
}
