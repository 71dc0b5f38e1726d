//! Scales of 8-bit float weights, as ComfyUI's files have them beside the weights.
//!
//! | beside `X.weight` | meaning |
//! |---|---|
//! | `X.scale_weight` (older), `X.weight_scale` | one number: a weight is `fp8 * scale`, in f32 |
//! | `X.scale_input` (older), `X.input_scale` | for products that round their input to fp8; there are none here |
//! | `X.comfy_quant` | JSON in bytes: `format` is `float8_e4m3fn` or `float8_e5m2` |
//! | `scaled_fp8` | says that the file has older scales |
//!
//! `_quantization_metadata` in the header may say for all layers what `comfy_quant` says for one.
//! Formats other than the two, such as `nvfp4`, are refused by name. These tensors are no weights
//! and are not listed among the model's.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::entry::Entry;
use super::file::WeightFile;
use crate::{DType, Error, Result};

/// Names without prefix to file and entry.
type Names = BTreeMap<String, (usize, Entry)>;

const MARKER: &str = "scaled_fp8";

/// What stands behind a layer's name in those of its scales.
const WEIGHT_SCALES: [&str; 2] = [".weight_scale", ".scale_weight"];
const INPUT_SCALES: [&str; 2] = [".input_scale", ".scale_input"];
const SECOND_SCALE: &str = ".weight_scale_2";
const FORMAT: &str = ".comfy_quant";
const METADATA: &str = "_quantization_metadata";

/// Longest description of a layer's format.
const MAX_FORMAT_BYTES: u64 = 1 << 16;

/// How a layer is quantised.
#[derive(Deserialize)]
struct LayerFormat {
    format: String,
}

/// Of the header's `_quantization_metadata`.
#[derive(Deserialize)]
struct AllFormats {
    layers: BTreeMap<String, LayerFormat>,
}

/// Takes scales and formats out of `names`; the scales by the names of their weights.
///
/// # Errors
///
/// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) for other formats and for a scale that
/// is not one number; [`ErrorKind::Checkpoint`](crate::ErrorKind::Checkpoint) for what contradicts
/// itself.
pub(super) fn take(
    files: &[WeightFile],
    names: &mut Names,
    prefix: &str,
) -> Result<BTreeMap<String, f32>> {
    let metadata = files.first().and_then(WeightFile::metadata);
    let at_file = |file: usize| move |error: Error| error.at(files[file].path().display());
    if let Some(text) = metadata.and_then(|metadata| metadata.get(METADATA)) {
        check_metadata(text, names, prefix)
            .map_err(|error| error.at(format!("metadata `{METADATA}`")))
            .map_err(at_file(0))?;
    }
    names.remove(MARKER);
    let mut scales = BTreeMap::new();
    let rest = std::mem::take(names);
    let weight_of = |name: &str, suffix: &str| {
        let layer = name.strip_suffix(suffix)?;
        let weight = format!("{layer}.weight");
        rest.contains_key(&weight).then_some(weight)
    };
    for (name, (file, entry)) in &rest {
        let here = |error: Error| {
            error
                .at(format!("tensor `{}`", entry.name()))
                .at(files[*file].path().display())
        };
        if let Some(weight) = WEIGHT_SCALES.iter().find_map(|s| weight_of(name, s)) {
            let scale = read_scale(&files[*file], entry).map_err(here)?;
            let stored = &rest[&weight].1;
            if stored.dtype().is_none_or(|dtype| dtype.fp8().is_none()) {
                return Err(here(Error::unsupported(format!(
                    "is the scale of weights of type {}, expected F8_E4M3 or F8_E5M2",
                    stored.dtype_name()
                ))));
            }
            if scales.insert(weight, scale).is_some() {
                return Err(here(Error::checkpoint(
                    "is the second scale of its weights",
                )));
            }
        } else if let Some(weight) = weight_of(name, FORMAT) {
            let format = read_format(&files[*file], entry).map_err(here)?;
            check_format(&format, &rest[&weight].1).map_err(here)?;
        } else if weight_of(name, SECOND_SCALE).is_some() {
            return Err(here(Error::unsupported(
                "weights with two scales, such as `nvfp4`, are not read",
            )));
        } else if !INPUT_SCALES.iter().any(|s| weight_of(name, s).is_some()) {
            names.insert(name.clone(), (*file, entry.clone()));
        }
    }
    Ok(scales)
}

/// The one number of a scale.
fn read_scale(file: &WeightFile, entry: &Entry) -> Result<f32> {
    if entry.shape().iter().any(|&dim| dim != 1) {
        return Err(Error::unsupported(format!(
            "has shape {:?}, expected one scale for all weights of a layer",
            entry.shape()
        )));
    }
    let tensor = file.take(entry.name())?;
    if !tensor.dtype().is_float() || tensor.dtype().is_quantized() {
        return Err(Error::checkpoint(format!(
            "is of type {}, expected f32",
            tensor.dtype()
        )));
    }
    match tensor.to_f32()[..] {
        [scale] if scale.is_finite() => Ok(scale),
        ref found => Err(Error::checkpoint(format!(
            "found {found:?}, expected one finite number"
        ))),
    }
}

fn read_format(file: &WeightFile, entry: &Entry) -> Result<String> {
    if entry.n_bytes() > MAX_FORMAT_BYTES || entry.dtype() != Some(DType::U8) {
        return Err(Error::checkpoint(format!(
            "has {} bytes of {}, expected JSON in at most {MAX_FORMAT_BYTES} of U8",
            entry.n_bytes(),
            entry.dtype_name()
        )));
    }
    let tensor = file.take(entry.name())?;
    let layer: LayerFormat = serde_json::from_slice(tensor.bytes())
        .map_err(|error| Error::checkpoint(format!("not what was expected: {error}")))?;
    Ok(layer.format)
}

fn check_metadata(text: &str, names: &Names, prefix: &str) -> Result<()> {
    let all: AllFormats = serde_json::from_str(text)
        .map_err(|error| Error::checkpoint(format!("not what was expected: {error}")))?;
    for (layer, format) in &all.layers {
        // Of another model in the same file.
        let Some(name) = layer.strip_prefix(prefix) else {
            continue;
        };
        if let Some((_, weight)) = names.get(&format!("{name}.weight")) {
            check_format(&format.format, weight)
                .map_err(|error| error.at(format!("layer `{layer}`")))?;
        }
    }
    Ok(())
}

fn check_format(format: &str, weight: &Entry) -> Result<()> {
    let expected = match format {
        "float8_e4m3fn" => DType::F8E4M3,
        "float8_e5m2" => DType::F8E5M2,
        other => {
            return Err(Error::unsupported(format!(
                "weights are quantised as `{other}`, expected `float8_e4m3fn` or `float8_e5m2`"
            )));
        }
    };
    match weight.dtype() {
        Some(found) if found == expected => Ok(()),
        _ => Err(Error::checkpoint(format!(
            "says `{format}`, but `{}` is of type {}",
            weight.name(),
            weight.dtype_name()
        ))),
    }
}
