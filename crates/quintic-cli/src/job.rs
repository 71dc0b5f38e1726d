//! What one `encode` computes: rows of ids, cut into batches, and how results are laid out.

use std::ops::Range;

use quintic::Result;
use quintic::batch::{Layout, PackedBatch, PadRows, PaddedBatch};
use quintic::config::T5Config;

/// Rows to encode. Batches are packed one at a time, so a job holds ids and masks only.
pub(crate) enum Job {
    /// Rows of real tokens, laid end to end in the result.
    Packed(Vec<Vec<u32>>),
    /// Hugging Face's shape, in and out.
    Padded {
        /// Ids and mask.
        batch: PaddedBatch,
        /// What stands at padding in the result.
        pad_rows: PadRows,
        /// Positions of the result; later ones are cut off.
        length: usize,
    },
}

/// Rows that are computed together.
pub(crate) struct Batch {
    pub(crate) rows: Range<usize>,
    pub(crate) packed: PackedBatch,
    /// Where results go in the padded shape; `None` if they stay packed.
    pub(crate) layout: Option<Layout>,
}

impl Job {
    pub(crate) fn n_rows(&self) -> usize {
        match self {
            Job::Packed(rows) => rows.len(),
            Job::Padded { batch, .. } => batch.rows(),
        }
    }

    /// Positions that row `row` has in a result of one vector a token.
    pub(crate) fn row_length(&self, row: usize) -> usize {
        match self {
            Job::Packed(rows) => rows[row].len(),
            Job::Padded { length, .. } => *length,
        }
    }

    /// Ranges of whole rows of at most `batch_tokens` tokens each, or one row.
    pub(crate) fn ranges(&self, batch_tokens: usize) -> Vec<Range<usize>> {
        let row_tokens = |row: usize| match self {
            Job::Packed(rows) => rows[row].len(),
            Job::Padded { batch, .. } => batch.len(),
        };
        let mut ranges = Vec::new();
        let (mut start, mut tokens) = (0, 0);
        for row in 0..self.n_rows() {
            if row > start && tokens + row_tokens(row) > batch_tokens {
                ranges.push(start..row);
                (start, tokens) = (row, 0);
            }
            tokens += row_tokens(row);
        }
        if start < self.n_rows() {
            ranges.push(start..self.n_rows());
        }
        ranges
    }

    /// Packs one range for a model. `whole_shape` asks for the padded shape in the result.
    pub(crate) fn pack(
        &self,
        rows: Range<usize>,
        config: &T5Config,
        whole_shape: bool,
    ) -> Result<Batch> {
        let vocab_size = config.vocab_size;
        match self {
            Job::Packed(ids) => {
                let packed = PackedBatch::from_rows(&ids[rows.clone()], vocab_size)?;
                Ok(Batch {
                    rows,
                    packed,
                    layout: None,
                })
            }
            Job::Padded {
                batch,
                pad_rows,
                length,
            } => {
                let rows_of_batch = batch.slice(rows.clone());
                // Hidden states are all that is asked for, and they keep every bit.
                let reach = Some(config.bias_reach());
                let (packed, layout) = rows_of_batch.pack_sharing(*pad_rows, vocab_size, reach)?;
                Ok(Batch {
                    rows,
                    packed,
                    layout: whole_shape.then(|| layout.truncated(*length)),
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_hold_whole_rows_up_to_the_budget() {
        let job = Job::Packed([3, 4, 9, 1, 0, 2].map(|len| vec![0; len]).to_vec());
        assert_eq!(job.ranges(7), [0..2, 2..3, 3..6]);
        assert_eq!(job.ranges(1000), std::iter::once(0..6).collect::<Vec<_>>());
        assert_eq!(job.ranges(1), [0..1, 1..2, 2..3, 3..5, 5..6]);
        assert!(Job::Packed(vec![]).ranges(7).is_empty());
    }
}
