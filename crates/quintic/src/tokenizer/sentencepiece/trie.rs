//! A read-only trie over the bytes of the pieces.

/// Value of a node at which no piece ends.
const NONE: u32 = u32::MAX;

/// Maps byte strings to ids and lists the ones that a text starts with.
///
/// Nodes lie in breadth-first order, so the children of a node are adjacent and sorted by
/// their byte; a node needs only the place of its first child and their number.
#[derive(Clone, Debug, Default)]
pub(crate) struct PieceTrie {
    labels: Vec<u8>,
    first_child: Vec<u32>,
    n_children: Vec<u16>,
    ids: Vec<u32>,
    /// Children of the root by byte, 0 for none (node 0 is the root itself).
    root: Vec<u32>,
}

impl PieceTrie {
    /// Builds the trie. Empty keys are left out; of equal keys the last one counts.
    pub(crate) fn new<'a>(keys: impl IntoIterator<Item = (&'a str, u32)>) -> Self {
        let mut keys: Vec<(&[u8], u32)> = keys
            .into_iter()
            .map(|(key, id)| (key.as_bytes(), id))
            .filter(|(key, _)| !key.is_empty())
            .collect();
        keys.sort_by_key(|&(key, _)| key);
        let mut trie = PieceTrie {
            labels: vec![0],
            first_child: vec![0],
            n_children: vec![0],
            ids: vec![NONE],
            root: vec![0; 256],
        };
        // Per node, in breadth-first order: its depth and the keys below it.
        let mut ranges = vec![(0usize, 0usize, keys.len())];
        let mut node = 0;
        while node < ranges.len() {
            let (depth, mut start, end) = ranges[node];
            while start < end && keys[start].0.len() == depth {
                trie.ids[node] = keys[start].1;
                start += 1;
            }
            trie.first_child[node] = ranges.len() as u32;
            while start < end {
                let byte = keys[start].0[depth];
                let same = keys[start..end].partition_point(|(key, _)| key[depth] == byte);
                if node == 0 {
                    trie.root[usize::from(byte)] = ranges.len() as u32;
                }
                trie.labels.push(byte);
                trie.first_child.push(0);
                trie.n_children.push(0);
                trie.ids.push(NONE);
                trie.n_children[node] += 1;
                ranges.push((depth + 1, start, start + same));
                start += same;
            }
            node += 1;
        }
        trie
    }

    /// Calls `found` with the length and id of every key that `text` starts with, shortest
    /// first.
    pub(crate) fn for_each_prefix(&self, text: &[u8], mut found: impl FnMut(usize, u32)) {
        let Some((&first, rest)) = text.split_first() else {
            return;
        };
        let mut node = match self.root.get(usize::from(first)) {
            Some(&node) if node != 0 => node as usize,
            _ => return,
        };
        let mut len = 1;
        if self.ids[node] != NONE {
            found(len, self.ids[node]);
        }
        for &byte in rest {
            let Some(child) = self.child(node, byte) else {
                return;
            };
            node = child;
            len += 1;
            if self.ids[node] != NONE {
                found(len, self.ids[node]);
            }
        }
    }

    /// Length of the longest key that `text` starts with.
    pub(crate) fn longest_prefix(&self, text: &[u8]) -> Option<usize> {
        let mut longest = None;
        self.for_each_prefix(text, |len, _| longest = Some(len));
        longest
    }

    fn child(&self, node: usize, byte: u8) -> Option<usize> {
        let first = self.first_child[node] as usize;
        let labels = &self.labels[first..first + usize::from(self.n_children[node])];
        let index = if labels.len() <= 8 {
            labels.iter().position(|&label| label == byte)?
        } else {
            labels.binary_search(&byte).ok()?
        };
        Some(first + index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_all_prefixes() {
        let keys = ["a", "ab", "abcd", "b", "", "é"];
        let trie = PieceTrie::new(keys.iter().zip(0..).map(|(&key, id)| (key, id)));
        let prefixes = |text: &str| {
            let mut out = Vec::new();
            trie.for_each_prefix(text.as_bytes(), |len, id| out.push((len, id)));
            out
        };
        assert_eq!(prefixes("abcde"), [(1, 0), (2, 1), (4, 2)]);
        assert_eq!(prefixes("bab"), [(1, 3)]);
        assert_eq!(prefixes("éa"), [(2, 5)]);
        assert_eq!(prefixes("zab"), []);
        assert_eq!(prefixes(""), []);
        assert_eq!(PieceTrie::new([]).longest_prefix(b"a"), None);
        assert_eq!(PieceTrie::default().longest_prefix(b"a"), None);
    }
}
