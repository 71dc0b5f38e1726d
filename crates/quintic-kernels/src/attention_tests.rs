//! Attention against plain loops in f64.

use std::ops::Range;

use crate::tests::{for_each_isa, noise};
use crate::*;

const PRECISIONS: [Precision; 3] = [Precision::F32, Precision::Split, Precision::Bf16];

/// A case: heads, their width, lengths of rows.
fn cases() -> Vec<(usize, usize, Vec<usize>)> {
    vec![
        (1, 1, vec![1]),
        (2, 64, vec![1, 2, 31, 0, 32, 33]),
        (3, 8, vec![15, 16, 17, 64]),
        (2, 33, vec![5, 70]),
        (1, 128, vec![65]),
        // More than one block of keys.
        (1, 64, vec![511, 513]),
        (1, 16, vec![1100]),
    ]
}

struct Packed {
    qkv: Operand,
    row_starts: Vec<usize>,
    n_heads: usize,
    d_kv: usize,
}

impl Packed {
    fn new(kernels: &Kernels, n_heads: usize, d_kv: usize, lengths: &[usize]) -> Self {
        let mut row_starts = vec![0];
        for length in lengths {
            row_starts.push(row_starts[row_starts.len() - 1] + length);
        }
        let tokens = row_starts[lengths.len()];
        let mut qkv = kernels.operand(Precision::F32, tokens, 3 * n_heads * d_kv);
        let mut next = noise(tokens + n_heads);
        // Scores of a few units, as in real models.
        let size = 2.0 / (d_kv as f32).sqrt().sqrt();
        for token in 0..tokens {
            for column in 0..3 * n_heads * d_kv {
                qkv.set(token, column, size * next());
            }
        }
        Packed {
            qkv,
            row_starts,
            n_heads,
            d_kv,
        }
    }

    fn attention(&self) -> Attention<'_> {
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

    fn out(&self, kernels: &Kernels, precision: Precision) -> Operand {
        kernels.operand(precision, self.qkv.tokens(), self.n_heads * self.d_kv)
    }

    /// The output of one query and head in f64, and the largest value that took part.
    fn expected(
        &self,
        row: usize,
        head: usize,
        query: usize,
        bias: &dyn Fn(usize, usize) -> f64,
        seen: &dyn Fn(usize, usize) -> bool,
    ) -> (Vec<f64>, f64) {
        let inner = self.n_heads * self.d_kv;
        let (first, n) = (
            self.row_starts[row],
            self.row_starts[row + 1] - self.row_starts[row],
        );
        let at = |token: usize, part: usize, i: usize| {
            f64::from(
                self.qkv
                    .get(first + token, part * inner + head * self.d_kv + i),
            )
        };
        let keys: Vec<usize> = (0..n).filter(|&key| seen(query, key)).collect();
        let score = |key: usize| {
            (0..self.d_kv)
                .map(|i| at(query, 0, i) * at(key, 1, i))
                .sum::<f64>()
                + bias(query, key)
        };
        let (keys, weights): (Vec<usize>, Vec<f64>) = if keys.is_empty() {
            ((0..n).collect(), vec![1.0; n])
        } else {
            let scores: Vec<f64> = keys.iter().map(|&key| score(key)).collect();
            let max = scores.iter().copied().fold(f64::MIN, f64::max);
            let weights = scores.iter().map(|score| (score - max).exp()).collect();
            (keys, weights)
        };
        let total: f64 = weights.iter().sum();
        let largest = keys
            .iter()
            .flat_map(|&key| (0..self.d_kv).map(move |i| (key, i)))
            .map(|(key, i)| at(key, 2, i).abs())
            .fold(0.0, f64::max);
        let out = (0..self.d_kv)
            .map(|i| {
                keys.iter()
                    .zip(&weights)
                    .map(|(&key, weight)| weight * at(key, 2, i))
                    .sum::<f64>()
                    / total
            })
            .collect();
        (out, largest)
    }
}

/// What an output may differ from the exact one, relative to the largest value.
///
/// A score is a sum of `d_kv` terms, each of size at most 4/sqrt(d_kv) here, so at most
/// 4 sqrt(d_kv) in all; its error in f32 is at most `(d_kv + 1) 2^-24` of that, and moves a
/// weight by as much relative to itself. The weights' own rounding, `e^x` and the sums over at
/// most 512 keys a block add 520 roundings at most. bf16 rounds weights to 2^-9 and results to
/// 2^-9; split parts do so to 2^-17, and leave out products of small parts (2^-16 of a score).
fn bound(kernels: &Kernels, precision: Precision, d_kv: usize) -> f64 {
    let d = d_kv as f64;
    let f32_error = (4.0 * d.sqrt() * (d + 1.0) + 520.0) * 2f64.powi(-24) * 2.0;
    match kernels.form(precision) {
        crate::operand::Form::F32 => f32_error,
        crate::operand::Form::Split => 3.0 * f32_error + (8.0 * d.sqrt() + 2.0) * 2f64.powi(-16),
        _ => f32_error + 3.0 * 2f64.powi(-9),
    }
}

#[allow(clippy::too_many_arguments)]
fn check<B: ScoreBias, M: ScoreMask>(
    kernels: &Kernels,
    precision: Precision,
    packed: &Packed,
    bias: &B,
    mask: &M,
    exact_bias: &dyn Fn(usize, usize, usize, usize) -> f64,
    seen: &dyn Fn(usize, usize, usize) -> bool,
) {
    let mut out = packed.out(kernels, precision);
    kernels.attend(&packed.attention(), bias, mask, &mut out);
    let relative = bound(kernels, precision, packed.d_kv);
    for row in 0..packed.row_starts.len() - 1 {
        let (first, end) = (packed.row_starts[row], packed.row_starts[row + 1]);
        for head in 0..packed.n_heads {
            // All queries of short rows, some of long ones.
            let step = if end - first > 200 { 37 } else { 1 };
            for query in (0..end - first).step_by(step) {
                let (expected, largest) = packed.expected(
                    row,
                    head,
                    query,
                    &|q, k| exact_bias(row, head, q, k),
                    &|q, k| seen(row, q, k),
                );
                for (i, expected) in expected.into_iter().enumerate() {
                    let found = f64::from(out.get(first + query, head * packed.d_kv + i));
                    assert!(
                        (found - expected).abs() <= relative * largest,
                        "{} {precision:?} d_kv {} row {row} of {:?}, head {head}, query {query}, {i}: {found}, expected {expected}",
                        kernels.isa(),
                        packed.d_kv,
                        packed.row_starts
                    );
                }
            }
        }
    }
}

fn relative_bias(n_heads: usize) -> RelativeBias {
    RelativeBias::new(n_heads, 20, |head, distance| {
        ((head as i64 * 7 + distance * 3).rem_euclid(11)) as f32 / 5.0 - 1.0
    })
}

fn relative_value(bias: &RelativeBias, head: usize, distance: i64) -> f64 {
    let mut score = [0.0];
    let query = 5000usize;
    let at = ScoresAt {
        row: 0,
        head,
        query,
        first_key: (query as i64 + distance) as usize,
    };
    bias.add(at, &mut score);
    f64::from(score[0])
}

#[test]
fn a_relative_bias_reaches_so_far_and_is_constant_beyond() {
    let bias = RelativeBias::new(2, 3, |head, distance| (100 * head) as f32 + distance as f32);
    for query in 0..12 {
        for first_key in 0..12 {
            for n in 0..14 {
                let mut scores = vec![0.0; n];
                bias.add(
                    ScoresAt {
                        row: 0,
                        head: 1,
                        query,
                        first_key,
                    },
                    &mut scores,
                );
                for (i, score) in scores.into_iter().enumerate() {
                    let distance = (first_key + i) as i64 - query as i64;
                    assert_eq!(score, 100.0 + distance.clamp(-3, 3) as f32);
                }
            }
        }
    }
}

/// What stands in two parts is what f32 is split into; so the bits are the same, for rows of every length but one: a row of
/// one token in f32 is not multiplied in parts.
#[test]
fn operands_in_parts_give_the_bits_of_f32() {
    for_each_isa(|kernels| {
        for precision in [Precision::Split, Precision::Bf16] {
            for (n_heads, d_kv, lengths) in [
                (3, 64, vec![2, 31, 0, 32, 33, 200]),
                (2, 32, vec![15, 513]),
                (1, 33, vec![40]),
            ] {
                let mut packed = Packed::new(kernels, n_heads, d_kv, &lengths);
                let columns = 3 * n_heads * d_kv;
                let mut parts =
                    kernels.attention_operand(precision, packed.qkv.tokens(), columns, d_kv);
                for token in 0..packed.qkv.tokens() {
                    for column in 0..columns {
                        parts.set(token, column, packed.qkv.get(token, column));
                    }
                }
                let bias = relative_bias(n_heads);
                let flags: Vec<bool> = (0..packed.qkv.tokens())
                    .map(|token| token % 7 != 3)
                    .collect();
                let starts = packed.row_starts.clone();
                let attend = |packed: &Packed| {
                    let mut outs = [0, 1].map(|_| packed.out(kernels, precision));
                    let mask = KeyMask::new(&flags, &starts);
                    kernels.attend(&packed.attention(), &bias, &NoMask, &mut outs[0]);
                    kernels.attend(&packed.attention(), &bias, &mask, &mut outs[1]);
                    outs
                };
                let expected = attend(&packed);
                let weights = |packed: &Packed| {
                    kernels.attention_weights(&packed.attention(), &bias, &NoMask)
                };
                let in_f32 = weights(&packed);
                packed.qkv = parts;
                for (found, expected) in attend(&packed).iter().zip(&expected) {
                    for token in 0..found.tokens() {
                        for column in 0..found.columns() {
                            assert_eq!(
                                found.get(token, column).to_bits(),
                                expected.get(token, column).to_bits(),
                                "{} {precision:?} {lengths:?} {token} {column}",
                                kernels.isa()
                            );
                        }
                    }
                }
                // Scores in parts are off by 2^-16 of themselves, at most 4 sqrt(d_kv) here; so are weights.
                let bound = 8.0 * (d_kv as f32).sqrt() * 2f32.powi(-16);
                for (found, exact) in weights(&packed).into_iter().zip(in_f32) {
                    assert!((found - exact).abs() <= bound * exact, "{found} {exact}");
                }
            }
        }
    });
}

#[test]
fn attention_equals_plain_loops_with_every_bias_and_mask() {
    for_each_isa(|kernels| {
        for precision in PRECISIONS {
            for (n_heads, d_kv, lengths) in cases() {
                let packed = Packed::new(kernels, n_heads, d_kv, &lengths);
                let starts = packed.row_starts.clone();
                let tokens = packed.qkv.tokens();
                let bias = relative_bias(n_heads);
                let by_distance = |_: usize, head: usize, q: usize, k: usize| {
                    relative_value(&bias, head, k as i64 - q as i64)
                };
                let none = |_: usize, _: usize, _: usize, _: usize| 0.0;
                check(
                    kernels,
                    precision,
                    &packed,
                    &NoBias,
                    &NoMask,
                    &none,
                    &|_, _, _| true,
                );
                check(
                    kernels,
                    precision,
                    &packed,
                    &bias,
                    &NoMask,
                    &by_distance,
                    &|_, _, _| true,
                );
                check(
                    kernels,
                    precision,
                    &packed,
                    &bias,
                    &CausalMask,
                    &by_distance,
                    &|_, q, k| k <= q,
                );

                // Padding on the right, on the left, holes, and a row of nothing but padding.
                let flags: Vec<bool> = (0..tokens)
                    .map(|token| {
                        let row = starts
                            .iter()
                            .rposition(|&start| start <= token)
                            .unwrap_or(0);
                        let row = row.min(lengths.len() - 1);
                        let (at, n) = (token - starts[row], lengths[row]);
                        match row % 4 {
                            0 => at < n.div_ceil(2),
                            1 => at > n / 3,
                            2 => at % 3 == 1,
                            _ => false,
                        }
                    })
                    .collect();
                let mask = KeyMask::new(&flags, &starts);
                check(
                    kernels,
                    precision,
                    &packed,
                    &bias,
                    &mask,
                    &by_distance,
                    &|row, _, k| flags[starts[row] + k],
                );

                let positions: Vec<u32> = (0..tokens)
                    .map(|token| (token * 3 + token % 2) as u32)
                    .collect();
                let by_position = PositionBias {
                    bias: &bias,
                    positions: &positions,
                    row_starts: &starts,
                };
                let exact = |row: usize, head: usize, q: usize, k: usize| {
                    relative_value(
                        &bias,
                        head,
                        i64::from(positions[starts[row] + k])
                            - i64::from(positions[starts[row] + q]),
                    )
                };
                check(
                    kernels,
                    precision,
                    &packed,
                    &by_position,
                    &NoMask,
                    &exact,
                    &|_, _, _| true,
                );

                if tokens < 300 {
                    let sees =
                        |q: usize, k: usize| q % 5 != 3 && !(q * 7 + k * 3).is_multiple_of(4);
                    let flags: Vec<bool> = lengths
                        .iter()
                        .flat_map(|&n| (0..n * n).map(move |i| sees(i / n, i % n)))
                        .collect();
                    let mask = PairMask::new(&flags, &starts);
                    check(
                        kernels,
                        precision,
                        &packed,
                        &bias,
                        &mask,
                        &by_distance,
                        &|_, q, k| sees(q, k),
                    );
                }
            }
        }
    });
}

/// Keys within a distance: what a user would write.
struct Window(usize);

impl ScoreMask for Window {
    fn visible(&self, _row: usize, queries: Range<usize>, n_keys: usize) -> Range<usize> {
        queries.start.saturating_sub(self.0)..(queries.end + self.0).min(n_keys)
    }

    fn is_full(&self, _row: usize, queries: Range<usize>, keys: Range<usize>) -> bool {
        keys.start + self.0 + 1 >= queries.end && keys.end <= queries.start + self.0 + 1
    }

    fn hide(&self, at: ScoresAt, scores: &mut [f32]) {
        for (i, score) in scores.iter_mut().enumerate() {
            if (at.first_key + i).abs_diff(at.query) > self.0 {
                *score = f32::NEG_INFINITY;
            }
        }
    }
}

#[test]
fn a_sliding_window_skips_what_it_hides() {
    for_each_isa(|kernels| {
        for precision in PRECISIONS {
            for window in [0, 1, 40, 700] {
                let packed = Packed::new(kernels, 1, 16, &[40, 1500]);
                check(
                    kernels,
                    precision,
                    &packed,
                    &NoBias,
                    &Window(window),
                    &|_, _, _, _| 0.0,
                    &|_, q, k| q.abs_diff(k) <= window,
                );
            }
        }
    });
}

/// A row alone, and between others, in whatever position.
#[test]
fn rows_do_not_depend_on_their_company() {
    for_each_isa(|kernels| {
        for precision in PRECISIONS {
            let (n_heads, d_kv, n) = (2, 24, 45);
            let inner = n_heads * d_kv;
            let run = |before: usize, after: usize| {
                let mut packed = Packed::new(kernels, n_heads, d_kv, &[before, n, after]);
                let mut next = noise(77);
                for token in before..before + n {
                    for column in 0..3 * inner {
                        packed.qkv.set(token, column, next());
                    }
                }
                let mut out = packed.out(kernels, precision);
                kernels.attend(
                    &packed.attention(),
                    &relative_bias(n_heads),
                    &NoMask,
                    &mut out,
                );
                (before..before + n)
                    .flat_map(|token| (0..inner).map(move |c| (token, c)))
                    .map(|(t, c)| out.get(t, c))
                    .collect::<Vec<f32>>()
            };
            let alone = run(0, 0);
            for (before, after) in [(1, 0), (0, 70), (33, 600)] {
                assert_eq!(run(before, after), alone, "{} {precision:?}", kernels.isa());
            }
        }
    });
}

/// Queries at the end of longer rows of keys, as with a cache, and keys of another matrix. Few of
/// them are computed in another way than whole rows: with the bits of one that comes alone.
#[test]
fn queries_may_be_the_last_of_their_keys() {
    for_each_isa(|kernels| {
        let precision = Precision::F32;
        let lengths = [50, 19, 1100];
        const FEW: usize = Attention::SAME_BITS;
        for (d_kv, n) in [1, 15, 16, 31, 48, 64, 70, 128, 130]
            .into_iter()
            .flat_map(|d_kv| [1, 2, 3, FEW, FEW + 1].map(|n| (d_kv, n)))
        {
            let n_heads = 2;
            let inner = n_heads * d_kv;
            let packed = Packed::new(kernels, n_heads, d_kv, &lengths);
            let bias = relative_bias(n_heads);
            let mut all = packed.out(kernels, precision);
            kernels.attend(&packed.attention(), &bias, &CausalMask, &mut all);
            // The last tokens of each row by themselves.
            let mut queries = kernels.operand(Precision::F32, 3 * n, inner);
            let tokens: Vec<(usize, usize)> = (0..3)
                .flat_map(|row| (lengths[row] - n..lengths[row]).map(move |query| (row, query)))
                .collect();
            for (to, &(row, query)) in tokens.iter().enumerate() {
                for column in 0..inner {
                    let value = packed.qkv.get(packed.row_starts[row] + query, column);
                    queries.set(to, column, value);
                }
            }
            let mut out = kernels.operand(Precision::F32, 3 * n, inner);
            let attention = Attention {
                queries: &queries,
                row_starts: &[0, n, 2 * n, 3 * n],
                queries_are_last: true,
                head_gains: None,
                ..packed.attention()
            };
            kernels.attend(&attention, &bias, &CausalMask, &mut out);
            // The first of them, before the others have come.
            let mut alone = kernels.operand(Precision::F32, 3 * n, inner);
            let row_starts = [0, 1, 1 + n, 1 + 2 * n];
            let ends: Vec<usize> = (0..3).map(|row| packed.row_starts[row + 1]).collect();
            let early = KeysValues {
                ends: &[ends[0] + 1 - n, ends[1], ends[2]],
                ..attention.keys
            };
            let attention = Attention {
                row_starts: &row_starts,
                keys: early,
                ..attention
            };
            kernels.attend(&attention, &bias, &CausalMask, &mut alone);
            if n <= FEW {
                for column in 0..inner {
                    assert_eq!(alone.get(0, column), out.get(0, column), "{d_kv}, {n}");
                }
            }
            for (to, &(row, query)) in tokens.iter().enumerate() {
                for head in 0..n_heads {
                    let (expected, largest) = packed.expected(
                        row,
                        head,
                        query,
                        &|q, k| relative_value(&bias, head, k as i64 - q as i64),
                        &|q, k| k <= q,
                    );
                    for (i, expected) in expected.into_iter().enumerate() {
                        let column = head * d_kv + i;
                        let found = out.get(to, column);
                        let bound = bound(kernels, precision, d_kv) * largest;
                        assert!(
                            (f64::from(found) - expected).abs() <= bound,
                            "{} d_kv {d_kv}, {n} queries, {row} {query} {i}",
                            kernels.isa()
                        );
                        if n > FEW {
                            let token = packed.row_starts[row] + query;
                            assert_eq!(found, all.get(token, column));
                        }
                    }
                }
            }
        }
    });
}

/// Rows of keys with room behind them, as in a cache that grows: what stands in the gaps is
/// never read, and a row may have no key yet, or no query.
#[test]
fn gaps_between_rows_of_keys_are_never_read() {
    for_each_isa(|kernels| {
        for precision in PRECISIONS {
            let (n_heads, d_kv) = (2, 16);
            let inner = n_heads * d_kv;
            let lengths = [1, 45, 0, 32, 600];
            let packed = Packed::new(kernels, n_heads, d_kv, &lengths);
            let bias = relative_bias(n_heads);
            let mut all = packed.out(kernels, precision);
            kernels.attend(&packed.attention(), &bias, &CausalMask, &mut all);

            let capacity = 640;
            let mut cache = kernels.operand(Precision::F32, 6 * capacity, 2 * inner);
            for token in 0..cache.tokens() {
                for column in 0..2 * inner {
                    cache.set(token, column, f32::NAN);
                }
            }
            // Rows in another order than their keys', and the last without any key.
            let starts = [5, 0, 2, 1, 4, 3].map(|place| place * capacity);
            let mut ends = starts;
            for (row, n) in lengths.into_iter().enumerate() {
                ends[row] += n;
                for token in 0..n {
                    let from = packed.row_starts[row] + token;
                    cache.copy_columns(starts[row] + token, 0, &packed.qkv, from, inner, 2 * inner);
                }
            }
            // Of each row the last queries: one, several, none, all, more than a block.
            let n_queries = [1, 17, 0, 32, 40, 1];
            let mut row_starts = vec![0];
            for n in n_queries {
                row_starts.push(row_starts[row_starts.len() - 1] + n);
            }
            let mut queries = kernels.operand(Precision::F32, row_starts[6], inner);
            for row in 0..lengths.len() {
                for query in 0..n_queries[row] {
                    let from = packed.row_starts[row + 1] - n_queries[row] + query;
                    let to = row_starts[row] + query;
                    queries.copy_columns(to, 0, &packed.qkv, from, 0, inner);
                }
            }
            let mut out = kernels.operand(precision, row_starts[6], inner);
            let attention = Attention {
                n_heads,
                d_kv,
                queries: &queries,
                row_starts: &row_starts,
                keys: KeysValues {
                    keys: &cache,
                    key_column: 0,
                    values: &cache,
                    value_column: inner,
                    starts: &starts,
                    ends: &ends,
                },
                queries_are_last: true,
                head_gains: None,
            };
            kernels.attend(&attention, &bias, &CausalMask, &mut out);
            for row in 0..n_queries.len() {
                for query in 0..n_queries[row] {
                    for column in 0..inner {
                        let expected = match packed.row_starts.get(row + 1) {
                            Some(end) => all.get(end - n_queries[row] + query, column),
                            None => 0.0,
                        };
                        let found = out.get(row_starts[row] + query, column);
                        let isa = kernels.isa();
                        assert_eq!(found, expected, "{isa} {precision:?}, row {row}, {query}");
                    }
                }
            }
        }
    });
}

/// Infinite and undefined scores stay undefined, and in their own row.
#[test]
fn nan_spreads_no_further_than_its_row() {
    for_each_isa(|kernels| {
        for precision in PRECISIONS {
            let mut packed = Packed::new(kernels, 1, 32, &[20, 20]);
            packed.qkv.set(3, 40, f32::NAN);
            let mut out = packed.out(kernels, precision);
            kernels.attend(&packed.attention(), &NoBias, &NoMask, &mut out);
            for token in 0..40 {
                for column in 0..32 {
                    assert_eq!(
                        out.get(token, column).is_nan(),
                        token < 20,
                        "{} {precision:?} {token}",
                        kernels.isa()
                    );
                }
            }
        }
    });
}

/// Powers of two, so that multiplying by them rounds nothing: the result is the plain one times
/// the gain, bit for bit, in every type, for queries that see something and for those that do
/// not.
#[test]
fn gains_multiply_what_heads_give() {
    const GAINS: [f32; 5] = [1.0, 0.5, 0.0, -2.0, 0.125];
    for_each_isa(|kernels| {
        for precision in PRECISIONS {
            for lengths in [vec![1, 33, 17], vec![513]] {
                let packed = Packed::new(kernels, GAINS.len(), 24, &lengths);
                let tokens = packed.qkv.tokens();
                let bias = relative_bias(GAINS.len());
                // Of the first row nothing is seen.
                let flags: Vec<bool> = (0..tokens).map(|t| t >= lengths[0].min(2)).collect();
                let mask = KeyMask::new(&flags, &packed.row_starts);
                let mut plain = packed.out(kernels, precision);
                let mut gained = packed.out(kernels, precision);
                kernels.attend(&packed.attention(), &bias, &mask, &mut plain);
                let attention = Attention {
                    head_gains: Some(&GAINS),
                    ..packed.attention()
                };
                kernels.attend(&attention, &bias, &mask, &mut gained);
                for token in 0..tokens {
                    for column in 0..GAINS.len() * packed.d_kv {
                        let expected = plain.get(token, column) * GAINS[column / packed.d_kv];
                        assert_eq!(gained.get(token, column), expected, "{precision:?}");
                    }
                }
            }
        }
    });
}

/// Values mixed by hand with the weights are what the attention gives.
#[test]
fn weights_are_those_that_values_are_mixed_with() {
    for_each_isa(|kernels| {
        for (n_heads, d_kv, lengths) in cases() {
            let packed = Packed::new(kernels, n_heads, d_kv, &lengths);
            let bias = relative_bias(n_heads);
            let gains: Vec<f32> = (0..n_heads).map(|head| 0.3 + head as f32).collect();
            let attention = Attention {
                head_gains: Some(&gains),
                ..packed.attention()
            };
            let flags: Vec<bool> = (0..packed.qkv.tokens()).map(|t| t % 3 != 0).collect();
            let mask = KeyMask::new(&flags, &packed.row_starts);
            let weights = kernels.attention_weights(&attention, &bias, &mask);
            let n_weights = lengths.iter().map(|n| n_heads * n * n).sum::<usize>();
            assert_eq!(weights.len(), n_weights);
            let mut out = packed.out(kernels, Precision::F32);
            kernels.attend(&attention, &bias, &mask, &mut out);

            let mut start = 0;
            for (row, &n) in lengths.iter().enumerate() {
                let first = packed.row_starts[row];
                for head in 0..n_heads {
                    for query in 0..n {
                        let weights = &weights[start + (head * n + query) * n..][..n];
                        for i in 0..d_kv {
                            let column = 2 * n_heads * d_kv + head * d_kv + i;
                            let values = (0..n).map(|key| packed.qkv.get(first + key, column));
                            let (mut sum, mut largest) = (0.0, 0.0f64);
                            for (&weight, value) in weights.iter().zip(values) {
                                sum += f64::from(weight) * f64::from(value);
                                largest = largest.max(f64::from(value).abs());
                            }
                            let found = f64::from(out.get(first + query, head * d_kv + i));
                            // Both stay as near to the exact result.
                            let bound = 2.0 * bound(kernels, Precision::F32, d_kv);
                            let allowed = bound * largest * f64::from(gains[head]);
                            assert!(
                                (found - sum).abs() <= allowed,
                                "{found}, {sum}, allowed {allowed:e}"
                            );
                        }
                    }
                }
                start += n_heads * n * n;
            }
        }
    });
}
