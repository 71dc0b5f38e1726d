//! From `--model` and its companions to a loaded encoder and tokenizer.

use std::path::Path;

use quintic::checkpoint::hub::{self, HubOptions};
use quintic::checkpoint::{Checkpoint, OpenOptions};
use quintic::preset::TokenizerClass;
use quintic::tokenizer::{SpieceOptions, Tokenizer, TokenizerChoice};
use quintic::{BackendKind, Error, ErrorKind, Result, TextEncoder};

use crate::args::{FileArgs, ModelArgs, TokenizerKind};

/// The files of a model, opened but not loaded.
pub(crate) fn open(model: &str, args: &FileArgs) -> Result<Checkpoint> {
    let options = HubOptions {
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
pub(crate) fn tokenizer_alone(args: &ModelArgs) -> Result<Tokenizer> {
    let path = Path::new(&args.model);
    if args.files.tokenizer.is_none() && path.is_dir() && args.files.subfolder.is_none() {
        match open(&args.model, &args.files) {
            Ok(checkpoint) => return tokenizer(&checkpoint, args, None),
            Err(_) => return Tokenizer::from_dir(path, choice(args)),
        }
    }
    if let Some(path) = &args.files.tokenizer {
        return at(path, args);
    }
    tokenizer(&open(&args.model, &args.files)?, args, None)
}

/// The tokenizer that `--tokenizer` names, the one beside the model, or the one inside its
/// weight file.
///
/// Where both kinds are there and the user did not choose, a preset's pipeline does.
pub(crate) fn tokenizer(
    checkpoint: &Checkpoint,
    args: &ModelArgs,
    class: Option<TokenizerClass>,
) -> Result<Tokenizer> {
    if let Some(path) = &args.files.tokenizer {
        return at(path, args);
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
    if let Some(model) = checkpoint.embedded_tokenizer()? {
        return Tokenizer::from_spiece_bytes(model.bytes(), &SpieceOptions::default());
    }
    Err(
        Error::new(ErrorKind::NotFound, "the model has no tokenizer beside it")
            .at(checkpoint.path().display())
            .hint("name one by `--tokenizer`"),
    )
}

fn choice(args: &ModelArgs) -> TokenizerChoice {
    match args.files.tokenizer_kind {
        TokenizerKind::Auto => TokenizerChoice::Auto,
        TokenizerKind::Fast => TokenizerChoice::Fast,
        TokenizerKind::Slow => TokenizerChoice::Slow,
    }
}

fn at(path: &Path, args: &ModelArgs) -> Result<Tokenizer> {
    match path.is_dir() {
        true => Tokenizer::from_dir(path, choice(args)),
        false => Tokenizer::from_file(path),
    }
}
