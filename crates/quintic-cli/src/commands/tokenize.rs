//! `quintic tokenize`.

use quintic::Result;
use serde_json::json;

use crate::args::TokenizeArgs;
use crate::sink::print;
use crate::{model, texts};

pub(crate) fn run(args: &TokenizeArgs) -> Result<()> {
    let tokenizer = match (&args.files.tokenizer, &args.model) {
        (Some(path), _) => model::tokenizer_at(path, &args.files)?,
        (None, model) => model::tokenizer_alone(model.as_deref().unwrap_or_default(), &args.files)?,
    };
    let texts = match &args.input {
        Some(path) => texts::read(path, args.column.as_deref())?,
        None => args.texts.clone(),
    };
    for text in &texts {
        let ids = match args.max_length {
            Some(max_length) => tokenizer.encode_truncated(text, max_length)?,
            None => tokenizer.encode(text, !args.no_special_tokens)?,
        };
        let tokens: Vec<String> = ids
            .iter()
            .map(|&id| tokenizer.token(id).unwrap_or_default())
            .collect();
        if args.json {
            print(&json!({ "text": text, "ids": ids, "tokens": tokens }))?;
            continue;
        }
        for (id, token) in ids.iter().zip(&tokens) {
            print(&format_args!("{id:>7}  {token}"))?;
        }
        print(&format_args!("{:>7}  tokens\n", ids.len()))?;
    }
    Ok(())
}
