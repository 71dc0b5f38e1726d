//! One request on its way: its rows' scores in, its rows' next tokens out.

use super::beam::BeamSearch;
use super::request::{Request, Sequence};
use super::single::Single;
use crate::backend::Chosen;

/// What a request has to know of the next token of each of its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// The so many most likely ones.
    Top(usize),
    /// Every token's score.
    Logits,
}

/// What is known: what was wanted, of each row behind each of its [scored](Fed::n_scored) tokens.
pub(super) enum Scores<'a> {
    /// The most likely ones at each place, most likely first; as many as wanted, or more.
    Top(&'a [Vec<Chosen>]),
    /// Every token's score, `[places, vocab]`, and each place's `ln(sum(e^x))`.
    Logits {
        values: &'a [f32],
        log_sums: &'a [f64],
        vocab: usize,
    },
}

/// How a row goes on: as a copy of one of the request's rows, with these tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Next {
    pub(super) row: usize,
    /// Of the tokens that the row was fed last, so many were wrong guesses.
    pub(super) taken_back: usize,
    pub(super) fed: Fed,
}

/// What a row is fed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fed {
    pub(super) tokens: Vec<u32>,
    /// So many of the last tokens are known or guessed, and what follows each is asked for.
    pub(super) n_scored: usize,
}

/// What comes of a step.
pub(super) enum Step {
    /// The request's rows from now on; at least one.
    GoOn(Vec<Next>),
    /// All sequences of the request.
    Done(Vec<Sequence>),
}

/// A way to choose tokens.
pub(super) enum Search<'a> {
    Single(Box<Single<'a>>),
    Beams(Box<BeamSearch<'a>>),
}

impl<'a> Search<'a> {
    /// `source` is what is known of the source's tokens.
    pub(super) fn new(request: Request<'a>, source: &[u32]) -> Self {
        match request.config.num_beams {
            1 => Search::Single(Box::new(Single::new(request, source))),
            _ => Search::Beams(Box::new(BeamSearch::new(request))),
        }
    }

    /// Most rows that a request will have.
    pub(super) fn width(request: &Request<'_>) -> usize {
        let config = request.config;
        match config.num_beams {
            1 => config.num_return_sequences,
            n => n,
        }
    }

    /// What every step needs, the same each time: what a request gets must not depend on what it
    /// runs beside.
    pub(super) fn wanted(&self, vocab: usize) -> Wanted {
        match self {
            Search::Single(single) => single.wanted(),
            Search::Beams(beams) => beams.wanted(vocab),
        }
    }

    /// Goes on by one token. `tell` hears of each one that will not be taken back, and says
    /// whether to go on.
    pub(super) fn step(
        &mut self,
        scores: Scores<'_>,
        tell: &mut dyn FnMut(usize, u32, f32) -> bool,
    ) -> Step {
        match self {
            Search::Single(single) => single.step(scores, tell),
            Search::Beams(beams) => beams.step(scores),
        }
    }
}
