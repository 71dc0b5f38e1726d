//! Reads single values out of JSON flag files, with errors that say what was found.

use serde_json::{Map, Value};

use super::added_tokens::AddedToken;
use crate::{Error, Result};

pub(crate) fn optional<T>(
    object: &mut Map<String, Value>,
    key: &str,
    read: impl Fn(&Value) -> Result<T>,
) -> Result<Option<T>> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => read(value).map(Some).map_err(|error| error.at(key)),
    }
}

pub(crate) fn as_bool(value: &Value) -> Result<bool> {
    value
        .as_bool()
        .ok_or_else(|| wrong_value(value, "true or false"))
}

pub(crate) fn as_string(value: &Value) -> Result<String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        other => Err(wrong_value(other, "a string")),
    }
}

pub(crate) fn as_side(value: &Value) -> Result<bool> {
    match value.as_str() {
        Some("left") => Ok(true),
        Some("right") => Ok(false),
        _ => Err(wrong_value(value, "`left` or `right`")),
    }
}

/// Sentinels are counted in hundreds; the limit stops a damaged file from asking for
/// billions of them.
pub(crate) fn as_count(value: &Value) -> Result<u32> {
    match value.as_u64() {
        Some(count) if count <= 1 << 20 => Ok(count as u32),
        _ => Err(wrong_value(value, "a number from 0 to 1048576")),
    }
}

pub(crate) fn as_id(value: &Value) -> Result<u32> {
    value
        .as_u64()
        .and_then(|id| u32::try_from(id).ok())
        .filter(|&id| id < 1 << 31)
        .ok_or_else(|| wrong_value(value, "a token id"))
}

/// "No limit" is written as 1e30 by transformers.
pub(crate) fn as_length(value: &Value) -> Result<Option<u64>> {
    match value {
        Value::Number(number) => match (number.as_u64(), number.as_f64()) {
            (Some(length), _) => Ok(Some(length)),
            (None, Some(length)) if length >= 1e19 => Ok(None),
            (None, Some(length)) if length >= 0.0 => Ok(Some(length as u64)),
            _ => Err(wrong_value(value, "a length")),
        },
        other => Err(wrong_value(other, "a length")),
    }
}

pub(crate) fn decoder_entry(id: &str, token: &Value) -> Result<(u32, AddedToken)> {
    let number = id
        .parse::<u32>()
        .ok()
        .filter(|&id| id < 1 << 31)
        .ok_or_else(|| Error::tokenizer(format!("key `{id}` is not a token id")))?;
    let token = added_token(token).map_err(|error| error.at(format_args!("id {id}")))?;
    Ok((number, token))
}

/// Reads `{"content": …, "lstrip": …, …}`; absent flags are false, except `normalized`.
pub(crate) fn added_token(value: &Value) -> Result<AddedToken> {
    let Value::Object(object) = value else {
        return Err(wrong_value(value, "an object"));
    };
    let flag = |key: &str, default: bool| match object.get(key) {
        None | Some(Value::Null) => Ok(default),
        Some(value) => as_bool(value).map_err(|error| error.at(key)),
    };
    let special = flag("special", false)?;
    Ok(AddedToken {
        content: match object.get("content") {
            Some(Value::String(content)) => content.clone(),
            Some(other) => return Err(wrong("content", other, "a string")),
            None => return Err(Error::tokenizer("a token has no `content`")),
        },
        lstrip: flag("lstrip", false)?,
        rstrip: flag("rstrip", false)?,
        single_word: flag("single_word", false)?,
        normalized: flag("normalized", !special)?,
        special,
    })
}

pub(crate) fn wrong(key: &str, value: &Value, expected: &str) -> Error {
    wrong_value(value, expected).at(key)
}

pub(crate) fn wrong_value(value: &Value, expected: &str) -> Error {
    let found = match value {
        Value::Number(number) => format!("the number {number}"),
        Value::Bool(flag) => flag.to_string(),
        other => kind_of(other).to_owned(),
    };
    Error::tokenizer(format!("found {found}, expected {expected}"))
}

pub(crate) fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
