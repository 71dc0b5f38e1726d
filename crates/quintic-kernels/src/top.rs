//! The largest of each row's values, and the logarithm of the sum of their exponentials: what
//! greedy generation and beams need of a vocabulary's scores. They are found in a product's result
//! while it is made, so that a vocabulary's scores are never written out.

use std::cmp::Ordering;
use std::sync::{Mutex, PoisonError};

use crate::Kernels;
use crate::kernels::Stream;
use crate::operand::Operand;
use crate::pack::PackedMatrix;
use crate::product::{SECTION, product_in_sections};

/// Columns of a task: those of a section of a product, so that sums are the same either way.
const COLUMNS: usize = SECTION;

/// Values whose exponentials are added up in f32; blocks are added in f64.
const BLOCK: usize = 256;

/// Values whose largest is compared with the least that counts, before each of them is.
const GLANCE: usize = 32;

/// What is found of one row.
#[derive(Clone, Debug, PartialEq)]
pub struct Top {
    /// Columns and values, largest first, the lower column first among equals.
    pub largest: Vec<(usize, f32)>,
    /// `ln(sum(e^x))` over the row.
    pub log_sum_exp: f64,
}

/// The same of a part of a row; the sum is that of `e^(x - largest)`.
#[derive(Clone, Debug)]
struct Part {
    largest: Vec<(usize, f32)>,
    max: f32,
    sum: f64,
}

impl Kernels {
    /// The `k` largest values of each row of `x`, all if there are fewer; `None` for a row without
    /// columns, one that holds NaN or plus infinity, and one of nothing but minus infinity.
    ///
    /// # Numerics
    ///
    /// Differences and exponentials have a relative error of 5 * 2^-24 at most, weighed by what
    /// they add; sums of 256 in sixteen lanes one of 20 * 2^-24. So `log_sum_exp` is within
    /// 32 * 2^-24 of the exact one, and the same whatever the number of threads.
    pub fn top(&self, x: &Stream, k: usize) -> Vec<Option<Top>> {
        let (rows, columns) = (x.tokens(), x.columns());
        let parts = Parts::new(rows, columns);
        self.pool.run(rows * parts.of_a_row, |task, _| {
            let (row, part) = (task / parts.of_a_row, task % parts.of_a_row);
            let first = part * COLUMNS;
            let n = COLUMNS.min(columns - first);
            let values = &x.values()[row * columns + first..][..n];
            parts.put(row, part, self.part(values, first, k));
        });
        parts.merged(k)
    }

    /// [`Kernels::top`] of `scale * x w^T`: bit for bit the same. The product is not written out.
    ///
    /// # Panics
    ///
    /// If shapes disagree, or the weights are those of a gate.
    pub fn top_of_product(
        &self,
        x: &Operand,
        w: &PackedMatrix,
        scale: f32,
        k: usize,
    ) -> Vec<Option<Top>> {
        let parts = Parts::new(x.tokens(), w.shape().columns);
        let (table, pool, scratch) = (&self.table, &self.pool, &self.scratch);
        product_in_sections(table, pool, scratch, x, w, scale, |section| {
            for (row, values) in section.values.chunks_exact(section.columns).enumerate() {
                let found = self.part(values, section.number * COLUMNS, k);
                parts.put(section.first_row + row, section.number, found);
            }
        });
        parts.merged(k)
    }

    /// Of the columns from `first` on; `None` if one holds NaN or plus infinity.
    fn part(&self, values: &[f32], first: usize, k: usize) -> Option<Part> {
        // SAFETY: the instruction set is available.
        let max = unsafe { (self.table.rows.max)(values) };
        let mut sum = 0.0;
        if max == f32::NEG_INFINITY {
            if values.iter().any(|value| *value != max) {
                return None;
            }
        } else {
            let mut block = [0.0f32; BLOCK];
            for values in values.chunks(BLOCK) {
                let block = &mut block[..values.len()];
                block.copy_from_slice(values);
                // SAFETY: as above.
                sum += f64::from(unsafe { (self.table.rows.exp)(block, max) });
            }
            if !max.is_finite() || !sum.is_finite() {
                return None;
            }
        }
        Some(Part {
            largest: largest(values, first, k),
            max,
            sum,
        })
    }
}

/// What is found of every part, by whichever thread.
struct Parts {
    found: Vec<Mutex<Option<Part>>>,
    of_a_row: usize,
    rows: usize,
}

impl Parts {
    fn new(rows: usize, columns: usize) -> Self {
        let of_a_row = columns.div_ceil(COLUMNS);
        Parts {
            found: (0..rows * of_a_row).map(|_| Mutex::new(None)).collect(),
            of_a_row,
            rows,
        }
    }

    fn put(&self, row: usize, part: usize, found: Option<Part>) {
        let place = &self.found[row * self.of_a_row + part];
        *place.lock().unwrap_or_else(PoisonError::into_inner) = found;
    }

    fn merged(self, k: usize) -> Vec<Option<Top>> {
        let found = self.found.into_iter();
        let found: Vec<Option<Part>> = found
            .map(|part| part.into_inner().unwrap_or_else(PoisonError::into_inner))
            .collect();
        match self.of_a_row {
            0 => vec![None; self.rows],
            n => found.chunks_exact(n).map(|parts| merge(parts, k)).collect(),
        }
    }
}

/// Of values without NaN, whose columns begin at `first`.
fn largest(values: &[f32], first: usize, k: usize) -> Vec<(usize, f32)> {
    let mut found: Vec<(usize, f32)> = Vec::with_capacity(k.min(values.len()) + 1);
    if k == 0 {
        return found;
    }
    for (glance, values) in values.chunks(GLANCE).enumerate() {
        let least = match found.len() == k {
            true => found[k - 1].1,
            false => f32::NEG_INFINITY,
        };
        let max = values.iter().fold(
            f32::NEG_INFINITY,
            |max, &value| {
                if value > max { value } else { max }
            },
        );
        if found.len() == k && max <= least {
            continue;
        }
        for (at, &value) in values.iter().enumerate() {
            if found.len() == k && value <= found[k - 1].1 {
                continue;
            }
            let place = found.partition_point(|&(_, other)| other >= value);
            found.insert(place, (first + glance * GLANCE + at, value));
            found.truncate(k);
        }
    }
    found
}

/// Parts in the order of their columns.
fn merge(parts: &[Option<Part>], k: usize) -> Option<Top> {
    let parts: Option<Vec<&Part>> = parts.iter().map(Option::as_ref).collect();
    let parts = parts?;
    let max = parts
        .iter()
        .fold(f32::NEG_INFINITY, |max, part| max.max(part.max));
    if max == f32::NEG_INFINITY {
        return None;
    }
    let mut largest: Vec<(usize, f32)> = parts
        .iter()
        .flat_map(|part| part.largest.iter().copied())
        .collect();
    // Stable: among equals the first part, and in it the lower column, stays first.
    // Not `total_cmp`, for which zeros differ.
    largest.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap_or(Ordering::Equal));
    largest.truncate(k);
    let sums = parts
        .iter()
        .map(|part| part.sum * (f64::from(part.max) - f64::from(max)).exp());
    Some(Top {
        largest,
        log_sum_exp: f64::from(max) + sums.sum::<f64>().ln(),
    })
}

#[cfg(test)]
mod tests {
    use crate::tests::{for_each_isa, noise};
    use crate::{Element, Epilogue, Parts, Plain, Precision, Storage, Stream};

    #[test]
    fn the_largest_of_rows_of_every_length() {
        for_each_isa(|kernels| {
            for columns in [1, 2, 15, 16, 17, 255, 256, 767, 768, 769, 12_289, 32_128] {
                let rows = 3;
                let mut x = Stream::zeroed(rows, columns);
                for (at, value) in x.values_mut().iter_mut().enumerate() {
                    // Whole halves, so that many are equal.
                    *value = ((at * 2_654_435_761) % 197) as f32 / 2.0 - 70.0;
                }
                for k in [0, 1, 2, 7, 500] {
                    for (row, found) in kernels.top(&x, k).into_iter().enumerate() {
                        let values = &x.values()[row * columns..][..columns];
                        let mut expected: Vec<(usize, f32)> =
                            values.iter().copied().enumerate().collect();
                        expected.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
                        let max = expected[0].1;
                        expected.truncate(k);
                        let found = found.unwrap();
                        assert_eq!(found.largest, expected, "{columns} columns, {k}");
                        let sum: f64 = values.iter().map(|&x| f64::from(x - max).exp()).sum();
                        let exact = f64::from(max) + sum.ln();
                        let error = (found.log_sum_exp - exact).abs();
                        assert!(error <= 32.0 * 2f64.powi(-24), "{columns} {error}");
                    }
                }
            }
        });
    }

    /// Whatever rows and columns: sections are cut where parts are, and their sums are a product's.
    #[test]
    fn products_that_are_not_written_out() {
        for_each_isa(|kernels| {
            let depth = 70;
            for (precision, element, integers) in [
                (Precision::F32, Element::F32, None),
                (Precision::F32, Element::Bf16, None),
                (Precision::Bf16, Element::F32, None),
                (Precision::F32, Element::F32, Some(Storage::Int8)),
                (Precision::Bf16, Element::F32, Some(Storage::Int4)),
                (Precision::Bf16, Element::F32, Some(Storage::Int8Dynamic)),
                (Precision::Bf16, Element::F32, Some(Storage::Int8Wide)),
                (Precision::Bf16, Element::F32, Some(Storage::Int4Wide)),
            ] {
                for columns in [1, 31, 33, 767, 768, 769, 1600] {
                    let mut next = noise(columns);
                    let weights: Vec<u8> = (0..columns * depth)
                        .flat_map(|_| match element {
                            Element::Bf16 => crate::math::to_bf16(next()).to_le_bytes().to_vec(),
                            _ => next().to_le_bytes().to_vec(),
                        })
                        .collect();
                    let plain = [Plain {
                        element,
                        bytes: &weights,
                        rows: columns,
                    }];
                    let storage = integers.unwrap_or(kernels.storage(precision, element));
                    let w = kernels.pack(Parts::Stacked(&plain), depth, storage, None);
                    for rows in [0, 1, 2, 15, 64, 65, 150] {
                        let mut x = kernels.operand(precision, rows, depth);
                        for row in 0..rows {
                            for column in 0..depth {
                                x.set(row, column, next());
                            }
                        }
                        let mut written = Stream::zeroed(rows, columns);
                        kernels.linear(&x, &w, Epilogue::Scale(0.3, &mut written));
                        for k in [0, 1, 8] {
                            let found = kernels.top_of_product(&x, &w, 0.3, k);
                            assert_eq!(found, kernels.top(&written, k), "{rows} x {columns}, {k}");
                            assert!(found.iter().all(Option::is_some));
                        }
                    }
                }
            }
        });
    }

    #[test]
    fn zeros_of_both_signs_are_equal() {
        for_each_isa(|kernels| {
            let mut x = Stream::zeroed(1, 5000);
            x.values_mut().fill(-1.0);
            x.values_mut()[3] = -0.0;
            x.values_mut()[4] = 0.0;
            x.values_mut()[4999] = 0.0;
            let top = kernels.top(&x, 3).remove(0).unwrap();
            let columns: Vec<usize> = top.largest.iter().map(|(column, _)| *column).collect();
            assert_eq!(columns, [3, 4, 4999]);
        });
    }

    #[test]
    fn rows_that_have_none() {
        for_each_isa(|kernels| {
            for value in [f32::NAN, f32::INFINITY] {
                for at in [0, 100, 4999] {
                    let mut x = Stream::zeroed(2, 5000);
                    x.values_mut()[at] = value;
                    let found = kernels.top(&x, 1);
                    assert!(found[0].is_none() && found[1].is_some(), "{value} at {at}");
                }
            }
            let mut x = Stream::zeroed(1, 40);
            x.values_mut().fill(f32::NEG_INFINITY);
            assert!(kernels.top(&x, 2)[0].is_none());
            // A whole part of it does no harm.
            let mut x = Stream::zeroed(1, 9000);
            x.values_mut()[..5000].fill(f32::NEG_INFINITY);
            let found = kernels.top(&x, 2).remove(0).unwrap();
            assert_eq!(found.largest, [(5000, 0.0), (5001, 0.0)]);
            assert_eq!(kernels.top(&Stream::zeroed(2, 0), 1), [None, None]);
        });
    }
}
