//! What a batch looks like, on the device: uploaded once, read by every layer.

use quintic_cuda as cuda;
use quintic_cuda::device::Address;
use quintic_cuda::kernels;
use quintic_cuda::memory::Buffer;
use quintic_cuda::parameters::Tile;

use super::{Cuda, Visible};
use crate::batch::{Mask, PackedBatch};

/// A batch's ids (if they are known), row bounds, mask and positions, and what attention makes
/// of them.
#[derive(Debug)]
pub(super) struct Inputs {
    ids: Vec<u32>,
    row_starts: Vec<usize>,
    positions: Option<Vec<u32>>,
    mask: Mask,
    /// How many tiles there are.
    n_tiles: usize,
    /// How many tiles attention is to have blocks for.
    tile_blocks: usize,
    sections: Sections,
    buffer: Buffer,
}

/// Where each part begins, in 32-bit words.
#[derive(Clone, Copy, Debug)]
struct Sections {
    ids: usize,
    row_starts: usize,
    token_rows: usize,
    n_tiles: usize,
    tiles: usize,
    positions: usize,
    pair_starts: usize,
    visible: usize,
    end: usize,
}

impl Sections {
    /// For up to so many of each.
    fn new(tokens: usize, rows: usize, flags: usize) -> Self {
        let mut at = 0;
        let mut take = |words: usize| {
            let start = at;
            // Starts are even: some parts are 64 bits wide.
            at += words.next_multiple_of(2);
            start
        };
        Sections {
            ids: take(tokens),
            row_starts: take(rows + 1),
            token_rows: take(tokens),
            n_tiles: take(1),
            // A row of one token has a tile of its own.
            tiles: take(2 * tokens),
            positions: take(tokens),
            pair_starts: take(2 * rows),
            visible: take(flags.div_ceil(4)),
            end: take(0),
        }
    }
}

/// Where the parts are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Addresses {
    pub(super) ids: Address,
    pub(super) row_starts: Address,
    pub(super) token_rows: Address,
    pub(super) n_tiles: Address,
    pub(super) tiles: Address,
    /// Null without.
    pub(super) positions: Address,
    /// Null if all keys are seen.
    pub(super) visible: Address,
    /// Null unless pairs are masked.
    pub(super) pair_starts: Address,
}

/// A description in words, as it is uploaded.
struct Words(Vec<u32>);

impl Words {
    fn put(&mut self, at: usize, values: impl IntoIterator<Item = u32>) {
        for (word, value) in self.0[at..].iter_mut().zip(values) {
            *word = value;
        }
    }
}

impl Inputs {
    /// Those of an attention, from memory of its own.
    pub(super) fn of_attention(
        cuda: &Cuda,
        row_starts: &[usize],
        positions: Option<&[u32]>,
        visible: Visible<'_>,
    ) -> cuda::Result<Self> {
        let mask = match visible {
            Visible::Mask(mask) => mask.clone(),
            Visible::Causal => Mask::Full,
        };
        let tokens = row_starts[row_starts.len() - 1];
        let sections = Sections::new(tokens, row_starts.len() - 1, n_flags(&mask));
        let buffer = cuda.memory.buffer(4 * sections.end)?;
        let mut inputs = Inputs {
            ids: Vec::new(),
            row_starts: row_starts.to_vec(),
            positions: positions.map(<[u32]>::to_vec),
            mask,
            n_tiles: 0,
            tile_blocks: 0,
            sections,
            buffer,
        };
        inputs.upload()?;
        inputs.tile_blocks = inputs.n_tiles;
        Ok(inputs)
    }

    /// Those of a pass over that many tokens, at addresses that stay.
    pub(super) fn of_pass(
        cuda: &Cuda,
        batch: &PackedBatch,
        tile_blocks: usize,
    ) -> cuda::Result<Self> {
        let tokens = batch.n_tokens();
        // Rows are not empty, so there are no more of them than tokens.
        let sections = Sections::new(tokens, tokens, tokens);
        let buffer = cuda.memory.buffer(4 * sections.end)?;
        let mut inputs = Inputs {
            ids: Vec::new(),
            row_starts: vec![0],
            positions: None,
            mask: Mask::Full,
            n_tiles: 0,
            tile_blocks,
            sections,
            buffer,
        };
        inputs.replace(batch)?;
        Ok(inputs)
    }

    /// Puts another batch of the same form in place.
    pub(super) fn replace(&mut self, batch: &PackedBatch) -> cuda::Result<()> {
        self.ids = batch.ids().to_vec();
        self.row_starts = batch.row_starts().to_vec();
        self.positions = batch.positions().map(<[u32]>::to_vec);
        self.mask = batch.mask().clone();
        self.upload()?;
        assert!(self.n_tiles <= self.tile_blocks, "tiles of a pass");
        Ok(())
    }

    fn upload(&mut self) -> cuda::Result<()> {
        let sections = &self.sections;
        let rows = self.row_starts.len() - 1;
        let tiles: Vec<Tile> = kernels::tiles(&self.row_starts);
        self.n_tiles = tiles.len();
        let mut words = Words(vec![0; sections.end]);
        words.put(sections.ids, self.ids.iter().copied());
        words.put(
            sections.row_starts,
            self.row_starts.iter().map(|&start| start as u32),
        );
        for (row, bounds) in self.row_starts.windows(2).enumerate() {
            words.0[sections.token_rows + bounds[0]..sections.token_rows + bounds[1]]
                .fill(row as u32);
        }
        words.put(sections.n_tiles, [tiles.len() as u32]);
        words.put(
            sections.tiles,
            tiles.iter().flat_map(|tile| [tile.row, tile.first]),
        );
        if let Some(positions) = &self.positions {
            words.put(sections.positions, positions.iter().copied());
        }
        match &self.mask {
            Mask::Full => {}
            Mask::Keys(flags) => words.put(sections.visible, flag_words(flags)),
            Mask::Pairs(flags) => {
                words.put(sections.visible, flag_words(flags));
                let mut start = 0u64;
                for row in 0..rows {
                    let at = sections.pair_starts + 2 * row;
                    words.put(at, [start as u32, (start >> 32) as u32]);
                    let n = (self.row_starts[row + 1] - self.row_starts[row]) as u64;
                    start += n * n;
                }
            }
        }
        self.buffer.write(0, &words.0)
    }

    /// Whether they are those of that attention.
    pub(super) fn serve(
        &self,
        row_starts: &[usize],
        positions: Option<&[u32]>,
        visible: Visible<'_>,
    ) -> bool {
        self.row_starts == row_starts
            && self.positions.as_deref() == positions
            && match visible {
                Visible::Mask(mask) => &self.mask == mask,
                Visible::Causal => self.mask == Mask::Full,
            }
    }

    pub(super) fn ids(&self) -> &[u32] {
        &self.ids
    }

    pub(super) fn tile_blocks(&self) -> usize {
        self.tile_blocks
    }

    pub(super) fn addresses(&self) -> Addresses {
        let at = |word: usize| self.buffer.address().offset(4 * word);
        let or_null = |there: bool, word: usize| if there { at(word) } else { Address::NULL };
        let sections = &self.sections;
        Addresses {
            ids: at(sections.ids),
            row_starts: at(sections.row_starts),
            token_rows: at(sections.token_rows),
            n_tiles: at(sections.n_tiles),
            tiles: at(sections.tiles),
            positions: or_null(self.positions.is_some(), sections.positions),
            visible: or_null(self.mask != Mask::Full, sections.visible),
            pair_starts: or_null(matches!(self.mask, Mask::Pairs(_)), sections.pair_starts),
        }
    }
}

fn n_flags(mask: &Mask) -> usize {
    match mask {
        Mask::Full => 0,
        Mask::Keys(flags) | Mask::Pairs(flags) => flags.len(),
    }
}

/// One byte a flag.
fn flag_words(flags: &[bool]) -> impl Iterator<Item = u32> + '_ {
    flags.chunks(4).map(|four| {
        let mut bytes = [0u8; 4];
        for (byte, &flag) in bytes.iter_mut().zip(four) {
            *byte = u8::from(flag);
        }
        u32::from_le_bytes(bytes)
    })
}
