//! To GGUF, in the layout that llama.cpp has for T5.
//!
//! Names of keys and tensors: `gguf-py/gguf/constants.py` and `tensor_mapping.py` of llama.cpp.

use std::path::Path;

use serde_json::Value;

use super::gguf_weights::{GgufWeights, for_rows_of};
use super::values::{self, Overflow};
use super::vocabulary::{Found, Vocabulary};
use super::{OtherBlocks, Progress, Written};
use crate::checkpoint::{Checkpoint, GgufFile, InferredShape, TensorSource};
use crate::config::{Activation, FeedForward, T5Config};
use crate::limits::{MAX_JSON_BYTES, read_file};
use crate::loading::{config_of, shapes_from};
use crate::model::{DecoderWeights, EncoderWeights};
use crate::output::gguf::{GgmlType, GgufTensor, GgufWriter, Metadata};
use crate::{Error, ErrorKind, Result};

/// Names that the one embedding may have, in the order in which they are taken.
const EMBEDDINGS: [&str; 3] = [
    "shared.weight",
    "encoder.embed_tokens.weight",
    "decoder.embed_tokens.weight",
];

/// Context length where the config says none, as llama.cpp's converter has it.
const CONTEXT_LENGTH: u32 = 512;

/// What to write.
#[derive(Clone, Copy, Debug)]
pub struct GgufOptions<'a> {
    /// How matrices are stored.
    pub weights: GgufWeights,
    /// A SentencePiece model, a unigram `tokenizer.json`, or a folder that has one of them, if not
    /// the model's own.
    pub tokenizer: Option<&'a Path>,
    /// Makes finite values beyond the range of f16 or bf16 the largest instead of an error.
    pub saturate: bool,
    /// The model's name for people.
    pub name: Option<&'a str>,
}

/// Writes encoder and decoder of `checkpoint` to the GGUF file `out`, as architecture `t5`, or
/// `t5encoder` if there is no decoder. [`GgufWeights`] has which tensor is of which type.
///
/// # Errors
///
/// [`ErrorKind::Unsupported`] for a model that the layout cannot describe, which has no place for
/// the activation and the largest distance: it is a tanh GELU if gated and a ReLU if not, and 128;
/// for a packed model; and for a tensor that no T5 has. [`ErrorKind::Input`] if a value does
/// not fit its type; [`ErrorKind::Tokenizer`] if the vocabulary does not fit;
/// [`ErrorKind::Io`] if writing fails; what a damaged checkpoint reports.
pub fn to_gguf(
    checkpoint: &Checkpoint,
    options: &GgufOptions<'_>,
    out: &Path,
    progress: Progress<'_>,
) -> Result<Written> {
    let here = |error: Error| error.at_if_placeless(checkpoint.path().display());
    if checkpoint.packed().is_some() {
        return Err(here(Error::unsupported(
            "the model is packed, which cannot be undone, expected the original",
        )));
    }
    let config = config_of(checkpoint)?;
    check_describable(&config).map_err(here)?;
    let mut source = TensorSource::new(checkpoint, shapes_from(checkpoint));
    EncoderWeights::check(&mut source, &config)?;
    let has_decoder = checkpoint
        .names()
        .any(|name| name.starts_with("decoder.block."));
    if has_decoder {
        DecoderWeights::check(&mut source, &config)?;
    }
    let mut written = Written::default();
    let plan = plan(checkpoint, &config, options.weights, &mut written).map_err(here)?;
    let mut metadata = describe(checkpoint, &config, options, has_decoder).map_err(here)?;
    match Vocabulary::find(checkpoint, options.tokenizer)? {
        Found::Pieces(vocabulary) => {
            vocabulary.put(&mut metadata, config.vocab_size)?;
            if vocabulary.is_json {
                written.notes.push(
                    "the vocabulary is that of `tokenizer.json`, by SentencePiece's rules: a \
                     space at an end of a text or beside a sentinel may give other ids"
                        .to_owned(),
                );
            }
        }
        Found::Stored => {
            let file = checkpoint.gguf();
            for pair in file.into_iter().flat_map(|file| file.tokenizer_pairs()) {
                metadata.put_stored(pair);
            }
        }
        Found::Nothing(reason) => written
            .notes
            .push(format!("{reason}: the file has no tokenizer")),
    }
    let tensors: Vec<GgufTensor> = plan.iter().map(|(_, tensor)| tensor.clone()).collect();
    let mut file = GgufWriter::create(out, &metadata, &tensors)?;
    let overflow = match options.saturate {
        true => Overflow::Saturate,
        false => Overflow::Refuse,
    };
    for (idx, (name, tensor)) in plan.iter().enumerate() {
        progress(idx, plan.len());
        let stored = checkpoint.take(name)?;
        let append = |bytes: &[u8]| file.append(bytes);
        written.n_saturated += values::convert(&stored, tensor.dtype, overflow, append)
            .map_err(|e| here(e.at_if_placeless(format!("tensor `{name}`"))))?;
        written.tensor_bytes += tensor.n_bytes()?;
    }
    progress(plan.len(), plan.len());
    file.finish()?;
    written.files.push(out.to_owned());
    Ok(written)
}

/// Refuses what llama.cpp would compute in another way.
fn check_describable(config: &T5Config) -> Result<()> {
    let FeedForward { gated, activation } = config.feed_forward;
    let expected = match gated {
        true => Activation::GeluTanh,
        false => Activation::Relu,
    };
    if activation != expected {
        return Err(Error::unsupported(format!(
            "the activation is `{}`, but a {} feed-forward in a GGUF file has `{}`",
            activation.name(),
            if gated { "gated" } else { "plain" },
            expected.name()
        )));
    }
    if config.relative_attention_max_distance != InferredShape::MAX_DISTANCE {
        return Err(Error::unsupported(format!(
            "`relative_attention_max_distance` is {}, but in a GGUF file it is {}",
            config.relative_attention_max_distance,
            InferredShape::MAX_DISTANCE
        )));
    }
    Ok(())
}

/// Every tensor: its name in the checkpoint, and what it becomes.
fn plan(
    checkpoint: &Checkpoint,
    config: &T5Config,
    weights: GgufWeights,
    written: &mut Written,
) -> Result<Vec<(String, GgufTensor)>> {
    let embedding = EMBEDDINGS
        .into_iter()
        .find(|name| checkpoint.contains(name));
    let mut tensors = Vec::new();
    for (name, entry) in checkpoint.entries() {
        if !entry.supported_dtype()?.is_float() {
            if name != "spiece_model" {
                written
                    .notes
                    .push(format!("tensor `{name}` holds no floats and is left out"));
            }
            continue;
        }
        if EMBEDDINGS.contains(&name) && embedding != Some(name) {
            check_same(checkpoint, embedding.unwrap_or_default(), name)?;
            continue;
        }
        let Some(new_name) = gguf_name(name, config) else {
            return Err(Error::unsupported(
                "has no place in a GGUF file of the model that the config describes",
            )
            .at(format!("tensor `{name}`")));
        };
        let mut tensor = GgufTensor {
            dtype: weights.of(&new_name),
            name: new_name,
            shape: entry.shape().to_vec(),
        };
        let row = tensor.shape.last().copied().unwrap_or(1);
        let wanted = tensor.dtype;
        tensor.dtype = for_rows_of(row, wanted);
        match tensor.dtype {
            dtype if dtype == wanted => {}
            GgmlType::F16 => written.not_quantised.push(tensor.name.clone()),
            dtype => written.other_blocks.push(OtherBlocks {
                tensor: tensor.name.clone(),
                wanted: wanted.name(),
                found: dtype.name(),
            }),
        }
        tensors.push((name.to_owned(), tensor));
    }
    Ok(tensors)
}

/// A GGUF file has one embedding.
fn check_same(checkpoint: &Checkpoint, first: &str, second: &str) -> Result<()> {
    let (a, b) = (checkpoint.take(first)?, checkpoint.take(second)?);
    let same = a.dtype() == b.dtype() && a.shape() == b.shape() && a.bytes() == b.bytes();
    a.release();
    b.release();
    if same {
        return Ok(());
    }
    Err(Error::unsupported(format!(
        "differs from `{first}`, but a GGUF file has one embedding"
    ))
    .at(format!("tensor `{second}`")))
}

/// A tensor's name in a GGUF file; `None` if it has none there, as that of a layer that the config
/// does not know.
fn gguf_name(name: &str, config: &T5Config) -> Option<String> {
    let name = name.strip_suffix(".weight")?;
    let whole = match name {
        "shared" | "encoder.embed_tokens" | "decoder.embed_tokens" => "token_embd",
        "lm_head" => "output",
        "encoder.final_layer_norm" => "enc.output_norm",
        "decoder.final_layer_norm" => "dec.output_norm",
        _ => "",
    };
    if !whole.is_empty() {
        return Some(format!("{whole}.weight"));
    }
    let (stack, rest) = name.split_once(".block.")?;
    let (block, part) = rest.split_once(".layer.")?;
    let block: usize = block.parse().ok()?;
    let (stack, is_decoder, n_blocks) = match stack {
        "encoder" => ("enc", false, config.num_layers),
        "decoder" => ("dec", true, config.num_decoder_layers),
        _ => return None,
    };
    if block >= n_blocks {
        return None;
    }
    let (sublayer, part) = part.split_once('.')?;
    let part = match (sublayer, is_decoder, part.split_once('.')) {
        ("0", _, None) if part == "layer_norm" => "attn_norm".to_owned(),
        ("0", _, Some(("SelfAttention", matrix))) => format!("attn_{}", attention(matrix)?),
        ("1", true, None) if part == "layer_norm" => "cross_attn_norm".to_owned(),
        ("1", true, Some(("EncDecAttention", matrix))) => {
            format!("cross_attn_{}", attention(matrix)?)
        }
        ("1", false, None) | ("2", true, None) if part == "layer_norm" => "ffn_norm".to_owned(),
        ("1", false, Some(("DenseReluDense", matrix)))
        | ("2", true, Some(("DenseReluDense", matrix))) => match matrix {
            "wi_0" => "ffn_gate",
            "wi" | "wi_1" => "ffn_up",
            "wo" => "ffn_down",
            _ => return None,
        }
        .to_owned(),
        _ => return None,
    };
    Some(format!("{stack}.blk.{block}.{part}.weight"))
}

fn attention(matrix: &str) -> Option<&'static str> {
    Some(match matrix {
        "q" => "q",
        "k" => "k",
        "v" => "v",
        "o" => "o",
        "relative_attention_bias" => "rel_b",
        _ => return None,
    })
}

fn describe(
    checkpoint: &Checkpoint,
    config: &T5Config,
    options: &GgufOptions<'_>,
    has_decoder: bool,
) -> Result<Metadata> {
    let arch = if has_decoder { "t5" } else { "t5encoder" };
    let mut metadata = Metadata::default();
    metadata.put_text("general.architecture", arch);
    metadata.put_text("general.type", "model");
    if let Some(name) = options.name {
        metadata.put_text("general.name", name);
    }
    metadata.put_u32("general.file_type", options.weights.file_type());
    metadata.put_u32("general.quantization_version", 2);
    let mut number = |key: &str, value: usize| {
        let value = u32::try_from(value).map_err(|_| {
            Error::unsupported(format!("`{key}` is {value}, expected at most {}", u32::MAX))
        })?;
        metadata.put_u32(&format!("{arch}.{key}"), value);
        Ok::<(), Error>(())
    };
    number("context_length", context_length(checkpoint)? as usize)?;
    number("embedding_length", config.d_model)?;
    number("feed_forward_length", config.d_ff)?;
    number("block_count", config.num_layers)?;
    number("attention.head_count", config.num_heads)?;
    number("attention.key_length", config.d_kv)?;
    number("attention.value_length", config.d_kv)?;
    let buckets = config.relative_attention_num_buckets;
    number("attention.relative_buckets_count", buckets)?;
    if has_decoder {
        number("decoder_block_count", config.num_decoder_layers)?;
        let start = config.decoder_start_token_id.or(config.pad_token_id);
        let start = start
            .ok_or_else(|| Error::config("the model does not say what its decoder starts with"))?;
        number("decoder_start_token_id", start as usize)?;
    }
    let eps = config.layer_norm_epsilon as f32;
    metadata.put_f32(&format!("{arch}.attention.layer_norm_epsilon"), eps);
    metadata.put_f32(&format!("{arch}.attention.layer_norm_rms_epsilon"), eps);
    Ok(metadata)
}

/// `n_positions` of older configs, or what another GGUF file says.
fn context_length(checkpoint: &Checkpoint) -> Result<u32> {
    if let Some(length) = checkpoint.gguf().map(GgufFile::context_length) {
        return Ok(length?
            .and_then(|length| u32::try_from(length).ok())
            .unwrap_or(CONTEXT_LENGTH));
    }
    let Some(path) = checkpoint.config_path() else {
        return Ok(CONTEXT_LENGTH);
    };
    let bytes = read_file(path, MAX_JSON_BYTES, ErrorKind::Config)?;
    let config: Value = serde_json::from_slice(&bytes)
        .map_err(|e| Error::config(format!("not valid JSON: {e}")).at(path.display()))?;
    let length = config["n_positions"].as_u64();
    Ok(length
        .and_then(|length| u32::try_from(length).ok())
        .unwrap_or(CONTEXT_LENGTH))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let mut shape = InferredShape::for_tests(true, false);
        (shape.n_layers, shape.n_decoder_layers) = (13, 2);
        let config = T5Config::from_inferred(&shape).unwrap();
        for (from, to) in [
            ("shared", "token_embd"),
            ("lm_head", "output"),
            ("decoder.final_layer_norm", "dec.output_norm"),
            (
                "encoder.block.12.layer.0.SelfAttention.q",
                "enc.blk.12.attn_q",
            ),
            ("encoder.block.0.layer.0.layer_norm", "enc.blk.0.attn_norm"),
            ("encoder.block.0.layer.1.layer_norm", "enc.blk.0.ffn_norm"),
            (
                "encoder.block.1.layer.1.DenseReluDense.wi",
                "enc.blk.1.ffn_up",
            ),
            (
                "decoder.block.1.layer.2.DenseReluDense.wi_0",
                "dec.blk.1.ffn_gate",
            ),
            (
                "decoder.block.1.layer.2.DenseReluDense.wi_1",
                "dec.blk.1.ffn_up",
            ),
            (
                "decoder.block.1.layer.2.DenseReluDense.wo",
                "dec.blk.1.ffn_down",
            ),
            (
                "decoder.block.1.layer.1.layer_norm",
                "dec.blk.1.cross_attn_norm",
            ),
            ("decoder.block.1.layer.2.layer_norm", "dec.blk.1.ffn_norm"),
            (
                "decoder.block.1.layer.1.EncDecAttention.o",
                "dec.blk.1.cross_attn_o",
            ),
            (
                "decoder.block.0.layer.0.SelfAttention.relative_attention_bias",
                "dec.blk.0.attn_rel_b",
            ),
        ] {
            let found = gguf_name(&format!("{from}.weight"), &config);
            assert_eq!(found, Some(format!("{to}.weight")), "{from}");
        }
        for other in [
            "shared.bias",
            "encoder.block.0.layer.1.EncDecAttention.q.weight",
            "encoder.block.0.layer.2.layer_norm.weight",
            "encoder.block.13.layer.0.SelfAttention.q.weight",
            "decoder.block.2.layer.0.SelfAttention.q.weight",
            "encoder.block.x.layer.0.SelfAttention.q.weight",
            "encoder.block.0.layer.0.SelfAttention.w.weight",
            "decoder.block.0.layer.1.DenseReluDense.wo.weight",
            "visual.block.0.layer.0.layer_norm.weight",
        ] {
            assert_eq!(gguf_name(other, &config), None, "{other}");
        }
    }
}
