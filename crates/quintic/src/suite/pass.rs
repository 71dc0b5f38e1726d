//! Whole encoders, small ones.

use super::bounds;
use super::{List, Subject, Worst};
use crate::Result;
use crate::backend::Backend;
use crate::backend::reference::Reference;
use crate::batch::{PackedBatch, PadRows, PaddedBatch, PaddedMask};
use crate::compute::ComputeType;
use crate::config::T5Config;
use crate::model::{Encoder, Pass};
use crate::synthetic::{SyntheticWeights, token_rows};
use crate::tensor::DType;

const VOCAB: usize = 50;

/// Family, activation, d_model, d_kv, d_ff, heads, buckets and their farthest distance.
type Shape = (&'static str, &'static str, [usize; 4], [usize; 2]);

/// T5 shares one bias table, UMT5 has one a layer.
const SHAPES: [Shape; 5] = [
    ("t5", "gated-gelu", [128, 64, 256, 2], [32, 128]),
    ("t5", "relu", [64, 16, 128, 4], [32, 128]),
    ("umt5", "gated-gelu", [64, 64, 96, 3], [32, 128]),
    ("umt5", "gated-silu", [24, 16, 40, 3], [8, 20]),
    ("t5", "gelu", [40, 128, 72, 1], [32, 128]),
];

pub(super) fn cases<'a, B: Backend + 'a>(list: &mut List<'a, B>) {
    for shape in SHAPES {
        let (family, activation, [_, d_kv, _, n_heads], _) = shape;
        let name = format!("{family} {activation}, {n_heads} heads of {d_kv}");
        list.add(format!("{name}, ragged rows"), move |subject, worst| {
            let encoders = Encoders::load(subject, shape)?;
            encoders.compare(worst, &ragged()?, &Pass::default())
        });
        list.add(format!("{name}, masks"), move |subject, worst| {
            let encoders = Encoders::load(subject, shape)?;
            for batch in masked()? {
                encoders.compare(worst, &batch, &Pass::default())?;
            }
            Ok(())
        });
        list.add(
            format!("{name}, all that is kept"),
            move |subject, worst| {
                let encoders = Encoders::load(subject, shape)?;
                let n_gains = encoders.config().num_layers * encoders.config().num_heads;
                let gains: Vec<f32> = (0..n_gains)
                    .map(|at| [1.0, 0.3, 0.0, -1.7][at % 4])
                    .collect();
                let pass = Pass {
                    head_gains: Some(&gains),
                    keep_inner: true,
                    keep_attentions: true,
                    ..Pass::default()
                };
                encoders.compare(worst, &masked()?[1], &pass)
            },
        );
        list.add(format!("{name}, one row alone"), move |subject, worst| {
            let encoders = Encoders::load(subject, shape)?;
            encoders.alone(subject, worst)
        });
    }
    list.add("empty rows alone", |subject, worst| {
        let encoders = Encoders::load(subject, SHAPES[1])?;
        let batch = PackedBatch::from_rows(&[vec![], vec![]], VOCAB)?;
        encoders.compare(worst, &batch, &Pass::default())
    });
    // What a backend has kept of a pass must serve the next of its form, and no other.
    list.add("the same form again and again", |subject, worst| {
        let encoders = Encoders::load(subject, SHAPES[0])?;
        let batch = |lengths: &[usize], skip: usize| {
            let rows = token_rows(&[&[skip], lengths].concat(), VOCAB);
            PackedBatch::from_rows(&rows[1..], VOCAB)
        };
        for (lengths, skip) in [
            (&[7, 1, 33, 12][..], 0),
            (&[7, 1, 33, 12], 0),
            (&[7, 1, 33, 12], 5),
            (&[33, 12, 7, 1], 9),
            (&[12, 20, 2, 0, 19], 3),
            (&[7, 1, 33, 12], 0),
        ] {
            encoders.compare(worst, &batch(lengths, skip)?, &Pass::default())?;
        }
        Ok(())
    });
}

fn config((family, activation, sizes, buckets): Shape) -> Result<T5Config> {
    let [d_model, d_kv, d_ff, num_heads] = sizes;
    let config = serde_json::json!({
        "model_type": family,
        "feed_forward_proj": activation,
        "vocab_size": VOCAB,
        "d_model": d_model,
        "d_kv": d_kv,
        "d_ff": d_ff,
        "num_layers": 2,
        "num_heads": num_heads,
        "relative_attention_num_buckets": buckets[0],
        "relative_attention_max_distance": buckets[1],
    });
    T5Config::from_json(config.to_string().as_bytes())
}

fn ragged() -> Result<PackedBatch> {
    PackedBatch::from_rows(&token_rows(&[7, 1, 0, 65, 12, 130, 16], VOCAB), VOCAB)
}

/// Padding that is skipped, padding that is computed, pairs with queries that see nothing.
fn masked() -> Result<Vec<PackedBatch>> {
    let len = 21;
    let ids: Vec<i64> = token_rows(&[3 * len], VOCAB)
        .concat()
        .into_iter()
        .map(i64::from)
        .collect();
    let pack = |mask, pad_rows| -> Result<PackedBatch> {
        let padded = PaddedBatch::new(ids.clone(), 3, len, mask)?;
        Ok(padded.pack(pad_rows, VOCAB)?.0)
    };
    // The second row is all padding, the others have holes.
    let keys = || PaddedMask::Keys((0..3 * len).map(|i| i / len != 1 && i % 4 != 1).collect());
    let pairs = (0..3 * len * len).map(|i| i * 7919 % 11 < 4 && i / len % 5 != 0);
    Ok(vec![
        pack(keys(), PadRows::Zero)?,
        pack(keys(), PadRows::Compute)?,
        pack(PaddedMask::Pairs(pairs.collect()), PadRows::Compute)?,
    ])
}

/// The same encoder on both backends.
struct Encoders<'a, B: Backend> {
    own: Encoder<&'a B>,
    exact: Encoder<Reference>,
    dtype: ComputeType,
}

impl<'a, B: Backend> Encoders<'a, B> {
    /// Weights are stored in the compute type, so that both backends have the same.
    fn load(subject: &Subject<'a, B>, shape: Shape) -> Result<Self> {
        let config = config(shape)?;
        let stored = match subject.dtype() {
            ComputeType::F32 => DType::F32,
            ComputeType::Bf16 => DType::BF16,
            ComputeType::F16 => DType::F16,
        };
        let weights = || SyntheticWeights::new(config.clone(), stored);
        Ok(Encoders {
            own: Encoder::load(subject.backend, config.clone(), &mut weights())?,
            exact: Encoder::load(Reference, config.clone(), &mut weights())?,
            dtype: subject.dtype(),
        })
    }

    fn config(&self) -> &T5Config {
        self.exact.config()
    }

    fn compare(&self, worst: &mut Worst, batch: &PackedBatch, pass: &Pass<'_>) -> Result<()> {
        let own = self.own.encode(batch, pass)?;
        let exact = self.exact.encode(batch, pass)?;
        let found = self.own.backend().read_stream(&own.last)?;
        self.compare_rows(worst, "states", batch, &found, &exact.last.data);
        worst.equal("inner states", &own.inner.len(), &exact.inner.len());
        for (found, expected) in own.inner.iter().zip(&exact.inner) {
            self.compare_rows(worst, "inner states", batch, found, expected);
        }
        worst.equal("attentions", &own.attentions.len(), &exact.attentions.len());
        for (found, expected) in own.attentions.iter().zip(&exact.attentions) {
            self.near(worst, "attentions", found, expected);
        }
        Ok(())
    }

    /// Row by row, so that a wrong short one does not vanish behind long ones.
    fn compare_rows(
        &self,
        worst: &mut Worst,
        what: &str,
        batch: &PackedBatch,
        found: &[f32],
        expected: &[f32],
    ) {
        worst.equal(what, &found.len(), &expected.len());
        if found.len() != expected.len() {
            return;
        }
        let d_model = self.config().d_model;
        for (row, bounds) in batch.row_starts().windows(2).enumerate() {
            let part = bounds[0] * d_model..bounds[1] * d_model;
            let what = format!("{what} of row {row}");
            self.near(worst, &what, &found[part.clone()], &expected[part]);
        }
    }

    fn near(&self, worst: &mut Worst, what: &str, found: &[f32], expected: &[f32]) {
        worst.equal(what, &found.len(), &expected.len());
        let square = |x: f64| x * x;
        let differences = found.iter().zip(expected);
        let error: f64 = differences
            .map(|(&f, &e)| square(f64::from(f) - f64::from(e)))
            .sum();
        let size: f64 = expected.iter().map(|&e| square(f64::from(e))).sum();
        let relative = if error == 0.0 {
            0.0
        } else {
            (error / size).sqrt()
        };
        worst.number(what, relative, bounds::pass(self.dtype));
    }

    /// Each row alone, and among the others.
    fn alone(&self, subject: &Subject<'_, B>, worst: &mut Worst) -> Result<()> {
        let rows = token_rows(&[1, 2, 16, 17, 0, 40, 33, 129], VOCAB);
        let states = |rows: &[Vec<u32>]| -> Result<Vec<f32>> {
            let batch = PackedBatch::from_rows(rows, VOCAB)?;
            let encoded = self.own.encode(&batch, &Pass::default())?;
            self.own.backend().read_stream(&encoded.last)
        };
        let together = states(&rows)?;
        let d_model = self.config().d_model;
        let mut first = 0;
        for (at, row) in rows.iter().enumerate() {
            let expected = &together[first..first + row.len() * d_model];
            first += expected.len();
            let found = states(std::slice::from_ref(row))?;
            let what = format!("row {at} alone");
            match subject.options.row_bits {
                true => worst.compare(&what, &found, expected, |_| 0.0),
                false => self.near(worst, &what, &found, expected),
            }
        }
        Ok(())
    }
}
