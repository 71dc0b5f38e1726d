//! The Hugging Face files beside a tokenizer: `tokenizer_config.json`,
//! `special_tokens_map.json`, `added_tokens.json`, and what `config.json` adds.

use std::path::Path;

use serde_json::{Map, Value};

use super::added_tokens::AddedToken;
use super::values::{
    added_token, as_bool, as_count, as_id, as_length, as_side, as_string, decoder_entry, kind_of,
    optional, wrong, wrong_value,
};
use crate::{Error, Result};

pub(crate) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
pub(crate) const SPECIAL_TOKENS_MAP: &str = "special_tokens_map.json";
pub(crate) const ADDED_TOKENS: &str = "added_tokens.json";
pub(crate) const TOKENIZER_JSON: &str = "tokenizer.json";

/// The roles that a special token can have, in the reference's order, without the list of
/// additional ones.
pub(crate) const ROLES: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];

/// A special token given by its text only, or with flags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TokenSpec {
    Text(String),
    Token(AddedToken),
}

impl TokenSpec {
    pub(crate) fn content(&self) -> &str {
        match self {
            TokenSpec::Text(text) => text,
            TokenSpec::Token(token) => &token.content,
        }
    }
}

/// What is said about one role.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Role {
    /// Nothing: the class's default holds.
    #[default]
    Unset,
    /// `null`: there is no such token.
    None,
    Given(TokenSpec),
}

impl Role {
    /// A role that names an added token takes over that token with its flags.
    fn take_flags(&mut self, name: &str, token: &AddedToken) {
        if let Role::Given(spec) = self
            && spec.content() == name
        {
            *spec = TokenSpec::Token(token.clone());
        }
    }
}

/// The flags of a saved tokenizer, merged from all its files as transformers merges them.
#[derive(Clone, Debug, Default)]
pub(crate) struct TokenizerConfig {
    pub(crate) class: Option<String>,
    pub(crate) roles: [Role; 7],
    /// `None` if the key is absent or null.
    pub(crate) additional_special_tokens: Option<Vec<TokenSpec>>,
    pub(crate) extra_special_tokens: Vec<TokenSpec>,
    pub(crate) added_tokens: Vec<(u32, AddedToken)>,
    pub(crate) extra_ids: Option<u32>,
    pub(crate) legacy: Option<bool>,
    pub(crate) from_slow: bool,
    pub(crate) add_prefix_space: Option<bool>,
    pub(crate) add_bos_token: Option<bool>,
    pub(crate) add_eos_token: Option<bool>,
    pub(crate) clean_up_tokenization_spaces: bool,
    pub(crate) split_special_tokens: bool,
    pub(crate) truncate_left: bool,
    pub(crate) model_max_length: Option<u64>,
}

impl TokenizerConfig {
    /// Reads the flag files of a folder; files that are not there say nothing.
    pub(crate) fn from_dir(dir: &Path) -> Result<Self> {
        let main = read_object(&dir.join(TOKENIZER_CONFIG))?;
        let model = read_object(&dir.join("config.json"))?;
        let has_decoder = main
            .as_ref()
            .is_some_and(|main| main.contains_key("added_tokens_decoder"));
        let mut config = TokenizerConfig::from_object(main.unwrap_or_default())
            .map_err(|error| error.at(dir.join(TOKENIZER_CONFIG).display()))?;
        if config.class.is_none() {
            config.class = model.and_then(|model| class_of_model(&model));
        }
        // With a decoder table in the main file, transformers reads no other file.
        if !has_decoder {
            config.merge_older_files(dir)?;
        }
        Ok(config)
    }

    /// Reads the content of `tokenizer_config.json`.
    pub(crate) fn from_object(mut object: Map<String, Value>) -> Result<Self> {
        refuse_unknown_behaviour(&object)?;
        let mut config = TokenizerConfig {
            class: optional(&mut object, "tokenizer_class", as_string)?,
            extra_ids: optional(&mut object, "extra_ids", as_count)?,
            legacy: optional(&mut object, "legacy", as_bool)?,
            from_slow: optional(&mut object, "from_slow", as_bool)?.unwrap_or(false),
            add_prefix_space: optional(&mut object, "add_prefix_space", as_bool)?,
            add_bos_token: optional(&mut object, "add_bos_token", as_bool)?,
            add_eos_token: optional(&mut object, "add_eos_token", as_bool)?,
            clean_up_tokenization_spaces: optional(
                &mut object,
                "clean_up_tokenization_spaces",
                as_bool,
            )?
            .unwrap_or(false),
            split_special_tokens: optional(&mut object, "split_special_tokens", as_bool)?
                .unwrap_or(false),
            truncate_left: optional(&mut object, "truncation_side", as_side)?.unwrap_or(false),
            model_max_length: match optional(&mut object, "model_max_length", as_length)? {
                Some(length) => length,
                None => optional(&mut object, "max_len", as_length)?.flatten(),
            },
            ..TokenizerConfig::default()
        };
        for (role, key) in config.roles.iter_mut().zip(ROLES) {
            *role = role_of(&object, key)?;
        }
        config.additional_special_tokens =
            optional(&mut object, "additional_special_tokens", as_token_list)?;
        if let Some(value) = object.get("extra_special_tokens") {
            config.extra_special_tokens = match value {
                Value::Null => Vec::new(),
                Value::Object(tokens) => tokens
                    .iter()
                    .map(|(key, value)| as_token(value).map_err(|error| error.at(key)))
                    .collect::<Result<_>>()?,
                other => return Err(wrong("extra_special_tokens", other, "an object")),
            };
        }
        if let Some(value) = object.get("added_tokens_decoder") {
            let Value::Object(tokens) = value else {
                return Err(wrong("added_tokens_decoder", value, "an object"));
            };
            for (id, token) in tokens {
                let token =
                    decoder_entry(id, token).map_err(|error| error.at("added_tokens_decoder"))?;
                config.added_tokens.push(token);
            }
        }
        for (_, token) in &config.added_tokens {
            config
                .roles
                .iter_mut()
                .for_each(|role| role.take_flags(&token.content, token));
        }
        Ok(config)
    }

    /// The token of a role: the given one, with the default's flags if it has none of its
    /// own, or the default.
    pub(crate) fn role_token(&self, name: &str, default: AddedToken) -> Option<AddedToken> {
        let role = ROLES.iter().position(|&role| role == name)?;
        match &self.roles[role] {
            Role::Unset => Some(default),
            Role::None => None,
            Role::Given(TokenSpec::Token(token)) => Some(token.clone()),
            Role::Given(TokenSpec::Text(text)) => Some(AddedToken {
                content: text.clone(),
                ..default
            }),
        }
    }

    /// `special_tokens_map.json`, `added_tokens.json` and the added tokens in
    /// `tokenizer.json`: used only without `added_tokens_decoder`.
    fn merge_older_files(&mut self, dir: &Path) -> Result<()> {
        let path = dir.join(SPECIAL_TOKENS_MAP);
        let mut last_listed = None;
        if let Some(map) = read_object(&path)? {
            last_listed = self
                .merge_special_tokens_map(&map)
                .map_err(|error| error.at(path.display()))?;
        }
        let path = dir.join(ADDED_TOKENS);
        if let Some(map) = read_object(&path)? {
            for (content, id) in &map {
                let id = as_id(id).map_err(|error| error.at(content).at(path.display()))?;
                let mut token = AddedToken::special(content.clone());
                token.special = self.is_special(content);
                token.normalized = !token.special;
                self.added_tokens.push((id, token));
            }
            // The reference files the last of these tokens under the name of the token it
            // read last before, which gives a role of that name this token's text.
            if let (Some(name), Some((_, token))) = (last_listed, self.added_tokens.last()) {
                self.roles
                    .iter_mut()
                    .for_each(|role| role.take_flags(&name, token));
            }
        }
        let path = dir.join(TOKENIZER_JSON);
        if let Some(map) = read_object(&path)? {
            self.merge_tokenizer_json(&map)
                .map_err(|error| error.at(path.display()))?;
        }
        Ok(())
    }

    /// Returns the text of the last additional special token that the file lists.
    fn merge_special_tokens_map(&mut self, map: &Map<String, Value>) -> Result<Option<String>> {
        for (role, key) in self.roles.iter_mut().zip(ROLES) {
            if map.contains_key(key) {
                *role = role_of(map, key)?;
                if let Role::Given(TokenSpec::Token(token)) = role {
                    token.special = true;
                }
            }
        }
        let mut last = None;
        match map.get("additional_special_tokens") {
            None => {}
            Some(Value::Null) => self.additional_special_tokens = None,
            Some(value) => {
                let list = self.additional_special_tokens.get_or_insert_default();
                for mut token in
                    as_token_list(value).map_err(|error| error.at("additional_special_tokens"))?
                {
                    if let TokenSpec::Token(token) = &mut token {
                        token.special = true;
                    }
                    last = Some(token.content().to_owned());
                    if !list.contains(&token) {
                        list.push(token);
                    }
                }
            }
        }
        Ok(last)
    }

    fn merge_tokenizer_json(&mut self, map: &Map<String, Value>) -> Result<()> {
        let list = match map.get("added_tokens") {
            Some(Value::Array(list)) => list,
            Some(other) => return Err(wrong("added_tokens", other, "a list")),
            None => return Ok(()),
        };
        for entry in list {
            let id = as_id(&entry["id"]).map_err(|error| error.at("added_tokens"))?;
            let token = added_token(entry).map_err(|error| error.at("added_tokens"))?;
            self.roles
                .iter_mut()
                .for_each(|role| role.take_flags(&token.content, &token));
            self.added_tokens.push((id, token));
        }
        Ok(())
    }

    fn is_special(&self, content: &str) -> bool {
        let additional = self.additional_special_tokens.iter().flatten();
        let given = self.roles.iter().filter_map(|role| match role {
            Role::Given(token) => Some(token),
            _ => None,
        });
        additional
            .chain(given)
            .any(|token| token.content() == content)
    }
}

/// The tokenizer class that a model's `config.json` asks for.
fn class_of_model(model: &Map<String, Value>) -> Option<String> {
    if let Some(Value::String(class)) = model.get("tokenizer_class") {
        return Some(class.clone());
    }
    match model.get("model_type").and_then(Value::as_str) {
        Some("byt5") => Some("ByT5Tokenizer".to_owned()),
        _ => None,
    }
}

/// Keys that change ids in a way that is not done here.
fn refuse_unknown_behaviour(object: &Map<String, Value>) -> Result<()> {
    match object.get("sp_model_kwargs") {
        None | Some(Value::Null) => {}
        Some(Value::Object(options)) => {
            for (key, value) in options {
                let harmless = match key.as_str() {
                    // These two and `num_threads` act only when sampling is on.
                    "nbest_size" | "alpha" | "num_threads" => true,
                    _ => matches!(value, Value::Bool(false) | Value::Null),
                };
                if !harmless {
                    return Err(Error::unsupported(format!(
                        "`sp_model_kwargs` asks for `{key}`: {value}, which is not done here"
                    ))
                    .hint("sampled tokens are for training; remove the key to encode exactly"));
                }
            }
        }
        Some(other) => return Err(wrong("sp_model_kwargs", other, "an object")),
    }
    match object.get("init_inputs") {
        Some(Value::Array(inputs)) if !inputs.is_empty() => Err(Error::unsupported(
            "`init_inputs` is not empty, which is not done here",
        )),
        _ => Ok(()),
    }
}

/// Reads a JSON object from a file, `None` if there is no such file.
pub(crate) fn read_object(path: &Path) -> Result<Option<Map<String, Value>>> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(path, "read the file", error)),
    };
    parse_object(&bytes)
        .map(Some)
        .map_err(|error| error.at(path.display()))
}

pub(crate) fn parse_object(bytes: &[u8]) -> Result<Map<String, Value>> {
    let value = serde_json::from_slice(bytes)
        .map_err(|cause| Error::tokenizer(format!("not valid JSON: {cause}")))?;
    match value {
        Value::Object(object) => Ok(object),
        other => Err(Error::tokenizer(format!(
            "the file holds {}, expected an object",
            kind_of(&other)
        ))),
    }
}

fn role_of(object: &Map<String, Value>, key: &str) -> Result<Role> {
    match object.get(key) {
        None => Ok(Role::Unset),
        Some(Value::Null) => Ok(Role::None),
        Some(value) => as_token(value)
            .map(Role::Given)
            .map_err(|error| error.at(key)),
    }
}

fn as_token_list(value: &Value) -> Result<Vec<TokenSpec>> {
    match value {
        Value::Array(list) => list.iter().map(as_token).collect(),
        other => Err(wrong_value(other, "a list of tokens")),
    }
}

fn as_token(value: &Value) -> Result<TokenSpec> {
    match value {
        Value::String(text) => Ok(TokenSpec::Text(text.clone())),
        Value::Object(_) => added_token(value).map(TokenSpec::Token),
        other => Err(wrong_value(other, "a string or an object")),
    }
}
