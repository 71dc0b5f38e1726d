//! Diffusers pipelines: which component is the T5, and which tokenizer is its own.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::entry::list_names;
use super::layout::own_tokenizer;
use super::shards::{is_plain_name, read_bounded};
use crate::{Error, ErrorKind, Result};

const INDEX: &str = "model_index.json";

/// Most bytes of a JSON file that is read for its class names.
const MAX_JSON_BYTES: u64 = 10_000_000;

/// Whether the folder is a pipeline and not itself a model. A pipeline of which only some
/// components were fetched may lack its index.
pub(super) fn is_pipeline(folder: &Path) -> bool {
    folder.join(INDEX).is_file()
        || (!folder.join("config.json").is_file()
            && SLOTS
                .iter()
                .any(|slot| folder.join(slot).join("config.json").is_file()))
}

/// Folders that text encoders are published in.
const SLOTS: [&str; 4] = [
    "text_encoder",
    "text_encoder_2",
    "text_encoder_3",
    "text_encoder_4",
];

/// The folder of the pipeline's only T5 encoder, by `model_index.json`, or without one by
/// the components' own configs.
pub(super) fn find_encoder(folder: &Path) -> Result<String> {
    let index = folder.join(INDEX);
    let components = if index.is_file() {
        components(&read_bounded(&index, MAX_JSON_BYTES)?)
            .map_err(|error| error.at(index.display()))?
    } else {
        components_by_config(folder)?
    };
    choose(&components).map_err(|error| match index.is_file() {
        true => error.at(index.display()),
        false => error.at(folder.display()),
    })
}

/// Name and class of every component that an index lists.
pub(super) fn components(text: &str) -> Result<Vec<(String, String)>> {
    let damaged =
        |what: String| Error::config(format!("the pipeline index cannot be read: {what}"));
    let value: Value = serde_json::from_str(text)
        .map_err(|error| damaged(error.to_string()).source_error(error))?;
    let Value::Object(fields) = value else {
        return Err(damaged("it is not an object".to_owned()));
    };
    let mut components = Vec::new();
    for (name, value) in fields {
        // `[library, class]`; `[null, null]` where the component was left out.
        if let Value::Array(pair) = value
            && let [_, class] = pair.as_slice()
            && !name.starts_with('_')
            && is_plain_name(&name)
        {
            components.push((name, class.as_str().unwrap_or_default().to_owned()));
        }
    }
    Ok(components)
}

fn components_by_config(folder: &Path) -> Result<Vec<(String, String)>> {
    let mut components = Vec::new();
    for slot in SLOTS {
        let config = folder.join(slot).join("config.json");
        if !config.is_file() {
            continue;
        }
        let value: Value =
            serde_json::from_str(&read_bounded(&config, MAX_JSON_BYTES)?).map_err(|error| {
                Error::config(format!("the config cannot be read: {error}"))
                    .source_error(error)
                    .at(config.display())
            })?;
        let class = value["architectures"][0].as_str().unwrap_or_default();
        components.push((slot.to_owned(), class.to_owned()));
    }
    Ok(components)
}

/// The only component of a T5 class.
pub(super) fn choose(components: &[(String, String)]) -> Result<String> {
    let t5: Vec<_> = components
        .iter()
        .filter(|(_, class)| is_t5(class))
        .collect();
    match t5.as_slice() {
        [(name, _)] => Ok(name.clone()),
        [] => {
            let encoders: Vec<_> = components
                .iter()
                .filter(|(name, _)| name.contains("encoder"))
                .map(|(name, class)| match class.as_str() {
                    "" => format!("{name}: none"),
                    class => format!("{name}: {class}"),
                })
                .collect();
            let there = match encoders.is_empty() {
                true => "no text encoder".to_owned(),
                false => list_names(encoders, 6),
            };
            Err(Error::new(
                ErrorKind::NotFound,
                format!(
                    "the pipeline has no T5 text encoder, expected a component of class `T5EncoderModel`, `UMT5EncoderModel` or `MT5EncoderModel`, found {there}"
                ),
            ))
        }
        several => Err(Error::input(format!(
            "the pipeline has {} T5 text encoders: {}",
            several.len(),
            list_names(several.iter().map(|(name, _)| name), 6)
        ))
        .hint("choose one by `subfolder`")),
    }
}

fn is_t5(class: &str) -> bool {
    ["T5", "MT5", "UMT5"].iter().any(|family| {
        class.strip_prefix(family).is_some_and(|rest| {
            ["EncoderModel", "ForConditionalGeneration", "Model"].contains(&rest)
        })
    })
}

/// The tokenizer's folder of component `text_encoder_n`, if it is there.
pub(super) fn tokenizer_of(pipeline: &Path, component: &str) -> Option<PathBuf> {
    own_tokenizer(&pipeline.join(tokenizer_name(component)?))
}

/// The tokenizer's folder of a component that was opened by its own path.
pub(super) fn tokenizer_beside(component: &Path) -> Option<PathBuf> {
    tokenizer_of(component.parent()?, component.file_name()?.to_str()?)
}

/// `tokenizer_2` for `text_encoder_2`.
pub(super) fn tokenizer_name(component: &str) -> Option<String> {
    let number = component
        .trim_end_matches('/')
        .strip_prefix("text_encoder")?;
    Some(format!("tokenizer{number}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_t5_among_the_components() {
        let flux = r#"{
            "_class_name": "FluxPipeline",
            "text_encoder": ["transformers", "CLIPTextModel"],
            "text_encoder_2": ["transformers", "T5EncoderModel"],
            "scheduler": ["diffusers", "X"], "force_zeros": true
        }"#;
        let components = components(flux).unwrap();
        assert_eq!(components.len(), 3);
        assert_eq!(choose(&components).unwrap(), "text_encoder_2");
        assert_eq!(tokenizer_name("text_encoder_2").unwrap(), "tokenizer_2");
        assert_eq!(tokenizer_name("text_encoder").unwrap(), "tokenizer");
    }

    #[test]
    fn says_what_the_encoders_are_if_none_fits() {
        let sd3 = r#"{"text_encoder": ["transformers", "CLIPTextModel"], "text_encoder_3": [null, null]}"#;
        let error = choose(&components(sd3).unwrap()).unwrap_err();
        assert!(
            error
                .message()
                .ends_with("found `text_encoder: CLIPTextModel`, `text_encoder_3: none`"),
            "{error}"
        );
        assert!(components("[]").is_err());
        assert!(components("{").is_err());
    }

    #[test]
    fn does_not_choose_between_two() {
        let two =
            r#"{"a_encoder": ["t", "T5EncoderModel"], "b_encoder": ["t", "UMT5EncoderModel"]}"#;
        let error = choose(&components(two).unwrap()).unwrap_err();
        assert!(
            error
                .message()
                .contains("2 T5 text encoders: `a_encoder`, `b_encoder`"),
            "{error}"
        );
    }
}
