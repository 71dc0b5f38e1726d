//! NVIDIA GPUs, through the kernels and products of [`quintic_cuda`].
//!
//! Operations are queued on one stream of the device and run behind the program's back; the
//! program waits where a result reaches the host. What a batch looks like (row bounds, masks,
//! tiles of attention) is uploaded once a pass. Passes that come again are recorded as one graph
//! for each number of tokens, rounded up; the tokens that are missing form a row of
//! their own that nobody reads.
//!
//! # Numerics
//!
//! The residual stream is f32: the two products that end in it add to it in f32, so that no sum
//! passes through 16 bits. Operands are f32, bf16 or f16 as [`Compute`] says; gate and up are
//! rounded to that type before they meet in f32. In f16, the two places that T5 overflows get a
//! power of two each, found while running. The softmax is f32, its weights are
//! rounded to the operand type.
//!
//! The same row has the same bits in every batch of the same form; in others the products may
//! sum in another order.

mod attention;
mod contents;
mod form;
mod inputs;
mod pass;
mod scales;
mod weights;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, ReentrantMutex, ReentrantMutexGuard};
use quintic_cuda::device::{Address, Device, Element, Product};
use quintic_cuda::memory::{Buffer, Memory};
use quintic_cuda::parameters::{Convert, Embed, Gate, RmsNorm};
use quintic_cuda::{self as cuda, kernels};

use super::choose::{log_sums, top};
use super::{
    Attention, Backend, Buckets, Chosen, DeviceOutput, Epilogue, Pool, Scale, Visible, Weights,
    Widths,
};
use crate::batch::PackedBatch;
use crate::compute::{Compute, ComputeType, MatmulPrecision};
use crate::config::Activation;
use crate::keep::Site;
use crate::tensor::Tensor;
use crate::weight_type::{ProductKind, WeightType};
use crate::{Error, ErrorKind, Result};

pub use attention::KvCache;
pub use contents::{Operand, Stream};
pub use quintic_cuda::device::Description;

use contents::Contents;
use inputs::Inputs;
use pass::Recordings;
use scales::Scales;
pub use weights::{Bias, Gain, Matrix, Table};

/// The CUDA backend. See the [module](self) docs.
#[derive(Debug)]
pub struct Cuda {
    compute: Compute,
    element: Element,
    /// Of weights, inputs and results.
    memory: Arc<Memory>,
    /// Of what is inside recorded passes: it must not be in anybody's hands when they are run
    /// again.
    scratch: Arc<Memory>,
    is_recording: AtomicBool,
    /// Held while something is queued: a recorded pass must not be mixed with another's work.
    order: ReentrantMutex<()>,
    /// Of the batch that attention was computed for last.
    inputs: Mutex<Option<Arc<Inputs>>>,
    recordings: Mutex<Recordings>,
    scales: Scales,
}

impl Cuda {
    /// The backend on a device.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Device`] if its memory gives out; [`ErrorKind::Unsupported`] for weights in
    /// integers.
    pub fn new(device: Arc<dyn Device>, compute: &Compute) -> Result<Self> {
        if compute.weights != WeightType::AsStored {
            return Err(Error::unsupported(format!(
                "the cuda backend does not keep weights as `{}`",
                compute.weights.name()
            ))
            .hint("only the cpu backend does"));
        }
        let element = match (compute.dtype, compute.matmul_precision) {
            (ComputeType::Bf16, _) | (ComputeType::F32, MatmulPrecision::Medium) => Element::Bf16,
            (ComputeType::F16, _) => Element::F16,
            (ComputeType::F32, MatmulPrecision::Highest | MatmulPrecision::High) => Element::F32,
        };
        let memory = Memory::new(Arc::clone(&device));
        Ok(Cuda {
            compute: *compute,
            element,
            scales: Scales::new(&memory).map_err(failed)?,
            scratch: Memory::new(device),
            memory,
            is_recording: AtomicBool::new(false),
            order: ReentrantMutex::new(()),
            inputs: Mutex::new(None),
            recordings: Mutex::new(Recordings::default()),
        })
    }

    /// The device.
    pub fn device(&self) -> &Arc<dyn Device> {
        self.memory.device()
    }

    /// Waits until nobody else queues anything.
    fn order(&self) -> ReentrantMutexGuard<'_, ()> {
        self.order.lock()
    }

    fn buffer(&self, bytes: usize) -> cuda::Result<Buffer> {
        match self.is_recording.load(Ordering::Relaxed) {
            true => self.scratch.buffer(bytes),
            false => match self.memory.buffer(bytes) {
                Err(cuda::Error::OutOfMemory { .. }) => {
                    // What recorded passes keep is less worth than a pass.
                    self.recordings.lock().clear();
                    self.scratch.trim();
                    self.memory.buffer(bytes)
                }
                result => result,
            },
        }
    }

    /// A buffer for `count` values.
    fn contents(&self, count: usize, element: Element) -> Contents {
        self.buffer(count * element.bytes())
    }

    /// `out (+)= alpha * x w^T`.
    fn multiply(
        &self,
        x: &Operand,
        w: &Matrix,
        out: &Buffer,
        result: Element,
        factor: f32,
        accumulate: bool,
    ) -> cuda::Result<()> {
        assert_eq!(x.columns, w.depth, "columns of x and depth of w");
        let x_contents = x.contents()?;
        assert!(
            out.bytes() >= x.tokens * w.columns * result.bytes(),
            "result of {} x {}",
            x.tokens,
            w.columns
        );
        if x.tokens == 0 {
            return Ok(());
        }
        let product = Product {
            tokens: x.tokens,
            columns: w.columns,
            depth: w.depth,
            x: x_contents.address(),
            w: w.values.address(),
            out: out.address(),
            factors: self.element,
            result,
            alpha: factor / x.scale,
            accumulate,
            tune: form::is_round(x.tokens),
        };
        // SAFETY: x is [tokens, depth], w [columns, depth] of the backend's element, as they were
        // allocated; the result was checked.
        unsafe { self.device().multiply(&product) }
    }

    /// A product, then an activation or a gate.
    fn feed_forward(
        &self,
        x: &Operand,
        w: &Matrix,
        act: Activation,
        out: &mut Operand,
    ) -> cuda::Result<()> {
        let columns = w.columns / (1 + usize::from(w.gated));
        out.check_shape(x.tokens, columns);
        let product = self.contents(x.tokens * w.columns, self.element)?;
        let (scale, peaks) = match self.element {
            Element::F16 => (self.scales.of(w.slot), self.scales.peaks_of(w.slot)),
            _ => (Scale::default(), Address::NULL),
        };
        let (inner, outer) = (scale.inner_factor(), scale.outer_factor());
        self.multiply(x, w, &product, self.element, inner, false)?;
        out.scale = outer;
        let gate = Gate {
            input: product.address(),
            out: out.contents()?.address(),
            peaks,
            tokens: x.tokens as u32,
            columns: columns as u32,
            activation: activation(act) as u32,
            gated: u32::from(w.gated),
            in_scale: 1.0 / inner,
            out_scale: outer,
        };
        // SAFETY: the product is [tokens, w.columns], `out` was checked to be [tokens, columns],
        // both of the backend's element.
        unsafe { kernels::gate(self.device().as_ref(), self.element, &gate) }
    }

    fn norm(
        &self,
        x: &Stream,
        gain: Option<&Gain>,
        eps: f64,
        out: &Buffer,
        element: Element,
    ) -> cuda::Result<()> {
        assert!(out.bytes() >= x.tokens * x.columns * element.bytes());
        if let Some(gain) = gain {
            assert_eq!(gain.0.bytes(), 4 * x.columns, "gains of a norm");
        }
        let norm = RmsNorm {
            x: x.contents()?.address(),
            gain: gain.map_or(Address::NULL, |gain| gain.0.address()),
            out: out.address(),
            overflow: match self.element {
                Element::F16 => self.scales.overflow(),
                _ => Address::NULL,
            },
            columns: x.columns as u32,
            eps: eps as f32,
        };
        // SAFETY: x is [tokens, columns], the rest was checked.
        unsafe { kernels::rms_norm(self.device().as_ref(), element, x.tokens, &norm) }
    }
}

/// The CUDA devices of this machine.
///
/// # Errors
///
/// [`ErrorKind::Unsupported`] if there is no driver, or none that works.
pub fn devices() -> Result<Vec<Description>> {
    cuda::driver::devices().map_err(failed)
}

/// A device's error as one of this crate.
pub(crate) fn failed(error: cuda::Error) -> Error {
    match error {
        cuda::Error::Unavailable(what) => Error::unsupported(what),
        error @ cuda::Error::OutOfMemory { .. } => Error::new(ErrorKind::Device, error.to_string())
            .hint("encode fewer tokens at once, or in a smaller type"),
        cuda::Error::Failed(what) => Error::new(ErrorKind::Device, what),
    }
}

/// The refusal of a model that is packed for the CPU.
pub(crate) fn refuse_packed() -> Error {
    Error::unsupported(
        "the model is packed for the cpu backend, but the cuda backend computes from weights as \
         they were published",
    )
    .hint("name the model that was packed")
}

fn activation(activation: Activation) -> kernels::Activation {
    match activation {
        Activation::Relu => kernels::Activation::Relu,
        Activation::GeluTanh => kernels::Activation::GeluTanh,
        Activation::GeluErf => kernels::Activation::GeluErf,
        Activation::QuickGelu => kernels::Activation::QuickGelu,
        Activation::Silu => kernels::Activation::Silu,
        Activation::Tanh => kernels::Activation::Tanh,
        Activation::Sigmoid => kernels::Activation::Sigmoid,
        Activation::Linear => kernels::Activation::Linear,
    }
}

impl Backend for Cuda {
    type Table = Table;
    type Gain = Gain;
    type Matrix = Matrix;
    type Bias = Bias;
    type Stream = Stream;
    type Operand = Operand;
    type KvCache = KvCache;
    type Logits = Stream;

    fn name(&self) -> &'static str {
        "cuda"
    }

    fn isa(&self) -> Option<&'static str> {
        Some(match self.device().description().capability {
            (8, 0) => "sm_80",
            (8, 6) => "sm_86",
            (8, 7) => "sm_87",
            (8, 9) => "sm_89",
            (9, _) => "sm_90",
            (10, _) => "sm_100",
            (12, _) => "sm_120",
            _ => "sm",
        })
    }

    fn threads(&self) -> usize {
        1
    }

    fn bytes_per_token(&self, widths: &Widths) -> u64 {
        let halves = 1 + usize::from(widths.gated);
        let operands = widths.d_model + 4 * widths.inner + (1 + halves) * widths.d_ff;
        let streams = 3 * widths.d_model * size_of::<f32>();
        (operands * self.element.bytes() + streams) as u64
    }

    fn folds_gains(&self) -> bool {
        self.compute.fold_norm_gains
    }

    fn prepare_table(&self, table: Tensor) -> Result<Table> {
        let _order = self.order();
        weights::table(self, &table)
    }

    fn prepare_gain(&self, gain: Tensor) -> Result<Gain> {
        let _order = self.order();
        let buffer = self.memory.upload(&gain.to_f32()).map_err(failed)?;
        Ok(Gain(buffer))
    }

    fn prepare_matrix(&self, weights: Weights, gain: Option<Tensor>) -> Result<Matrix> {
        let _order = self.order();
        weights::matrix(self, weights, gain)
    }

    fn prepare_product(
        &self,
        site: Site,
        weights: Weights,
        gain: Option<Tensor>,
    ) -> Result<Matrix> {
        let matrix = self.prepare_matrix(weights, gain)?;
        if self.element == Element::F16 && site.kind == ProductKind::Wi {
            self.scales.name(matrix.slot, site);
        }
        Ok(matrix)
    }

    fn start_scales(&self, known: &[(Site, Scale)]) {
        let _order = self.order();
        self.scales.start(known);
        // Scales are numbers inside what was recorded.
        self.recordings.lock().clear();
    }

    fn passes_again(&self) -> Option<u64> {
        (self.element == Element::F16).then(|| self.scales.n_again())
    }

    fn prepare_bias(&self, table: Tensor, buckets: Buckets) -> Result<Bias> {
        let _order = self.order();
        weights::bias(self, &table, &buckets)
    }

    fn operand(&self, tokens: usize, columns: usize) -> Operand {
        let _order = self.order();
        Operand::new(
            tokens,
            columns,
            self.contents(tokens * columns, self.element),
        )
    }

    fn kv_cache(&self, rows: usize, n_heads: usize, d_kv: usize) -> KvCache {
        KvCache::new(rows, n_heads * d_kv)
    }

    fn stream(&self, tokens: usize, columns: usize, values: &[f32]) -> Stream {
        assert_eq!(values.len(), tokens * columns, "values of a stream");
        let _order = self.order();
        Stream::new(tokens, columns, self.memory.upload(values))
    }

    fn embed(&self, table: &Table, ids: &[u32]) -> Stream {
        let _order = self.order();
        let contents = (|| {
            let out = self.contents(ids.len() * table.columns, Element::F32)?;
            let known = self.inputs.lock().clone().filter(|own| own.ids() == ids);
            // An upload waits for its bytes, and the buffer may be reused once work is queued.
            let uploaded = match known {
                Some(_) => None,
                None => Some(self.memory.upload(ids)?),
            };
            let address = match (&known, &uploaded) {
                (Some(inputs), _) => inputs.addresses().ids,
                (None, Some(buffer)) => buffer.address(),
                (None, None) => Address::NULL,
            };
            let p = Embed {
                table: table.values.address(),
                ids: address,
                out: out.address(),
                columns: table.columns as u32,
                unused: 0,
            };
            // SAFETY: `out` has room for a row of the table each id; ids were checked to lie in
            // the vocabulary when the batch was made.
            unsafe { kernels::embed(self.device().as_ref(), table.element, ids.len(), &p)? };
            Ok(out)
        })();
        Stream::new(ids.len(), table.columns, contents)
    }

    fn rms_norm(&self, x: &Stream, gain: Option<&Gain>, eps: f64, out: &mut Operand) {
        let _order = self.order();
        out.check_shape(x.tokens, x.columns);
        out.scale = 1.0;
        let result = out
            .contents()
            .and_then(|buffer| self.norm(x, gain, eps, buffer, self.element));
        out.fail(result);
    }

    fn rms_norm_last(&self, x: &Stream, gain: &Gain, eps: f64) -> Stream {
        let _order = self.order();
        let contents = self
            .contents(x.tokens * x.columns, Element::F32)
            .and_then(|out| {
                self.norm(x, Some(gain), eps, &out, Element::F32)?;
                Ok(out)
            });
        Stream::new(x.tokens, x.columns, contents)
    }

    fn linear(&self, x: &Operand, w: &Matrix, epilogue: Epilogue<'_, Self>) {
        let _order = self.order();
        match epilogue {
            Epilogue::Store(out) => {
                assert!(!w.gated, "a gated matrix needs a gate");
                out.check_shape(x.tokens, w.columns);
                out.scale = 1.0;
                let result = out
                    .contents()
                    .and_then(|buffer| self.multiply(x, w, buffer, self.element, 1.0, false));
                out.fail(result);
            }
            Epilogue::Add(stream) => {
                assert!(!w.gated, "a gated matrix needs a gate");
                assert_eq!(
                    (stream.tokens, stream.columns),
                    (x.tokens, w.columns),
                    "the stream that a product is added to"
                );
                let result = stream
                    .contents()
                    .and_then(|buffer| self.multiply(x, w, buffer, Element::F32, 1.0, true));
                stream.fail(result);
            }
            Epilogue::Activate(act, out) => {
                assert!(!w.gated, "a gated matrix needs a gate");
                let result = self.feed_forward(x, w, act, out);
                out.fail(result);
            }
            Epilogue::Gate(act, out) => {
                assert!(w.gated, "a gate needs a gated matrix");
                let result = self.feed_forward(x, w, act, out);
                out.fail(result);
            }
        }
    }

    fn attend(&self, attention: &Attention<'_, Self>, out: &mut Operand) {
        let _order = self.order();
        let inner = attention.n_heads * attention.d_kv;
        out.check_shape(attention.queries.tokens, inner);
        out.scale = 1.0;
        let result = out
            .contents()
            .and_then(|buffer| attention::attend(self, attention, buffer));
        out.fail(result);
    }

    fn attention_weights(&self, attention: &Attention<'_, Self>) -> Result<Vec<f32>> {
        let _order = self.order();
        attention::weights(self, attention).map_err(failed)
    }

    fn pass(
        &self,
        encoder: u64,
        batch: &PackedBatch,
        repeatable: bool,
        queue: &mut dyn FnMut(&PackedBatch) -> Result<Stream>,
    ) -> Result<Stream> {
        let _order = self.order();
        pass::run(self, encoder, batch, repeatable, queue)
    }

    fn append_kv(
        &self,
        cache: &mut KvCache,
        kv: &Operand,
        first_column: usize,
        row_starts: &[usize],
    ) {
        let _order = self.order();
        cache.append(self, kv, first_column, row_starts);
    }

    fn truncate_kv(&self, cache: &mut KvCache, lengths: &[usize]) {
        cache.truncate(lengths);
    }

    fn arrange_kv(&self, cache: &mut KvCache, rows: &[Option<usize>]) {
        let _order = self.order();
        cache.arrange(self, rows);
    }

    fn cast(&self, x: &Stream, out: &mut Operand) {
        let _order = self.order();
        out.check_shape(x.tokens, x.columns);
        out.scale = 1.0;
        let result = out.contents().and_then(|buffer| {
            let p = Convert {
                src: x.contents()?.address(),
                dst: buffer.address(),
                count: (x.tokens * x.columns) as u64,
                columns: x.columns as u32,
                ..Convert::default()
            };
            // SAFETY: both are [tokens, columns].
            unsafe { kernels::convert(self.device().as_ref(), Element::F32, self.element, &p) }
        });
        out.fail(result);
    }

    fn logits(&self, x: &Stream, head: &Matrix, scale: f32) -> Stream {
        let _order = self.order();
        let mut operand = self.operand(x.tokens, x.columns);
        self.cast(x, &mut operand);
        let contents = (|| {
            let out = self.contents(x.tokens * head.columns, Element::F32)?;
            self.multiply(&operand, head, &out, Element::F32, scale, false)?;
            Ok(out)
        })();
        Stream::new(x.tokens, head.columns, contents)
    }

    fn top(&self, x: &Stream, head: &Matrix, scale: f32, k: usize) -> Result<Vec<Vec<Chosen>>> {
        let logits = self.logits(x, head, scale);
        Ok(top(&self.read_logits(&logits)?, logits.columns, k))
    }

    fn pool(&self, x: &Stream, row_starts: &[usize], pool: Pool) -> Result<Vec<f32>> {
        let _order = self.order();
        contents::pool(self, x, row_starts, pool).map_err(failed)
    }

    fn finish(&self, x: &Stream) -> Result<()> {
        x.contents()
            .and_then(|_| self.device().wait())
            .map_err(failed)
    }

    unsafe fn write_stream(&self, x: &Stream, out: &DeviceOutput<'_>) -> Result<()> {
        let _order = self.order();
        // SAFETY: the caller's.
        unsafe { contents::write(self, x, out) }.map_err(failed)
    }

    fn read_stream(&self, x: &Stream) -> Result<Vec<f32>> {
        let _order = self.order();
        x.contents()
            .and_then(|contents| contents.read(0, x.tokens * x.columns))
            .map_err(failed)
    }

    fn read_logits(&self, logits: &Stream) -> Result<Vec<f32>> {
        self.read_stream(logits)
    }

    fn log_sums(&self, logits: &Stream) -> Result<Vec<f64>> {
        Ok(log_sums(&self.read_logits(logits)?, logits.columns))
    }
}

#[cfg(test)]
mod scale_tests;
#[cfg(test)]
mod tests;
