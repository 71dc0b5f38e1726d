//! From `--model` and its companions to a loaded encoder and tokenizer.

use std::path::Path;

use quintic::checkpoint::hub::{self, HubOptions};
use quintic::checkpoint::{Checkpoint, OpenOptions};
use quintic::tokenizer::{SpieceOptions, Tokenizer, TokenizerChoice};
use quintic::{BackendKind, Error, ErrorKind, Result, TextEncoder};

use crate::args::{FileArgs, TokenizerKind};

/// The files of a model, opened but not loaded.
pub(crate) fn open(model: &str, args: &FileArgs) -> Result<Checkpoint> {
    #[cfg(feature = "hub")]
    let offline = (!args.download).then_some(true);
    #[cfg(not(feature = "hub"))]
    let offline = None;
    let options = HubOptions {
        offline,
        revision: args.revision.clone(),
        cache_dir: args.cache_dir.clone(),
        variant: args.variant.clone(),
        subfolder: args.subfolder.clone(),
        ..HubOptions::default()
    };
    let path = hub::resolve(model, &options)?;
    let files = OpenOptions {
        variant: args.variant.clone(),
        subfolder: args.subfolder.clone(),
        prefix: args.prefix.clone(),
    };
    Checkpoint::open(path, &files)
}

/// The encoder, with notes on what is odd about it on standard error.
pub(crate) fn load(checkpoint: &Checkpoint, backend: &str, quiet: bool) -> Result<TextEncoder> {
    let encoder = TextEncoder::from_checkpoint(checkpoint, BackendKind::parse(backend)?)?;
    if !quiet {
        for note in notes(&encoder) {
            eprintln!("note: {note}");
        }
    }
    Ok(encoder)
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
        Ok(checkpoint) => tokenizer(&checkpoint, args),
        Err(_) if folder.is_dir() && args.subfolder.is_none() => {
            Tokenizer::from_dir(folder, choice(args))
        }
        Err(error) => Err(error),
    }
}

/// The tokenizer that `--tokenizer` names, the one beside the model, or the one inside its
/// weight file.
pub(crate) fn tokenizer(checkpoint: &Checkpoint, args: &FileArgs) -> Result<Tokenizer> {
    if let Some(path) = &args.tokenizer {
        return tokenizer_at(path, args);
    }
    if let Some(folder) = checkpoint.tokenizer_folder() {
        return Tokenizer::from_dir(folder, choice(args));
    }
    if let Some(model) = checkpoint.embedded_tokenizer()? {
        return Tokenizer::from_spiece_bytes(model.bytes(), &SpieceOptions::default());
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
