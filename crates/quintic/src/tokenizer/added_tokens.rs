//! Tokens that are cut out of a text before the model sees the rest.
//!
//! The reference is `PreTrainedTokenizer` of transformers 4.57.6: which matches its trie
//! finds, and how the flags of a token change the text beside it.

use std::collections::{BTreeMap, HashMap};

/// A token with its flags, as in `added_tokens_decoder`.
///
/// The flag `normalized` has no effect on slow tokenizers (none of ours lower-cases), so
/// it is kept only for the fast ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AddedToken {
    pub(crate) content: String,
    pub(crate) lstrip: bool,
    pub(crate) rstrip: bool,
    pub(crate) single_word: bool,
    pub(crate) normalized: bool,
    pub(crate) special: bool,
}

impl AddedToken {
    /// A special token without any stripping.
    pub(crate) fn special(content: impl Into<String>) -> Self {
        AddedToken {
            content: content.into(),
            lstrip: false,
            rstrip: false,
            single_word: false,
            normalized: false,
            special: true,
        }
    }

    /// A special token that takes the white space on both sides with it.
    pub(crate) fn stripping(content: impl Into<String>) -> Self {
        AddedToken {
            lstrip: true,
            rstrip: true,
            ..AddedToken::special(content)
        }
    }
}

/// All added tokens of a tokenizer, by id and by text.
#[derive(Clone, Debug, Default)]
pub(crate) struct AddedTokens {
    by_id: BTreeMap<u32, AddedToken>,
    ids: HashMap<String, u32>,
    trie: CharTrie,
}

impl AddedTokens {
    /// Takes over a decoder table. Of equal texts the last one gives the id.
    pub(crate) fn new(tokens: Vec<(u32, AddedToken)>) -> Self {
        let mut by_id: Vec<(u32, AddedToken)> = Vec::new();
        let mut places = HashMap::new();
        for (id, token) in tokens {
            match places.get(&id) {
                Some(&place) => by_id[place] = (id, token),
                None => {
                    places.insert(id, by_id.len());
                    by_id.push((id, token));
                }
            }
        }
        let mut added = AddedTokens::default();
        for (id, token) in by_id {
            added.set(id, token);
        }
        added
    }

    /// Sets the token of an id. An earlier token of this id keeps its text as a name of
    /// the id, but is no longer looked for in texts.
    pub(crate) fn set(&mut self, id: u32, token: AddedToken) {
        self.ids.insert(token.content.clone(), id);
        self.by_id.insert(id, token);
    }

    /// Must be called after the last [`AddedTokens::set`], before the first split.
    pub(crate) fn build_trie(&mut self) {
        self.trie = CharTrie::default();
        for token in self.by_id.values() {
            self.trie.insert(&token.content);
        }
    }

    pub(crate) fn id_of(&self, content: &str) -> Option<u32> {
        self.ids.get(content).copied()
    }

    /// The highest id whose token has this text; [`AddedTokens::id_of`] gives the last set.
    pub(crate) fn highest_id_of(&self, content: &str) -> Option<u32> {
        let mut tokens = self.by_id.iter().rev();
        tokens
            .find(|(_, token)| token.content == content)
            .map(|(&id, _)| id)
    }

    pub(crate) fn get(&self, id: u32) -> Option<&AddedToken> {
        self.by_id.get(&id)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &AddedToken)> {
        self.by_id.iter().map(|(&id, token)| (id, token))
    }

    /// Every text that has an id, with the id.
    pub(crate) fn names(&self) -> impl Iterator<Item = (&str, u32)> {
        self.ids.iter().map(|(name, &id)| (name.as_str(), id))
    }

    /// Cuts a text at the added tokens. The flags have been applied: white space is
    /// stripped, tokens that had to be single words and are not are part of the text
    /// beside them. Empty parts are left out.
    pub(crate) fn split(&self, text: &str) -> Vec<String> {
        let mut parts: Vec<String> = self
            .trie
            .split(text)
            .into_iter()
            .map(str::to_owned)
            .collect();
        for index in 0..parts.len() {
            let Some(token) = self.id_of(&parts[index]).and_then(|id| self.get(id)) else {
                continue;
            };
            // What stood beside the token before its own stripping.
            let left_end = index
                .checked_sub(1)
                .and_then(|left| parts[left].chars().next_back());
            let right_start = parts.get(index + 1).and_then(|right| right.chars().next());
            if token.rstrip && right_start.is_some() {
                parts[index + 1] = trim_start(&parts[index + 1]).to_owned();
            }
            if token.lstrip && left_end.is_some() {
                parts[index - 1] = trim_end(&parts[index - 1]).to_owned();
            }
            if !token.single_word {
                continue;
            }
            if left_end.is_some_and(|character| character != ' ') {
                let token = std::mem::take(&mut parts[index]);
                parts[index - 1].push_str(&token);
            } else if right_start.is_some_and(|character| character != ' ') {
                let token = std::mem::take(&mut parts[index]);
                parts[index + 1].insert_str(0, &token);
            }
        }
        parts.retain(|part| !part.is_empty());
        parts
    }
}

/// White space in the sense of Python's `str.strip`: Unicode's, and the four separators
/// U+001C to U+001F.
pub(crate) fn is_python_space(character: char) -> bool {
    character.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&character)
}

pub(crate) fn trim_start(text: &str) -> &str {
    text.trim_start_matches(is_python_space)
}

pub(crate) fn trim_end(text: &str) -> &str {
    text.trim_end_matches(is_python_space)
}

/// A trie over characters with the search of the reference.
///
/// The search is meant to find the leftmost longest tokens, but it has corners of its
/// own: see [`CharTrie::longer_match`]. They decide ids, so they are kept.
#[derive(Clone, Debug)]
struct CharTrie {
    /// Per node: its children and whether a token ends there. Node 0 is the root.
    nodes: Vec<(HashMap<char, usize>, bool)>,
}

impl Default for CharTrie {
    fn default() -> Self {
        CharTrie {
            nodes: vec![(HashMap::new(), false)],
        }
    }
}

impl CharTrie {
    fn insert(&mut self, token: &str) {
        if token.is_empty() {
            return;
        }
        let mut node = 0;
        for character in token.chars() {
            node = match self.step(node, character) {
                Some(next) => next,
                None => {
                    self.nodes.push((HashMap::new(), false));
                    let next = self.nodes.len() - 1;
                    self.nodes[node].0.insert(character, next);
                    next
                }
            };
        }
        self.nodes[node].1 = true;
    }

    fn step(&self, node: usize, character: char) -> Option<usize> {
        self.nodes[node].0.get(&character).copied()
    }

    fn ends(&self, node: usize) -> bool {
        self.nodes[node].1
    }

    /// Cuts `text` before and after each token found in it.
    fn split<'t>(&self, text: &'t str) -> Vec<&'t str> {
        let mut parts = Vec::new();
        let mut done = 0;
        let mut cut = |start: usize, end: usize| {
            for offset in [start, end] {
                if offset > done {
                    parts.push(&text[done..offset]);
                    done = offset;
                }
            }
        };
        // Beginnings of tokens under way: where they started and the node reached.
        let mut open: Vec<(usize, usize)> = Vec::new();
        let mut skip_to = 0;
        for (here, character) in text.char_indices() {
            if here < skip_to {
                continue;
            }
            let mut lost = Vec::new();
            let mut found = None;
            for index in 0..open.len() {
                let (start, node) = open[index];
                if self.ends(node) {
                    found = Some(self.longer_match(text, &open, start, here, character));
                    break;
                }
                match self.step(node, character) {
                    Some(next) => open[index].1 = next,
                    None => lost.push(start),
                }
            }
            if let Some((start, end)) = found {
                cut(start, end);
                skip_to = end;
                open.clear();
            } else if !lost.is_empty() {
                open.retain(|(start, _)| !lost.contains(start));
            }
            if here >= skip_to
                && let Some(node) = self.step(0, character)
            {
                open.push((here, node));
            }
        }
        if let Some(&(start, _)) = open.iter().find(|&&(_, node)| self.ends(node)) {
            cut(start, text.len());
        }
        cut(text.len(), text.len());
        parts
    }

    /// A token that began at `start` is complete at `here`: looks for a longer one, and
    /// for one that began earlier and can still be completed.
    ///
    /// The reference reads on from `here` for the token at `start`, but from the character
    /// after `here` for earlier beginnings, since those have taken `here` in already. It
    /// does the same for earlier beginnings that have just failed at `here`, and so may
    /// find a "token" with one character too many inside. Such a part is no token, and
    /// goes to the model as text.
    fn longer_match(
        &self,
        text: &str,
        open: &[(usize, usize)],
        start: usize,
        here: usize,
        character: char,
    ) -> (usize, usize) {
        let mut found = (start, here);
        for &(begin, mut node) in open {
            // `found.0` may have moved to an earlier beginning, which ends the search.
            if begin > found.0 {
                break;
            }
            let mut at = match begin < found.0 {
                true => here + character.len_utf8(),
                false => here,
            };
            if self.ends(node) {
                found = (begin, at);
            }
            for next in text[at..].chars() {
                let Some(child) = self.step(node, next) else {
                    break;
                };
                node = child;
                at += next.len_utf8();
                if self.ends(node) {
                    found = (begin, at);
                }
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trie(tokens: &[&str]) -> CharTrie {
        let mut trie = CharTrie::default();
        for token in tokens {
            trie.insert(token);
        }
        trie
    }

    #[test]
    fn finds_the_leftmost_longest_token() {
        let ids = trie(&["<1>", "<10>", "<100>", "", "a"]);
        assert_eq!(ids.split("<1><10>b<100"), ["<1>", "<10>", "b<100"]);
        assert_eq!(ids.split("ba<100>a"), ["b", "a", "<100>", "a"]);
        assert_eq!(ids.split(""), Vec::<&str>::new());
        assert_eq!(trie(&[]).split("abc"), ["abc"]);
        assert_eq!(trie(&["blowing", "lower"]).split("blower"), ["b", "lower"]);
        assert_eq!(trie(&["[CLS]", "L"]).split("[CLS]L"), ["[CLS]", "L"]);
    }

    #[test]
    fn keeps_the_corners_of_the_reference() {
        // `b` ends at `c`, while `ab` fails there; `abd` is then read past the `c`.
        assert_eq!(trie(&["b", "abd"]).split("abcd"), ["abcd"]);
        assert_eq!(trie(&["b", "abd"]).split("abce"), ["a", "b", "ce"]);
    }

    fn tokens(tokens: &[AddedToken]) -> AddedTokens {
        let mut added = AddedTokens::default();
        for (token, id) in tokens.iter().zip(0..) {
            added.set(id, token.clone());
        }
        added.build_trie();
        added
    }

    #[test]
    fn strips_beside_tokens() {
        let both = tokens(&[AddedToken::stripping("<x>")]);
        assert_eq!(
            both.split("a \t<x>\u{1f} b <x> <x>"),
            ["a", "<x>", "b", "<x>", "<x>"]
        );
        let none = tokens(&[AddedToken::special("<x>")]);
        assert_eq!(none.split("a <x> b"), ["a ", "<x>", " b"]);
    }

    #[test]
    fn single_words_stay_in_their_text() {
        let mut token = AddedToken::special("cat");
        token.single_word = true;
        let added = tokens(&[token]);
        assert_eq!(added.split("a cat b"), ["a ", "cat", " b"]);
        assert_eq!(added.split("concat b"), ["concat", " b"]);
        assert_eq!(added.split("cats"), ["cats"]);
        assert_eq!(added.split("catcat"), ["catcat"]);
    }
}
