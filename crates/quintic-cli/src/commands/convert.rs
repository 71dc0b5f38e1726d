//! `quintic convert`.

use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use quintic::backend::cpu::Cpu;
use quintic::packed::{self, Written};
use quintic::{BackendKind, Error, Result};
use serde_json::json;

use crate::args::{ConvertArgs, TokenizerKind};
use crate::show::size;
use crate::sink::print;
use crate::{memory, model};

pub(crate) fn run(args: &ConvertArgs) -> Result<()> {
    let files = &args.model.files;
    if files.tokenizer.is_some() || files.tokenizer_kind != TokenizerKind::Auto {
        return Err(Error::input(
            "`--tokenizer` and `--tokenizer-kind` have nothing to do with `convert`, which copies \
             the tokenizer beside the model",
        ));
    }
    if BackendKind::parse(&args.compute.backend)? != BackendKind::Cpu {
        return Err(Error::unsupported(format!(
            "the backend `{}` reads nothing packed, expected `cpu`",
            args.compute.backend
        )));
    }
    let started = Instant::now();
    let checkpoint = model::open(&args.model.model, files)?;
    let cpu = Cpu::new(&args.compute.choice()?.resolve(None)?)?;
    let bar = progress(args.quiet);
    let written = packed::write(&checkpoint, &cpu, &args.output, &mut |done, all| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    report(args, &cpu, &written?, started.elapsed().as_secs_f64())
}

fn progress(quiet: bool) -> ProgressBar {
    if quiet {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(0);
    match ProgressStyle::with_template("{bar:40} {pos}/{len} layers, {eta} left") {
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
