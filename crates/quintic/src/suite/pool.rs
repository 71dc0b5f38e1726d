//! One vector a row.

use super::inputs::{noise, row_starts};
use super::{List, SIZES, Subject, Worst, bounds};
use crate::Result;
use crate::backend::reference::{Reference, Rows};
use crate::backend::{Backend, Pool};
use crate::compute::ComputeType;

pub(super) fn cases<'a, B: Backend + 'a>(list: &mut List<'a, B>) {
    let hows = [
        ("mean", Pool::Mean),
        ("first", Pool::First),
        ("last", Pool::Last),
    ];
    for (name, how) in hows {
        list.add(format!("{name}, rows of every size"), move |s, worst| {
            pool(s, worst, &SIZES, 24, how)
        });
        list.add(format!("{name}, empty rows"), move |subject, worst| {
            pool(subject, worst, &[0, 3, 0, 0, 1, 17, 0], 40, how)
        });
        list.add(format!("{name}, wide"), move |subject, worst| {
            pool(subject, worst, &[5, 1, 33], 520, how)
        });
        list.add(format!("{name}, 1000 tokens"), move |subject, worst| {
            pool(subject, worst, &[1000], 8, how)
        });
    }
}

fn pool<B: Backend>(
    subject: &Subject<'_, B>,
    worst: &mut Worst,
    lengths: &[usize],
    columns: usize,
    how: Pool,
) -> Result<()> {
    let starts = row_starts(lengths);
    let tokens = starts[lengths.len()];
    let x = Rows::new(
        tokens,
        columns,
        noise(ComputeType::F32, tokens * columns, 9),
    );
    let magnitudes: Vec<f32> = x.data.iter().map(|v| v.abs()).collect();
    let magnitudes = Rows::new(tokens, columns, magnitudes);
    let expected = Reference.pool(&x, &starts, how)?;
    let sizes = Reference.pool(&magnitudes, &starts, how)?;
    let own = subject.backend.stream(tokens, columns, &x.data);
    let found = subject.backend.pool(&own, &starts, how)?;
    worst.compare("vectors", &found, &expected, |at| match how {
        Pool::First | Pool::Last => 0.0,
        Pool::Mean => {
            let n = lengths[at / columns];
            (n + 2) as f64 * bounds::SINGLE * f64::from(sizes[at])
        }
    });
    Ok(())
}
