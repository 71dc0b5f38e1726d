//! `quintic convert`.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use quintic::backend::cpu::Cpu;
use quintic::convert::{self, GgufOptions, GgufWeights, SafetensorsOptions};
use quintic::packed::{self, Written};
use quintic::{
    BackendKind, ComputeChoice, ComputeType, DType, Error, Keep, MatmulPrecision, Result,
    WeightType,
};
use serde_json::json;

use crate::args::{ConvertArgs, ModelFormat, TokenizerKind};
use crate::show::size;
use crate::sink::{print, unknown_ending};
use crate::{memory, model};

pub(crate) fn run(args: &ConvertArgs) -> Result<()> {
    let files = &args.model.files;
    let to_gguf = args.to == Some(ModelFormat::Gguf);
    if (files.tokenizer.is_some() && !to_gguf) || files.tokenizer_kind != TokenizerKind::Auto {
        return Err(Error::input(
            "`--tokenizer` and `--tokenizer-kind` have nothing to do with `convert`, which copies \
             the tokenizer beside the model; a GGUF file alone takes a `--tokenizer`",
        ));
    }
    let started = Instant::now();
    match args.to {
        None => pack(args, started),
        Some(format) => write(args, format, started),
    }
}

/// `--to`.
fn write(args: &ConvertArgs, format: ModelFormat, started: Instant) -> Result<()> {
    let checkpoint = |args: &ConvertArgs| model::open(&args.model.model, &args.model.files);
    let bar = progress(args.quiet, "tensors");
    let mut told = |done, all| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
    };
    let written = match format {
        ModelFormat::Safetensors => {
            if args
                .output
                .extension()
                .is_some_and(|ending| ending == "gguf")
            {
                return Err(
                    unknown_ending("gguf", "a folder or .safetensors").at(args.output.display())
                );
            }
            let options = SafetensorsOptions {
                dtype: args.dtype.as_deref().map(float_type).transpose()?,
                max_shard_bytes: args.max_shard_size,
                saturate: args.saturate,
            };
            let checkpoint = checkpoint(args)?;
            convert::to_safetensors(&checkpoint, &options, &args.output, &mut told)
        }
        ModelFormat::Gguf => {
            let weights = gguf_weights(args)?;
            let checkpoint = checkpoint(args)?;
            let name = name(&args.model.model);
            let options = GgufOptions {
                weights,
                tokenizer: args.model.files.tokenizer.as_deref(),
                saturate: args.saturate,
                name: name.as_deref(),
            };
            convert::to_gguf(&checkpoint, &options, &args.output, &mut told)
        }
    };
    bar.finish_and_clear();
    let written = written?;
    if !args.quiet {
        tell(&written);
    }
    let seconds = started.elapsed().as_secs_f64();
    if !args.json {
        return print(&format!(
            "{}: {} of tensors in {seconds:.1} s, {}",
            args.output.display(),
            size(written.tensor_bytes),
            match written.files.len() {
                1 => "1 file".to_owned(),
                n => format!("{n} files"),
            }
        ));
    }
    let files: Vec<String> = written
        .files
        .iter()
        .map(|file| file.display().to_string())
        .collect();
    print(&json!({
        "output": args.output.display().to_string(),
        "dtype": args.dtype,
        "tensor_bytes": written.tensor_bytes,
        "files": files,
        "saturated_values": written.n_saturated,
        "not_quantised": written.not_quantised,
        "other_blocks": written.other_blocks.iter().map(|other| {
            json!({ "tensor": other.tensor, "wanted": other.wanted, "found": other.found })
        }).collect::<Vec<_>>(),
        "seconds": seconds,
        "peak_rss_bytes": memory::peak_rss_bytes(),
    }))
}

fn tell(written: &convert::Written) {
    for note in &written.notes {
        eprintln!("note: {note}");
    }
    if written.n_saturated > 0 {
        eprintln!(
            "note: {} values are beyond the type's range and became its largest",
            written.n_saturated
        );
    }
    // One line for each pair of types, with the names of all its tensors.
    let mut others = BTreeMap::<_, Vec<&str>>::new();
    for other in &written.other_blocks {
        let names = others.entry((other.wanted, other.found)).or_default();
        names.push(&other.tensor);
    }
    for ((wanted, found), names) in others {
        eprintln!(
            "note: {} tensors have rows that are no multiple of 256, and are {found} instead of \
             {wanted}: {}",
            names.len(),
            names.join(", ")
        );
    }
    if !written.not_quantised.is_empty() {
        eprintln!(
            "note: {} tensors have rows that are no whole blocks, and are f16: {}",
            written.not_quantised.len(),
            written.not_quantised.join(", ")
        );
    }
}

fn float_type(name: &str) -> Result<DType> {
    match name {
        "f32" => Ok(DType::F32),
        "f16" => Ok(DType::F16),
        "bf16" => Ok(DType::BF16),
        other => Err(Error::unsupported(format!(
            "weights in safetensors cannot be `{other}`, expected `f32`, `bf16` or `f16`"
        ))),
    }
}

fn gguf_weights(args: &ConvertArgs) -> Result<GgufWeights> {
    let ending = args.output.extension().and_then(|ending| ending.to_str());
    if ending != Some("gguf") {
        return Err(unknown_ending(ending.unwrap_or_default(), ".gguf").at(args.output.display()));
    }
    if args.max_shard_size.is_some() {
        return Err(Error::unsupported(
            "a GGUF file is not cut into shards, but `--max-shard-size` was given",
        ));
    }
    match &args.dtype {
        Some(dtype) => GgufWeights::parse(dtype),
        None => Err(Error::input(
            "`--to gguf` needs a `--dtype`: f32, f16, bf16, q8_0, q6_k, q5_k, q5_1, q5_0, q4_k, \
             q4_1, q4_0, q3_k or q2_k",
        )),
    }
}

/// What people call the model: the last part of its id or path, of a file without its ending.
fn name(model: &str) -> Option<String> {
    let path = Path::new(model);
    let name = match path.is_file() {
        true => path.file_stem(),
        false => path.file_name(),
    };
    Some(name?.to_str()?.to_owned())
}

/// `--pack`.
fn pack(args: &ConvertArgs, started: Instant) -> Result<()> {
    if BackendKind::parse(&args.backend)? != BackendKind::Cpu {
        return Err(Error::unsupported(format!(
            "the backend `{}` reads nothing packed, expected `cpu`",
            args.backend
        )));
    }
    let precision = args.matmul_precision.as_deref();
    let choice = ComputeChoice {
        dtype: args.dtype.as_deref().map(ComputeType::parse).transpose()?,
        matmul_precision: precision.map(MatmulPrecision::parse).transpose()?,
        threads: args.threads,
        fold_norm_gains: args.fold_norm_gains.then_some(true),
        weights: args.weights.as_deref().map(WeightType::parse).transpose()?,
        keep: args.keep.as_deref().map(Keep::parse).transpose()?,
    };
    let checkpoint = model::open(&args.model.model, &args.model.files)?;
    let choice = match model::plan(args.plan.as_deref(), &checkpoint)? {
        Some(plan) => {
            if !args.quiet {
                eprintln!("note: by the plan, {}", plan.describe());
            }
            plan.complete(&choice)?
        }
        None => choice,
    };
    let cpu = Cpu::new(&choice.resolve(None)?)?;
    let bar = progress(args.quiet, "layers");
    let written = packed::write(&checkpoint, &cpu, &args.output, &mut |done, all| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    report(args, &cpu, &written?, started.elapsed().as_secs_f64())
}

fn progress(quiet: bool, what: &str) -> ProgressBar {
    if quiet {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(0);
    match ProgressStyle::with_template(&format!("{{bar:40}} {{pos}}/{{len}} {what}, {{eta}} left"))
    {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn report(args: &ConvertArgs, cpu: &Cpu, written: &Written, seconds: f64) -> Result<()> {
    let dtype = cpu.compute().dtype.name();
    if !args.json {
        return print(&format!(
            "{}: {} packed for {dtype} in {seconds:.1} s, {} files",
            args.output.display(),
            size(written.packed_bytes),
            written.files.len()
        ));
    }
    let files: Vec<String> = written
        .files
        .iter()
        .map(|file| file.display().to_string())
        .collect();
    print(&json!({
        "output": args.output.display().to_string(),
        "dtype": dtype,
        "matmul_precision": cpu.compute().matmul_precision.name(),
        "fold_norm_gains": cpu.compute().fold_norm_gains,
        "weights": cpu.compute().weights.name(),
        "keep": cpu.compute().keep.names(),
        "packed_bytes": written.packed_bytes,
        "files": files,
        "seconds": seconds,
        "peak_rss_bytes": memory::peak_rss_bytes(),
    }))
}
