//! Typed access to a JSON object that remembers which fields were read.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::UnusedField;
use crate::{Error, Result};

/// Largest extent accepted for any dimension: far above every published model, and small
/// enough that no product of two of them overflows.
const MAX_EXTENT: u64 = 1 << 28;

/// Largest number of layers accepted.
const MAX_LAYERS: u64 = 4096;

/// Fields that do not change what an encoder computes, and why.
const WITHOUT_EFFECT: &[(&str, &str)] = &[
    ("_commit_hash", "provenance"),
    ("_name_or_path", "provenance"),
    ("add_cross_attention", "implied by the decoder"),
    ("bad_words_ids", "generation setting"),
    ("begin_suppress_tokens", "generation setting"),
    ("bos_token_id", "not used by the family"),
    (
        "chronos_config",
        "time-series front end, not part of the text model",
    ),
    (
        "chunk_size_feed_forward",
        "memory setting of transformers, same results",
    ),
    ("classifier_dropout", "training only"),
    ("cross_attention_hidden_size", "not used by the family"),
    ("decoder_layers", "not used by the family"),
    ("diversity_penalty", "generation setting"),
    ("do_sample", "generation setting"),
    ("dropout_rate", "training only"),
    ("early_stopping", "generation setting"),
    ("encoder_no_repeat_ngram_size", "generation setting"),
    ("exponential_decay_length_penalty", "generation setting"),
    ("finetuning_task", "provenance"),
    ("forced_bos_token_id", "generation setting"),
    ("forced_eos_token_id", "generation setting"),
    ("gradient_checkpointing", "training only"),
    ("id2label", "classification head"),
    ("initializer_factor", "training only"),
    ("is_encoder_decoder", "decided from the tensors"),
    ("label2id", "classification head"),
    ("length_penalty", "generation setting"),
    ("max_length", "generation setting"),
    ("max_new_tokens", "generation setting"),
    ("min_length", "generation setting"),
    ("n_positions", "relative positions have no limit"),
    ("no_repeat_ngram_size", "generation setting"),
    ("num_beam_groups", "generation setting"),
    ("num_beams", "generation setting"),
    ("num_labels", "classification head"),
    ("num_return_sequences", "generation setting"),
    ("output_attentions", "output is chosen per call"),
    ("output_hidden_states", "output is chosen per call"),
    ("output_past", "dead setting"),
    ("output_scores", "generation setting"),
    ("prefix", "generation setting"),
    ("problem_type", "classification head"),
    ("remove_invalid_values", "generation setting"),
    ("repetition_penalty", "generation setting"),
    ("return_dict", "output is chosen per call"),
    ("return_dict_in_generate", "generation setting"),
    ("scalable_attention", "dead setting of UMT5"),
    ("sep_token_id", "not used by the family"),
    ("suppress_tokens", "generation setting"),
    ("task_specific_params", "generation settings by task"),
    ("temperature", "generation setting"),
    ("tf_legacy_loss", "training only"),
    ("tie_encoder_decoder", "decided from the tensors"),
    ("top_k", "generation setting"),
    ("top_p", "generation setting"),
    ("torchscript", "export setting"),
    ("transformers_version", "provenance"),
    ("typical_p", "generation setting"),
    ("use_bfloat16", "training only"),
    ("use_cache", "generation setting"),
];

/// Fields that mean other numbers than this engine would compute, unless they hold the
/// given harmless value or are empty.
const REFUSED: &[(&str, &str)] = &[
    (
        "quantization_config",
        "quantised checkpoints of this kind are not read",
    ),
    (
        "compression_config",
        "compressed checkpoints of this kind are not read",
    ),
    ("pruned_heads", "pruned heads are not supported"),
    ("is_decoder", "a decoder-only stack is not supported"),
    ("rope_scaling", "the family has no rotary positions"),
    ("adapters", "adapters are not applied"),
];

/// A field that may be absent.
pub(super) struct Count {
    name: &'static str,
    value: Option<usize>,
}

impl Count {
    pub(super) fn required(self) -> Result<usize> {
        self.value.ok_or_else(|| {
            Error::config("missing, expected a positive integer")
                .at(format!("field `{}`", self.name))
        })
    }

    pub(super) fn or(self, default: usize) -> usize {
        self.value.unwrap_or(default)
    }
}

pub(super) struct Fields {
    map: Map<String, Value>,
    read: HashSet<String>,
}

impl Fields {
    pub(super) fn new(map: Map<String, Value>) -> Self {
        Fields {
            map,
            read: HashSet::new(),
        }
    }

    /// The value of a field; JSON null counts as absent.
    fn get(&mut self, name: &str) -> Option<&Value> {
        self.read.insert(name.to_owned());
        self.map.get(name).filter(|value| !value.is_null())
    }

    fn whole(&mut self, name: &str, least: u64, most: u64) -> Result<Option<u64>> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        match value.as_u64() {
            Some(number) if (least..=most).contains(&number) => Ok(Some(number)),
            _ => Err(Error::config(format!(
                "found {}, expected a whole number from {least} to {most}",
                shown(value)
            ))
            .at(format!("field `{name}`"))),
        }
    }

    /// A positive extent under its own name or transformers' alias for it.
    pub(super) fn count(
        &mut self,
        name: &'static str,
        alias: Option<&'static str>,
    ) -> Result<Count> {
        let most = if name == "num_layers" {
            MAX_LAYERS
        } else {
            MAX_EXTENT
        };
        let mut value = self.whole(name, 1, most)?;
        if let Some(alias) = alias
            && let Some(other) = self.whole(alias, 1, most)?
        {
            match value {
                Some(number) if number != other => {
                    return Err(Error::config(format!(
                        "found {number}, but `{alias}`, another name for it, is {other}"
                    ))
                    .at(format!("field `{name}`")));
                }
                _ => value = Some(other),
            }
        }
        Ok(Count {
            name,
            value: value.map(|number| number as usize),
        })
    }

    pub(super) fn count_or_zero(&mut self, name: &str) -> Result<Option<usize>> {
        Ok(self
            .whole(name, 0, MAX_LAYERS)?
            .map(|number| number as usize))
    }

    pub(super) fn token(&mut self, name: &str) -> Result<Option<u32>> {
        Ok(self.whole(name, 0, MAX_EXTENT)?.map(|number| number as u32))
    }

    /// Whether the field is there, be it null.
    pub(super) fn has(&self, name: &str) -> bool {
        self.map.contains_key(name)
    }

    /// One token or a list of them.
    pub(super) fn tokens(&mut self, name: &str) -> Result<Vec<u32>> {
        let Some(Value::Array(list)) = self.get(name) else {
            return Ok(self.token(name)?.into_iter().collect());
        };
        list.iter()
            .map(|value| match value.as_u64() {
                Some(number) if number <= MAX_EXTENT => Ok(number as u32),
                _ => Err(
                    Error::config(format!("found {}, expected token ids", shown(value)))
                        .at(format!("field `{name}`")),
                ),
            })
            .collect()
    }

    pub(super) fn non_negative(&mut self, name: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        match value.as_f64() {
            Some(number) if number >= 0.0 && number.is_finite() => Ok(Some(number)),
            _ => Err(Error::config(format!(
                "found {}, expected a finite number of at least 0",
                shown(value)
            ))
            .at(format!("field `{name}`"))),
        }
    }

    pub(super) fn boolean(&mut self, name: &str) -> Result<Option<bool>> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(Error::config(format!(
                "found {}, expected true or false",
                shown(other)
            ))
            .at(format!("field `{name}`"))),
        }
    }

    pub(super) fn text(&mut self, name: &str) -> Result<Option<String>> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(other) => Err(
                Error::config(format!("found {}, expected a text", shown(other)))
                    .at(format!("field `{name}`")),
            ),
        }
    }

    pub(super) fn strings(&mut self, name: &str) -> Result<Vec<String>> {
        match self.get(name) {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) if list.iter().all(Value::is_string) => Ok(list
                .iter()
                .filter_map(|v| v.as_str().map(str::to_owned))
                .collect()),
            Some(other) => Err(Error::config(format!(
                "found {}, expected a list of texts",
                shown(other)
            ))
            .at(format!("field `{name}`"))),
        }
    }

    /// `torch_dtype` (transformers 4) or `dtype` (transformers 5).
    pub(super) fn dtype(&mut self) -> Result<Option<String>> {
        let old = self.text("torch_dtype")?;
        Ok(self.text("dtype")?.or(old))
    }

    pub(super) fn refuse_unsupported(&mut self) -> Result<()> {
        for &(name, reason) in REFUSED {
            let harmless = match self.get(name) {
                None | Some(Value::Bool(false)) => true,
                Some(Value::Object(map)) => map.is_empty(),
                Some(Value::Array(list)) => list.is_empty(),
                Some(_) => false,
            };
            if !harmless {
                return Err(Error::unsupported(reason).at(format!("field `{name}`")));
            }
        }
        Ok(())
    }

    /// What is left: known to have no effect, or unknown.
    pub(super) fn unused(&self) -> Vec<UnusedField> {
        self.map
            .keys()
            .filter(|name| !self.read.contains(*name))
            .map(|name| {
                let known = WITHOUT_EFFECT.iter().find(|(known, _)| known == name);
                UnusedField {
                    name: name.clone(),
                    reason: known.map_or("not known to this version", |(_, reason)| reason),
                    unknown: known.is_none(),
                }
            })
            .collect()
    }
}

/// The JSON type of a value, for messages.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// A value for a message: itself if short, else its type.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    if text.len() <= 40 {
        format!("`{text}`")
    } else {
        kind(value).to_owned()
    }
}
