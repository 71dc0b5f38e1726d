//! `[rows, len]` tensors of ids and masks, turned into packed rows and back.

use super::{Mask, PackedBatch, check_id};
use crate::{Error, Result};

/// What a padded batch says about which tokens see which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PaddedMask {
    /// Every token is real: what FLUX and SD3 pass.
    None,
    /// `[rows, len]`: keys with flag 0 are invisible to the whole row.
    Keys(Vec<bool>),
    /// `[rows, len, len]` (query, key): any relation, for instance packed documents.
    Pairs(Vec<bool>),
    /// `[rows, len]` document numbers: a token sees the tokens of its own document.
    /// Positions count through the row, so that this equals the [`PaddedMask::Pairs`] mask of
    /// equal documents. Tokens of a negative document are padding.
    Documents(Vec<i64>),
}

/// What becomes of positions that are padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum PadRows {
    /// Not computed; zeros in the result. Costs nothing.
    #[default]
    Zero,
    /// Computed as Hugging Face does: padding asks (as a query), nobody asks it (as a key).
    /// Some pipelines hand these values to their image model.
    Compute,
}

/// Ids and mask of Hugging Face's shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PaddedBatch {
    ids: Vec<i64>,
    rows: usize,
    len: usize,
    mask: PaddedMask,
    /// Number of the first row in the batch that this one was cut from, for messages.
    first_row: usize,
}

/// Where the tokens of a packed batch lie in the padded result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    rows: usize,
    len: usize,
    /// Slot `row * len + column` of each packed token, [`Layout::DROPPED`] for results that
    /// are computed because others depend on them but reported as zeros.
    slots: Vec<usize>,
}

impl PaddedBatch {
    /// A batch of `rows * len` ids, row-major, with its mask.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Input`](crate::ErrorKind::Input) if a length does not fit, or if there is
    /// no token at all.
    pub fn new(ids: Vec<i64>, rows: usize, len: usize, mask: PaddedMask) -> Result<Self> {
        if rows == 0 || len == 0 {
            return Err(Error::input(format!(
                "`input_ids` has shape [{rows}, {len}], expected at least one row of one token"
            )));
        }
        let slots = rows.checked_mul(len);
        let squares = slots.and_then(|slots| slots.checked_mul(len));
        let check = |what: &str, found: usize, shape: &str, expected: Option<usize>| {
            if Some(found) == expected {
                Ok(())
            } else {
                Err(Error::input(format!(
                    "{what} has {found} elements, expected {shape} with rows = {rows}, len = {len}"
                )))
            }
        };
        check("`input_ids`", ids.len(), "[rows, len]", slots)?;
        match &mask {
            PaddedMask::None => {}
            PaddedMask::Keys(keys) => {
                check("`attention_mask`", keys.len(), "[rows, len]", slots)?;
            }
            PaddedMask::Pairs(pairs) => {
                check("`attention_mask`", pairs.len(), "[rows, len, len]", squares)?;
            }
            PaddedMask::Documents(documents) => {
                check("`document_ids`", documents.len(), "[rows, len]", slots)?;
            }
        }
        Ok(PaddedBatch {
            ids,
            rows,
            len,
            mask,
            first_row: 0,
        })
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Padded length of every row.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: an empty batch is refused when it is made.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// All ids, `[rows, len]`.
    pub fn ids(&self) -> &[i64] {
        &self.ids
    }

    /// The mask.
    pub fn mask(&self) -> &PaddedMask {
        &self.mask
    }

    /// Ids of row `row_idx` that a key mask calls real; all of them under other masks. Ids that
    /// are no token ids are left out.
    ///
    /// # Panics
    ///
    /// If there is no such row.
    pub fn real_ids(&self, row_idx: usize) -> Vec<u32> {
        let slots = row_idx * self.len..(row_idx + 1) * self.len;
        let real = |slot: usize| match &self.mask {
            PaddedMask::Keys(keys) => keys[slot],
            _ => true,
        };
        slots
            .filter(|&slot| real(slot))
            .filter_map(|slot| u32::try_from(self.ids[slot]).ok())
            .collect()
    }

    /// A batch of rows `range` alone. Errors go on naming rows by their number in `self`.
    ///
    /// # Panics
    ///
    /// If the range is not inside the batch.
    pub fn slice(&self, range: std::ops::Range<usize>) -> PaddedBatch {
        let slots = range.start * self.len..range.end * self.len;
        let squares = slots.start * self.len..slots.end * self.len;
        PaddedBatch {
            ids: self.ids[slots.clone()].to_vec(),
            first_row: self.first_row + range.start,
            rows: range.len(),
            len: self.len,
            mask: match &self.mask {
                PaddedMask::None => PaddedMask::None,
                PaddedMask::Keys(keys) => PaddedMask::Keys(keys[slots].to_vec()),
                PaddedMask::Pairs(pairs) => PaddedMask::Pairs(pairs[squares].to_vec()),
                PaddedMask::Documents(ids) => PaddedMask::Documents(ids[slots].to_vec()),
            },
        }
    }

    /// Packs the tokens that have to be computed.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Input`](crate::ErrorKind::Input) if the id of a token that is computed is
    /// not below `vocab_size`. Ids at positions that are not computed may be anything.
    pub fn pack(&self, pad_rows: PadRows, vocab_size: usize) -> Result<(PackedBatch, Layout)> {
        let mut packing = Packing::new(self, vocab_size);
        match (&self.mask, pad_rows) {
            (PaddedMask::None, _) => packing.whole_rows()?,
            (PaddedMask::Keys(keys), PadRows::Zero) => {
                packing.kept_tokens(|slot| keys[slot])?;
            }
            (PaddedMask::Keys(keys), PadRows::Compute) => {
                packing.whole_rows()?;
                packing.mask = Mask::Keys(keys.clone());
            }
            (PaddedMask::Pairs(pairs), pad_rows) => {
                packing.whole_rows()?;
                packing.mask = Mask::Pairs(pairs.clone());
                if pad_rows == PadRows::Zero {
                    packing.drop_blind_queries(pairs);
                }
            }
            (PaddedMask::Documents(documents), PadRows::Zero) => {
                packing.documents(documents)?;
            }
            (PaddedMask::Documents(documents), PadRows::Compute) => {
                packing.whole_rows()?;
                packing.mask = Mask::Pairs(same_document(documents, self.rows, self.len));
            }
        }
        Ok(packing.finish())
    }
}

/// The `[rows, len, len]` mask that document numbers stand for.
fn same_document(documents: &[i64], rows: usize, len: usize) -> Vec<bool> {
    let mut pairs = Vec::with_capacity(rows * len * len);
    for row in documents.chunks_exact(len) {
        for &query in row {
            pairs.extend(row.iter().map(|&key| key >= 0 && key == query));
        }
    }
    pairs
}

/// A packed batch in the making.
struct Packing<'a> {
    source: &'a PaddedBatch,
    vocab_size: usize,
    ids: Vec<u32>,
    slots: Vec<usize>,
    row_starts: Vec<usize>,
    mask: Mask,
}

impl<'a> Packing<'a> {
    fn new(source: &'a PaddedBatch, vocab_size: usize) -> Self {
        Packing {
            source,
            vocab_size,
            ids: Vec::with_capacity(source.ids.len()),
            slots: Vec::with_capacity(source.ids.len()),
            row_starts: vec![0],
            mask: Mask::Full,
        }
    }

    fn push(&mut self, slot: usize) -> Result<()> {
        let (row, column) = (slot / self.source.len, slot % self.source.len);
        self.ids.push(check_id(
            self.source.ids[slot],
            self.vocab_size,
            self.source.first_row + row,
            column,
        )?);
        self.slots.push(slot);
        Ok(())
    }

    fn whole_rows(&mut self) -> Result<()> {
        self.kept_tokens(|_| true)
    }

    fn kept_tokens(&mut self, keep: impl Fn(usize) -> bool) -> Result<()> {
        for row in 0..self.source.rows {
            for slot in row * self.source.len..(row + 1) * self.source.len {
                if keep(slot) {
                    self.push(slot)?;
                }
            }
            self.row_starts.push(self.ids.len());
        }
        Ok(())
    }

    /// Every document becomes a packed row of its own: no token of another is even looked at.
    fn documents(&mut self, documents: &[i64]) -> Result<()> {
        for row in 0..self.source.rows {
            let first = row * self.source.len;
            let mut slots: Vec<usize> = (first..first + self.source.len)
                .filter(|&slot| documents[slot] >= 0)
                .collect();
            // Stable, so the tokens of one document stay in order.
            slots.sort_by_key(|&slot| documents[slot]);
            for document in slots.chunk_by(|&a, &b| documents[a] == documents[b]) {
                for &slot in document {
                    self.push(slot)?;
                }
                self.row_starts.push(self.ids.len());
            }
        }
        Ok(())
    }

    /// Under an arbitrary mask a query that sees nothing may still be seen by others, so it is
    /// computed; its own result is padding.
    fn drop_blind_queries(&mut self, pairs: &[bool]) {
        let len = self.source.len;
        for slot in &mut self.slots {
            if !pairs[*slot * len..(*slot + 1) * len].contains(&true) {
                *slot = Layout::DROPPED;
            }
        }
    }

    fn finish(self) -> (PackedBatch, Layout) {
        let Packing {
            source,
            ids,
            slots,
            row_starts,
            mask,
            ..
        } = self;
        let len = source.len;
        let gapless = |row: &[usize]| row.windows(2).all(|pair| pair[1] == pair[0] + 1);
        let positions = match mask {
            Mask::Full if !row_starts.windows(2).all(|b| gapless(&slots[b[0]..b[1]])) => {
                Some(slots.iter().map(|slot| (slot % len) as u32).collect())
            }
            // With a mask the rows are whole, hence gapless.
            _ => None,
        };
        let layout = Layout {
            rows: source.rows,
            len,
            slots,
        };
        (
            PackedBatch {
                ids,
                row_starts,
                positions,
                mask,
            },
            layout,
        )
    }
}

impl Layout {
    /// Slot of a token whose result is reported as zeros.
    const DROPPED: usize = usize::MAX;

    /// The same layout with positions from `len` on cut off.
    #[must_use]
    pub fn truncated(mut self, len: usize) -> Self {
        let len = len.min(self.len);
        for slot in &mut self.slots {
            *slot = match (*slot / self.len, *slot % self.len) {
                _ if *slot == Self::DROPPED => Self::DROPPED,
                (row, column) if column < len => row * len + column,
                _ => Self::DROPPED,
            };
        }
        self.len = len;
        self
    }

    /// `[tokens, width]` to `[rows, len, width]`, zeros where nothing was computed.
    ///
    /// # Panics
    ///
    /// If `packed` is not `width` values a token.
    pub fn unpack(&self, packed: &[f32], width: usize) -> Vec<f32> {
        assert_eq!(packed.len(), self.slots.len() * width, "width {width}");
        let mut padded = vec![0.0; self.rows * self.len * width];
        for (values, &slot) in packed.chunks_exact(width).zip(&self.slots) {
            if slot != Self::DROPPED {
                padded[slot * width..(slot + 1) * width].copy_from_slice(values);
            }
        }
        padded
    }
}
