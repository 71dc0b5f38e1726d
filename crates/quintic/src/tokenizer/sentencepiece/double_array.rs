//! The read side of a Darts-clone double-array trie, as stored in `precompiled_charsmap`.

use crate::{Error, Result};

/// No rule of a sane charsmap replaces more bytes than this. The limit keeps the time of a
/// look-up bounded for any file.
const MAX_KEY_BYTES: u32 = 256;

/// A trie from byte strings to numbers.
///
/// Each unit is one word: bits 0..8 the label, bit 8 "a value hangs here", bit 9 the scale
/// of the offset, bits 10.. the offset to the children. A value is the low 31 bits of the
/// unit that the empty label leads to.
#[derive(Clone, Debug)]
pub(crate) struct DoubleArray {
    units: Vec<u32>,
}

fn has_value(unit: u32) -> bool {
    unit >> 8 & 1 == 1
}

fn value(unit: u32) -> usize {
    (unit & 0x7fff_ffff) as usize
}

/// Label of a unit. Units that hold a value have bit 31 set, and so match no byte.
fn label(unit: u32) -> u32 {
    unit & 0x8000_00ff
}

fn offset(unit: u32) -> usize {
    ((unit >> 10) as usize) << ((unit & (1 << 9)) >> 6)
}

impl DoubleArray {
    /// Checks a stored trie and takes it over.
    ///
    /// # Errors
    ///
    /// A size that is no whole number of units, a unit that points outside the array, a
    /// path that returns to itself or is longer than any rule can be. What has passed
    /// here can be searched without further checks failing.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self> {
        if bytes.is_empty() || !bytes.len().is_multiple_of(4) {
            return Err(Error::tokenizer(format!(
                "trie has {} bytes, expected a positive multiple of 4",
                bytes.len()
            )));
        }
        let units = bytes
            .chunks_exact(4)
            .map(|unit| u32::from_le_bytes([unit[0], unit[1], unit[2], unit[3]]))
            .collect();
        let trie = DoubleArray { units };
        trie.check()?;
        Ok(trie)
    }

    /// Length and value of the longest key that `text` starts with.
    pub(crate) fn longest_prefix(&self, text: &[u8]) -> Option<(usize, usize)> {
        let mut best = None;
        let mut node = offset(*self.units.first()?);
        for (index, &byte) in text.iter().take(MAX_KEY_BYTES as usize).enumerate() {
            let position = node ^ usize::from(byte);
            let Some(&unit) = self.units.get(position) else {
                break;
            };
            if label(unit) != u32::from(byte) {
                break;
            }
            node = position ^ offset(unit);
            if has_value(unit)
                && let Some(&leaf) = self.units.get(node)
            {
                best = Some((index + 1, value(leaf)));
            }
        }
        best
    }

    /// Every value that some key leads to; at most one for each unit.
    pub(crate) fn values(&self) -> impl Iterator<Item = usize> + '_ {
        let mut reached = self.reachable();
        reached.sort_unstable();
        reached.dedup();
        reached.into_iter().filter_map(|position| {
            let unit = self.units[position];
            if position == 0 || !has_value(unit) {
                return None;
            }
            self.units
                .get(position ^ offset(unit))
                .map(|&leaf| value(leaf))
        })
    }

    /// Positions of all units on some path from the root, the root first. A unit on
    /// several paths (the builder shares equal tails) is listed once.
    fn reachable(&self) -> Vec<usize> {
        let children = self.children();
        let mut seen = vec![false; self.units.len()];
        let mut order = vec![0];
        seen[0] = true;
        let mut next = 0;
        while next < order.len() {
            let position = order[next];
            next += 1;
            for &child in children.of(self.base(position)) {
                if !seen[child as usize] {
                    seen[child as usize] = true;
                    order.push(child as usize);
                }
            }
        }
        order
    }

    fn base(&self, position: usize) -> usize {
        // The root's own label takes no part in its address.
        position ^ offset(self.units[position])
    }

    /// Groups units by the base address that their label leads back to.
    fn children(&self) -> Children {
        let len = self.units.len();
        let parent = |position: usize| {
            let label = label(self.units[position]);
            let base = position ^ label as usize;
            // Label 0 is the empty label, which leads to values and is no byte of a key;
            // a base past the end belongs to no unit that could be asked for.
            (label < 256 && label != 0 && position != 0 && base < len + 256).then_some(base)
        };
        let mut starts = vec![0u32; len + 257];
        for position in 0..len {
            if let Some(base) = parent(position) {
                starts[base + 1] += 1;
            }
        }
        for index in 1..starts.len() {
            starts[index] += starts[index - 1];
        }
        let mut items = vec![0u32; starts[len + 256] as usize];
        let mut filled = starts.clone();
        for position in 0..len {
            if let Some(base) = parent(position) {
                items[filled[base] as usize] = position as u32;
                filled[base] += 1;
            }
        }
        Children { starts, items }
    }

    /// Walks the whole trie depth first.
    fn check(&self) -> Result<()> {
        const NEW: u32 = 0;
        const OPEN: u32 = u32::MAX;
        let children = self.children();
        // 0: not seen; MAX: on the current path; otherwise height of the subtree + 1.
        let mut state = vec![NEW; self.units.len()];
        let mut stack = vec![(0usize, 0usize)];
        state[0] = OPEN;
        self.check_unit(0)?;
        while let Some((position, done)) = stack.last_mut() {
            let position = *position;
            let list = children.of(self.base(position));
            if let Some(&child) = list.get(*done) {
                *done += 1;
                let child = child as usize;
                match state[child] {
                    NEW => {
                        self.check_unit(child)?;
                        state[child] = OPEN;
                        stack.push((child, 0));
                        if stack.len() > MAX_KEY_BYTES as usize + 1 {
                            return Err(too_long());
                        }
                    }
                    OPEN => {
                        return Err(Error::tokenizer(format!(
                            "trie is damaged: a path returns to unit {child}"
                        )));
                    }
                    _ => {}
                }
            } else {
                let height = list
                    .iter()
                    .map(|&child| state[child as usize])
                    .max()
                    .unwrap_or(0);
                if height > MAX_KEY_BYTES {
                    return Err(too_long());
                }
                state[position] = height + 1;
                stack.pop();
            }
        }
        Ok(())
    }

    fn check_unit(&self, position: usize) -> Result<()> {
        // Children and value lie in one block of 256 units: the base with its low byte
        // changed.
        let last = self.base(position) | 0xff;
        if last >= self.units.len() {
            return Err(Error::tokenizer(format!(
                "trie is damaged: unit {position} points to unit {last} of {}",
                self.units.len()
            )));
        }
        Ok(())
    }
}

fn too_long() -> Error {
    Error::tokenizer(format!(
        "trie is damaged: it has a key of more than {MAX_KEY_BYTES} bytes"
    ))
}

struct Children {
    starts: Vec<u32>,
    items: Vec<u32>,
}

impl Children {
    fn of(&self, base: usize) -> &[u32] {
        match (self.starts.get(base), self.starts.get(base + 1)) {
            (Some(&start), Some(&end)) => &self.items[start as usize..end as usize],
            _ => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(offset: u32, label: u32, has_value: bool) -> u32 {
        offset << 10 | u32::from(has_value) << 8 | label
    }

    fn bytes(units: &[u32]) -> Vec<u8> {
        units.iter().flat_map(|unit| unit.to_le_bytes()).collect()
    }

    /// A trie with the one key `a` and the value 5: the root's children lie around 256.
    fn one_key() -> Vec<u32> {
        let mut units = vec![0u32; 512];
        units[0] = unit(256, 0, false);
        let a = 256 ^ 0x61;
        units[a] = unit((a ^ 300) as u32, 0x61, true);
        units[300] = 5 | 1 << 31;
        units
    }

    #[test]
    fn finds_the_longest_key() {
        let trie = DoubleArray::from_bytes(&bytes(&one_key())).unwrap();
        assert_eq!(trie.longest_prefix(b"ab"), Some((1, 5)));
        assert_eq!(trie.longest_prefix(b"b"), None);
        assert_eq!(trie.longest_prefix(b""), None);
        assert_eq!(trie.values().collect::<Vec<_>>(), [5]);
    }

    #[test]
    fn refuses_a_value_outside_the_array() {
        let mut units = one_key();
        let a = 256 ^ 0x61;
        units[a] = unit(1 << 20, 0x61, true);
        let error = DoubleArray::from_bytes(&bytes(&units)).unwrap_err();
        assert!(error.message().contains("points to unit"), "{error}");
    }

    #[test]
    fn refuses_a_cycle() {
        let mut units = one_key();
        let a = 256 ^ 0x61usize;
        // The unit's children are its own siblings, itself among them.
        units[a] = unit(0x61, 0x61, false);
        let error = DoubleArray::from_bytes(&bytes(&units)).unwrap_err();
        assert!(error.message().contains("returns to unit"), "{error}");
    }

    #[test]
    fn refuses_a_broken_size() {
        for len in [0, 3, 7] {
            let error = DoubleArray::from_bytes(&vec![0; len]).unwrap_err();
            assert!(error.message().contains("multiple of 4"), "{error}");
        }
    }
}
