//! What each operation means, in plain loops.
//!
//! This backend is the oracle of every other one, so it is exact rather than fast: sums run
//! in f64 and are rounded to f32 once, where a buffer is written. Weights stay where the
//! checkpoint has them (usually a memory map) in their own type and are widened block by
//! block as a product reads them, so a model needs no memory beyond its file.

mod attention;
mod product;

use super::choose::{log_sums, top};
use super::pool::pool;
use super::{Attention, Backend, Buckets, Chosen, Epilogue, Pool, Weights, Widths};
use crate::tensor::Tensor;
use crate::{Error, Result};

pub use attention::KvCache;

/// The reference backend. See the [module](self) docs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reference;

/// A row-major f32 matrix: stream, operand and logits alike.
#[derive(Clone, Debug, PartialEq)]
pub struct Rows {
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub columns: usize,
    /// The values, `rows * columns`.
    pub data: Vec<f32>,
}

impl Rows {
    /// A matrix of zeros.
    pub fn zeros(rows: usize, columns: usize) -> Self {
        Rows {
            rows,
            columns,
            data: vec![0.0; rows * columns],
        }
    }

    /// A matrix of given values.
    ///
    /// # Panics
    ///
    /// If there are not `rows * columns` of them.
    pub fn new(rows: usize, columns: usize, data: Vec<f32>) -> Self {
        assert_eq!(data.len(), rows * columns, "[{rows}, {columns}]");
        Rows {
            rows,
            columns,
            data,
        }
    }

    /// Row `row_idx`.
    pub fn row(&self, row_idx: usize) -> &[f32] {
        &self.data[row_idx * self.columns..(row_idx + 1) * self.columns]
    }

    /// Row `row_idx`, to write.
    pub fn row_mut(&mut self, row_idx: usize) -> &mut [f32] {
        &mut self.data[row_idx * self.columns..(row_idx + 1) * self.columns]
    }
}

/// A bias table and the map from distance to its rows.
#[derive(Debug)]
pub struct Bias {
    table: Vec<f32>,
    n_heads: usize,
    buckets: Buckets,
}

impl Bias {
    /// Bias of `head` for a key at `key - query = distance`.
    fn at(&self, head: usize, distance: i64) -> f32 {
        self.table[self.buckets.of(distance) * self.n_heads + head]
    }
}

/// Packing may have rounded, and the layout is another backend's.
pub(crate) fn refuse_packed() -> Error {
    Error::unsupported(
        "the model is packed for the cpu backend, but the reference backend computes from weights \
         as they were published",
    )
    .hint("name the model that was packed")
}

impl Backend for Reference {
    type Table = Tensor;
    type Gain = Vec<f32>;
    type Matrix = Weights;
    type Bias = Bias;
    type Stream = Rows;
    type Operand = Rows;
    type KvCache = KvCache;
    type Logits = Rows;

    fn name(&self) -> &'static str {
        "reference"
    }

    fn threads(&self) -> usize {
        1
    }

    /// Operands in f32, and what the widest product widens to f64.
    fn bytes_per_token(&self, widths: &Widths) -> u64 {
        let narrow = 2 * widths.d_model + 4 * widths.inner + widths.d_ff;
        let widest = widths.d_ff.max(widths.d_model).max(widths.inner);
        let gate = if widths.gated { widths.d_ff } else { 0 };
        (narrow * size_of::<f32>() + (widest + gate) * size_of::<f64>()) as u64
    }

    fn prepare_table(&self, table: Tensor) -> Result<Tensor> {
        Ok(table)
    }

    fn prepare_gain(&self, gain: Tensor) -> Result<Vec<f32>> {
        Ok(gain.to_f32())
    }

    fn prepare_matrix(&self, weights: Weights, gain: Option<Tensor>) -> Result<Weights> {
        if let Weights::Packed(packed) = &weights {
            return Err(refuse_packed().at(format!("tensor `{}`", packed.bytes.name())));
        }
        assert!(gain.is_none(), "the reference folds no gains");
        Ok(weights)
    }

    fn prepare_bias(&self, table: Tensor, buckets: Buckets) -> Result<Bias> {
        let n_heads = table.shape()[1];
        Ok(Bias {
            table: table.to_f32(),
            n_heads,
            buckets,
        })
    }

    fn operand(&self, tokens: usize, columns: usize) -> Rows {
        Rows::zeros(tokens, columns)
    }

    fn kv_cache(&self, rows: usize, n_heads: usize, d_kv: usize) -> KvCache {
        KvCache::new(rows, n_heads * d_kv)
    }

    fn stream(&self, tokens: usize, columns: usize, values: &[f32]) -> Rows {
        Rows::new(tokens, columns, values.to_vec())
    }

    fn embed(&self, table: &Tensor, ids: &[u32]) -> Rows {
        let d_model = table.shape()[1];
        let mut out = Rows::zeros(ids.len(), d_model);
        for (token, &id) in ids.iter().enumerate() {
            table.read_f32(id as usize * d_model, out.row_mut(token));
        }
        out
    }

    fn rms_norm(&self, x: &Rows, gain: Option<&Vec<f32>>, eps: f64, out: &mut Rows) {
        let Some(gain) = gain else {
            panic!("the reference folds no gains")
        };
        assert_eq!((x.rows, x.columns), (out.rows, out.columns));
        assert_eq!(x.columns, gain.len());
        for token in 0..x.rows {
            let row = x.row(token);
            let squares: f64 = row
                .iter()
                .map(|&value| f64::from(value) * f64::from(value))
                .sum();
            let scale = 1.0 / (squares / row.len() as f64 + eps).sqrt();
            for ((out, &value), &gain) in out.row_mut(token).iter_mut().zip(row).zip(gain) {
                *out = (f64::from(value) * scale * f64::from(gain)) as f32;
            }
        }
    }

    fn rms_norm_last(&self, x: &Rows, gain: &Vec<f32>, eps: f64) -> Rows {
        let mut out = Rows::zeros(x.rows, x.columns);
        self.rms_norm(x, Some(gain), eps, &mut out);
        out
    }

    fn linear(&self, x: &Rows, w: &Weights, epilogue: Epilogue<'_, Self>) {
        product::linear(x, w, epilogue);
    }

    fn attend(&self, attention: &Attention<'_, Self>, out: &mut Rows) {
        attention::attend(attention, out);
    }

    fn attention_weights(&self, attention: &Attention<'_, Self>) -> Result<Vec<f32>> {
        Ok(attention::weights(attention))
    }

    fn append_kv(&self, cache: &mut KvCache, kv: &Rows, first_column: usize, row_starts: &[usize]) {
        cache.append(kv, first_column, row_starts);
    }

    fn arrange_kv(&self, cache: &mut KvCache, rows: &[Option<usize>]) {
        cache.arrange(rows);
    }

    fn truncate_kv(&self, cache: &mut KvCache, lengths: &[usize]) {
        cache.truncate(lengths);
    }

    fn cast(&self, x: &Rows, out: &mut Rows) {
        assert_eq!((x.rows, x.columns), (out.rows, out.columns));
        out.data.copy_from_slice(&x.data);
    }

    fn logits(&self, x: &Rows, head: &Weights, scale: f32) -> Rows {
        product::logits(x, head, scale)
    }

    fn top(&self, x: &Rows, head: &Weights, scale: f32, k: usize) -> Result<Vec<Vec<Chosen>>> {
        let logits = product::logits(x, head, scale);
        Ok(top(&logits.data, logits.columns, k))
    }

    fn pool(&self, x: &Rows, row_starts: &[usize], how: Pool) -> Result<Vec<f32>> {
        Ok(pool(&x.data, x.columns, row_starts, how))
    }

    fn read_stream(&self, x: &Rows) -> Result<Vec<f32>> {
        Ok(x.data.clone())
    }

    fn read_logits(&self, logits: &Rows) -> Result<Vec<f32>> {
        Ok(logits.data.clone())
    }

    fn log_sums(&self, logits: &Rows) -> Result<Vec<f64>> {
        Ok(log_sums(&logits.data, logits.columns))
    }
}

#[cfg(test)]
mod tests;
