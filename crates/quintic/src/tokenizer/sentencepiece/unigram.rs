//! The unigram language model: the best-scoring way to cut a text into pieces.

use super::normalizer::char_len;
use super::proto::{Piece, PieceKind};
use super::trie::PieceTrie;

/// An unknown character scores this much less than the worst piece.
const UNKNOWN_PENALTY: f32 = 10.0;

/// Score of a user-defined piece of `len` bytes, whatever its own score says. It grows with
/// the length, while real scores are negative, so such pieces are taken where they occur.
///
/// SentencePiece 0.2.3 behaves so; older versions used `len * (highest score) - 0.1`.
fn user_defined_score(len: usize) -> f32 {
    (0.1 * (len as f64 - 1.0)) as f32
}

/// Viterbi search over all cuts.
///
/// # Numerics
///
/// Scores are added and compared in f32, as in SentencePiece 0.2.3. Cuts that differ only
/// in the order of their pieces are told apart by rounding alone, so the type matters; of
/// equal sums the one whose last piece is longest wins.
#[derive(Clone, Debug)]
pub(crate) struct Unigram {
    trie: PieceTrie,
    scores: Vec<f32>,
    user_defined: Vec<bool>,
    unk_id: u32,
    unk_score: f32,
}

#[derive(Clone, Copy)]
struct Best {
    score: f32,
    /// Start of the last piece of the best path, `u32::MAX` if no path ends here yet.
    start: u32,
    id: u32,
}

impl Unigram {
    pub(crate) fn new(pieces: &[Piece], unk_id: u32) -> Self {
        let min_score = pieces
            .iter()
            .filter(|piece| piece.kind == PieceKind::Normal)
            .map(|piece| piece.score)
            .fold(f32::MAX, f32::min);
        let keys = pieces.iter().zip(0..).filter_map(|(piece, id)| {
            matches!(piece.kind, PieceKind::Normal | PieceKind::UserDefined)
                .then_some((piece.text.as_str(), id))
        });
        Unigram {
            trie: PieceTrie::new(keys),
            scores: pieces.iter().map(|piece| piece.score).collect(),
            user_defined: pieces
                .iter()
                .map(|piece| piece.kind == PieceKind::UserDefined)
                .collect(),
            unk_id,
            unk_score: min_score - UNKNOWN_PENALTY,
        }
    }

    /// Calls `emit` with each piece of the best cut, in order: its text and its id.
    pub(crate) fn cut<'t>(&self, text: &'t str, mut emit: impl FnMut(&'t str, u32)) {
        let bytes = text.as_bytes();
        let unreached = Best {
            score: 0.0,
            start: u32::MAX,
            id: self.unk_id,
        };
        let mut best = vec![unreached; bytes.len() + 1];
        let mut start = 0;
        while start < bytes.len() {
            let so_far = best[start].score;
            let first_len = char_len(bytes[start]);
            let mut has_single = false;
            self.trie.for_each_prefix(&bytes[start..], |len, id| {
                let score = if self.user_defined[id as usize] {
                    user_defined_score(len)
                } else {
                    self.scores[id as usize]
                };
                let candidate = score + so_far;
                let target = &mut best[start + len];
                if target.start == u32::MAX || candidate > target.score {
                    *target = Best {
                        score: candidate,
                        start: start as u32,
                        id,
                    };
                }
                has_single |= len == first_len;
            });
            if !has_single {
                let candidate = self.unk_score + so_far;
                let target = &mut best[start + first_len];
                if target.start == u32::MAX || candidate > target.score {
                    *target = Best {
                        score: candidate,
                        start: start as u32,
                        id: self.unk_id,
                    };
                }
            }
            start += first_len;
        }
        // Walk back, then forward again: `best` itself holds the way, turned round.
        let mut end = bytes.len();
        let mut path = Vec::new();
        while end > 0 {
            let node = best[end];
            path.push((node.start as usize, end, node.id));
            end = node.start as usize;
        }
        for (start, end, id) in path.into_iter().rev() {
            emit(&text[start..end], id);
        }
    }
}
