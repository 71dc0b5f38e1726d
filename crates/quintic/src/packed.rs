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

#[cfg(doc)]
use crate::ErrorKind;
use crate::backend::Backend;
use crate::backend::cpu::Cpu;
use crate::checkpoint::packed::FILE;
use crate::checkpoint::{Checkpoint, Entry, Packed, PackedEntry, TensorSource};
use crate::config::T5Config;
use crate::convert::companions::{copy_companions, inferred_config, write_config};
use crate::loading::{config_of, shapes_from};
use crate::model::{EncoderWeights, Product};
use crate::output::folder::{Folder, copy};
use crate::output::safetensors::{SafetensorsWriter, TensorSpec};
use crate::tensor::{DType, Tensor};
use crate::{Error, Result};

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
    refuse_quantized(checkpoint).map_err(here)?;
    let config = config_of(checkpoint)?;
    let plan = Plan::new(checkpoint, cpu, &config).map_err(here)?;
    let folder = Folder::create(out)?;
    let mut files = vec![PathBuf::from(FILE), PathBuf::from("config.json")];
    let file = folder.path().join(FILE);
    plan.write(checkpoint, cpu, &config, &file, progress)
        .map_err(here)?;
    match checkpoint.config_path() {
        Some(path) => copy(path, &folder.path().join("config.json"))?,
        None => write_config(&inferred_config(checkpoint)?, folder.path())?,
    }
    copy_companions(checkpoint, folder.path(), &mut files)?;
    let packed_bytes = std::fs::metadata(&file)
        .map_err(|error| Error::io(&file, "read the size of the file", error))?
        .len();
    folder.finish()?;
    Ok(Written {
        files,
        packed_bytes,
    })
}

/// Packing would undo what quantisation is for, and a GGUF file's tokenizer would be lost.
fn refuse_quantized(checkpoint: &Checkpoint) -> Result<()> {
    let hint = "it is computed from as it is: load the file itself";
    if checkpoint.gguf().is_some() {
        return Err(Error::unsupported("a GGUF file is not packed").hint(hint));
    }
    let quantized = |(_, entry): &(&str, &Entry)| entry.dtype().is_some_and(DType::is_quantized);
    match checkpoint.entries().find(quantized) {
        None => Ok(()),
        Some((name, entry)) => Err(Error::unsupported(format!(
            "has weights of type {}, which are not packed",
            entry.dtype_name()
        ))
        .at(format!("tensor `{name}`"))
        .hint(hint)),
    }
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
                let shape = cpu.packed_shape(
                    Some(product.site(layer)),
                    &part.weights,
                    part.gain.is_some(),
                );
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
                let matrix =
                    cpu.pack(Some(product.site(layer)), &part.weights, part.gain.as_ref())?;
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
