//! Sequences that go on by themselves: greedy, or by draws.

use super::processors::{Processors, softmax};
use super::random::Random;
use super::request::{Event, Finish, Request, Sequence};
use super::search::{Next, Scores, Step, Wanted};
use crate::backend::Chosen;

/// The sequences of one request, each by itself.
pub(super) struct Single<'a> {
    request: Request<'a>,
    processors: Processors,
    longest: usize,
    /// Those that go on, in the order of their rows.
    running: Vec<Running>,
    done: Vec<Option<Sequence>>,
    /// Whether all are still one row, the prefix.
    is_first: bool,
}

struct Running {
    number: usize,
    tokens: Vec<u32>,
    log_probs: Vec<f32>,
    random: Random,
}

impl<'a> Single<'a> {
    pub(super) fn new(request: Request<'a>) -> Self {
        let config = request.config;
        let prefix = request.prefix.len();
        let running = (0..config.num_return_sequences).map(|number| Running {
            number,
            tokens: request.prefix.to_vec(),
            log_probs: Vec::new(),
            random: Random::new(config.seed, number as u64),
        });
        Single {
            processors: Processors::new(config, prefix),
            longest: config.longest(prefix),
            running: running.collect(),
            done: vec![None; config.num_return_sequences],
            is_first: true,
            request,
        }
    }

    pub(super) fn wanted(&self) -> Wanted {
        match self.processors.do_nothing() {
            true => Wanted::Top(1),
            false => Wanted::Logits,
        }
    }

    /// Chooses each sequence's next token. `tell` hears of it, and says whether to go on.
    pub(super) fn step(
        &mut self,
        scores: Scores<'_>,
        tell: &mut dyn FnMut(usize, u32, f32) -> bool,
    ) -> Step {
        let mut next = Vec::new();
        let mut going = Vec::new();
        let mut is_cancelled = false;
        for (slot, mut sequence) in std::mem::take(&mut self.running).into_iter().enumerate() {
            let row = if self.is_first { 0 } else { slot };
            let chosen = match &scores {
                Scores::Top(rows) => rows[row][0],
                Scores::Logits {
                    values,
                    log_sums,
                    vocab,
                } => {
                    let logits = &values[row * vocab..][..*vocab];
                    self.choose(logits, log_sums[row], &mut sequence)
                }
            };
            sequence.tokens.push(chosen.id);
            sequence.log_probs.push(chosen.log_prob);
            is_cancelled |= !tell(sequence.number, chosen.id, chosen.log_prob);
            match self.finish(&sequence.tokens) {
                Some(finish) => self.end(sequence, finish),
                None => {
                    next.push(Next {
                        row,
                        token: chosen.id,
                    });
                    going.push(sequence);
                }
            }
        }
        self.running = going;
        self.is_first = false;
        if is_cancelled {
            for sequence in std::mem::take(&mut self.running) {
                self.end(sequence, Finish::Cancelled);
            }
        }
        match self.running.is_empty() {
            true => Step::Done(self.done.iter_mut().filter_map(Option::take).collect()),
            false => Step::GoOn(next),
        }
    }

    fn choose(&self, logits: &[f32], log_sum: f64, sequence: &mut Running) -> Chosen {
        let mut scores = logits.to_vec();
        self.processors.apply(&sequence.tokens, &mut scores);
        let id = match self.request.config.do_sample {
            true => sequence.random.draw(&softmax(&scores)),
            false => best(&scores),
        };
        Chosen {
            id: id as u32,
            log_prob: (f64::from(logits[id]) - log_sum) as f32,
        }
    }

    fn finish(&self, tokens: &[u32]) -> Option<Finish> {
        finish(&self.request, self.longest, tokens)
    }

    fn end(&mut self, sequence: Running, finish: Finish) {
        self.done[sequence.number] = Some(Sequence {
            n_prefix: self.request.prefix.len(),
            score: sequence.log_probs.iter().sum(),
            tokens: sequence.tokens,
            log_probs: sequence.log_probs,
            finish,
        });
    }
}

/// Whether these tokens end, and why.
pub(super) fn finish(request: &Request<'_>, longest: usize, tokens: &[u32]) -> Option<Finish> {
    let last = tokens[tokens.len() - 1];
    if request.config.eos_token_id.contains(&last) {
        Some(Finish::Eos(last))
    } else if request.stop.is_some_and(|stop| stop(tokens)) {
        Some(Finish::Stop)
    } else if tokens.len() >= longest {
        Some(Finish::Length)
    } else {
        None
    }
}

/// The largest score's index, the lowest among equals.
fn best(scores: &[f32]) -> usize {
    let mut best = 0;
    for (id, score) in scores.iter().enumerate() {
        if *score > scores[best] || score.is_nan() && !scores[best].is_nan() {
            best = id;
        }
    }
    best
}

impl Event {
    pub(super) fn new(request: usize, sequence: usize, token: u32, log_prob: f32) -> Self {
        Event {
            request,
            sequence,
            token,
            log_prob,
        }
    }
}
