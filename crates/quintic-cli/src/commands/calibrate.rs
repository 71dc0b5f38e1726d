//! `quintic calibrate`.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Instant;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use quintic::calibrate::{self, Errors, Integers, Plan};
use quintic::{ComputeType, Error, Result, WeightType, verify};
use serde_json::{Value, json};

use crate::args::ModelArgs;
use crate::show::{aligned, columns, thousands};
use crate::sink::print;
use crate::{memory, model, texts};

#[derive(Args, Debug)]
pub(crate) struct CalibrateArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// What the weights of products become that the plan puts into integers; without it the plan
    /// holds powers of two for f16 alone.
    #[arg(long, value_parser = ["int8", "int4", "w8a8"])]
    pub(crate) weights: Option<String>,
    /// Type of the other products; by default bf16, or f16 without `--weights`.
    #[arg(long, value_parser = ["f32", "bf16", "f16"])]
    pub(crate) dtype: Option<String>,
    /// Largest error, as a relative root mean square; by default twice that of bf16.
    #[arg(long, value_name = "X", requires = "weights")]
    pub(crate) at_most: Option<f64>,
    /// File of texts, as for `encode`; by default 24 captions and sentences in a dozen languages.
    #[arg(long, value_name = "FILE", visible_alias = "texts")]
    pub(crate) input: Option<PathBuf>,
    /// Column of a .tsv or field of a .jsonl that holds the text.
    #[arg(long, requires = "input")]
    pub(crate) column: Option<String>,
    /// Cut texts to this many tokens, end token included.
    #[arg(long)]
    pub(crate) max_length: Option<usize>,
    /// Most tokens that a decoder writes behind each of the first 32 texts; 0 leaves it out, and its
    /// products out of the integers.
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub(crate) new_tokens: usize,
    /// Tokens computed at a time; more need more memory.
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) batch_tokens: u32,
    /// Threads; by default as many as there are cores.
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<NonZeroUsize>,
    /// Write the plan, which `--plan` of other commands reads.
    #[arg(short, long, value_name = "FILE.json")]
    pub(crate) output: Option<PathBuf>,
    /// Print the plan and what it took as a JSON object.
    #[arg(long)]
    pub(crate) json: bool,
    /// No progress bar.
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

pub(crate) fn run(args: &CalibrateArgs) -> Result<()> {
    let weights = match args.weights.as_deref() {
        Some(name) => WeightType::parse(name)?,
        None => WeightType::AsStored,
    };
    let dtype = match (args.dtype.as_deref(), weights) {
        (Some(name), _) => ComputeType::parse(name)?,
        (None, WeightType::AsStored) => ComputeType::F16,
        (None, _) => ComputeType::Bf16,
    };
    if weights == WeightType::AsStored && dtype != ComputeType::F16 {
        return Err(Error::input(format!(
            "without `--weights` a plan holds powers of two for f16, but `--dtype` is `{}`",
            dtype.name()
        )));
    }
    let started = Instant::now();
    let texts = match &args.input {
        Some(path) => texts::read(path, args.column.as_deref())?,
        None => verify::PROMPTS.map(str::to_owned).to_vec(),
    };
    let checkpoint = model::open(&args.model.model, &args.model.files)?;
    let tokenizer = model::tokenizer(&checkpoint, &args.model.files, None)?;
    let rows = texts::ids(&texts, &tokenizer, args.max_length)?;
    let bar = Bar::new(args.quiet);
    let progress = |what: &str, done, all| bar.at(what, done, all);
    let options = calibrate::Options {
        dtype,
        weights,
        at_most: args.at_most,
        batch_tokens: args.batch_tokens as usize,
        new_tokens: args.new_tokens,
        threads: args.threads,
        progress: Some(&progress),
    };
    let plan = calibrate::calibrate(&checkpoint, &args.model.model, rows, &options);
    bar.finish();
    let plan = plan?;
    if let Some(path) = &args.output {
        plan.write(path)?;
    }
    let seconds = started.elapsed().as_secs_f64();
    match args.json {
        true => print(&as_json(args, &plan, seconds)?),
        false => show(args, &plan, seconds),
    }
}

fn as_json(args: &CalibrateArgs, plan: &Plan, seconds: f64) -> Result<Value> {
    let mut body: Value = serde_json::from_str(&plan.to_json()?)
        .map_err(|error| Error::input("the plan cannot be shown").source_error(error))?;
    body["output"] = json!(args.output.as_ref().map(|path| path.display().to_string()));
    body["seconds"] = json!(seconds);
    body["peak_rss_bytes"] = json!(memory::peak_rss_bytes());
    Ok(body)
}

fn show(args: &CalibrateArgs, plan: &Plan, seconds: f64) -> Result<()> {
    if let Some(integers) = &plan.integers {
        show_integers(plan, integers)?;
    }
    show_peaks(plan)?;
    let written = match &args.output {
        Some(path) => format!(", written to {}", path.display()),
        None => "; name a file by `--output` to use it".to_owned(),
    };
    print(&format!(
        "\nmeasured over {} tokens in {} rows in {seconds:.1} s{written}",
        thousands(plan.texts.tokens as u128),
        thousands(plan.texts.rows as u128),
    ))
}

fn show_integers(plan: &Plan, integers: &Integers) -> Result<()> {
    let line = |name: String, errors: &Errors| {
        let logits = errors.logits.map(|logits| format!("{logits:.2e}"));
        [
            name,
            format!("{:.2e}", errors.states),
            logits.unwrap_or_default(),
        ]
    };
    let (weights, dtype) = (plan.weights.name(), plan.dtype.name());
    let logits = match integers.without.logits {
        Some(_) => "logits",
        None => "",
    };
    let mut table = vec![["in integers", "states", logits].map(str::to_owned)];
    table.push(line(format!("nothing ({dtype})"), &integers.without));
    for (kind, errors) in &integers.kinds {
        table.push(line(format!("{} alone", kind.name()), errors));
    }
    table.push(line(format!("everything ({weights})"), &integers.all));
    table.push(line("the plan".to_owned(), &integers.plan));
    table.push(line("allowed".to_owned(), &integers.at_most));
    print(&format!(
        "relative root mean square of the difference from f64 sums\n{}",
        columns(&table, 1)
    ))?;
    let rows = [
        (
            "in integers".to_owned(),
            vec![format!(
                "{:.1} % of the weights of products, {} of {} products",
                100.0 * integers.share(),
                integers.products.iter().filter(|p| p.in_integers).count(),
                integers.products.len()
            )],
        ),
        ("kept out".to_owned(), vec![plan.keep.names()]),
    ];
    print(&format!("\n{}", aligned(&rows)))
}

fn show_peaks(plan: &Plan) -> Result<()> {
    let largest = |of: fn(&calibrate::FeedForward) -> f32| {
        let layers = plan.feed_forward.iter();
        layers.max_by(|a, b| of(a).total_cmp(&of(b)))
    };
    let text = |of: fn(&calibrate::FeedForward) -> f32| match largest(of) {
        Some(layer) => vec![format!("{:.4e} in `{}`", of(layer), layer.site)],
        None => Vec::new(),
    };
    let scaled: Vec<String> = plan
        .feed_forward
        .iter()
        .filter(|layer| layer.scale != Default::default())
        .map(|layer| {
            format!(
                "`{}`: the product by 2^-{}, what leaves it by 2^-{}",
                layer.site, layer.scale.inner, layer.scale.outer
            )
        })
        .collect();
    let rows = [
        (
            "largest into a feed-forward".to_owned(),
            text(|layer| layer.peaks.product),
        ),
        (
            "largest inside it".to_owned(),
            text(|layer| layer.peaks.gated),
        ),
        (
            "scaled in f16".to_owned(),
            match scaled.is_empty() {
                true => vec!["nothing: f16 (up to 65504) has room for twice as much".to_owned()],
                false => scaled,
            },
        ),
    ];
    print(&format!("\n{}", aligned(&rows)))
}

/// One bar for what is measured.
struct Bar(Option<Mutex<ProgressBar>>);

impl Bar {
    fn new(quiet: bool) -> Self {
        Bar((!quiet).then(|| Mutex::new(ProgressBar::hidden())))
    }

    fn at(&self, what: &str, done: usize, all: usize) {
        let Some(Ok(mut bar)) = self.0.as_ref().map(Mutex::lock) else {
            return;
        };
        if bar.message() != what {
            bar.finish_and_clear();
            *bar = ProgressBar::new(0).with_message(what.to_owned());
            if let Ok(style) =
                ProgressStyle::with_template("{msg:10} {bar:40} {pos}/{len}, {eta} left")
            {
                bar.set_style(style);
            }
        }
        bar.set_length(all as u64);
        bar.set_position(done as u64);
    }

    fn finish(&self) {
        if let Some(Ok(bar)) = self.0.as_ref().map(Mutex::lock) {
            bar.finish_and_clear();
        }
    }
}
