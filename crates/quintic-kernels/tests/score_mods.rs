//! A bias and a mask that are defined outside the crate: those of the example.

#![allow(clippy::unwrap_used)]

#[path = "../examples/score_mods/mods.rs"]
mod mods;
#[path = "../examples/score_mods/plain.rs"]
mod plain;

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use mods::{Alibi, Window};
use plain::Case;
use quintic_kernels::{Isa, Kernels, NoBias, NoMask, Precision, ScoreMask, ScoresAt};

const PRECISIONS: [Precision; 3] = [Precision::F32, Precision::Split, Precision::Bf16];

fn for_each_isa(test: impl Fn(&Kernels)) {
    for isa in Isa::available() {
        test(&Kernels::new(isa, 2).unwrap());
    }
}

/// Rows that end inside panels and blocks of keys, and one of several blocks.
const LENGTHS: [usize; 6] = [1, 31, 0, 33, 64, 1100];

#[test]
fn alibi_equals_plain_loops() {
    for_each_isa(|kernels| {
        let alibi = Alibi::new(4);
        let case = Case::new(kernels, 4, 16, &LENGTHS);
        for precision in PRECISIONS {
            case.check(
                kernels,
                precision,
                &alibi,
                &NoMask,
                |head, query, key| alibi.exact(head, query, key),
                |_, _| true,
            );
        }
    });
}

#[test]
fn a_window_equals_plain_loops_and_goes_with_a_bias() {
    for_each_isa(|kernels| {
        let alibi = Alibi::new(2);
        let case = Case::new(kernels, 2, 24, &LENGTHS);
        for precision in PRECISIONS {
            for window in [0, 1, 16, 100, 700, 5000].map(Window) {
                let sees = |query, key| window.sees(query, key);
                case.check(kernels, precision, &NoBias, &window, |_, _, _| 0.0, sees);
                let exact = |head, query, key| alibi.exact(head, query, key);
                case.check(kernels, precision, &alibi, &window, exact, sees);
            }
        }
    });
}

/// A window that counts the scores it is asked to hide.
struct Counting {
    window: Window,
    hidden_from: AtomicUsize,
}

impl ScoreMask for Counting {
    fn visible(&self, row: usize, queries: Range<usize>, n_keys: usize) -> Range<usize> {
        self.window.visible(row, queries, n_keys)
    }

    fn is_full(&self, row: usize, queries: Range<usize>, keys: Range<usize>) -> bool {
        self.window.is_full(row, queries, keys)
    }

    fn hide(&self, at: ScoresAt, scores: &mut [f32]) {
        self.hidden_from.fetch_add(scores.len(), Ordering::Relaxed);
        self.window.hide(at, scores);
    }
}

#[test]
fn keys_outside_a_window_are_skipped_and_full_blocks_are_left_alone() {
    for_each_isa(|kernels| {
        let case = Case::new(kernels, 1, 16, &[3000]);
        let asked = |window| {
            let mask = Counting {
                window: Window(window),
                hidden_from: AtomicUsize::new(0),
            };
            let mut out = case.out(kernels, Precision::F32);
            kernels.attend(&case.attention(), &NoBias, &mask, &mut out);
            mask.hidden_from.into_inner()
        };
        assert_eq!(asked(3000), 0, "nothing to hide");
        // Of 3000 keys, a query's block of at most 32 meets its own and those on either side,
        // to whole panels of 32.
        assert!((3000..=3000 * (32 + 2 * 100 + 31)).contains(&asked(100)));
        // Of a wide window only blocks at its borders are asked about: two of 512 keys.
        assert!(asked(1400) <= 3000 * 2 * 512);
    });
}

/// The mask's word about blocks is what it says of single scores.
#[test]
fn a_window_keeps_the_contract_of_masks() {
    let n_keys = 40;
    for window in [0, 1, 7, 19, 50].map(Window) {
        for first in 0..n_keys {
            for end in first + 1..=n_keys {
                let visible = window.visible(0, first..end, n_keys);
                for keys in [0..n_keys, 3..4, 10..25] {
                    let all = (first..end).all(|q| keys.clone().all(|k| window.sees(q, k)));
                    assert_eq!(window.is_full(0, first..end, keys.clone()), all);
                    for query in first..end {
                        let at = ScoresAt {
                            row: 0,
                            head: 0,
                            query,
                            first_key: keys.start,
                        };
                        let mut scores = vec![0.0; keys.len()];
                        window.hide(at, &mut scores);
                        for (key, score) in keys.clone().zip(scores) {
                            assert_eq!(score == 0.0, window.sees(query, key));
                            assert!(score != 0.0 || visible.contains(&key));
                        }
                    }
                }
            }
        }
    }
}
