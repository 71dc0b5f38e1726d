//! Scores of a vocabulary, and choices by them.

use super::inputs::{noise, stacked};
use super::{List, SIZES, Subject, Worst, bounds};
use crate::Result;
use crate::backend::reference::{Reference, Rows};
use crate::backend::{Backend, Chosen, Epilogue};

/// Rows, d_model, vocab.
type Sizes = (usize, usize, usize);

pub(super) fn cases<'a, B: Backend + 'a>(list: &mut List<'a, B>) {
    for rows in SIZES {
        list.add(format!("{rows} rows"), move |subject, worst| {
            logits(subject, worst, (rows, 24, 40), 1.0)
        });
    }
    for vocab in [1, 7, 128, 131, 500] {
        list.add(format!("a vocabulary of {vocab}"), move |subject, worst| {
            logits(subject, worst, (3, 64, vocab), 0.125)
        });
    }
    for scale in [0.044_194_174, 1.0, -2.0] {
        list.add(format!("scale {scale}"), move |subject, worst| {
            logits(subject, worst, (5, 512, 72), scale)
        });
    }
    for (rows, vocab) in [(1, 1), (1, 90), (3, 500), (4, 5000), (17, 131), (40, 33)] {
        list.add(
            format!("the most likely of {vocab}, {rows} rows"),
            move |subject, worst| {
                for k in [1, 2, 9, 90] {
                    top(subject, worst, (rows, 40, vocab), k)?;
                }
                Ok(())
            },
        );
    }
}

fn logits<B: Backend>(
    subject: &Subject<'_, B>,
    worst: &mut Worst,
    (rows, d_model, vocab): Sizes,
    scale: f32,
) -> Result<()> {
    let (backend, dtype) = (subject.backend, subject.dtype());
    let x = Rows::new(rows, d_model, noise(dtype, rows * d_model, rows));
    let head = noise(dtype, vocab * d_model, vocab);
    let expected = Reference.logits(&x, &stacked(vocab, d_model, &head), scale);
    let magnitudes = |values: &[f32]| -> Vec<f32> { values.iter().map(|v| v.abs()).collect() };
    let mut sizes = Rows::zeros(rows, vocab);
    Reference.linear(
        &Rows::new(rows, d_model, magnitudes(&x.data)),
        &stacked(vocab, d_model, &magnitudes(&head)),
        Epilogue::Store(&mut sizes),
    );
    let matrix = backend.prepare_matrix(stacked(vocab, d_model, &head), None)?;
    let own = backend.stream(rows, d_model, &x.data);
    let logits = backend.logits(&own, &matrix, scale);
    let found = backend.read_logits(&logits)?;
    worst.compare("logits", &found, &expected.data, |at| {
        bounds::sum(d_model, scale.abs() * sizes.data[at])
            + 2.0 * bounds::SINGLE * f64::from(expected.data[at].abs())
    });
    // Of the logits that were found: their own error is bounded above.
    let narrow = |sums: Vec<f64>| -> Vec<f32> { sums.into_iter().map(|sum| sum as f32).collect() };
    let sums = narrow(backend.log_sums(&logits)?);
    let exact = narrow(Reference.log_sums(&Rows::new(rows, vocab, found))?);
    worst.compare("logarithms of sums", &sums, &exact, |at| {
        (40.0 + 2.0 * f64::from(exact[at].abs())) * bounds::SINGLE
    });
    Ok(())
}

/// Without logits between, and the lower ids first among equals.
fn top<B: Backend>(
    subject: &Subject<'_, B>,
    worst: &mut Worst,
    (rows, d_model, vocab): Sizes,
    k: usize,
) -> Result<()> {
    let backend = subject.backend;
    let x = Rows::new(rows, d_model, whole(rows * d_model, 4));
    let head = whole(vocab * d_model, 5);
    let scale = 0.125;
    let exact = Reference.logits(&x, &stacked(vocab, d_model, &head), scale);
    let largest = exact.data.iter().fold(0.0f32, |max, v| max.max(v.abs()));
    let matrix = backend.prepare_matrix(stacked(vocab, d_model, &head), None)?;
    let found = backend.top(&backend.stream(rows, d_model, &x.data), &matrix, scale, k)?;
    let expected = Reference.top(&x, &stacked(vocab, d_model, &head), scale, k)?;
    let ids = |rows: &[Vec<Chosen>]| -> Vec<Vec<u32>> {
        let ids = |row: &Vec<Chosen>| row.iter().map(|chosen| chosen.id).collect();
        rows.iter().map(ids).collect()
    };
    worst.equal("ids", &ids(&found), &ids(&expected));
    let logs = |rows: &[Vec<Chosen>]| -> Vec<f32> {
        let all = rows.iter().flatten();
        all.map(|chosen| chosen.log_prob).collect()
    };
    let bound = ((vocab + 16) as f64 + 4.0 * f64::from(largest)) * bounds::SINGLE;
    worst.compare("logarithms", &logs(&found), &logs(&expected), |_| bound);
    Ok(())
}

/// Small whole numbers: many tokens have the same score, exactly.
fn whole(n: usize, seed: usize) -> Vec<f32> {
    let values = noise(crate::ComputeType::F32, n, seed);
    values.iter().map(|x| (x * 2.0).floor()).collect()
}
