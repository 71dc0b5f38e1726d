//! Encoder and decoder together: a path becomes something that turns token ids into other token
//! ids, or into their probabilities.

use std::path::Path;
use std::sync::Arc;

use crate::backend::{Backend, Chosen, Pool, log_total};
use crate::batch::{PackedBatch, check_rows};
use crate::checkpoint::Checkpoint;
use crate::compute::{Compute, ComputeType};
use crate::config::T5Config;
use crate::generate::{
    DecoderRows, GenerateOptions, GenerationConfig, Logits, Request, Sequence, generate,
};
use crate::limits::{MAX_JSON_BYTES, read_file};
use crate::loading::{self, BackendKind, Build, Files, LoadOptions, build_on};
use crate::model::{Decoder, DecoderState, Encoder, Feed, Interrupted, Pass, TakeTensor};
use crate::text_encoder::{Encode, TextEncoder};
use crate::{Error, ErrorKind, Result};

/// Logits that are held at once while a whole sequence is scored, in values.
const LOGITS_AT_ONCE: usize = 16 << 20;

/// What decoder rows attend to.
#[derive(Clone, Copy, Debug)]
pub enum Sources<'a> {
    /// Token ids, a source each; encoded when a row is admitted.
    Ids(&'a [Vec<u32>]),
    /// An encoder's hidden states, `[tokens, d_model]`, sources as in `row_starts`.
    States {
        /// The values.
        values: &'a [f32],
        /// Where sources begin, `[sources + 1]`.
        row_starts: &'a [usize],
    },
}

impl Sources<'_> {
    /// Number of sources.
    pub fn len(&self) -> usize {
        match self {
            Sources::Ids(rows) => rows.len(),
            Sources::States { row_starts, .. } => row_starts.len().saturating_sub(1),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Refuses what no decoder can attend to.
    fn check(&self, config: &T5Config) -> Result<()> {
        let empty = |row: usize| {
            Error::input("a source without tokens, expected at least one")
                .at(format!("source {row}"))
        };
        match *self {
            Sources::Ids(rows) => {
                if let Some(row) = rows.iter().position(Vec::is_empty) {
                    return Err(empty(row));
                }
                check_rows(rows, config.vocab_size)
            }
            Sources::States { values, row_starts } => {
                let tokens = row_starts.last().copied().unwrap_or(0);
                if row_starts.first().is_some_and(|&first| first != 0)
                    || values.len() != tokens * config.d_model
                {
                    return Err(Error::input(format!(
                        "hidden states have {} elements, expected [tokens, d_model] with tokens = \
                         {tokens}, d_model = {}",
                        values.len(),
                        config.d_model
                    )));
                }
                match row_starts.windows(2).position(|b| b[0] >= b[1]) {
                    Some(row) => Err(empty(row)),
                    None => Ok(()),
                }
            }
        }
    }
}

/// A decoder's pass over whole sequences.
#[derive(Clone, Copy)]
pub struct Decode<'a> {
    /// What row `i` attends to: source `i`.
    pub sources: Sources<'a>,
    /// The decoder's input, a row for each source: usually the start token, then the target
    /// without its last token.
    pub rows: &'a [Vec<u32>],
    /// For each row the token whose log-probability is asked for after each token of the input;
    /// `None` asks for none. Rows as long as those of the input.
    pub targets: Option<&'a [Vec<Option<u32>>]>,
    /// Whether to keep the logits.
    pub keep_logits: bool,
    /// Whether to keep the hidden states between the layers.
    pub keep_inner: bool,
    /// Asked before each layer; true ends the pass with
    /// [`ErrorKind::Interrupted`](crate::ErrorKind::Interrupted).
    pub interrupted: Option<Interrupted<'a>>,
}

/// What a [`Decode`] gives.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decoded {
    /// The decoder's hidden states after its last norm, `[tokens, d_model]`, rows end to end.
    pub last: Vec<f32>,
    /// If asked for: embeddings and the stream after each layer but the last, each
    /// `[tokens, d_model]`.
    pub inner: Vec<Vec<f32>>,
    /// If asked for: `[tokens, vocab]`.
    pub logits: Vec<f32>,
    /// If targets were given: the natural logarithm of each one's probability, 0 where there is
    /// no target, `[tokens]`.
    pub log_probs: Vec<f32>,
}

/// A model on whatever backend, behind one pointer.
trait Model: Send + Sync {
    fn rows<'a>(
        &'a self,
        sources: Sources<'a>,
        interrupted: Option<Interrupted<'a>>,
    ) -> Box<dyn DecoderRows + 'a>;
    fn decode(&self, decode: &Decode<'_>) -> Result<Decoded>;
    fn is_tied(&self) -> bool;
}

struct Both<B: Backend> {
    encoder: Arc<Encoder<B>>,
    decoder: Decoder<B>,
}

/// A loaded encoder-decoder model. Immutable; share it by reference between threads.
pub struct Seq2Seq {
    encoder: TextEncoder,
    model: Box<dyn Model>,
}

struct LoadBoth;

/// The encoder is in both: in one of them behind a pointer that forgets the backend.
type Loaded = (Arc<dyn Encode>, Box<dyn Model>);

impl Build for LoadBoth {
    type Made = Loaded;

    fn build<B: Backend + 'static>(
        self,
        backend: B,
        config: &T5Config,
        source: &mut dyn TakeTensor,
    ) -> Result<Loaded> {
        let encoder = Arc::new(Encoder::load(backend, config.clone(), source)?);
        let decoder = Decoder::load(encoder.backend(), config, source)?;
        let both = Both {
            encoder: Arc::clone(&encoder),
            decoder,
        };
        Ok((encoder, Box::new(both)))
    }
}

fn load(
    config: &T5Config,
    source: &mut dyn TakeTensor,
    backend: BackendKind,
    compute: &Compute,
) -> Result<Loaded> {
    if matches!(backend, BackendKind::Cuda(_)) && compute.dtype == ComputeType::F16 {
        return Err(Error::unsupported(
            "decoders are not computed in f16 by the cuda backend, expected `f32` or `bf16`",
        ));
    }
    build_on(backend, compute, LoadBoth, config, source)
}

impl Seq2Seq {
    /// Loads the model at `model`: a folder, a weight file or a cached repository id.
    ///
    /// # Errors
    ///
    /// As [`TextEncoder::load`], and if there is no decoder.
    pub fn load(model: &str, options: &LoadOptions) -> Result<Self> {
        let checkpoint = options.open(model)?;
        let compute = options.compute.resolve(None)?;
        Self::from_checkpoint(&checkpoint, options.backend, &compute)
    }

    /// Loads the model of an opened checkpoint.
    ///
    /// # Errors
    ///
    /// As [`Seq2Seq::load`].
    pub fn from_checkpoint(
        checkpoint: &Checkpoint,
        backend: BackendKind,
        compute: &Compute,
    ) -> Result<Self> {
        let (loaded, config, files) = loading::from_checkpoint(checkpoint, |config, source| {
            load(config, source, backend, compute)
        })?;
        Ok(Self::of(loaded, config, files, compute))
    }

    /// Loads the model of an opened checkpoint on a backend that is there already.
    pub(crate) fn on<B: Backend + 'static>(
        backend: B,
        checkpoint: &Checkpoint,
        compute: &Compute,
    ) -> Result<Self> {
        let (loaded, config, files) = loading::from_checkpoint(checkpoint, |config, source| {
            LoadBoth.build(backend, config, source)
        })?;
        Ok(Self::of(loaded, config, files, compute))
    }

    fn of((encoder, model): Loaded, config: T5Config, files: Files, compute: &Compute) -> Self {
        Seq2Seq {
            encoder: TextEncoder::of(encoder, config, files, compute),
            model,
        }
    }

    /// A model whose tensors come from anywhere, such as a test or a benchmark.
    ///
    /// # Errors
    ///
    /// As [`Seq2Seq::load`].
    pub fn from_source(
        config: T5Config,
        source: &mut dyn TakeTensor,
        backend: BackendKind,
        compute: &Compute,
    ) -> Result<Self> {
        let loaded = load(&config, source, backend, compute)?;
        Ok(Self::of(loaded, config, Files::none(), compute))
    }

    /// The model's encoder, with all that it can do.
    pub fn encoder(&self) -> &TextEncoder {
        &self.encoder
    }

    /// The model's config.
    pub fn config(&self) -> &T5Config {
        self.encoder.config()
    }

    /// Whether the output head is the embedding table.
    pub fn is_tied(&self) -> bool {
        self.model.is_tied()
    }

    /// Where config.json is, of a model from files that has one.
    pub fn folder(&self) -> Option<&Path> {
        self.encoder.folder()
    }

    /// How the model generates unless it is told otherwise: its `generation_config.json`, or the
    /// generation fields of `config.json` where there is none.
    ///
    /// # Errors
    ///
    /// As [`GenerationConfig::of_model`], and if a file cannot be read.
    pub fn generation_config(&self) -> Result<GenerationConfig> {
        let config = self.config();
        let Some(folder) = self.encoder.folder() else {
            return GenerationConfig::of_model(config, None);
        };
        let own = folder.join("generation_config.json");
        let path = match own.exists() {
            true => own,
            false => folder.join("config.json"),
        };
        let bytes = read_file(&path, MAX_JSON_BYTES, ErrorKind::Config)?;
        GenerationConfig::of_model(config, Some(&bytes)).map_err(|e| e.at(path.display()))
    }

    /// Generates from every source, as `config` says, with its start token: the results stand in
    /// the order of the sources, each with `num_return_sequences` sequences, best first.
    ///
    /// # Errors
    ///
    /// As [`Seq2Seq::rows`] and [`generate`].
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> quintic::Result<()> {
    /// use quintic::generate::GenerateOptions;
    /// use quintic::{LoadOptions, Seq2Seq, Sources};
    ///
    /// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/decoder_goldens/byt5");
    /// let model = Seq2Seq::load(folder, &LoadOptions::default())?;
    /// let mut config = model.generation_config()?;
    /// let chosen = serde_json::json!({ "num_beams": 4, "max_new_tokens": 16 });
    /// config.choose(chosen.as_object().expect("an object"))?;
    /// // Ids of two texts, each with its end token.
    /// let sources = [vec![17, 5, 1], vec![8, 20, 31, 1]];
    /// let results =
    ///     model.generate(Sources::Ids(&sources), &config, &GenerateOptions::default())?;
    /// assert!(results[1][0].new_tokens().len() <= 16);
    /// # Ok(())
    /// # }
    /// ```
    pub fn generate(
        &self,
        sources: Sources<'_>,
        config: &GenerationConfig,
        options: &GenerateOptions<'_>,
    ) -> Result<Vec<Vec<Sequence>>> {
        let prefix: Vec<u32> = config.decoder_start_token_id.into_iter().collect();
        let requests: Vec<Request<'_>> = (0..sources.len())
            .map(|source| Request {
                source,
                prefix: &prefix,
                config,
                stop: None,
            })
            .collect();
        let mut rows = self.rows(sources, options.interrupted)?;
        generate(rows.as_mut(), &requests, options, None)
    }

    /// Decoder rows over these sources, none yet: what generation goes on with. `interrupted` is
    /// asked before each layer.
    ///
    /// Each token that a row was fed takes `2 * num_decoder_layers * n_heads * d_kv` values of
    /// memory until the row is dropped, and each token of its source as many, once for all
    /// copies of a row.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Input`](crate::ErrorKind::Input) if a source is empty, an id is not below
    /// `vocab_size` or hidden states have another shape.
    pub fn rows<'a>(
        &'a self,
        sources: Sources<'a>,
        interrupted: Option<Interrupted<'a>>,
    ) -> Result<Box<dyn DecoderRows + 'a>> {
        sources.check(self.config())?;
        Ok(self.model.rows(sources, interrupted))
    }

    /// A pass over whole sequences: every token's hidden states, scores, or the probability of
    /// the token that is known to follow.
    ///
    /// # Numerics
    ///
    /// Log-probabilities are computed in f64 from f32 logits.
    ///
    /// # Errors
    ///
    /// As [`Seq2Seq::rows`]; [`ErrorKind::Input`](crate::ErrorKind::Input) also if rows and
    /// sources or targets do not match; [`ErrorKind::Interrupted`](crate::ErrorKind::Interrupted).
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> quintic::Result<()> {
    /// use quintic::{Decode, LoadOptions, Seq2Seq, Sources};
    ///
    /// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/decoder_goldens/byt5");
    /// let model = Seq2Seq::load(folder, &LoadOptions::default())?;
    /// let source = [vec![17, 5, 1]];
    /// // The start token, then the target; what follows each of them is asked for.
    /// let decoded = model.decode(&Decode {
    ///     sources: Sources::Ids(&source),
    ///     rows: &[vec![0, 8, 9]],
    ///     targets: Some(&[vec![Some(8), Some(9), Some(1)]]),
    ///     keep_logits: false,
    ///     keep_inner: false,
    ///     interrupted: None,
    /// })?;
    /// assert_eq!(decoded.log_probs.len(), 3);
    /// # Ok(())
    /// # }
    /// ```
    pub fn decode(&self, decode: &Decode<'_>) -> Result<Decoded> {
        let config = self.config();
        decode.sources.check(config)?;
        let wrong = |what: &str, found: usize, expected: usize| {
            Err(Error::input(format!(
                "found {found} {what}, expected {expected}"
            )))
        };
        if decode.rows.len() != decode.sources.len() {
            return wrong("decoder rows", decode.rows.len(), decode.sources.len());
        }
        check_rows(decode.rows, config.vocab_size).map_err(|e| e.at("decoder input"))?;
        if let Some(targets) = decode.targets {
            if targets.len() != decode.rows.len() {
                return wrong("rows of targets", targets.len(), decode.rows.len());
            }
            for (row, (targets, ids)) in targets.iter().zip(decode.rows).enumerate() {
                if targets.len() != ids.len() {
                    return wrong(&format!("targets of row {row}"), targets.len(), ids.len());
                }
                let ids: Vec<u32> = targets.iter().flatten().copied().collect();
                check_rows(&[ids], config.vocab_size)
                    .map_err(|e| e.at(format!("targets of row {row}")))?;
            }
        }
        self.model.decode(decode)
    }
}

impl<B: Backend> Model for Both<B> {
    fn rows<'a>(
        &'a self,
        sources: Sources<'a>,
        interrupted: Option<Interrupted<'a>>,
    ) -> Box<dyn DecoderRows + 'a> {
        Box::new(self.no_rows(sources, interrupted))
    }

    fn is_tied(&self) -> bool {
        self.decoder.is_tied()
    }

    fn decode(&self, decode: &Decode<'_>) -> Result<Decoded> {
        let backend = self.encoder.backend();
        let (d_model, vocab) = (
            self.encoder.config().d_model,
            self.encoder.config().vocab_size,
        );
        let mut rows = self.no_rows(decode.sources, decode.interrupted);
        let all: Vec<usize> = (0..decode.rows.len()).collect();
        rows.admit(&all)?;
        let ids: Vec<&[u32]> = decode.rows.iter().map(Vec::as_slice).collect();
        let mut decoded = Decoded::default();
        let (x, _) = rows.feed(&ids, |x| {
            if decode.keep_inner {
                decoded.inner.push(backend.read_stream(x)?);
            }
            Ok(())
        })?;
        if decode.keep_inner {
            // The last is what the last norm reads, which `last` stands for.
            decoded.inner.pop();
        }
        decoded.last = backend.read_stream(&x)?;
        if !decode.keep_logits && decode.targets.is_none() {
            return Ok(decoded);
        }
        let mut targets = decode.targets.into_iter().flatten().flatten();
        for block in decoded
            .last
            .chunks(d_model * (LOGITS_AT_ONCE / vocab.max(1)).max(1))
        {
            let tokens = block.len() / d_model;
            let block = backend.stream(tokens, d_model, block);
            let logits = backend.read_logits(&self.decoder.logits(backend, &block))?;
            if decode.targets.is_some() {
                for scores in logits.chunks_exact(vocab) {
                    let target = targets.next().copied().flatten();
                    decoded.log_probs.push(target.map_or(0.0, |id| {
                        (f64::from(scores[id as usize]) - log_total(scores)) as f32
                    }));
                }
            }
            if decode.keep_logits {
                decoded.logits.extend(logits);
            }
        }
        Ok(decoded)
    }
}

impl<B: Backend> Both<B> {
    fn no_rows<'a>(
        &'a self,
        sources: Sources<'a>,
        interrupted: Option<Interrupted<'a>>,
    ) -> Rows<'a, B> {
        Rows {
            model: self,
            sources,
            interrupted,
            state: self.decoder.state(self.encoder.backend()),
            scored: None,
        }
    }
}

/// Rows of a decoder on its backend.
struct Rows<'a, B: Backend> {
    model: &'a Both<B>,
    sources: Sources<'a>,
    interrupted: Option<Interrupted<'a>>,
    state: DecoderState<B>,
    /// Hidden states of each row's scored tokens, until rows change.
    scored: Option<B::Stream>,
}

impl<B: Backend> Rows<'_, B> {
    fn backend(&self) -> &B {
        self.model.encoder.backend()
    }

    /// Feeds tokens. Gives the hidden states of all of them, and where rows begin.
    fn feed(
        &mut self,
        tokens: &[&[u32]],
        visit: impl FnMut(&B::Stream) -> Result<()>,
    ) -> Result<(B::Stream, Vec<usize>)> {
        let model = self.model;
        let mut row_starts = Vec::with_capacity(tokens.len() + 1);
        row_starts.push(0);
        let mut ids = Vec::new();
        for row in tokens {
            ids.extend_from_slice(row);
            row_starts.push(ids.len());
        }
        let x = model.decoder.forward(
            model.encoder.backend(),
            model.encoder.embedding(),
            &mut self.state,
            &Feed {
                ids: &ids,
                row_starts: &row_starts,
                interrupted: self.interrupted,
            },
            visit,
        )?;
        Ok((x, row_starts))
    }

    fn scored(&self) -> &B::Stream {
        match &self.scored {
            Some(scored) => scored,
            None => panic!("scores were asked for before rows were fed"),
        }
    }
}

impl<B: Backend> DecoderRows for Rows<'_, B> {
    fn vocab_size(&self) -> usize {
        self.model.encoder.config().vocab_size
    }

    fn n_rows(&self) -> usize {
        self.state.n_rows()
    }

    fn admit(&mut self, sources: &[usize]) -> Result<()> {
        self.scored = None;
        if sources.is_empty() {
            return Ok(());
        }
        let model = self.model;
        let config = model.encoder.config();
        let backend = model.encoder.backend();
        let (hidden, row_starts) = match self.sources {
            Sources::Ids(rows) => {
                let ids: Vec<&Vec<u32>> = sources.iter().map(|&source| &rows[source]).collect();
                let batch = PackedBatch::from_rows(&ids, config.vocab_size)?;
                let pass = Pass {
                    interrupted: self.interrupted,
                    ..Pass::default()
                };
                let encoded = model.encoder.encode(&batch, &pass)?;
                (encoded.last, batch.row_starts().to_vec())
            }
            Sources::States { values, row_starts } => {
                let mut starts = vec![0];
                let mut own = Vec::new();
                for &source in sources {
                    let (first, end) = (row_starts[source], row_starts[source + 1]);
                    own.extend_from_slice(&values[first * config.d_model..end * config.d_model]);
                    starts.push(own.len() / config.d_model);
                }
                let tokens = starts[sources.len()];
                (backend.stream(tokens, config.d_model, &own), starts)
            }
        };
        model
            .decoder
            .admit(backend, &mut self.state, &hidden, &row_starts);
        Ok(())
    }

    fn select(&mut self, rows: &[usize]) {
        self.scored = None;
        let model = self.model;
        model
            .decoder
            .select(model.encoder.backend(), &mut self.state, rows);
    }

    fn source_tokens(&self, source: usize) -> &[u32] {
        match self.sources {
            Sources::Ids(rows) => &rows[source],
            Sources::States { .. } => &[],
        }
    }

    fn advance(&mut self, tokens: &[&[u32]], n_scored: &[usize]) -> Result<()> {
        assert_eq!(tokens.len(), self.n_rows(), "rows of tokens");
        assert_eq!(n_scored.len(), tokens.len(), "rows of scored tokens");
        assert!(
            tokens
                .iter()
                .zip(n_scored)
                .all(|(row, n)| (1..=row.len()).contains(n)),
            "a row is fed or scored nothing, or more is scored than fed"
        );
        check_rows(tokens, self.vocab_size())?;
        self.scored = None;
        let (x, row_starts) = self.feed(tokens, |_| Ok(()))?;
        let n: usize = n_scored.iter().sum();
        if row_starts[tokens.len()] == n {
            self.scored = Some(x);
            return Ok(());
        }
        // The last token of a "row" that ends with a scored token is that token.
        let mut ends = vec![0];
        for (end, n) in row_starts[1..].iter().zip(n_scored) {
            ends.extend(end + 1 - n..=*end);
        }
        let backend = self.backend();
        let scored = backend.pool(&x, &ends, Pool::Last)?;
        let d_model = self.model.encoder.config().d_model;
        self.scored = Some(backend.stream(n, d_model, &scored));
        Ok(())
    }

    fn take_back(&mut self, n_tokens: &[usize]) {
        self.scored = None;
        let model = self.model;
        model
            .decoder
            .take_back(model.encoder.backend(), &mut self.state, n_tokens);
    }

    fn logits(&self) -> Result<Logits> {
        let logits = self.model.decoder.logits(self.backend(), self.scored());
        Ok(Logits {
            values: self.backend().read_logits(&logits)?,
            log_sums: self.backend().log_sums(&logits)?,
        })
    }

    fn top(&self, k: usize) -> Result<Vec<Vec<Chosen>>> {
        self.model.decoder.top(self.backend(), self.scored(), k)
    }
}
