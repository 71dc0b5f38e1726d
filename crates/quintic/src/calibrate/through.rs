//! A backend that passes everything on to another one but its products.

use crate::Result;
use crate::backend::{
    Attention, Backend, Buckets, Chosen, Epilogue, Keys, Pool, Visible, Weights, Widths,
};
use crate::keep::Site;
use crate::tensor::Tensor;

/// Products in place of another backend's.
pub(super) trait Products: Send + Sync + 'static {
    /// What computes all the rest.
    type Inner: Backend;
    /// Weights of a product.
    type Matrix: Send + Sync;

    fn inner(&self) -> &Self::Inner;

    /// Prepares weights; of a model's products, those of a site.
    fn prepare(
        &self,
        site: Option<Site>,
        weights: Weights,
        gain: Option<Tensor>,
    ) -> Result<Self::Matrix>;

    /// The other backend's weights that a product takes now.
    fn taken<'a>(&self, w: &'a Self::Matrix) -> &'a <Self::Inner as Backend>::Matrix;

    /// The product; may look at what it makes.
    fn linear(
        &self,
        x: &<Self::Inner as Backend>::Operand,
        w: &Self::Matrix,
        epilogue: Epilogue<'_, Self::Inner>,
    ) {
        self.inner().linear(x, self.taken(w), epilogue);
    }
}

/// The backend.
pub(super) struct Through<P>(pub(super) P);

impl<P: Products> Through<P> {
    fn of<'a>(attention: &Attention<'a, Self>) -> Attention<'a, P::Inner> {
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
}

type Inner<P> = <P as Products>::Inner;
type Stream<P> = <Inner<P> as Backend>::Stream;
type Operand<P> = <Inner<P> as Backend>::Operand;
type Gain<P> = <Inner<P> as Backend>::Gain;
type Logits<P> = <Inner<P> as Backend>::Logits;
type KvCache<P> = <Inner<P> as Backend>::KvCache;

impl<P: Products> Backend for Through<P> {
    type Table = <Inner<P> as Backend>::Table;
    type Gain = Gain<P>;
    type Matrix = P::Matrix;
    type Bias = <Inner<P> as Backend>::Bias;
    type Stream = Stream<P>;
    type Operand = Operand<P>;
    type KvCache = KvCache<P>;
    type Logits = Logits<P>;

    fn name(&self) -> &'static str {
        self.0.inner().name()
    }

    fn isa(&self) -> Option<&'static str> {
        self.0.inner().isa()
    }

    fn threads(&self) -> usize {
        self.0.inner().threads()
    }

    fn bytes_per_token(&self, widths: &Widths) -> u64 {
        self.0.inner().bytes_per_token(widths)
    }

    fn folds_gains(&self) -> bool {
        self.0.inner().folds_gains()
    }

    fn prepare_table(&self, table: Tensor) -> Result<Self::Table> {
        self.0.inner().prepare_table(table)
    }

    fn prepare_gain(&self, gain: Tensor) -> Result<Gain<P>> {
        self.0.inner().prepare_gain(gain)
    }

    fn prepare_matrix(&self, weights: Weights, gain: Option<Tensor>) -> Result<P::Matrix> {
        self.0.prepare(None, weights, gain)
    }

    fn prepare_product(
        &self,
        site: Site,
        weights: Weights,
        gain: Option<Tensor>,
    ) -> Result<P::Matrix> {
        self.0.prepare(Some(site), weights, gain)
    }

    fn prepare_bias(&self, table: Tensor, buckets: Buckets) -> Result<Self::Bias> {
        self.0.inner().prepare_bias(table, buckets)
    }

    fn operand(&self, tokens: usize, columns: usize) -> Operand<P> {
        self.0.inner().operand(tokens, columns)
    }

    fn attention_operand(&self, tokens: usize, columns: usize) -> Operand<P> {
        self.0.inner().attention_operand(tokens, columns)
    }

    fn fused_operand(&self, tokens: usize, columns: usize, d_kv: usize) -> Operand<P> {
        self.0.inner().fused_operand(tokens, columns, d_kv)
    }

    fn kv_cache(&self, rows: usize, n_heads: usize, d_kv: usize) -> KvCache<P> {
        self.0.inner().kv_cache(rows, n_heads, d_kv)
    }

    fn stream(&self, tokens: usize, columns: usize, values: &[f32]) -> Stream<P> {
        self.0.inner().stream(tokens, columns, values)
    }

    fn embed(&self, table: &Self::Table, ids: &[u32]) -> Stream<P> {
        self.0.inner().embed(table, ids)
    }

    fn rms_norm(&self, x: &Stream<P>, gain: Option<&Gain<P>>, eps: f64, out: &mut Operand<P>) {
        self.0.inner().rms_norm(x, gain, eps, out);
    }

    fn rms_norm_last(&self, x: &Stream<P>, gain: &Gain<P>, eps: f64) -> Stream<P> {
        self.0.inner().rms_norm_last(x, gain, eps)
    }

    fn linear(&self, x: &Operand<P>, w: &P::Matrix, epilogue: Epilogue<'_, Self>) {
        let epilogue = match epilogue {
            Epilogue::Store(out) => Epilogue::Store(out),
            Epilogue::Add(out) => Epilogue::Add(out),
            Epilogue::Activate(activation, out) => Epilogue::Activate(activation, out),
            Epilogue::Gate(activation, out) => Epilogue::Gate(activation, out),
        };
        self.0.linear(x, w, epilogue);
    }

    fn attend(&self, attention: &Attention<'_, Self>, out: &mut Operand<P>) {
        self.0.inner().attend(&Self::of(attention), out);
    }

    fn attention_weights(&self, attention: &Attention<'_, Self>) -> Result<Vec<f32>> {
        self.0.inner().attention_weights(&Self::of(attention))
    }

    fn append_kv(
        &self,
        cache: &mut KvCache<P>,
        kv: &Operand<P>,
        first_column: usize,
        row_starts: &[usize],
    ) {
        let inner = self.0.inner();
        inner.append_kv(cache, kv, first_column, row_starts);
    }

    fn arrange_kv(&self, cache: &mut KvCache<P>, rows: &[Option<usize>]) {
        self.0.inner().arrange_kv(cache, rows);
    }

    fn truncate_kv(&self, cache: &mut KvCache<P>, lengths: &[usize]) {
        self.0.inner().truncate_kv(cache, lengths);
    }

    fn cast(&self, x: &Stream<P>, out: &mut Operand<P>) {
        self.0.inner().cast(x, out);
    }

    fn logits(&self, x: &Stream<P>, head: &P::Matrix, scale: f32) -> Logits<P> {
        self.0.inner().logits(x, self.0.taken(head), scale)
    }

    fn top(
        &self,
        x: &Stream<P>,
        head: &P::Matrix,
        scale: f32,
        k: usize,
    ) -> Result<Vec<Vec<Chosen>>> {
        self.0.inner().top(x, self.0.taken(head), scale, k)
    }

    fn pool(&self, x: &Stream<P>, row_starts: &[usize], pool: Pool) -> Result<Vec<f32>> {
        self.0.inner().pool(x, row_starts, pool)
    }

    fn read_stream(&self, x: &Stream<P>) -> Result<Vec<f32>> {
        self.0.inner().read_stream(x)
    }

    fn read_logits(&self, logits: &Logits<P>) -> Result<Vec<f32>> {
        self.0.inner().read_logits(logits)
    }

    fn log_sums(&self, logits: &Logits<P>) -> Result<Vec<f64>> {
        self.0.inner().log_sums(logits)
    }
}
