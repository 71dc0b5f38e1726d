//! Attention inside rows, over every mask, bias and width.

use super::bounds::{self, SINGLE};
use super::inputs::{
    Made, NOISE, Pick, Reader, base, make, noise, picks_of_noise, read, row_starts, tensor,
};
use super::{List, SIZES, Subject, Worst};
use crate::Result;
use crate::backend::reference::{Reference, Rows};
use crate::backend::{Attention, Backend, Buckets, Keys, Visible};
use crate::batch::Mask;
use crate::compute::ComputeType;

/// Which map from distances to a bias.
#[derive(Clone, Copy)]
pub(super) enum Bias {
    None,
    /// 32 buckets up to 128, both directions.
    Published,
    /// The same in one direction.
    Past,
    /// Fewer buckets, up to another distance.
    Small(usize, usize),
    /// The first map of some that ends at this distance.
    Reach(usize),
}

impl Bias {
    /// The map and its number of buckets.
    pub(super) fn buckets(self) -> Option<(Buckets, usize)> {
        match self {
            Bias::None => None,
            Bias::Published => Some((Buckets::bidirectional(32, 128), 32)),
            Bias::Past => Some((Buckets::unidirectional(32, 128), 32)),
            Bias::Small(n, far) => Some((Buckets::bidirectional(n, far), n)),
            Bias::Reach(reach) => [8, 16, 32, 64]
                .into_iter()
                .flat_map(|n| (2 * n..200).map(move |far| (Buckets::bidirectional(n, far), n)))
                .find(|(buckets, _)| buckets.reach() == reach),
        }
    }
}

#[derive(Clone, Copy)]
enum Sees {
    All,
    /// Some keys, in every fourth row none.
    Keys,
    /// No row a key.
    NoKeys,
    /// Pairs; every fifth query sees nothing.
    Pairs,
    Causal,
}

#[derive(Clone)]
struct Spec {
    n_heads: usize,
    d_kv: usize,
    lengths: Vec<usize>,
    bias: Bias,
    sees: Sees,
    has_gaps: bool,
    has_gains: bool,
    /// Factor of the queries, a power of two.
    loudness: f32,
}

fn spec(n_heads: usize, d_kv: usize, lengths: &[usize]) -> Spec {
    Spec {
        n_heads,
        d_kv,
        lengths: lengths.to_vec(),
        bias: Bias::Published,
        sees: Sees::All,
        has_gaps: false,
        has_gains: false,
        loudness: 1.0,
    }
}

/// Rows of many lengths, some of them empty.
const MIXED: [usize; 9] = [0, 1, 17, 0, 33, 5, 2, 16, 0];

pub(super) fn cases<'a, B: Backend + 'a>(list: &mut List<'a, B>) {
    let mut add = |name: String, spec: Spec| {
        list.add(name, move |subject, worst| check(subject, worst, &spec));
    };
    for n in SIZES {
        for d_kv in [64, 128] {
            let spec = spec(1, d_kv, &[3, 0, n, 1]);
            add(format!("{n} tokens, heads of {d_kv}"), spec);
        }
        // The row that sees no key stands behind the one in question.
        let d_kv = if n % 2 == 0 { 128 } else { 64 };
        let keys = Spec {
            sees: Sees::Keys,
            has_gaps: n % 3 == 0,
            ..spec(1, d_kv, &[2, n, 0, 5])
        };
        add(format!("{n} tokens, some keys, heads of {d_kv}"), keys);
        let causal = Spec {
            sees: Sees::Causal,
            bias: Bias::Past,
            ..spec(1, 192 - d_kv, &[1, n, 2])
        };
        add(
            format!("{n} tokens, causal, heads of {}", 192 - d_kv),
            causal,
        );
    }
    for d_kv in [16, 64] {
        add(
            format!("no tokens, heads of {d_kv}"),
            spec(2, d_kv, &[0, 0]),
        );
    }
    add("1000 tokens".to_owned(), spec(1, 64, &[1000]));
    for d_kv in [8, 16, 24, 32, 64, 128] {
        let mixed = spec(2, d_kv, &MIXED);
        for (name, sees) in [
            ("all keys", Sees::All),
            ("some keys", Sees::Keys),
            ("no keys", Sees::NoKeys),
            ("pairs", Sees::Pairs),
            ("causal", Sees::Causal),
        ] {
            let spec = Spec {
                sees,
                ..mixed.clone()
            };
            add(format!("mixed rows, {name}, heads of {d_kv}"), spec);
        }
        let gaps = Spec {
            has_gaps: true,
            ..mixed.clone()
        };
        add(format!("mixed rows, gaps, heads of {d_kv}"), gaps);
        let everything = Spec {
            has_gaps: true,
            has_gains: true,
            sees: Sees::Pairs,
            ..mixed.clone()
        };
        add(
            format!("mixed rows, pairs, gaps and gains, heads of {d_kv}"),
            everything,
        );
    }
    for n_heads in 1..=6 {
        let spec = Spec {
            has_gains: n_heads > 3,
            ..spec(n_heads, if n_heads % 2 == 0 { 16 } else { 8 }, &[33, 1, 18])
        };
        add(format!("{n_heads} heads"), spec);
    }
    for d_kv in [16, 64, 128] {
        let gains = Spec {
            has_gains: true,
            ..spec(3, d_kv, &[20, 3])
        };
        add(format!("gains, heads of {d_kv}"), gains);
    }
    for d_kv in [16, 64] {
        for (name, bias) in [
            ("no bias", Bias::None),
            ("a bias of the past", Bias::Past),
            ("8 buckets up to 8", Bias::Small(8, 8)),
            ("8 buckets up to 20", Bias::Small(8, 20)),
            ("4 buckets up to 2", Bias::Small(4, 2)),
            ("64 buckets up to 256", Bias::Small(64, 256)),
            ("a reach of 63", Bias::Reach(63)),
            ("a reach of 64", Bias::Reach(64)),
            ("a reach of 65", Bias::Reach(65)),
        ] {
            let spec = Spec {
                bias,
                ..spec(1, d_kv, &[140, 7])
            };
            add(format!("{name}, heads of {d_kv}"), spec);
        }
        let loud = Spec {
            loudness: 16.0,
            ..spec(2, d_kv, &[70, 5])
        };
        add(format!("large scores, heads of {d_kv}"), loud);
    }
}

/// Heads, their width.
pub(super) type Heads = (usize, usize);

/// Picks of queries, keys and values from a [base](values_base).
pub(super) fn picks((n_heads, d_kv): Heads, loudness: f32, seed: usize) -> Vec<Pick> {
    let inner = n_heads * d_kv;
    let mut picks = picks_of_noise(3 * inner, seed);
    for (_, factor) in &mut picks[..inner] {
        *factor *= loudness;
    }
    for column in 0..inner {
        let (head, column_of_head) = (column / d_kv, column % d_kv);
        let (at, factor) = &mut picks[2 * inner + column];
        if column_of_head % 2 == 1 {
            // No two heads next to each other have the same.
            *at = NOISE + 1 + column_of_head / 2;
            *factor = [1.0, -0.5, 0.25][head % 3];
        }
    }
    picks
}

/// Noise, and columns that are zero but for every so many keys of a row. `key_of` says which key
/// of its row a token is.
pub(super) fn values_base(dtype: ComputeType, d_kv: usize, key_of: &[usize], seed: usize) -> Rows {
    let watchers = d_kv / 2;
    base(dtype, key_of.len(), watchers, seed, |token, row| {
        let key = key_of[token];
        row[key % watchers] = [0.5, 0.625, 0.75, 0.875, 1.0][key % 5];
    })
}

/// Queries, keys and values of a row, each a slice of all heads.
#[derive(Default)]
pub(super) struct Row<'a> {
    pub(super) queries: Vec<&'a [f32]>,
    pub(super) keys: Vec<&'a [f32]>,
    pub(super) values: Vec<&'a [f32]>,
}

/// Results and weights of an attention, compared.
pub(super) fn compare<B: Backend>(
    subject: &Subject<'_, B>,
    worst: &mut Worst,
    own: &Attention<'_, B>,
    exact: &Attention<'_, Reference>,
    rows: &[Row<'_>],
    largest_bias: f32,
) -> Result<()> {
    let (backend, dtype) = (subject.backend, subject.dtype());
    let (n_heads, d_kv) = (exact.n_heads, exact.d_kv);
    let inner = n_heads * d_kv;
    let tokens = exact.queries.rows;
    let mut expected = Rows::zeros(tokens, inner);
    Reference.attend(exact, &mut expected);
    let weights = Reference.attention_weights(exact)?;

    let mut of_values = vec![0.0f64; tokens * inner];
    let mut of_weights = vec![0.0f64; weights.len()];
    let length = |x: &[f32]| {
        x.iter()
            .map(|&x| f64::from(x) * f64::from(x))
            .sum::<f64>()
            .sqrt()
    };
    let (mut token, mut at) = (0, 0);
    for row in rows {
        let n_keys = row.keys.len();
        let mut column_sizes = vec![0.0f64; inner];
        for values in &row.values {
            for (size, &v) in column_sizes.iter_mut().zip(*values) {
                *size += f64::from(v.abs());
            }
        }
        for head in 0..n_heads {
            let columns = head * d_kv..(head + 1) * d_kv;
            let gain = exact
                .head_gains
                .map_or(1.0, |gains| f64::from(gains[head].abs()));
            let longest = row.keys.iter().map(|key| length(&key[columns.clone()]));
            let longest = longest.fold(0.0, f64::max);
            for (query, q) in row.queries.iter().enumerate() {
                let score = length(&q[columns.clone()]) * longest + f64::from(largest_bias);
                let moved = (2.0 * (d_kv + 10) as f64 * SINGLE * score).exp_m1();
                let share = moved + (n_keys + 24) as f64 * SINGLE;
                let share_of_sum =
                    moved + (3 * n_keys + 24) as f64 * SINGLE + 2.0 * bounds::unit(dtype);
                let weights = &weights[at..at + n_keys];
                let mut sums = vec![0.0f64; d_kv];
                for (key, &weight) in weights.iter().enumerate() {
                    let weight = f64::from(weight.abs());
                    of_weights[at + key] = weight * share + bounds::FLUSHED;
                    for (sum, &v) in sums.iter_mut().zip(&row.values[key][columns.clone()]) {
                        *sum += weight * f64::from(v.abs());
                    }
                }
                at += n_keys;
                let out = (token + query) * inner;
                for (column, sum) in columns.clone().zip(sums) {
                    of_values[out + column] = sum * share_of_sum
                        + gain * bounds::tiny(dtype) * column_sizes[column]
                        + bounds::stored(dtype, expected.data[out + column]);
                }
            }
        }
        token += row.queries.len();
    }

    let found = backend.attention_weights(own)?;
    worst.compare("weights", &found, &weights, |at| of_weights[at]);
    let mut out = backend.operand(tokens, inner);
    backend.attend(own, &mut out);
    let found = read(subject, &out, tokens, inner)?;
    worst.compare("values", &found, &expected.data, |at| of_values[at]);
    Ok(())
}

fn check<B: Backend>(subject: &Subject<'_, B>, worst: &mut Worst, spec: &Spec) -> Result<()> {
    let (backend, dtype) = (subject.backend, subject.dtype());
    let heads = (spec.n_heads, spec.d_kv);
    let inner = spec.n_heads * spec.d_kv;
    let starts = row_starts(&spec.lengths);
    let key_of: Vec<usize> = spec.lengths.iter().flat_map(|&n| 0..n).collect();
    let tokens = key_of.len();
    let values = values_base(dtype, spec.d_kv, &key_of, tokens);
    let Made { own, exact } = make(
        subject,
        worst,
        &values,
        &picks(heads, spec.loudness, 3),
        Reader::Fused { d_kv: spec.d_kv },
    )?;

    let buckets = spec.bias.buckets();
    let table = buckets.map(|(buckets, n)| {
        let values = noise(ComputeType::F32, n * spec.n_heads, 22);
        (tensor(n, spec.n_heads, &values), buckets)
    });
    let own_bias = match &table {
        Some((table, buckets)) => Some(backend.prepare_bias(table.clone(), buckets.clone())?),
        None => None,
    };
    let exact_bias = match table {
        Some((table, buckets)) => Some(Reference.prepare_bias(table, buckets)?),
        None => None,
    };
    let mask = match spec.sees {
        Sees::All | Sees::Causal => Mask::Full,
        Sees::NoKeys => Mask::Keys(vec![false; tokens]),
        Sees::Keys => {
            let flags = spec.lengths.iter().enumerate().flat_map(|(row, &n)| {
                (0..n).map(move |key| row % 4 != 3 && (5 * key + row) % 3 != 1)
            });
            Mask::Keys(flags.collect())
        }
        Sees::Pairs => {
            let flags = spec.lengths.iter().flat_map(|&n| {
                (0..n * n).map(move |at| (at * 7919 + n) % 11 < 4 && at / n % 5 != 0)
            });
            Mask::Pairs(flags.collect())
        }
    };
    let visible = match spec.sees {
        Sees::Causal => Visible::Causal,
        _ => Visible::Mask(&mask),
    };
    // Gaps of three here and there, and one that is longer than any bias reaches.
    let positions: Vec<u32> = key_of
        .iter()
        .map(|&key| (key + key / 4 * 3 + if key > 9 { 300 } else { 0 }) as u32)
        .collect();
    let gains: Vec<f32> = (0..spec.n_heads)
        .map(|head| [0.3, -1.7, 0.0, 1.0, 2.0, 0.5][head % 6])
        .collect();
    let rows: Vec<Row<'_>> = starts
        .windows(2)
        .map(|bounds| {
            let part = |part: usize| {
                (bounds[0]..bounds[1])
                    .map(|token| &exact.row(token)[part * inner..(part + 1) * inner])
                    .collect()
            };
            Row {
                queries: part(0),
                keys: part(1),
                values: part(2),
            }
        })
        .collect();
    compare(
        subject,
        worst,
        &Attention {
            n_heads: spec.n_heads,
            d_kv: spec.d_kv,
            queries: &own,
            row_starts: &starts,
            keys: Keys::Fused,
            bias: own_bias.as_ref(),
            positions: spec.has_gaps.then_some(&positions),
            visible,
            head_gains: spec.has_gains.then_some(&gains),
        },
        &Attention {
            n_heads: spec.n_heads,
            d_kv: spec.d_kv,
            queries: &exact,
            row_starts: &starts,
            keys: Keys::Fused,
            bias: exact_bias.as_ref(),
            positions: spec.has_gaps.then_some(&positions),
            visible,
            head_gains: spec.has_gains.then_some(&gains),
        },
        &rows,
        // Noise is below 1.
        if exact_bias.is_some() { 1.0 } else { 0.0 },
    )
}
