//! Attention inside each row of a packed batch.
//!
//! For a block of queries of one head: scores against a block of keys, bias and mask, softmax,
//! product with the values, all in cache; a row longer than one block of keys goes on with a
//! running maximum and sum (Milakov and Gimelshein, "Online normalizer calculation for
//! softmax", 2018; Dao et al., "FlashAttention", 2022), so that memory grows with the length
//! of a row and not with its square. Both products are the innermost ones of `micro`: keys and
//! values of a row are packed into panels first, which costs one pass over them.

mod bias;
mod few;
mod inputs;
mod pack;

use std::ops::Range;

pub use inputs::{Attention, KeysValues};

use crate::Kernels;
use crate::math::LANES;
use crate::micro::{
    Again, Bf16Block, CHUNK, F32Block, Fetch, First, MicroSplit, PANEL, SplitBlock,
};
use crate::operand::{Form, Operand, Sink, row_stride};
use crate::rowwise::{Finish, FinishBlock, Maxima};
use crate::scores::{ScoreBias, ScoreMask};
use crate::scratch::scratch_of;
use crate::tiles;

/// Keys whose scores are held at once.
const KEY_BLOCK: usize = 512;

/// Keys whose scores are made, and then looked through, at a time: 16 KiB of scores, which a first-level cache
/// still has.
const SCORE_BLOCK: usize = 128;

/// Most queries of a block: with the keys above, the scores take at most 64 KiB.
const MAX_QUERIES: usize = 32;

/// Tasks a thread should have, so that none waits long for the last.
const TASKS_PER_THREAD: usize = 4;

/// Queries of one row, and of one head: of several only if the row has few queries.
struct Task {
    row: usize,
    heads: Range<usize>,
    queries: Range<usize>,
}

impl Kernels {
    /// `softmax(q k^T + bias) v` inside each row, without a scale; `out` is
    /// `[tokens, n_heads * d_kv]`. A query that sees no key gets the mean of all values of its
    /// row, and zeros if the row has none. Weights are multiplied by their head's gain, if there
    /// are gains.
    ///
    /// # Numerics
    ///
    /// Queries, keys and values are f32, or in two parts of bf16; the type of `out` says how they are multiplied. In f32
    /// everything is, and so is everything of a row with one query and of the few of a decoder's step. In
    /// bf16, scores are computed from f32 (with AMX, from two bf16 parts each), since T5 does not
    /// scale them and an error of a score is a factor of a weight; weights of the softmax and
    /// values are rounded to bf16, and the sum that weights are divided by is the sum of the
    /// rounded ones. Split, both products take two parts of each factor. A row's bits depend on
    /// that row alone.
    ///
    /// # Panics
    ///
    /// If shapes or types disagree.
    pub fn attend<B: ScoreBias, M: ScoreMask>(
        &self,
        attention: &Attention<'_>,
        bias: &B,
        mask: &M,
        out: &mut Operand,
    ) {
        let inner = attention.check(out);
        if inner == 0 {
            return;
        }
        let planes = self.planes(out.form);
        let tasks = self.tasks(attention, planes);
        let sink = out.sink();
        self.pool.run(tasks.len(), |task, worker| {
            let mut scratch = scratch_of(&self.scratch, worker);
            let work = Work::new(self, attention, planes, &tasks[task], bias, mask);
            let memory = scratch.f32(work.room.total);
            // SAFETY: the room is as large as `work` says; the instruction set is available;
            // no other task writes these queries of this head.
            unsafe {
                match work.is_few() {
                    true => work.run_few(memory, &sink),
                    false => work.run(memory, &sink),
                }
            }
        });
    }

    /// The longest rows first, so that no thread ends with one.
    fn tasks(&self, attention: &Attention<'_>, planes: Planes) -> Vec<Task> {
        let length = |row: usize| attention.row_starts[row + 1] - attention.row_starts[row];
        let mut rows: Vec<usize> = (0..attention.row_starts.len() - 1)
            .filter(|&row| length(row) > 0)
            .collect();
        rows.sort_by_key(|&row| std::cmp::Reverse(length(row)));
        // A part of a row's queries packs all of the row's keys again.
        let whole = rows.len() * attention.n_heads;
        let wanted = TASKS_PER_THREAD * self.pool.threads();
        let parts = if self.pool.threads() > 1 {
            wanted.div_ceil(whole.max(1))
        } else {
            1
        };
        let block = self.query_block(planes);
        let few = few::few(attention);
        let is_few = |row: usize| length(row) <= few;
        let n_few = rows.iter().filter(|&&row| is_few(row)).count();
        let heads = few::heads_of_a_task(attention.n_heads, n_few, self.pool.threads());
        let mut tasks = Vec::new();
        for row in rows {
            let n = length(row);
            if is_few(row) {
                for first in (0..attention.n_heads).step_by(heads) {
                    tasks.push(Task {
                        row,
                        heads: first..(first + heads).min(attention.n_heads),
                        queries: 0..n,
                    });
                }
                continue;
            }
            let size = n.div_ceil(parts).next_multiple_of(block);
            for head in 0..attention.n_heads {
                for first in (0..n).step_by(size) {
                    tasks.push(Task {
                        row,
                        heads: head..head + 1,
                        queries: first..(first + size).min(n),
                    });
                }
            }
        }
        tasks
    }
}

/// Parts of bf16 of a query or key, if they are not multiplied in f32.
const SCORE_PARTS: usize = 2;

/// How many bf16 parts the factors of the two products are split into.
#[derive(Clone, Copy, Debug)]
struct Planes {
    /// What multiplies queries and keys in [two](SCORE_PARTS); else they are in f32.
    scores: Option<MicroSplit>,
    /// Of weights and values; none means f32.
    values: usize,
}

impl Kernels {
    /// How an attention is multiplied whose result has this form.
    fn planes(&self, out: Form) -> Planes {
        let values = match out {
            Form::F32 => 0,
            Form::Bf16 | Form::Bf16Tiles => 1,
            Form::Split => 2,
        };
        Planes {
            // Two parts take three products of bf16: more than one of f32, unless by AMX.
            scores: self.table.split.filter(|_| values > 0),
            values,
        }
    }

    /// Queries of a block: a whole number of the innermost product's rows.
    fn query_block(&self, planes: Planes) -> usize {
        let rows = match self.table.bf16 {
            Some(micro) if planes.values > 0 => micro.max_rows,
            _ => self.table.f32.max_rows,
        };
        MAX_QUERIES / rows * rows
    }
}

/// Where the pieces of a task's memory begin, in f32.
#[derive(Clone, Copy, Debug, Default)]
struct Room {
    /// Queries of a block, `[32, d_kv]` in f32, or two groups of tiles.
    queries: usize,
    query_row: usize,
    /// Scores, `[32, KEY_BLOCK]`.
    scores: usize,
    score_row: usize,
    /// Elements of a row of weights in bf16.
    weight_row: usize,
    /// What scores begin with.
    strip: usize,
    /// Weights in bf16, by planes.
    weights: usize,
    /// `[panels of d_kv][32, 32]`.
    sums: usize,
    keys: usize,
    values: usize,
    /// From one plane of values to the next, in f32.
    plane: usize,
    total: usize,
}

/// One task with all that it needs.
struct Work<'a, B, M> {
    kernels: &'a Kernels,
    attention: &'a Attention<'a>,
    task: &'a Task,
    bias: &'a B,
    mask: &'a M,
    /// Keys of the row, those that some query of the task may see, and what is added to a
    /// query's number to get its position.
    n_keys: usize,
    seen: Range<usize>,
    offset: usize,
    planes: Planes,
    room: Room,
}

impl<'a, B: ScoreBias, M: ScoreMask> Work<'a, B, M> {
    fn new(
        kernels: &'a Kernels,
        attention: &'a Attention<'a>,
        planes: Planes,
        task: &'a Task,
        bias: &'a B,
        mask: &'a M,
    ) -> Self {
        let keys = &attention.keys;
        let n_keys = keys.ends[task.row] - keys.starts[task.row];
        let n_queries = attention.row_starts[task.row + 1] - attention.row_starts[task.row];
        let offset = if attention.queries_are_last {
            n_keys.saturating_sub(n_queries)
        } else {
            0
        };
        let positions = task.queries.start + offset..task.queries.end + offset;
        let seen = mask.visible(task.row, positions, n_keys);
        let seen = seen.start.min(n_keys)..seen.end.min(n_keys);
        let mut work = Work {
            kernels,
            attention,
            task,
            bias,
            mask,
            n_keys,
            seen,
            offset,
            planes,
            room: Room::default(),
        };
        work.room = work.lay_out();
        work
    }

    /// The head of a task that has one.
    fn head(&self) -> usize {
        debug_assert_eq!(self.task.heads.len(), 1);
        self.task.heads.start
    }

    /// Whether the task's row has so few queries that its keys are read where they stand.
    fn is_few(&self) -> bool {
        let starts = &self.attention.row_starts[self.task.row..];
        starts[1] - starts[0] <= few::few(self.attention)
    }

    fn lay_out(&self) -> Room {
        if self.is_few() {
            return self.lay_out_few();
        }
        let depth = self.attention.d_kv.next_multiple_of(CHUNK);
        let n = self.seen.len().next_multiple_of(PANEL);
        // `n` values: f32, or as many bf16 for each plane.
        let size = |n: usize, planes: usize| if planes == 0 { n } else { n / 2 * planes };
        let Planes { scores, values } = self.planes;
        let query_row = match scores {
            None => row_stride(depth, 4),
            Some(_) => SCORE_PARTS * depth,
        };
        let score_row = row_stride(n.clamp(1, KEY_BLOCK), 4);
        let weight_row = row_stride(n.clamp(1, KEY_BLOCK), 2);
        let mut total = 0;
        let mut take = |n: usize| {
            let start = total;
            total += n.next_multiple_of(16);
            start
        };
        Room {
            query_row,
            score_row,
            weight_row,
            plane: n * depth / 2,
            queries: take(match scores {
                None => MAX_QUERIES * query_row,
                Some(_) => MAX_QUERIES * query_row / 2,
            }),
            scores: take(MAX_QUERIES * score_row),
            strip: take(score_row + PANEL + MAX_QUERIES),
            weights: take(if values == 0 {
                0
            } else {
                size(MAX_QUERIES * weight_row, values)
            }),
            sums: take(MAX_QUERIES * depth),
            keys: take(match scores {
                None => n * depth,
                Some(_) => n * SCORE_PARTS * depth / 2,
            }),
            values: take(size(n * depth, values)),
            total,
        }
    }

    /// # Safety
    ///
    /// `memory` has `room.total` values; the instruction set is available; nobody else writes
    /// the task's part of the output.
    unsafe fn run(&self, memory: *mut f32, out: &Sink) {
        // SAFETY (all of them): the pieces lie inside the room, and packed rows and columns
        // inside the operands.
        if !self.seen.is_empty() {
            // SAFETY: see above.
            unsafe { self.pack(memory) };
        }
        let micro = self.kernels.table.bf16.filter(|_| self.planes.values > 0);
        if let Some(micro) = micro {
            // SAFETY: the instruction set is available.
            unsafe { (micro.enter)() };
        }
        let size = self.kernels.query_block(self.planes);
        for first in self.task.queries.clone().step_by(size) {
            let queries = first..(first + size).min(self.task.queries.end);
            // SAFETY: see above.
            unsafe { self.block(memory, queries, out) };
        }
        if let Some(micro) = micro {
            // SAFETY: as `enter`.
            unsafe { (micro.leave)() };
        }
    }

    /// Keys and values into panels: keys as the weights of a product of depth `d_kv`, values
    /// as those of a product over keys.
    unsafe fn pack(&self, memory: *mut f32) {
        let Attention { d_kv, keys, .. } = *self.attention;
        let depth = d_kv.next_multiple_of(CHUNK);
        let n = self.seen.len();
        let padded = n.next_multiple_of(PANEL);
        let first = keys.starts[self.task.row] + self.seen.start;
        let key_column = keys.key_column + self.head() * d_kv;
        let value_column = keys.value_column + self.head() * d_kv;
        // SAFETY: every range below is inside the room that was laid out for it, and every row
        // inside its operand.
        unsafe {
            if self.planes.scores.is_none() {
                let k = std::slice::from_raw_parts_mut(memory.add(self.room.keys), padded * d_kv);
                if n < padded {
                    k[(padded - PANEL) * d_kv..].fill(0.0);
                }
                for key in 0..n {
                    let row = f32_row(keys.keys, first + key, key_column, d_kv);
                    let panel = &mut k[key / PANEL * PANEL * d_kv..][..PANEL * d_kv];
                    for (out, &value) in panel.chunks_exact_mut(PANEL).zip(row) {
                        out[key % PANEL] = value;
                    }
                }
            } else {
                self.key_tiles(memory.add(self.room.keys).cast());
            }
            if self.planes.values == 0 {
                let v = std::slice::from_raw_parts_mut(memory.add(self.room.values), n * depth);
                if d_kv < depth {
                    v.fill(0.0);
                }
                for key in 0..n {
                    let row = f32_row(keys.values, first + key, value_column, d_kv);
                    for (panel, values) in row.chunks(PANEL).enumerate() {
                        let to = &mut v[(panel * n + key) * PANEL..][..PANEL];
                        match <&[f32; PANEL]>::try_from(values) {
                            // Whole panels without a call for each.
                            Ok(values) => to.copy_from_slice(values),
                            Err(_) => to[..values.len()].copy_from_slice(values),
                        }
                    }
                }
            } else {
                self.value_tiles(memory.add(self.room.values).cast(), padded);
            }
        }
    }

    /// Queries of a block: row after row, or in tiles.
    unsafe fn load_queries(&self, memory: *mut f32, queries: Range<usize>) {
        let Attention { d_kv, .. } = *self.attention;
        let first = self.attention.row_starts[self.task.row] + queries.start;
        let column = self.head() * d_kv;
        let row = self.room.query_row;
        // SAFETY: 32 rows were laid out, and there are no more queries in a block.
        unsafe {
            let start = memory.add(self.room.queries);
            if self.planes.scores.is_none() {
                for query in 0..queries.len() {
                    let values = f32_row(self.attention.queries, first + query, column, d_kv);
                    let to = std::slice::from_raw_parts_mut(start.add(query * row), d_kv);
                    to.copy_from_slice(values);
                }
                return;
            }
            self.query_tiles(start.cast(), &queries);
        }
    }

    /// Attention of at most 32 queries.
    unsafe fn block(&self, memory: *mut f32, queries: Range<usize>, out: &Sink) {
        let (rows, task) = (&self.kernels.table.rows, self.task);
        let positions = queries.start + self.offset..queries.end + self.offset;
        let seen = self.mask.visible(task.row, positions.clone(), self.n_keys);
        // Whole panels, counted from the first packed key.
        let start =
            self.seen.start + (seen.start.max(self.seen.start) - self.seen.start) / PANEL * PANEL;
        let seen = start..seen.end.min(self.seen.end).max(start);
        let mut max = [f32::NEG_INFINITY; MAX_QUERIES];
        let mut sum = [0.0f32; MAX_QUERIES];
        let n = queries.len();
        let panels = self.attention.d_kv.div_ceil(PANEL);
        // SAFETY: as in `run`.
        let sums = unsafe { memory.add(self.room.sums) };
        if !seen.is_empty() {
            // SAFETY: see above.
            unsafe { self.load_queries(memory, queries.clone()) };
        }
        for first in seen.clone().step_by(KEY_BLOCK) {
            let keys = first..(first + KEY_BLOCK).min(seen.end);
            let is_first = first == seen.start;
            let mut largest = [[f32::NEG_INFINITY; LANES]; MAX_QUERIES];
            let strip = match self.begins_with_bias() {
                // SAFETY: see above.
                true => Some(unsafe { self.strip(memory, positions.start, &keys) }),
                false => None,
            };
            for first in keys.clone().step_by(SCORE_BLOCK) {
                let some = first..(first + SCORE_BLOCK).min(keys.end);
                let full = self.mask.is_full(task.row, positions.clone(), some.clone());
                // SAFETY: see above; `Kernels` holds an available instruction set.
                unsafe {
                    self.score(memory, n, keys.start, &some, strip);
                    if strip.is_none() || !full {
                        self.modify(memory, n, positions.start, keys.start, &some, full);
                    }
                    (rows.maxima)(&Maxima {
                        values: memory.add(self.room.scores + some.start - keys.start),
                        stride: self.room.score_row,
                        rows: n,
                        n: some.len(),
                        largest: largest.as_mut_ptr(),
                    });
                }
            }
            for query in 0..n {
                // SAFETY: see above.
                let new = unsafe { (rows.max)(&largest[query]) };
                let new = if new > max[query] { new } else { max[query] };
                // SAFETY: see above.
                unsafe {
                    if !is_first && new > max[query] {
                        let factor = if max[query] == f32::NEG_INFINITY {
                            0.0
                        } else {
                            crate::math::exp::<false>(max[query] - new)
                        };
                        sum[query] *= factor;
                        for panel in 0..panels {
                            let row = sums.add((panel * MAX_QUERIES + query) * PANEL);
                            (rows.scale)(std::slice::from_raw_parts_mut(row, PANEL), factor);
                        }
                    }
                    max[query] = new;
                    let scores = self.scores_of(memory, query, 0, keys.len());
                    sum[query] += self.weigh(memory, query, scores, new);
                }
            }
            // SAFETY: see above.
            unsafe { self.mix(memory, n, &keys, is_first) };
        }
        // The sums are divided by their weights' sum anyway: a gain costs nothing here, is not
        // rounded to bf16 with the weights or the values, and a gain of one changes no bit.
        let gain = self.attention.head_gain(self.head());
        let d_kv = self.attention.d_kv;
        let token = self.attention.row_starts[task.row] + queries.start;
        let is_blind = |query: usize| max[query] == f32::NEG_INFINITY && sum[query] == 0.0;
        let factors = sum.map(|sum| gain / sum);
        for panel in 0..panels {
            // SAFETY: see above.
            unsafe { (rows.scale_rows)(sums.add(panel * MAX_QUERIES * PANEL), &factors[..n]) };
        }
        // Sixteen columns that begin at a multiple of sixteen are stored as a vector.
        let is_whole = d_kv.is_multiple_of(16) && !(0..n).any(is_blind);
        for panel in 0..panels {
            let column = self.head() * d_kv + panel * PANEL;
            // SAFETY: see above.
            unsafe {
                let sums = sums.add(panel * MAX_QUERIES * PANEL);
                if is_whole {
                    (rows.finish)(&FinishBlock {
                        sums,
                        rows: n,
                        token,
                        column,
                        columns: (self.head() + 1) * d_kv,
                        finish: Finish::Store(*out),
                    });
                    continue;
                }
                for query in (0..n).filter(|&query| !is_blind(query)) {
                    let row = std::slice::from_raw_parts(sums.add(query * PANEL), PANEL);
                    let n = (d_kv - panel * PANEL).min(PANEL);
                    self.write(out, token + query, column, &row[..n]);
                }
            }
        }
        for query in (0..n).filter(|&query| is_blind(query)) {
            // SAFETY: see above.
            unsafe { self.mean_of_values(out, token + query, self.head(), gain) };
        }
    }

    /// Some scores of a query of a block.
    #[allow(clippy::mut_from_ref, reason = "the memory is the task's own")]
    unsafe fn scores_of(
        &self,
        memory: *mut f32,
        query: usize,
        first: usize,
        n: usize,
    ) -> &mut [f32] {
        // SAFETY: by the caller's word; a row of scores has room for a block of keys.
        unsafe {
            let row = memory.add(self.room.scores + query * self.room.score_row);
            std::slice::from_raw_parts_mut(row.add(first), n)
        }
    }

    /// Scores of `n` queries with `keys`, which begin at a panel; the block that they belong to begins at `start`, and what
    /// its first query begins with at `strip`.
    unsafe fn score(
        &self,
        memory: *mut f32,
        n: usize,
        start: usize,
        keys: &Range<usize>,
        strip: Option<*const f32>,
    ) {
        let Room {
            query_row,
            score_row,
            ..
        } = self.room;
        let d_kv = self.attention.d_kv;
        let chunks = d_kv.div_ceil(CHUNK);
        let first = (keys.start - self.seen.start) / PANEL;
        for panel in 0..keys.len().div_ceil(PANEL) {
            // SAFETY: as in `run`; a row of scores has room for whole panels.
            unsafe {
                let c = memory.add(self.room.scores + keys.start - start + panel * PANEL);
                match self.planes.scores {
                    None => {
                        let micro = self.kernels.table.f32;
                        for query in (0..n).step_by(micro.max_rows) {
                            let b = memory.add(self.room.keys + (first + panel) * PANEL * d_kv);
                            (micro.run)(&F32Block {
                                a: memory.add(self.room.queries + query * query_row),
                                a_row: query_row,
                                b,
                                depth: d_kv,
                                c: c.add(query * score_row),
                                c_row: score_row,
                                rows: micro.max_rows.min(n - query),
                                accumulate: false,
                                fetch: Fetch::along(b),
                            });
                        }
                    }
                    Some(micro) => {
                        let a = memory.add(self.room.queries).cast::<u16>();
                        let b = memory.add(self.room.keys).cast::<u16>();
                        for query in (0..n).step_by(micro.max_rows) {
                            let b = b.add((first + panel) * PANEL * SCORE_PARTS * chunks * CHUNK);
                            (micro.run)(&SplitBlock {
                                a: a.add(query * query_row),
                                a_group: tiles::ROWS * query_row,
                                b,
                                rest: b.add(PANEL * chunks * CHUNK),
                                chunks,
                                c: c.add(query * score_row),
                                c_row: score_row,
                                rows: micro.max_rows.min(n - query),
                                first: strip.map(|strip| First {
                                    at: strip.add(keys.start - start + panel * PANEL).sub(query),
                                    row: -1,
                                }),
                                again: Again::A,
                                fetch: Fetch::firsts(b),
                            });
                        }
                    }
                }
            }
        }
    }

    /// Replaces a query's scores by `e^(score - max)`, in the type that meets the values;
    /// returns their sum.
    unsafe fn weigh(&self, memory: *mut f32, query: usize, scores: &mut [f32], max: f32) -> f32 {
        let rows = &self.kernels.table.rows;
        // A score of plus infinity leaves NaN, as it does in PyTorch; nothing visible so far
        // leaves nothing.
        let shift = if max == f32::NEG_INFINITY { 0.0 } else { max };
        // SAFETY: as in `run`.
        unsafe {
            if self.planes.values == 0 {
                return (rows.exp)(scores, shift);
            }
            let n = scores.len();
            let width = self.room.weight_row;
            let start = memory.add(self.room.weights).cast::<u16>();
            let plane = |plane: usize| {
                let row = start.add((plane * MAX_QUERIES + query) * width);
                std::slice::from_raw_parts_mut(row, n.next_multiple_of(CHUNK))
            };
            plane(0)[n..].fill(0);
            if self.planes.values == 1 {
                return (rows.exp_bf16)(scores, shift, &mut plane(0)[..n]);
            }
            plane(1)[n..].fill(0);
            let sum = (rows.exp)(scores, shift);
            (rows.split)(scores, plane(0), plane(1));
            sum
        }
    }

    /// Adds weights times values to the sums, or replaces them.
    unsafe fn mix(&self, memory: *mut f32, n: usize, keys: &Range<usize>, is_first: bool) {
        let all = self.seen.len();
        let padded = all.next_multiple_of(PANEL);
        let row = self.room.score_row;
        let first = keys.start - self.seen.start;
        for panel in 0..self.attention.d_kv.div_ceil(PANEL) {
            // SAFETY: as in `run`.
            unsafe {
                let c = memory.add(self.room.sums + panel * MAX_QUERIES * PANEL);
                match (self.planes.values, self.kernels.table.bf16) {
                    (0, _) => {
                        let micro = self.kernels.table.f32;
                        for query in (0..n).step_by(micro.max_rows) {
                            let b = memory.add(self.room.values + (panel * all + first) * PANEL);
                            (micro.run)(&F32Block {
                                a: memory.add(self.room.scores + query * row),
                                a_row: row,
                                b,
                                depth: keys.len(),
                                c: c.add(query * PANEL),
                                c_row: PANEL,
                                rows: micro.max_rows.min(n - query),
                                accumulate: !is_first,
                                fetch: Fetch::along(b),
                            });
                        }
                    }
                    (planes, Some(micro)) => {
                        let row = self.room.weight_row;
                        let a = memory.add(self.room.weights).cast::<u16>();
                        for query in (0..n).step_by(micro.max_rows) {
                            for (term, &(x, w)) in terms(planes).iter().enumerate() {
                                let b = memory.add(self.room.values + w * self.room.plane);
                                let b = b.cast::<u16>().add((panel * padded + first) * PANEL);
                                (micro.run)(&Bf16Block {
                                    a: a.add((x * MAX_QUERIES + query) * row),
                                    a_row: row,
                                    a_group: 16 * row,
                                    a_chunk: CHUNK,
                                    b,
                                    chunks: keys.len().div_ceil(CHUNK),
                                    c: c.add(query * PANEL),
                                    c_row: PANEL,
                                    rows: micro.max_rows.min(n - query),
                                    accumulate: !is_first || term > 0,
                                    again: Again::A,
                                    fetch: Fetch::firsts(b),
                                });
                            }
                        }
                    }
                    (_, None) => unreachable!("operands in bf16 without products of bf16"),
                }
            }
        }
    }

    /// What a query that sees nothing gets: transformers adds a huge negative number to every
    /// score, and the softmax of equal scores is the same for all.
    unsafe fn mean_of_values(&self, out: &Sink, token: usize, head: usize, gain: f32) {
        let Attention { d_kv, keys, .. } = *self.attention;
        let first = keys.starts[self.task.row];
        let column = keys.value_column + head * d_kv;
        let mean: Vec<f32> = (0..d_kv)
            .map(|i| {
                let values =
                    (0..self.n_keys).map(|key| f64::from(keys.values.get(first + key, column + i)));
                (values.sum::<f64>() / self.n_keys.max(1) as f64 * f64::from(gain)) as f32
            })
            .collect();
        // SAFETY: by the caller's word.
        unsafe { self.write(out, token, head * d_kv, &mean) }
    }

    /// Stores columns, which may begin anywhere.
    unsafe fn write(&self, out: &Sink, token: usize, column: usize, values: &[f32]) {
        let mut at = column;
        let mut rest = values;
        while !rest.is_empty() {
            let (now, later) = rest.split_at((16 - at % 16).min(rest.len()));
            // SAFETY: by the caller's word.
            unsafe { out.store_n(token, at, now) };
            at += now.len();
            rest = later;
        }
    }
}

/// Which planes are multiplied with each other.
fn terms(planes: usize) -> &'static [(usize, usize)] {
    match planes {
        2 => &[(1, 0), (0, 1), (0, 0)],
        _ => &[(0, 0)],
    }
}

/// Values of a row of an operand in f32.
///
/// # Safety
///
/// They exist.
pub(crate) unsafe fn f32_row(x: &Operand, token: usize, column: usize, n: usize) -> &[f32] {
    // SAFETY: by the caller's word.
    unsafe { std::slice::from_raw_parts(x.as_f32().add(token * x.stride.row + column), n) }
}
