//! A bias and a mask as a user of the kernels writes them.

use std::ops::Range;

use quintic_kernels::{ScoreBias, ScoreMask, ScoresAt};

/// Attention with linear biases, in both directions: a score falls by its head's slope with
/// every token between query and key (Press, Smith and Lewis, 2022).
pub(crate) struct Alibi(Vec<f32>);

impl Alibi {
    /// The published slopes, for a power of two of heads: `2^(-8 / n_heads)` and its powers.
    pub(crate) fn new(n_heads: usize) -> Self {
        Alibi(
            (1..=n_heads)
                .map(|head| (-8.0 * head as f32 / n_heads as f32).exp2())
                .collect(),
        )
    }

    /// The bias by its definition.
    pub(crate) fn exact(&self, head: usize, query: usize, key: usize) -> f64 {
        -f64::from(self.0[head]) * query.abs_diff(key) as f64
    }
}

impl ScoreBias for Alibi {
    #[inline]
    fn is_relative(&self) -> bool {
        true
    }

    #[inline]
    fn add(&self, at: ScoresAt, scores: &mut [f32]) {
        let slope = self.0[at.head];
        let first = at.first_key as i32 - at.query as i32;
        for (score, distance) in scores.iter_mut().zip(first..) {
            *score -= slope * distance.abs() as f32;
        }
    }
}

/// A sliding window: a query sees the keys up to so many tokens away.
pub(crate) struct Window(pub(crate) usize);

impl Window {
    /// The mask by its definition.
    pub(crate) fn sees(&self, query: usize, key: usize) -> bool {
        query.abs_diff(key) <= self.0
    }
}

impl ScoreMask for Window {
    #[inline]
    fn visible(&self, _row: usize, queries: Range<usize>, n_keys: usize) -> Range<usize> {
        queries.start.saturating_sub(self.0)..(queries.end + self.0).min(n_keys)
    }

    #[inline]
    fn is_full(&self, _row: usize, queries: Range<usize>, keys: Range<usize>) -> bool {
        queries.end <= keys.start + self.0 + 1 && keys.end <= queries.start + self.0 + 1
    }

    #[inline]
    fn hide(&self, at: ScoresAt, scores: &mut [f32]) {
        let place = |key: usize| key.saturating_sub(at.first_key).min(scores.len());
        let (first, end) = (
            place(at.query.saturating_sub(self.0)),
            place(at.query + self.0 + 1),
        );
        scores[..first].fill(f32::NEG_INFINITY);
        scores[end..].fill(f32::NEG_INFINITY);
    }
}
