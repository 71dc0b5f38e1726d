//! The encoder stack: which operation follows which.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::Result;
use crate::backend::{Attention, Backend, Epilogue, Keys, Pool, Visible};
use crate::batch::PackedBatch;
use crate::config::T5Config;

use super::TakeTensor;
use super::pass::{Pass, go_on};
use super::weights::{EncoderWeights, LayerParts, Part, Product};

static N_ENCODERS: AtomicU64 = AtomicU64::new(0);

/// A loaded text encoder on some backend.
pub struct Encoder<B: Backend> {
    /// No other encoder of this process has it.
    number: u64,
    backend: B,
    config: T5Config,
    embedding: B::Table,
    layers: Vec<Layer<B>>,
    final_norm: B::Gain,
}

struct Layer<B: Backend> {
    /// `None`: folded into the product behind it.
    attention_norm: Option<B::Gain>,
    qkv: B::Matrix,
    output: B::Matrix,
    /// `None`: the last table above serves this layer too.
    bias: Option<B::Bias>,
    feed_forward_norm: Option<B::Gain>,
    feed_forward_in: B::Matrix,
    feed_forward_out: B::Matrix,
}

/// What an encoder gives back for a batch.
pub struct Encoded<B: Backend> {
    /// Hidden states after the last norm, `[tokens, d_model]`.
    pub last: B::Stream,
    /// If asked for: the embeddings, then the stream after each layer but the last, each
    /// `[tokens, d_model]` in host memory. With `last` behind them they are transformers'
    /// `hidden_states`.
    pub inner: Vec<Vec<f32>>,
    /// If asked for: of each layer, for each row of length `n`, the softmax's weights
    /// `[n_heads, n, n]` (query, key) after multiplication by the heads' gains, rows end to end.
    pub attentions: Vec<Vec<f32>>,
}

impl<B: Backend> Encoder<B> {
    /// Takes the encoder's tensors from `source` and prepares them for `backend`, layer by
    /// layer: no more than one layer is held in both forms.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Checkpoint`](crate::ErrorKind::Checkpoint) if tensors are missing or do
    /// not fit the config, and whatever the backend reports.
    pub fn load(backend: B, config: T5Config, source: &mut dyn TakeTensor) -> Result<Self> {
        let weights = EncoderWeights::check(source, &config)?;
        let embedding = backend.prepare_table(weights.take_embedding(source)?)?;
        let layers = (0..config.num_layers)
            .map(|layer| {
                let parts = weights.take_parts(source, layer, backend.folds_gains())?;
                Layer::prepare(&backend, &config, parts, layer)
            })
            .collect::<Result<_>>()?;
        let final_norm = backend.prepare_gain(weights.take_final_norm(source)?)?;
        Ok(Encoder {
            number: N_ENCODERS.fetch_add(1, Ordering::Relaxed),
            backend,
            config,
            embedding,
            layers,
            final_norm,
        })
    }

    /// The config that the encoder was loaded with.
    pub fn config(&self) -> &T5Config {
        &self.config
    }

    /// The backend it runs on.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// The embedding table, which a decoder shares.
    pub(crate) fn embedding(&self) -> &B::Table {
        &self.embedding
    }

    /// Hidden states of every token of `batch`, and what else `pass` asks for.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Input`](crate::ErrorKind::Input) if a list of `pass` has a wrong length;
    /// [`ErrorKind::Interrupted`](crate::ErrorKind::Interrupted) if it is. An encoder is as
    /// useful after an error as before.
    pub fn encode(&self, batch: &PackedBatch, pass: &Pass<'_>) -> Result<Encoded<B>> {
        pass.check(batch, &self.config)?;
        go_on(pass.interrupted)?;
        let (mut inner, mut attentions) = (Vec::new(), Vec::new());
        let last = self
            .backend
            .pass(self.number, batch, pass.is_plain(), &mut |batch| {
                inner.clear();
                attentions.clear();
                self.queue(batch, pass, &mut inner, &mut attentions)
            })?;
        Ok(Encoded {
            last,
            inner,
            attentions,
        })
    }

    /// The operations of a pass, one after the other.
    fn queue(
        &self,
        batch: &PackedBatch,
        pass: &Pass<'_>,
        inner: &mut Vec<Vec<f32>>,
        attentions: &mut Vec<Vec<f32>>,
    ) -> Result<B::Stream> {
        let (backend, config) = (&self.backend, &self.config);
        let tokens = batch.n_tokens();
        let mut x = match pass.embeddings {
            Some(values) => backend.stream(tokens, config.d_model, values),
            None => backend.embed(&self.embedding, batch.ids()),
        };
        let mut normed = backend.operand(tokens, config.d_model);
        let mut qkv = backend.fused_operand(tokens, 3 * config.inner_dim(), config.d_kv);
        let mut heads = backend.operand(tokens, config.inner_dim());
        let mut hidden = backend.operand(tokens, config.d_ff);
        let mut bias = None;

        for (layer_idx, layer) in self.layers.iter().enumerate() {
            // Before the first layer `encode` has asked, since this may not be called.
            if layer_idx > 0 {
                go_on(pass.interrupted)?;
            }
            if pass.keep_inner {
                inner.push(backend.read_stream(&x)?);
            }
            bias = layer.bias.as_ref().or(bias);

            backend.rms_norm(
                &x,
                layer.attention_norm.as_ref(),
                config.layer_norm_epsilon,
                &mut normed,
            );
            backend.linear(&normed, &layer.qkv, Epilogue::Store(&mut qkv));
            let attention = Attention {
                n_heads: config.num_heads,
                d_kv: config.d_kv,
                queries: &qkv,
                row_starts: batch.row_starts(),
                keys: Keys::Fused,
                bias,
                positions: batch.positions(),
                visible: Visible::Mask(batch.mask()),
                head_gains: pass.gains_of(layer_idx, config.num_heads),
            };
            if pass.keep_attentions {
                attentions.push(backend.attention_weights(&attention)?);
            }
            backend.attend(&attention, &mut heads);
            backend.linear(&heads, &layer.output, Epilogue::Add(&mut x));

            backend.rms_norm(
                &x,
                layer.feed_forward_norm.as_ref(),
                config.layer_norm_epsilon,
                &mut normed,
            );
            let activation = config.feed_forward.activation;
            let epilogue = match config.feed_forward.gated {
                true => Epilogue::Gate(activation, &mut hidden),
                false => Epilogue::Activate(activation, &mut hidden),
            };
            backend.linear(&normed, &layer.feed_forward_in, epilogue);
            backend.linear(&hidden, &layer.feed_forward_out, Epilogue::Add(&mut x));
        }
        Ok(backend.rms_norm_last(&x, &self.final_norm, config.layer_norm_epsilon))
    }

    /// One vector a row of `batch`, `[rows, d_model]`.
    ///
    /// # Errors
    ///
    /// What the backend met on the way.
    pub fn pool(&self, encoded: &Encoded<B>, batch: &PackedBatch, pool: Pool) -> Result<Vec<f32>> {
        self.backend.pool(&encoded.last, batch.row_starts(), pool)
    }
}

impl<B: Backend> Layer<B> {
    fn prepare(backend: &B, config: &T5Config, parts: LayerParts, layer: usize) -> Result<Self> {
        let matrix = |product: Product, part: Part| {
            backend.prepare_product(product.site(layer), part.weights, part.gain)
        };
        Ok(Layer {
            attention_norm: parts
                .attention_norm
                .map(|gain| backend.prepare_gain(gain))
                .transpose()?,
            qkv: matrix(Product::Qkv, parts.qkv)?,
            output: matrix(Product::Output, parts.output)?,
            bias: parts
                .bias
                .map(|bias| backend.prepare_bias(bias, config.buckets()))
                .transpose()?,
            feed_forward_norm: parts
                .feed_forward_norm
                .map(|gain| backend.prepare_gain(gain))
                .transpose()?,
            feed_forward_in: matrix(Product::FeedForwardIn, parts.feed_forward_in)?,
            feed_forward_out: matrix(Product::FeedForwardOut, parts.feed_forward_out)?,
        })
    }
}
