//! Keys and values that stay from one step to the next.

use super::attention::{Bias, Heads, Row, compare, picks, values_base};
use super::inputs::{Made, Reader, make, noise, row_starts, tensor};
use super::{List, Subject, Worst};
use crate::Result;
use crate::backend::reference::Reference;
use crate::backend::{Attention, Backend, Keys, Visible};
use crate::batch::Mask;
use crate::compute::ComputeType;

/// How rows move before a step, empty if they stay; how many tokens each of them forgets, empty if
/// none does; and the new tokens of each of them.
type Step = (&'static [Option<usize>], &'static [usize], &'static [usize]);
type Steps = &'static [Step];

/// As a decoder does: all of the prompts, then token by token.
const TOKEN_BY_TOKEN: Steps = &[
    (&[], &[], &[3, 1, 17]),
    (&[], &[], &[1, 1, 1]),
    (&[], &[], &[1, 1, 1]),
    (&[], &[], &[1, 0, 1]),
    (&[], &[], &[1, 1, 1]),
];

/// Rows that come and leave, change places, and go on in several ways, as beams do; some longer
/// than the room that there was, and one that is dropped before it was fed.
const MOVING: Steps = &[
    (&[], &[], &[3, 1, 17]),
    (&[Some(2), Some(0), Some(2), Some(1)], &[], &[1, 1, 2, 0]),
    (
        &[Some(0), Some(1), Some(3), Some(3), None],
        &[],
        &[1, 1, 1, 1, 40],
    ),
    (
        &[Some(4), Some(4), Some(2), Some(2), Some(2), None],
        &[],
        &[0, 1, 1, 0, 1, 0],
    ),
    (&[Some(0), Some(3), Some(2), None], &[], &[1, 1, 1, 2]),
    (&[Some(1), Some(3)], &[], &[1, 70]),
    (&[Some(1), Some(0), Some(1)], &[], &[1, 1, 0]),
    (&[], &[], &[1, 0, 1]),
];

/// Steps of many tokens, across every multiple of 32 that a room may end at.
const LONG: Steps = &[
    (&[], &[], &[2, 1, 5]),
    (&[], &[], &[1, 40, 0]),
    (&[], &[], &[30, 0, 59]),
    (&[], &[], &[64, 1, 1]),
    (&[], &[], &[1, 90, 2]),
    (&[], &[], &[1, 1, 1]),
];

/// Rows that take tokens back, as those do whose guesses were wrong: copies of a row that go back by
/// different lengths, before room has to be made, and a row that becomes empty.
const TAKEN_BACK: Steps = &[
    (&[], &[], &[3, 4, 17]),
    (&[], &[0, 4, 15], &[1, 2, 5]),
    (&[Some(2), Some(1), Some(2)], &[3, 0, 1], &[1, 1, 0]),
    (&[], &[1, 0, 0], &[2, 1, 1]),
    (
        &[Some(1), Some(2), Some(2), Some(2)],
        &[0, 5, 0, 2],
        &[0, 0, 40, 0],
    ),
    (&[], &[], &[1, 1, 1, 1]),
    (&[Some(2), Some(2), Some(0)], &[46, 5, 0], &[60, 1, 3]),
    (&[], &[60, 0, 2], &[1, 2, 1]),
];

pub(super) fn cases<'a, B: Backend + 'a>(list: &mut List<'a, B>) {
    for heads in [(3, 8), (2, 16), (2, 32), (1, 64), (2, 64), (1, 128)] {
        let (n_heads, d_kv) = heads;
        for (name, steps) in [
            ("token by token", TOKEN_BY_TOKEN),
            ("long steps", LONG),
            ("rows that move", MOVING),
            ("tokens taken back", TAKEN_BACK),
        ] {
            list.add(
                format!("{name}, {n_heads} heads of {d_kv}"),
                move |subject, worst| grow(subject, worst, heads, steps, Bias::Past),
            );
        }
    }
    for (name, bias) in [
        ("no bias", Bias::None),
        ("few buckets", Bias::Small(8, 20)),
        ("both directions", Bias::Published),
    ] {
        list.add(format!("token by token, {name}"), move |subject, worst| {
            grow(subject, worst, (1, 64), TOKEN_BY_TOKEN, bias)
        });
    }
    for d_kv in [16, 64, 128] {
        list.add(
            format!("keys of another sequence, heads of {d_kv}"),
            move |subject, worst| cross(subject, worst, (2, d_kv)),
        );
    }
}

/// Keys and values of a row so far.
type Cached = Vec<[Vec<f32>; 2]>;

/// Keys and values in memory of the host, and rows that look into it.
fn rows_of<'a>(
    queries: &'a Made<impl Backend>,
    starts: &[usize],
    cached: &'a [Cached],
) -> Vec<Row<'a>> {
    let inner = cached
        .iter()
        .flatten()
        .next()
        .map_or(0, |[key, _]| key.len());
    let rows = starts.windows(2).zip(cached);
    rows.map(|(bounds, cached)| Row {
        queries: (bounds[0]..bounds[1])
            .map(|token| &queries.exact.row(token)[..inner])
            .collect(),
        keys: cached.iter().map(|[key, _]| &key[..]).collect(),
        values: cached.iter().map(|[_, value]| &value[..]).collect(),
    })
    .collect()
}

fn remember(cached: &mut [Cached], made: &Made<impl Backend>, starts: &[usize], columns: Heads) {
    let (first, inner) = columns;
    for (bounds, cached) in starts.windows(2).zip(cached) {
        for token in bounds[0]..bounds[1] {
            let row = &made.exact.row(token)[first..];
            cached.push([row[..inner].to_vec(), row[inner..2 * inner].to_vec()]);
        }
    }
}

/// Which key of its row each new token is.
fn keys_of(lengths: &[usize], cached: &[Cached]) -> Vec<usize> {
    let rows = lengths.iter().zip(cached);
    rows.flat_map(|(&n, cached)| cached.len()..cached.len() + n)
        .collect()
}

/// Self-attention of a decoder, step by step.
fn grow<B: Backend>(
    subject: &Subject<'_, B>,
    worst: &mut Worst,
    heads: Heads,
    steps: Steps,
    bias: Bias,
) -> Result<()> {
    let backend = subject.backend;
    let (n_heads, d_kv) = heads;
    let inner = n_heads * d_kv;
    let table = bias.buckets().map(|(buckets, n)| {
        let values = noise(ComputeType::F32, n * n_heads, 7);
        (tensor(n, n_heads, &values), buckets)
    });
    let own_bias = match &table {
        Some((table, buckets)) => Some(backend.prepare_bias(table.clone(), buckets.clone())?),
        None => None,
    };
    let exact_bias = match table {
        Some((table, buckets)) => Some(Reference.prepare_bias(table, buckets)?),
        None => None,
    };
    let mut own_cache = backend.kv_cache(3, n_heads, d_kv);
    let mut exact_cache = Reference.kv_cache(3, n_heads, d_kv);
    let mut cached: Vec<Cached> = vec![Vec::new(); 3];
    for (at, (rows, back, lengths)) in steps.iter().enumerate() {
        if !rows.is_empty() {
            backend.arrange_kv(&mut own_cache, rows);
            Reference.arrange_kv(&mut exact_cache, rows);
            let moved = rows.iter().map(|row| row.map(|row| cached[row].clone()));
            cached = moved.map(Option::unwrap_or_default).collect();
        }
        if !back.is_empty() {
            let kept = cached.iter().zip(*back).map(|(row, n)| row.len() - n);
            let kept: Vec<usize> = kept.collect();
            backend.truncate_kv(&mut own_cache, &kept);
            Reference.truncate_kv(&mut exact_cache, &kept);
            let rows = cached.iter_mut().zip(kept);
            rows.for_each(|(row, n)| row.truncate(n));
        }
        let starts = row_starts(lengths);
        let values = values_base(subject.dtype(), d_kv, &keys_of(lengths, &cached), at);
        let made = make(
            subject,
            worst,
            &values,
            &picks(heads, 1.0, at),
            Reader::Attention,
        )?;
        backend.append_kv(&mut own_cache, &made.own, inner, &starts);
        Reference.append_kv(&mut exact_cache, &made.exact, inner, &starts);
        remember(&mut cached, &made, &starts, (inner, inner));
        compare(
            subject,
            worst,
            &Attention {
                n_heads,
                d_kv,
                queries: &made.own,
                row_starts: &starts,
                keys: Keys::Cache(&own_cache),
                bias: own_bias.as_ref(),
                positions: None,
                visible: Visible::Causal,
                head_gains: None,
            },
            &Attention {
                n_heads,
                d_kv,
                queries: &made.exact,
                row_starts: &starts,
                keys: Keys::Cache(&exact_cache),
                bias: exact_bias.as_ref(),
                positions: None,
                visible: Visible::Causal,
                head_gains: None,
            },
            &rows_of(&made, &starts, &cached),
            if exact_bias.is_some() { 1.0 } else { 0.0 },
        )?;
    }
    Ok(())
}

/// Cross-attention: keys and values are appended once, from an operand of nothing else, and
/// every query sees them all.
fn cross<B: Backend>(subject: &Subject<'_, B>, worst: &mut Worst, heads: Heads) -> Result<()> {
    let (backend, dtype) = (subject.backend, subject.dtype());
    let (n_heads, d_kv) = heads;
    let inner = n_heads * d_kv;
    let mut cached: Vec<Cached> = vec![Vec::new(); 3];
    let lengths = [33, 1, 70];
    let starts = row_starts(&lengths);
    let values = values_base(dtype, d_kv, &keys_of(&lengths, &cached), 1);
    let all = picks(heads, 1.0, 4);
    let made = make(subject, worst, &values, &all[inner..], Reader::Attention)?;
    let mut own_cache = backend.kv_cache(3, n_heads, d_kv);
    let mut exact_cache = Reference.kv_cache(3, n_heads, d_kv);
    backend.append_kv(&mut own_cache, &made.own, 0, &starts);
    Reference.append_kv(&mut exact_cache, &made.exact, 0, &starts);
    remember(&mut cached, &made, &starts, (0, inner));
    let steps: [Step; 4] = [
        (&[], &[], &[2, 0, 5]),
        (&[], &[], &[1, 1, 1]),
        // As many rows look at one source as there are beams.
        (&[Some(2), Some(2), Some(0), Some(2)], &[], &[1, 4, 1, 0]),
        (&[Some(2), Some(1)], &[], &[0, 40]),
    ];
    for (at, (rows, _, lengths)) in steps.iter().enumerate() {
        if !rows.is_empty() {
            backend.arrange_kv(&mut own_cache, rows);
            Reference.arrange_kv(&mut exact_cache, rows);
            let moved = rows.iter().map(|row| row.map(|row| cached[row].clone()));
            cached = moved.map(Option::unwrap_or_default).collect();
        }
        let starts = row_starts(lengths);
        let key_of: Vec<usize> = (0..starts[lengths.len()]).collect();
        let values = values_base(dtype, d_kv, &key_of, 10 + at);
        let queries = make(subject, worst, &values, &all[..inner], Reader::Attention)?;
        let gains: Vec<f32> = (0..n_heads).map(|head| 0.5 + head as f32).collect();
        compare(
            subject,
            worst,
            &Attention {
                n_heads,
                d_kv,
                queries: &queries.own,
                row_starts: &starts,
                keys: Keys::Cache(&own_cache),
                bias: None,
                positions: None,
                visible: Visible::Mask(&Mask::Full),
                head_gains: Some(&gains),
            },
            &Attention {
                n_heads,
                d_kv,
                queries: &queries.exact,
                row_starts: &starts,
                keys: Keys::Cache(&exact_cache),
                bias: None,
                positions: None,
                visible: Visible::Mask(&Mask::Full),
                head_gains: Some(&gains),
            },
            &rows_of(&queries, &starts, &cached),
            0.0,
        )?;
    }
    Ok(())
}
