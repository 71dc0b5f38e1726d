//! Small SentencePiece models made for one rule each; the ids are SentencePiece 0.2.3's.

#![allow(clippy::unwrap_used)] // a failing unwrap in a test is the report

mod common;

use common::{field, number_field, piece};
use quintic::Tokenizer;

const NORMAL: u64 = 1;
const UNKNOWN: u64 = 2;
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;
const UNUSED: u64 = 5;

const UNIGRAM: u64 = 1;
const BPE: u64 = 2;

fn encode(base: &[(&str, f32, u64)], more: &[(&str, f32, u64)], kind: u64, text: &str) -> Vec<u32> {
    encode_with(base, more, &[number_field(3, kind)], text)
}

fn encode_with(
    base: &[(&str, f32, u64)],
    more: &[(&str, f32, u64)],
    trainer: &[Vec<u8>],
    text: &str,
) -> Vec<u32> {
    let mut model: Vec<u8> = base
        .iter()
        .chain(more)
        .flat_map(|&(text, score, kind)| piece(text, score, kind))
        .collect();
    model.extend(field(2, &trainer.concat()));
    let tokenizer = Tokenizer::raw_spiece(&model).unwrap();
    tokenizer.encode(text, true).unwrap()
}

const BASE: [(&str, f32, u64); 6] = [
    ("<unk>", 0.0, UNKNOWN),
    ("</s>", 0.0, CONTROL),
    ("\u{2581}", -1.0, NORMAL),
    ("a", -2.0, NORMAL),
    ("b", -3.0, NORMAL),
    ("ab", -4.9, NORMAL),
];

#[test]
fn neighbouring_unknown_characters_are_one_token() {
    assert_eq!(encode(&BASE, &[], UNIGRAM, "ab abz</s>"), [2, 5, 2, 5, 0]);
}

#[test]
fn control_pieces_are_not_matched_in_text() {
    assert_eq!(encode(&BASE, &[], UNIGRAM, "ab</s>"), [2, 5, 0]);
    // A normal piece of the same text is, in a unigram model.
    let more = [("</s>", -1.0, NORMAL)];
    assert_eq!(encode(&BASE, &more, UNIGRAM, "a</s>"), [2, 3, 6]);
    let bpe = [
        BASE[0],
        ("a", -1.0, NORMAL),
        ("b", -1.0, NORMAL),
        ("\u{2581}", -3.0, NORMAL),
    ];
    for (control, text, ids) in [
        ("ab", "ab a", &[3, 1, 2, 3, 1][..]),
        ("c", "abc a", &[3, 1, 2, 0, 3, 1]),
    ] {
        assert_eq!(encode(&bpe, &[(control, 0.0, CONTROL)], BPE, text), ids);
    }
}

#[test]
fn user_defined_pieces_are_taken_whole() {
    let more = [("<x>", 0.0, USER_DEFINED)];
    for kind in [UNIGRAM, BPE] {
        let ids = encode(&BASE, &more, kind, "a<x>b <x> z");
        assert_eq!(ids, [2, 3, 6, 4, 2, 6, 2, 0]);
    }
    // The normalizer leaves them alone, but spaces inside are escaped and then not found.
    let more = [("a  b", 0.0, USER_DEFINED)];
    let ids = encode(&BASE, &more, UNIGRAM, "a  b  a a  b");
    assert_eq!(ids, [2, 3, 2, 2, 4, 2, 3, 2, 3, 2, 2, 4]);
}

#[test]
fn user_defined_pieces_score_a_tenth_per_byte_after_the_first() {
    // `abcd` and `e` against `abcde`: 0.3 - 0.3 does not beat 0, one step more does.
    let more = |score: f32| {
        [
            ("abcd", 0.7, USER_DEFINED),
            ("e", score, NORMAL),
            ("abcde", 0.0, NORMAL),
            ("z", 3.0, NORMAL),
        ]
    };
    assert_eq!(encode(&BASE, &more(-0.3), UNIGRAM, "abcde"), [2, 8]);
    assert_eq!(encode(&BASE, &more(-0.299), UNIGRAM, "abcde"), [2, 6, 7]);
}

#[test]
fn unused_pieces_are_taken_apart() {
    let more = [("abab", -1.0, UNUSED)];
    for kind in [UNIGRAM, BPE] {
        assert_eq!(encode(&BASE, &more, kind, "abab"), [2, 5, 5]);
    }
    let more = [("c", 0.0, UNUSED)];
    for kind in [UNIGRAM, BPE] {
        assert_eq!(encode(&BASE, &more, kind, "acb"), [2, 3, 0, 4]);
    }
}

#[test]
fn white_space_can_be_a_suffix() {
    let trainer = [number_field(24, 1)];
    assert_eq!(encode_with(&BASE, &[], &trainer, "ab ab"), [5, 2, 5, 2]);
}
