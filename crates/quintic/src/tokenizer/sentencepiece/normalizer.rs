//! Rewrites text before it is cut into pieces: charsmap, white space, dummy prefix.

use super::double_array::DoubleArray;
use super::proto::NormalizerSpec;
use super::trie::PieceTrie;
use crate::{Error, Result};

/// Stands for a space inside pieces: U+2581.
pub(crate) const SPACE_SYMBOL: &str = "\u{2581}";

/// The rewriting rules of a `precompiled_charsmap`: byte strings to replacements.
#[derive(Clone, Debug)]
struct Charsmap {
    trie: DoubleArray,
    /// Replacements, each ended by a zero byte; the trie's values are offsets into it.
    replacements: Vec<u8>,
}

/// SentencePiece's normalizer.
///
/// At each position the longest of these wins, in this order: a user-defined piece (kept
/// as it is), the longest rule of the charsmap, one character as it is. Then runs of
/// spaces shrink to one and outer spaces go (`remove_extra_whitespaces`), spaces become
/// U+2581 (`escape_whitespaces`), and one is put in front, or behind for models that
/// treat white space as a suffix (`add_dummy_prefix`).
#[derive(Clone, Debug)]
pub(crate) struct Normalizer {
    charsmap: Option<Charsmap>,
    user_defined: Option<PieceTrie>,
    pub(crate) add_dummy_prefix: bool,
    pub(crate) remove_extra_whitespaces: bool,
    escape_whitespaces: bool,
    whitespace_as_suffix: bool,
}

/// Checks a `precompiled_charsmap` without keeping it. Returns the length of its longest
/// replacement in bytes.
pub(crate) fn check_charsmap(blob: &[u8]) -> Result<usize> {
    let map = Charsmap::from_bytes(blob)?;
    let replacements = map.replacements.split(|&byte| byte == 0);
    Ok(replacements.map(<[u8]>::len).max().unwrap_or(0))
}

impl Charsmap {
    /// Reads `u32 trie_bytes`, the trie, the replacements.
    fn from_bytes(blob: &[u8]) -> Result<Self> {
        let Some((len, rest)) = blob.split_first_chunk::<4>() else {
            return Err(Error::tokenizer(format!(
                "charsmap has {} bytes, expected at least 4",
                blob.len()
            )));
        };
        let len = u32::from_le_bytes(*len) as usize;
        let Some((trie, replacements)) = rest.split_at_checked(len) else {
            return Err(Error::tokenizer(format!(
                "charsmap says its trie has {len} bytes, but {} are left",
                rest.len()
            )));
        };
        let trie = DoubleArray::from_bytes(trie).map_err(|error| error.at("charsmap"))?;
        if std::str::from_utf8(replacements).is_err() {
            return Err(Error::tokenizer(
                "charsmap has replacements that are not UTF-8",
            ));
        }
        let ends = replacements.iter().rposition(|&byte| byte == 0);
        for value in trie.values() {
            let starts_well = value == 0
                || replacements
                    .get(value)
                    .is_some_and(|&byte| !(0x80..0xc0).contains(&byte));
            if !starts_well || ends.is_none_or(|end| value > end) {
                return Err(Error::tokenizer(format!(
                    "charsmap points to replacement {value}, but the replacements have {} bytes",
                    replacements.len()
                )));
            }
        }
        Ok(Charsmap {
            trie,
            replacements: replacements.to_vec(),
        })
    }

    /// How many bytes the longest rule takes from the start of `text`, and what for.
    fn longest_rule(&self, text: &[u8]) -> Option<(usize, &[u8])> {
        let (len, value) = self.trie.longest_prefix(text)?;
        let tail = self.replacements.get(value..)?;
        let end = tail.iter().position(|&byte| byte == 0)?;
        Some((len, &tail[..end]))
    }
}

impl Normalizer {
    pub(crate) fn new(
        spec: &NormalizerSpec,
        user_defined: Option<PieceTrie>,
        whitespace_as_suffix: bool,
    ) -> Result<Self> {
        let charsmap = match spec.precompiled_charsmap.as_slice() {
            [] => None,
            blob => Some(Charsmap::from_bytes(blob)?),
        };
        Ok(Normalizer {
            charsmap,
            user_defined,
            add_dummy_prefix: spec.add_dummy_prefix,
            remove_extra_whitespaces: spec.remove_extra_whitespaces,
            escape_whitespaces: spec.escape_whitespaces,
            whitespace_as_suffix,
        })
    }

    /// True if text is rewritten by a charsmap.
    pub(crate) fn has_charsmap(&self) -> bool {
        self.charsmap.is_some()
    }

    /// The normalized form of `text`; empty if nothing but removable spaces is there.
    pub(crate) fn normalize(&self, text: &str) -> String {
        let mut rest = text.as_bytes();
        if self.remove_extra_whitespaces {
            while !rest.is_empty() {
                let (len, replacement) = self.step(rest);
                if replacement != b" " {
                    break;
                }
                rest = &rest[len..];
            }
        }
        if rest.is_empty() {
            return String::new();
        }
        let space = if self.escape_whitespaces {
            SPACE_SYMBOL
        } else {
            " "
        }
        .as_bytes();
        let mut out = Vec::with_capacity(rest.len() + rest.len() / 2 + 3);
        if self.add_dummy_prefix && !self.whitespace_as_suffix {
            out.extend_from_slice(space);
        }
        let mut after_space = self.remove_extra_whitespaces;
        while !rest.is_empty() {
            let (len, mut replacement) = self.step(rest);
            if after_space {
                while let Some(shorter) = replacement.strip_prefix(b" ") {
                    replacement = shorter;
                }
            }
            if !replacement.is_empty() {
                for &byte in replacement {
                    if byte == b' ' {
                        out.extend_from_slice(space);
                    } else {
                        out.push(byte);
                    }
                }
                after_space = self.remove_extra_whitespaces && replacement.ends_with(b" ");
            }
            rest = &rest[len..];
        }
        if self.remove_extra_whitespaces {
            while out.ends_with(space) {
                out.truncate(out.len() - space.len());
            }
        }
        if self.add_dummy_prefix && self.whitespace_as_suffix {
            out.extend_from_slice(space);
        }
        // Every step gave whole characters, so this copies nothing and loses nothing.
        String::from_utf8(out)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
    }

    /// How many bytes are taken from `rest` (which is not empty), and what replaces them.
    fn step<'t>(&'t self, rest: &'t [u8]) -> (usize, &'t [u8]) {
        if let Some(len) = self
            .user_defined
            .as_ref()
            .and_then(|trie| trie.longest_prefix(rest))
        {
            return (len, &rest[..len]);
        }
        if let Some(found) = self
            .charsmap
            .as_ref()
            .and_then(|map| map.longest_rule(rest))
        {
            return found;
        }
        let len = char_len(rest[0]);
        match rest.get(..len).map(std::str::from_utf8) {
            Some(Ok(_)) => (len, &rest[..len]),
            // Only a rule that ends inside a character can lead here.
            _ => (1, "\u{fffd}".as_bytes()),
        }
    }
}

/// Length of the character that starts with `byte`.
pub(crate) fn char_len(byte: u8) -> usize {
    match byte {
        0..=0xbf => 1,
        0xc0..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xff => 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(change: impl FnOnce(&mut NormalizerSpec)) -> Normalizer {
        let mut spec = NormalizerSpec::default();
        change(&mut spec);
        Normalizer::new(&spec, None, false).unwrap()
    }

    #[test]
    fn spaces_shrink_and_are_escaped() {
        let normalizer = identity(|_| {});
        assert_eq!(normalizer.normalize("  a  b "), "▁a▁b");
        assert_eq!(normalizer.normalize("   "), "");
        assert_eq!(normalizer.normalize(""), "");
        assert_eq!(normalizer.normalize("▁ a▁"), "▁▁▁a");
    }

    #[test]
    fn spaces_are_kept_when_the_model_says_so() {
        let normalizer = identity(|spec| spec.remove_extra_whitespaces = false);
        assert_eq!(normalizer.normalize("  a "), "▁▁▁a▁");
        assert_eq!(normalizer.normalize(" "), "▁▁");
        let normalizer = identity(|spec| spec.add_dummy_prefix = false);
        assert_eq!(normalizer.normalize(" a b"), "a▁b");
        let normalizer = identity(|spec| spec.escape_whitespaces = false);
        assert_eq!(normalizer.normalize("a  b"), " a b");
    }

    #[test]
    fn whitespace_as_suffix_moves_the_dummy() {
        let spec = NormalizerSpec::default();
        let normalizer = Normalizer::new(&spec, None, true).unwrap();
        assert_eq!(normalizer.normalize(" a b "), "a▁b▁");
    }

    #[test]
    fn user_defined_pieces_are_matched_first() {
        let trie = PieceTrie::new([("<x  y>", 0), ("  ", 1)]);
        let spec = NormalizerSpec::default();
        let normalizer = Normalizer::new(&spec, Some(trie), false).unwrap();
        assert_eq!(normalizer.normalize("a <x  y>"), "▁a▁<x▁▁y>");
    }
}
