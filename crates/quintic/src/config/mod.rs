//! `config.json` of every member of the family, read the way transformers reads it.
//!
//! A field is used, or it is listed in [`T5Config::unused_fields`] with the reason, or the
//! config is refused. What the config cannot settle (whether the output head is tied,
//! whether every layer has its own position bias) is decided from the tensors at load;
//! the config only says what to expect.
//!
//! Source of the rules: `configuration_t5.py`, `configuration_mt5.py` and
//! `configuration_umt5.py` of transformers 4.57 and 5.23.

mod activation;
mod fields;

use std::path::Path;

use serde_json::{Map, Value};

pub use activation::{Activation, FeedForward};
use fields::Fields;

use crate::backend::Buckets;
use crate::checkpoint::InferredShape;
use crate::limits::{MAX_JSON_BYTES, read_file};
use crate::{Error, ErrorKind, Result};

/// Largest `relative_attention_max_distance` accepted: a table of this length is made.
const MAX_DISTANCE: usize = 1 << 20;

/// Which architecture class a config names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// T5 v1.0, v1.1, FLAN, ByT5, MADLAD, ProtT5, sentence-T5: one bias table a stack.
    T5,
    /// mT5: T5 v1.1 with a larger vocabulary and other defaults.
    Mt5,
    /// UMT5 and Pile-T5: a bias table in every self-attention layer.
    Umt5,
}

impl Family {
    /// The `model_type` in a config.
    pub const fn model_type(self) -> &'static str {
        match self {
            Family::T5 => "t5",
            Family::Mt5 => "mt5",
            Family::Umt5 => "umt5",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        match text {
            "t5" => Some(Family::T5),
            "mt5" => Some(Family::Mt5),
            "umt5" => Some(Family::Umt5),
            _ => None,
        }
    }

    /// `UMT5EncoderModel` and the like; the longest prefix decides.
    fn of_architecture(class: &str) -> Option<Self> {
        if class.starts_with("UMT5") {
            Some(Family::Umt5)
        } else if class.starts_with("MT5") {
            Some(Family::Mt5)
        } else if class.starts_with("T5") {
            Some(Family::T5)
        } else {
            None
        }
    }
}

/// A field that the engine read and does not use, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnusedField {
    /// Name in `config.json`.
    pub name: String,
    /// Why it has no effect here.
    pub reason: &'static str,
    /// Whether the field is one that this version has never heard of.
    pub unknown: bool,
}

/// The shape and switches of one model. Field names are Hugging Face's.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct T5Config {
    /// Architecture class, if the config names one.
    pub family: Option<Family>,
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Width of one attention head; `n_heads * d_kv` may differ from `d_model`.
    pub d_kv: usize,
    /// Inner width of the feed-forward product.
    pub d_ff: usize,
    /// Encoder layers.
    pub num_layers: usize,
    /// Decoder layers; equal to `num_layers` where the config does not say.
    pub num_decoder_layers: usize,
    /// Attention heads.
    pub num_heads: usize,
    /// Rows of a position-bias table.
    pub relative_attention_num_buckets: usize,
    /// Distance from which on all tokens share the last bucket.
    pub relative_attention_max_distance: usize,
    /// Added to the mean square in RMSNorm.
    pub layer_norm_epsilon: f64,
    /// Shape and activation of the feed-forward layers.
    pub feed_forward: FeedForward,
    /// `tie_word_embeddings` as written. transformers 5 writes `true` for every T5, so the
    /// tensors decide whether the head is tied.
    pub tie_word_embeddings: Option<bool>,
    /// `scale_decoder_outputs` as written (transformers 5).
    pub scale_decoder_outputs: Option<bool>,
    /// First token of a decoder's input.
    pub decoder_start_token_id: Option<u32>,
    /// Padding token.
    pub pad_token_id: Option<u32>,
    /// End tokens, usually one.
    pub eos_token_ids: Vec<u32>,
    /// Element type that the checkpoint says it was saved in.
    pub torch_dtype: Option<String>,
    /// `tokenizer_class` as written.
    pub tokenizer_class: Option<String>,
    /// `architectures` as written.
    pub architectures: Vec<String>,
    /// Fields read and not used.
    pub unused_fields: Vec<UnusedField>,
    /// Things in the config that contradict each other, and which one is followed.
    pub warnings: Vec<String>,
}

/// Padding of every T5 whose config does not say otherwise.
const PAD_TOKEN_ID: u32 = 0;

/// End token of every T5 whose config does not say otherwise.
const EOS_TOKEN_ID: u32 = 1;

impl T5Config {
    /// Reads `config.json` at `path`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] if it is not a JSON object, a needed
    /// field is missing or has the wrong type or an impossible value, or two fields
    /// contradict each other; [`ErrorKind::Unsupported`] if it
    /// asks for something that would change the numbers and is not done here.
    pub fn from_file(path: &Path) -> Result<Self> {
        let bytes = read_file(path, MAX_JSON_BYTES, ErrorKind::Config)?;
        Self::from_json(&bytes).map_err(|e| e.at(path.display()))
    }

    /// Reads a config from the bytes of a JSON object, see [`T5Config::from_file`].
    pub fn from_json(bytes: &[u8]) -> Result<Self> {
        let value: Value = serde_json::from_slice(bytes)
            .map_err(|e| Error::config(format!("not valid JSON: {e}")))?;
        match value {
            Value::Object(map) => Self::from_map(map),
            other => Err(Error::config(format!(
                "found {}, expected a JSON object",
                fields::kind(&other)
            ))),
        }
    }

    /// The config of a single weight file, from the shapes of its tensors. See
    /// [`InferredShape`] for the three things that shapes do not tell.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] if the bias table has too few rows.
    pub fn from_inferred(shape: &InferredShape) -> Result<Self> {
        let config = T5Config {
            family: Some(match shape.has_bias_per_layer {
                true => Family::Umt5,
                false => Family::T5,
            }),
            vocab_size: shape.vocab_size,
            d_model: shape.d_model,
            d_kv: shape.d_kv,
            d_ff: shape.d_ff,
            num_layers: shape.n_layers,
            num_decoder_layers: shape.n_decoder_layers,
            num_heads: shape.n_heads,
            relative_attention_num_buckets: shape.n_buckets,
            relative_attention_max_distance: shape.max_distance,
            layer_norm_epsilon: shape.eps,
            feed_forward: match shape.is_gated {
                true => FeedForward {
                    gated: true,
                    activation: Activation::GeluTanh,
                },
                false => FeedForward {
                    gated: false,
                    activation: Activation::Relu,
                },
            },
            tie_word_embeddings: None,
            scale_decoder_outputs: None,
            decoder_start_token_id: Some(0),
            pad_token_id: Some(PAD_TOKEN_ID),
            eos_token_ids: vec![EOS_TOKEN_ID],
            torch_dtype: None,
            tokenizer_class: None,
            architectures: Vec::new(),
            unused_fields: Vec::new(),
            warnings: Vec::new(),
        };
        config.check()?;
        Ok(config)
    }

    fn from_map(map: Map<String, Value>) -> Result<Self> {
        let mut fields = Fields::new(map);
        fields.refuse_unsupported()?;
        let architectures = fields.strings("architectures")?;
        let family = family(&mut fields, &architectures)?;
        let mut warnings = Vec::new();

        let num_layers = fields
            .count("num_layers", Some("num_hidden_layers"))?
            .required()?;
        let feed_forward = activation::read(&mut fields, family, &mut warnings)?;
        let config = T5Config {
            family,
            vocab_size: fields.count("vocab_size", None)?.required()?,
            d_model: fields.count("d_model", Some("hidden_size"))?.required()?,
            d_kv: fields.count("d_kv", Some("head_dim"))?.or(64),
            d_ff: fields.count("d_ff", None)?.required()?,
            num_layers,
            num_decoder_layers: fields
                .count_or_zero("num_decoder_layers")?
                .unwrap_or(num_layers),
            num_heads: fields
                .count("num_heads", Some("num_attention_heads"))?
                .required()?,
            relative_attention_num_buckets: fields
                .count("relative_attention_num_buckets", None)?
                .or(32),
            relative_attention_max_distance: fields
                .count("relative_attention_max_distance", None)?
                .or(128),
            layer_norm_epsilon: fields.non_negative("layer_norm_epsilon")?.unwrap_or(1e-6),
            feed_forward,
            tie_word_embeddings: fields.boolean("tie_word_embeddings")?,
            scale_decoder_outputs: fields.boolean("scale_decoder_outputs")?,
            decoder_start_token_id: fields.token("decoder_start_token_id")?,
            // What transformers takes where a config says nothing; null is none.
            pad_token_id: match fields.has("pad_token_id") {
                true => fields.token("pad_token_id")?,
                false => Some(PAD_TOKEN_ID),
            },
            eos_token_ids: match fields.has("eos_token_id") {
                true => fields.tokens("eos_token_id")?,
                false => vec![EOS_TOKEN_ID],
            },
            torch_dtype: fields.dtype()?,
            tokenizer_class: fields.text("tokenizer_class")?,
            architectures,
            unused_fields: fields.unused(),
            warnings,
        };
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        let (buckets, distance) = (
            self.relative_attention_num_buckets,
            self.relative_attention_max_distance,
        );
        if buckets < 4 {
            return Err(Error::config(format!(
                "found {buckets}, expected at least 4: half of the buckets serve each direction"
            ))
            .at("field `relative_attention_num_buckets`"));
        }
        if distance > MAX_DISTANCE {
            return Err(Error::config(format!(
                "found {distance}, expected at most {MAX_DISTANCE}"
            ))
            .at("field `relative_attention_max_distance`"));
        }
        // The encoder's and the decoder's logarithms both need a range to spread over.
        if distance <= buckets / 2 {
            return Err(Error::config(format!(
                "found {distance}, expected more than {} = `relative_attention_num_buckets` / 2",
                buckets / 2
            ))
            .at("field `relative_attention_max_distance`"));
        }
        Ok(())
    }

    /// Width of all heads together, `num_heads * d_kv`.
    pub fn inner_dim(&self) -> usize {
        self.num_heads * self.d_kv
    }

    /// The distance from which on, in both directions, all positions of an encoder share a bias:
    /// see [`Buckets::reach`].
    pub fn bias_reach(&self) -> usize {
        self.buckets().reach()
    }

    /// The encoder's map from distances to rows of a bias table.
    pub(crate) fn buckets(&self) -> Buckets {
        Buckets::bidirectional(
            self.relative_attention_num_buckets,
            self.relative_attention_max_distance,
        )
    }

    /// The decoder's map from distances to rows of a bias table.
    pub(crate) fn decoder_buckets(&self) -> Buckets {
        Buckets::unidirectional(
            self.relative_attention_num_buckets,
            self.relative_attention_max_distance,
        )
    }

    /// Parameters of the encoder without the embedding table.
    pub fn encoder_parameters(&self) -> u128 {
        let (d_model, inner) = (self.d_model as u128, self.inner_dim() as u128);
        let feed_forward = if self.feed_forward.gated { 3 } else { 2 } * self.d_ff as u128;
        self.num_layers as u128 * d_model * (4 * inner + feed_forward + 2) + d_model
    }
}

/// `model_type` first; without it (stock UMT5) the class name; without both, nothing.
fn family(fields: &mut Fields, architectures: &[String]) -> Result<Option<Family>> {
    let named = architectures
        .iter()
        .find_map(|class| Family::of_architecture(class));
    match fields.text("model_type")? {
        Some(text) => match Family::parse(&text) {
            Some(family) => Ok(Some(family)),
            None => Err(Error::unsupported(format!(
                "found `{text}`, expected one of `t5`, `mt5`, `umt5`"
            ))
            .at("field `model_type`")),
        },
        None => match architectures.first() {
            Some(class) if named.is_none() => Err(Error::unsupported(format!(
                "found `{class}`, expected a class of the T5 family such as `T5EncoderModel`"
            ))
            .at("field `architectures`")),
            _ => Ok(named),
        },
    }
}

#[cfg(test)]
mod tests;
