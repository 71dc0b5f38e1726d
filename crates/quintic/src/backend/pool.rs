//! Pooling of a stream in host memory.

use super::Pool;

/// One vector a row of `x`, `[tokens, columns]`; sums in f64.
pub(super) fn pool(x: &[f32], columns: usize, row_starts: &[usize], pool: Pool) -> Vec<f32> {
    let mut out = vec![0.0; (row_starts.len() - 1) * columns];
    for (bounds, out) in row_starts
        .windows(2)
        .zip(out.chunks_exact_mut(columns.max(1)))
    {
        let tokens = match pool {
            Pool::Mean => bounds[0]..bounds[1],
            Pool::First => bounds[0]..bounds[1].min(bounds[0] + 1),
            Pool::Last => bounds[0].max(bounds[1].saturating_sub(1))..bounds[1],
        };
        let mut sums = vec![0.0f64; columns];
        for token in tokens.clone() {
            for (sum, &value) in sums.iter_mut().zip(&x[token * columns..]) {
                *sum += f64::from(value);
            }
        }
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = (sum / tokens.len().max(1) as f64) as f32;
        }
    }
    out
}
