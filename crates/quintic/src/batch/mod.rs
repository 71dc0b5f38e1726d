//! Batches without padding, and the padded tensors that exist at the edge only.
//!
//! Inside the engine a batch is a [`PackedBatch`]: rows of different length laid end to
//! end. A [`PaddedBatch`] is what Hugging Face programs hold: `[rows, len]` ids with some
//! mask. [`PaddedBatch::pack`] turns one into the other and returns the [`Layout`] that
//! puts results back where the caller expects them. Nothing below this module knows about
//! padding.

mod padded;
mod plan;

use crate::{Error, Result};

pub use padded::{Layout, PadRows, PaddedBatch, PaddedMask};
pub use plan::plan;

/// Which keys a query may attend to, within its own row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mask {
    /// All of them.
    Full,
    /// Those whose flag is set, one flag a token of the batch: `[tokens]`.
    Keys(Vec<bool>),
    /// An arbitrary relation: for each row of length `n`, `[n, n]` flags (query, key),
    /// the rows' squares laid end to end.
    Pairs(Vec<bool>),
}

/// Token rows laid end to end: row `r` owns tokens `row_starts[r]..row_starts[r + 1]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedBatch {
    ids: Vec<u32>,
    row_starts: Vec<usize>,
    /// Position of each token in its row, where rows have gaps; `None` if every row counts
    /// up by one. Only differences within a row matter.
    positions: Option<Vec<u32>>,
    mask: Mask,
}

impl PackedBatch {
    /// A batch of whole rows without a mask. Rows may be empty.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Input`](crate::ErrorKind::Input) if an id is not below `vocab_size`.
    pub fn from_rows<R: AsRef<[u32]>>(rows: &[R], vocab_size: usize) -> Result<Self> {
        let n_tokens = rows.iter().map(|row| row.as_ref().len()).sum();
        let mut ids = Vec::with_capacity(n_tokens);
        let mut row_starts = Vec::with_capacity(rows.len() + 1);
        row_starts.push(0);
        check_rows(rows, vocab_size)?;
        for row in rows {
            ids.extend_from_slice(row.as_ref());
            row_starts.push(ids.len());
        }
        Ok(PackedBatch {
            ids,
            row_starts,
            positions: None,
            mask: Mask::Full,
        })
    }

    /// The same rows without the empty ones, and behind them one more of id 0 that fills it up to
    /// `tokens`; `None` for a batch with [`Mask::Pairs`], which is not worth it.
    pub(crate) fn filled_up(&self, tokens: usize) -> Option<Self> {
        let n_more = tokens - self.n_tokens();
        let fill = |mut values: Vec<u32>| {
            values.resize(tokens, 0);
            values
        };
        let mask = match &self.mask {
            Mask::Full => Mask::Full,
            Mask::Keys(flags) => {
                let mut flags = flags.clone();
                flags.resize(tokens, true);
                Mask::Keys(flags)
            }
            Mask::Pairs(_) => return None,
        };
        let mut row_starts = self.row_starts.clone();
        row_starts.dedup();
        if n_more > 0 {
            row_starts.push(tokens);
        }
        Some(PackedBatch {
            ids: fill(self.ids.clone()),
            row_starts,
            positions: self.positions.clone().map(fill),
            mask,
        })
    }

    /// Token ids, `[tokens]`.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Where rows begin, `[rows + 1]`; the last entry is the number of tokens.
    pub fn row_starts(&self) -> &[usize] {
        &self.row_starts
    }

    /// Positions within the row, `[tokens]`, if some row has gaps.
    pub fn positions(&self) -> Option<&[u32]> {
        self.positions.as_deref()
    }

    /// Which keys are visible.
    pub fn mask(&self) -> &Mask {
        &self.mask
    }

    /// Number of rows.
    pub fn n_rows(&self) -> usize {
        self.row_starts.len() - 1
    }

    /// Number of tokens of all rows.
    pub fn n_tokens(&self) -> usize {
        self.ids.len()
    }

    /// The largest distance between two positions of one row, plus one.
    pub fn max_span(&self) -> usize {
        self.row_starts
            .windows(2)
            .map(|bounds| match &self.positions {
                None => bounds[1] - bounds[0],
                Some(positions) => {
                    let row = &positions[bounds[0]..bounds[1]];
                    match (row.first(), row.last()) {
                        (Some(first), Some(last)) => (last - first) as usize + 1,
                        _ => 0,
                    }
                }
            })
            .max()
            .unwrap_or(0)
    }
}

/// Refuses the first id of `rows` that is not below `vocab_size`, as
/// [`PackedBatch::from_rows`] does.
pub(crate) fn check_rows<R: AsRef<[u32]>>(rows: &[R], vocab_size: usize) -> Result<()> {
    for (row_idx, row) in rows.iter().enumerate() {
        for (column, &id) in row.as_ref().iter().enumerate() {
            check_id(i64::from(id), vocab_size, row_idx, column)?;
        }
    }
    Ok(())
}

fn check_id(id: i64, vocab_size: usize, row: usize, column: usize) -> Result<u32> {
    match u32::try_from(id) {
        Ok(valid) if (valid as usize) < vocab_size => Ok(valid),
        _ => Err(Error::input(match vocab_size.checked_sub(1) {
            Some(last) => {
                format!("token id {id} is outside the vocabulary, expected 0 to {last}")
            }
            None => format!("token id {id} is outside the vocabulary, which has no ids"),
        })
        .at(format!("row {row}, token {column}"))),
    }
}

#[cfg(test)]
mod tests;
