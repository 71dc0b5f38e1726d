//! Attention as its definition says, in f64.

use quintic_kernels::{Attention, Kernels, KeysValues, Operand, Precision, ScoreBias, ScoreMask};

/// Queries, keys and values of rows of random numbers.
pub(crate) struct Case {
    pub(crate) n_heads: usize,
    pub(crate) d_kv: usize,
    pub(crate) row_starts: Vec<usize>,
    qkv: Operand,
}

/// How much larger queries are than keys: scores have a standard deviation of about 5, so that
/// a few keys decide an output, as in real models, however many there are.
const SHARPNESS: f32 = 4.0;

impl Case {
    pub(crate) fn new(kernels: &Kernels, n_heads: usize, d_kv: usize, lengths: &[usize]) -> Self {
        let mut row_starts = vec![0];
        for length in lengths {
            row_starts.push(row_starts[row_starts.len() - 1] + length);
        }
        let (tokens, inner) = (row_starts[lengths.len()], n_heads * d_kv);
        let mut qkv = kernels.operand(Precision::F32, tokens, 3 * inner);
        let size = 2.0 / (d_kv as f32).sqrt().sqrt();
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        for token in 0..tokens {
            for column in 0..3 * inner {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                let noise = (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
                let factor = if column < inner { SHARPNESS } else { 1.0 };
                qkv.set(token, column, factor * size * noise);
            }
        }
        Case {
            n_heads,
            d_kv,
            row_starts,
            qkv,
        }
    }

    pub(crate) fn attention(&self) -> Attention<'_> {
        let inner = self.n_heads * self.d_kv;
        Attention {
            n_heads: self.n_heads,
            d_kv: self.d_kv,
            queries: &self.qkv,
            row_starts: &self.row_starts,
            keys: KeysValues {
                keys: &self.qkv,
                key_column: inner,
                values: &self.qkv,
                value_column: 2 * inner,
                starts: &self.row_starts[..self.row_starts.len() - 1],
                ends: &self.row_starts[1..],
            },
            queries_are_last: false,
            head_gains: None,
        }
    }

    pub(crate) fn out(&self, kernels: &Kernels, precision: Precision) -> Operand {
        kernels.operand(precision, self.qkv.tokens(), self.n_heads * self.d_kv)
    }

    /// Attends, and compares every query of short rows and some of long ones with plain loops
    /// over what `exact_bias(head, query, key)` and `sees(query, key)` say.
    ///
    /// A score is a sum of `d_kv` terms, each at most `16 / sqrt(d_kv)` here; its error in f32
    /// is at most `(d_kv + 1) 2^-24` of the sum of their sizes, and moves a weight by as much
    /// relative to itself. 700 more roundings are enough for a bias of a key that matters, for
    /// `e^x` and for the sums. bf16 rounds weights, values and results to 2^-9, and scores of
    /// split factors leave out 2^-16 of their size.
    pub(crate) fn check<B: ScoreBias, M: ScoreMask>(
        &self,
        kernels: &Kernels,
        precision: Precision,
        bias: &B,
        mask: &M,
        exact_bias: impl Fn(usize, usize, usize) -> f64,
        sees: impl Fn(usize, usize) -> bool,
    ) {
        let mut out = self.out(kernels, precision);
        kernels.attend(&self.attention(), bias, mask, &mut out);
        let d = self.d_kv as f64;
        let bound = (16.0 * d.sqrt() * (d + 1.0) + 700.0) * 2f64.powi(-23)
            + if precision == Precision::F32 {
                0.0
            } else {
                3.0 * 2f64.powi(-9) + (32.0 * d.sqrt() + 2.0) * 2f64.powi(-16)
            };
        for row in self.row_starts.windows(2) {
            let n = row[1] - row[0];
            // An odd step, so that queries stand at every place of a block.
            let step = if n > 200 { n / 40 * 2 + 1 } else { 1 };
            for query in (0..n).step_by(step).chain(n.checked_sub(1)) {
                for head in 0..self.n_heads {
                    let seen = |key: &usize| sees(query, *key);
                    let keys: Vec<usize> = (0..n).filter(seen).collect();
                    let (expected, largest) = self.attend_one(row[0], head, query, &keys, |key| {
                        exact_bias(head, query, key)
                    });
                    for (i, expected) in expected.into_iter().enumerate() {
                        let found = f64::from(out.get(row[0] + query, head * self.d_kv + i));
                        assert!(
                            (found - expected).abs() <= bound * largest,
                            "{} {precision:?}, row of {n}, head {head}, query {query}, column {i}: \
                             {found}, expected {expected} within {}",
                            kernels.isa(),
                            bound * largest
                        );
                    }
                }
            }
        }
    }

    /// The output of one query, and the largest value that takes part in it.
    fn attend_one(
        &self,
        first: usize,
        head: usize,
        query: usize,
        keys: &[usize],
        bias: impl Fn(usize) -> f64,
    ) -> (Vec<f64>, f64) {
        let at = |token: usize, part: usize, i: usize| {
            f64::from(
                self.qkv
                    .get(first + token, (part * self.n_heads + head) * self.d_kv + i),
            )
        };
        let q: Vec<f64> = (0..self.d_kv).map(|i| at(query, 0, i)).collect();
        let score = |&key: &usize| {
            q.iter()
                .enumerate()
                .map(|(i, q)| q * at(key, 1, i))
                .sum::<f64>()
                + bias(key)
        };
        let scores: Vec<f64> = keys.iter().map(score).collect();
        let max = scores.iter().copied().fold(f64::MIN, f64::max);
        let (mut sums, mut total, mut largest) = (vec![0.0; self.d_kv], 0.0, 0.0f64);
        for (&key, score) in keys.iter().zip(scores) {
            let weight = (score - max).exp();
            total += weight;
            for (i, sum) in sums.iter_mut().enumerate() {
                let value = at(key, 2, i);
                *sum += weight * value;
                largest = largest.max(value.abs());
            }
        }
        (sums.into_iter().map(|sum| sum / total).collect(), largest)
    }
}
