//! `quintic inspect`.

use std::collections::BTreeMap;

use quintic::batch::PackedBatch;
use quintic::checkpoint::{Checkpoint, Packed};
use quintic::config::{Family, T5Config};
use quintic::sentence::SentenceHead;
use quintic::{
    BackendKind, Compute, Error, Result, TextEncoder, activation_bytes_per_token, config_of,
};
use serde_json::{Map, Value, json};

use crate::args::{FileArgs, InspectArgs};
use crate::show::{aligned, size, thousands};
use crate::sink::print;
use crate::{machine, model};

/// Shows the report; an encoder that does not load is an error after it.
pub(crate) fn run(args: &InspectArgs) -> Result<()> {
    let machine = args.machine.then(machine::report).transpose()?;
    if let (Some(machine), false) = (&machine, args.json) {
        print(&for_people(machine))?;
    }
    let Some(model) = &args.model else {
        return match machine {
            Some(machine) if args.json => print(&json!({ "machine": machine })),
            _ => Ok(()),
        };
    };
    let checkpoint = model::open(model, &args.files)?;
    let (mut report, loaded) = report(&checkpoint, args)?;
    match (machine, args.json) {
        (Some(machine), true) => {
            report.insert("machine".to_owned(), Value::Object(machine));
            print(&Value::Object(report))?;
        }
        (None, true) => print(&Value::Object(report))?,
        (Some(_), false) => print(&format!("\n{}", for_people(&report)))?,
        (None, false) => print(&for_people(&report))?,
    }
    loaded
}

/// Everything `inspect` says, in the order it is shown, and whether encoder and sentence head
/// load. What is wrong with a part is said in its place: inspecting is for finding out.
fn report(checkpoint: &Checkpoint, args: &InspectArgs) -> Result<(Map<String, Value>, Result<()>)> {
    let config = config_of(checkpoint)?;
    let mut report = Map::new();
    let mut say = |name: &str, value: Value| report.insert(name.to_owned(), value);
    say("path", json!(checkpoint.path().display().to_string()));
    say("format", json!(checkpoint.format().to_string()));
    let files: Vec<String> = checkpoint
        .weight_files()
        .map(|f| f.display().to_string())
        .collect();
    say("weight_files", json!(files));
    if !checkpoint.prefix().is_empty() {
        say("prefix", json!(checkpoint.prefix()));
    }
    say(
        "config",
        json!(match checkpoint.config_path() {
            Some(path) => path.display().to_string(),
            None if checkpoint.gguf().is_some() =>
                "the file's metadata; activation and max_distance by convention".to_owned(),
            None => "none; shapes are the tensors', activation, max_distance and eps by convention"
                .to_owned(),
        }),
    );
    say(
        "family",
        json!(config.family.map_or("not named", Family::model_type)),
    );
    say("shape", shape(&config));
    say(
        "feed_forward",
        json!(format!(
            "{}{}",
            if config.feed_forward.gated {
                "gated "
            } else {
                ""
            },
            config.feed_forward.activation.name()
        )),
    );
    if let Some(packed) = checkpoint.packed() {
        say("packed", describe(packed));
    }
    let (bytes, dtypes) = stored(checkpoint);
    say("tensors_by_type", json!(dtypes));
    if checkpoint.n_scales() > 0 {
        say("scaled_weights", json!(checkpoint.n_scales()));
    }
    say("stored_bytes", json!(bytes));
    say(
        "encoder_parameters",
        json!(u64::try_from(config.encoder_parameters()).ok()),
    );
    let has_decoder = checkpoint.names().any(|name| name.starts_with("decoder."));
    say("has_decoder", json!(has_decoder));
    let head = match (checkpoint.contains("lm_head.weight"), has_decoder) {
        (true, _) => "own",
        (false, true) => "tied to the embedding",
        (false, false) => "none",
    };
    say("output_head", json!(head));
    say("tokenizer", json!(tokenizer(checkpoint, &args.files)));
    let folder = checkpoint.config_path().and_then(|path| path.parent());
    let head = folder
        .map(|folder| SentenceHead::open(folder, config.d_model))
        .transpose();
    match &head {
        Ok(Some(Some(head))) => say("sentence_head", json!(head.describe())),
        Ok(_) => None,
        Err(e) => say("sentence_head", json!(in_a_line(e))),
    };
    let mut warnings = config.warnings.clone();
    warnings.extend(checkpoint.warnings()?);
    say("warnings", json!(warnings));
    let unused: Map<String, Value> = config
        .unused_fields
        .iter()
        .map(|field| (field.name.clone(), json!(field.reason)))
        .collect();
    say("unused_fields", json!(unused));
    // The reference leaves weights where they are, which checks a model without packing it; a
    // packed one is the CPU backend's alone, and costs nothing to map.
    let (backend, compute) = match checkpoint.packed() {
        Some(packed) => (BackendKind::Cpu, packed.compute()),
        None => (BackendKind::Reference, Compute::default()),
    };
    let loaded = TextEncoder::from_checkpoint(checkpoint, backend, &compute);
    let per_token = activation_bytes_per_token(&config, BackendKind::Cpu, &compute);
    if let (Ok(encoder), Ok(per_token)) = (&loaded, per_token) {
        let memory = json!({
            "weights_bytes": encoder.weight_bytes(),
            "per_1000_tokens_bytes": 1000 * per_token,
        });
        say("memory", memory);
    }
    let runs = loaded.as_ref().map_or_else(in_a_line, runs);
    say("encoder", json!(runs));
    if args.tensors {
        let list: Map<String, Value> = checkpoint
            .entries()
            .map(|(name, entry)| {
                let text = format!("{} {:?}", entry.dtype_name(), entry.shape());
                (name.to_owned(), json!(text))
            })
            .collect();
        say("tensors", json!(list));
    }
    Ok((report, loaded.map(|_| ()).and(head.map(|_| ()))))
}

fn shape(config: &T5Config) -> Value {
    json!({
        "vocab_size": config.vocab_size,
        "d_model": config.d_model,
        "d_ff": config.d_ff,
        "d_kv": config.d_kv,
        "num_heads": config.num_heads,
        "num_layers": config.num_layers,
        "num_decoder_layers": config.num_decoder_layers,
        "relative_attention_num_buckets": config.relative_attention_num_buckets,
        "relative_attention_max_distance": config.relative_attention_max_distance,
        "layer_norm_epsilon": config.layer_norm_epsilon,
    })
}

/// What a packed model is packed for, and how many matrices there are of each storage.
fn describe(packed: &Packed) -> Value {
    let mut counts = BTreeMap::new();
    for matrix in packed.matrices.values() {
        *counts.entry(matrix.storage.as_str()).or_insert(0usize) += 1;
    }
    let counts: Vec<String> = counts
        .iter()
        .map(|(storage, n)| format!("{n} in {storage}"))
        .collect();
    json!({
        "layout": packed.layout,
        "dtype": packed.dtype.name(),
        "matmul_precision": packed.matmul_precision.name(),
        "fold_norm_gains": packed.fold_norm_gains,
        "weights": packed.weights.name(),
        "keep": packed.keep.names(),
        "matrices": counts.join(", "),
    })
}

/// Bytes of all tensors, and how many tensors there are of each type.
fn stored(checkpoint: &Checkpoint) -> (u64, Map<String, Value>) {
    let mut counts = Map::new();
    let mut bytes = 0u64;
    for (_, entry) in checkpoint.entries() {
        bytes += entry.n_bytes();
        let count = counts.entry(entry.dtype_name()).or_insert(json!(0));
        *count = json!(count.as_u64().unwrap_or(0) + 1);
    }
    (bytes, counts)
}

fn tokenizer(checkpoint: &Checkpoint, files: &FileArgs) -> String {
    match model::tokenizer(checkpoint, files, None) {
        Ok(tokenizer) => tokenizer.describe(),
        Err(_) if has_no_tokenizer(checkpoint, files) => "none".to_owned(),
        Err(e) => in_a_line(&e),
    }
}

fn has_no_tokenizer(checkpoint: &Checkpoint, files: &FileArgs) -> bool {
    files.tokenizer.is_none()
        && checkpoint.tokenizer_folder().is_none()
        && matches!(checkpoint.tokenizer(), Ok(None))
}

/// Runs one token through the encoder: the only proof that it works.
fn runs(encoder: &TextEncoder) -> String {
    let batch = match PackedBatch::from_rows(&[vec![0]], encoder.config().vocab_size) {
        Ok(batch) => batch,
        Err(e) => return in_a_line(&e),
    };
    let states = match encoder.hidden_states(&batch, false) {
        Ok(states) => states,
        Err(e) => return in_a_line(&e),
    };
    let surplus: Vec<&str> = encoder.surplus_tensors().collect();
    match (
        states.last.iter().all(|value| value.is_finite()),
        surplus.len(),
    ) {
        (false, _) => "loads, but one token gives values that are not finite".to_owned(),
        (true, 0) => "loads and runs".to_owned(),
        (true, _) => format!("loads and runs; tensors not used: {}", surplus.join(", ")),
    }
}

/// An error without its hint, as a value among others.
fn in_a_line(error: &Error) -> String {
    match error.place() {
        Some(place) => format!("{place}: {}", error.message()),
        None => error.message().to_owned(),
    }
}

/// The report as aligned lines, bytes in units, numbers with thousands separators.
fn for_people(report: &Map<String, Value>) -> String {
    let rows: Vec<_> = report
        .iter()
        .map(|(name, value)| {
            let values = match value {
                Value::Object(map) => {
                    let rows: Vec<_> = map
                        .iter()
                        .map(|(n, v)| (label(n), vec![plain(n, v)]))
                        .collect();
                    aligned(&rows).lines().map(str::to_owned).collect()
                }
                Value::Array(list) => list.iter().map(|value| plain(name, value)).collect(),
                value => vec![plain(name, value)],
            };
            (name.trim_end_matches("_bytes").replace('_', " "), values)
        })
        .collect();
    aligned(&rows)
}

/// Fields of config.json keep their spelling.
fn label(name: &str) -> String {
    match name.strip_suffix("_bytes") {
        Some(name) => name.replace('_', " "),
        None => name.to_owned(),
    }
}

fn plain(name: &str, value: &Value) -> String {
    match value {
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::String(text) => text.clone(),
        value => match value.as_u64() {
            Some(bytes) if name.ends_with("_bytes") => size(bytes),
            Some(number) => thousands(u128::from(number)),
            None => value.to_string(),
        },
    }
}
