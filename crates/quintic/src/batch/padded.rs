//! `[rows, len]` tensors of ids and masks, turned into packed rows and back.

use std::ops::Range;

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
    /// For each slot `row * len + column` the packed token whose result stands there; several
    /// may have the same. [`Layout::ZEROS`] where nothing was computed, or only because others
    /// depend on it.
    tokens: Vec<usize>,
    /// For each packed token the slot in the whole batch that it was taken from.
    slots: Vec<usize>,
    /// Slots of the whole batch.
    n_slots: usize,
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
    pub fn slice(&self, range: Range<usize>) -> PaddedBatch {
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
        self.pack_sharing(pad_rows, vocab_size, None)
    }

    /// As [`PaddedBatch::pack`], but computes padding that has the same result only once, where
    /// padding is computed under a [`PaddedMask::Keys`]. The hidden states of the whole padded
    /// shape keep every bit.
    ///
    /// `reach` is the distance from which on the model's position bias stays the same,
    /// [`T5Config::bias_reach`](crate::config::T5Config::bias_reach); `None` shares nothing.
    /// Nobody asks padding as a key, so what it becomes depends on its id and on its distances
    /// to the real tokens. Two positions on the same side of all real tokens of a row, both at
    /// least `reach` away from each, differ in neither that counts: only the nearer `reach`
    /// positions of a side are computed, and the farthest of them stands for all beyond. A side
    /// whose ids beyond differ is computed whole, and so is a row without a real token, where
    /// every position attends to all.
    ///
    /// Pack whole rows for what depends on more than that: attention weights, whose rows and
    /// columns are positions, and embeddings of the caller's own, which the ids do not tell
    /// apart.
    ///
    /// # Errors
    ///
    /// As [`PaddedBatch::pack`].
    pub fn pack_sharing(
        &self,
        pad_rows: PadRows,
        vocab_size: usize,
        reach: Option<usize>,
    ) -> Result<(PackedBatch, Layout)> {
        let mut packing = Packing::new(self, vocab_size);
        match (&self.mask, pad_rows) {
            (PaddedMask::None, _) => packing.whole_rows()?,
            (PaddedMask::Keys(keys), PadRows::Zero) => {
                packing.kept_tokens(|slot| keys[slot])?;
            }
            (PaddedMask::Keys(keys), PadRows::Compute) => {
                packing.shared_padding(keys, reach)?;
                packing.mask = Mask::Keys(packing.slots.iter().map(|&slot| keys[slot]).collect());
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
    /// [`Layout::tokens`].
    tokens: Vec<usize>,
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
            tokens: vec![Layout::ZEROS; source.ids.len()],
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
        self.tokens[slot] = self.slots.len();
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

    /// Whole rows but for far padding, see [`PaddedBatch::pack_sharing`].
    fn shared_padding(&mut self, keys: &[bool], reach: Option<usize>) -> Result<()> {
        let len = self.source.len;
        for row in 0..self.source.rows {
            let slots = row * len..(row + 1) * len;
            let kept = match reach {
                Some(reach) => self.kept_of_row(&keys[slots.clone()], slots.start, reach),
                None => 0..len,
            };
            let first_token = self.ids.len();
            for column in kept.clone() {
                self.push(slots.start + column)?;
            }
            let last_token = self.ids.len() - 1;
            self.tokens[slots.start..slots.start + kept.start].fill(first_token);
            self.tokens[slots.start + kept.end..slots.end].fill(last_token);
            self.row_starts.push(self.ids.len());
        }
        Ok(())
    }

    /// Columns of a row that are computed; never none. Those before have the result of the
    /// first, those behind that of the last.
    fn kept_of_row(&self, keys: &[bool], first_slot: usize, reach: usize) -> Range<usize> {
        let real = |&seen: &bool| seen;
        let ends = (keys.iter().position(real), keys.iter().rposition(real));
        let (Some(first), Some(last)) = ends else {
            return 0..keys.len();
        };
        // A position at a distance of zero would be a real one.
        let reach = reach.max(1);
        let ids = &self.source.ids[first_slot..first_slot + keys.len()];
        let same = |ids: &[i64]| ids.windows(2).all(|pair| pair[0] == pair[1]);
        let left = first.saturating_sub(reach);
        let right = last.saturating_add(reach).min(keys.len() - 1);
        let start = if same(&ids[..=left]) { left } else { 0 };
        let end = if same(&ids[right..]) {
            right + 1
        } else {
            keys.len()
        };
        start..end
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
        for (token, query) in self.tokens.iter_mut().zip(pairs.chunks_exact(len)) {
            if !query.contains(&true) {
                *token = Layout::ZEROS;
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
            tokens,
            ..
        } = self;
        let len = source.len;
        let gapless = |row: &[usize]| row.windows(2).all(|pair| pair[1] == pair[0] + 1);
        let positions = match mask {
            Mask::Full if !row_starts.windows(2).all(|b| gapless(&slots[b[0]..b[1]])) => {
                Some(slots.iter().map(|slot| (slot % len) as u32).collect())
            }
            // With a mask the rows have no gaps.
            _ => None,
        };
        let layout = Layout {
            rows: source.rows,
            len,
            tokens,
            slots,
            n_slots: source.ids.len(),
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
    /// Token of a slot whose result is reported as zeros.
    const ZEROS: usize = usize::MAX;

    /// Rows of the padded result.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Positions of each row of the padded result.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the padded result has no positions.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// The same layout with positions from `len` on cut off.
    #[must_use]
    pub fn truncated(mut self, len: usize) -> Self {
        let len = len.min(self.len);
        let old = std::mem::replace(&mut self.len, len);
        self.tokens = (0..self.rows)
            .flat_map(|row| &self.tokens[row * old..row * old + len])
            .copied()
            .collect();
        self
    }

    /// The token of each position of the padded result, `[rows * len]`; `None` where zeros stand.
    pub fn tokens(&self) -> impl Iterator<Item = Option<usize>> {
        self.tokens
            .iter()
            .map(|&token| (token != Self::ZEROS).then_some(token))
    }

    /// `[tokens, width]` to `[rows, len, width]`, zeros where nothing was computed.
    ///
    /// # Panics
    ///
    /// If `packed` is not `width` values a token, or `width` is 0.
    pub fn unpack(&self, packed: &[f32], width: usize) -> Vec<f32> {
        let mut padded = vec![0.0; self.tokens.len() * width];
        self.unpack_into(packed, width, &mut padded);
        padded
    }

    /// As [`Layout::unpack`], into `out`, all of which is written.
    ///
    /// # Panics
    ///
    /// As [`Layout::unpack`], and if `out` is not `[rows, len, width]`.
    pub fn unpack_into(&self, packed: &[f32], width: usize, out: &mut [f32]) {
        assert_eq!(packed.len(), self.slots.len() * width, "width {width}");
        assert_eq!(out.len(), self.tokens.len() * width, "width {width}");
        for (out, &token) in out.chunks_exact_mut(width).zip(&self.tokens) {
            match token {
                Self::ZEROS => out.fill(0.0),
                token => out.copy_from_slice(&packed[token * width..(token + 1) * width]),
            }
        }
    }

    /// The other way: `[rows, len, width]` to `[tokens, width]`, such as embeddings for
    /// [`Pass::embeddings`](crate::Pass::embeddings). `len` is that of the whole batch, whether
    /// this layout has been [truncated](Layout::truncated) or not, and tokens whose results are
    /// reported as zeros are taken, too.
    ///
    /// # Panics
    ///
    /// If `padded` has another length.
    pub fn gather(&self, padded: &[f32], width: usize) -> Vec<f32> {
        assert_eq!(padded.len(), self.n_slots * width, "width {width}");
        let mut packed = Vec::with_capacity(self.slots.len() * width);
        for &slot in &self.slots {
            packed.extend_from_slice(&padded[slot * width..(slot + 1) * width]);
        }
        packed
    }
}
