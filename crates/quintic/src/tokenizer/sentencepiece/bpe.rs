//! Byte-pair encoding with scores: the best neighbouring pair is merged until none is left.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use super::normalizer::char_len;
use super::proto::{Piece, PieceKind};
use super::trie::PieceTrie;

/// Ids of pieces by their text.
pub(crate) type PieceIds = HashMap<Box<str>, u32>;

const NONE: u32 = u32::MAX;

/// SentencePiece's BPE: higher scores merge first, equal scores from left to right.
#[derive(Clone, Debug)]
pub(crate) struct Bpe {
    scores: Vec<f32>,
    unused: Vec<bool>,
    user_defined: PieceTrie,
    longest: usize,
}

/// A stretch of text; `len` is 0 once it has been merged into its left neighbour.
#[derive(Clone, Copy)]
struct Symbol {
    prev: u32,
    next: u32,
    start: u32,
    len: u32,
    frozen: bool,
}

/// A possible merge. It has lapsed if the two symbols have changed since.
struct Pair {
    score: f32,
    left: u32,
    right: u32,
    len: u32,
}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score
            .total_cmp(&other.score)
            .then_with(|| other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Pair {}

/// The text being merged and everything that changes meanwhile.
struct Merging<'m, 't> {
    bpe: &'m Bpe,
    mergeable: &'m PieceIds,
    text: &'t str,
    symbols: Vec<Symbol>,
    agenda: BinaryHeap<Pair>,
    /// How a piece marked as unused was put together (length of its left half), for
    /// taking it apart at the end. The last merge of the same text counts.
    halves: HashMap<&'t str, usize>,
}

impl Bpe {
    pub(crate) fn new(pieces: &[Piece]) -> Self {
        let is = |kind| move |piece: &Piece| piece.kind == kind;
        Bpe {
            scores: pieces.iter().map(|piece| piece.score).collect(),
            unused: pieces.iter().map(is(PieceKind::Unused)).collect(),
            user_defined: PieceTrie::new(
                pieces
                    .iter()
                    .filter(|piece| piece.kind == PieceKind::UserDefined)
                    .map(|piece| (piece.text.as_str(), 0)),
            ),
            longest: pieces
                .iter()
                .map(|piece| piece.text.len())
                .max()
                .unwrap_or(0),
        }
    }

    /// Calls `emit` with the text of each final symbol, in order, and with its id, if it
    /// has one. `mergeable` holds the normal, user-defined and unused pieces. A piece
    /// marked as unused is never handed out: it is taken apart again, and if it is a
    /// single character, it has no id.
    pub(crate) fn cut<'t>(
        &self,
        text: &'t str,
        mergeable: &PieceIds,
        mut emit: impl FnMut(&'t str, Option<u32>),
    ) {
        let mut merging = Merging {
            bpe: self,
            mergeable,
            text,
            symbols: self.split(text),
            agenda: BinaryHeap::new(),
            halves: HashMap::new(),
        };
        merging.run();
        let mut stack = Vec::new();
        let mut index = if text.is_empty() { NONE } else { 0 };
        while let Some(symbol) = merging.symbols.get(index as usize) {
            stack.push(merging.text_of(*symbol));
            while let Some(part) = stack.pop() {
                let id = mergeable.get(part).copied();
                let unused = id.is_some_and(|id| self.unused[id as usize]);
                match merging.halves.get(part) {
                    _ if !unused => emit(part, id),
                    Some(&half) => {
                        let (left, right) = part.split_at(half);
                        stack.push(right);
                        stack.push(left);
                    }
                    None => emit(part, None),
                }
            }
            index = symbol.next;
        }
    }

    /// One symbol per user-defined piece or character.
    fn split(&self, text: &str) -> Vec<Symbol> {
        let bytes = text.as_bytes();
        let mut symbols = Vec::with_capacity(bytes.len());
        let mut start = 0;
        while start < bytes.len() {
            let fixed = self.user_defined.longest_prefix(&bytes[start..]);
            let len = fixed.unwrap_or_else(|| char_len(bytes[start]));
            let index = symbols.len() as u32;
            symbols.push(Symbol {
                prev: index.checked_sub(1).unwrap_or(NONE),
                next: if start + len < bytes.len() {
                    index + 1
                } else {
                    NONE
                },
                start: start as u32,
                len: len as u32,
                frozen: fixed.is_some(),
            });
            start += len;
        }
        symbols
    }
}

impl<'t> Merging<'_, 't> {
    fn run(&mut self) {
        for right in 1..self.symbols.len() as u32 {
            self.consider(right - 1, right);
        }
        while let Some(pair) = self.agenda.pop() {
            let left = self.symbols[pair.left as usize];
            let right = self.symbols[pair.right as usize];
            if left.len == 0 || right.len == 0 || left.len + right.len != pair.len {
                continue;
            }
            self.symbols[pair.left as usize].len = pair.len;
            self.symbols[pair.left as usize].next = right.next;
            if right.next != NONE {
                self.symbols[right.next as usize].prev = pair.left;
            }
            self.symbols[pair.right as usize].len = 0;
            self.consider(left.prev, pair.left);
            self.consider(pair.left, right.next);
        }
    }

    /// Puts the pair on the agenda if its text is a piece.
    fn consider(&mut self, left: u32, right: u32) {
        let (Some(&a), Some(&b)) = (
            self.symbols.get(left as usize),
            self.symbols.get(right as usize),
        ) else {
            return;
        };
        let len = a.len + b.len;
        if a.frozen || b.frozen || len as usize > self.bpe.longest {
            return;
        }
        let text = &self.text[a.start as usize..(a.start + len) as usize];
        let Some(&id) = self.mergeable.get(text) else {
            return;
        };
        self.agenda.push(Pair {
            score: self.bpe.scores[id as usize],
            left,
            right,
            len,
        });
        if self.bpe.unused[id as usize] {
            self.halves.insert(text, a.len as usize);
        }
    }

    fn text_of(&self, symbol: Symbol) -> &'t str {
        &self.text[symbol.start as usize..(symbol.start + symbol.len) as usize]
    }
}
