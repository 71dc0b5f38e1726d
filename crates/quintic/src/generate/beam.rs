//! Beam search as transformers 5.23 does it: `_beam_search` in `generation/utils.py`.
//!
//! Scores are added, compared and marked with -1e9 in f32 as there, so that the same sequences win.
//! Among equal scores the lower (beam, token) comes first, which torch leaves open.

use super::config::EarlyStopping;
use super::processors::{Processors, log_softmax, softmax};
use super::random::Random;
use super::request::{Finish, Request, Sequence};
use super::search::{Next, Scores, Step};
use super::single::finish;

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

/// A beam and the token that it may go on with.
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
        let Scores::Logits { values, vocab } = scores else {
            unreachable!("beams ask for logits")
        };
        let rows: Vec<Vec<f32>> = values
            .chunks_exact(vocab)
            .enumerate()
            .map(|(row, logits)| {
                let mut scores = logits.to_vec();
                log_softmax(&mut scores);
                self.processors
                    .apply(&self.running[row].tokens, &mut scores);
                scores
            })
            .collect();
        let candidates = self.candidates(&rows);
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
                token: candidate.token,
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

    /// The best continuations of all beams: enough that as many as there are beams go on even if
    /// the best all end.
    fn candidates(&mut self, rows: &[Vec<f32>]) -> Vec<Candidate> {
        let config = self.request.config;
        let vocab = rows[0].len();
        // Fewer than asked for where a tiny vocabulary has no more continuations.
        let n_beams = self.running.len();
        let n_wanted = (1 + config.eos_token_id.len()).max(2) * config.num_beams;
        let row_of = |beam: usize| &rows[if self.is_first { 0 } else { beam }];
        let picked = match config.do_sample {
            false => best_of(
                (0..n_beams).map(|beam| (self.running[beam].score, &row_of(beam)[..])),
                n_wanted,
            ),
            true => {
                let sums = (0..n_beams).flat_map(|beam| {
                    let score = self.running[beam].score;
                    row_of(beam).iter().map(move |log_prob| log_prob + score)
                });
                let sums: Vec<f32> = sums.collect();
                let mut weights = softmax(&sums);
                (0..n_wanted.min(sums.len()))
                    .map(|_| {
                        let at = self.random.draw(&weights);
                        weights[at] = 0.0;
                        (sums[at], at)
                    })
                    .collect()
            }
        };
        picked
            .into_iter()
            .map(|(score, at)| {
                let (beam, token) = (at / vocab, (at % vocab) as u32);
                let tokens = with(&self.running[beam].tokens, token);
                Candidate {
                    beam,
                    token,
                    score,
                    log_prob: row_of(beam)[token as usize],
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

/// The `n` largest sums of a beam's score and its rows' values, largest first, with their places
/// in all rows end to end; the first place among equals.
fn best_of<'a>(beams: impl Iterator<Item = (f32, &'a [f32])>, n: usize) -> Vec<(f32, usize)> {
    let mut best: Vec<(f32, usize)> = Vec::with_capacity(n + 1);
    let mut first = 0;
    for (score, values) in beams {
        for (at, value) in values.iter().enumerate() {
            let sum = value + score;
            // Sums in `best` fall; almost every one is below its last.
            if best.len() == n && !(sum > best[n - 1].0 || sum.is_nan()) {
                continue;
            }
            let place = best.partition_point(|(other, _)| other.total_cmp(&sum).is_ge());
            best.insert(place, (sum, first + at));
            best.truncate(n);
        }
        first += values.len();
    }
    best
}
