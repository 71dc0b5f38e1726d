//! Norms, to operands and to streams.

use super::inputs::{noise, read};
use super::{List, SIZES, Subject, Worst, bounds};
use crate::Result;
use crate::backend::Backend;
use crate::backend::reference::{Reference, Rows};
use crate::compute::ComputeType;
use crate::tensor::Tensor;

pub(super) fn cases<'a, B: Backend + 'a>(list: &mut List<'a, B>) {
    for tokens in SIZES {
        list.add(format!("{tokens} tokens"), move |subject, worst| {
            norm(subject, worst, &stream(tokens, 64, 1.0), 1e-6)
        });
    }
    for width in [8, 24, 40, 128, 136, 512, 1000] {
        list.add(format!("{width} columns"), move |subject, worst| {
            norm(subject, worst, &stream(5, width, 3.0), 1e-6)
        });
    }
    list.add("no tokens", |subject, worst| {
        norm(subject, worst, &stream(0, 40, 1.0), 1e-6)
    });
    list.add("rows of zeros", |subject, worst| {
        let mut x = stream(6, 40, 1.0);
        x.row_mut(0).fill(0.0);
        x.row_mut(3).fill(0.0);
        norm(subject, worst, &x, 1e-6)
    });
    list.add("rows as small as epsilon", |subject, worst| {
        norm(subject, worst, &stream(17, 64, 1e-3), 1e-6)
    });
    list.add("outliers", |subject, worst| {
        let mut x = stream(9, 128, 10.0);
        for token in 0..x.rows {
            x.row_mut(token)[token * 37 % 128] = 2.0e4;
        }
        norm(subject, worst, &x, 1e-6)
    });
}

fn stream(tokens: usize, columns: usize, size: f32) -> Rows {
    let values = noise(ComputeType::F32, tokens * columns, tokens + columns);
    // Every row has a size of its own, so that a neighbour's statistics are wrong.
    let scaled = values.iter().enumerate().map(|(at, value)| {
        let row = at / columns.max(1);
        value * size * (1.0 + (row % 7) as f32)
    });
    Rows::new(tokens, columns, scaled.collect())
}

fn norm<B: Backend>(subject: &Subject<'_, B>, worst: &mut Worst, x: &Rows, eps: f64) -> Result<()> {
    let (backend, dtype) = (subject.backend, subject.dtype());
    let (tokens, columns) = (x.rows, x.columns);
    let gain: Vec<f32> = noise(ComputeType::F32, columns, 77)
        .iter()
        .map(|x| 1.5 + x)
        .collect();
    let gain = Tensor::from_f32("gain", vec![columns], &gain);
    let exact = Reference.rms_norm_last(x, &Reference.prepare_gain(gain.clone())?, eps);
    let gain = backend.prepare_gain(gain)?;
    let own = backend.stream(tokens, columns, &x.data);

    let found = backend.read_stream(&backend.rms_norm_last(&own, &gain, eps))?;
    worst.compare("last norm", &found, &exact.data, |at| {
        bounds::norm(columns, exact.data[at])
    });

    let mut normed = backend.operand(tokens, columns);
    backend.rms_norm(&own, Some(&gain), eps, &mut normed);
    let found = read(subject, &normed, tokens, columns)?;
    worst.compare("norm", &found, &exact.data, |at| {
        let value = exact.data[at];
        bounds::norm(columns, value) + bounds::stored(dtype, value)
    });
    Ok(())
}
