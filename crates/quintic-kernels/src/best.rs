//! The largest of each row's values, and the logarithm of the sum of their exponentials: what
//! greedy generation needs of a vocabulary's scores.

use std::sync::Mutex;

use crate::Kernels;
use crate::kernels::Stream;

/// Columns of a task.
const COLUMNS: usize = 4096;

/// Values whose exponentials are added up in f32; blocks are added in f64.
const BLOCK: usize = 256;

/// What is found of one row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Best {
    /// Column of the largest value, the lowest among equals.
    pub column: usize,
    /// The largest value.
    pub value: f32,
    /// `ln(sum(e^x))` over the row.
    pub log_sum_exp: f64,
}

/// The same of a part of a row; the sum is that of `e^(x - value)`.
#[derive(Clone, Copy, Debug)]
struct Part {
    column: usize,
    value: f32,
    sum: f64,
}

impl Kernels {
    /// The best of each row of `x`; `None` for a row without columns, one that holds NaN or plus
    /// infinity, and one of nothing but minus infinity.
    ///
    /// # Numerics
    ///
    /// Differences and exponentials have a relative error of 5 * 2^-24 at most, weighed by what
    /// they add; sums of 256 in sixteen lanes one of 20 * 2^-24. So `log_sum_exp` is within
    /// 32 * 2^-24 of the exact one, and the same whatever the number of threads.
    pub fn best(&self, x: &Stream) -> Vec<Option<Best>> {
        let (rows, columns) = (x.tokens(), x.columns());
        let parts = columns.div_ceil(COLUMNS);
        let found: Vec<Mutex<Option<Part>>> = (0..rows * parts).map(|_| Mutex::new(None)).collect();
        self.pool.run(rows * parts, |task, _| {
            let (row, part) = (task / parts, task % parts);
            let first = part * COLUMNS;
            let n = COLUMNS.min(columns - first);
            let values = &x.values()[row * columns + first..][..n];
            let part = self.part(values).map(|part| Part {
                column: first + part.column,
                ..part
            });
            if let Ok(mut found) = found[task].lock() {
                *found = part;
            }
        });
        let found: Vec<Option<Part>> = found
            .into_iter()
            .map(|part| part.into_inner().unwrap_or_else(|e| e.into_inner()))
            .collect();
        match parts {
            0 => vec![None; rows],
            _ => found.chunks_exact(parts).map(merge).collect(),
        }
    }

    /// `None` if it holds NaN or plus infinity.
    fn part(&self, values: &[f32]) -> Option<Part> {
        // SAFETY: the instruction set is available.
        let max = unsafe { (self.table.rows.max)(values) };
        if max == f32::NEG_INFINITY {
            let is_empty = values.iter().all(|value| *value == max);
            return is_empty.then_some(Part {
                column: 0,
                value: max,
                sum: 0.0,
            });
        }
        let mut sum = 0.0;
        let mut block = [0.0f32; BLOCK];
        for values in values.chunks(BLOCK) {
            let block = &mut block[..values.len()];
            block.copy_from_slice(values);
            // SAFETY: as above.
            sum += f64::from(unsafe { (self.table.rows.exp)(block, max) });
        }
        let column = values.iter().position(|value| *value == max)?;
        (max.is_finite() && sum.is_finite()).then_some(Part {
            column,
            value: max,
            sum,
        })
    }
}

/// Parts in the order of their columns.
fn merge(parts: &[Option<Part>]) -> Option<Best> {
    let parts: Option<Vec<Part>> = parts.iter().copied().collect();
    let parts = parts?;
    let mut best = *parts.first()?;
    for part in &parts {
        // Not `>=`: the first among equals stays.
        if part.value > best.value {
            best = *part;
        }
    }
    if best.value == f32::NEG_INFINITY {
        return None;
    }
    let sums = parts
        .iter()
        .map(|part| part.sum * (f64::from(part.value) - f64::from(best.value)).exp());
    Some(Best {
        column: best.column,
        value: best.value,
        log_sum_exp: f64::from(best.value) + sums.sum::<f64>().ln(),
    })
}

#[cfg(test)]
mod tests {
    use crate::Stream;
    use crate::tests::for_each_isa;

    #[test]
    fn the_best_of_rows_of_every_length() {
        for_each_isa(|kernels| {
            for columns in [1, 2, 15, 16, 17, 255, 256, 4095, 4096, 4097, 12_289, 32_128] {
                let rows = 3;
                let mut x = Stream::zeroed(rows, columns);
                for (at, value) in x.values_mut().iter_mut().enumerate() {
                    // Whole halves, so that many are equal.
                    *value = ((at * 2_654_435_761) % 197) as f32 / 2.0 - 70.0;
                }
                for (row, found) in kernels.best(&x).into_iter().enumerate() {
                    let values = &x.values()[row * columns..][..columns];
                    let max = values.iter().copied().fold(f32::MIN, f32::max);
                    let column = values.iter().position(|value| *value == max).unwrap();
                    let found = found.unwrap();
                    assert_eq!((found.column, found.value), (column, max));
                    let sum: f64 = values.iter().map(|&x| f64::from(x - max).exp()).sum();
                    let exact = f64::from(max) + sum.ln();
                    let error = (found.log_sum_exp - exact).abs();
                    assert!(error <= 32.0 * 2f64.powi(-24), "{columns} {error}");
                }
            }
        });
    }

    #[test]
    fn what_has_no_best_has_none() {
        for_each_isa(|kernels| {
            let nothing = |values: &[f32]| {
                let mut x = Stream::zeroed(1, values.len());
                x.values_mut().copy_from_slice(values);
                kernels.best(&x) == [None]
            };
            let low = f32::NEG_INFINITY;
            let mut long = vec![low; 9000];
            assert!(nothing(&long));
            long[8999] = 1.0;
            assert!(!nothing(&long));
            long[3] = f32::NAN;
            assert!(nothing(&long) && nothing(&[]) && nothing(&[f32::NAN]));
            assert!(nothing(&[1.0, f32::INFINITY]) && nothing(&[low, f32::NAN]));
        });
    }
}
