//! Models whose products are stored as the CPU backend's kernels read them.
//!
//! Packing takes as long as reading a model several times, and memory for a second copy. A model
//! that [`write()`] has packed needs neither: its products are used in the memory map.
//!
//! The folder is a model folder like others: `config.json`, the tokenizer's files, the modules of
//! a sentence-transformers model, and `model.packed.safetensors`. In that file a product is a
//! tensor of bytes such as `encoder.block.0.qkv`, which begins at a multiple of 64; embedding,
//! norms and bias tables keep their names and types. What the bytes mean is in its metadata, see
//! [`Packed`].
//!
//! One file serves every instruction set, except that f32 products in precision `high` have two
//! forms: see [`MatmulPrecision::High`](crate::MatmulPrecision::High).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use quintic_kernels::{ALIGNMENT, LAYOUT};
use serde_json::json;

#[cfg(doc)]
use crate::ErrorKind;
use crate::backend::Backend;
use crate::backend::cpu::Cpu;
use crate::checkpoint::packed::FILE;
use crate::checkpoint::{
    Checkpoint, InferredShape, Packed, PackedEntry, TOKENIZER_FILES, TensorSource, infer_shape,
};
use crate::config::T5Config;
use crate::model::{EncoderWeights, Product};
use crate::output::safetensors::{SafetensorsWriter, TensorSpec};
use crate::sentence::SentenceHead;
use crate::tensor::{DType, Tensor};
use crate::text_encoder::{config_of, shapes_from};
use crate::{Error, Result};

/// Files of a tokenizer that only go with others.
const TOKENIZER_COMPANIONS: [&str; 2] = ["special_tokens_map.json", "added_tokens.json"];

/// Tensors are copied in pieces of this size.
const PIECE: usize = 16 << 20;

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Written {
    /// Files in the folder, relative to it.
    pub files: Vec<PathBuf>,
    /// Bytes of `model.packed.safetensors`.
    pub packed_bytes: u64,
}

/// Packs the encoder of `checkpoint` for `cpu` into the new folder `out`. `progress` is called
/// with the number of finished layers and that of all.
///
/// Never more than one packed matrix is in memory. The folder gets its name when everything is
/// in it.
///
/// # Errors
///
/// [`ErrorKind::Input`] if `out` is there and is not an empty folder; [`ErrorKind::Unsupported`]
/// if the model is packed already, or cannot be computed so; [`ErrorKind::Io`] if writing fails;
/// and whatever loading the encoder may report.
pub fn write(
    checkpoint: &Checkpoint,
    cpu: &Cpu,
    out: &Path,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Written> {
    let here = |error: Error| error.at_if_placeless(checkpoint.path().display());
    if checkpoint.packed().is_some() {
        return Err(here(Error::unsupported("the model is packed already")));
    }
    let config = config_of(checkpoint)?;
    let plan = Plan::new(checkpoint, cpu, &config).map_err(here)?;
    let folder = Folder::create(out)?;
    let mut files = vec![PathBuf::from(FILE), PathBuf::from("config.json")];
    let file = folder.path().join(FILE);
    plan.write(checkpoint, cpu, &config, &file, progress)
        .map_err(here)?;
    match checkpoint.config_path() {
        Some(path) => copy(path, &folder.path().join("config.json"))?,
        None => {
            let path = folder.path().join("config.json");
            let text = format!("{:#}\n", config_json(&infer_shape(checkpoint)?));
            std::fs::write(&path, text).map_err(|error| Error::io(&path, "write", error))?;
        }
    }
    if let Some(tokenizer) = checkpoint.tokenizer_folder() {
        for name in TOKENIZER_FILES.into_iter().chain(TOKENIZER_COMPANIONS) {
            copy_if_there(tokenizer, Path::new(name), folder.path(), &mut files)?;
        }
    }
    if let Some(model) = checkpoint.config_path().and_then(Path::parent) {
        for name in SentenceHead::files(model)? {
            copy_if_there(model, &name, folder.path(), &mut files)?;
        }
    }
    let packed_bytes = std::fs::metadata(&file)
        .map_err(|error| Error::io(&file, "read the size of the file", error))?
        .len();
    folder.finish()?;
    Ok(Written {
        files,
        packed_bytes,
    })
}

/// Everything that a header needs before the first value is written.
struct Plan {
    specs: Vec<TensorSpec>,
    packed: Packed,
    /// Where a tensor of a name is among the specs.
    places: BTreeMap<String, usize>,
}

impl Plan {
    /// Takes every tensor once without reading it, where files are mapped.
    fn new(checkpoint: &Checkpoint, cpu: &Cpu, config: &T5Config) -> Result<Self> {
        let compute = cpu.compute();
        let mut packed = Packed {
            layout: LAYOUT.to_owned(),
            dtype: compute.dtype,
            matmul_precision: compute.matmul_precision,
            fold_norm_gains: compute.fold_norm_gains,
            weights: compute.weights,
            keep: compute.keep,
            matrices: BTreeMap::new(),
        };
        // Matrices first: they are whole lines of the cache, other tensors need not be.
        let (mut matrices, mut others) = (Vec::new(), Vec::new());
        let other =
            |tensor: &Tensor| TensorSpec::new(tensor.name(), tensor.dtype(), tensor.shape());
        let mut source = TensorSource::new(checkpoint, shapes_from(checkpoint));
        let weights = EncoderWeights::check(&mut source, config)?;
        for layer in 0..config.num_layers {
            let parts = weights.take_parts(&mut source, layer, cpu.folds_gains())?;
            for product in Product::ALL {
                let part = parts.part(product);
                let shape =
                    cpu.packed_shape(Some(product.kind()), &part.weights, part.gain.is_some());
                let name = product.name(layer);
                matrices.push(TensorSpec::new(&name, DType::U8, &[shape.n_bytes()]));
                let entry = PackedEntry {
                    storage: shape.storage.name().to_owned(),
                    columns: shape.columns,
                    depth: shape.depth,
                    gated: shape.gated,
                };
                packed.matrices.insert(name, entry);
            }
            others.extend(parts.others().map(other));
        }
        others.push(other(&weights.take_final_norm(&mut source)?));
        others.push(other(&embedding(&weights, &mut source)?));
        // The rest of the model is left behind, but not a layer that the config does not know.
        source.finish(|name| !name.starts_with("encoder.block."))?;
        others.extend(checkpoint.embedded_tokenizer()?.as_ref().map(embedded_spec));
        let specs: Vec<TensorSpec> = matrices.into_iter().chain(others).collect();
        let places = specs
            .iter()
            .enumerate()
            .map(|(idx, spec)| (spec.name.clone(), idx))
            .collect();
        Ok(Plan {
            specs,
            packed,
            places,
        })
    }

    fn write(
        &self,
        checkpoint: &Checkpoint,
        cpu: &Cpu,
        config: &T5Config,
        path: &Path,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<()> {
        let metadata = self.packed.metadata()?;
        let mut file = SafetensorsWriter::create_aligned(path, &self.specs, &metadata, ALIGNMENT)?;
        let mut source = TensorSource::new(checkpoint, shapes_from(checkpoint));
        let weights = EncoderWeights::check(&mut source, config)?;
        for layer in 0..config.num_layers {
            progress(layer, config.num_layers);
            let parts = weights.take_parts(&mut source, layer, cpu.folds_gains())?;
            for tensor in parts.others() {
                self.append(&mut file, tensor.name(), tensor)?;
            }
            for product in Product::ALL {
                let part = parts.part(product);
                let matrix = cpu.pack(Some(product.kind()), &part.weights, part.gain.as_ref())?;
                file.append_bytes(self.places[&product.name(layer)], matrix.bytes())?;
            }
        }
        let norm = weights.take_final_norm(&mut source)?;
        self.append(&mut file, norm.name(), &norm)?;
        let embedding = embedding(&weights, &mut source)?;
        self.append(&mut file, embedding.name(), &embedding)?;
        if let Some(tokenizer) = checkpoint.embedded_tokenizer()? {
            self.append(&mut file, &embedded_spec(&tokenizer).name, &tokenizer)?;
        }
        file.finish()?;
        progress(config.num_layers, config.num_layers);
        Ok(())
    }

    /// Copies a tensor as it is stored, without keeping what was read in memory.
    fn append(&self, file: &mut SafetensorsWriter, name: &str, tensor: &Tensor) -> Result<()> {
        for piece in tensor.bytes().chunks(PIECE) {
            file.append_bytes(self.places[name], piece)?;
            tensor.release();
        }
        Ok(())
    }
}

/// The embedding under its first name: the others promise a model that is not there.
fn embedding(weights: &EncoderWeights, source: &mut TensorSource<'_>) -> Result<Tensor> {
    Ok(weights.take_embedding(source)?.with_name("shared.weight"))
}

/// A tokenizer inside the weight file, under its name without a prefix.
fn embedded_spec(tokenizer: &Tensor) -> TensorSpec {
    let name = tokenizer.name().rsplit('.').next().unwrap_or_default();
    TensorSpec::new(name, tokenizer.dtype(), tokenizer.shape())
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
    })
}

/// A folder that has another name until it is complete.
struct Folder {
    target: PathBuf,
    temporary: tempfile::TempDir,
}

impl Folder {
    fn create(target: &Path) -> Result<Self> {
        let is_empty = std::fs::read_dir(target).map(|mut entries| entries.next().is_none());
        match is_empty {
            Ok(true) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Ok(false) => {
                return Err(Error::input("the folder is not empty, expected a new one")
                    .at(target.display()));
            }
            Err(error) => return Err(Error::io(target, "create the folder", error)),
        }
        let parent = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let mut builder = tempfile::Builder::new();
        builder.prefix(".quintic-").suffix(".tmp");
        #[cfg(unix)]
        {
            // What `create_dir` would give, less the umask; a temporary folder is private.
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(std::fs::Permissions::from_mode(0o777));
        }
        let temporary = builder
            .tempdir_in(parent)
            .map_err(|error| Error::io(parent, "create a folder in the folder", error))?;
        Ok(Folder {
            target: target.to_owned(),
            temporary,
        })
    }

    fn path(&self) -> &Path {
        self.temporary.path()
    }

    fn finish(self) -> Result<()> {
        let fail = |error| Error::io(&self.target, "give the folder its name", error);
        // Only Unix renames onto an empty folder.
        if self.target.is_dir() {
            std::fs::remove_dir(&self.target).map_err(fail)?;
        }
        std::fs::rename(self.temporary.path(), &self.target).map_err(fail)?;
        let _ = self.temporary.keep();
        Ok(())
    }
}

fn copy_if_there(from: &Path, name: &Path, to: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let (from, to) = (from.join(name), to.join(name));
    if !from.is_file() {
        return Ok(());
    }
    if let Some(parent) = to.parent() {
        std::fs::create_dir_all(parent)
            .map_err(|error| Error::io(parent, "create the folder", error))?;
    }
    copy(&from, &to)?;
    files.push(name.to_owned());
    Ok(())
}

/// Contents alone: what is read-only in a cache need not be so in a folder of one's own.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut source =
        std::fs::File::open(from).map_err(|error| Error::io(from, "open the file", error))?;
    let mut target =
        std::fs::File::create(to).map_err(|error| Error::io(to, "create the file", error))?;
    std::io::copy(&mut source, &mut target).map_err(|error| Error::io(to, "write", error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

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
