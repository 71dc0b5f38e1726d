//! `quintic verify`.

mod line;
mod others;
mod plot;

use std::path::Path;
use std::sync::Mutex;

use indicatif::{ProgressBar, ProgressStyle};
use quintic::output::AtomicFile;
use quintic::output::safetensors::{SafetensorsWriter, TensorSpec};
use quintic::tokenizer::Tokenizer;
use quintic::verify::{self, Distance, QUANTILES, Reference, Way};
use quintic::{BackendKind, Compute, ComputeChoice, DType, Result};
use serde_json::json;

use self::line::{Line, quantiles_and_max, quantiles_json};
use self::others::Others;
use self::plot::{Curve, Style};
use crate::args::VerifyArgs;
use crate::show::{columns, thousands};
use crate::sink::{print, unknown_ending};
use crate::{memory, model, texts};

/// Shows the table; a failure's exit code if a way is farther off than `--max-relative-rms`.
pub(crate) fn run(args: &VerifyArgs) -> Result<u8> {
    // Everything that can be wrong with the command line comes before the slow reference.
    let backend = BackendKind::parse(&args.backend)?;
    let ways = match args.compute.is_empty() {
        true => Way::all_on(backend)?,
        false => {
            let names = args.compute.iter();
            names.map(|name| Way::parse(name)).collect::<Result<_>>()?
        }
    };
    let others = args.others.iter();
    let mut others = others
        .map(|path| Others::read(path))
        .collect::<Result<Vec<_>>>()?;
    check_ending(args.save_states.as_deref(), "safetensors")?;
    check_ending(args.plot.as_deref(), "svg")?;
    let plot = args.plot.as_deref().map(AtomicFile::create).transpose()?;
    let texts = match &args.input {
        Some(path) => texts::read(path, args.column.as_deref())?,
        None => verify::PROMPTS.map(str::to_owned).to_vec(),
    };

    let checkpoint = model::open(&args.model.model, &args.model.files)?;
    let plan = model::plan(args.plan.as_deref(), &checkpoint)?;
    let tokenizer = model::tokenizer(&checkpoint, &args.model.files, None)?;
    let rows = texts::ids(&texts, &tokenizer, args.max_length)?;
    let bar = Bar::new(args.quiet);
    let progress = |done, all| bar.at(done, all);
    let options = verify::Options {
        batch_tokens: args.batch_tokens as usize,
        new_tokens: args.new_tokens,
        progress: Some(&progress),
    };
    bar.begin("reference");
    let reference = Reference::compute(&checkpoint, rows, &options)?;
    for others in &others {
        others.check(&reference)?;
    }
    if let Some(path) = &args.save_states {
        save(&reference, &args.model.model, path)?;
    }
    let mut lines = Vec::new();
    for way in ways {
        bar.begin(way.name);
        let compute = Compute {
            threads: args.threads,
            ..way.compute()
        };
        let report = reference.compare(&checkpoint, backend, &compute, &options)?;
        lines.push(Line::of(way.name, report));
    }
    if let Some(plan) = &plan {
        bar.begin("plan");
        let threads = ComputeChoice {
            threads: args.threads,
            ..ComputeChoice::default()
        };
        let compute = plan.complete(&threads)?.resolve(None)?;
        let scales = plan.scales();
        let report = reference.compare_from(&checkpoint, backend, &compute, &scales, &options)?;
        lines.push(Line::of("plan", report));
    }
    bar.finish();
    if let (Some(plan), false) = (&plan, args.quiet) {
        eprintln!("note: by the plan, {}", plan.describe());
    }
    let n_own = lines.len();
    lines.extend(others.iter_mut().flat_map(|others| others.lines.drain(..)));
    for line in &mut lines {
        line.name_worst(&tokenizer);
    }

    let sizes = reference.sizes();
    if let Some(mut file) = plot {
        let curves = curves(&lines, n_own, &sizes);
        file.write(draw(args, &reference, &curves).as_bytes())?;
        file.finish()?;
    }
    match args.json {
        true => print(&as_json(args, &tokenizer, &reference, &sizes, &lines))?,
        false => show(&reference, &sizes, &lines)?,
    }
    Ok(judge(&lines[..n_own], args.max_relative_rms))
}

fn check_ending(path: Option<&Path>, expected: &str) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    let ending = path.extension().and_then(|ending| ending.to_str());
    match ending.unwrap_or_default() {
        ending if ending == expected => Ok(()),
        other => Err(unknown_ending(other, &format!(".{expected}")).at(path.display())),
    }
}

/// What a comparison elsewhere needs: states, ids, where rows begin.
fn save(reference: &Reference, model: &str, path: &Path) -> Result<()> {
    let n_tokens = reference.n_tokens();
    let n_starts = reference.rows().len() + 1;
    let specs = [
        TensorSpec::new(
            "last_hidden_state",
            DType::F32,
            &[n_tokens, reference.d_model()],
        ),
        TensorSpec::new("row_starts", DType::I64, &[n_starts]),
        TensorSpec::new("input_ids", DType::I64, &[n_tokens]),
    ];
    let metadata = [
        ("engine", format!("quintic {}", env!("CARGO_PKG_VERSION"))),
        ("backend", "reference".to_owned()),
        ("model", model.to_owned()),
    ];
    let mut file = SafetensorsWriter::create(path, &specs, &metadata)?;
    for states in reference.states() {
        file.append(0, states)?;
    }
    let mut end = 0;
    file.append_i64(1, &[end])?;
    for row in reference.rows() {
        end += row.len() as i64;
        file.append_i64(1, &[end])?;
        let ids: Vec<i64> = row.iter().map(|&id| i64::from(id)).collect();
        file.append_i64(2, &ids)?;
    }
    file.finish()
}

/// NaN is beyond every limit.
fn judge(lines: &[Line], limit: Option<f64>) -> u8 {
    let Some(limit) = limit else { return 0 };
    let beyond = lines
        .iter()
        .filter(|line| line.relative_rms > limit || line.relative_rms.is_nan());
    let mut code = 0;
    for line in beyond {
        eprintln!(
            "{}: the relative rms {:.3e} is above {limit:e}",
            line.name, line.relative_rms
        );
        code = 1;
    }
    code
}

fn show(reference: &Reference, sizes: &Distance, lines: &[Line]) -> Result<()> {
    print(&format_args!(
        "hidden states of {} tokens in {} rows, d_model {}; |difference| from f64 sums",
        thousands(reference.n_tokens() as u128),
        thousands(reference.rows().len() as u128),
        reference.d_model()
    ))?;
    let sizes = quantiles_and_max(&sizes.quantiles, sizes.max);
    let mut table = vec![titles("least cosine")];
    table.push(cells("(sizes)", "", &sizes, None, String::new()));
    for line in lines {
        let least = line
            .worst
            .as_ref()
            .map(|worst| format!("{:.8}", worst.cosine));
        table.push(cells(
            &line.name,
            line.isa.or(line.backend).unwrap_or("-"),
            &line.values,
            Some(line.relative_rms),
            least.unwrap_or_default(),
        ));
    }
    print(&columns(&table, 2))?;
    print(&"\nworst tokens, by cosine")?;
    for line in lines {
        if let Some(worst) = &line.worst {
            let text = worst.text.as_deref().unwrap_or("(unknown)");
            print(&format_args!(
                "  {}: `{text}` (id {}), row {}, position {}",
                line.name, worst.id, worst.row, worst.position
            ))?;
        }
    }
    for line in lines {
        if let Some(n) = line.passes_again {
            print(&format_args!(
                "\n{}: {n} passes were run again with other powers of two",
                line.name
            ))?;
        }
    }
    show_logits(lines)
}

fn show_logits(lines: &[Line]) -> Result<()> {
    let mut table = vec![titles("other top token")];
    for line in lines {
        if let Some(logits) = &line.logits {
            let distance = &logits.distance;
            table.push(cells(
                &line.name,
                line.isa.or(line.backend).unwrap_or("-"),
                &quantiles_and_max(&distance.quantiles, distance.max),
                Some(distance.relative_rms),
                format!("{} of {}", logits.n_other_top, logits.n_tokens),
            ));
        }
    }
    match table.len() {
        1 => Ok(()),
        _ => print(&format_args!(
            "\nlogits of the decoder over what the reference writes greedily\n{}",
            columns(&table, 2)
        )),
    }
}

/// Columns of a table: two of words, then numbers.
const N_COLUMNS: usize = QUANTILES.len() + 5;

fn titles(last: &str) -> [String; N_COLUMNS] {
    let mut titles = ["compute", "on"].map(str::to_owned).to_vec();
    titles.extend(QUANTILES.iter().map(f64::to_string));
    titles.extend(["max", "rel. rms", last].map(str::to_owned));
    std::array::from_fn(|column| titles[column].clone())
}

fn cells(
    name: &str,
    on: &str,
    values: &[f64],
    relative_rms: Option<f64>,
    last: String,
) -> [String; N_COLUMNS] {
    let mut cells = vec![name.to_owned(), on.to_owned()];
    cells.extend(values.iter().map(|value| format!("{value:.2e}")));
    cells.push(relative_rms.map_or(String::new(), |rms| format!("{rms:.2e}")));
    cells.push(last);
    std::array::from_fn(|column| cells[column].clone())
}

fn as_json(
    args: &VerifyArgs,
    tokenizer: &Tokenizer,
    reference: &Reference,
    sizes: &Distance,
    lines: &[Line],
) -> serde_json::Value {
    json!({
        "model": args.model.model,
        "tokenizer": tokenizer.describe(),
        "rows": reference.rows().len(),
        "tokens": reference.n_tokens(),
        "d_model": reference.d_model(),
        "reference_rms": reference.rms(),
        "sizes": { "quantiles": quantiles_json(&sizes.quantiles), "max": sizes.max },
        "results": lines.iter().map(Line::as_json).collect::<Vec<_>>(),
        "peak_rss_bytes": memory::peak_rss_bytes(),
    })
}

fn curves(lines: &[Line], n_own: usize, sizes: &Distance) -> Vec<Curve> {
    let mut curves = vec![Curve {
        label: "the values themselves".to_owned(),
        style: Style::Sizes,
        values: quantiles_and_max(&sizes.quantiles, sizes.max),
    }];
    curves.extend(lines.iter().enumerate().map(|(idx, line)| Curve {
        label: line.name.clone(),
        style: if idx < n_own {
            Style::Own
        } else {
            Style::Other
        },
        values: line.values,
    }));
    curves
}

fn draw(args: &VerifyArgs, reference: &Reference, curves: &[Curve]) -> String {
    // Of a path the last name: the picture is to be shown to others.
    let model = args.model.model.trim_end_matches('/');
    let model = Path::new(model).file_name().and_then(|name| name.to_str());
    let model = model.unwrap_or(&args.model.model);
    let title = format!("{model}: distance of the hidden states from f64 sums");
    let elsewhere = match curves.iter().any(|curve| curve.style == Style::Other) {
        true => "; dashed: measured elsewhere",
        false => "",
    };
    let subtitle = format!(
        "{} tokens in {} rows, d_model {}, quintic {}{elsewhere}",
        thousands(reference.n_tokens() as u128),
        thousands(reference.rows().len() as u128),
        reference.d_model(),
        env!("CARGO_PKG_VERSION")
    );
    plot::svg(&title, &subtitle, curves)
}

/// One bar for the way that is computed.
struct Bar(Option<Mutex<ProgressBar>>);

impl Bar {
    fn new(quiet: bool) -> Self {
        Bar((!quiet).then(|| Mutex::new(ProgressBar::hidden())))
    }

    fn begin(&self, name: &str) {
        self.finish();
        let style = ProgressStyle::with_template("{msg:10} {bar:40} {pos}/{len} rows, {eta} left");
        if let (Some(bar), Ok(style)) = (&self.0, style)
            && let Ok(mut bar) = bar.lock()
        {
            *bar = ProgressBar::new(0)
                .with_style(style)
                .with_message(name.to_owned());
        }
    }

    fn at(&self, done: usize, all: usize) {
        if let Some(Ok(bar)) = self.0.as_ref().map(Mutex::lock) {
            bar.set_length(all as u64);
            bar.set_position(done as u64);
        }
    }

    fn finish(&self) {
        if let Some(Ok(bar)) = self.0.as_ref().map(Mutex::lock) {
            bar.finish_and_clear();
        }
    }
}
