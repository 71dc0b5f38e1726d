//! Which files of a folder are the model: `config.json`, weights by variant, tokenizer.

use std::fmt;
use std::path::{Path, PathBuf};

use super::entry::list_names;
use super::file::{ENDINGS, Format};
use super::pipeline;
use crate::{Error, ErrorKind, Result};

/// Files any of which makes a folder a tokenizer's. ByT5 has only the last one.
pub(crate) const TOKENIZER_FILES: [&str; 5] = [
    "tokenizer.json",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "tokenizer_config.json",
];

/// Choices that a path alone leaves open.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// Take `model.fp16.safetensors` instead of `model.safetensors` for `fp16`. Without it
    /// only files without a variant are taken.
    pub variant: Option<String>,
    /// The folder inside `path` that holds the model, such as `text_encoder_2`.
    pub subfolder: Option<String>,
    /// What to strip from the names of the tensors, such as
    /// `text_encoders.t5xxl.transformer.`. Found by itself if not given. An empty prefix
    /// opens weights that are no T5, such as the `2_Dense` of a sentence model.
    pub prefix: Option<String>,
}

/// The files of one model, found but not opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// A weight file, or the index of several.
    pub(super) weights: PathBuf,
    pub(super) is_index: bool,
    pub(super) format: Format,
    pub(super) config: Option<PathBuf>,
    pub(super) tokenizer: Option<PathBuf>,
}

/// Finds the files of the model at `path`: a weight file, a model folder or a pipeline.
pub(super) fn find(path: &Path, options: &OpenOptions) -> Result<Layout> {
    let metadata =
        std::fs::metadata(path).map_err(|error| Error::io(path, "open the model", error))?;
    if !metadata.is_dir() {
        if !metadata.is_file() {
            return Err(
                Error::new(ErrorKind::Io, "neither a folder nor a regular file").at(path.display()),
            );
        }
        return single_file(path, options);
    }
    if let Some(subfolder) = &options.subfolder {
        let folder = path.join(check_subfolder(subfolder)?);
        if !folder.is_dir() {
            return Err(
                Error::new(ErrorKind::NotFound, "there is no such subfolder").at(folder.display()),
            );
        }
        let tokenizer = own_tokenizer(&folder).or_else(|| pipeline::tokenizer_of(path, subfolder));
        return model_folder(&folder, tokenizer, options);
    }
    if !pipeline::is_pipeline(path) {
        let tokenizer = own_tokenizer(path).or_else(|| pipeline::tokenizer_beside(path));
        return model_folder(path, tokenizer, options);
    }
    let encoder = pipeline::find_encoder(path)?;
    model_folder(
        &path.join(&encoder),
        pipeline::tokenizer_of(path, &encoder),
        options,
    )
}

/// Refuses subfolders that leave the model's folder.
fn check_subfolder(subfolder: &str) -> Result<&Path> {
    use std::path::Component;
    let path = Path::new(subfolder);
    if path
        .components()
        .all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
    {
        Ok(path)
    } else {
        Err(Error::input(format!(
            "subfolder `{subfolder}` leaves the model's folder, expected a folder inside it"
        )))
    }
}

fn single_file(path: &Path, options: &OpenOptions) -> Result<Layout> {
    if let Some(variant) = &options.variant {
        return Err(Error::input(format!(
            "variant `{variant}` was asked for, but the path names one file"
        ))
        .at(path.display()));
    }
    if let Some(subfolder) = &options.subfolder {
        return Err(Error::input(format!(
            "subfolder `{subfolder}` was asked for, but the path names one file"
        ))
        .at(path.display()));
    }
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    let is_index = name.ends_with(".json");
    let format = match is_index {
        true if name.contains("safetensors") => Some(Format::Safetensors),
        true if name.contains(".bin") => Some(Format::Pytorch),
        true => None,
        false => Format::of_path(path),
    };
    let Some(format) = format else {
        return Err(Error::unsupported(format!(
            "not a weight file by its name, expected one that ends in {ENDINGS}, or a model folder",
        ))
        .at(path.display()));
    };
    // A file that has the name transformers gives it belongs to the folder it lies in, and
    // its config may say what shapes cannot, such as the activation. Others stand alone.
    // A GGUF file has its own.
    let is_named =
        format != Format::Gguf && (name.starts_with("model") || name.starts_with("pytorch_model"));
    let folder = match path.parent() {
        Some(folder) if folder.as_os_str().is_empty() => Some(Path::new(".")),
        folder => folder,
    };
    let folder = folder.filter(|folder| is_named && folder.join("config.json").is_file());
    Ok(Layout {
        weights: path.to_path_buf(),
        is_index,
        format,
        config: folder.map(|folder| folder.join("config.json")),
        tokenizer: folder.and_then(own_tokenizer),
    })
}

fn model_folder(
    folder: &Path,
    tokenizer: Option<PathBuf>,
    options: &OpenOptions,
) -> Result<Layout> {
    let names = file_names(folder)?;
    let Some((weights, is_index, format)) = choose_weights(&names, options.variant.as_deref())
    else {
        return Err(no_weights(&names, options.variant.as_deref()).at(folder.display()));
    };
    let config = folder.join("config.json");
    Ok(Layout {
        weights: folder.join(weights),
        is_index,
        format,
        config: config.is_file().then_some(config),
        tokenizer,
    })
}

/// Names that the weights of `variant` may have: best first, with whether it is an index.
/// Safetensors come before PyTorch files and one file before shards, as in transformers.
fn candidates(variant: Option<&str>) -> Vec<(String, bool, Format)> {
    let named = |name: String, is_index, format| (name, is_index, format);
    match variant {
        None => vec![
            named("model.safetensors".into(), false, Format::Safetensors),
            named(
                "model.safetensors.index.json".into(),
                true,
                Format::Safetensors,
            ),
            named("pytorch_model.bin".into(), false, Format::Pytorch),
            named("pytorch_model.bin.index.json".into(), true, Format::Pytorch),
            // Beside other weights it is a variant, and found as one.
            named(super::packed::FILE.into(), false, Format::Safetensors),
        ],
        // The index has been published with the variant in either place.
        Some(v) => vec![
            named(format!("model.{v}.safetensors"), false, Format::Safetensors),
            named(
                format!("model.safetensors.index.{v}.json"),
                true,
                Format::Safetensors,
            ),
            named(
                format!("model.{v}.safetensors.index.json"),
                true,
                Format::Safetensors,
            ),
            named(format!("pytorch_model.{v}.bin"), false, Format::Pytorch),
            named(
                format!("pytorch_model.bin.index.{v}.json"),
                true,
                Format::Pytorch,
            ),
            named(
                format!("pytorch_model.{v}.bin.index.json"),
                true,
                Format::Pytorch,
            ),
        ],
    }
}

/// The best weights among the files of a folder: name, whether it is an index, format.
pub(super) fn choose_weights(
    names: &[String],
    variant: Option<&str>,
) -> Option<(String, bool, Format)> {
    candidates(variant)
        .into_iter()
        .find(|(name, ..)| names.contains(name))
}

/// The variants that a folder has weights of; `None` for weights without one.
fn variants(names: &[String]) -> Vec<Option<String>> {
    let mut found = Vec::new();
    for name in names {
        let variant = match name.as_str() {
            "model.safetensors"
            | "model.safetensors.index.json"
            | "pytorch_model.bin"
            | "pytorch_model.bin.index.json" => None,
            name => match variant_of(name) {
                Some(variant) => Some(variant.to_owned()),
                None => continue,
            },
        };
        if !found.contains(&variant) {
            found.push(variant);
        }
    }
    found.sort();
    found
}

/// `fp16` of `model.fp16.safetensors` and the other spellings in [`candidates`].
fn variant_of(name: &str) -> Option<&str> {
    const AROUND: [(&str, &str); 6] = [
        ("model.safetensors.index.", ".json"),
        ("pytorch_model.bin.index.", ".json"),
        ("model.", ".safetensors.index.json"),
        ("pytorch_model.", ".bin.index.json"),
        ("model.", ".safetensors"),
        ("pytorch_model.", ".bin"),
    ];
    AROUND
        .into_iter()
        .find_map(|(before, after)| name.strip_prefix(before)?.strip_suffix(after))
        .filter(|variant| !variant.is_empty() && !variant.contains('/'))
}

/// Why there is nothing to load, from what is there.
pub(super) fn no_weights(names: &[String], variant: Option<&str>) -> Error {
    let not_found = |message: String| Error::new(ErrorKind::NotFound, message);
    let variants = variants(names);
    if !variants.is_empty() {
        let there: Vec<_> = variants
            .iter()
            .map(|variant| match variant {
                Some(variant) => format!("`{variant}`"),
                None => "the one without a name".to_owned(),
            })
            .collect();
        let wanted = match variant {
            Some(variant) => format!("of variant `{variant}`"),
            None => "without a variant".to_owned(),
        };
        return not_found(format!(
            "there are no weights {wanted}, the variants there are: {}",
            there.join(", ")
        ));
    }
    let expected = "expected `model.safetensors` or `pytorch_model.bin`, or an index of shards";
    let shards =
        |name: &&String| name.contains("-of-") && Format::of_path(Path::new(name)).is_some();
    if names.iter().any(|name| shards(&name)) {
        return not_found(format!("there are shards but no index of them, {expected}"))
            .hint("is the download complete?");
    }
    let others: Vec<_> = names.iter().filter(|name| is_other_weights(name)).collect();
    if !others.is_empty() {
        let error = not_found(format!(
            "the weights there are in no format that is read: {}; {expected}",
            list_names(&others, 5)
        ));
        return match others.iter().any(|name| name.ends_with(".gguf")) {
            true => error.hint("a GGUF file is a model of its own: name the file"),
            false => error,
        };
    }
    not_found(format!("there are no weights, {expected}"))
}

fn is_other_weights(name: &str) -> bool {
    [
        ".gguf",
        ".msgpack",
        ".h5",
        ".onnx",
        ".ckpt",
        ".pt",
        ".pth",
        ".safetensors",
        ".bin",
    ]
    .iter()
    .any(|ending| name.ends_with(ending))
        || name == "model.ckpt.index"
}

/// The folder itself if it has a tokenizer's files.
pub(super) fn own_tokenizer(folder: &Path) -> Option<PathBuf> {
    TOKENIZER_FILES
        .iter()
        .any(|name| folder.join(name).is_file())
        .then(|| folder.to_path_buf())
}

/// Sorted names of the files (links to files included) in a folder.
fn file_names(folder: &Path) -> Result<Vec<String>> {
    let list = |error| Error::io(folder, "list the folder", error);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(list)? {
        let entry = entry.map_err(list)?;
        if let Ok(name) = entry.file_name().into_string()
            && entry.path().is_file()
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.weights.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn every_candidate_name_gives_its_variant_back() {
        for (name, ..) in candidates(Some("fp16")) {
            assert_eq!(variant_of(&name), Some("fp16"), "{name}");
        }
        for (name, ..) in candidates(None) {
            let packed = (name == super::super::packed::FILE).then(|| "packed".to_owned());
            assert_eq!(variants(&[name]), [packed]);
        }
        assert_eq!(variant_of("model-00001-of-00002.safetensors"), None);
    }

    #[test]
    fn safetensors_win_over_pytorch_and_files_over_shards() {
        let all = names(&[
            "pytorch_model.bin",
            "model.safetensors.index.json",
            "pytorch_model.fp16.bin",
        ]);
        let chosen = |variant| choose_weights(&all, variant).map(|(name, ..)| name);
        assert_eq!(chosen(None).unwrap(), "model.safetensors.index.json");
        assert_eq!(chosen(Some("fp16")).unwrap(), "pytorch_model.fp16.bin");
        assert_eq!(chosen(Some("bf16")), None);
    }

    #[test]
    fn says_what_is_there_instead() {
        let text = |list: &[&str], variant| no_weights(&names(list), variant).message().to_owned();
        assert_eq!(
            text(
                &["model.fp16.safetensors", "model.safetensors"],
                Some("bf16")
            ),
            "there are no weights of variant `bf16`, the variants there are: the one without a name, `fp16`"
        );
        assert!(text(&["model.fp16.safetensors"], None).contains("without a variant"));
        assert!(text(&["model-00001-of-00002.safetensors"], None).contains("no index"));
        assert!(text(&["tf_model.h5"], None).contains("`tf_model.h5`"));
        assert!(text(&["config.json"], None).starts_with("there are no weights, expected"));
    }
}
