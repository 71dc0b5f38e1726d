//! Picking tokens from logits in host memory.

use super::{Choice, Chosen};

/// Picks tokens for each row of `logits`, `[rows, vocab]`.
pub(super) fn choose(logits: &[f32], vocab: usize, choice: Choice<'_>) -> Vec<Vec<Chosen>> {
    logits
        .chunks_exact(vocab.max(1))
        .enumerate()
        .map(|(row, scores)| match choice {
            Choice::Top(k) => most_likely(scores, k),
            Choice::Sample {
                temperature,
                top_k,
                top_p,
                uniforms,
            } => {
                vec![draw(scores, temperature, top_k, top_p, uniforms[row])]
            }
        })
        .collect()
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

/// Temperature, then `top_k`, then `top_p`, as transformers orders its filters; the draw
/// inverts the cumulative distribution at `uniform`.
fn draw(scores: &[f32], temperature: f32, top_k: usize, top_p: f32, uniform: f32) -> Chosen {
    let total = log_total(scores);
    let ids = match top_k {
        0 => ranked(scores, scores.len()),
        k => ranked(scores, k),
    };
    let best = f64::from(scores[ids[0] as usize]);
    let mut weights: Vec<f64> = ids
        .iter()
        .map(|&id| ((f64::from(scores[id as usize]) - best) / f64::from(temperature)).exp())
        .collect();
    let sum: f64 = weights.iter().sum();
    let mut mass = 0.0;
    let n_kept = 1 + weights
        .iter()
        .take_while(|&&weight| {
            mass += weight / sum;
            mass < f64::from(top_p)
        })
        .count();
    weights.truncate(n_kept);
    let mut left = f64::from(uniform) * weights.iter().sum::<f64>();
    let at = weights.iter().position(|&weight| {
        left -= weight;
        left < 0.0
    });
    let id = ids[at.unwrap_or(weights.len() - 1)];
    Chosen {
        id,
        log_prob: (f64::from(scores[id as usize]) - total) as f32,
    }
}
