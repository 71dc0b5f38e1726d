//! Sequences that go on by themselves: greedy, or by draws.

use super::lookup::{Guesser, Lookup};
use super::processors::{Processors, softmax};
use super::random::Random;
use super::request::{Event, Finish, Request, Sequence};
use super::search::{Fed, Next, Scores, Step, Wanted};
use crate::backend::Chosen;

/// The sequences of one request, each by itself.
pub(super) struct Single<'a> {
    request: Request<'a>,
    processors: Processors,
    longest: usize,
    lookup: Option<Lookup>,
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
    guesser: Option<Guesser>,
    /// Tokens that it was fed behind its last one, as guesses.
    guess: Vec<u32>,
}

impl<'a> Single<'a> {
    pub(super) fn new(request: Request<'a>, source: &[u32]) -> Self {
        let config = request.config;
        let prefix = request.prefix.len();
        let lookup = match config.prompt_lookup_num_tokens {
            0 => None,
            n => Some(Lookup::new(source, n, config.max_matching_ngram_size)),
        };
        let running = (0..config.num_return_sequences).map(|number| Running {
            number,
            tokens: request.prefix.to_vec(),
            log_probs: Vec::new(),
            random: Random::new(config.seed, number as u64),
            guesser: lookup.as_ref().map(Lookup::guesser),
            guess: Vec::new(),
        });
        Single {
            processors: Processors::new(config, prefix),
            longest: config.longest(prefix),
            running: running.collect(),
            done: vec![None; config.num_return_sequences],
            lookup,
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

    /// Chooses each sequence's next token, and those behind guesses that were right. `tell` hears of
    /// each, and says whether to go on.
    pub(super) fn step(
        &mut self,
        scores: Scores<'_>,
        tell: &mut dyn FnMut(usize, u32, f32) -> bool,
    ) -> Step {
        let mut next = Vec::new();
        let mut going = Vec::new();
        let mut is_cancelled = false;
        let mut place = 0;
        for (slot, mut sequence) in std::mem::take(&mut self.running).into_iter().enumerate() {
            let row = if self.is_first { 0 } else { slot };
            let guess = std::mem::take(&mut sequence.guess);
            let mut right = 0;
            let mut finish = None;
            while finish.is_none() {
                let chosen = self.choose(&scores, place + right, &mut sequence);
                sequence.tokens.push(chosen.id);
                sequence.log_probs.push(chosen.log_prob);
                is_cancelled |= !tell(sequence.number, chosen.id, chosen.log_prob);
                finish = match is_cancelled {
                    true => Some(Finish::Cancelled),
                    false => None,
                };
                finish = self.finish(&sequence.tokens).or(finish);
                if guess.get(right) != Some(&chosen.id) {
                    break;
                }
                right += 1;
            }
            if !self.is_first {
                place += 1 + guess.len();
            }
            match finish {
                Some(finish) => self.end(sequence, finish),
                None => {
                    next.push(Next {
                        row,
                        taken_back: guess.len() - right,
                        fed: self.feed(&mut sequence, guess.len(), right),
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

    /// A sequence's last token, and what may follow it.
    fn feed(&self, sequence: &mut Running, guessed: usize, right: usize) -> Fed {
        let mut tokens = vec![sequence.tokens[sequence.tokens.len() - 1]];
        if let (Some(lookup), Some(guesser)) = (&self.lookup, &mut sequence.guesser) {
            guesser.judge(lookup, guessed, right);
            // One more token is chosen behind the last guess.
            let room = self.longest - sequence.tokens.len() - 1;
            sequence.guess = guesser.guess(lookup, &sequence.tokens, room);
            tokens.extend(&sequence.guess);
        }
        Fed {
            n_scored: tokens.len(),
            tokens,
        }
    }

    fn choose(&self, scores: &Scores<'_>, place: usize, sequence: &mut Running) -> Chosen {
        match scores {
            Scores::Top(places) => places[place][0],
            Scores::Logits {
                values,
                log_sums,
                vocab,
            } => {
                let logits = &values[place * vocab..][..*vocab];
                self.choose_of_all(logits, log_sums[place], sequence)
            }
        }
    }

    fn choose_of_all(&self, logits: &[f32], log_sum: f64, sequence: &mut Running) -> Chosen {
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
