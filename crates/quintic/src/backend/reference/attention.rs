//! Attention inside each row of a packed batch, score by score.

use super::{Bias, Reference, Rows};
use crate::backend::{Attention, Keys, Visible, check_shorter};
use crate::batch::Mask;

/// Keys and values of one layer: for each row, `[cached tokens, n_heads * d_kv]`.
#[derive(Clone, Debug, PartialEq)]
pub struct KvCache {
    inner_dim: usize,
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
}

impl KvCache {
    pub(super) fn new(rows: usize, inner_dim: usize) -> Self {
        KvCache {
            inner_dim,
            keys: vec![Vec::new(); rows],
            values: vec![Vec::new(); rows],
        }
    }

    pub(super) fn append(&mut self, kv: &Rows, first_column: usize, row_starts: &[usize]) {
        assert_eq!(row_starts.len(), self.keys.len() + 1, "rows of the cache");
        let (inner, values_at) = (self.inner_dim, first_column + self.inner_dim);
        for (row, bounds) in row_starts.windows(2).enumerate() {
            for token in bounds[0]..bounds[1] {
                let source = kv.row(token);
                self.keys[row].extend(&source[first_column..first_column + inner]);
                self.values[row].extend(&source[values_at..values_at + inner]);
            }
        }
    }

    pub(super) fn arrange(&mut self, rows: &[Option<usize>]) {
        let pick = |from: &[Vec<f32>]| -> Vec<Vec<f32>> {
            let picked = rows.iter().map(|row| match row {
                Some(row) => from[*row].clone(),
                None => Vec::new(),
            });
            picked.collect()
        };
        self.keys = pick(&self.keys);
        self.values = pick(&self.values);
    }

    pub(super) fn truncate(&mut self, lengths: &[usize]) {
        assert_eq!(lengths.len(), self.keys.len(), "rows of the cache");
        for (row, &length) in lengths.iter().enumerate() {
            check_shorter(row, self.len(row), length);
            self.keys[row].truncate(length * self.inner_dim);
            self.values[row].truncate(length * self.inner_dim);
        }
    }

    /// Tokens cached for a row.
    pub fn len(&self, row: usize) -> usize {
        self.keys[row].len() / self.inner_dim
    }

    /// Whether no row has a token.
    pub fn is_empty(&self) -> bool {
        self.keys.iter().all(Vec::is_empty)
    }
}

/// The keys and values of one row: key `k` starts at `keys[k * stride]`.
struct RowKeys<'a> {
    keys: &'a [f32],
    values: &'a [f32],
    stride: usize,
    len: usize,
}

pub(super) fn attend(attention: &Attention<'_, Reference>, out: &mut Rows) {
    let inner = attention.n_heads * attention.d_kv;
    assert_eq!(
        (out.rows, out.columns),
        (attention.queries.rows, inner),
        "attention output"
    );
    let d_kv = attention.d_kv;
    for_each_query(attention, |query| {
        let column = query.head * d_kv;
        let mut sums = vec![0.0f64; d_kv];
        for (key, &weight) in query.weights.iter().enumerate() {
            let v = &query.keys.values[key * query.keys.stride + column..][..d_kv];
            for (sum, &v) in sums.iter_mut().zip(v) {
                *sum += weight * f64::from(v);
            }
        }
        let out = &mut out.row_mut(query.token)[column..column + d_kv];
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = (sum / query.total * query.gain) as f32;
        }
    });
}

/// For each row `[n_heads, queries, keys]`, rows end to end.
pub(super) fn weights(attention: &Attention<'_, Reference>) -> Vec<f32> {
    let mut starts = vec![0];
    for (row, bounds) in attention.row_starts.windows(2).enumerate() {
        let n_queries = bounds[1] - bounds[0];
        let n_keys = row_keys(attention, row, bounds[0], n_queries).len;
        starts.push(starts[row] + attention.n_heads * n_queries * n_keys);
    }
    let mut out = vec![0.0; starts[starts.len() - 1]];
    for_each_query(attention, |query| {
        let bounds = &attention.row_starts[query.row..];
        let n_queries = bounds[1] - bounds[0];
        let at = query.head * n_queries + query.token - bounds[0];
        let out = &mut out[starts[query.row] + at * query.keys.len..][..query.keys.len];
        for (out, &weight) in out.iter_mut().zip(query.weights) {
            *out = (weight / query.total * query.gain) as f32;
        }
    });
    out
}

/// One query of one head, and what it weighs its row's keys by.
struct Query<'a> {
    row: usize,
    head: usize,
    token: usize,
    keys: &'a RowKeys<'a>,
    /// For each key, yet to be divided by their `total` and multiplied by the head's `gain`.
    weights: &'a [f64],
    total: f64,
    gain: f64,
}

fn for_each_query(attention: &Attention<'_, Reference>, mut visit: impl FnMut(Query<'_>)) {
    if let Some(gains) = attention.head_gains {
        assert_eq!(gains.len(), attention.n_heads, "gains of heads");
    }
    let mut squares = 0;
    for (row, bounds) in attention.row_starts.windows(2).enumerate() {
        let (first, n_queries) = (bounds[0], bounds[1] - bounds[0]);
        let keys = row_keys(attention, row, first, n_queries);
        for query in 0..n_queries {
            let position = query_position(attention, first, query, n_queries, keys.len);
            let visible = |key: usize| match attention.visible {
                Visible::Causal => (key as i64) <= position,
                Visible::Mask(Mask::Full) => true,
                Visible::Mask(Mask::Keys(flags)) => flags[first + key],
                Visible::Mask(Mask::Pairs(flags)) => flags[squares + query * keys.len + key],
            };
            let key_position = |key: usize| match attention.positions {
                Some(positions) => i64::from(positions[first + key]),
                None => key as i64,
            };
            for head in 0..attention.n_heads {
                let column = head * attention.d_kv;
                let q = &attention.queries.row(first + query)[column..column + attention.d_kv];
                let bias = |key| match attention.bias {
                    Some(bias) => f64::from(Bias::at(bias, head, key_position(key) - position)),
                    None => 0.0,
                };
                let (weights, total) = weigh(q, &keys, column, bias, visible);
                visit(Query {
                    row,
                    head,
                    token: first + query,
                    keys: &keys,
                    weights: &weights,
                    total,
                    gain: attention
                        .head_gains
                        .map_or(1.0, |gains| f64::from(gains[head])),
                });
            }
        }
        squares += n_queries * n_queries;
    }
}

fn row_keys<'a>(
    attention: &Attention<'a, Reference>,
    row: usize,
    first: usize,
    n_queries: usize,
) -> RowKeys<'a> {
    let inner = attention.n_heads * attention.d_kv;
    match attention.keys {
        Keys::Fused => {
            let fused = attention.queries;
            let from = first * fused.columns;
            RowKeys {
                keys: fused.data.get(from + inner..).unwrap_or_default(),
                values: fused.data.get(from + 2 * inner..).unwrap_or_default(),
                stride: fused.columns,
                len: n_queries,
            }
        }
        Keys::Cache(cache) => RowKeys {
            keys: &cache.keys[row],
            values: &cache.values[row],
            stride: inner,
            len: cache.len(row),
        },
    }
}

/// With a cache the queries are the last of its tokens; else they are the row itself.
fn query_position(
    attention: &Attention<'_, Reference>,
    first: usize,
    query: usize,
    n_queries: usize,
    n_keys: usize,
) -> i64 {
    match (attention.positions, attention.keys) {
        (Some(positions), _) => i64::from(positions[first + query]),
        (None, Keys::Fused) => query as i64,
        (None, Keys::Cache(_)) => n_keys as i64 - n_queries as i64 + query as i64,
    }
}

/// What one query weighs each key by, `exp(q k + bias)` over that of the best, and the sum.
fn weigh(
    q: &[f32],
    row: &RowKeys<'_>,
    column: usize,
    bias: impl Fn(usize) -> f64,
    visible: impl Fn(usize) -> bool,
) -> (Vec<f64>, f64) {
    let score = |key: usize| {
        let k = &row.keys[key * row.stride + column..][..q.len()];
        dot(q, k) + bias(key)
    };
    let mut scores: Vec<f64> = (0..row.len)
        .map(|key| {
            if visible(key) {
                score(key)
            } else {
                f64::NEG_INFINITY
            }
        })
        .collect();
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if max == f64::NEG_INFINITY && !scores.iter().any(|score| score.is_nan()) {
        // Nothing is visible. transformers adds the same huge negative number to every score,
        // which swallows them all: every key weighs the same.
        scores.fill(0.0);
    } else {
        scores.iter_mut().for_each(|score| *score -= max);
    }
    let mut total = 0.0;
    for score in &mut scores {
        *score = score.exp();
        total += *score;
    }
    (scores, total)
}

/// The sum of products in f64, by eight partial sums: one alone would wait for each addition.
fn dot(a: &[f32], b: &[f32]) -> f64 {
    let mut sums = [0.0f64; 8];
    let (a_chunks, b_chunks) = (a.chunks_exact(8), b.chunks_exact(8));
    let (a_rest, b_rest) = (a_chunks.remainder(), b_chunks.remainder());
    for (a, b) in a_chunks.zip(b_chunks) {
        for lane in 0..8 {
            sums[lane] += f64::from(a[lane]) * f64::from(b[lane]);
        }
    }
    for (sum, (&a, &b)) in sums.iter_mut().zip(a_rest.iter().zip(b_rest)) {
        *sum += f64::from(a) * f64::from(b);
    }
    sums.iter().sum()
}
