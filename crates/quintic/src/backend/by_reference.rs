//! A backend that several encoders share is still a backend.

use super::{
    Attention, Backend, Buckets, Chosen, DeviceOutput, Epilogue, Keys, Pool, Scale, Visible,
    Weights, Widths,
};
use crate::Result;
use crate::batch::PackedBatch;
use crate::keep::Site;
use crate::tensor::Tensor;

/// The same attention, asked of the backend itself.
fn of<'a, B: Backend>(attention: &Attention<'a, &B>) -> Attention<'a, B> {
    Attention {
        n_heads: attention.n_heads,
        d_kv: attention.d_kv,
        queries: attention.queries,
        row_starts: attention.row_starts,
        keys: match attention.keys {
            Keys::Fused => Keys::Fused,
            Keys::Cache(cache) => Keys::Cache(cache),
        },
        bias: attention.bias,
        positions: attention.positions,
        visible: match attention.visible {
            Visible::Mask(mask) => Visible::Mask(mask),
            Visible::Causal => Visible::Causal,
        },
        head_gains: attention.head_gains,
    }
}

impl<B: Backend> Backend for &B {
    type Table = B::Table;
    type Gain = B::Gain;
    type Matrix = B::Matrix;
    type Bias = B::Bias;
    type Stream = B::Stream;
    type Operand = B::Operand;
    type KvCache = B::KvCache;
    type Logits = B::Logits;

    fn name(&self) -> &'static str {
        B::name(self)
    }

    fn isa(&self) -> Option<&'static str> {
        B::isa(self)
    }

    fn threads(&self) -> usize {
        B::threads(self)
    }

    fn bytes_per_token(&self, widths: &Widths) -> u64 {
        B::bytes_per_token(self, widths)
    }

    fn folds_gains(&self) -> bool {
        B::folds_gains(self)
    }

    fn prepare_table(&self, table: Tensor) -> Result<B::Table> {
        B::prepare_table(self, table)
    }

    fn prepare_gain(&self, gain: Tensor) -> Result<B::Gain> {
        B::prepare_gain(self, gain)
    }

    fn prepare_matrix(&self, weights: Weights, gain: Option<Tensor>) -> Result<B::Matrix> {
        B::prepare_matrix(self, weights, gain)
    }

    fn prepare_product(
        &self,
        site: Site,
        weights: Weights,
        gain: Option<Tensor>,
    ) -> Result<B::Matrix> {
        B::prepare_product(self, site, weights, gain)
    }

    fn start_scales(&self, known: &[(Site, Scale)]) {
        B::start_scales(self, known);
    }

    fn passes_again(&self) -> Option<u64> {
        B::passes_again(self)
    }

    fn prepare_bias(&self, table: Tensor, buckets: Buckets) -> Result<B::Bias> {
        B::prepare_bias(self, table, buckets)
    }

    fn operand(&self, tokens: usize, columns: usize) -> B::Operand {
        B::operand(self, tokens, columns)
    }

    fn attention_operand(&self, tokens: usize, columns: usize) -> B::Operand {
        B::attention_operand(self, tokens, columns)
    }

    fn fused_operand(&self, tokens: usize, columns: usize, d_kv: usize) -> B::Operand {
        B::fused_operand(self, tokens, columns, d_kv)
    }

    fn pass(
        &self,
        encoder: u64,
        batch: &PackedBatch,
        repeatable: bool,
        queue: &mut dyn FnMut(&PackedBatch) -> Result<B::Stream>,
    ) -> Result<B::Stream> {
        B::pass(self, encoder, batch, repeatable, queue)
    }

    fn kv_cache(&self, rows: usize, n_heads: usize, d_kv: usize) -> B::KvCache {
        B::kv_cache(self, rows, n_heads, d_kv)
    }

    fn stream(&self, tokens: usize, columns: usize, values: &[f32]) -> B::Stream {
        B::stream(self, tokens, columns, values)
    }

    fn embed(&self, table: &B::Table, ids: &[u32]) -> B::Stream {
        B::embed(self, table, ids)
    }

    fn rms_norm(&self, x: &B::Stream, gain: Option<&B::Gain>, eps: f64, out: &mut B::Operand) {
        B::rms_norm(self, x, gain, eps, out);
    }

    fn rms_norm_last(&self, x: &B::Stream, gain: &B::Gain, eps: f64) -> B::Stream {
        B::rms_norm_last(self, x, gain, eps)
    }

    fn linear(&self, x: &B::Operand, w: &B::Matrix, epilogue: Epilogue<'_, Self>) {
        let epilogue = match epilogue {
            Epilogue::Store(out) => Epilogue::Store(out),
            Epilogue::Add(out) => Epilogue::Add(out),
            Epilogue::Activate(activation, out) => Epilogue::Activate(activation, out),
            Epilogue::Gate(activation, out) => Epilogue::Gate(activation, out),
        };
        B::linear(self, x, w, epilogue);
    }

    fn attend(&self, attention: &Attention<'_, Self>, out: &mut B::Operand) {
        B::attend(self, &of(attention), out);
    }

    fn attention_weights(&self, attention: &Attention<'_, Self>) -> Result<Vec<f32>> {
        B::attention_weights(self, &of(attention))
    }

    fn append_kv(
        &self,
        cache: &mut B::KvCache,
        kv: &B::Operand,
        first_column: usize,
        row_starts: &[usize],
    ) {
        B::append_kv(self, cache, kv, first_column, row_starts);
    }

    fn arrange_kv(&self, cache: &mut B::KvCache, rows: &[Option<usize>]) {
        B::arrange_kv(self, cache, rows);
    }

    fn truncate_kv(&self, cache: &mut B::KvCache, lengths: &[usize]) {
        B::truncate_kv(self, cache, lengths);
    }

    fn cast(&self, x: &B::Stream, out: &mut B::Operand) {
        B::cast(self, x, out);
    }

    fn logits(&self, x: &B::Stream, head: &B::Matrix, scale: f32) -> B::Logits {
        B::logits(self, x, head, scale)
    }

    fn top(
        &self,
        x: &B::Stream,
        head: &B::Matrix,
        scale: f32,
        k: usize,
    ) -> Result<Vec<Vec<Chosen>>> {
        B::top(self, x, head, scale, k)
    }

    fn pool(&self, x: &B::Stream, row_starts: &[usize], pool: Pool) -> Result<Vec<f32>> {
        B::pool(self, x, row_starts, pool)
    }

    fn finish(&self, x: &B::Stream) -> Result<()> {
        B::finish(self, x)
    }

    unsafe fn write_stream(&self, x: &B::Stream, out: &DeviceOutput<'_>) -> Result<()> {
        // SAFETY: the caller's.
        unsafe { B::write_stream(self, x, out) }
    }

    fn read_stream(&self, x: &B::Stream) -> Result<Vec<f32>> {
        B::read_stream(self, x)
    }

    fn read_logits(&self, logits: &B::Logits) -> Result<Vec<f32>> {
        B::read_logits(self, logits)
    }

    fn log_sums(&self, logits: &B::Logits) -> Result<Vec<f64>> {
        B::log_sums(self, logits)
    }
}
