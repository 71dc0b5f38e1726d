//! Picking tokens from logits in host memory.

use super::Chosen;

/// The `k` most likely tokens of each row of `logits`, `[rows, vocab]`.
pub(super) fn top(logits: &[f32], vocab: usize, k: usize) -> Vec<Vec<Chosen>> {
    logits
        .chunks_exact(vocab.max(1))
        .map(|scores| most_likely(scores, k))
        .collect()
}

/// [`log_total`] of each row of `logits`, `[rows, vocab]`.
pub(super) fn log_sums(logits: &[f32], vocab: usize) -> Vec<f64> {
    logits.chunks_exact(vocab.max(1)).map(log_total).collect()
}

/// `log sum exp` of all scores, by which a score becomes a log-probability.
pub(crate) fn log_total(scores: &[f32]) -> f64 {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = scores
        .iter()
        .map(|&score| f64::from(score - max).exp())
        .sum();
    f64::from(max) + total.ln()
}

/// The `k` best ids by falling score, lower id first among equals. NaN is above all numbers.
fn ranked(scores: &[f32], k: usize) -> Vec<u32> {
    let better = |a: &u32, b: &u32| {
        scores[*b as usize]
            .total_cmp(&scores[*a as usize])
            .then(a.cmp(b))
    };
    if k == 1 {
        // `max_by` takes the last of equals, which `better` has none of.
        let best = (0..scores.len() as u32).max_by(|a, b| better(b, a));
        return best.into_iter().collect();
    }
    let mut ids: Vec<u32> = (0..scores.len() as u32).collect();
    if k < ids.len() {
        ids.select_nth_unstable_by(k, better);
        ids.truncate(k);
    }
    ids.sort_unstable_by(better);
    ids
}

fn most_likely(scores: &[f32], k: usize) -> Vec<Chosen> {
    let total = log_total(scores);
    ranked(scores, k)
        .into_iter()
        .map(|id| Chosen {
            id,
            log_prob: (f64::from(scores[id as usize]) - total) as f32,
        })
        .collect()
}
