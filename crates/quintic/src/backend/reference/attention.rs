//! Attention inside each row of a packed batch, score by score.

use super::{Bias, Reference, Rows};
use crate::backend::{Attention, Keys, Visible};
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
                let columns = head * attention.d_kv..(head + 1) * attention.d_kv;
                let q = &attention.queries.row(first + query)[columns.clone()];
                let bias = |key| match attention.bias {
                    Some(bias) => f64::from(Bias::at(bias, head, key_position(key) - position)),
                    None => 0.0,
                };
                let out = &mut out.row_mut(first + query)[columns];
                attend_one(q, &keys, head * attention.d_kv, bias, visible, out);
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

/// One query and one head: `out = sum over keys of softmax(q k + bias) v`.
fn attend_one(
    q: &[f32],
    row: &RowKeys<'_>,
    column: usize,
    bias: impl Fn(usize) -> f64,
    visible: impl Fn(usize) -> bool,
    out: &mut [f32],
) {
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
    let mut sums = vec![0.0f64; out.len()];
    for (key, &weight) in scores.iter().enumerate() {
        let v = &row.values[key * row.stride + column..][..out.len()];
        for (sum, &v) in sums.iter_mut().zip(v) {
            *sum += weight * f64::from(v);
        }
    }
    for (out, sum) in out.iter_mut().zip(sums) {
        *out = (sum / total) as f32;
    }
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
