//! From a target to a decoder's input.

/// What marks a position without a target in Hugging Face's labels.
pub const IGNORED_LABEL: i64 = -100;

/// The decoder's input for these labels, as transformers' `_shift_right`: the start token, then
/// all labels but the last, and the pad token where there is none.
pub fn shift_right(labels: &[i64], start: u32, pad: u32) -> Vec<i64> {
    let shifted = labels.iter().take(labels.len().saturating_sub(1));
    let shifted = shifted.map(|&label| match label {
        IGNORED_LABEL => i64::from(pad),
        label => label,
    });
    let start = std::iter::once(i64::from(start)).take(labels.len());
    start.chain(shifted).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_move_by_one() {
        assert_eq!(shift_right(&[5, 6, 1], 0, 9), [0, 5, 6]);
        assert_eq!(shift_right(&[5, -100, -100], 2, 9), [2, 5, 9]);
        assert_eq!(shift_right(&[7], 0, 0), [0]);
        assert!(shift_right(&[], 0, 0).is_empty());
    }
}
