//! Which of a repository's files a model needs.

use crate::checkpoint::layout::{TOKENIZER_FILES, choose_weights, no_weights};
use crate::checkpoint::pipeline;
use crate::checkpoint::shards::ShardIndex;
use crate::{Error, ErrorKind, Result};

const PIPELINE_INDEX: &str = "model_index.json";

/// Small files that say how to use the weights, wherever they lie.
const CONFIGS: [&str; 4] = [
    "config.json",
    "generation_config.json",
    "modules.json",
    "config_sentence_transformers.json",
];

/// Tokenizer files beside those that make a folder a tokenizer's.
const MORE_TOKENIZER_FILES: [&str; 3] =
    ["special_tokens_map.json", "added_tokens.json", "vocab.json"];

/// What is asked for.
pub(super) struct Wanted<'a> {
    pub(super) subfolder: Option<&'a str>,
    pub(super) variant: Option<&'a str>,
}

/// Files to download, small ones first: configs, the tokenizer, the weights of the best
/// format with all their shards. `read` fetches a file and returns its text.
pub(super) fn select(
    files: &[String],
    wanted: &Wanted<'_>,
    read: &mut dyn FnMut(&str) -> Result<String>,
) -> Result<Vec<String>> {
    let mut chosen = Vec::new();
    let has = |name: &str| files.iter().any(|file| file == name);
    let folder = match wanted.subfolder {
        Some(subfolder) => subfolder.trim_matches('/').to_owned(),
        None if has(PIPELINE_INDEX) => {
            pipeline::choose(&pipeline::components(&read(PIPELINE_INDEX)?)?)?
        }
        None => String::new(),
    };
    if has(PIPELINE_INDEX) {
        chosen.push(PIPELINE_INDEX.to_owned());
    }
    let inside = files_in(files, &folder);
    if inside.is_empty() {
        return Err(Error::new(
            ErrorKind::NotFound,
            format!("the repository has no folder `{folder}`"),
        ));
    }
    let join = |folder: &str, name: &str| match folder {
        "" => name.to_owned(),
        _ => format!("{folder}/{name}"),
    };
    add(&mut chosen, &folder, &inside, &CONFIGS);
    add_tokenizer(&mut chosen, &folder, &inside);
    if let Some(tokenizer) = pipeline::tokenizer_name(&folder) {
        add_tokenizer(&mut chosen, &tokenizer, &files_in(files, &tokenizer));
    }
    if folder.is_empty() && has("modules.json") {
        add_modules(&mut chosen, files);
    }
    let Some((weights, is_index, _)) = choose_weights(&inside, wanted.variant) else {
        return Err(no_weights(&inside, wanted.variant));
    };
    let weights = join(&folder, &weights);
    chosen.push(weights.clone());
    if is_index {
        let index = ShardIndex::parse(std::path::Path::new(&weights), &read(&weights)?)
            .map_err(|error| error.at(&weights))?;
        for shard in index.shard_names() {
            let shard = join(&folder, shard);
            if !has(&shard) {
                return Err(
                    Error::checkpoint(format!("shard `{shard}` is not in the repository"))
                        .at(&weights),
                );
            }
            chosen.push(shard);
        }
    }
    Ok(chosen)
}

/// Names of the files directly in a folder; `""` is the repository itself.
fn files_in(files: &[String], folder: &str) -> Vec<String> {
    files
        .iter()
        .filter_map(|file| match folder {
            "" => Some(file.as_str()),
            _ => file.strip_prefix(folder)?.strip_prefix('/'),
        })
        .filter(|name| !name.contains('/'))
        .map(str::to_owned)
        .collect()
}

fn add(chosen: &mut Vec<String>, folder: &str, inside: &[String], names: &[&str]) {
    for name in names
        .iter()
        .filter(|&&name| inside.iter().any(|file| file == name))
    {
        chosen.push(match folder {
            "" => (*name).to_owned(),
            _ => format!("{folder}/{name}"),
        });
    }
}

fn add_tokenizer(chosen: &mut Vec<String>, folder: &str, inside: &[String]) {
    add(chosen, folder, inside, &TOKENIZER_FILES);
    add(chosen, folder, inside, &MORE_TOKENIZER_FILES);
}

/// The numbered folders of a sentence-transformers model, such as `2_Dense`.
fn add_modules(chosen: &mut Vec<String>, files: &[String]) {
    let mut folders: Vec<_> = files
        .iter()
        .filter_map(|file| file.split_once('/'))
        .map(|(folder, _)| folder)
        .filter(|folder| {
            folder
                .split_once('_')
                .is_some_and(|(n, _)| n.parse::<u8>().is_ok())
        })
        .collect();
    folders.sort_unstable();
    folders.dedup();
    for folder in folders {
        let inside = files_in(files, folder);
        add(chosen, folder, &inside, &["config.json"]);
        if let Some((weights, false, _)) = choose_weights(&inside, None) {
            chosen.push(format!("{folder}/{weights}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(
        files: &[&str],
        subfolder: Option<&str>,
        variant: Option<&str>,
    ) -> Result<Vec<String>> {
        let files: Vec<_> = files.iter().map(|&file| file.to_owned()).collect();
        let mut read = |name: &str| {
            Ok(match name {
                PIPELINE_INDEX => r#"{"text_encoder_2": ["transformers", "T5EncoderModel"]}"#,
                _ => r#"{"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}"#,
            }
            .to_owned())
        };
        select(&files, &Wanted { subfolder, variant }, &mut read)
    }

    #[test]
    fn a_model_needs_one_format_only() {
        let files = [
            "README.md",
            "config.json",
            "flax_model.msgpack",
            "model.safetensors",
            "pytorch_model.bin",
            "spiece.model",
            "tokenizer.json",
            "onnx/model.onnx",
        ];
        assert_eq!(
            chosen(&files, None, None).unwrap(),
            [
                "config.json",
                "tokenizer.json",
                "spiece.model",
                "model.safetensors"
            ]
        );
        let error = chosen(&files, None, Some("fp16")).unwrap_err();
        assert!(
            error.message().contains("no weights of variant `fp16`"),
            "{error}"
        );
        assert_eq!(
            chosen(&files, Some("x"), None).unwrap_err().kind(),
            ErrorKind::NotFound
        );
    }

    #[test]
    fn a_pipeline_needs_one_encoder_and_its_tokenizer() {
        let files = [
            PIPELINE_INDEX,
            "text_encoder/model.safetensors",
            "text_encoder_2/config.json",
            "text_encoder_2/m-1.safetensors",
            "text_encoder_2/m-2.safetensors",
            "text_encoder_2/model.safetensors.index.json",
            "tokenizer/vocab.json",
            "tokenizer_2/spiece.model",
            "transformer/x.safetensors",
        ];
        let expected = [
            PIPELINE_INDEX,
            "text_encoder_2/config.json",
            "tokenizer_2/spiece.model",
            "text_encoder_2/model.safetensors.index.json",
            "text_encoder_2/m-1.safetensors",
            "text_encoder_2/m-2.safetensors",
        ];
        assert_eq!(chosen(&files, None, None).unwrap(), expected);
        assert_eq!(
            chosen(&files, Some("text_encoder_2"), None).unwrap(),
            expected
        );
        let error = chosen(&[&files[..3], &files[4..]].concat(), None, None).unwrap_err();
        assert!(
            error
                .message()
                .contains("`text_encoder_2/m-1.safetensors` is not in"),
            "{error}"
        );
    }

    #[test]
    fn a_sentence_model_needs_its_modules() {
        let files = [
            "modules.json",
            "config.json",
            "1_Pooling/config.json",
            "2_Dense/config.json",
            "2_Dense/model.safetensors",
            "2_Dense/pytorch_model.bin",
            "model.safetensors",
        ];
        let chosen = chosen(&files, None, None).unwrap();
        assert!(
            chosen.contains(&"2_Dense/model.safetensors".to_owned()),
            "{chosen:?}"
        );
        assert!(
            !chosen.contains(&"2_Dense/pytorch_model.bin".to_owned()),
            "{chosen:?}"
        );
        assert_eq!(chosen.len(), 6);
    }
}
