//! From `--model` and its companions to a loaded encoder and tokenizer.

use std::path::Path;
use std::sync::{Arc, Mutex};

use indicatif::{ProgressBar, ProgressStyle};
use quintic::calibrate::Plan;
use quintic::checkpoint::hub::{HubOptions, ProgressCallback};
use quintic::checkpoint::{Checkpoint, OpenOptions, Packed};
use quintic::preset::TokenizerClass;
use quintic::tokenizer::{Tokenizer, TokenizerChoice};
use quintic::{BackendKind, Compute, Error, ErrorKind, LoadOptions, Result, Seq2Seq, TextEncoder};

use crate::args::{ComputeArgs, FileArgs, TokenizerKind};

/// The files of a model, opened but not loaded.
pub(crate) fn open(model: &str, args: &FileArgs) -> Result<Checkpoint> {
    if args.download && !cfg!(feature = "hub") {
        return Err(
            Error::unsupported("this build cannot download, but `--download` was given")
                .hint("build it with `--features hub`"),
        );
    }
    let hub = HubOptions {
        // Without `--download` nothing leaves this machine; with it, HF_HUB_OFFLINE decides.
        offline: (!args.download).then_some(true),
        progress: Some(download_progress()),
        revision: args.revision.clone(),
        cache_dir: args.cache_dir.clone(),
        ..HubOptions::default()
    };
    let files = OpenOptions {
        variant: args.variant.clone(),
        subfolder: args.subfolder.clone(),
        prefix: args.prefix.clone(),
    };
    LoadOptions {
        files,
        hub,
        ..LoadOptions::default()
    }
    .open(model)
}

/// One bar for the file that is being fetched.
fn download_progress() -> ProgressCallback {
    let bar = Mutex::new(ProgressBar::hidden());
    Arc::new(move |progress| {
        let Ok(mut bar) = bar.lock() else { return };
        if bar.message() != progress.file {
            bar.finish_and_clear();
            *bar = ProgressBar::new(progress.total_bytes.unwrap_or(0));
            if let Ok(style) =
                ProgressStyle::with_template("{msg} {bar:30} {bytes}/{total_bytes}, {eta} left")
            {
                bar.set_style(style);
            }
            bar.set_message(progress.file.to_owned());
        }
        bar.set_position(progress.done_bytes);
    })
}

/// The encoder, with notes on what is odd about it on standard error.
pub(crate) fn load(
    checkpoint: &Checkpoint,
    args: &ComputeArgs,
    quiet: bool,
) -> Result<TextEncoder> {
    let backend = BackendKind::parse(&args.backend)?;
    let plan = plan(args.plan.as_deref(), checkpoint)?;
    let compute = compute(args, plan.as_ref(), backend, checkpoint.packed())?;
    let encoder = TextEncoder::from_checkpoint(checkpoint, backend, &compute)?;
    follow(plan.as_ref(), &encoder, quiet);
    if !quiet {
        for note in notes(&encoder) {
            eprintln!("note: {note}");
        }
    }
    Ok(encoder)
}

/// Encoder and decoder, with notes on what is odd about them on standard error.
pub(crate) fn load_seq2seq(
    checkpoint: &Checkpoint,
    args: &ComputeArgs,
    quiet: bool,
) -> Result<Seq2Seq> {
    let backend = BackendKind::parse(&args.backend)?;
    let plan = plan(args.plan.as_deref(), checkpoint)?;
    let compute = compute(args, plan.as_ref(), backend, None)?;
    let model = Seq2Seq::from_checkpoint(checkpoint, backend, &compute)?;
    follow(plan.as_ref(), model.encoder(), quiet);
    if !quiet {
        for note in notes(model.encoder()) {
            eprintln!("note: {note}");
        }
    }
    Ok(model)
}

/// The plan of this name, which has to be the checkpoint's.
pub(crate) fn plan(path: Option<&Path>, checkpoint: &Checkpoint) -> Result<Option<Plan>> {
    path.map(|path| Plan::read_for(path, checkpoint))
        .transpose()
}

/// What was chosen, completed by a plan and by what a packed model is packed for.
pub(crate) fn compute(
    args: &ComputeArgs,
    plan: Option<&Plan>,
    backend: BackendKind,
    packed: Option<&Packed>,
) -> Result<Compute> {
    // Those that do not read what is packed refuse it.
    let packed = packed.filter(|_| backend.reads_packed());
    let choice = args.choice()?;
    match plan {
        Some(plan) => plan.complete(&choice)?.resolve(packed),
        None => choice.resolve(packed),
    }
}

/// What of a plan is no choice of how to compute, and what is said of it on standard error.
pub(crate) fn follow(plan: Option<&Plan>, encoder: &TextEncoder, quiet: bool) {
    let Some(plan) = plan else { return };
    encoder.start_scales(&plan.scales());
    if !quiet {
        eprintln!("note: by the plan, {}", plan.describe());
    }
}

/// What a user should know about a model that loaded.
fn notes(encoder: &TextEncoder) -> Vec<String> {
    let config = encoder.config();
    let mut notes = config.warnings.clone();
    let unknown: Vec<String> = config
        .unused_fields
        .iter()
        .filter(|field| field.unknown)
        .map(|field| format!("`{}`", field.name))
        .collect();
    if !unknown.is_empty() {
        notes.push(format!(
            "config.json has fields that are not known here: {}",
            unknown.join(", ")
        ));
    }
    let surplus: Vec<&str> = encoder.surplus_tensors().take(8).collect();
    if !surplus.is_empty() {
        notes.push(format!("tensors that are not used: {}", surplus.join(", ")));
    }
    notes
}

/// The tokenizer of a model whose weights need not be there: a folder of tokenizer files will
/// do.
pub(crate) fn tokenizer_alone(model: &str, args: &FileArgs) -> Result<Tokenizer> {
    let folder = Path::new(model);
    match open(model, args) {
        Ok(checkpoint) => tokenizer(&checkpoint, args, None),
        Err(_) if folder.is_dir() && args.subfolder.is_none() => {
            Tokenizer::from_dir(folder, choice(args))
        }
        Err(error) => Err(error),
    }
}

/// The tokenizer that `--tokenizer` names, the one beside the model, or the one inside its
/// weight file.
///
/// Where both kinds are there and the user did not choose, a preset's pipeline does.
pub(crate) fn tokenizer(
    checkpoint: &Checkpoint,
    args: &FileArgs,
    class: Option<TokenizerClass>,
) -> Result<Tokenizer> {
    if let Some(path) = &args.tokenizer {
        return tokenizer_at(path, args);
    }
    if let Some(folder) = checkpoint.tokenizer_folder() {
        let has = |file: &str| folder.join(file).is_file();
        let choice = match (choice(args), class) {
            (TokenizerChoice::Auto, Some(TokenizerClass::T5Slow)) if has("spiece.model") => {
                TokenizerChoice::Slow
            }
            (TokenizerChoice::Auto, Some(TokenizerClass::T5Fast)) if has("tokenizer.json") => {
                TokenizerChoice::Fast
            }
            (choice, _) => choice,
        };
        return Tokenizer::from_dir(folder, choice);
    }
    if let Some(tokenizer) = checkpoint.tokenizer()? {
        return Ok(tokenizer);
    }
    Err(
        Error::new(ErrorKind::NotFound, "the model has no tokenizer beside it")
            .at(checkpoint.path().display())
            .hint("name one by `--tokenizer`"),
    )
}

/// The tokenizer of a folder or file.
pub(crate) fn tokenizer_at(path: &Path, args: &FileArgs) -> Result<Tokenizer> {
    match (path.is_dir(), args.tokenizer_kind) {
        (true, _) => Tokenizer::from_dir(path, choice(args)),
        (false, TokenizerKind::Auto) => Tokenizer::from_file(path),
        (false, _) => Err(
            Error::input("`--tokenizer-kind` chooses among the files of a folder")
                .at(path.display()),
        ),
    }
}

fn choice(args: &FileArgs) -> TokenizerChoice {
    match args.tokenizer_kind {
        TokenizerKind::Auto => TokenizerChoice::Auto,
        TokenizerKind::Fast => TokenizerChoice::Fast,
        TokenizerKind::Slow => TokenizerChoice::Slow,
    }
}
