//! The usual way in: a model folder, file or repository id becomes something that turns
//! token ids into hidden states.

use std::path::Path;
use std::sync::Arc;

use crate::Result;
use crate::backend::cpu::Cpu;
use crate::backend::reference::Reference;
use crate::backend::{Backend, DeviceOutput, Pool, Scale, Widths};
use crate::batch::{self, PackedBatch};
use crate::checkpoint::Checkpoint;
use crate::compute::Compute;
use crate::config::T5Config;
use crate::keep::Site;
use crate::loading::{self, BackendKind, Build, Files, LoadOptions, build_on, open_cuda};
use crate::model::{Encoder, EncoderWeights, Interrupted, Pass, TakeTensor};
use crate::sentence::SentenceHead;

/// Hidden states of a packed batch in host memory.
#[derive(Clone, Debug, PartialEq)]
pub struct HiddenStates {
    /// After the last norm, `[tokens, d_model]`.
    pub last: Vec<f32>,
    /// If asked for: embeddings and the stream after each layer but the last, each
    /// `[tokens, d_model]`.
    pub inner: Vec<Vec<f32>>,
    /// If asked for: of each layer, for each row of length `n`, the softmax's weights
    /// `[n_heads, n, n]` (query, key) after multiplication by the heads' gains, rows end to end.
    pub attentions: Vec<Vec<f32>>,
}

/// How [`TextEncoder::encode_rows_with`] keeps in touch with its caller; by default it does not.
#[derive(Clone, Copy, Default)]
pub struct RowsOptions<'a> {
    /// Asked before each layer of each batch; true ends it with [`ErrorKind::Interrupted`](crate::ErrorKind::Interrupted).
    pub interrupted: Option<Interrupted<'a>>,
    /// Told after each batch how many rows are done, and of how many.
    pub progress: Option<&'a (dyn Fn(usize, usize) + Sync)>,
}

/// An encoder on whatever backend, behind one pointer.
pub(crate) trait Encode: Send + Sync {
    fn run(&self, batch: &PackedBatch, pass: &Pass<'_>) -> Result<HiddenStates>;
    fn run_pooled(&self, batch: &PackedBatch, pool: Pool, pass: &Pass<'_>) -> Result<Vec<f32>>;
    fn run_there(&self, batch: &PackedBatch) -> Result<()>;
    /// # Safety
    ///
    /// As [`TextEncoder::run_into`].
    unsafe fn run_into(
        &self,
        batch: &PackedBatch,
        pass: &Pass<'_>,
        out: &DeviceOutput<'_>,
    ) -> Result<()>;
    fn backend_name(&self) -> &'static str;
    fn isa(&self) -> Option<&'static str>;
    fn threads(&self) -> usize;
    fn bytes_per_token(&self, widths: &Widths) -> u64;
    fn start_scales(&self, known: &[(Site, Scale)]);
    fn passes_again(&self) -> Option<u64>;
}

impl<B: Backend> Encode for Encoder<B> {
    fn run(&self, batch: &PackedBatch, pass: &Pass<'_>) -> Result<HiddenStates> {
        let encoded = self.encode(batch, pass)?;
        Ok(HiddenStates {
            last: self.backend().read_stream(&encoded.last)?,
            inner: encoded.inner,
            attentions: encoded.attentions,
        })
    }

    fn run_pooled(&self, batch: &PackedBatch, pool: Pool, pass: &Pass<'_>) -> Result<Vec<f32>> {
        self.pool(&self.encode(batch, pass)?, batch, pool)
    }

    unsafe fn run_into(
        &self,
        batch: &PackedBatch,
        pass: &Pass<'_>,
        out: &DeviceOutput<'_>,
    ) -> Result<()> {
        let encoded = self.encode(batch, pass)?;
        // SAFETY: the caller's.
        unsafe { self.backend().write_stream(&encoded.last, out) }
    }

    fn run_there(&self, batch: &PackedBatch) -> Result<()> {
        let encoded = self.encode(batch, &Pass::default())?;
        self.backend().finish(&encoded.last)
    }

    fn backend_name(&self) -> &'static str {
        self.backend().name()
    }

    fn isa(&self) -> Option<&'static str> {
        self.backend().isa()
    }

    fn threads(&self) -> usize {
        self.backend().threads()
    }

    fn bytes_per_token(&self, widths: &Widths) -> u64 {
        self.backend().bytes_per_token(widths)
    }

    fn start_scales(&self, known: &[(Site, Scale)]) {
        self.backend().start_scales(known);
    }

    fn passes_again(&self) -> Option<u64> {
        self.backend().passes_again()
    }
}

/// A loaded text encoder. Immutable; share it by reference between threads.
pub struct TextEncoder {
    encoder: Arc<dyn Encode>,
    config: T5Config,
    files: Files,
    compute: Compute,
}

impl TextEncoder {
    /// Loads the encoder at `model`: a folder, a weight file or a cached repository id.
    ///
    /// Weights stay in the files, memory-mapped in their own type, or are packed for the
    /// backend; those of a [packed](crate::packed) model are used where they are.
    ///
    /// # Errors
    ///
    /// Of the kind that names the culprit: not found, config, checkpoint, unsupported.
    pub fn load(model: &str, options: &LoadOptions) -> Result<Self> {
        let checkpoint = options.open(model)?;
        // What a backend refuses is not for the choice to find out.
        let packed = match options.backend.reads_packed() {
            true => checkpoint.packed(),
            false => None,
        };
        let compute = options.compute.resolve(packed)?;
        Self::from_checkpoint(&checkpoint, options.backend, &compute)
    }

    /// Loads the encoder of an opened checkpoint.
    ///
    /// # Errors
    ///
    /// As [`TextEncoder::load`].
    pub fn from_checkpoint(
        checkpoint: &Checkpoint,
        backend: BackendKind,
        compute: &Compute,
    ) -> Result<Self> {
        let (encoder, config, files) = loading::from_checkpoint(checkpoint, |config, source| {
            build_on(backend, compute, LoadEncoder, config, source)
        })?;
        Ok(Self::of(encoder, config, files, compute))
    }

    /// Loads the encoder of an opened checkpoint on a backend that is there already.
    pub(crate) fn on<B: Backend + 'static>(
        backend: B,
        checkpoint: &Checkpoint,
        compute: &Compute,
    ) -> Result<Self> {
        let (encoder, config, files) = loading::from_checkpoint(checkpoint, |config, source| {
            LoadEncoder.build(backend, config, source)
        })?;
        Ok(Self::of(encoder, config, files, compute))
    }

    pub(crate) fn of(
        encoder: Arc<dyn Encode>,
        config: T5Config,
        files: Files,
        compute: &Compute,
    ) -> Self {
        TextEncoder {
            encoder,
            config,
            files,
            compute: *compute,
        }
    }

    /// An encoder whose tensors come from anywhere, such as a test or a benchmark.
    ///
    /// # Errors
    ///
    /// As [`Encoder::load`].
    pub fn from_source(
        config: T5Config,
        source: &mut dyn TakeTensor,
        backend: BackendKind,
        compute: &Compute,
    ) -> Result<Self> {
        let encoder = build_on(backend, compute, LoadEncoder, &config, source)?;
        Ok(Self::of(encoder, config, Files::none(), compute))
    }

    /// Where config.json is, and what belongs to it may be.
    pub(crate) fn folder(&self) -> Option<&Path> {
        self.files.folder.as_deref()
    }

    /// The model's config.
    pub fn config(&self) -> &T5Config {
        &self.config
    }

    /// Pooling, dense layers and normalisation of a sentence-transformers folder; `None` if
    /// the model is none. Opened when asked for: hidden states do not depend on it.
    ///
    /// # Errors
    ///
    /// As [`SentenceHead::open`].
    pub fn sentence_head(&self) -> Result<Option<SentenceHead>> {
        match self.folder() {
            Some(folder) => SentenceHead::open(folder, self.config.d_model),
            None => Ok(None),
        }
    }

    /// How it computes.
    pub fn compute(&self) -> &Compute {
        &self.compute
    }

    /// Name of the backend that computes.
    pub fn backend_name(&self) -> &'static str {
        self.encoder.backend_name()
    }

    /// The file or folder that was loaded.
    pub fn path(&self) -> &Path {
        &self.files.path
    }

    /// Tensors of the checkpoint that are neither the encoder's nor those of the rest of a
    /// T5 (decoder, output head): worth a warning.
    pub fn surplus_tensors(&self) -> impl Iterator<Item = &str> {
        self.files
            .unused_tensors
            .iter()
            .map(String::as_str)
            .filter(|name| !EncoderWeights::belongs_to_the_rest(name))
    }

    /// Bytes of the encoder's tensors in their stored type: what is read from the files.
    pub fn weight_bytes(&self) -> u64 {
        self.files.weight_bytes
    }

    /// The instruction set that the backend uses, if that is a choice.
    pub fn isa(&self) -> Option<&'static str> {
        self.encoder.isa()
    }

    /// Threads that the backend computes on.
    pub fn threads(&self) -> usize {
        self.encoder.threads()
    }

    /// Starts feed-forward layers with powers of two that are known already, see
    /// [`crate::calibrate`]. Only the cuda backend has a use for them, in f16; it finds them by
    /// running passes again otherwise. What is known is never lowered.
    pub fn start_scales(&self, known: &[(Site, Scale)]) {
        self.encoder.start_scales(known);
    }

    /// Passes that were run again so far, with other powers of two, since f16 had not held a value;
    /// `None` for backends and types with which that does not happen.
    pub fn passes_again(&self) -> Option<u64> {
        self.encoder.passes_again()
    }

    /// Bytes that encoding holds at once for each token of a batch: the residual stream, the
    /// operands of a layer's products and the result.
    pub fn activation_bytes_per_token(&self) -> u64 {
        self.encoder.bytes_per_token(&widths(&self.config)) + result_bytes(&self.config)
    }

    /// Hidden states of every token of `batch`; `keep_inner` also keeps those between the
    /// layers.
    ///
    /// # Errors
    ///
    /// As [`TextEncoder::run`]; on the CPU there is none.
    pub fn hidden_states(&self, batch: &PackedBatch, keep_inner: bool) -> Result<HiddenStates> {
        let pass = Pass {
            keep_inner,
            ..Pass::default()
        };
        self.run(batch, &pass)
    }

    /// One vector a row, `[rows, d_model]`.
    ///
    /// # Errors
    ///
    /// As [`TextEncoder::run`]; on the CPU there is none.
    pub fn pooled(&self, batch: &PackedBatch, pool: Pool) -> Result<Vec<f32>> {
        self.run_pooled(batch, pool, &Pass::default())
    }

    /// Hidden states of every token of `batch`, and what else `pass` asks for.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Input`](crate::ErrorKind::Input) if a list of `pass` has a wrong length, [`ErrorKind::Interrupted`](crate::ErrorKind::Interrupted) if
    /// the pass is. The encoder is as useful after an error as before.
    pub fn run(&self, batch: &PackedBatch, pass: &Pass<'_>) -> Result<HiddenStates> {
        self.encoder.run(batch, pass)
    }

    /// One vector a row, `[rows, d_model]`. What `pass` asks to keep is not kept.
    ///
    /// # Errors
    ///
    /// As [`TextEncoder::run`].
    pub fn run_pooled(&self, batch: &PackedBatch, pool: Pool, pass: &Pass<'_>) -> Result<Vec<f32>> {
        let pass = Pass {
            keep_inner: false,
            keep_attentions: false,
            ..*pass
        };
        self.encoder.run_pooled(batch, pool, &pass)
    }

    /// Hidden states of the tokens that `out` names, written to a device's memory in the order of
    /// a queue of that device; the host waits for nothing but, in f16, to see whether 16 bits
    /// have held everything. What `pass` asks to keep is not kept.
    ///
    /// # Errors
    ///
    /// As [`TextEncoder::run`], and [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) if the backend's results are in
    /// host memory.
    ///
    /// # Safety
    ///
    /// The memory that `out` names has room for its rows, is on the device that the encoder is
    /// on, and stays until what is queued there now has run; its queue is a stream of that
    /// device.
    pub unsafe fn run_into(
        &self,
        batch: &PackedBatch,
        pass: &Pass<'_>,
        out: &DeviceOutput<'_>,
    ) -> Result<()> {
        let pass = Pass {
            keep_inner: false,
            keep_attentions: false,
            ..*pass
        };
        // SAFETY: the caller's.
        unsafe { self.encoder.run_into(batch, &pass, out) }
    }

    /// Computes the hidden states of every token of `batch` and leaves them where they were
    /// computed: for measurements of what a pass takes without its result's way to the host.
    ///
    /// # Errors
    ///
    /// As [`TextEncoder::run`].
    pub fn run_there(&self, batch: &PackedBatch) -> Result<()> {
        self.encoder.run_there(batch)
    }

    /// Encodes any number of rows in batches of at most `max_tokens` tokens, see
    /// [`batch::plan`]; the results stand in the order of `rows`. Of each row, one vector
    /// `[d_model]`, or without a `pool` hidden states `[len, d_model]`. Memory beyond the
    /// results is bounded by `max_tokens` or the longest row.
    ///
    /// A row's result has the same bits in whatever batch it is computed.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Input`](crate::ErrorKind::Input) if an id is not below `vocab_size`, before
    /// anything is computed.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> quintic::Result<()> {
    /// use quintic::backend::Pool;
    /// use quintic::{LoadOptions, TextEncoder};
    ///
    /// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/goldens/byt5");
    /// let encoder = TextEncoder::load(folder, &LoadOptions::default())?;
    /// // Token ids of three texts, each with its end token.
    /// let rows = [vec![17, 5, 1], vec![17, 9, 33, 5, 1], vec![8, 1]];
    ///
    /// let vectors = encoder.encode_rows(&rows, 4096, Some(Pool::Mean))?;
    /// assert_eq!(vectors.len(), rows.len());
    /// assert_eq!(vectors[0].len(), encoder.config().d_model);
    ///
    /// let states = encoder.encode_rows(&rows, 4096, None)?;
    /// assert_eq!(states[2].len(), rows[2].len() * encoder.config().d_model);
    /// # Ok(())
    /// # }
    /// ```
    pub fn encode_rows<R: AsRef<[u32]>>(
        &self,
        rows: &[R],
        max_tokens: usize,
        pool: Option<Pool>,
    ) -> Result<Vec<Vec<f32>>> {
        self.encode_rows_with(rows, max_tokens, pool, &RowsOptions::default())
    }

    /// As [`TextEncoder::encode_rows`], for callers that want to hear of it or to end it early.
    ///
    /// # Errors
    ///
    /// As [`TextEncoder::encode_rows`], and [`ErrorKind::Interrupted`](crate::ErrorKind::Interrupted) if it is.
    pub fn encode_rows_with<R: AsRef<[u32]>>(
        &self,
        rows: &[R],
        max_tokens: usize,
        pool: Option<Pool>,
        options: &RowsOptions<'_>,
    ) -> Result<Vec<Vec<f32>>> {
        let pass = Pass {
            interrupted: options.interrupted,
            ..Pass::default()
        };
        let (vocab_size, d_model) = (self.config.vocab_size, self.config.d_model);
        batch::check_rows(rows, vocab_size)?;
        let lengths: Vec<usize> = rows.iter().map(|row| row.as_ref().len()).collect();
        let mut results = vec![Vec::new(); rows.len()];
        let mut n_done = 0;
        for batch in batch::plan(&lengths, max_tokens) {
            let ids: Vec<&[u32]> = batch.iter().map(|&row| rows[row].as_ref()).collect();
            let packed = PackedBatch::from_rows(&ids, vocab_size)?;
            let mut rest = match pool {
                Some(pool) => self.run_pooled(&packed, pool, &pass)?,
                None => self.run(&packed, &pass)?.last,
            };
            n_done += batch.len();
            // From the end, so that nothing is moved twice.
            for row in batch.into_iter().rev() {
                let n = if pool.is_some() { 1 } else { lengths[row] };
                results[row] = rest.split_off(rest.len() - n * d_model);
            }
            if let Some(progress) = options.progress {
                progress(n_done, rows.len());
            }
        }
        Ok(results)
    }
}

/// What [`TextEncoder::activation_bytes_per_token`] would say, without a model.
///
/// # Errors
///
/// If the backend cannot be had on this machine.
pub fn activation_bytes_per_token(
    config: &T5Config,
    backend: BackendKind,
    compute: &Compute,
) -> Result<u64> {
    let widths = widths(config);
    Ok(result_bytes(config)
        + match backend {
            BackendKind::Cpu => Cpu::new(compute)?.bytes_per_token(&widths),
            BackendKind::Reference => Reference.bytes_per_token(&widths),
            BackendKind::Cuda(ordinal) => open_cuda(ordinal, compute)?.bytes_per_token(&widths),
        })
}

fn widths(config: &T5Config) -> Widths {
    Widths {
        d_model: config.d_model,
        inner: config.inner_dim(),
        d_ff: config.d_ff,
        gated: config.feed_forward.gated,
    }
}

/// A token's result in host memory.
fn result_bytes(config: &T5Config) -> u64 {
    (config.d_model * size_of::<f32>()) as u64
}

/// Loads an encoder.
struct LoadEncoder;

impl Build for LoadEncoder {
    type Made = Arc<dyn Encode>;

    fn build<B: Backend + 'static>(
        self,
        backend: B,
        config: &T5Config,
        source: &mut dyn TakeTensor,
    ) -> Result<Self::Made> {
        Ok(Arc::new(Encoder::load(backend, config.clone(), source)?))
    }
}
