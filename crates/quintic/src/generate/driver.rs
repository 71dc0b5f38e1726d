//! Many requests over the same decoder rows: they come as there is room and leave as they end.

use std::ops::ControlFlow;

use super::request::{Event, Request, Sequence};
use super::rows::DecoderRows;
use super::search::{Fed, Scores, Search, Step, Wanted};
use crate::model::Interrupted;
use crate::{Error, Result};

/// How [`generate`] runs.
#[derive(Clone, Copy)]
pub struct GenerateOptions<'a> {
    /// Most decoder rows at a time, at least those of one request.
    pub max_rows: usize,
    /// Asked before each step; true ends everything with
    /// [`ErrorKind::Interrupted`](crate::ErrorKind::Interrupted).
    pub interrupted: Option<Interrupted<'a>>,
}

impl Default for GenerateOptions<'_> {
    fn default() -> Self {
        GenerateOptions {
            max_rows: 32,
            interrupted: None,
        }
    }
}

/// Hears of tokens as they are chosen; a break cancels the token's request.
pub type Listener<'a> = &'a mut dyn FnMut(Event) -> ControlFlow<()>;

/// A request that has rows.
struct Active<'a> {
    number: usize,
    search: Search<'a>,
    /// What each of its rows is fed next.
    feed: Vec<Fed>,
}

/// Generates for all requests; the results stand in their order, each with its sequences, best
/// first.
///
/// Requests are admitted in their order as soon as there is room for all rows that they may come
/// to have, run together, and leave when they have ended. What a request gets depends on its
/// rows' scores and its seed alone: not on what it runs beside.
///
/// # Errors
///
/// [`ErrorKind::Input`](crate::ErrorKind::Input) if a request's prefix is empty or not shorter
/// than its longest sequence, or has a token that there is not, before anything is computed; what
/// decoder rows report.
pub fn generate(
    rows: &mut dyn DecoderRows,
    requests: &[Request<'_>],
    options: &GenerateOptions<'_>,
    mut listener: Option<Listener<'_>>,
) -> Result<Vec<Vec<Sequence>>> {
    let vocab = rows.vocab_size();
    for (number, request) in requests.iter().enumerate() {
        check(request, vocab).map_err(|e| e.at(format!("request {number}")))?;
    }
    let mut results: Vec<Vec<Sequence>> = vec![Vec::new(); requests.len()];
    let mut waiting = requests.iter().enumerate().peekable();
    let mut active: Vec<Active<'_>> = Vec::new();
    // Rows that are there, or will be: a request's room is kept from its start.
    let mut reserved = 0;
    loop {
        let mut sources = Vec::new();
        while let Some(&(number, request)) = waiting.peek() {
            let width = Search::width(request);
            if reserved > 0 && reserved + width > options.max_rows {
                break;
            }
            waiting.next();
            reserved += width;
            sources.push(request.source);
            active.push(Active {
                number,
                search: Search::new(*request, rows.source_tokens(request.source)),
                feed: vec![Fed {
                    tokens: request.prefix.to_vec(),
                    n_scored: 1,
                }],
            });
        }
        if active.is_empty() {
            return Ok(results);
        }
        if options.interrupted.is_some_and(|interrupted| interrupted()) {
            return Err(Error::interrupted());
        }
        rows.admit(&sources)?;
        let feed = || active.iter().flat_map(|active| &active.feed);
        let tokens: Vec<&[u32]> = feed().map(|fed| &fed.tokens[..]).collect();
        let n_scored: Vec<usize> = feed().map(|fed| fed.n_scored).collect();
        rows.advance(&tokens, &n_scored)?;
        let n_rows = tokens.len();
        let wanted = || active.iter().map(|active| active.search.wanted(vocab));
        let most = wanted().filter_map(|wanted| match wanted {
            Wanted::Top(k) => Some(k),
            Wanted::Logits => None,
        });
        let top = most.max().map(|k| rows.top(k)).transpose()?;
        let needs_logits = wanted().any(|wanted| wanted == Wanted::Logits);
        let logits = needs_logits.then(|| rows.logits()).transpose()?;

        let mut keep = Vec::with_capacity(n_rows);
        let mut taken_back = Vec::with_capacity(n_rows);
        let (mut first_row, mut first) = (0, 0);
        let mut going = Vec::with_capacity(active.len());
        for mut this in active {
            let n: usize = this.feed.iter().map(|fed| fed.n_scored).sum();
            let scores = match (this.search.wanted(vocab), &top, &logits) {
                (Wanted::Top(_), Some(top), _) => Scores::Top(&top[first..first + n]),
                (Wanted::Logits, _, Some(logits)) => Scores::Logits {
                    values: &logits.values[first * vocab..(first + n) * vocab],
                    log_sums: &logits.log_sums[first..first + n],
                    vocab,
                },
                _ => unreachable!("what is wanted was asked for"),
            };
            let number = this.number;
            let mut tell = |sequence: usize, token: u32, log_prob: f32| match &mut listener {
                Some(listener) => {
                    listener(Event::new(number, sequence, token, log_prob)).is_continue()
                }
                None => true,
            };
            match this.search.step(scores, &mut tell) {
                Step::GoOn(next) => {
                    keep.extend(next.iter().map(|next| first_row + next.row));
                    taken_back.extend(next.iter().map(|next| next.taken_back));
                    first_row += this.feed.len();
                    this.feed = next.into_iter().map(|next| next.fed).collect();
                    going.push(this);
                }
                Step::Done(sequences) => {
                    results[number] = sequences;
                    first_row += this.feed.len();
                    reserved -= Search::width(&requests[number]);
                }
            }
            first += n;
        }
        active = going;
        rows.select(&keep);
        rows.take_back(&taken_back);
    }
}

fn check(request: &Request<'_>, vocab: usize) -> Result<()> {
    let n = request.prefix.len();
    if n == 0 {
        return Err(
            Error::input("the decoder's prefix is empty, expected a start token at least")
                .hint("set `decoder_start_token_id`"),
        );
    }
    if let Some(id) = request.prefix.iter().find(|&&id| id as usize >= vocab) {
        return Err(Error::input(format!(
            "token id {id} of the prefix is outside the vocabulary of {vocab}"
        )));
    }
    let longest = request.config.longest(n);
    if longest <= n {
        return Err(Error::input(format!(
            "the longest sequence has {longest} tokens, but the prefix has {n} already"
        ))
        .hint("set `max_new_tokens`"));
    }
    request.config.check_tokens(vocab)
}
