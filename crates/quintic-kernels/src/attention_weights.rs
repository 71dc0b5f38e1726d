//! The weights that an attention gives to keys, to be looked at.
//!
//! `attention` never holds them: it mixes values block by block. Here they are computed on
//! their own, by plain loops that take any bias and mask, for there is nothing to save where
//! `n_heads * n^2` numbers leave the engine for every row.

use std::sync::{Mutex, PoisonError};

use crate::scores::{ScoreBias, ScoreMask, ScoresAt};
use crate::tiles;
use crate::{Attention, Kernels};

impl Kernels {
    /// The weights that [`Kernels::attend`] multiplies values with, gains included: for each row
    /// of `n` queries and `m` keys `[n_heads, n, m]`, rows end to end. A query that sees no key
    /// weighs all keys of its row alike.
    ///
    /// # Numerics
    ///
    /// Products of query and key are summed in f64 and rounded to f32, where the bias is added;
    /// the softmax is in f64, and each weight is rounded to f32 once. So these are the exact
    /// weights of such scores, whatever type they are rounded to where they meet the values.
    ///
    /// # Panics
    ///
    /// If shapes or types disagree.
    pub fn attention_weights<B: ScoreBias, M: ScoreMask>(
        &self,
        attention: &Attention<'_>,
        bias: &B,
        mask: &M,
    ) -> Vec<f32> {
        attention.check_inputs();
        let n_heads = attention.n_heads;
        let shapes: Vec<(usize, usize)> = (attention.row_starts.windows(2))
            .zip(attention.keys.starts.iter().zip(attention.keys.ends))
            .map(|(queries, (start, end))| (queries[1] - queries[0], end - start))
            .collect();
        let n_weights = shapes.iter().map(|(n, m)| n_heads * n * m).sum();
        let mut weights = vec![0.0; n_weights];
        // One square a row and head, each written by one task.
        let mut squares = Vec::with_capacity(n_heads * shapes.len());
        let mut rest = weights.as_mut_slice();
        for (row, &(n, m)) in shapes.iter().enumerate() {
            for head in 0..n_heads {
                let (square, later) = rest.split_at_mut(n * m);
                squares.push((row, head, Mutex::new(square)));
                rest = later;
            }
        }
        self.pool.run(squares.len(), |task, _| {
            let (row, head, square) = &squares[task];
            let (n_queries, n_keys) = shapes[*row];
            if n_keys == 0 {
                return;
            }
            let offset = match attention.queries_are_last {
                true => n_keys.saturating_sub(n_queries),
                false => 0,
            };
            // Nobody else locks it; a panic ends the whole run.
            let mut square = square.lock().unwrap_or_else(PoisonError::into_inner);
            for (query, out) in square.chunks_exact_mut(n_keys).enumerate() {
                let at = ScoresAt {
                    row: *row,
                    head: *head,
                    query: query + offset,
                    first_key: 0,
                };
                score(attention, *row, *head, query, out);
                bias.add(at, out);
                mask.hide(at, out);
                weigh(out, attention.head_gain(*head));
            }
        });
        weights
    }
}

/// Products of a query with all keys of its row.
fn score(attention: &Attention<'_>, row: usize, head: usize, query: usize, out: &mut [f32]) {
    let Attention { d_kv, keys, .. } = *attention;
    let token = attention.row_starts[row] + query;
    let (mut q, mut k) = (vec![0.0; d_kv], vec![0.0; d_kv]);
    tiles::read(attention.queries, token, head * d_kv, &mut q);
    for (key, out) in out.iter_mut().enumerate() {
        let column = keys.key_column + head * d_kv;
        tiles::read(keys.keys, keys.starts[row] + key, column, &mut k);
        let products = q.iter().zip(&k).map(|(&q, &k)| f64::from(q) * f64::from(k));
        *out = products.sum::<f64>() as f32;
    }
}

/// Scores to weights: softmax times gain.
fn weigh(scores: &mut [f32], gain: f32) {
    let mut max = f32::NEG_INFINITY;
    let mut is_blind = true;
    for &score in scores.iter() {
        max = max.max(score);
        is_blind &= score == f32::NEG_INFINITY;
    }
    if is_blind {
        scores.fill((f64::from(gain) / scores.len() as f64) as f32);
        return;
    }
    let power = |score: f32| (f64::from(score) - f64::from(max)).exp();
    let sum: f64 = scores.iter().map(|&score| power(score)).sum();
    let factor = f64::from(gain) / sum;
    for score in scores {
        *score = (power(*score) * factor) as f32;
    }
}
