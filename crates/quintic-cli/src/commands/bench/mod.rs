//! `quintic bench`.

mod limits;
mod subject;
mod workload;

use std::io::BufRead;
use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Instant;

use quintic::batch::PackedBatch;
use quintic::calibrate::Plan;
use quintic::config::T5Config;
use quintic::output::npy::NpyWriter;
use quintic::synthetic;
use quintic::{
    BackendKind, Compute, ComputeType, DType, Decode, Error, ErrorKind, MatmulPrecision, Result,
    Sources, WeightType,
};
use quintic_kernels::Isa;
use quintic_kernels::machine::{Effort, Unit};
use serde_json::{Map, Value, json};

use crate::args::BenchArgs;
use crate::machine::{self, n_cores};
use crate::show::{aligned, size, thousands};
use crate::sink::print;
use crate::{memory, model};

use subject::{Half, Loaded, Model, Subject};
use workload::Workload;

/// Layers of the slice that is compared with the reference: the second one uses the first
/// one's position bias, so two show everything that a stack has.
const SLICE_LAYERS: usize = 2;

/// Lengths of the rows that are compared: around the sizes of blocks, and one token.
const SLICE_LENGTHS: [usize; 4] = [1, 6, 17, 33];

pub(crate) fn run(args: &BenchArgs) -> Result<u8> {
    let threads = args.compute.threads;
    let Some(shape) = &args.shape else {
        machine::isa()?;
        limits::run(threads.unwrap_or_else(n_cores), args.read_mib, args.json)?;
        return Ok(0);
    };
    let mut bench = Bench::prepare(shape, args)?;
    let also = (args.also.iter())
        .map(|lengths| Workload::of_lengths(lengths, None, bench.config.vocab_size))
        .collect::<Result<Vec<_>>>()?;
    let rel_rms = bench.verify()?;
    if let Some(rel_rms) = rel_rms.filter(|&rel_rms| !bench.is_close(rel_rms)) {
        eprintln!(
            "error: the first layers differ from the reference backend by {rel_rms:.2e} (relative \
             root mean square), expected at most {:.0e}; nothing was timed",
            bench.bound()
        );
        return Ok(1);
    }
    let started = Instant::now();
    let loaded = bench.subject.load(
        bench.config.clone(),
        bench.half(),
        bench.backend,
        &bench.compute,
    )?;
    model::follow(
        bench.plan.as_ref(),
        loaded.encoder(),
        args.json || args.serve,
    );
    let load_s = started.elapsed().as_secs_f64();
    let started = Instant::now();
    let first_s = bench.warm_up(&loaded)?;
    let warm_up_s = started.elapsed().as_secs_f64();
    if args.serve {
        bench.serve(&loaded, rel_rms, load_s, first_s, load_s + warm_up_s)?;
        return Ok(0);
    }
    bench.show(&loaded, rel_rms, load_s)?;
    for workload in also {
        bench.workload = workload;
        bench.warm_up(&loaded)?;
        bench.show(&loaded, rel_rms, load_s)?;
    }
    Ok(0)
}

struct Bench<'a> {
    args: &'a BenchArgs,
    shape: &'a str,
    subject: Subject,
    /// Of what is timed.
    config: T5Config,
    workload: Workload,
    backend: BackendKind,
    compute: Compute,
    plan: Option<Plan>,
    /// Of the CPU backend.
    isa: Option<Isa>,
    threads: NonZeroUsize,
}

impl<'a> Bench<'a> {
    fn prepare(shape: &'a str, args: &'a BenchArgs) -> Result<Self> {
        let (ending, what) = match args.new_tokens {
            Some(_) => ("json", "the tokens as JSON"),
            None => ("npy", "a NumPy file"),
        };
        if let Some(path) = &args.save_output
            && path.extension().is_none_or(|found| found != ending)
        {
            return Err(Error::input(format!(
                "`--save-output` writes {what} here, expected a name in `.{ending}`"
            ))
            .at(path.display()));
        }
        let subject = Subject::of(shape, args)?;
        let config = subject.config(args.layers.map(NonZeroUsize::get))?;
        let workload = Workload::of(args, config.vocab_size)?;
        let backend = BackendKind::parse(&args.compute.backend)?;
        let plan = match (args.compute.plan.as_deref(), &subject) {
            (path, Subject::Files(checkpoint, _)) => model::plan(path, checkpoint)?,
            (None, Subject::Synthetic { .. }) => None,
            (Some(path), Subject::Synthetic { .. }) => {
                return Err(Error::input(format!(
                    "a plan belongs to a model in files, not to the synthetic shape `{shape}`"
                ))
                .at(path.display()));
            }
        };
        let compute = model::compute(&args.compute, plan.as_ref(), backend, subject.packed())?;
        let (isa, threads) = match backend {
            // The product's crate uses up to four.
            BackendKind::Reference => {
                (None, n_cores().min(const { NonZeroUsize::new(4).unwrap() }))
            }
            BackendKind::Cuda(_) => (None, NonZeroUsize::MIN),
            BackendKind::Cpu => (
                Some(machine::isa()?),
                compute.threads.unwrap_or_else(n_cores),
            ),
        };
        Ok(Bench {
            args,
            shape,
            subject,
            config,
            workload,
            backend,
            compute,
            plan,
            isa,
            threads,
        })
    }

    fn half(&self) -> Half {
        match self.workload.generation {
            Some(_) => Half::Both,
            None => Half::Encoder,
        }
    }

    /// Runs the first layers on the reference backend and on the chosen one, and returns the
    /// root mean square of the difference as a share of the result's; `None` for a packed model,
    /// which the reference does not read. The result is the hidden states, or with a decoder the
    /// logits of rows that are as long as the sources.
    fn verify(&self) -> Result<Option<f64>> {
        if self.subject.packed().is_some() && self.backend != BackendKind::Reference {
            return Ok(None);
        }
        let slice = self.subject.slice(&self.config, SLICE_LAYERS);
        let rows = synthetic::token_rows(&SLICE_LENGTHS, slice.vocab_size);
        let batch = PackedBatch::from_rows(&rows, slice.vocab_size)?;
        let result = |backend, compute: &Compute| -> Result<Vec<f32>> {
            let loaded = (self.subject).load(slice.clone(), self.half(), backend, compute)?;
            match &loaded.model {
                Model::Encoder(encoder) => Ok(encoder.hidden_states(&batch, false)?.last),
                Model::Both(both) => {
                    let decoded = both.decode(&Decode {
                        sources: Sources::Ids(&rows),
                        rows: &rows,
                        targets: None,
                        keep_logits: true,
                        keep_inner: false,
                        interrupted: None,
                    })?;
                    Ok(decoded.logits)
                }
            }
        };
        // The chosen backend first: what it refuses needs no reference.
        let ours = result(self.backend, &self.compute)?;
        let expected = result(BackendKind::Reference, &Compute::default())?;
        Ok(Some(relative_rms(&ours, &expected)))
    }

    /// Largest difference from the reference backend that is rounding and not a mistake.
    ///
    /// Measured over two layers of a stack whose sums are exact: a type's unit roundoff (f32
    /// 6e-8, two bf16 parts 4e-6, f16 2e-4 to 5e-4, bf16 2e-3 to 4e-3), some twenty roundings
    /// in a row, partly cancelling, and a small factor for real models, whose few large
    /// values weigh more. A wrong index or a forgotten term gives 1e-1 and more.
    ///
    /// Weights that are rounded to integers differ by more than rounding: those of random
    /// synthetic models by a step / sqrt(12), which is 0.7 % and 8 % of their root mean square in 8
    /// and 4 bits, and a real model's largest columns by twice that.
    fn bound(&self) -> f64 {
        let rounding = match self.compute.weights {
            WeightType::AsStored => 0.0,
            WeightType::Int8 => 2e-2,
            WeightType::W8A8 => 5e-2,
            WeightType::Int4 => 2e-1,
        };
        rounding
            + match (self.compute.dtype, self.compute.matmul_precision) {
                (ComputeType::F32, MatmulPrecision::Highest) => 1e-5,
                (ComputeType::F32, MatmulPrecision::High) => 5e-5,
                (ComputeType::F16, _) => 2e-3,
                (ComputeType::F32, MatmulPrecision::Medium) | (ComputeType::Bf16, _) => 2e-2,
            }
    }

    /// NaN is not close.
    fn is_close(&self, rel_rms: f64) -> bool {
        rel_rms <= self.bound()
    }

    /// One run, in seconds.
    fn timed(&self, loaded: &Loaded) -> Result<(f64, Output)> {
        let seconds = |started: Instant| started.elapsed().as_secs_f64();
        if let (Some(generation), Model::Both(model)) = (self.workload.generation, &loaded.model) {
            let sources = self.workload.rows();
            let started = Instant::now();
            let tokens = generation.run(model, &sources)?;
            return Ok((seconds(started), Output::Tokens(tokens)));
        }
        let encoder = loaded.encoder();
        let started = Instant::now();
        if self.args.on_device {
            encoder.run_there(&self.workload.batch)?;
            return Ok((seconds(started), Output::Nothing));
        }
        let states = encoder.hidden_states(&self.workload.batch, false)?;
        Ok((seconds(started), Output::States(states.last)))
    }

    /// Runs until the machine is warm, saves the last result if asked for, and returns the
    /// seconds of the first run.
    fn warm_up(&self, loaded: &Loaded) -> Result<f64> {
        let (first_s, mut last) = self.timed(loaded)?;
        for _ in 1..self.args.warmup.get() {
            (_, last) = self.timed(loaded)?;
        }
        if let Some(path) = &self.args.save_output {
            self.save(path, &last)?;
        }
        Ok(first_s)
    }

    fn save(&self, path: &Path, output: &Output) -> Result<()> {
        let states = match output {
            Output::Nothing => return Ok(()),
            Output::Tokens(rows) => {
                return std::fs::write(path, json!(rows).to_string())
                    .map_err(|e| Error::io(path, "write", e));
            }
            Output::States(states) => states,
        };
        let d_model = self.config.d_model;
        let (shape, values) = match &self.workload.padded {
            Some((rows, len, layout)) => (
                vec![*rows, *len, d_model],
                &layout.unpack(states, d_model)[..],
            ),
            None => (
                vec![self.workload.batch.n_tokens(), d_model],
                states.as_slice(),
            ),
        };
        let mut file = NpyWriter::create(path, DType::F32, &shape)?;
        file.append(values)?;
        file.finish()
    }

    /// Runs as many times as asked for, or for about three seconds, with `between` after each run.
    fn runs_ms(&self, loaded: &Loaded, mut between: impl FnMut()) -> Result<Vec<f64>> {
        const ENOUGH_MS: f64 = 3000.0;
        let mut runs = Vec::new();
        let is_enough = |runs: &[f64]| match self.args.runs {
            Some(n) => runs.len() >= n.get(),
            None => runs.len() >= 5 && (runs.len() >= 50 || runs.iter().sum::<f64>() >= ENOUGH_MS),
        };
        while !is_enough(&runs) {
            runs.push(self.timed(loaded)?.0 * 1e3);
            between();
        }
        Ok(runs)
    }

    /// Measures and prints.
    fn show(&self, loaded: &Loaded, rel_rms: Option<f64>, load_s: f64) -> Result<()> {
        let report = self.report(loaded, rel_rms, load_s)?;
        match self.args.json {
            true => print(&Value::Object(report)),
            false => print(&for_people(&report)),
        }
    }

    /// The figures, in the order they are shown.
    fn report(
        &self,
        loaded: &Loaded,
        rel_rms: Option<f64>,
        load_s: f64,
    ) -> Result<Map<String, Value>> {
        let with_limits = !self.args.skip_limits;
        let unit = match self.isa {
            Some(isa) if with_limits => limits::unit(isa, &self.compute),
            _ => None,
        };
        // Before and after, since other work on the machine comes and goes.
        let peak = |(unit, products): (Unit, f64)| {
            let rate = unit.peak(self.threads, Effort::default())?;
            Some(rate.best / products)
        };
        // The buffer that reading is measured with is not the model's; the runs before took as much.
        let peak_rss = memory::peak_rss_bytes();
        let step_bytes = match self.workload.generation {
            Some(_) => loaded.weights.step,
            None => loaded.weights.once,
        };
        // The host's memory is not the device's.
        let mut reading = (with_limits && !matches!(self.backend, BackendKind::Cuda(_)))
            .then(|| limits::Reading::new(step_bytes, self.threads, self.args.read_mib))
            .transpose()?;
        let before = unit.and_then(peak);
        let mut runs = self.runs_ms(loaded, || {
            if let Some(reading) = &mut reading {
                reading.sample();
            }
        })?;
        let after = unit.and_then(peak);
        let peak = before.into_iter().chain(after).max_by(f64::total_cmp);
        let read = reading.and_then(limits::Reading::median);

        runs.sort_by(f64::total_cmp);
        let median_ms = median(&runs);
        let seconds = median_ms / 1e3;
        let tokens = self.workload.n_tokens();
        let flops_per_s = self.workload.flops(&self.config) / seconds;
        let n_steps = (self.workload.generation).map_or(0, |g| g.new_tokens.get() as u64);
        let weight_bytes = loaded.weights.once + n_steps * loaded.weights.step;
        let read_per_s = weight_bytes as f64 / seconds;
        let mut report = self.what();
        let figures = json!({
            "runs": runs.len(),
            "verified_rel_rms": rel_rms,
            "ms_median": median_ms,
            "ms_min": runs.first(),
            "ms_max": runs.last(),
            "tokens_per_s": tokens as f64 / seconds,
            "gflops": flops_per_s / 1e9,
            "peak_gflops": peak.map(|peak| peak / 1e9),
            "peak_share": peak.map(|peak| flops_per_s / peak),
            "weight_bytes": weight_bytes,
            "read_gb_per_s": read_per_s / 1e9,
            "read_peak_gb_per_s": read.map(|peak| peak / 1e9),
            "read_share": read.map(|peak| read_per_s / peak),
            "peak_rss_bytes": peak_rss,
            "load_s": load_s,
            "passes_run_again": loaded.encoder().passes_again(),
        });
        if let Value::Object(figures) = figures {
            report.extend(figures);
        }
        Ok(report)
    }

    /// What is measured.
    fn what(&self) -> Map<String, Value> {
        let mut what = Map::new();
        let mut say = |name: &str, value: Value| what.insert(name.to_owned(), value);
        say("shape", json!(self.shape));
        say("layers", json!(self.config.num_layers));
        let whole = self.subject.n_layers();
        if self.config.num_layers < whole {
            say("cut_from_layers", json!(whole));
        }
        say("backend", json!(self.args.compute.backend));
        say("isa", json!(self.isa.map(Isa::name)));
        match self.backend {
            BackendKind::Cuda(_) => say(
                "result",
                json!(if self.args.on_device {
                    "device"
                } else {
                    "host"
                }),
            ),
            _ => say("threads", json!(self.threads)),
        };
        say("dtype", json!(self.compute.dtype.name()));
        if self.compute.dtype == ComputeType::F32 {
            say(
                "matmul_precision",
                json!(self.compute.matmul_precision.name()),
            );
        }
        if let Some(path) = &self.args.compute.plan {
            say("plan", json!(path.display().to_string()));
        }
        if self.compute.weights != WeightType::AsStored {
            say("weights", json!(self.compute.weights.name()));
            say("keep", json!(self.compute.keep.names()));
        }
        if let Subject::Synthetic { stored, .. } = &self.subject {
            say("stored", json!(stored.to_string()));
        }
        say("rows", json!(self.workload.batch.n_rows()));
        say("tokens", json!(self.workload.batch.n_tokens()));
        if let Some(generation) = self.workload.generation {
            say("new_tokens", json!(generation.new_tokens));
            say("num_beams", json!(generation.beams));
        }
        what
    }

    /// One timed run for each `run` on standard input. Lines that answer begin with `@`.
    fn serve(
        &self,
        loaded: &Loaded,
        rel_rms: Option<f64>,
        load_s: f64,
        first_s: f64,
        total_s: f64,
    ) -> Result<()> {
        let mut ready = json!({
            "ready": true,
            "load_s": load_s,
            "first_s": first_s,
            "total_s": total_s,
            "rss_mb": memory::rss_bytes().map(mebibytes),
            "amx": self.isa.map(|isa| isa == Isa::Amx),
            "verified_rel_rms": rel_rms,
        });
        if let Value::Object(ready) = &mut ready {
            ready.extend(self.what());
        }
        print(&format!("@{ready}"))?;
        for line in std::io::stdin().lock().lines() {
            let line = line.map_err(|e| {
                Error::new(ErrorKind::Io, format!("cannot read: {e}")).at("standard input")
            })?;
            match line.trim() {
                "run" => {
                    let ms = self.timed(loaded)?.0 * 1e3;
                    print(&format!("@{}", json!({ "ms": ms })))?;
                }
                "quit" => break,
                other => {
                    return Err(
                        Error::input(format!("found `{other}`, expected `run` or `quit`"))
                            .at("standard input"),
                    );
                }
            }
        }
        let peak = memory::peak_rss_bytes().map(mebibytes);
        print(&format!("@{}", json!({ "peak_mb": peak })))
    }
}

/// What a run gives.
enum Output {
    /// It was left where it was computed.
    Nothing,
    /// `[tokens, d_model]`.
    States(Vec<f32>),
    /// New tokens, a row for each source.
    Tokens(Vec<Vec<u32>>),
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Of sorted values, one at least.
fn median(sorted: &[f64]) -> f64 {
    let (upper, lower) = (sorted.len() / 2, (sorted.len() - 1) / 2);
    (sorted[upper] + sorted[lower]) / 2.0
}

/// Root mean square of the difference, as a share of `expected`'s; NaN if any value is.
fn relative_rms(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let pairs = || {
        found
            .iter()
            .zip(expected)
            .map(|(&a, &b)| (f64::from(a), f64::from(b)))
    };
    let difference: f64 = pairs().map(|(a, b)| (a - b).powi(2)).sum();
    let size: f64 = pairs().map(|(_, b)| b.powi(2)).sum();
    match (difference, size) {
        (0.0, 0.0) => 0.0,
        (difference, size) => (difference / size).sqrt(),
    }
}

/// The report as aligned lines. What was not measured has none.
fn for_people(report: &Map<String, Value>) -> String {
    let number = |name: &str| report.get(name).and_then(Value::as_f64);
    let share = |name: &str, of: &str, unit: &str| match (number(name), number(of)) {
        (Some(share), Some(of)) => format!(", {:.1} % of {of:.1} {unit}", share * 100.0),
        _ => String::new(),
    };
    let mut rows = Vec::new();
    for (name, value) in report {
        let text = match (name.as_str(), value.as_f64(), value.as_u64()) {
            ("ms_min" | "ms_max" | "peak_gflops" | "peak_share", ..)
            | ("read_peak_gb_per_s" | "read_share", ..) => continue,
            (_, None, _) if value.is_null() => continue,
            ("verified_rel_rms", Some(rms), _) => {
                format!("{rms:.2e} relative to the reference backend, over the first layers")
            }
            ("ms_median", Some(ms), _) => format!(
                "{ms:.2} ({:.2} to {:.2})",
                number("ms_min").unwrap_or(ms),
                number("ms_max").unwrap_or(ms)
            ),
            ("gflops", Some(gflops), _) => format!(
                "{gflops:.1}{}",
                share("peak_share", "peak_gflops", "from registers")
            ),
            ("read_gb_per_s", Some(rate), _) => format!(
                "{rate:.1}{}",
                share("read_share", "read_peak_gb_per_s", "by reading alone")
            ),
            (name, _, Some(bytes)) if name.ends_with("_bytes") => size(bytes),
            (_, _, Some(count)) => thousands(u128::from(count)),
            (_, Some(number), _) => format!("{number:.2}"),
            _ => value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned),
        };
        let label = name.trim_end_matches("_bytes").replace('_', " ");
        rows.push((label, vec![text]));
    }
    aligned(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[1.0]), 1.0);
        assert_eq!(median(&[1.0, 2.0]), 1.5);
        assert_eq!(median(&[1.0, 2.0, 9.0]), 2.0);
    }

    #[test]
    fn differences() {
        assert_eq!(relative_rms(&[3.0, 4.0], &[3.0, 4.0]), 0.0);
        assert_eq!(relative_rms(&[0.0], &[0.0]), 0.0);
        assert_eq!(relative_rms(&[3.0, 0.0], &[3.0, 4.0]), 0.8);
        assert!(relative_rms(&[f32::NAN, 4.0], &[3.0, 4.0]).is_nan());
        assert_eq!(relative_rms(&[1.0], &[0.0]), f64::INFINITY);
    }
}
