//! `quintic encode`.

use std::path::Path;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use quintic::preset::Preset;
use quintic::{Error, Result, TextEncoder, WeightType};
use serde_json::{Value, json};

use crate::args::{EncodeArgs, TokenizerKind};
use crate::job::{Batch, Job};
use crate::pooling::Pooling;
use crate::sink::{Plan, RowInfo, Sink, print};
use crate::source::Source;
use crate::{batches, memory, model, texts};

pub(crate) fn run(args: &EncodeArgs) -> Result<()> {
    if args.json && args.output == Path::new("-") {
        return Err(Error::input(
            "`--json` and `--output -` would both write to standard output, expected one of them",
        ));
    }
    let files = &args.model.files;
    if args.input_ids.is_some()
        && (files.tokenizer.is_some() || files.tokenizer_kind != TokenizerKind::Auto)
    {
        return Err(Error::input(
            "`--tokenizer` and `--tokenizer-kind` have nothing to do with `--input-ids`",
        ));
    }
    let started = Instant::now();
    let checkpoint = model::open(&args.model.model, files)?;
    let encoder = model::load(&checkpoint, &args.compute, args.quiet)?;
    let pooling = Pooling::of(args, &encoder)?;
    let source = match &args.input_ids {
        Some(path) => Source::from_ids(batches::read(path)?, args)?,
        None => {
            let preset = preset_of(args, &encoder)?;
            let class = preset.as_ref().map(|preset| preset.tokenizer);
            let tokenizer = model::tokenizer(&checkpoint, files, class)?;
            let texts = texts_of(args)?;
            match &preset {
                Some(preset) => Source::from_preset(texts, preset, &tokenizer, &encoder, args)?,
                None => {
                    // A sentence-transformers model cuts where it was trained to, unless told
                    // otherwise.
                    let own_length = pooling.as_ref().and_then(Pooling::max_length);
                    let max_length = args.max_length.or(own_length);
                    Source::from_texts(texts, &tokenizer, &encoder, max_length, args)?
                }
            }
        }
    };
    let load_s = started.elapsed().as_secs_f64();

    let n_tokens = write(&source, &encoder, pooling.as_ref(), args)?;
    let encode_s = started.elapsed().as_secs_f64() - load_s;
    if args.json {
        print(&summary(
            args, &encoder, &source, n_tokens, load_s, encode_s,
        ))?;
    } else if !args.quiet {
        let rows = match source.job.n_rows() {
            1 => "1 row".to_owned(),
            n => format!("{n} rows"),
        };
        eprintln!(
            "{rows}, {n_tokens} tokens, loaded in {load_s:.2} s, encoded in {encode_s:.2} s: {}",
            args.output.display()
        );
    }
    Ok(())
}

fn texts_of(args: &EncodeArgs) -> Result<Vec<String>> {
    match &args.input {
        Some(path) => texts::read(path, args.column.as_deref()),
        None => Ok(args.texts.clone()),
    }
}

/// The preset that was asked for, with the length that was asked for.
fn preset_of(args: &EncodeArgs, encoder: &TextEncoder) -> Result<Option<Preset>> {
    let Some(name) = &args.preset else {
        return Ok(None);
    };
    let preset = Preset::by_name(name)?;
    if let Some(family) = encoder.config().family {
        preset.check_family(family)?;
    }
    match args.max_length {
        Some(max_length) => preset.with_max_length(max_length).map(Some),
        None => Ok(Some(preset.clone())),
    }
}

/// Encodes and writes everything; returns the number of tokens computed.
fn write(
    source: &Source,
    encoder: &TextEncoder,
    pooling: Option<&Pooling>,
    args: &EncodeArgs,
) -> Result<usize> {
    let plan = plan(source, encoder, pooling, args);
    let mut sink = Sink::create(&args.output, &plan, pooling.is_some())?;
    let width = pooling.map_or(encoder.config().d_model, |pooling| pooling.width);
    let progress = progress(source.job.n_rows(), args.quiet);
    let mut n_tokens = 0;
    for rows in source.job.ranges(args.batch_tokens as usize) {
        let batch = source.job.pack(rows, encoder.config(), pooling.is_none())?;
        n_tokens += batch.packed.n_tokens();
        let floats = match pooling {
            Some(pooling) => vec![pooling.apply(encoder, &batch)?],
            None => states(encoder, &batch, args.hidden_states)?,
        };
        let floats: Vec<&[f32]> = floats.iter().map(Vec::as_slice).collect();
        let infos: Vec<RowInfo<'_>> = batch
            .rows
            .clone()
            .map(|row| source.info(row, pooling.is_some()))
            .collect();
        let values_a_row = values_a_row(source, &batch, width, pooling.is_some());
        sink.append(&floats, width, &values_a_row, &infos)?;
        progress.inc(batch.rows.len() as u64);
    }
    sink.finish()?;
    progress.finish_and_clear();
    Ok(n_tokens)
}

fn values_a_row(source: &Source, batch: &Batch, width: usize, pooled: bool) -> Vec<usize> {
    let positions = |row| {
        if pooled {
            1
        } else {
            source.job.row_length(row)
        }
    };
    batch
        .rows
        .clone()
        .map(|row| positions(row) * width)
        .collect()
}

fn plan(
    source: &Source,
    encoder: &TextEncoder,
    pooling: Option<&Pooling>,
    args: &EncodeArgs,
) -> Plan {
    let d_model = encoder.config().d_model;
    let rows = source.job.n_rows();
    let mut floats = Vec::new();
    let mut integers = Vec::new();
    if let Some(pooling) = pooling {
        floats.push(("embeddings".to_owned(), vec![rows, pooling.width]));
    } else {
        let shape = match &source.job {
            Job::Packed(ids) => vec![ids.iter().map(Vec::len).sum(), d_model],
            Job::Padded { length, .. } => vec![rows, *length, d_model],
        };
        floats.push(("last_hidden_state".to_owned(), shape.clone()));
        if args.hidden_states {
            let n_states = encoder.config().num_layers + 1;
            floats.extend((0..n_states).map(|i| (format!("hidden_states.{i}"), shape.clone())));
        }
        integers = source.integers();
    }
    let metadata = vec![
        ("engine", format!("quintic {}", env!("CARGO_PKG_VERSION"))),
        ("model", args.model.model.clone()),
    ];
    Plan {
        floats,
        integers,
        dtype: args.output_dtype.into(),
        metadata,
    }
}

/// The last hidden states, then (if asked for) all of them.
fn states(encoder: &TextEncoder, batch: &Batch, all: bool) -> Result<Vec<Vec<f32>>> {
    let d_model = encoder.config().d_model;
    let states = encoder.hidden_states(&batch.packed, all)?;
    let place = |values: Vec<f32>| match &batch.layout {
        Some(layout) => layout.unpack(&values, d_model),
        None => values,
    };
    let last = place(states.last);
    let mut out = vec![last];
    if all {
        out.extend(states.inner.into_iter().map(place));
        out.push(out[0].clone());
    }
    Ok(out)
}

fn progress(n_rows: usize, quiet: bool) -> ProgressBar {
    if quiet {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} rows, {per_sec}, {eta} left");
    let bar = ProgressBar::new(n_rows as u64);
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn summary(
    args: &EncodeArgs,
    encoder: &TextEncoder,
    source: &Source,
    n_tokens: usize,
    load_s: f64,
    encode_s: f64,
) -> Value {
    let mut body = json!({
        "output": args.output.display().to_string(),
        "model": encoder.path().display().to_string(),
        "tokenizer": source.tokenizer,
        "backend": encoder.backend_name(),
        "dtype": encoder.compute().dtype.name(),
        "rows": source.job.n_rows(),
        "tokens": n_tokens,
        "unknown_tokens": source.n_unknown,
        "load_s": load_s,
        "encode_s": encode_s,
        "tokens_per_s": n_tokens as f64 / encode_s,
        "peak_rss_bytes": memory::peak_rss_bytes(),
    });
    let compute = encoder.compute();
    if let Some(path) = &args.compute.plan {
        body["plan"] = json!(path.display().to_string());
    }
    if compute.weights != WeightType::AsStored {
        body["weights"] = json!(compute.weights.name());
        body["keep"] = json!(compute.keep.names());
    }
    if let Some(n) = encoder.passes_again() {
        body["passes_run_again"] = json!(n);
    }
    body
}
