//! The files that make a folder of weights a model.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::checkpoint::{Checkpoint, InferredShape, TOKENIZER_FILES, infer_shape};
use crate::loading::config_of;
use crate::output::folder::copy_if_there;
use crate::sentence::SentenceHead;
use crate::{Error, Result};

/// Files of a tokenizer that only go with others.
const TOKENIZER_COMPANIONS: [&str; 2] = ["special_tokens_map.json", "added_tokens.json"];

/// Copies the tokenizer's files and the modules of a sentence-transformers model to `folder`, and
/// adds their names to `files`.
///
/// # Errors
///
/// If a file cannot be read or written, or `modules.json` is damaged.
pub(crate) fn copy_companions(
    checkpoint: &Checkpoint,
    folder: &Path,
    files: &mut Vec<PathBuf>,
) -> Result<()> {
    if let Some(tokenizer) = checkpoint.tokenizer_folder() {
        for name in TOKENIZER_FILES.into_iter().chain(TOKENIZER_COMPANIONS) {
            copy_if_there(tokenizer, Path::new(name), folder, files)?;
        }
    }
    if let Some(model) = checkpoint.config_path().and_then(Path::parent) {
        for name in SentenceHead::files(model)? {
            copy_if_there(model, &name, folder, files)?;
        }
    }
    Ok(())
}

/// What stands for the config of a single file.
///
/// # Errors
///
/// As [`infer_shape`].
pub(crate) fn inferred_config(checkpoint: &Checkpoint) -> Result<Value> {
    let mut json = config_json(&infer_shape(checkpoint)?);
    // A GGUF file names tokens, and its own precision of norms.
    let config = config_of(checkpoint)?;
    json["layer_norm_epsilon"] = json!(config.layer_norm_epsilon);
    json["decoder_start_token_id"] = json!(config.decoder_start_token_id);
    json["pad_token_id"] = json!(config.pad_token_id);
    json["eos_token_id"] = json!(config.eos_token_ids.first());
    Ok(json)
}

/// Writes `config.json` as transformers lays it out.
///
/// # Errors
///
/// If it cannot be written.
pub(crate) fn write_config(config: &Value, folder: &Path) -> Result<()> {
    let path = folder.join("config.json");
    let text = format!("{config:#}\n");
    std::fs::write(&path, text).map_err(|error| Error::io(&path, "write", error))
}

/// What `T5Config::from_inferred` makes of a shape, as transformers would write it.
fn config_json(shape: &InferredShape) -> serde_json::Value {
    json!({
        "model_type": if shape.has_bias_per_layer { "umt5" } else { "t5" },
        "vocab_size": shape.vocab_size,
        "d_model": shape.d_model,
        "d_kv": shape.d_kv,
        "d_ff": shape.d_ff,
        "num_layers": shape.n_layers,
        "num_decoder_layers": shape.n_decoder_layers,
        "num_heads": shape.n_heads,
        "relative_attention_num_buckets": shape.n_buckets,
        "relative_attention_max_distance": shape.max_distance,
        "layer_norm_epsilon": shape.eps,
        "feed_forward_proj": shape.feed_forward_proj(),
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::T5Config;

    #[test]
    fn an_inferred_config_is_written_as_it_is_read() {
        for is_gated in [false, true] {
            for has_bias_per_layer in [false, true] {
                let shape = InferredShape::for_tests(is_gated, has_bias_per_layer);
                let inferred = T5Config::from_inferred(&shape).unwrap();
                let json = config_json(&shape).to_string();
                assert_eq!(T5Config::from_json(json.as_bytes()).unwrap(), inferred);
            }
        }
    }
}
