//! `quintic score`.

use quintic::tokenizer::Tokenizer;
use quintic::{Decode, Error, Result, Seq2Seq, Sources};
use serde_json::json;

use crate::args::ScoreArgs;
use crate::sink::print;
use crate::{model, texts};

pub(crate) fn run(args: &ScoreArgs) -> Result<()> {
    let sources = match &args.sources.input {
        Some(path) => texts::read(path, args.sources.column.as_deref())?,
        None => args.sources.texts.clone(),
    };
    let targets = match (&args.target_column, &args.sources.input) {
        (Some(column), Some(path)) => texts::read(path, Some(column))?,
        _ => args.targets.clone(),
    };
    if args.answers.is_empty() && targets.len() != sources.len() {
        return Err(Error::input(format!(
            "found {} targets for {} texts",
            targets.len(),
            sources.len()
        )));
    }
    let checkpoint = model::open(&args.model.model, &args.model.files)?;
    let tokenizer = model::tokenizer(&checkpoint, &args.model.files, None)?;
    let model = model::load_seq2seq(&checkpoint, &args.compute, args.quiet)?;
    let start = model
        .generation_config()?
        .decoder_start_token_id
        .ok_or_else(|| Error::config("the model does not say what its decoder starts with"))?;
    let ids = sources
        .iter()
        .map(|text| match args.sources.max_length {
            Some(max_length) => tokenizer.encode_truncated(text, max_length),
            None => tokenizer.encode(text, true),
        })
        .collect::<Result<Vec<_>>>()?;
    match args.answers.is_empty() {
        true => score_targets(args, &model, &tokenizer, start, (&sources, &ids), &targets),
        false => score_answers(args, &model, &tokenizer, start, (&sources, &ids)),
    }
}

/// Texts and their tokens.
type Texts<'a> = (&'a [String], &'a [Vec<u32>]);

/// Ranges of rows of at most so many tokens, one row at least.
fn rounds(lengths: &[usize], max_tokens: usize) -> Vec<std::ops::Range<usize>> {
    let mut rounds = Vec::new();
    let (mut first, mut tokens) = (0, 0);
    for (row, length) in lengths.iter().enumerate() {
        if row > first && tokens + length > max_tokens {
            rounds.push(first..row);
            (first, tokens) = (row, 0);
        }
        tokens += length;
    }
    if first < lengths.len() {
        rounds.push(first..lengths.len());
    }
    rounds
}

fn score_targets(
    args: &ScoreArgs,
    model: &Seq2Seq,
    tokenizer: &Tokenizer,
    start: u32,
    (texts, sources): Texts<'_>,
    targets: &[String],
) -> Result<()> {
    let labels = targets
        .iter()
        .map(|text| tokenizer.encode(text, true))
        .collect::<Result<Vec<_>>>()?;
    let lengths: Vec<usize> = sources
        .iter()
        .zip(&labels)
        .map(|(source, labels)| source.len() + labels.len())
        .collect();
    for range in rounds(&lengths, args.batch_tokens as usize) {
        let labels = &labels[range.clone()];
        let rows: Vec<Vec<u32>> = labels
            .iter()
            .map(|labels| {
                let before = &labels[..labels.len().saturating_sub(1)];
                std::iter::once(start)
                    .chain(before.iter().copied())
                    .collect()
            })
            .collect();
        // An empty target has no token to score, but a row.
        let wanted: Vec<Vec<Option<u32>>> = labels
            .iter()
            .map(|labels| match labels.is_empty() {
                true => vec![None],
                false => labels.iter().copied().map(Some).collect(),
            })
            .collect();
        let decoded = model.decode(&Decode {
            sources: Sources::Ids(&sources[range.clone()]),
            rows: &rows,
            targets: Some(&wanted),
            keep_logits: false,
            keep_inner: false,
            interrupted: None,
        })?;
        let mut rest = &decoded.log_probs[..];
        for (row, labels) in range.clone().zip(labels) {
            let (own, later) = rest.split_at(labels.len().max(1));
            rest = later;
            let own = &own[..labels.len()];
            let score: f64 = own.iter().map(|&log_prob| f64::from(log_prob)).sum();
            let loss = -score / labels.len() as f64;
            let mut line = json!({
                "source": texts[row],
                "target": targets[row],
                "score": score,
                "n_tokens": labels.len(),
                "loss": loss,
                "perplexity": loss.exp(),
            });
            if args.tokens {
                line["tokens"] = json!(labels);
                line["log_probs"] = json!(own);
            }
            print(&line)?;
        }
    }
    Ok(())
}

/// One decoder step a text: the probabilities of a few answers among themselves.
fn score_answers(
    args: &ScoreArgs,
    model: &Seq2Seq,
    tokenizer: &Tokenizer,
    start: u32,
    (texts, sources): Texts<'_>,
) -> Result<()> {
    let answers = args
        .answers
        .iter()
        .map(|answer| match tokenizer.encode(answer, false)?[..] {
            [id] => Ok(id),
            ref ids => Err(Error::input(format!(
                "`{answer}` is {} tokens, expected answers of one token",
                ids.len()
            ))
            .at("`--answers`")),
        })
        .collect::<Result<Vec<u32>>>()?;
    let vocab = model.config().vocab_size;
    if let Some(id) = answers.iter().find(|&&id| id as usize >= vocab) {
        return Err(Error::input(format!(
            "token id {id} is outside the model's vocabulary of {vocab}"
        ))
        .at("`--answers`"));
    }
    let lengths: Vec<usize> = sources.iter().map(Vec::len).collect();
    for range in rounds(&lengths, args.batch_tokens as usize) {
        let mut rows = model.rows(Sources::Ids(&sources[range.clone()]), None)?;
        let all: Vec<usize> = (0..range.len()).collect();
        rows.admit(&all)?;
        rows.advance(&vec![&[start][..]; range.len()], &vec![1; range.len()])?;
        let logits = rows.logits()?.values;
        for (row, scores) in range.zip(logits.chunks_exact(vocab)) {
            let own: Vec<f64> = answers
                .iter()
                .map(|&id| f64::from(scores[id as usize]))
                .collect();
            let max = own.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = own.iter().map(|score| (score - max).exp()).sum();
            let probabilities: Vec<f64> = own
                .iter()
                .map(|score| (score - max).exp() / total)
                .collect();
            let log_probs: Vec<f64> = own.iter().map(|score| score - max - total.ln()).collect();
            print(&json!({
                "source": texts[row],
                "answers": args.answers,
                "probabilities": probabilities,
                "log_probs": log_probs,
            }))?;
        }
    }
    Ok(())
}
