//! A suite that never fails would be worth nothing: the reference, broken in one place at a time,
//! has to fail where that place is looked at.

use super::*;
use crate::backend::reference::{self, Reference, Rows};
use crate::backend::{Attention, Buckets, Chosen, Epilogue, Keys, Pool, Visible, Weights, Widths};
use crate::batch::{Mask, PackedBatch};
use crate::config::Activation;
use crate::tensor::Tensor;

/// What a backend gets wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wrong {
    Nothing,
    EmbedsTheNextId,
    SkipsTheLastTable,
    ForgetsEpsilon,
    ForgetsGains,
    ShortensTheStatistics,
    DropsTheLastFactor,
    SwapsGateAndUp,
    SwapsGelus,
    OverwritesTheStream,
    LeavesTheLastToken,
    Truncates,
    SumsInBf16,
    MixesHeads,
    ShiftsTheBias,
    MirrorsTheBias,
    IgnoresTheLastKey,
    ForgetsTheMask,
    ForgetsPositions,
    ForgetsHeadGains,
    MovesARow,
    SeesTheFuture,
    ZeroesBlindQueries,
    ForgetsAnAppendedToken,
    AppendsFromAnotherColumn,
    MovesRowsTheOtherWay,
    KeepsARowThatIsNew,
    TakesNothingBack,
    CutsRowsAlike,
    CastsToFewerBits,
    ForgetsTheScale,
    BreaksTiesTheOtherWay,
    SumsWithoutTheLast,
    PoolsEmptyRowsFromTheNext,
    TakesTheFirstForTheLast,
    Overflows,
    Panics,
    Refuses,
}

struct Broken(Wrong);

impl Broken {
    fn is(&self, wrong: Wrong) -> bool {
        self.0 == wrong
    }

    /// What is asked of the reference in place of `attention`.
    fn attend<T>(
        &self,
        attention: &Attention<'_, Self>,
        ask: impl FnOnce(&Attention<'_, Reference>) -> T,
    ) -> T {
        let mut starts = attention.row_starts.to_vec();
        let is_fused = matches!(attention.keys, Keys::Fused);
        let n = starts.len();
        if self.is(Wrong::MovesARow) && is_fused && n > 2 && starts[n - 2] > starts[n - 3] {
            starts[n - 2] -= 1;
        }
        let tokens = starts[n - 1];
        let seen = Mask::Keys(
            (0..tokens)
                .map(|token| !starts[1..].contains(&(token + 1)) || starts.contains(&token))
                .collect(),
        );
        let (full, mut visible) = (Mask::Full, attention.visible);
        let is_full = matches!(visible, Visible::Mask(Mask::Full));
        if self.is(Wrong::IgnoresTheLastKey) && is_fused && is_full {
            visible = Visible::Mask(&seen);
        }
        let is_mask = matches!(visible, Visible::Mask(_));
        if self.is(Wrong::ForgetsTheMask) && is_mask || self.is(Wrong::SeesTheFuture) && !is_mask {
            visible = Visible::Mask(&full);
        }
        // Pairs belong to rows that were not moved.
        if self.is(Wrong::MovesARow) && matches!(visible, Visible::Mask(Mask::Pairs(_))) {
            visible = Visible::Mask(&full);
        }
        ask(&Attention {
            n_heads: attention.n_heads,
            d_kv: attention.d_kv,
            queries: attention.queries,
            row_starts: &starts,
            keys: match attention.keys {
                Keys::Fused => Keys::Fused,
                Keys::Cache(cache) => Keys::Cache(cache),
            },
            bias: attention.bias,
            positions: attention
                .positions
                .filter(|_| !self.is(Wrong::ForgetsPositions)),
            visible,
            head_gains: attention
                .head_gains
                .filter(|_| !self.is(Wrong::ForgetsHeadGains)),
        })
    }
}

/// The same rows of weights with the last column zero.
fn without_the_last_factor(weights: Weights) -> Weights {
    let cut = |tensor: Tensor| {
        let (shape, mut values) = (tensor.shape().to_vec(), tensor.to_f32());
        for row in values.chunks_exact_mut(shape[1]) {
            row[shape[1] - 1] = 0.0;
        }
        Tensor::from_f32("w", shape, &values)
    };
    match weights {
        Weights::Stacked(parts) => Weights::Stacked(parts.into_iter().map(cut).collect()),
        Weights::Gated { gate, up } => Weights::Gated {
            gate: cut(gate),
            up: cut(up),
        },
        packed @ Weights::Packed(_) => packed,
    }
}

/// `x W^T` with every partial sum rounded; sums of one term are as they were.
fn sum_in_bf16(x: &Rows, w: &Weights, out: &mut Rows) {
    let Weights::Stacked(parts) = w else { return };
    let weights: Vec<f32> = parts.iter().flat_map(Tensor::to_f32).collect();
    for token in 0..x.rows {
        let rows = weights.chunks_exact(x.columns);
        for (out, w) in out.row_mut(token).iter_mut().zip(rows) {
            let terms = x.row(token).iter().zip(w);
            *out = terms.fold(0.0, |sum, (x, w)| {
                half::bf16::from_f32(x.mul_add(*w, sum)).to_f32()
            });
        }
    }
}

impl Backend for Broken {
    type Table = Tensor;
    type Gain = Vec<f32>;
    type Matrix = Weights;
    type Bias = reference::Bias;
    type Stream = Rows;
    type Operand = Rows;
    type KvCache = reference::KvCache;
    type Logits = Rows;

    fn name(&self) -> &'static str {
        "broken"
    }

    fn threads(&self) -> usize {
        1
    }

    fn bytes_per_token(&self, widths: &Widths) -> u64 {
        Reference.bytes_per_token(widths)
    }

    fn prepare_table(&self, table: Tensor) -> Result<Tensor> {
        if self.is(Wrong::Refuses) {
            return Err(crate::Error::unsupported("no tables today"));
        }
        Reference.prepare_table(table)
    }

    fn prepare_gain(&self, gain: Tensor) -> Result<Vec<f32>> {
        Reference.prepare_gain(gain)
    }

    fn prepare_matrix(&self, weights: Weights, gain: Option<Tensor>) -> Result<Weights> {
        // The identity and what picks columns have few values; they are not what is broken.
        let weights = match (self.0, weights) {
            (Wrong::SwapsGateAndUp, Weights::Gated { gate, up }) => {
                Weights::Gated { gate: up, up: gate }
            }
            (Wrong::DropsTheLastFactor, weights) => {
                let is_sparse = match &weights {
                    Weights::Stacked(parts) => {
                        let values = parts[0].to_f32();
                        2 * values.iter().filter(|&&v| v == 0.0).count() >= values.len()
                    }
                    _ => false,
                };
                match is_sparse {
                    true => weights,
                    false => without_the_last_factor(weights),
                }
            }
            (_, weights) => weights,
        };
        Reference.prepare_matrix(weights, gain)
    }

    fn prepare_bias(&self, table: Tensor, buckets: Buckets) -> Result<reference::Bias> {
        let (shape, mut values) = (table.shape().to_vec(), table.to_f32());
        match self.0 {
            Wrong::ShiftsTheBias => values.rotate_left(shape[1]),
            Wrong::MirrorsTheBias => values.rotate_left(shape[0] / 2 * shape[1]),
            _ => (),
        }
        Reference.prepare_bias(Tensor::from_f32("bias", shape, &values), buckets)
    }

    fn operand(&self, tokens: usize, columns: usize) -> Rows {
        Reference.operand(tokens, columns)
    }

    fn kv_cache(&self, rows: usize, n_heads: usize, d_kv: usize) -> reference::KvCache {
        Reference.kv_cache(rows, n_heads, d_kv)
    }

    fn stream(&self, tokens: usize, columns: usize, values: &[f32]) -> Rows {
        Reference.stream(tokens, columns, values)
    }

    fn embed(&self, table: &Tensor, ids: &[u32]) -> Rows {
        let vocab = table.shape()[0] as u32;
        let ids = ids.iter().map(|&id| match self.0 {
            Wrong::EmbedsTheNextId => (id + 1) % vocab,
            Wrong::SkipsTheLastTable => id.min(vocab - 2),
            _ => id,
        });
        Reference.embed(table, &ids.collect::<Vec<_>>())
    }

    fn rms_norm(&self, x: &Rows, gain: Option<&Vec<f32>>, eps: f64, out: &mut Rows) {
        assert!(!self.is(Wrong::Panics), "no norms today");
        let eps = match self.0 {
            Wrong::ForgetsEpsilon => 0.0,
            // Only where a model is run: inputs of other cases are made without epsilon.
            Wrong::ShortensTheStatistics if eps > 0.0 => {
                let mut short = Rows::zeros(x.rows, x.columns);
                Reference.rms_norm(x, gain, eps, &mut short);
                let columns = x.columns as f32;
                out.data = short.data.clone();
                for value in &mut out.data {
                    *value *= ((columns - 1.0) / columns).sqrt();
                }
                return;
            }
            _ => eps,
        };
        let ones = vec![1.0; x.columns];
        let gain = match self.0 {
            Wrong::ForgetsGains => Some(&ones),
            _ => gain,
        };
        Reference.rms_norm(x, gain, eps, out);
    }

    fn rms_norm_last(&self, x: &Rows, gain: &Vec<f32>, eps: f64) -> Rows {
        Reference.rms_norm_last(x, gain, eps)
    }

    fn linear(&self, x: &Rows, w: &Weights, epilogue: Epilogue<'_, Self>) {
        let swapped = |activation| match (self.0, activation) {
            (Wrong::SwapsGelus, Activation::GeluTanh) => Activation::GeluErf,
            (Wrong::SwapsGelus, Activation::GeluErf) => Activation::GeluTanh,
            (_, activation) => activation,
        };
        match epilogue {
            Epilogue::Store(out) => {
                Reference.linear(x, w, Epilogue::Store(out));
                match self.0 {
                    // What bf16 holds stays, and so do the inputs of all cases.
                    Wrong::Truncates => {
                        for value in &mut out.data {
                            *value = f32::from_bits(value.to_bits() & 0xffff_0000);
                        }
                    }
                    Wrong::SumsInBf16 => sum_in_bf16(x, w, out),
                    _ => (),
                }
                // What makes inputs is left alone: it picks columns of noise.
                if self.is(Wrong::LeavesTheLastToken) && out.columns == 72 && out.rows > 1 {
                    let last = out.rows - 1;
                    out.row_mut(last).fill(0.0);
                }
            }
            Epilogue::Add(out) => {
                if self.is(Wrong::OverwritesTheStream) {
                    out.data.fill(0.0);
                }
                Reference.linear(x, w, Epilogue::Add(out));
            }
            Epilogue::Activate(activation, out) => {
                Reference.linear(x, w, Epilogue::Activate(swapped(activation), out));
            }
            Epilogue::Gate(activation, out) => {
                let broken: &mut Rows = out;
                Reference.linear(x, w, Epilogue::Gate(swapped(activation), broken));
                if self.is(Wrong::Overflows) {
                    for value in &mut broken.data {
                        *value = half::f16::from_f32(*value).to_f32();
                    }
                }
            }
        }
    }

    fn attend(&self, attention: &Attention<'_, Self>, out: &mut Rows) {
        self.attend(attention, |attention| Reference.attend(attention, out));
        if self.is(Wrong::MixesHeads) && attention.n_heads > 1 {
            for token in 0..out.rows {
                out.row_mut(token)[..2 * attention.d_kv].rotate_left(attention.d_kv);
            }
        }
        if let (true, Visible::Mask(Mask::Pairs(flags))) =
            (self.is(Wrong::ZeroesBlindQueries), attention.visible)
        {
            let mut at = 0;
            for bounds in attention.row_starts.windows(2) {
                let n = bounds[1] - bounds[0];
                for token in bounds[0]..bounds[1] {
                    if !flags[at..at + n].contains(&true) {
                        out.row_mut(token).fill(0.0);
                    }
                    at += n;
                }
            }
        }
    }

    fn attention_weights(&self, attention: &Attention<'_, Self>) -> Result<Vec<f32>> {
        self.attend(attention, |attention| {
            Reference.attention_weights(attention)
        })
    }

    fn append_kv(
        &self,
        cache: &mut reference::KvCache,
        kv: &Rows,
        first_column: usize,
        row_starts: &[usize],
    ) {
        let first_column = match self.0 {
            Wrong::AppendsFromAnotherColumn if first_column > 0 => first_column - 1,
            _ => first_column,
        };
        let mut kv = kv.clone();
        if self.is(Wrong::ForgetsAnAppendedToken) && row_starts[1] > 1 {
            kv.row_mut(row_starts[1] - 1).fill(0.0);
        }
        Reference.append_kv(cache, &kv, first_column, row_starts);
    }

    fn arrange_kv(&self, cache: &mut reference::KvCache, rows: &[Option<usize>]) {
        let mut rows = rows.to_vec();
        if self.is(Wrong::MovesRowsTheOtherWay) {
            rows.reverse();
        }
        if self.is(Wrong::KeepsARowThatIsNew) {
            rows.iter_mut().for_each(|row| *row = row.or(Some(0)));
        }
        Reference.arrange_kv(cache, &rows);
    }

    fn truncate_kv(&self, cache: &mut reference::KvCache, lengths: &[usize]) {
        let mut lengths = lengths.to_vec();
        if self.is(Wrong::TakesNothingBack) {
            return;
        }
        if self.is(Wrong::CutsRowsAlike) {
            let shortest = lengths.iter().copied().min().unwrap_or(0);
            lengths.fill(shortest);
        }
        Reference.truncate_kv(cache, &lengths);
    }

    fn cast(&self, x: &Rows, out: &mut Rows) {
        Reference.cast(x, out);
        if self.is(Wrong::CastsToFewerBits) {
            for value in &mut out.data {
                *value = f32::from_bits(value.to_bits() & 0xfffe_0000);
            }
        }
    }

    fn logits(&self, x: &Rows, head: &Weights, scale: f32) -> Rows {
        let scale = if self.is(Wrong::ForgetsTheScale) {
            1.0
        } else {
            scale
        };
        Reference.logits(x, head, scale)
    }

    fn top(&self, x: &Rows, head: &Weights, scale: f32, k: usize) -> Result<Vec<Vec<Chosen>>> {
        let found = Reference.top(x, head, scale, k)?;
        if self.is(Wrong::BreaksTiesTheOtherWay) {
            let vocab = Reference.logits(x, head, scale).columns;
            let mut all = Reference.top(x, head, scale, vocab)?;
            for row in &mut all {
                row.sort_by(|a, b| b.log_prob.total_cmp(&a.log_prob).then(b.id.cmp(&a.id)));
                row.truncate(k);
            }
            return Ok(all);
        }
        Ok(found)
    }

    fn pool(&self, x: &Rows, row_starts: &[usize], how: Pool) -> Result<Vec<f32>> {
        let how = match (self.0, how) {
            (Wrong::TakesTheFirstForTheLast, Pool::Last) => Pool::First,
            (_, how) => how,
        };
        let mut out = Reference.pool(x, row_starts, how)?;
        if self.is(Wrong::PoolsEmptyRowsFromTheNext) {
            for (row, bounds) in row_starts.windows(2).enumerate() {
                if bounds[0] == bounds[1] && bounds[0] < x.rows {
                    out[row * x.columns..][..x.columns].copy_from_slice(x.row(bounds[0]));
                }
            }
        }
        Ok(out)
    }

    fn read_stream(&self, x: &Rows) -> Result<Vec<f32>> {
        Reference.read_stream(x)
    }

    fn read_logits(&self, logits: &Rows) -> Result<Vec<f32>> {
        Reference.read_logits(logits)
    }

    fn log_sums(&self, logits: &Rows) -> Result<Vec<f64>> {
        let mut sums = Reference.log_sums(logits)?;
        if self.is(Wrong::SumsWithoutTheLast) {
            for (sum, row) in sums
                .iter_mut()
                .zip(logits.data.chunks_exact(logits.columns))
            {
                let last = f64::from(row[row.len() - 1]);
                *sum = (sum.exp() - last.exp()).ln();
            }
        }
        Ok(sums)
    }

    fn pass(
        &self,
        encoder: u64,
        batch: &PackedBatch,
        repeatable: bool,
        queue: &mut dyn FnMut(&PackedBatch) -> Result<Rows>,
    ) -> Result<Rows> {
        Reference.pass(encoder, batch, repeatable, queue)
    }
}

fn outcomes(wrong: Wrong, options: &Options) -> Vec<Outcome> {
    let mut all = Vec::new();
    run(&Broken(wrong), options, &mut |outcome| {
        all.push(outcome.clone())
    });
    all
}

/// Cases whose names contain `filter`: how many there are, and how many fail.
fn failures(wrong: Wrong, dtype: ComputeType, filter: &str) -> (usize, usize) {
    let mut options = Options::new(dtype);
    options.filter = Some(filter.to_owned());
    let all = outcomes(wrong, &options);
    let failed = all.iter().filter(|outcome| !outcome.passed());
    (all.len(), failed.count())
}

/// In bf16, whose bounds are the widest.
#[test]
fn every_break_is_found_where_it_is() {
    let (mixed, masks) = ("attention/mixed", "masks");
    let ragged = "gated-silu, 3 heads of 16, ragged";
    let kept = "gated-silu, 3 heads of 16, all that is kept";
    let breaks: [(Wrong, &[&str]); 34] = [
        (Wrong::EmbedsTheNextId, &["embed/", ragged]),
        (Wrong::SkipsTheLastTable, &["embed/", "pass/"]),
        (Wrong::ForgetsEpsilon, &["norm/rows as small"]),
        (Wrong::ForgetsGains, &["norm/", ragged]),
        (
            Wrong::ShortensTheStatistics,
            &["norm/8 columns", "norm/40 c"],
        ),
        (Wrong::DropsTheLastFactor, &["product/", "logits/", ragged]),
        (Wrong::SwapsGateAndUp, &["product/gate", ragged]),
        (Wrong::OverwritesTheStream, &["product/add", ragged]),
        (Wrong::LeavesTheLastToken, &["product/store"]),
        (Wrong::Truncates, &["product/store"]),
        (Wrong::SumsInBf16, &["product/store"]),
        (Wrong::MixesHeads, &["2 heads", mixed, "cache/", ragged]),
        (Wrong::ShiftsTheBias, &[mixed, "cache/", ragged]),
        (Wrong::MirrorsTheBias, &[mixed, "cache/", ragged]),
        (Wrong::IgnoresTheLastKey, &[mixed, "1000 tokens", ragged]),
        (Wrong::ForgetsTheMask, &[mixed, masks]),
        (Wrong::ForgetsPositions, &[mixed, masks]),
        (
            Wrong::ForgetsHeadGains,
            &["attention/gains", "cache/keys", kept],
        ),
        (Wrong::MovesARow, &[mixed, ragged]),
        (Wrong::SeesTheFuture, &["causal", "cache/"]),
        (Wrong::ZeroesBlindQueries, &["pairs", masks]),
        (Wrong::ForgetsAnAppendedToken, &["cache/"]),
        (Wrong::AppendsFromAnotherColumn, &["cache/"]),
        (
            Wrong::MovesRowsTheOtherWay,
            &["rows that move", "cache/keys"],
        ),
        (Wrong::KeepsARowThatIsNew, &["rows that move"]),
        (Wrong::TakesNothingBack, &["tokens taken back"]),
        (Wrong::CutsRowsAlike, &["tokens taken back"]),
        (Wrong::CastsToFewerBits, &["product/cast"]),
        (Wrong::ForgetsTheScale, &["logits/"]),
        (Wrong::BreaksTiesTheOtherWay, &["logits/the most likely"]),
        (Wrong::SumsWithoutTheLast, &["logits/"]),
        (
            Wrong::PoolsEmptyRowsFromTheNext,
            &["pool/mean", "pool/first"],
        ),
        (Wrong::TakesTheFirstForTheLast, &["pool/last"]),
        (Wrong::Overflows, &["product/range"]),
    ];
    let found = |(wrong, filters): (Wrong, &[&str])| {
        for filter in filters {
            let (count, failed) = failures(wrong, ComputeType::Bf16, filter);
            assert!(failed > 0, "{wrong:?} in {count} cases of {filter}");
        }
    };
    let (first, rest) = breaks.split_at(15);
    std::thread::scope(|scope| {
        for part in [first, rest] {
            scope.spawn(move || part.iter().copied().for_each(found));
        }
    });
    // The two differ by 5e-4 at most, which only f32 tells apart.
    let (count, failed) = failures(Wrong::SwapsGelus, ComputeType::F32, "gelu (");
    assert_eq!((count, failed), (4, 4));
    // What is broken is the reference, which passes.
    let (count, failed) = failures(Wrong::Nothing, ComputeType::Bf16, "heads");
    assert!(count > 100 && failed == 0, "{failed} of {count}");
}

/// Each size of row alone, and each mask, must show a key that is not seen.
#[test]
fn a_missing_key_shows_at_every_length() {
    let mut options = Options::new(ComputeType::Bf16);
    options.filter = Some("attention/".to_owned());
    let found = outcomes(Wrong::IgnoresTheLastKey, &options);
    for n in SIZES.into_iter().filter(|&n| n > 1) {
        for d_kv in [64, 128] {
            let name = format!("{n} tokens, heads of {d_kv}");
            let outcome = found.iter().find(|outcome| outcome.name == name);
            assert!(outcome.is_some_and(|outcome| !outcome.passed()), "{name}");
        }
    }
}

#[test]
fn panics_and_errors_are_outcomes_and_the_others_go_on() {
    let mut options = Options::new(ComputeType::F32);
    options.filter = Some("tokens".to_owned());
    let found = outcomes(Wrong::Panics, &options);
    let norm = found.iter().find(|outcome| outcome.group == Group::Norm);
    let verdict = norm.map(|outcome| outcome.verdict.clone());
    assert_eq!(
        verdict,
        Some(Verdict::Panicked("no norms today".to_owned()))
    );
    let embed = found.iter().filter(|outcome| outcome.group == Group::Embed);
    assert!(embed.clone().count() > 15 && embed.clone().all(Outcome::passed));

    let found = outcomes(Wrong::Refuses, &options);
    let refused = Verdict::Refused("no tables today".to_owned());
    for outcome in found {
        let expected = match outcome.group {
            Group::Embed => &refused,
            _ => &Verdict::Passed,
        };
        assert_eq!(&outcome.verdict, expected, "{outcome:?}");
    }
}

#[test]
fn cases_have_names_of_their_own_and_can_be_chosen() {
    let all = cases::<Reference>(&Options::new(ComputeType::F32));
    let mut names: Vec<String> = all
        .iter()
        .map(|case| format!("{}/{}", case.group, case.name))
        .collect();
    names.sort();
    let count = names.len();
    names.dedup();
    assert_eq!(names.len(), count);

    let mut options = Options::new(ComputeType::F32);
    options.filter = Some("product/range".to_owned());
    assert_eq!(cases::<Reference>(&options).len(), 1);
    options.range = false;
    assert!(cases::<Reference>(&options).is_empty());
}

#[test]
fn what_is_farthest_beyond_its_bound_is_reported() {
    let mut worst = Worst::default();
    worst.compare("a", &[1.0, 2.0], &[1.0, 4.0], |_| 3.0);
    assert_eq!(
        (worst.verdict(), worst.relative()),
        (Verdict::Passed, (0.5, 0.75))
    );
    worst.compare("b", &[1.0, 2.5], &[1.0, 2.0], |_| 0.25);
    assert_eq!(worst.relative(), (0.125, 0.0625));
    let expected = "b, value 1 of 2: found 2.5e0, expected 2e0, 5e-1 apart with 2.5e-1 allowed";
    assert_eq!(worst.verdict(), Verdict::Failed(expected.to_owned()));
    for values in [&[f32::NAN][..], &[f32::INFINITY], &[]] {
        let mut worst = Worst::default();
        worst.compare("c", values, &[1.0], |_| 1e30);
        assert!(matches!(worst.verdict(), Verdict::Failed(_)), "{values:?}");
    }
    let nothing = Worst::default().verdict();
    assert_eq!(nothing, Verdict::Failed("nothing was compared".to_owned()));
}

#[test]
fn every_known_backend_has_a_name_and_a_type() {
    use crate::loading::BackendKind;
    for kind in BackendKind::ALL {
        assert_eq!(BackendKind::parse(kind.name()).unwrap(), kind);
        assert!(!dtypes(kind).is_empty());
    }
    assert!(BackendKind::Reference.available().is_ok());
    let options = Options::of(BackendKind::Reference, ComputeType::F16);
    let error = run_on(BackendKind::Reference, &options, &mut |_| ()).unwrap_err();
    assert_eq!(error.kind(), crate::ErrorKind::Unsupported);
    assert_eq!(
        error.message(),
        "the reference backend does not compute in f16"
    );
}
