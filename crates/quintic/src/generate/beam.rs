//! Beam search as transformers 5.23 does it: `_beam_search` in `generation/utils.py`.
//!
//! Scores are added, compared and marked with -1e9 in f32 as there, so that the same sequences win.
//! Among equal scores the lower beam comes first and in it what comes first in its row: the likelier
//! token, or the lower one where processors had their say. torch leaves that open.

use super::config::EarlyStopping;
use super::processors::{Processors, softmax};
use super::random::Random;
use super::request::{Finish, Request, Sequence};
use super::search::{Fed, Next, Scores, Step, Wanted};
use super::single::finish;
use crate::backend::Chosen;

/// What takes a score out of the competition.
const OUT: f32 = -1.0e9;

/// The beams of one request.
pub(super) struct BeamSearch<'a> {
    request: Request<'a>,
    processors: Processors,
    longest: usize,
    running: Vec<Running>,
    /// The best sequences that have ended, best first; as many as beams, some of them empty.
    ended: Vec<Ended>,
    /// Whether a running beam may still become better than those that have ended.
    can_improve: bool,
    random: Random,
    /// Whether all beams are still one row, the prefix.
    is_first: bool,
}

#[derive(Clone)]
struct Running {
    tokens: Vec<u32>,
    log_probs: Vec<f32>,
    score: f32,
}

#[derive(Clone)]
struct Ended {
    tokens: Vec<u32>,
    log_probs: Vec<f32>,
    score: f32,
    finish: Finish,
    /// Whether it is one, and no place to be filled.
    is_real: bool,
}

/// A beam and a token that it may go on with, and its score then.
#[derive(Clone, Copy)]
struct Picked {
    beam: usize,
    token: u32,
    score: f32,
    log_prob: f32,
}

/// The same, and whether that is its end.
struct Candidate {
    beam: usize,
    token: u32,
    score: f32,
    log_prob: f32,
    finish: Option<Finish>,
}

impl<'a> BeamSearch<'a> {
    pub(super) fn new(request: Request<'a>) -> Self {
        let config = request.config;
        let n_beams = config.num_beams;
        let running = (0..n_beams).map(|beam| Running {
            tokens: request.prefix.to_vec(),
            log_probs: Vec::new(),
            // All beams begin alike: the first one alone counts.
            score: if beam == 0 { 0.0 } else { OUT },
        });
        let nothing = Ended {
            tokens: request.prefix.to_vec(),
            log_probs: Vec::new(),
            score: OUT,
            finish: Finish::Length,
            is_real: false,
        };
        BeamSearch {
            processors: Processors::new(config, request.prefix.len()),
            longest: config.longest(request.prefix.len()),
            running: running.collect(),
            ended: vec![nothing; n_beams],
            can_improve: true,
            random: Random::new(config.seed, 0),
            is_first: true,
            request,
        }
    }

    pub(super) fn step(&mut self, scores: Scores<'_>) -> Step {
        let picked = match scores {
            Scores::Top(rows) => self.of_the_likeliest(rows),
            Scores::Logits {
                values,
                log_sums,
                vocab,
            } => {
                let rows: Vec<Vec<f32>> = values
                    .chunks_exact(vocab)
                    .zip(log_sums)
                    .enumerate()
                    .map(|(row, (logits, &log_sum))| {
                        let log_probs = logits.iter().map(|&x| (f64::from(x) - log_sum) as f32);
                        let mut scores: Vec<f32> = log_probs.collect();
                        self.processors
                            .apply(&self.running[row].tokens, &mut scores);
                        scores
                    })
                    .collect();
                self.of_all(&rows)
            }
        };
        let candidates = self.candidates(picked);
        let before = std::mem::take(&mut self.running);
        let extended = |candidate: &Candidate| Running {
            tokens: with(&before[candidate.beam].tokens, candidate.token),
            log_probs: with(&before[candidate.beam].log_probs, candidate.log_prob),
            score: candidate.score,
        };

        let n_beams = self.request.config.num_beams;
        let mut going: Vec<&Candidate> = candidates.iter().collect();
        let marked = |candidate: &Candidate| match candidate.finish {
            Some(_) => candidate.score + OUT,
            None => candidate.score,
        };
        going.sort_by(|a, b| marked(b).total_cmp(&marked(a)));
        going.truncate(n_beams);
        let mut next = Vec::with_capacity(n_beams);
        for candidate in &going {
            next.push(Next {
                row: if self.is_first { 0 } else { candidate.beam },
                taken_back: 0,
                fed: Fed {
                    tokens: vec![candidate.token],
                    n_scored: 1,
                },
            });
            self.running.push(Running {
                score: marked(candidate),
                ..extended(candidate)
            });
        }
        self.is_first = false;
        self.keep_ended(&candidates, &extended);

        let all_end = candidates
            .iter()
            .all(|candidate| candidate.finish.is_some());
        self.can_improve &= self.may_improve();
        let is_full = self.request.config.early_stopping == EarlyStopping::Full
            && self.ended.iter().all(|ended| ended.is_real);
        match self.can_improve && !is_full && !all_end {
            true => Step::GoOn(next),
            false => Step::Done(self.results()),
        }
    }

    /// How many continuations of all beams are looked at: enough that as many as there are beams go
    /// on even if the best all end.
    fn n_candidates(&self) -> usize {
        let config = self.request.config;
        (1 + config.eos_token_id.len()).max(2) * config.num_beams
    }

    /// A row's likeliest tokens are enough, unless something changes their order, or there are so few
    /// that beams which do not count have to fill the list.
    pub(super) fn wanted(&self, vocab: usize) -> Wanted {
        let n = self.n_candidates();
        match self.processors.do_nothing() && n <= vocab {
            true => Wanted::Top(n),
            false => Wanted::Logits,
        }
    }

    /// The row that a beam goes on from.
    fn row_of(&self, beam: usize) -> usize {
        if self.is_first { 0 } else { beam }
    }

    /// From each row's likeliest tokens.
    fn of_the_likeliest(&self, rows: &[Vec<Chosen>]) -> Vec<Picked> {
        let n = self.n_candidates();
        let all = (0..self.running.len()).flat_map(|beam| {
            let score = self.running[beam].score;
            let row = &rows[self.row_of(beam)];
            row[..n].iter().map(move |chosen| Picked {
                beam,
                token: chosen.id,
                score: chosen.log_prob + score,
                log_prob: chosen.log_prob,
            })
        });
        best_of(all, n)
    }

    /// From every token's score.
    fn of_all(&mut self, rows: &[Vec<f32>]) -> Vec<Picked> {
        let vocab = rows[0].len();
        // Fewer than asked for where a tiny vocabulary has no more continuations.
        let n = self.n_candidates().min(vocab * self.running.len());
        let all = (0..self.running.len()).flat_map(|beam| {
            let score = self.running[beam].score;
            let row = rows[self.row_of(beam)].iter().enumerate();
            row.map(move |(token, &log_prob)| Picked {
                beam,
                token: token as u32,
                score: log_prob + score,
                log_prob,
            })
        });
        if !self.request.config.do_sample {
            return best_of(all, n);
        }
        let all: Vec<Picked> = all.collect();
        let sums: Vec<f32> = all.iter().map(|picked| picked.score).collect();
        let mut weights = softmax(&sums);
        (0..n)
            .map(|_| {
                let at = self.random.draw(&weights);
                weights[at] = 0.0;
                all[at]
            })
            .collect()
    }

    fn candidates(&self, picked: Vec<Picked>) -> Vec<Candidate> {
        picked
            .into_iter()
            .map(|picked| {
                let tokens = with(&self.running[picked.beam].tokens, picked.token);
                Candidate {
                    beam: picked.beam,
                    token: picked.token,
                    score: picked.score,
                    log_prob: picked.log_prob,
                    finish: finish(&self.request, self.longest, &tokens),
                }
            })
            .collect()
    }

    /// Takes in what has just ended, and keeps the best.
    fn keep_ended(&mut self, candidates: &[Candidate], extended: &dyn Fn(&Candidate) -> Running) {
        let config = self.request.config;
        let is_closed = config.early_stopping == EarlyStopping::Full
            && self.ended.iter().all(|ended| ended.is_real);
        for (rank, candidate) in candidates.iter().enumerate() {
            // Others are there only to go on.
            let Some(finish) = candidate.finish.filter(|_| rank < config.num_beams) else {
                continue;
            };
            if is_closed || !self.can_improve {
                continue;
            }
            let Running {
                tokens, log_probs, ..
            } = extended(candidate);
            let length = tokens.len() - self.request.prefix.len();
            let score = candidate.score / (length as f64).powf(config.length_penalty) as f32;
            self.ended.push(Ended {
                tokens,
                log_probs,
                score,
                finish,
                is_real: true,
            });
        }
        // Stable: what has ended before comes first among equals.
        self.ended.sort_by(|a, b| b.score.total_cmp(&a.score));
        self.ended.truncate(config.num_beams);
    }

    /// Whether the best running beam may become better than the worst that has ended.
    fn may_improve(&self) -> bool {
        let config = self.request.config;
        let prefix = self.request.prefix.len();
        let now = self.running[0].tokens.len();
        let length = match config.early_stopping {
            EarlyStopping::Never if config.length_penalty > 0.0 => self.longest - prefix,
            _ => now - prefix,
        };
        let possible = self.running[0].score / (length as f64).powf(config.length_penalty) as f32;
        let worst = match self.ended.iter().all(|ended| ended.is_real) {
            true => self.ended[self.ended.len() - 1].score,
            false => OUT,
        };
        possible > worst
    }

    fn results(&mut self) -> Vec<Sequence> {
        let n_prefix = self.request.prefix.len();
        self.ended
            .drain(..)
            .take(self.request.config.num_return_sequences)
            .map(|ended| Sequence {
                tokens: ended.tokens,
                n_prefix,
                score: ended.score,
                log_probs: ended.log_probs,
                finish: ended.finish,
            })
            .collect()
    }
}

fn with<T: Copy>(values: &[T], last: T) -> Vec<T> {
    let mut all = Vec::with_capacity(values.len() + 1);
    all.extend_from_slice(values);
    all.push(last);
    all
}

/// The `n` largest, largest first; the first of them among equals.
fn best_of(all: impl Iterator<Item = Picked>, n: usize) -> Vec<Picked> {
    let mut best: Vec<Picked> = Vec::with_capacity(n + 1);
    for picked in all {
        // Scores in `best` fall; almost every one is below its last.
        if best.len() == n && !(picked.score > best[n - 1].score || picked.score.is_nan()) {
            continue;
        }
        let place = best.partition_point(|other| other.score.total_cmp(&picked.score).is_ge());
        best.insert(place, picked);
        best.truncate(n);
    }
    best
}
