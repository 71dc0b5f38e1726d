//! The eight operations that a backend provides, and nothing else.
//!
//! A T5 pass is `embed`, then per layer `rms_norm`, `linear`, `attend`, `linear`,
//! `rms_norm`, `linear`, `linear`, then a last `rms_norm`; a decoder adds `append_kv`,
//! `logits` and `choose`; an embedding model adds `pool`. The buffers between them are
//! opaque: each backend keeps activations in the layout, the element type and the memory
//! that its next operation reads.
//!
//! The residual stream ([`Backend::Stream`]) is f32 in every backend; half precision is
//! only what flows into a product ([`Backend::Operand`]).
//!
//! Shapes in the docs use one alphabet: `tokens` (of all rows of a batch), `rows`,
//! `d_model`, `n_heads`, `d_kv`, `d_ff`, `vocab`.
//!
//! A backend may queue its work and go on: what it queues cannot fail for the caller, and an
//! error (the device's memory gave out, say) travels in the buffers that it left without
//! contents, until one of them is read. So only operations whose result reaches the host return
//! errors.
//!
//! Lengths that disagree are the caller's bug and panic with the numbers: [`crate::model`]
//! is the only caller, and it has checked files and batches before.

mod buckets;
mod by_reference;
mod choose;
pub mod cpu;
pub mod cuda;
mod pool;
pub mod reference;
mod scale;

use crate::batch::{Mask, PackedBatch};
use crate::checkpoint::PackedEntry;
use crate::compute::ComputeType;
use crate::config::Activation;
use crate::keep::Site;
use crate::tensor::Tensor;
use crate::{Error, Result};

pub use buckets::Buckets;
pub(crate) use choose::log_total;
pub use scale::Scale;

/// The matrices that one product multiplies with. A weight is stored `[out, in]`, as in the
/// checkpoint.
#[derive(Debug)]
pub enum Weights {
    /// Parts stacked along `out`: q, k and v in one product.
    Stacked(Vec<Tensor>),
    /// The two halves of a gated feed-forward layer, each `[d_ff, d_model]`. A backend may
    /// interleave them, so such a product must be used with [`Epilogue::Gate`].
    Gated {
        /// `wi_0`, which the activation is applied to.
        gate: Tensor,
        /// `wi_1`.
        up: Tensor,
    },
    /// Weights that a backend packed before, see [`crate::packed`].
    Packed(PackedWeights),
}

impl Weights {
    /// Whether any part is quantised.
    pub(crate) fn is_quantized(&self) -> bool {
        let is = |tensor: &Tensor| tensor.dtype().is_quantized();
        match self {
            Weights::Stacked(parts) => parts.iter().any(is),
            Weights::Gated { gate, up } => is(gate) || is(up),
            Weights::Packed(_) => false,
        }
    }

    /// Quantised weights as f32, others as they are: for backends that have no products of the
    /// former.
    pub(crate) fn widened(self) -> Weights {
        let wide = |tensor: Tensor| match tensor.dtype().is_quantized() {
            false => tensor,
            true => {
                let wide = tensor.widened();
                tensor.release();
                wide
            }
        };
        match self {
            Weights::Stacked(parts) => Weights::Stacked(parts.into_iter().map(wide).collect()),
            Weights::Gated { gate, up } => Weights::Gated {
                gate: wide(gate),
                up: wide(up),
            },
            packed @ Weights::Packed(_) => packed,
        }
    }
}

/// Weights of one product in a backend's own layout, as they were stored.
#[derive(Clone, Debug)]
pub struct PackedWeights {
    /// Name of the layout, with its version.
    pub layout: String,
    /// What the matrix is.
    pub matrix: PackedEntry,
    /// The packed bytes, as a tensor of bytes.
    pub bytes: Tensor,
}

/// What a product does with its result before it is stored.
pub enum Epilogue<'a, B: Backend + ?Sized> {
    /// Stores it as the operand of a later operation.
    Store(&'a mut B::Operand),
    /// Adds it to the residual stream.
    Add(&'a mut B::Stream),
    /// Stores `act(result)`.
    Activate(Activation, &'a mut B::Operand),
    /// Stores `act(gate) * up`, for [`Weights::Gated`].
    Gate(Activation, &'a mut B::Operand),
}

/// Where the keys and values of an attention come from.
pub enum Keys<'a, B: Backend + ?Sized> {
    /// The same tokens: `fused` holds q, k and v side by side, `[tokens, 3 * n_heads * d_kv]`.
    Fused,
    /// A cache, row by row; the queries stand in the first `n_heads * d_kv` columns.
    Cache(&'a B::KvCache),
}

// Derived, `Copy` would ask for `B: Copy`.
impl<B: Backend + ?Sized> Copy for Keys<'_, B> {}

impl<B: Backend + ?Sized> Clone for Keys<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

/// Which of its keys a query sees.
#[derive(Clone, Copy, Debug)]
pub enum Visible<'a> {
    /// As the batch says.
    Mask(&'a Mask),
    /// Keys up to the query's own position, counted from the end of the row's cache.
    Causal,
}

/// One attention over a packed batch.
pub struct Attention<'a, B: Backend + ?Sized> {
    /// Number of heads.
    pub n_heads: usize,
    /// Width of a head.
    pub d_kv: usize,
    /// Queries (and, if fused, keys and values) of all rows, in an
    /// [attention operand](Backend::attention_operand).
    pub queries: &'a B::Operand,
    /// Where rows of queries begin, `[rows + 1]`.
    pub row_starts: &'a [usize],
    /// Keys and values.
    pub keys: Keys<'a, B>,
    /// Relative position bias; cross-attention has none.
    pub bias: Option<&'a B::Bias>,
    /// Position of every token within its row, if rows have gaps.
    pub positions: Option<&'a [u32]>,
    /// Visible keys.
    pub visible: Visible<'a>,
    /// Factor of every head's weights after the softmax, `[n_heads]`; `None` is 1.
    pub head_gains: Option<&'a [f32]>,
}

/// A token and its log-probability under the unfiltered distribution.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Chosen {
    /// Token id.
    pub id: u32,
    /// Natural logarithm of its probability.
    pub log_prob: f32,
}

/// How the tokens of a row become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pool {
    /// Mean of all tokens.
    Mean,
    /// The first token.
    First,
    /// The last token.
    Last,
}

/// Widths of a model's activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Widths {
    /// Width of the residual stream.
    pub d_model: usize,
    /// Width of all heads, `n_heads * d_kv`.
    pub inner: usize,
    /// Width inside the feed-forward layer.
    pub d_ff: usize,
    /// Whether that layer has two input products.
    pub gated: bool,
}

/// Where a result goes in a device's memory.
#[derive(Clone, Copy, Debug)]
pub struct DeviceOutput<'a> {
    /// Where it begins: `[rows.len(), d_model]` of `dtype`.
    pub address: u64,
    /// f32, bf16 or f16.
    pub dtype: ComputeType,
    /// Token of each row of the result; `None` for zeros.
    pub rows: &'a [Option<u32>],
    /// A stream of the device (the value of a `CUstream`). What was queued there before is waited
    /// for, and what is queued there afterwards finds the result.
    pub queue: u64,
}

/// Refuses to cut a row of a cache to more tokens than it has.
fn check_shorter(row: usize, found: usize, wanted: usize) {
    assert!(
        wanted <= found,
        "row {row} of the cache has {found} tokens, and cannot be cut to {wanted}"
    );
}

/// A device and a way to compute on it. See the [module](self) docs.
pub trait Backend: Send + Sync {
    /// An embedding table, `[vocab, d_model]`.
    type Table: Send + Sync;
    /// RMSNorm gains, `[d_model]`.
    type Gain: Send + Sync;
    /// Weights of one product in the layout that `linear` reads.
    type Matrix: Send + Sync;
    /// A position-bias table indexed by distance.
    type Bias: Send + Sync;
    /// The f32 residual stream, `[tokens, d_model]`.
    type Stream: Send;
    /// What flows into a product or an attention, `[tokens, columns]`.
    type Operand: Send;
    /// Keys and values of one attention layer, row by row.
    type KvCache: Send;
    /// Scores of every token of the vocabulary, `[rows, vocab]`.
    type Logits: Send;

    /// A name such as `reference`.
    fn name(&self) -> &'static str;

    /// The instruction set that it uses, if that is a choice.
    fn isa(&self) -> Option<&'static str> {
        None
    }

    /// Threads that it computes on.
    fn threads(&self) -> usize;

    /// Bytes that a pass holds at once for each token: stream, operands and result.
    fn bytes_per_token(&self, widths: &Widths) -> u64;

    /// Whether norms' gains are to be multiplied into the matrices that follow them. Then
    /// `prepare_matrix` gets them, and `rms_norm` gets none.
    fn folds_gains(&self) -> bool {
        false
    }

    /// Prepares an embedding table.
    ///
    /// # Errors
    ///
    /// The four `prepare_*` methods fail if memory or the device gives out.
    fn prepare_table(&self, table: Tensor) -> Result<Self::Table>;

    /// Prepares RMSNorm gains.
    fn prepare_gain(&self, gain: Tensor) -> Result<Self::Gain>;

    /// Prepares the weights of a product; a `gain` multiplies each column of its input, for
    /// backends that [fold gains](Backend::folds_gains).
    ///
    /// Packed weights are used where they are. They fail if they are damaged or not in this
    /// backend's layout, and in a backend that has none; their gain is folded already.
    fn prepare_matrix(&self, weights: Weights, gain: Option<Tensor>) -> Result<Self::Matrix>;

    /// [`Backend::prepare_matrix`] for this product of a model, whose weights the backend may keep
    /// in another type than those of others.
    ///
    /// # Errors
    ///
    /// As [`Backend::prepare_matrix`].
    fn prepare_product(
        &self,
        site: Site,
        weights: Weights,
        gain: Option<Tensor>,
    ) -> Result<Self::Matrix> {
        let _ = site;
        self.prepare_matrix(weights, gain)
    }

    /// Starts feed-forward layers with exponents that are known already, in place of finding them by
    /// running passes again. Only a backend has a use for them that rounds to f16 what flows between
    /// a layer's products; others take no notice.
    fn start_scales(&self, known: &[(Site, Scale)]) {
        let _ = known;
    }

    /// Passes that were run again so far since 16 bits had not held a value; `None` for a backend
    /// (or a type) with which that does not happen.
    fn passes_again(&self) -> Option<u64> {
        None
    }

    /// Prepares a bias table `[buckets, n_heads]`: `bucket_of` maps `key - query` to its row.
    fn prepare_bias(&self, table: Tensor, buckets: Buckets) -> Result<Self::Bias>;

    /// An operand buffer, contents unspecified.
    fn operand(&self, tokens: usize, columns: usize) -> Self::Operand;

    /// A buffer for queries, keys and values, contents unspecified: what an attention reads
    /// may be wider than what a product does.
    fn attention_operand(&self, tokens: usize, columns: usize) -> Self::Operand {
        self.operand(tokens, columns)
    }

    /// A buffer for queries, keys and values of heads of width `d_kv` that stand side by side and are read by an
    /// attention alone ([`Keys::Fused`]), contents unspecified: they may stand as its products read them.
    fn fused_operand(&self, tokens: usize, columns: usize, d_kv: usize) -> Self::Operand {
        let _ = d_kv;
        self.attention_operand(tokens, columns)
    }

    /// Runs a whole pass: `queue` queues its operations for the batch that it is given, and
    /// returns the last stream. `encoder` is the same for passes through the same weights.
    ///
    /// A `repeatable` pass is one that depends on nothing but its batch. A backend may keep what
    /// was queued for one, and queue that again for a batch of the same form in place of calling
    /// `queue`. It may call `queue` with another batch than `batch`: without its empty rows and
    /// with one more row at the end. The stream that it returns begins with the tokens of
    /// `batch`.
    ///
    /// # Errors
    ///
    /// Those of `queue`, and whatever the backend met on the way.
    fn pass(
        &self,
        encoder: u64,
        batch: &PackedBatch,
        repeatable: bool,
        queue: &mut dyn FnMut(&PackedBatch) -> Result<Self::Stream>,
    ) -> Result<Self::Stream> {
        let _ = (encoder, repeatable);
        queue(batch)
    }

    /// An empty cache for `rows` rows of one attention layer.
    fn kv_cache(&self, rows: usize, n_heads: usize, d_kv: usize) -> Self::KvCache;

    /// A stream of these values, `[tokens, columns]`: embeddings that the caller made, in place
    /// of [`Backend::embed`]'s. The opposite of [`Backend::read_stream`].
    fn stream(&self, tokens: usize, columns: usize, values: &[f32]) -> Self::Stream;

    /// Rows of the embedding table: `out[t] = table[ids[t]]`.
    fn embed(&self, table: &Self::Table, ids: &[u32]) -> Self::Stream;

    /// `out[t] = x[t] / sqrt(mean(x[t]^2) + eps) * gain`, statistics in f32 or wider; without a
    /// gain if that has been folded into the next product.
    fn rms_norm(
        &self,
        x: &Self::Stream,
        gain: Option<&Self::Gain>,
        eps: f64,
        out: &mut Self::Operand,
    );

    /// `rms_norm` kept in f32: the last one of a stack, whose result leaves the engine.
    fn rms_norm_last(&self, x: &Self::Stream, gain: &Self::Gain, eps: f64) -> Self::Stream;

    /// `x W^T`, then the epilogue.
    fn linear(&self, x: &Self::Operand, w: &Self::Matrix, epilogue: Epilogue<'_, Self>);

    /// `softmax(q k^T + bias) v` inside each row, without T5's absent `1/sqrt(d_kv)`; `out` is
    /// `[tokens, n_heads * d_kv]`. A query that sees no key attends to all keys of its row
    /// alike, as transformers' eager attention does. The softmax's weights are multiplied by
    /// their head's gain, if there are gains.
    fn attend(&self, attention: &Attention<'_, Self>, out: &mut Self::Operand);

    /// The weights that [`Backend::attend`] gives to values, gains included, in host memory: for
    /// each row of `n` queries and `m` keys `[n_heads, n, m]`, rows end to end. To be looked at:
    /// nothing in a pass reads them, and they are not rounded to the type that values are
    /// weighed in.
    fn attention_weights(&self, attention: &Attention<'_, Self>) -> Result<Vec<f32>>;

    /// Appends to each row of `cache` the keys and values that stand in `kv` from column
    /// `first_column` on (`n_heads * d_kv` of each), rows as in `row_starts`.
    fn append_kv(
        &self,
        cache: &mut Self::KvCache,
        kv: &Self::Operand,
        first_column: usize,
        row_starts: &[usize],
    );

    /// Row `i` of `cache` becomes what row `rows[i]` was, or an empty row for `None`. A row that is
    /// named more than once goes on in several ways, each by itself; one that is not named is
    /// dropped.
    fn arrange_kv(&self, cache: &mut Self::KvCache, rows: &[Option<usize>]);

    /// Row `i` of `cache` forgets its tokens from `lengths[i]` on; it has at least so many.
    fn truncate_kv(&self, cache: &mut Self::KvCache, lengths: &[usize]);

    /// The stream as an operand, for products that read it without a norm between: those of
    /// cross-attention's keys and values.
    fn cast(&self, x: &Self::Stream, out: &mut Self::Operand);

    /// `scale * x W^T` over the vocabulary.
    fn logits(&self, x: &Self::Stream, head: &Self::Matrix, scale: f32) -> Self::Logits;

    /// For each row of `x` the `k` most likely tokens (all if there are fewer), most likely first and
    /// the lower id first among equals, with their log-probabilities: what [`Backend::logits`] says,
    /// which a backend may do without writing out. NaN is above all numbers.
    fn top(
        &self,
        x: &Self::Stream,
        head: &Self::Matrix,
        scale: f32,
        k: usize,
    ) -> Result<Vec<Vec<Chosen>>>;

    /// One vector a row, `[rows, d_model]`; zeros for an empty row.
    fn pool(&self, x: &Self::Stream, row_starts: &[usize], pool: Pool) -> Result<Vec<f32>>;

    /// Waits until the stream is computed.
    ///
    /// # Errors
    ///
    /// What kept it from being computed.
    fn finish(&self, x: &Self::Stream) -> Result<()> {
        let _ = x;
        Ok(())
    }

    /// Puts tokens of the stream into a device's memory, in some order and another type, and in
    /// the order of the queue that `out` names.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) if the backend's results are in
    /// host memory; what kept the stream from being computed.
    ///
    /// # Safety
    ///
    /// `out` has room, as [`DeviceOutput`] says.
    unsafe fn write_stream(&self, x: &Self::Stream, out: &DeviceOutput<'_>) -> Result<()> {
        let _ = (x, out);
        Err(Error::unsupported(format!(
            "results of the {} backend are in host memory",
            self.name()
        )))
    }

    /// A copy of the stream in host memory, `[tokens, d_model]`.
    fn read_stream(&self, x: &Self::Stream) -> Result<Vec<f32>>;

    /// A copy of the logits in host memory, `[rows, vocab]`.
    fn read_logits(&self, logits: &Self::Logits) -> Result<Vec<f32>>;

    /// `ln(sum(e^x))` of each row of logits, by which a score becomes a log-probability.
    fn log_sums(&self, logits: &Self::Logits) -> Result<Vec<f64>>;
}
