//! Keys and values that stay from one decoder step to the next.

use quintic_kernels::{KeysValues, Operand};

/// Keys and values of one attention layer, row by row, in the type that attention reads.
///
/// Every row has room for the same number of tokens; when one is full, all get twice as much.
#[derive(Debug)]
pub struct KvCache {
    inner_dim: usize,
    capacity: usize,
    /// Where rows begin and end.
    starts: Vec<usize>,
    ends: Vec<usize>,
    /// `[rows * capacity, 2 * inner_dim]`: keys, then values. `None` while empty.
    kv: Option<Operand>,
}

/// Tokens that a row has room for at first.
const FIRST_CAPACITY: usize = 32;

impl KvCache {
    pub(super) fn new(rows: usize, inner_dim: usize) -> Self {
        KvCache {
            inner_dim,
            capacity: 0,
            starts: vec![0; rows],
            ends: vec![0; rows],
            kv: None,
        }
    }

    /// Tokens cached for a row.
    pub fn len(&self, row: usize) -> usize {
        self.ends[row] - self.starts[row]
    }

    /// Whether no row has a token.
    pub fn is_empty(&self) -> bool {
        self.starts == self.ends
    }

    pub(super) fn append(
        &mut self,
        kv: &Operand,
        first_column: usize,
        row_starts: &[usize],
        new: impl Fn(usize, usize) -> Operand,
    ) {
        assert_eq!(row_starts.len(), self.starts.len() + 1, "rows of the cache");
        let longest = row_starts
            .windows(2)
            .enumerate()
            .map(|(row, bounds)| self.len(row) + bounds[1] - bounds[0])
            .max()
            .unwrap_or(0);
        self.reserve(longest, new);
        let Some(own) = &mut self.kv else { return };
        for (row, bounds) in row_starts.windows(2).enumerate() {
            for token in bounds[0]..bounds[1] {
                let to = self.ends[row];
                own.copy_columns(to, 0, kv, token, first_column, 2 * self.inner_dim);
                self.ends[row] += 1;
            }
        }
    }

    fn reserve(&mut self, longest: usize, new: impl Fn(usize, usize) -> Operand) {
        if longest <= self.capacity {
            return;
        }
        let capacity = longest.max(2 * self.capacity).max(FIRST_CAPACITY);
        let mut grown = new(self.starts.len() * capacity, 2 * self.inner_dim);
        for row in 0..self.starts.len() {
            let (from, n) = (self.starts[row], self.len(row));
            if let Some(old) = &self.kv {
                for token in 0..n {
                    let to = row * capacity + token;
                    grown.copy_columns(to, 0, old, from + token, 0, 2 * self.inner_dim);
                }
            }
            self.starts[row] = row * capacity;
            self.ends[row] = row * capacity + n;
        }
        (self.kv, self.capacity) = (Some(grown), capacity);
    }

    /// # Panics
    ///
    /// If nothing was ever appended: there is no type yet to attend in.
    pub(super) fn keys_values(&self) -> KeysValues<'_> {
        let Some(kv) = &self.kv else {
            panic!("attention to a cache that nothing was appended to")
        };
        KeysValues {
            keys: kv,
            key_column: 0,
            values: kv,
            value_column: self.inner_dim,
            starts: &self.starts,
            ends: &self.ends,
        }
    }
}
