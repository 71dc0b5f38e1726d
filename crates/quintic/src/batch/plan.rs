//! Which rows are computed together.

use std::cmp::Reverse;

/// Distributes rows of these lengths over batches of at most `max_tokens` tokens; returns the
/// rows' numbers. The longest rows come first, rows of equal length in their order; a row
/// that is longer than `max_tokens` is a batch of its own.
///
/// Nothing is padded inside, so the order saves no arithmetic over that of the input.
///
/// ```
/// use quintic::batch::plan;
///
/// assert_eq!(plan(&[3, 9, 1, 4, 0, 4], 8), [vec![1], vec![3, 5], vec![0, 2, 4]]);
/// ```
pub fn plan(lengths: &[usize], max_tokens: usize) -> Vec<Vec<usize>> {
    let mut rows: Vec<usize> = (0..lengths.len()).collect();
    rows.sort_by_key(|&row| Reverse(lengths[row]));
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let mut left = 0usize;
    for row in rows {
        match batches.last_mut() {
            Some(batch) if lengths[row] <= left => batch.push(row),
            _ => {
                batches.push(vec![row]);
                left = max_tokens.max(lengths[row]);
            }
        }
        left -= lengths[row];
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_hold_every_row_once_and_keep_the_budget() {
        let lengths: Vec<usize> = (0..200).map(|row| row * 7919 % 61).collect();
        for max_tokens in [0, 1, 59, 60, 61, 500, 100_000, usize::MAX] {
            let batches = plan(&lengths, max_tokens);
            let mut rows: Vec<usize> = batches.concat();
            assert!(rows.is_sorted_by_key(|&row| (Reverse(lengths[row]), row)));
            rows.sort_unstable();
            assert_eq!(rows, (0..200).collect::<Vec<_>>());
            let tokens = |batch: &[usize]| batch.iter().map(|&row| lengths[row]).sum::<usize>();
            for pair in batches.windows(2) {
                // Nothing is left for later that would have had room.
                assert!(tokens(&pair[0]) + lengths[pair[1][0]] > max_tokens);
            }
            for batch in batches {
                assert!(tokens(&batch) <= max_tokens || lengths[batch[0]] > max_tokens);
                // Rows without a token go with anything.
                let real = batch.iter().filter(|&&row| lengths[row] > 0).count();
                assert!(tokens(&batch) <= max_tokens || real == 1);
            }
        }
    }

    #[test]
    fn no_rows_are_no_batches_and_empty_rows_are_one() {
        assert!(plan(&[], 8).is_empty());
        assert_eq!(plan(&[0, 0, 0], 0), [[0, 1, 2]]);
    }
}
