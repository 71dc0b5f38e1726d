//! What becomes of a row's scores before a token is chosen, in transformers' order.
//!
//! Source: `logits_process.py` and `_get_logits_processor` of transformers 5.23. Scores are f32 and
//! every rule acts on f32 values; sums of probabilities run in f64 where transformers' run in f32,
//! so that thresholds that fall between two tokens by less than f32's error may cut elsewhere.

use super::config::GenerationConfig;
use crate::backend::log_total;

/// The rules of one request.
#[derive(Clone, Debug)]
pub(super) struct Processors {
    config: GenerationConfig,
    prefix: usize,
    longest: usize,
}

impl Processors {
    pub(super) fn new(config: &GenerationConfig, prefix: usize) -> Self {
        let mut config = config.clone();
        // The end of a sequence is no bad word.
        let eos = config.eos_token_id.clone();
        config
            .bad_words_ids
            .retain(|word| !(word.len() == 1 && eos.contains(&word[0])));
        Processors {
            longest: config.longest(prefix),
            config,
            prefix,
        }
    }

    /// Whether scores stay as they are at every step, but for a factor and an offset.
    pub(super) fn do_nothing(&self) -> bool {
        let c = &self.config;
        !c.do_sample
            && c.repetition_penalty == 1.0
            && c.no_repeat_ngram_size == 0
            && c.bad_words_ids.is_empty()
            && (c.eos_token_id.is_empty()
                || c.min_length <= self.prefix && c.min_new_tokens.unwrap_or(0) == 0)
            && c.forced_bos_token_id.is_none()
            && c.forced_eos_token_id.is_empty()
            && c.exponential_decay_length_penalty.is_none()
            && c.suppress_tokens.is_empty()
            && c.begin_suppress_tokens.is_empty()
            && !c.remove_invalid_values
    }

    /// Changes the scores `[vocab]` of the token behind `ids`, prefix included.
    pub(super) fn apply(&self, ids: &[u32], scores: &mut [f32]) {
        let c = &self.config;
        let n = ids.len();
        if c.repetition_penalty != 1.0 {
            let mut seen = ids.to_vec();
            seen.sort_unstable();
            seen.dedup();
            for id in seen {
                let score = &mut scores[id as usize];
                match *score < 0.0 {
                    true => *score *= c.repetition_penalty,
                    false => *score /= c.repetition_penalty,
                }
            }
        }
        let size = c.no_repeat_ngram_size;
        if size > 0 && n + 1 >= size {
            let last = &ids[n + 1 - size..];
            for ngram in ids.windows(size) {
                if ngram[..size - 1] == *last {
                    forbid(scores, ngram[size - 1]);
                }
            }
        }
        for word in &c.bad_words_ids {
            if let Some((&id, before)) = word.split_last()
                && word.len() <= n.max(1)
                && ids.ends_with(before)
            {
                forbid(scores, id);
            }
        }
        let is_short = n < c.min_length || n - self.prefix < c.min_new_tokens.unwrap_or(0);
        if is_short {
            c.eos_token_id.iter().for_each(|&id| forbid(scores, id));
        }
        if let Some(id) = c.forced_bos_token_id
            && n == 1
        {
            force(scores, &[id]);
        }
        if !c.forced_eos_token_id.is_empty() && n + 1 == self.longest {
            force(scores, &c.forced_eos_token_id);
        }
        if c.remove_invalid_values {
            for score in scores.iter_mut() {
                *score = match *score {
                    nan if nan.is_nan() => 0.0,
                    score => score.clamp(f32::MIN, f32::MAX),
                };
            }
        }
        if let Some((start, factor)) = c.exponential_decay_length_penalty
            && n > start + self.prefix
        {
            let power = factor.powi((n - start - self.prefix) as i32) - 1.0;
            for &id in &c.eos_token_id {
                let score = &mut scores[id as usize];
                if score.is_finite() {
                    *score += score.abs() * power as f32;
                }
            }
        }
        c.suppress_tokens.iter().for_each(|&id| forbid(scores, id));
        let begin = match self.prefix > 1 || c.forced_bos_token_id.is_none() {
            true => self.prefix,
            false => self.prefix + 1,
        };
        if n == begin {
            c.begin_suppress_tokens
                .iter()
                .for_each(|&id| forbid(scores, id));
        }
        if c.do_sample {
            self.narrow(scores);
        }
        if c.renormalize_logits {
            log_softmax(scores);
        }
    }

    /// What is done before a draw alone.
    fn narrow(&self, scores: &mut [f32]) {
        let c = &self.config;
        let n_kept = match c.num_beams > 1 {
            true => c.eos_token_id.len().max(1) + 1,
            false => 1,
        };
        if c.temperature != 1.0 {
            scores.iter_mut().for_each(|score| *score /= c.temperature);
        }
        if c.top_k > 0 {
            let least = nth_largest(scores, c.top_k.max(n_kept));
            forbid_where(scores, |_, score| score < least);
        }
        if c.top_p < 1.0 {
            let probabilities = softmax(scores);
            let order = by_score(scores);
            // From the least likely on, as long as what is cut off adds up to no more.
            let mut mass = 0.0;
            let limit = f64::from(1.0 - c.top_p);
            let n_cut = order.iter().rev().take_while(|&&id| {
                mass += probabilities[id as usize];
                mass <= limit
            });
            let n = order.len() - n_cut.count();
            for &id in &order[n.max(n_kept).min(order.len())..] {
                forbid(scores, id);
            }
        }
        if let Some(min_p) = c.min_p {
            let probabilities = softmax(scores);
            let best = probabilities.iter().copied().fold(0.0, f64::max);
            let kept: Vec<u32> = by_score(scores).into_iter().take(n_kept).collect();
            forbid_where(scores, |id, _| {
                probabilities[id] < f64::from(min_p) * best && !kept.contains(&(id as u32))
            });
        }
        if c.typical_p < 1.0 {
            typical(scores, f64::from(c.typical_p), n_kept);
        }
        if c.epsilon_cutoff > 0.0 {
            cut_below(scores, f64::from(c.epsilon_cutoff), n_kept);
        }
        if c.eta_cutoff > 0.0 {
            let entropy = entropy(&softmax(scores));
            let epsilon = f64::from(c.eta_cutoff);
            cut_below(
                scores,
                epsilon.min(epsilon.sqrt() * (-entropy).exp()),
                n_kept,
            );
        }
    }
}

fn forbid(scores: &mut [f32], id: u32) {
    scores[id as usize] = f32::NEG_INFINITY;
}

fn forbid_where(scores: &mut [f32], is_cut: impl Fn(usize, f32) -> bool) {
    for (id, score) in scores.iter_mut().enumerate() {
        if is_cut(id, *score) {
            *score = f32::NEG_INFINITY;
        }
    }
}

/// Leaves nothing but these tokens, with equal scores.
fn force(scores: &mut [f32], ids: &[u32]) {
    scores.fill(f32::NEG_INFINITY);
    ids.iter().for_each(|&id| scores[id as usize] = 0.0);
}

/// The `n`-th largest score, or the smallest if there are fewer.
fn nth_largest(scores: &[f32], n: usize) -> f32 {
    let mut sorted = scores.to_vec();
    let at = n.min(sorted.len()).saturating_sub(1);
    *sorted.select_nth_unstable_by(at, |a, b| b.total_cmp(a)).1
}

/// Ids by falling score, lower id first among equals.
fn by_score(scores: &[f32]) -> Vec<u32> {
    let mut ids: Vec<u32> = (0..scores.len() as u32).collect();
    ids.sort_unstable_by(|&a, &b| {
        scores[b as usize]
            .total_cmp(&scores[a as usize])
            .then(a.cmp(&b))
    });
    ids
}

/// Probabilities of scores, summed in f64.
pub(super) fn softmax(scores: &[f32]) -> Vec<f64> {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut values: Vec<f64> = scores
        .iter()
        .map(|&score| (f64::from(score) - f64::from(max)).exp())
        .collect();
    let total: f64 = values.iter().sum();
    values.iter_mut().for_each(|value| *value /= total);
    values
}

/// Scores as log-probabilities.
fn log_softmax(scores: &mut [f32]) {
    let shift = log_total(scores);
    for score in scores {
        *score = (f64::from(*score) - shift) as f32;
    }
}

fn entropy(probabilities: &[f64]) -> f64 {
    let terms = probabilities.iter().filter(|&&p| p > 0.0);
    -terms.map(|p| p * p.ln()).sum::<f64>()
}

/// Keeps the tokens whose surprise is nearest to the entropy, until they reach `mass`.
fn typical(scores: &mut [f32], mass: f64, n_kept: usize) {
    let probabilities = softmax(scores);
    let entropy = entropy(&probabilities);
    let away: Vec<f64> = probabilities
        .iter()
        .map(|p| (-p.ln() - entropy).abs())
        .collect();
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| away[a].total_cmp(&away[b]));
    let mut sum = 0.0;
    let n_below = order.iter().take_while(|&&id| {
        sum += probabilities[id];
        sum < mass
    });
    let last = n_below.count().min(order.len() - 1);
    let limit = away[order[last]];
    for &id in order.iter().skip(n_kept) {
        if away[id] > limit {
            scores[id] = f32::NEG_INFINITY;
        }
    }
}

/// Cuts tokens less likely than `least`, but for the `n_kept` best.
fn cut_below(scores: &mut [f32], least: f64, n_kept: usize) {
    let probabilities = softmax(scores);
    let kept = nth_largest(scores, n_kept);
    forbid_where(scores, |id, score| {
        probabilities[id] < least && score < kept
    });
}
