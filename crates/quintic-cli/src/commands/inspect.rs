//! `quintic inspect`.

use quintic::batch::PackedBatch;
use quintic::checkpoint::Checkpoint;
use quintic::config::{Family, T5Config};
use quintic::sentence::SentenceHead;
use quintic::tokenizer::{Tokenizer, TokenizerChoice};
use quintic::{BackendKind, Result, TextEncoder, config_of};
use serde_json::{Map, Value, json};

use crate::args::InspectArgs;
use crate::model;
use crate::sink::print;

pub(crate) fn run(args: &InspectArgs) -> Result<()> {
    let checkpoint = model::open(&args.model, &args.files)?;
    let report = report(&checkpoint, args.tensors)?;
    if args.json {
        return print(&Value::Object(report));
    }
    for (name, value) in &report {
        show(name, value)?;
    }
    Ok(())
}

/// Everything `inspect` says, in the order it is shown. What is wrong with a part is said in
/// its place: inspecting is for finding out.
fn report(checkpoint: &Checkpoint, tensors: bool) -> Result<Map<String, Value>> {
    let config = config_of(checkpoint)?;
    let mut report = Map::new();
    let mut say = |name: &str, value: Value| report.insert(name.to_owned(), value);
    say("path", json!(checkpoint.path().display().to_string()));
    say(
        "format",
        json!(format!("{:?}", checkpoint.format()).to_lowercase()),
    );
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
    let (bytes, dtypes) = stored(checkpoint);
    say("stored", json!(dtypes));
    say("stored_bytes", json!(bytes));
    say(
        "encoder_parameters",
        json!(config.encoder_parameters().to_string()),
    );
    say(
        "has_decoder",
        json!(checkpoint.names().any(|name| name.starts_with("decoder."))),
    );
    say(
        "output_head",
        json!(if checkpoint.contains("lm_head.weight") {
            "own"
        } else {
            "tied"
        }),
    );
    say("tokenizer", json!(tokenizer(checkpoint)));
    if let Some(folder) = checkpoint.config_path().and_then(|path| path.parent())
        && let Some(head) = SentenceHead::open(folder, config.d_model)?
    {
        say("sentence_head", json!(head.describe()));
    }
    say("warnings", json!(config.warnings));
    let unused: Map<String, Value> = config
        .unused_fields
        .iter()
        .map(|field| (field.name.clone(), json!(field.reason)))
        .collect();
    say("unused_fields", json!(unused));
    say("encoder", json!(runs(checkpoint)));
    if tensors {
        let list: Map<String, Value> = checkpoint
            .entries()
            .map(|(name, entry)| {
                (
                    name.to_owned(),
                    json!(format!("{} {:?}", entry.dtype_name(), entry.shape())),
                )
            })
            .collect();
        say("tensors", json!(list));
    }
    Ok(report)
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

fn tokenizer(checkpoint: &Checkpoint) -> String {
    let Some(folder) = checkpoint.tokenizer_folder() else {
        return match checkpoint.embedded_tokenizer() {
            Ok(Some(_)) => "inside the weight file".to_owned(),
            Ok(None) => "none".to_owned(),
            Err(e) => e.to_string(),
        };
    };
    match Tokenizer::from_dir(folder, TokenizerChoice::Auto) {
        Ok(tokenizer) => tokenizer.describe(),
        Err(e) => e.to_string(),
    }
}

/// Loads the encoder and runs one token through it: the only proof that it works.
fn runs(checkpoint: &Checkpoint) -> String {
    let encoder = match TextEncoder::from_checkpoint(checkpoint, BackendKind::Reference) {
        Ok(encoder) => encoder,
        Err(e) => return e.to_string(),
    };
    let batch = match PackedBatch::from_rows(&[vec![0]], encoder.config().vocab_size) {
        Ok(batch) => batch,
        Err(e) => return e.to_string(),
    };
    let surplus: Vec<&str> = encoder.surplus_tensors().collect();
    let finite = encoder
        .hidden_states(&batch, false)
        .last
        .iter()
        .all(|value| value.is_finite());
    match (finite, surplus.len()) {
        (false, _) => "loads, but one token gives values that are not finite".to_owned(),
        (true, 0) => "loads and runs".to_owned(),
        (true, _) => format!("loads and runs; tensors not used: {}", surplus.join(", ")),
    }
}

fn show(name: &str, value: &Value) -> Result<()> {
    let label = name.replace('_', " ");
    match value {
        Value::Object(map) if map.is_empty() => Ok(()),
        Value::Array(list) if list.is_empty() => Ok(()),
        Value::Object(map) => {
            print(&format_args!("{label}:"))?;
            map.iter()
                .try_for_each(|(name, value)| print(&format_args!("    {name}: {}", plain(value))))
        }
        Value::Array(list) => {
            print(&format_args!("{label}:"))?;
            list.iter()
                .try_for_each(|value| print(&format_args!("    {}", plain(value))))
        }
        other => print(&format_args!("{label}: {}", plain(other))),
    }
}

fn plain(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}
