//! The decoder stack: which operation follows which, and what stays between steps.

use super::TakeTensor;
use super::decoder_weights::{DecoderLayerParts, DecoderWeights};
use super::pass::{Interrupted, go_on};
use super::weights::Part;
use crate::Result;
use crate::backend::{Attention, Backend, Chosen, Epilogue, Keys, Visible};
use crate::batch::Mask;
use crate::config::T5Config;
use crate::keep::{Site, Stack};
use crate::weight_type::ProductKind;

/// A loaded decoder on some backend, which its methods are given: the one it was loaded for.
pub struct Decoder<B: Backend> {
    config: T5Config,
    layers: Vec<Layer<B>>,
    final_norm: B::Gain,
    head: B::Matrix,
    /// Factor of the scores.
    scale: f32,
    is_tied: bool,
}

struct Layer<B: Backend> {
    /// Gains are `None` where they are folded into the product behind the norm.
    attention_norm: Option<B::Gain>,
    qkv: B::Matrix,
    output: B::Matrix,
    /// `None`: the last table above serves this layer too.
    bias: Option<B::Bias>,
    cross_norm: Option<B::Gain>,
    cross_query: B::Matrix,
    cross_keys: B::Matrix,
    cross_output: B::Matrix,
    feed_forward_norm: Option<B::Gain>,
    feed_forward_in: B::Matrix,
    feed_forward_out: B::Matrix,
}

/// What a decoder keeps of its rows between steps: keys and values of what they were fed, and
/// of their sources.
pub struct DecoderState<B: Backend> {
    layers: Vec<LayerState<B>>,
    /// Tokens that each row was fed.
    lengths: Vec<usize>,
}

struct LayerState<B: Backend> {
    own: B::KvCache,
    source: B::KvCache,
}

/// Tokens that every row of a decoder is fed.
#[derive(Clone, Copy)]
pub struct Feed<'a> {
    /// Token ids, rows end to end.
    pub ids: &'a [u32],
    /// Where rows begin, `[rows + 1]`.
    pub row_starts: &'a [usize],
    /// Asked before each layer; true ends the pass.
    pub interrupted: Option<Interrupted<'a>>,
}

impl<B: Backend> DecoderState<B> {
    /// Number of rows.
    pub fn n_rows(&self) -> usize {
        self.lengths.len()
    }
}

impl<B: Backend> Decoder<B> {
    /// Takes the decoder's tensors from `source` and prepares them for `backend`, layer by layer.
    ///
    /// # Errors
    ///
    /// As [`DecoderWeights::check`], and whatever the backend reports.
    pub fn load(backend: &B, config: &T5Config, source: &mut dyn TakeTensor) -> Result<Self> {
        let weights = DecoderWeights::check(source, config)?;
        let layers = (0..config.num_decoder_layers)
            .map(|layer| {
                let parts = weights.take_parts(source, layer, backend.folds_gains())?;
                Layer::prepare(backend, config, parts, layer)
            })
            .collect::<Result<_>>()?;
        let final_norm = backend.prepare_gain(weights.take_final_norm(source)?)?;
        let head = weights.take_head(source)?;
        Ok(Decoder {
            config: config.clone(),
            layers,
            final_norm,
            scale: head.scale,
            is_tied: head.is_tied,
            head: backend.prepare_product(
                Site::HEAD,
                crate::backend::Weights::Stacked(vec![head.weights]),
                None,
            )?,
        })
    }

    /// Whether the output head is the embedding table.
    pub fn is_tied(&self) -> bool {
        self.is_tied
    }

    /// Factor of the scores: `d_model^-0.5`, or 1.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// A state without rows.
    pub fn state(&self, backend: &B) -> DecoderState<B> {
        let cache = || backend.kv_cache(0, self.config.num_heads, self.config.d_kv);
        DecoderState {
            layers: (0..self.layers.len())
                .map(|_| LayerState {
                    own: cache(),
                    source: cache(),
                })
                .collect(),
            lengths: Vec::new(),
        }
    }

    /// Adds a row for each row of `hidden`, the encoder's hidden states `[tokens, d_model]` with
    /// rows as in `row_starts`; keys and values of cross-attention are computed once, here.
    pub fn admit(
        &self,
        backend: &B,
        state: &mut DecoderState<B>,
        hidden: &B::Stream,
        row_starts: &[usize],
    ) {
        let inner = self.config.inner_dim();
        let tokens = row_starts[row_starts.len() - 1];
        let n_new = row_starts.len() - 1;
        let mut input = backend.operand(tokens, self.config.d_model);
        backend.cast(hidden, &mut input);
        let mut kv = backend.attention_operand(tokens, 2 * inner);
        let rows: Vec<Option<usize>> = (0..state.n_rows())
            .map(Some)
            .chain((0..n_new).map(|_| None))
            .collect();
        // The rows that are there get nothing.
        let mut starts = vec![0; state.n_rows()];
        starts.extend_from_slice(row_starts);
        for (layer, state) in self.layers.iter().zip(&mut state.layers) {
            backend.arrange_kv(&mut state.own, &rows);
            backend.arrange_kv(&mut state.source, &rows);
            backend.linear(&input, &layer.cross_keys, Epilogue::Store(&mut kv));
            backend.append_kv(&mut state.source, &kv, 0, &starts);
        }
        state.lengths.extend(vec![0; n_new]);
    }

    /// Row `i` becomes what row `rows[i]` was.
    pub fn select(&self, backend: &B, state: &mut DecoderState<B>, rows: &[usize]) {
        if rows.len() == state.n_rows() && rows.iter().enumerate().all(|(to, &from)| to == from) {
            return;
        }
        let moves: Vec<Option<usize>> = rows.iter().copied().map(Some).collect();
        for layer in &mut state.layers {
            backend.arrange_kv(&mut layer.own, &moves);
            backend.arrange_kv(&mut layer.source, &moves);
        }
        state.lengths = rows.iter().map(|&row| state.lengths[row]).collect();
    }

    /// Each row forgets so many of the tokens that it was fed last.
    pub fn take_back(&self, backend: &B, state: &mut DecoderState<B>, n_tokens: &[usize]) {
        assert_eq!(n_tokens.len(), state.n_rows(), "rows of tokens");
        if n_tokens.iter().all(|&n| n == 0) {
            return;
        }
        for (length, n) in state.lengths.iter_mut().zip(n_tokens) {
            *length -= n;
        }
        for layer in &mut state.layers {
            backend.truncate_kv(&mut layer.own, &state.lengths);
        }
    }

    /// Feeds tokens to every row, and gives their hidden states after the last norm,
    /// `[tokens, d_model]`. `visit` sees the residual stream before each layer and after the last.
    ///
    /// # Errors
    ///
    /// What `visit` reports, and [`ErrorKind::Interrupted`](crate::ErrorKind::Interrupted): the
    /// state is then of no use any more.
    pub fn forward(
        &self,
        backend: &B,
        embedding: &B::Table,
        state: &mut DecoderState<B>,
        feed: &Feed<'_>,
        mut visit: impl FnMut(&B::Stream) -> Result<()>,
    ) -> Result<B::Stream> {
        let config = &self.config;
        let Feed {
            ids,
            row_starts,
            interrupted,
        } = *feed;
        let (tokens, inner) = (ids.len(), config.inner_dim());
        let eps = config.layer_norm_epsilon;
        let mut x = backend.embed(embedding, ids);
        let mut normed = backend.operand(tokens, config.d_model);
        let mut qkv = backend.attention_operand(tokens, 3 * inner);
        let mut query = backend.attention_operand(tokens, inner);
        let mut heads = backend.operand(tokens, inner);
        let mut hidden = backend.operand(tokens, config.d_ff);
        let mut bias = None;
        for (layer, state) in self.layers.iter().zip(&mut state.layers) {
            go_on(interrupted)?;
            visit(&x)?;
            bias = layer.bias.as_ref().or(bias);

            backend.rms_norm(&x, layer.attention_norm.as_ref(), eps, &mut normed);
            backend.linear(&normed, &layer.qkv, Epilogue::Store(&mut qkv));
            backend.append_kv(&mut state.own, &qkv, inner, row_starts);
            let attention = Attention {
                n_heads: config.num_heads,
                d_kv: config.d_kv,
                queries: &qkv,
                row_starts,
                keys: Keys::Cache(&state.own),
                bias,
                positions: None,
                visible: Visible::Causal,
                head_gains: None,
            };
            backend.attend(&attention, &mut heads);
            backend.linear(&heads, &layer.output, Epilogue::Add(&mut x));

            backend.rms_norm(&x, layer.cross_norm.as_ref(), eps, &mut normed);
            backend.linear(&normed, &layer.cross_query, Epilogue::Store(&mut query));
            let attention = Attention {
                queries: &query,
                keys: Keys::Cache(&state.source),
                bias: None,
                visible: Visible::Mask(&Mask::Full),
                ..attention
            };
            backend.attend(&attention, &mut heads);
            backend.linear(&heads, &layer.cross_output, Epilogue::Add(&mut x));

            backend.rms_norm(&x, layer.feed_forward_norm.as_ref(), eps, &mut normed);
            let activation = config.feed_forward.activation;
            let epilogue = match config.feed_forward.gated {
                true => Epilogue::Gate(activation, &mut hidden),
                false => Epilogue::Activate(activation, &mut hidden),
            };
            backend.linear(&normed, &layer.feed_forward_in, epilogue);
            backend.linear(&hidden, &layer.feed_forward_out, Epilogue::Add(&mut x));
        }
        visit(&x)?;
        for (length, bounds) in state.lengths.iter_mut().zip(row_starts.windows(2)) {
            *length += bounds[1] - bounds[0];
        }
        Ok(backend.rms_norm_last(&x, &self.final_norm, eps))
    }

    /// Scores of every token of the vocabulary, for each row of hidden states.
    pub fn logits(&self, backend: &B, x: &B::Stream) -> B::Logits {
        backend.logits(x, &self.head, self.scale)
    }

    /// The `k` most likely tokens for each row of hidden states, as [`Backend::top`] has them.
    ///
    /// # Errors
    ///
    /// What the backend met on the way.
    pub fn top(&self, backend: &B, x: &B::Stream, k: usize) -> Result<Vec<Vec<Chosen>>> {
        backend.top(x, &self.head, self.scale, k)
    }
}

impl<B: Backend> Layer<B> {
    fn prepare(
        backend: &B,
        config: &T5Config,
        parts: DecoderLayerParts,
        layer: usize,
    ) -> Result<Self> {
        let matrix = |kind, part: Part| {
            let stack = Stack::Decoder;
            backend.prepare_product(Site { stack, layer, kind }, part.weights, part.gain)
        };
        let gain = |gain: Option<_>| gain.map(|gain| backend.prepare_gain(gain)).transpose();
        Ok(Layer {
            attention_norm: gain(parts.attention_norm)?,
            qkv: matrix(ProductKind::Qkv, parts.qkv)?,
            output: matrix(ProductKind::O, parts.output)?,
            bias: parts
                .bias
                .map(|bias| backend.prepare_bias(bias, config.decoder_buckets()))
                .transpose()?,
            cross_norm: gain(parts.cross_norm)?,
            cross_query: matrix(ProductKind::Qkv, parts.cross_query)?,
            cross_keys: matrix(ProductKind::Qkv, parts.cross_keys)?,
            cross_output: matrix(ProductKind::O, parts.cross_output)?,
            feed_forward_norm: gain(parts.feed_forward_norm)?,
            feed_forward_in: matrix(ProductKind::Wi, parts.feed_forward_in)?,
            feed_forward_out: matrix(ProductKind::Wo, parts.feed_forward_out)?,
        })
    }
}
