//! What may happen to a score between the product of query and key and the softmax.
//!
//! [`ScoreBias`] and [`ScoreMask`] are open: an implementation of a few lines becomes part of
//! the attention kernel, compiled for the instruction set that runs it (mark its methods
//! `#[inline]`). These are the score and mask modifications that PyTorch calls flex attention;
//! `examples/score_mods` has ALiBi and a sliding window.

use std::ops::Range;

use crate::Isa;

/// Which scores: those of one query of one head with keys that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScoresAt {
    /// Row of the batch.
    pub row: usize,
    /// Head.
    pub head: usize,
    /// Position of the query among its row's keys.
    pub query: usize,
    /// Position of the first key.
    pub first_key: usize,
}

/// Something added to scores, such as a position bias.
pub trait ScoreBias: Sync {
    /// Whether what is added depends on the head and on key minus query alone. A kernel then asks for it once for many
    /// queries, also at positions that the row does not have, and begins its sums with it.
    fn is_relative(&self) -> bool {
        false
    }

    /// Adds to `scores[i]` what belongs to key `at.first_key + i`.
    fn add(&self, at: ScoresAt, scores: &mut [f32]);
}

/// Which keys a query sees.
pub trait ScoreMask: Sync {
    /// A range that holds every key that one of `queries` sees, the smaller the better: keys
    /// outside are never computed. An empty one says that these queries see nothing.
    fn visible(&self, row: usize, queries: Range<usize>, n_keys: usize) -> Range<usize>;

    /// Whether each of `queries` sees each of `keys`, so that there is nothing to hide.
    fn is_full(&self, row: usize, queries: Range<usize>, keys: Range<usize>) -> bool;

    /// Sets `scores[i]` to minus infinity if key `at.first_key + i` is hidden from the query.
    fn hide(&self, at: ScoresAt, scores: &mut [f32]);
}

/// Nothing is added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NoBias;

impl ScoreBias for NoBias {
    #[inline]
    fn add(&self, _at: ScoresAt, _scores: &mut [f32]) {}
}

/// A bias that depends on `key - query` alone, and is constant from some distance on: T5's
/// relative position bias. One vector a head takes the place of a `[heads, queries, keys]`
/// tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct RelativeBias {
    reach: usize,
    /// For each head, distances from `-reach` to `reach`.
    values: Vec<f32>,
}

impl RelativeBias {
    /// `value(head, distance)` for distances up to `reach` in either direction; farther ones
    /// have the value of `reach`.
    pub fn new(n_heads: usize, reach: usize, value: impl Fn(usize, i64) -> f32) -> Self {
        let far = reach as i64;
        RelativeBias {
            reach,
            values: (0..n_heads)
                .flat_map(|head| (-far..=far).map(move |distance| (head, distance)))
                .map(|(head, distance)| value(head, distance))
                .collect(),
        }
    }

    fn of_head(&self, head: usize) -> &[f32] {
        let width = 2 * self.reach + 1;
        &self.values[head * width..(head + 1) * width]
    }
}

impl ScoreBias for RelativeBias {
    #[inline]
    fn is_relative(&self) -> bool {
        true
    }

    #[inline]
    fn add(&self, at: ScoresAt, scores: &mut [f32]) {
        let strip = self.of_head(at.head);
        // Keys below `query - reach`, then those within reach, then the rest.
        let nearest = (at.query as i64 - self.reach as i64 - at.first_key as i64).max(0) as usize;
        let beyond = (at.query + self.reach + 1).saturating_sub(at.first_key);
        let (before, rest) = scores.split_at_mut(nearest.min(scores.len()));
        let (within, after) =
            rest.split_at_mut(beyond.saturating_sub(before.len()).min(rest.len()));
        for score in before.iter_mut() {
            *score += strip[0];
        }
        let first = at.first_key + before.len() + self.reach;
        if let Some(first) = first.checked_sub(at.query).filter(|_| !within.is_empty()) {
            for (score, bias) in within.iter_mut().zip(&strip[first..]) {
                *score += bias;
            }
        }
        for score in after {
            *score += strip[2 * self.reach];
        }
    }
}

/// A relative bias by positions that do not count up by one.
#[derive(Clone, Copy, Debug)]
pub struct PositionBias<'a> {
    /// The bias of a distance.
    pub bias: &'a RelativeBias,
    /// Position of every token of the batch.
    pub positions: &'a [u32],
    /// Where rows begin in `positions`.
    pub row_starts: &'a [usize],
}

impl ScoreBias for PositionBias<'_> {
    #[inline]
    fn add(&self, at: ScoresAt, scores: &mut [f32]) {
        let strip = self.bias.of_head(at.head);
        let positions = &self.positions[self.row_starts[at.row]..self.row_starts[at.row + 1]];
        let query = i64::from(positions[at.query]);
        let reach = self.bias.reach as i64;
        for (score, &key) in scores.iter_mut().zip(&positions[at.first_key..]) {
            let distance = (i64::from(key) - query).clamp(-reach, reach);
            *score += strip[(distance + reach) as usize];
        }
    }
}

/// Every query sees every key of its row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NoMask;

impl ScoreMask for NoMask {
    #[inline]
    fn visible(&self, _row: usize, _queries: Range<usize>, n_keys: usize) -> Range<usize> {
        0..n_keys
    }

    #[inline]
    fn is_full(&self, _row: usize, _queries: Range<usize>, _keys: Range<usize>) -> bool {
        true
    }

    #[inline]
    fn hide(&self, _at: ScoresAt, _scores: &mut [f32]) {}
}

/// A query sees the keys up to its own position.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CausalMask;

impl ScoreMask for CausalMask {
    #[inline]
    fn visible(&self, _row: usize, queries: Range<usize>, n_keys: usize) -> Range<usize> {
        0..queries.end.min(n_keys)
    }

    #[inline]
    fn is_full(&self, _row: usize, queries: Range<usize>, keys: Range<usize>) -> bool {
        keys.end <= queries.start + 1
    }

    #[inline]
    fn hide(&self, at: ScoresAt, scores: &mut [f32]) {
        let seen = (at.query + 1)
            .saturating_sub(at.first_key)
            .min(scores.len());
        scores[seen..].fill(f32::NEG_INFINITY);
    }
}

/// Flags by key, one a token of the batch: padding. Hidden keys before the first visible one
/// of a row and after the last cost nothing.
#[derive(Clone, Debug)]
pub struct KeyMask<'a> {
    flags: &'a [bool],
    row_starts: &'a [usize],
    /// For each row, from the first visible key to the last.
    spans: Vec<Range<usize>>,
    /// For each row, whether hidden keys lie between them.
    has_holes: Vec<bool>,
}

impl<'a> KeyMask<'a> {
    /// `flags` of all tokens; rows begin at `row_starts`.
    pub fn new(flags: &'a [bool], row_starts: &'a [usize]) -> Self {
        let (mut spans, mut has_holes) = (Vec::new(), Vec::new());
        for bounds in row_starts.windows(2) {
            let row = &flags[bounds[0]..bounds[1]];
            let first = row.iter().position(|&seen| seen).unwrap_or(0);
            let end = row
                .iter()
                .rposition(|&seen| seen)
                .map_or(0, |last| last + 1);
            has_holes.push(row[first..end.max(first)].contains(&false));
            spans.push(first..end);
        }
        KeyMask {
            flags,
            row_starts,
            spans,
            has_holes,
        }
    }
}

impl ScoreMask for KeyMask<'_> {
    #[inline]
    fn visible(&self, row: usize, _queries: Range<usize>, _n_keys: usize) -> Range<usize> {
        self.spans[row].clone()
    }

    #[inline]
    fn is_full(&self, row: usize, _queries: Range<usize>, keys: Range<usize>) -> bool {
        let span = &self.spans[row];
        !self.has_holes[row] && span.start <= keys.start && keys.end <= span.end
    }

    #[inline]
    fn hide(&self, at: ScoresAt, scores: &mut [f32]) {
        let first = self.row_starts[at.row] + at.first_key;
        for (score, &seen) in scores.iter_mut().zip(&self.flags[first..]) {
            if !seen {
                *score = f32::NEG_INFINITY;
            }
        }
    }
}

/// An arbitrary relation: for each row of `n` tokens `[n, n]` flags (query, key), rows' squares
/// laid end to end.
#[derive(Clone, Debug)]
pub struct PairMask<'a> {
    flags: &'a [bool],
    lengths: Vec<usize>,
    /// Where rows' squares begin.
    starts: Vec<usize>,
}

impl<'a> PairMask<'a> {
    /// `flags` of all rows; rows begin at `row_starts`.
    pub fn new(flags: &'a [bool], row_starts: &[usize]) -> Self {
        let lengths: Vec<usize> = row_starts.windows(2).map(|b| b[1] - b[0]).collect();
        let mut start = 0;
        let starts = lengths
            .iter()
            .map(|n| {
                let first = start;
                start += n * n;
                first
            })
            .collect();
        PairMask {
            flags,
            lengths,
            starts,
        }
    }
}

impl ScoreMask for PairMask<'_> {
    #[inline]
    fn visible(&self, _row: usize, _queries: Range<usize>, n_keys: usize) -> Range<usize> {
        0..n_keys
    }

    #[inline]
    fn is_full(&self, _row: usize, _queries: Range<usize>, _keys: Range<usize>) -> bool {
        false
    }

    #[inline]
    fn hide(&self, at: ScoresAt, scores: &mut [f32]) {
        let n = self.lengths[at.row];
        let row = &self.flags[self.starts[at.row] + at.query * n..][..n];
        for (score, &seen) in scores.iter_mut().zip(&row[at.first_key..]) {
            if !seen {
                *score = f32::NEG_INFINITY;
            }
        }
    }
}

/// Bias and mask, compiled for the instruction set that runs them.
///
/// # Safety
///
/// The instruction set is available.
pub(crate) unsafe fn modify<B: ScoreBias, M: ScoreMask>(
    isa: Isa,
    bias: &B,
    mask: &M,
    at: ScoresAt,
    full: bool,
    scores: &mut [f32],
) {
    #[inline(always)]
    fn body<B: ScoreBias, M: ScoreMask>(
        bias: &B,
        mask: &M,
        at: ScoresAt,
        full: bool,
        scores: &mut [f32],
    ) {
        bias.add(at, scores);
        if !full {
            mask.hide(at, scores);
        }
    }
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
        fn avx512<B: ScoreBias, M: ScoreMask>(
            b: &B,
            m: &M,
            at: ScoresAt,
            full: bool,
            s: &mut [f32],
        ) {
            body(b, m, at, full, s);
        }
        #[target_feature(enable = "avx2,fma")]
        fn avx2<B: ScoreBias, M: ScoreMask>(b: &B, m: &M, at: ScoresAt, full: bool, s: &mut [f32]) {
            body(b, m, at, full, s);
        }
        // SAFETY: by the caller's word.
        unsafe {
            match isa {
                Isa::Portable => body(bias, mask, at, full, scores),
                Isa::Avx2 => avx2(bias, mask, at, full, scores),
                Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx => avx512(bias, mask, at, full, scores),
            }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = isa;
        body(bias, mask, at, full, scores);
    }
}
