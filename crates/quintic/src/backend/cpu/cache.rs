//! Keys and values that stay from one decoder step to the next.

use quintic_kernels::{KeysValues, Operand};

use crate::backend::check_shorter;

/// Keys and values of one attention layer, row by row, in the type that attention reads: f32.
///
/// A row's tokens stand in a slot; all slots have room for the same number of tokens, and grow
/// together. Rows that are copies of each other share a slot until one of them is appended to:
/// so the keys of a source stand in memory once, whatever the number of beams, and a beam that
/// goes on as it was is not copied. Rows of a slot may be of different lengths, since some may have
/// been truncated: a slot holds the tokens of its longest row, which begin with those of the others.
#[derive(Debug)]
pub struct KvCache {
    inner_dim: usize,
    /// Tokens that a slot has room for.
    capacity: usize,
    n_slots: usize,
    /// Each row's slot; an empty row has none.
    slots: Vec<Option<usize>>,
    /// Where rows begin and end in `kv`.
    starts: Vec<usize>,
    ends: Vec<usize>,
    /// `[n_slots * capacity, 2 * inner_dim]`: keys, then values.
    kv: Operand,
}

/// Slots have room for a multiple of so many tokens.
const BLOCK: usize = 32;

impl KvCache {
    /// `kv` is an empty operand of the type that keys and values have.
    pub(super) fn new(rows: usize, inner_dim: usize, kv: Operand) -> Self {
        KvCache {
            inner_dim,
            capacity: 0,
            n_slots: 0,
            slots: vec![None; rows],
            starts: vec![0; rows],
            ends: vec![0; rows],
            kv,
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

    /// Bytes of memory that it holds.
    pub fn n_bytes(&self) -> usize {
        self.n_slots * self.capacity * 2 * self.inner_dim * size_of::<f32>()
    }

    pub(super) fn arrange(&mut self, rows: &[Option<usize>]) {
        fn pick<T: Copy>(from: &[T], rows: &[Option<usize>], empty: T) -> Vec<T> {
            let picked = rows.iter().map(|row| row.map_or(empty, |row| from[row]));
            picked.collect()
        }
        self.slots = pick(&self.slots, rows, None);
        self.starts = pick(&self.starts, rows, 0);
        self.ends = pick(&self.ends, rows, 0);
    }

    pub(super) fn truncate(&mut self, lengths: &[usize]) {
        assert_eq!(lengths.len(), self.slots.len(), "rows of the cache");
        for (row, &length) in lengths.iter().enumerate() {
            check_shorter(row, self.len(row), length);
            self.ends[row] = self.starts[row] + length;
        }
    }

    pub(super) fn append(
        &mut self,
        kv: &Operand,
        first_column: usize,
        row_starts: &[usize],
        new: impl Fn(usize, usize) -> Operand,
    ) {
        assert_eq!(row_starts.len(), self.slots.len() + 1, "rows of the cache");
        let added = |row: usize| row_starts[row + 1] - row_starts[row];
        self.make_room(added, new);
        let columns = 2 * self.inner_dim;
        for row in 0..self.slots.len() {
            for token in row_starts[row]..row_starts[row + 1] {
                let to = self.ends[row];
                self.kv
                    .copy_columns(to, 0, kv, token, first_column, columns);
                self.ends[row] += 1;
            }
        }
    }

    /// Gives every row that is to grow a slot of its own, with room for what is added.
    fn make_room(&mut self, added: impl Fn(usize) -> usize, new: impl Fn(usize, usize) -> Operand) {
        let rows = 0..self.slots.len();
        let longest = rows.clone().map(|row| self.len(row) + added(row)).max();
        let longest = longest.unwrap_or(0);
        let mut users = vec![0usize; self.n_slots];
        for slot in self.slots.iter().flatten() {
            users[*slot] += 1;
        }
        // The last row that asks for a shared slot keeps it.
        let mut moving = Vec::new();
        for row in rows.filter(|&row| added(row) > 0) {
            match self.slots[row] {
                Some(slot) if users[slot] == 1 => {}
                Some(slot) => {
                    users[slot] -= 1;
                    moving.push(row);
                }
                None => moving.push(row),
            }
        }
        let used = users.iter().filter(|&&n| n > 0).count();
        if longest > self.capacity || used + moving.len() > self.n_slots {
            users = self.grow(longest, used + moving.len(), new);
        }
        let free: Vec<usize> = (0..self.n_slots).filter(|&slot| users[slot] == 0).collect();
        for (row, slot) in moving.into_iter().zip(free) {
            let (from, n) = (self.starts[row], self.len(row));
            self.copy_within(from, slot * self.capacity, n);
            self.place(row, slot, n);
        }
    }

    /// Makes room for `n_slots` slots of at least `longest` tokens. Returns how many rows use each.
    fn grow(
        &mut self,
        longest: usize,
        n_slots: usize,
        new: impl Fn(usize, usize) -> Operand,
    ) -> Vec<usize> {
        let capacity = match longest > self.capacity {
            true => longest
                .max(self.capacity + self.capacity / 2)
                .next_multiple_of(BLOCK),
            false => self.capacity,
        };
        let n_slots = n_slots.max(self.n_slots);
        let columns = 2 * self.inner_dim;
        let mut grown = new(n_slots * capacity, columns);
        let mut filled = vec![0; self.n_slots];
        for row in 0..self.slots.len() {
            if let Some(slot) = self.slots[row] {
                filled[slot] = self.len(row).max(filled[slot]);
            }
        }
        let mut moved = vec![None; self.n_slots];
        let mut users = vec![0; n_slots];
        let mut n_moved = 0;
        for row in 0..self.slots.len() {
            let Some(old) = self.slots[row] else { continue };
            let n = self.len(row);
            let slot = *moved[old].get_or_insert_with(|| {
                let slot = n_moved;
                n_moved += 1;
                for token in 0..filled[old] {
                    let (to, from) = (slot * capacity + token, self.starts[row] + token);
                    grown.copy_columns(to, 0, &self.kv, from, 0, columns);
                }
                slot
            });
            users[slot] += 1;
            self.slots[row] = Some(slot);
            self.starts[row] = slot * capacity;
            self.ends[row] = slot * capacity + n;
        }
        self.kv = grown;
        self.capacity = capacity;
        self.n_slots = n_slots;
        users
    }

    fn copy_within(&mut self, from: usize, to: usize, n: usize) {
        let columns = 2 * self.inner_dim;
        self.kv.copy_rows_within(from, to, n, columns);
    }

    fn place(&mut self, row: usize, slot: usize, n: usize) {
        self.slots[row] = Some(slot);
        self.starts[row] = slot * self.capacity;
        self.ends[row] = slot * self.capacity + n;
    }

    pub(super) fn keys_values(&self) -> KeysValues<'_> {
        KeysValues {
            keys: &self.kv,
            key_column: 0,
            values: &self.kv,
            value_column: self.inner_dim,
            starts: &self.starts,
            ends: &self.ends,
        }
    }
}
