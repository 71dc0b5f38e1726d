//! Which kernel computes an attention, and keys and values that stay.

use std::sync::Arc;

use quintic_cuda as cuda;
use quintic_cuda::device::Address;
use quintic_cuda::kernels::{self, PlainMask};
use quintic_cuda::memory::Buffer;
use quintic_cuda::parameters::{AppendKv, AttendPlain, AttendTiles};

use super::contents::Operand;
use super::inputs::Inputs;
use super::{Attention, Cuda, Visible};
use crate::backend::{Keys, check_shorter};
use crate::batch::Mask;

/// Tokens that a row of a cache has room for at first.
const FIRST_CAPACITY: usize = 32;

/// Keys and values of one attention layer. Every row has room for the same number of tokens; when
/// one is full, all get twice as much.
#[derive(Debug)]
pub struct KvCache {
    inner: usize,
    capacity: usize,
    lengths: Vec<u32>,
    /// `[rows, capacity, 2 * inner]`, and the lengths; `None` while empty.
    device: Option<cuda::Result<(Buffer, Buffer)>>,
}

impl KvCache {
    pub(super) fn new(rows: usize, inner: usize) -> Self {
        KvCache {
            inner,
            capacity: 0,
            lengths: vec![0; rows],
            device: None,
        }
    }

    /// Tokens cached for a row.
    pub fn len(&self, row: usize) -> usize {
        self.lengths[row] as usize
    }

    /// Whether no row has a token.
    pub fn is_empty(&self) -> bool {
        self.lengths.iter().all(|&length| length == 0)
    }

    pub(super) fn append(
        &mut self,
        cuda: &Cuda,
        kv: &Operand,
        first_column: usize,
        row_starts: &[usize],
    ) {
        assert_eq!(
            row_starts.len(),
            self.lengths.len() + 1,
            "rows of the cache"
        );
        assert!(
            first_column + 2 * self.inner <= kv.columns
                && row_starts[self.lengths.len()] <= kv.tokens,
            "keys and values of {} columns from {first_column} on, {} tokens",
            kv.columns,
            kv.tokens
        );
        if let Some(Err(_)) = self.device {
            return;
        }
        let result = self.try_append(cuda, kv, first_column, row_starts);
        if let Err(error) = result {
            self.device = Some(Err(error));
        }
    }

    /// Rows are copied to a new buffer: beams that change places may not overwrite each other.
    pub(super) fn arrange(&mut self, cuda: &Cuda, rows: &[Option<usize>]) {
        let before = std::mem::take(&mut self.lengths);
        self.lengths = rows
            .iter()
            .map(|row| row.map_or(0, |row| before[row]))
            .collect();
        let unchanged = rows.len() == before.len()
            && rows.iter().enumerate().all(|(to, &from)| from == Some(to));
        let Some(Ok((old, _))) = &self.device else {
            return;
        };
        if unchanged {
            return;
        }
        self.device = (!rows.is_empty()).then(|| {
            let row_bytes = self.capacity * 2 * self.inner * cuda.element.bytes();
            let new = cuda.buffer(rows.len() * row_bytes)?;
            for (to, from) in rows.iter().enumerate() {
                if let Some(from) = *from {
                    let used = before[from] as usize * (row_bytes / self.capacity);
                    new.copy_from(to * row_bytes, old, from * row_bytes, used)?;
                }
            }
            let lengths = cuda.buffer(4 * rows.len())?;
            lengths.write(0, &self.lengths)?;
            Ok((new, lengths))
        });
        if self.device.is_none() {
            self.capacity = 0;
        }
    }

    pub(super) fn truncate(&mut self, lengths: &[usize]) {
        assert_eq!(lengths.len(), self.lengths.len(), "rows of the cache");
        for (row, &length) in lengths.iter().enumerate() {
            check_shorter(row, self.len(row), length);
            self.lengths[row] = length as u32;
        }
        let written = match &self.device {
            Some(Ok((_, on_device))) => on_device.write(0, &self.lengths),
            _ => return,
        };
        if let Err(error) = written {
            self.device = Some(Err(error));
        }
    }

    fn try_append(
        &mut self,
        cuda: &Cuda,
        kv: &Operand,
        first_column: usize,
        row_starts: &[usize],
    ) -> cuda::Result<()> {
        let source = kv.contents()?;
        let before = self.lengths.clone();
        for (length, bounds) in self.lengths.iter_mut().zip(row_starts.windows(2)) {
            *length += (bounds[1] - bounds[0]) as u32;
        }
        let longest = self
            .lengths
            .iter()
            .max()
            .map_or(0, |&length| length as usize);
        if longest == 0 {
            return Ok(());
        }
        let element = cuda.element;
        if longest > self.capacity {
            let capacity = longest.max(2 * self.capacity).max(FIRST_CAPACITY);
            let row_bytes = |capacity: usize| capacity * 2 * self.inner * element.bytes();
            let grown = cuda.buffer(self.lengths.len() * row_bytes(capacity))?;
            if let Some(Ok((old, _))) = &self.device {
                for (row, &length) in before.iter().enumerate() {
                    grown.copy_from(
                        row * row_bytes(capacity),
                        old,
                        row * row_bytes(self.capacity),
                        row_bytes(length as usize),
                    )?;
                }
            }
            self.capacity = capacity;
            self.device = Some(Ok((grown, cuda.buffer(4 * self.lengths.len())?)));
        }
        let Some(Ok((cache, lengths))) = &self.device else {
            return Ok(());
        };
        let starts: Vec<u32> = row_starts.iter().map(|&start| start as u32).collect();
        let starts = cuda.memory.upload(&starts)?;
        lengths.write(0, &before)?;
        let p = AppendKv {
            kv: source.address(),
            cache: cache.address(),
            row_starts: starts.address(),
            lengths: lengths.address(),
            rows: self.lengths.len() as u32,
            first_column: first_column as u32,
            kv_stride: kv.columns as u32,
            inner: self.inner as u32,
            capacity: self.capacity as u32,
            unused: 0,
        };
        let tokens = row_starts[self.lengths.len()];
        // SAFETY: columns and rows were checked; every row has room for its new tokens.
        unsafe { kernels::append_kv(cuda.device().as_ref(), element, tokens, &p)? };
        lengths.write(0, &self.lengths)
    }
}

/// The description of the attention's batch on the device.
fn inputs(cuda: &Cuda, attention: &Attention<'_, Cuda>) -> cuda::Result<Arc<Inputs>> {
    let mut known = cuda.inputs.lock();
    let (starts, positions) = (attention.row_starts, attention.positions);
    match &*known {
        Some(inputs) if inputs.serve(starts, positions, attention.visible) => {
            Ok(Arc::clone(inputs))
        }
        _ => {
            let new = Inputs::of_attention(cuda, starts, positions, attention.visible)?;
            let new = Arc::new(new);
            *known = Some(Arc::clone(&new));
            Ok(new)
        }
    }
}

fn check(attention: &Attention<'_, Cuda>) {
    let inner = attention.n_heads * attention.d_kv;
    let queries = attention.queries;
    let columns = match attention.keys {
        Keys::Fused => 3 * inner,
        Keys::Cache(_) => inner,
    };
    let rows = attention.row_starts.len() - 1;
    assert!(
        queries.columns >= columns && attention.row_starts[rows] == queries.tokens,
        "queries of {} x {}",
        queries.tokens,
        queries.columns
    );
    if let Some(gains) = attention.head_gains {
        assert_eq!(gains.len(), attention.n_heads, "gains of heads");
    }
    if let Some(bias) = attention.bias {
        assert_eq!(bias.n_heads, attention.n_heads, "heads of the bias");
    }
    if let Some(positions) = attention.positions {
        assert_eq!(positions.len(), queries.tokens, "positions");
    }
    let n_flags = match attention.visible {
        Visible::Mask(Mask::Keys(flags)) => Some((flags.len(), queries.tokens)),
        Visible::Mask(Mask::Pairs(flags)) => Some((
            flags.len(),
            attention
                .row_starts
                .windows(2)
                .map(|bounds| (bounds[1] - bounds[0]).pow(2))
                .sum(),
        )),
        _ => None,
    };
    if let Some((found, expected)) = n_flags {
        assert_eq!(found, expected, "flags of a mask");
    }
    if let Keys::Cache(cache) = attention.keys {
        assert_eq!((cache.lengths.len(), cache.inner), (rows, inner), "cache");
        assert!(
            matches!(
                attention.visible,
                Visible::Causal | Visible::Mask(Mask::Full)
            ) && attention.positions.is_none(),
            "masks and positions are those of queries and keys alike, which a cache has none of"
        );
    }
}

pub(super) fn attend(
    cuda: &Cuda,
    attention: &Attention<'_, Cuda>,
    out: &Buffer,
) -> cuda::Result<()> {
    check(attention);
    if attention.queries.tokens == 0 {
        return attention.queries.contents().map(drop);
    }
    let reach = attention.bias.map_or(0, |bias| bias.reach);
    let pairs = matches!(attention.visible, Visible::Mask(Mask::Pairs(_)));
    let fused = matches!(attention.keys, Keys::Fused);
    // The kernel on tiles reads rows of three parts and no more.
    let dense = attention.queries.columns == 3 * attention.n_heads * attention.d_kv;
    let fits = kernels::tiles_fit(cuda.element, attention.d_kv, reach);
    match fused && dense && fits && !pairs {
        true => on_tiles(cuda, attention, out),
        false => plainly(cuda, attention, Some(out), None),
    }
}

/// The weights of each row `[n_heads, queries, keys]`, rows end to end.
pub(super) fn weights(cuda: &Cuda, attention: &Attention<'_, Cuda>) -> cuda::Result<Vec<f32>> {
    check(attention);
    let mut starts = Vec::new();
    let mut end = 0u64;
    for (row, bounds) in attention.row_starts.windows(2).enumerate() {
        let queries = bounds[1] - bounds[0];
        let keys = match attention.keys {
            Keys::Fused => queries,
            Keys::Cache(cache) => cache.len(row),
        };
        starts.push(end);
        end += (attention.n_heads * queries * keys) as u64;
    }
    if end == 0 {
        return attention.queries.contents().map(|_| Vec::new());
    }
    let starts = cuda.memory.upload(&starts)?;
    let out = cuda.memory.buffer(4 * end as usize)?;
    plainly(cuda, attention, None, Some((&out, &starts)))?;
    out.read(0, end as usize)
}

fn head_gains(cuda: &Cuda, attention: &Attention<'_, Cuda>) -> cuda::Result<Option<Buffer>> {
    attention
        .head_gains
        .map(|gains| cuda.memory.upload(gains))
        .transpose()
}

fn on_tiles(cuda: &Cuda, attention: &Attention<'_, Cuda>, out: &Buffer) -> cuda::Result<()> {
    let inputs = inputs(cuda, attention)?;
    let gains = head_gains(cuda, attention)?;
    let at = inputs.addresses();
    let p = AttendTiles {
        qkv: attention.queries.contents()?.address(),
        out: out.address(),
        bias: attention
            .bias
            .map_or(Address::NULL, |bias| bias.strip.address()),
        tiles: at.tiles,
        n_tiles: at.n_tiles,
        row_starts: at.row_starts,
        visible: at.visible,
        positions: at.positions,
        head_gains: gains.as_ref().map_or(Address::NULL, Buffer::address),
        heads: attention.n_heads as u32,
        reach: attention.bias.map_or(0, |bias| bias.reach as u32),
        causal: u32::from(matches!(attention.visible, Visible::Causal)),
        unused: 0,
    };
    // SAFETY: the operand is [tokens, 3 * inner], `out` [tokens, inner]; the description of the
    // batch is that of these rows.
    unsafe {
        kernels::attend_tiles(
            cuda.device().as_ref(),
            cuda.element,
            attention.d_kv,
            inputs.tile_blocks(),
            &p,
        )
    }
}

fn plainly(
    cuda: &Cuda,
    attention: &Attention<'_, Cuda>,
    out: Option<&Buffer>,
    weights: Option<(&Buffer, &Buffer)>,
) -> cuda::Result<()> {
    if attention.d_kv > kernels::PLAIN_WIDTH {
        return Err(cuda::Error::Unavailable(format!(
            "the cuda backend attends with heads of up to {} columns, found {}",
            kernels::PLAIN_WIDTH,
            attention.d_kv
        )));
    }
    let inputs = inputs(cuda, attention)?;
    let gains = head_gains(cuda, attention)?;
    let at = inputs.addresses();
    let queries = attention.queries.contents()?;
    let inner = attention.n_heads * attention.d_kv;
    let column = |buffer: &Buffer, column: usize| buffer.at(column, cuda.element);
    let (keys, values, kv_stride, lengths, capacity) = match attention.keys {
        Keys::Fused => (
            column(queries, inner),
            column(queries, 2 * inner),
            attention.queries.columns,
            Address::NULL,
            0,
        ),
        Keys::Cache(cache) => match &cache.device {
            Some(Ok((kv, lengths))) => (
                kv.address(),
                column(kv, inner),
                2 * inner,
                lengths.address(),
                cache.capacity,
            ),
            Some(Err(error)) => return Err(error.clone()),
            None => {
                return Err(cuda::Error::Failed(
                    "attention to an empty cache".to_owned(),
                ));
            }
        },
    };
    let p = AttendPlain {
        queries: queries.address(),
        keys,
        values,
        out: out.map_or(Address::NULL, Buffer::address),
        weights: weights.map_or(Address::NULL, |(out, _)| out.address()),
        weight_starts: weights.map_or(Address::NULL, |(_, starts)| starts.address()),
        bias: attention
            .bias
            .map_or(Address::NULL, |bias| bias.strip.address()),
        token_rows: at.token_rows,
        row_starts: at.row_starts,
        key_lengths: lengths,
        visible: at.visible,
        pair_starts: at.pair_starts,
        positions: at.positions,
        head_gains: gains.as_ref().map_or(Address::NULL, Buffer::address),
        q_stride: attention.queries.columns as u32,
        kv_stride: kv_stride as u32,
        capacity: capacity as u32,
        heads: attention.n_heads as u32,
        d_kv: attention.d_kv as u32,
        reach: attention.bias.map_or(0, |bias| bias.reach as u32),
        mask: match attention.visible {
            Visible::Causal => PlainMask::Causal,
            Visible::Mask(Mask::Full) => PlainMask::None,
            Visible::Mask(Mask::Keys(_)) => PlainMask::Keys,
            Visible::Mask(Mask::Pairs(_)) => PlainMask::Pairs,
        } as u32,
        unused: 0,
    };
    let tokens = attention.queries.tokens;
    // SAFETY: shapes were checked; the description of the batch is that of these rows, a cache's
    // lengths are those of its rows, and weights have room for each row's.
    unsafe { kernels::attend_plain(cuda.device().as_ref(), cuda.element, tokens, &p) }
}
