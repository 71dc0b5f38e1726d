//! Guesses at the tokens that follow, looked up in the source and in what has been generated.
//!
//! A guess costs nothing to make, and a step that scores several tokens costs little more than one
//! that scores one, as long as it is bound by reading weights. So where a text is copied, as in
//! correction, extraction and much of summarisation, a step gives several tokens. None of them is
//! another than without guesses: a guess is kept only if it is what is chosen in its place anyway.
//!
//! Source: Saxena, "Prompt Lookup Decoding", 2023; in transformers `PromptLookupCandidateGenerator`,
//! which looks into what a decoder was fed alone.

/// Where guesses of one request come from.
#[derive(Clone, Debug)]
pub(super) struct Lookup {
    source: Vec<u32>,
    /// Most tokens of a guess.
    longest: usize,
    /// Most tokens that have to agree before what follows them is a guess.
    ngram: usize,
}

/// How one sequence guesses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Guesser {
    /// Tokens of the next guess.
    n: usize,
    /// Where in the source the last guess came from, and how much of it was right.
    place: usize,
}

impl Lookup {
    /// `longest` and `ngram` are at least 1.
    pub(super) fn new(source: &[u32], longest: usize, ngram: usize) -> Self {
        Lookup {
            source: source.to_vec(),
            longest,
            ngram,
        }
    }

    /// How a sequence begins.
    pub(super) fn guesser(&self) -> Guesser {
        Guesser {
            n: self.longest,
            place: 0,
        }
    }
}

impl Guesser {
    /// What may follow `tokens`: at most `room` of them, maybe none.
    pub(super) fn guess(&mut self, lookup: &Lookup, tokens: &[u32], room: usize) -> Vec<u32> {
        let n = self.n.min(room);
        for size in (1..=lookup.ngram.min(tokens.len())).rev() {
            let last = &tokens[tokens.len() - size..];
            let source = &lookup.source;
            // Copies mostly go on where they were.
            let behind = find(source, last, self.place.saturating_sub(size));
            if let Some(end) = behind.or_else(|| find(source, last, 0)) {
                self.place = end;
                return source[end..].iter().copied().take(n).collect();
            }
            // The latest time that it was generated, if not at the end.
            let own = &tokens[..tokens.len() - 1];
            if let Some(at) = own.windows(size).rposition(|there| there == last) {
                return tokens[at + size..].iter().copied().take(n).collect();
            }
        }
        Vec::new()
    }

    /// Hears how much of a guess was right.
    pub(super) fn judge(&mut self, lookup: &Lookup, guessed: usize, right: usize) {
        if guessed == 0 {
            return;
        }
        self.place += right;
        self.n = match right == guessed {
            true => (2 * self.n).min(lookup.longest),
            false => (right + 1).min(lookup.longest),
        };
    }
}

/// Where the first occurrence of `what` from `from` on ends, if something follows it.
fn find(tokens: &[u32], what: &[u32], from: usize) -> Option<usize> {
    let rest = tokens.get(from..tokens.len().saturating_sub(1))?;
    let at = rest.windows(what.len()).position(|there| there == what)?;
    Some(from + at + what.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guesses_go_on_where_the_source_does() {
        let lookup = Lookup::new(&[7, 8, 9, 3, 4, 5, 9, 3, 6, 1], 4, 2);
        let mut guesser = lookup.guesser();
        // Two tokens that agree are better than one.
        assert_eq!(guesser.guess(&lookup, &[0, 4, 5], 9), [9, 3, 6, 1]);
        assert_eq!(guesser.guess(&lookup, &[0, 2, 7], 9), [8, 9, 3, 4]);
        // The pair stands there twice: first the one behind the last guess, whose start was right.
        guesser.judge(&lookup, 4, 2);
        assert_eq!(guesser.guess(&lookup, &[0, 7, 8, 9, 3], 9), [4, 5, 9]);
        guesser.judge(&lookup, 3, 3);
        assert_eq!(guesser.guess(&lookup, &[0, 4, 5, 9, 3], 9), [6, 1]);
        // No more than there is room for.
        assert_eq!(guesser.guess(&lookup, &[0, 4, 5], 1), [9]);
        assert!(guesser.guess(&lookup, &[0, 4, 5], 0).is_empty());
    }

    #[test]
    fn guesses_repeat_what_was_generated() {
        let lookup = Lookup::new(&[1], 3, 3);
        let mut guesser = lookup.guesser();
        assert_eq!(guesser.guess(&lookup, &[0, 5, 6, 7, 5, 6], 9), [7, 5, 6]);
        // The latest time counts.
        assert_eq!(guesser.guess(&lookup, &[5, 6, 5, 8, 9, 5], 9), [8, 9, 5]);
        assert_eq!(guesser.guess(&lookup, &[5, 5], 9), [5]);
        assert!(guesser.guess(&lookup, &[0, 5, 6], 9).is_empty());
        // The source's end is followed by nothing.
        assert!(guesser.guess(&lookup, &[0, 1], 9).is_empty());
    }

    #[test]
    fn wrong_guesses_make_the_next_ones_shorter() {
        let lookup = Lookup::new(&[1, 2, 3, 4, 5, 6, 7, 8, 9], 8, 1);
        let mut guesser = lookup.guesser();
        let mut n = |guessed, right| {
            guesser.judge(&lookup, guessed, right);
            guesser.n
        };
        assert_eq!(n(8, 0), 1);
        assert_eq!(n(0, 0), 1);
        assert_eq!(n(1, 1), 2);
        assert_eq!(n(2, 1), 2);
        assert_eq!(n(2, 2), 4);
        assert_eq!(n(4, 4), 8);
        assert_eq!(n(8, 8), 8);
        assert_eq!(n(8, 7), 8);
    }
}
