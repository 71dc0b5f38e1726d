//! To safetensors: a model folder, or one file.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::companions::{copy_companions, inferred_config, write_config};
use super::values::{self, Overflow};
use super::{Progress, Written};
#[cfg(doc)]
use crate::ErrorKind;
use crate::checkpoint::Checkpoint;
use crate::limits::{MAX_JSON_BYTES, read_file};
use crate::loading::config_of;
use crate::output::folder::{Folder, copy_if_there};
use crate::output::gguf::GgmlType;
use crate::output::safetensors::{SafetensorsWriter, TensorSpec};
use crate::{DType, Error, Result, Tensor};

/// Tensors that keep their type are copied in pieces of this size.
const PIECE: usize = 16 << 20;

/// The name of a SentencePiece model among the tensors, as ComfyUI has it.
const EMBEDDED_TOKENIZER: &str = "spiece_model";

/// What to write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SafetensorsOptions {
    /// Type of the float tensors; without it each keeps its own.
    pub dtype: Option<DType>,
    /// Most bytes of tensors in a file of a folder; a tensor above it has a file of its own.
    pub max_shard_bytes: Option<u64>,
    /// Makes finite values beyond the range of f16 or bf16 the largest instead of an error.
    pub saturate: bool,
}

/// Writes the tensors of `checkpoint`, encoder and decoder, to `out`: a new folder, or a file if
/// the name ends in `.safetensors`. Names are those of transformers; of a file that holds other
/// models too, the T5 alone is written.
///
/// A folder has `config.json`, with the new type if it states one, `generation_config.json`, the
/// tokenizer's files and the modules of a sentence-transformers model, as far as they are there. A
/// config is written for a model without one. A SentencePiece model among the tensors becomes
/// `spiece.model` in a folder and stays among the tensors of a single file, which has nothing else
/// beside it.
///
/// # Errors
///
/// [`ErrorKind::Input`] if a value does not fit the type, if `out` is a folder that is not empty, or if
/// a single file is to be cut into shards; [`ErrorKind::Unsupported`] for a packed model and a
/// `dtype` that is no float; [`ErrorKind::Io`] if writing fails; what a damaged checkpoint reports.
pub fn to_safetensors(
    checkpoint: &Checkpoint,
    options: &SafetensorsOptions,
    out: &Path,
    progress: Progress<'_>,
) -> Result<Written> {
    let here = |error: Error| error.at_if_placeless(checkpoint.path().display());
    if checkpoint.packed().is_some() {
        return Err(here(Error::unsupported(
            "the model is packed, which cannot be undone, expected the original",
        )));
    }
    if let Some(dtype) = options.dtype.filter(|dtype| !dtype.is_float()) {
        return Err(Error::unsupported(format!("weights cannot be {dtype}")));
    }
    let is_file = out
        .extension()
        .is_some_and(|ending| ending == "safetensors");
    if is_file && options.max_shard_bytes.is_some() {
        return Err(
            Error::input("one file cannot be cut into shards, expected a folder").at(out.display()),
        );
    }
    let mut plan = Plan::new(checkpoint, options).map_err(here)?;
    let embedded = checkpoint.embedded_tokenizer()?;
    plan.specs.retain(|(name, _)| name != EMBEDDED_TOKENIZER);
    let mut written = Written::default();
    if checkpoint.gguf().is_some_and(|file| file.has_tokenizer()) {
        written.notes.push(
            "the tokenizer inside the GGUF file has no place here and is left out".to_owned(),
        );
    }
    if is_file {
        if let Some(tokenizer) = &embedded {
            let spec = TensorSpec::new(EMBEDDED_TOKENIZER, tokenizer.dtype(), tokenizer.shape());
            plan.specs.push((EMBEDDED_TOKENIZER.to_owned(), spec));
        }
        let all = 0..plan.specs.len();
        plan.write(
            checkpoint,
            all,
            out,
            &mut written,
            progress,
            embedded.as_ref(),
        )
        .map_err(here)?;
        written.files.push(out.to_owned());
        return Ok(written);
    }
    // A damaged config is found before anything is written.
    config_of(checkpoint)?;
    let folder = Folder::create(out)?;
    let shards = plan.shards(options.max_shard_bytes);
    let mut weight_map = Map::new();
    for (idx, shard) in shards.iter().enumerate() {
        let name = match shards.len() {
            1 => "model.safetensors".to_owned(),
            n => format!("model-{:05}-of-{n:05}.safetensors", idx + 1),
        };
        for (_, spec) in &plan.specs[shard.clone()] {
            weight_map.insert(spec.name.clone(), json!(name));
        }
        let path = folder.path().join(&name);
        plan.write(
            checkpoint,
            shard.clone(),
            &path,
            &mut written,
            progress,
            None,
        )
        .map_err(here)?;
        written.files.push(PathBuf::from(name));
    }
    if shards.len() > 1 {
        let name = "model.safetensors.index.json";
        let index = json!({
            "metadata": { "total_size": written.tensor_bytes },
            "weight_map": weight_map,
        });
        let path = folder.path().join(name);
        std::fs::write(&path, format!("{index:#}\n"))
            .map_err(|error| Error::io(&path, "write", error))?;
        written.files.push(PathBuf::from(name));
    }
    write_config(&config(checkpoint, options.dtype)?, folder.path())?;
    written.files.push(PathBuf::from("config.json"));
    if let Some(model) = checkpoint.config_path().and_then(Path::parent) {
        let name = Path::new("generation_config.json");
        copy_if_there(model, name, folder.path(), &mut written.files)?;
    }
    copy_companions(checkpoint, folder.path(), &mut written.files)?;
    if let Some(tokenizer) = embedded {
        let name = PathBuf::from("spiece.model");
        let path = folder.path().join(&name);
        if !path.exists() {
            std::fs::write(&path, tokenizer.bytes())
                .map_err(|error| Error::io(&path, "write", error))?;
            written.files.push(name);
        }
    }
    folder.finish()?;
    Ok(written)
}

/// The config with the type that the weights now have.
fn config(checkpoint: &Checkpoint, dtype: Option<DType>) -> Result<Value> {
    let Some(path) = checkpoint.config_path() else {
        let mut config = inferred_config(checkpoint)?;
        if checkpoint
            .names()
            .any(|name| name.starts_with("decoder.block."))
        {
            config["is_encoder_decoder"] = json!(true);
            config["tie_word_embeddings"] = json!(!checkpoint.contains("lm_head.weight"));
        }
        return Ok(config);
    };
    let bytes = read_file(path, MAX_JSON_BYTES, crate::ErrorKind::Config)?;
    let mut config: Value = serde_json::from_slice(&bytes)
        .map_err(|e| Error::config(format!("not valid JSON: {e}")).at(path.display()))?;
    if let Some(dtype) = dtype {
        // Torch's name; transformers loads in this type unless told otherwise. Version 5 calls the
        // field `dtype`.
        let name = match dtype {
            DType::F16 => "float16",
            DType::BF16 => "bfloat16",
            _ => "float32",
        };
        for field in ["torch_dtype", "dtype"] {
            if config.get(field).is_some() {
                config[field] = json!(name);
            }
        }
    }
    Ok(config)
}

/// What every tensor becomes, by its name in the checkpoint.
struct Plan {
    specs: Vec<(String, TensorSpec)>,
    overflow: Overflow,
}

impl Plan {
    fn new(checkpoint: &Checkpoint, options: &SafetensorsOptions) -> Result<Self> {
        let specs = checkpoint.entries().map(|(name, entry)| {
            let stored = entry.supported_dtype()?;
            let dtype = match options.dtype {
                Some(dtype) if stored.is_float() => dtype,
                _ => stored,
            };
            let spec = TensorSpec::new(name, dtype, entry.shape());
            Ok((name.to_owned(), spec))
        });
        Ok(Plan {
            specs: specs.collect::<Result<_>>()?,
            overflow: match options.saturate {
                true => Overflow::Saturate,
                false => Overflow::Refuse,
            },
        })
    }

    /// Tensors of each file: as many as fit, in the order of their names.
    fn shards(&self, max_bytes: Option<u64>) -> Vec<std::ops::Range<usize>> {
        let (mut shards, mut first, mut bytes) = (Vec::new(), 0, 0u64);
        for (idx, (_, spec)) in self.specs.iter().enumerate() {
            let size = spec_bytes(spec);
            if idx > first && max_bytes.is_some_and(|max| bytes.saturating_add(size) > max) {
                shards.push(first..idx);
                (first, bytes) = (idx, 0);
            }
            bytes = bytes.saturating_add(size);
        }
        shards.push(first..self.specs.len());
        shards
    }

    fn write(
        &self,
        checkpoint: &Checkpoint,
        which: std::ops::Range<usize>,
        path: &Path,
        written: &mut Written,
        progress: Progress<'_>,
        embedded: Option<&Tensor>,
    ) -> Result<()> {
        // Without the format transformers does not say what it would have read.
        let metadata = [("format", "pt".to_owned())];
        let specs: Vec<TensorSpec> = self.specs[which.clone()]
            .iter()
            .map(|(_, spec)| spec.clone())
            .collect();
        let mut file = SafetensorsWriter::create(path, &specs, &metadata)?;
        for (place, (name, spec)) in self.specs[which.clone()].iter().enumerate() {
            progress(which.start + place, self.specs.len());
            let tensor = match embedded {
                Some(tokenizer) if name == EMBEDDED_TOKENIZER => tokenizer.clone(),
                _ => checkpoint.take(name)?,
            };
            if tensor.dtype() == spec.dtype {
                for piece in tensor.bytes().chunks(PIECE) {
                    file.append_bytes(place, piece)?;
                    tensor.release();
                }
            } else {
                let to = ggml_type(spec.dtype);
                let append = |bytes: &[u8]| file.append_bytes(place, bytes);
                written.n_saturated += values::convert(&tensor, to, self.overflow, append)
                    .map_err(|e| e.at_if_placeless(format!("tensor `{name}`")))?;
            }
            written.tensor_bytes += spec_bytes(spec);
        }
        progress(which.end, self.specs.len());
        file.finish()
    }
}

/// The format of values is the same in both kinds of files.
fn ggml_type(dtype: DType) -> GgmlType {
    match dtype {
        DType::F16 => GgmlType::F16,
        DType::BF16 => GgmlType::BF16,
        _ => GgmlType::F32,
    }
}

/// Bytes of a tensor whose shape a file has been checked to hold; converted to f32 it has at most
/// twice as many.
fn spec_bytes(spec: &TensorSpec) -> u64 {
    let values = spec.shape.iter().map(|&dim| dim as u64);
    let n_values = values.fold(1u64, u64::saturating_mul);
    n_values.saturating_mul(spec.dtype.size_bytes() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(sizes: &[usize]) -> Plan {
        let spec = |&size: &usize| TensorSpec::new("x", DType::U8, &[size]);
        Plan {
            specs: sizes
                .iter()
                .map(|size| ("x".to_owned(), spec(size)))
                .collect(),
            overflow: Overflow::Refuse,
        }
    }

    #[test]
    fn shards_are_filled_in_order() {
        let plan = plan(&[4, 4, 3, 20, 1]);
        assert_eq!(plan.shards(Some(8)), [0..2, 2..3, 3..4, 4..5]);
        assert_eq!(plan.shards(Some(11)), [0..3, 3..4, 4..5]);
        assert_eq!(plan.shards(None).len(), 1);
        assert_eq!(plan.shards(Some(0)).len(), 5);
    }
}
