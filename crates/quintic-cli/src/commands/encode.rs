//! `quintic encode`.

use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use quintic::backend::Pool;
use quintic::batch::{PadRows, PaddedBatch, PaddedMask};
use quintic::preset::Preset;
use quintic::sentence::normalize;
use quintic::tokenizer::Tokenizer;
use quintic::{Error, Result, TextEncoder};
use serde_json::{Value, json};

use crate::args::{EncodeArgs, PoolArg, Store};
use crate::job::{Batch, Job};
use crate::sink::{Plan, RowInfo, Sink, print};
use crate::{batches, memory, model, texts};

pub(crate) fn run(args: &EncodeArgs) -> Result<()> {
    let started = Instant::now();
    let checkpoint = model::open(&args.model.model, &args.model.files)?;
    let encoder = model::load(&checkpoint, &args.backend, args.quiet)?;
    let source = match &args.input_ids {
        Some(path) => Source::from_ids(batches::read(path)?, args)?,
        None => {
            let preset = preset_of(args, &encoder)?;
            let class = preset.as_ref().map(|preset| preset.tokenizer);
            let tokenizer = model::tokenizer(&checkpoint, &args.model, class)?;
            let texts = texts_of(args)?;
            match &preset {
                Some(preset) => Source::from_preset(texts, preset, &tokenizer, &encoder, args)?,
                None => Source::from_texts(texts, &tokenizer, &encoder, args)?,
            }
        }
    };
    let load_s = started.elapsed().as_secs_f64();

    let pooling = Pooling::of(args, &encoder)?;
    let n_tokens = source.write(&encoder, pooling.as_ref(), args)?;
    let encode_s = started.elapsed().as_secs_f64() - load_s;
    if args.json {
        print(&summary(
            args, &encoder, &source, n_tokens, load_s, encode_s,
        ))?;
    } else if !args.quiet {
        eprintln!(
            "{} rows, {n_tokens} tokens, loaded in {load_s:.2} s, encoded in {encode_s:.2} s: {}",
            source.job.n_rows(),
            args.output.display()
        );
    }
    Ok(())
}

fn texts_of(args: &EncodeArgs) -> Result<Vec<String>> {
    let texts = match &args.input {
        Some(path) => texts::read(path, args.column.as_deref())?,
        None => args.texts.clone(),
    };
    if texts.is_empty() {
        return Err(Error::input("there are no texts to encode"));
    }
    Ok(texts)
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

/// How rows become one vector each, if they do.
struct Pooling {
    pool: Pool,
    sentence: bool,
    normalize: bool,
    width: usize,
}

impl Pooling {
    fn of(args: &EncodeArgs, encoder: &TextEncoder) -> Result<Option<Self>> {
        let Some(arg) = args.pool else {
            return Ok(None);
        };
        let d_model = encoder.config().d_model;
        let (pool, width) = match (arg.plain(), encoder.sentence_head()) {
            (Some(pool), _) => (pool, d_model),
            (None, Some(head)) => (head.pool(), head.width(d_model)),
            (None, None) => {
                return Err(Error::input(
                    "`--pool sentence` needs a modules.json beside the model",
                )
                .at(encoder.path().display())
                .hint("`--pool mean` pools without one"));
            }
        };
        let sentence = arg == PoolArg::Sentence;
        Ok(Some(Pooling {
            pool,
            sentence,
            normalize: args.normalize,
            width,
        }))
    }

    fn apply(&self, encoder: &TextEncoder, batch: &Batch) -> Vec<f32> {
        let mut vectors = encoder.pooled(&batch.packed, self.pool);
        if let (true, Some(head)) = (self.sentence, encoder.sentence_head()) {
            vectors = head.apply(vectors, encoder.config().d_model);
        }
        if self.normalize {
            normalize(&mut vectors, self.width);
        }
        vectors
    }
}

/// A job with what is known about its rows.
struct Source {
    job: Job,
    texts: Option<Vec<String>>,
    /// The tokenizer that made the ids, if there was one.
    tokenizer: Option<String>,
    /// The mask that a preset's pipeline hands on, `[rows, length]`.
    image_mask: Option<Vec<bool>>,
    /// Real ids of every row, for formats and tensors that list them.
    ids: Vec<Vec<u32>>,
    n_unknown: usize,
}

impl Source {
    fn from_ids(batch: PaddedBatch, args: &EncodeArgs) -> Result<Self> {
        let by_rows = matches!(batch.mask(), PaddedMask::None | PaddedMask::Keys(_));
        if args.pool.is_some() && !by_rows {
            return Err(Error::unsupported(
                "pooling needs one text a row: no `document_ids` and no [rows, len, len] mask",
            ));
        }
        let pad_rows = args.pad_rows.map_or(PadRows::default(), PadRows::from);
        if args.pool.is_some() && pad_rows == PadRows::Compute {
            return Err(Error::input(
                "pooled vectors leave padding out: drop `--pad-rows compute`",
            ));
        }
        let ids = (0..batch.rows()).map(|row| batch.real_ids(row)).collect();
        let length = batch.len();
        Ok(Source {
            job: Job::Padded {
                batch,
                pad_rows,
                length,
            },
            texts: None,
            tokenizer: None,
            image_mask: None,
            ids,
            n_unknown: 0,
        })
    }

    fn from_texts(
        texts: Vec<String>,
        tokenizer: &Tokenizer,
        encoder: &TextEncoder,
        args: &EncodeArgs,
    ) -> Result<Self> {
        // A sentence-transformers model cuts where it was trained to, unless told otherwise.
        let own_length = match args.pool {
            Some(PoolArg::Sentence) => encoder.sentence_head().and_then(|head| head.max_length()),
            _ => None,
        };
        let ids = texts
            .iter()
            .enumerate()
            .map(|(row, text)| {
                match args.max_length.or(own_length) {
                    Some(max_length) => tokenizer.encode_truncated(text, max_length),
                    None => tokenizer.encode(text, true),
                }
                .map_err(|e| e.at(format!("text {row}")))
            })
            .collect::<Result<Vec<_>>>()?;
        let job = match args.store {
            Some(Store::Padded) if args.pool.is_none() => {
                let pad_id = tokenizer.pad_id().or(encoder.config().pad_token_id);
                let batch = pad_to_longest(&ids, pad_id.unwrap_or(0))?;
                Job::Padded {
                    length: batch.len(),
                    pad_rows: PadRows::Zero,
                    batch,
                }
            }
            _ => Job::Packed(ids.clone()),
        };
        Ok(Self::of_texts(job, texts, ids, tokenizer, args))
    }

    fn from_preset(
        texts: Vec<String>,
        preset: &Preset,
        tokenizer: &Tokenizer,
        encoder: &TextEncoder,
        args: &EncodeArgs,
    ) -> Result<Self> {
        let pad_id = encoder.config().pad_token_id.unwrap_or(0);
        let prepared = preset.prepare(&texts, tokenizer, pad_id)?;
        let rows = prepared.batch.ids().chunks_exact(prepared.batch.len());
        let ids = rows
            .zip(&prepared.tokens)
            .map(|(row, &tokens)| {
                let row = row[..tokens].iter();
                row.filter_map(|&id| u32::try_from(id).ok()).collect()
            })
            .collect();
        let job = Job::Padded {
            batch: prepared.batch,
            pad_rows: prepared.pad_rows,
            length: prepared.length,
        };
        let source = Self::of_texts(job, texts, ids, tokenizer, args);
        Ok(Source {
            image_mask: prepared.image_mask,
            ..source
        })
    }

    fn of_texts(
        job: Job,
        texts: Vec<String>,
        ids: Vec<Vec<u32>>,
        tokenizer: &Tokenizer,
        args: &EncodeArgs,
    ) -> Self {
        let unknown = tokenizer.unk_id();
        let n_unknown = ids
            .iter()
            .flatten()
            .filter(|&&id| Some(id) == unknown)
            .count();
        if n_unknown > 0 && !args.quiet {
            eprintln!("note: {n_unknown} tokens are not in the vocabulary and became `<unk>`");
        }
        Source {
            job,
            texts: Some(texts),
            tokenizer: Some(tokenizer.describe()),
            image_mask: None,
            ids,
            n_unknown,
        }
    }

    /// Encodes and writes everything; returns the number of tokens computed.
    fn write(
        &self,
        encoder: &TextEncoder,
        pooling: Option<&Pooling>,
        args: &EncodeArgs,
    ) -> Result<usize> {
        let plan = self.plan(encoder, pooling, args);
        let mut sink = Sink::create(&args.output, &plan, pooling.is_some())?;
        let width = pooling.map_or(encoder.config().d_model, |pooling| pooling.width);
        let progress = progress(self.job.n_rows(), args.quiet);
        let mut n_tokens = 0;
        for rows in self.job.ranges(args.batch_tokens as usize) {
            let batch = self
                .job
                .pack(rows, encoder.config().vocab_size, pooling.is_none())?;
            n_tokens += batch.packed.n_tokens();
            let floats = match pooling {
                Some(pooling) => vec![pooling.apply(encoder, &batch)],
                None => states(encoder, &batch, args.hidden_states),
            };
            let floats: Vec<&[f32]> = floats.iter().map(Vec::as_slice).collect();
            let infos: Vec<RowInfo<'_>> = batch.rows.clone().map(|row| self.info(row)).collect();
            let values_a_row = self.values_a_row(&batch, width, pooling.is_some());
            sink.append(&floats, width, &values_a_row, &infos)?;
            progress.inc(batch.rows.len() as u64);
        }
        sink.finish()?;
        progress.finish_and_clear();
        Ok(n_tokens)
    }

    fn info(&self, row: usize) -> RowInfo<'_> {
        RowInfo {
            text: self.texts.as_ref().map(|texts| texts[row].as_str()),
            ids: &self.ids[row],
        }
    }

    fn values_a_row(&self, batch: &Batch, width: usize, pooled: bool) -> Vec<usize> {
        let positions = |row| if pooled { 1 } else { self.job.row_length(row) };
        batch
            .rows
            .clone()
            .map(|row| positions(row) * width)
            .collect()
    }

    fn plan(&self, encoder: &TextEncoder, pooling: Option<&Pooling>, args: &EncodeArgs) -> Plan {
        let d_model = encoder.config().d_model;
        let rows = self.job.n_rows();
        let mut floats = Vec::new();
        let mut integers = Vec::new();
        if let Some(pooling) = pooling {
            floats.push(("embeddings".to_owned(), vec![rows, pooling.width]));
        } else {
            let shape = match &self.job {
                Job::Packed(ids) => vec![ids.iter().map(Vec::len).sum(), d_model],
                Job::Padded { length, .. } => vec![rows, *length, d_model],
            };
            floats.push(("last_hidden_state".to_owned(), shape.clone()));
            if args.hidden_states {
                let n_states = encoder.config().num_layers + 1;
                floats.extend((0..n_states).map(|i| (format!("hidden_states.{i}"), shape.clone())));
            }
            integers = self.integers();
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

    /// Ids beside the hidden states of texts, so that a file explains itself. A caller who
    /// brought ids has them already.
    fn integers(&self) -> Vec<(&'static str, Vec<usize>, Vec<i64>)> {
        if self.texts.is_none() {
            return Vec::new();
        }
        match &self.job {
            Job::Packed(ids) => {
                let mut starts = vec![0i64];
                starts.extend(ids.iter().scan(0, |end, row| {
                    *end += row.len() as i64;
                    Some(*end)
                }));
                let flat: Vec<i64> = ids.iter().flatten().map(|&id| i64::from(id)).collect();
                vec![
                    ("row_starts", vec![starts.len()], starts),
                    ("input_ids", vec![flat.len()], flat),
                ]
            }
            Job::Padded { batch, length, .. } => {
                let shape = vec![batch.rows(), *length];
                let rows = batch.ids().chunks_exact(batch.len());
                let ids = rows.flat_map(|row| row[..*length].to_vec()).collect();
                let mask = self
                    .ids
                    .iter()
                    .flat_map(|row| (0..*length).map(|position| i64::from(position < row.len())))
                    .collect();
                let mut tensors = vec![
                    ("input_ids", shape.clone(), ids),
                    ("attention_mask", shape.clone(), mask),
                ];
                if let Some(mask) = &self.image_mask {
                    let mask = mask.iter().map(|&seen| i64::from(seen)).collect();
                    tensors.push(("image_mask", shape, mask));
                }
                tensors
            }
        }
    }
}

fn pad_to_longest(ids: &[Vec<u32>], pad: u32) -> Result<PaddedBatch> {
    let len = ids.iter().map(Vec::len).max().unwrap_or(0);
    let mut flat = Vec::with_capacity(ids.len() * len);
    let mut mask = Vec::with_capacity(ids.len() * len);
    for row in ids {
        flat.extend(row.iter().map(|&id| i64::from(id)));
        flat.resize(flat.len() + len - row.len(), i64::from(pad));
        mask.extend(std::iter::repeat_n(true, row.len()));
        mask.resize(flat.len(), false);
    }
    PaddedBatch::new(flat, ids.len(), len, PaddedMask::Keys(mask))
}

/// The last hidden states, then (if asked for) all of them.
fn states(encoder: &TextEncoder, batch: &Batch, all: bool) -> Vec<Vec<f32>> {
    let d_model = encoder.config().d_model;
    let states = encoder.hidden_states(&batch.packed, all);
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
    out
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
    json!({
        "output": args.output.display().to_string(),
        "model": encoder.path().display().to_string(),
        "tokenizer": source.tokenizer,
        "backend": encoder.backend_name(),
        "dtype": args.dtype,
        "rows": source.job.n_rows(),
        "tokens": n_tokens,
        "unknown_tokens": source.n_unknown,
        "load_s": load_s,
        "encode_s": encode_s,
        "tokens_per_s": n_tokens as f64 / encode_s,
        "peak_rss_bytes": memory::peak_rss_bytes(),
    })
}
