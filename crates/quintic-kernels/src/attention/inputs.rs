//! What an attention reads: queries, and keys and values that may stand elsewhere.

use crate::operand::{Form, Operand};

/// Keys and values of an attention, `[tokens, n_heads * d_kv]` each, in f32 or as
/// [`Kernels::attention_operand`](crate::Kernels::attention_operand) has them.
#[derive(Clone, Copy, Debug)]
pub struct KeysValues<'a> {
    /// The matrix that keys stand in.
    pub keys: &'a Operand,
    /// Column of the first key.
    pub key_column: usize,
    /// The matrix that values stand in.
    pub values: &'a Operand,
    /// Column of the first value.
    pub value_column: usize,
    /// Where rows begin, `[rows]`.
    pub starts: &'a [usize],
    /// Where rows end, `[rows]`.
    pub ends: &'a [usize],
}

/// One attention over a packed batch.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// Number of heads.
    pub n_heads: usize,
    /// Width of a head.
    pub d_kv: usize,
    /// Queries, in the first `n_heads * d_kv` columns.
    pub queries: &'a Operand,
    /// Where rows of queries begin, `[rows + 1]`.
    pub row_starts: &'a [usize],
    /// Keys and values of the same number of rows.
    pub keys: KeysValues<'a>,
    /// Whether queries are the last tokens of their row of keys, as with a cache. Otherwise
    /// query `i` stands at position `i`.
    pub queries_are_last: bool,
    /// Factor of every head's weights, `[n_heads]`.
    pub head_gains: Option<&'a [f32]>,
}

impl Attention<'_> {
    /// A query that is among the last ones of its row of keys gets the same bits whether it comes
    /// alone or together with others, up to so many.
    pub const SAME_BITS: usize = 16;

    /// Factor of a head's weights.
    pub(crate) fn head_gain(&self, head: usize) -> f32 {
        self.head_gains.map_or(1.0, |gains| gains[head])
    }

    /// The width of all heads.
    pub(super) fn check(&self, out: &Operand) -> usize {
        let inner = self.check_inputs();
        assert_eq!(
            (out.tokens, out.columns),
            (self.queries.tokens, inner),
            "attention output"
        );
        assert!(
            self.queries.form == Form::F32 || out.form != Form::F32,
            "an attention in f32 of queries in parts"
        );
        inner
    }

    /// As [`Attention::check`], where nothing is written.
    pub(crate) fn check_inputs(&self) -> usize {
        let inner = self.n_heads * self.d_kv;
        if let Some(gains) = self.head_gains {
            assert_eq!(gains.len(), self.n_heads, "gains of heads");
        }
        assert!(self.queries.columns >= inner, "columns of queries");
        let keys = &self.keys;
        assert!(
            keys.keys.columns >= keys.key_column + inner,
            "columns of keys"
        );
        assert!(
            keys.values.columns >= keys.value_column + inner,
            "columns of values"
        );
        let forms = [self.queries.form, keys.keys.form, keys.values.form];
        assert!(
            forms == [Form::F32; 3] || forms == [Form::Split; 3],
            "types of queries, keys and values: {forms:?}"
        );
        let starts = self.row_starts;
        assert!(
            starts.windows(2).all(|b| b[0] <= b[1])
                && starts.last().is_some_and(|&n| n <= self.queries.tokens),
            "rows of queries"
        );
        let tokens = keys.keys.tokens.min(keys.values.tokens);
        assert_eq!(
            (keys.starts.len(), keys.ends.len()),
            (starts.len() - 1, starts.len() - 1),
            "rows of keys"
        );
        let mut rows = keys.starts.iter().zip(keys.ends);
        assert!(
            rows.all(|(start, end)| start <= end && *end <= tokens),
            "rows of keys"
        );
        inner
    }
}
