//! What flows into a product: activations in the layout and type that it reads.

use crate::math::{from_bf16, split_bf16, to_bf16};
use crate::memory::{Buffer, Shared};
use crate::micro::CHUNK;

/// Rows of a tile.
pub(crate) const TILE_ROWS: usize = 16;

/// Values of a tile.
pub(crate) const TILE: usize = TILE_ROWS * CHUNK;

/// Element type and layout of an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Form {
    /// f32, row after row.
    F32,
    /// bf16, row after row.
    Bf16,
    /// bf16, in tiles of 16 rows by 32 columns, each tile's rows adjacent.
    Bf16Tiles,
    /// As `Bf16Tiles`, each tile of the nearest bf16 followed by one of the nearest bf16 to the rest.
    Split,
}

/// A matrix `[tokens, columns]` that a product reads or an epilogue writes.
///
/// Columns are padded with zeros to whole chunks, and rows of memory to whole tiles, so that
/// kernels may read whole chunks and tiles.
#[derive(Debug)]
pub struct Operand {
    pub(crate) form: Form,
    pub(crate) tokens: usize,
    pub(crate) columns: usize,
    pub(crate) stride: Stride,
    memory: Buffer,
}

/// Where values stand, in elements: the place of chunk `i` of row `r` is
/// `r / 16 * group + r % 16 * row + i * chunk`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stride {
    pub(crate) row: usize,
    pub(crate) group: usize,
    pub(crate) chunk: usize,
}

impl Stride {
    /// Rows one after the other, `row` elements apart.
    pub(crate) fn rows(row: usize) -> Self {
        Stride {
            row,
            group: TILE_ROWS * row,
            chunk: CHUNK,
        }
    }

    /// So many tiles a chunk.
    pub(crate) fn tiles(chunks: usize, parts: usize) -> Self {
        Stride {
            row: CHUNK,
            group: chunks * parts * TILE,
            chunk: parts * TILE,
        }
    }

    #[inline(always)]
    pub(crate) fn at(&self, row: usize, column: usize) -> usize {
        row / TILE_ROWS * self.group
            + row % TILE_ROWS * self.row
            + column / CHUNK * self.chunk
            + column % CHUNK
    }
}

/// Elements between rows of `columns` values of `size` bytes: whole cache lines, an odd number
/// of them. With a power of two, the same column of a dozen rows would compete for the few
/// places that one set of the cache has.
pub(crate) fn row_stride(columns: usize, size: usize) -> usize {
    let lines = (columns * size).div_ceil(64).max(1) | 1;
    lines * 64 / size
}

impl Operand {
    /// Zeros.
    pub(crate) fn zeroed(form: Form, tokens: usize, columns: usize) -> Self {
        let chunks = columns.div_ceil(CHUNK);
        let rows = tokens.next_multiple_of(TILE_ROWS);
        let padded = chunks * CHUNK;
        let stride = match form {
            Form::F32 => Stride::rows(row_stride(padded, 4)),
            Form::Bf16 => Stride::rows(row_stride(padded, 2)),
            Form::Bf16Tiles => Stride::tiles(chunks, 1),
            Form::Split => Stride::tiles(chunks, 2),
        };
        let size = if form == Form::F32 { 4 } else { 2 };
        let n_bytes = rows / TILE_ROWS * stride.group * size;
        Operand {
            form,
            tokens,
            columns,
            stride,
            memory: Buffer::zeroed(n_bytes.next_multiple_of(64)),
        }
    }

    /// Number of rows.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Bytes that an operand of this form holds for a token.
    pub(crate) fn bytes_per_token(form: Form, columns: usize) -> usize {
        match form {
            Form::F32 | Form::Split => 4 * columns,
            Form::Bf16 | Form::Bf16Tiles => 2 * columns,
        }
    }

    /// Where threads write their parts.
    pub(crate) fn sink(&mut self) -> Sink {
        Sink {
            form: self.form,
            stride: self.stride,
            start: Shared::new(self.memory.as_mut_ptr()),
        }
    }

    /// The first plane as f32, for [`Form::F32`].
    pub(crate) fn as_f32(&self) -> *const f32 {
        debug_assert_eq!(self.form, Form::F32);
        self.memory.as_ptr().cast()
    }

    /// bf16 bits: of the nearest (0), or of the rest (1).
    pub(crate) fn as_bf16(&self, part: usize) -> *const u16 {
        debug_assert_ne!(self.form, Form::F32);
        // SAFETY: callers ask for parts that the form has.
        unsafe { self.memory.as_ptr().cast::<u16>().add(part * TILE) }
    }

    /// Copies `n` values of a row of another operand of the same type.
    ///
    /// # Panics
    ///
    /// If there are no such elements, or the types differ.
    pub fn copy_columns(
        &mut self,
        token: usize,
        column: usize,
        from: &Operand,
        from_token: usize,
        from_column: usize,
        n: usize,
    ) {
        assert_eq!(self.form, from.form, "types of operands");
        assert!(
            token < self.tokens && column + n <= self.columns,
            "columns to write"
        );
        assert!(
            from_token < from.tokens && from_column + n <= from.columns,
            "columns to read"
        );
        for (part, i, run) in self.runs(column, from_column, n) {
            let to = self.byte_at(part, token, column + i);
            let at = from.byte_at(part, from_token, from_column + i);
            // SAFETY: both runs exist, just checked; the operands are different ones.
            unsafe {
                let from = from.memory.as_ptr().add(at);
                std::ptr::copy_nonoverlapping(from, self.memory.as_mut_ptr().add(to), run);
            }
        }
    }

    /// Copies the first `columns` columns of `n` rows from `from` on to the rows from `to` on.
    ///
    /// # Panics
    ///
    /// If there are no such elements, or the rows overlap.
    pub fn copy_rows_within(&mut self, from: usize, to: usize, n: usize, columns: usize) {
        if n == 0 {
            return;
        }
        assert!(
            from.max(to) + n <= self.tokens && columns <= self.columns,
            "rows to copy"
        );
        assert!(from + n <= to || to + n <= from, "rows overlap");
        for row in 0..n {
            for (part, i, run) in self.runs(0, 0, columns) {
                let at = self.byte_at(part, from + row, i);
                let to = self.byte_at(part, to + row, i);
                // SAFETY: both runs exist and belong to different rows, just checked.
                unsafe {
                    let start = self.memory.as_mut_ptr();
                    std::ptr::copy_nonoverlapping(start.add(at), start.add(to), run);
                }
            }
        }
    }

    /// Where in memory, in bytes, a value begins.
    fn byte_at(&self, part: usize, token: usize, column: usize) -> usize {
        (part * TILE + self.stride.at(token, column)) * self.size()
    }

    fn size(&self) -> usize {
        if self.form == Form::F32 { 4 } else { 2 }
    }

    /// `n` columns of a row, in pieces that are adjacent in memory from both of these columns on:
    /// part, first column counted from there, and bytes.
    fn runs(
        &self,
        a: usize,
        b: usize,
        n: usize,
    ) -> impl Iterator<Item = (usize, usize, usize)> + use<> {
        let size = self.size();
        let parts = if self.form == Form::Split { 2 } else { 1 };
        let is_tiled = matches!(self.form, Form::Bf16Tiles | Form::Split);
        (0..parts).flat_map(move |part| {
            let mut first = 0;
            std::iter::from_fn(move || {
                let left = |column: usize| CHUNK - (column + first) % CHUNK;
                let run = match is_tiled {
                    true => left(a).min(left(b)).min(n - first),
                    false => n - first,
                };
                let at = first;
                first += run;
                (run > 0).then_some((part, at, run * size))
            })
        })
    }

    /// A row, where it stands in f32.
    pub(crate) fn row_f32(&self, token: usize) -> Option<&[f32]> {
        assert!(token < self.tokens);
        (self.form == Form::F32).then(|| {
            // SAFETY: the row exists, just checked, and every element is initialised.
            unsafe {
                let row = self.as_f32().add(self.stride.at(token, 0));
                std::slice::from_raw_parts(row, self.columns)
            }
        })
    }

    /// Reads a row.
    pub(crate) fn read_row(&self, token: usize, out: &mut [f32]) {
        assert!(token < self.tokens && out.len() == self.columns);
        if let Some(row) = self.row_f32(token) {
            return out.copy_from_slice(row);
        }
        for (chunk, out) in out.chunks_mut(CHUNK).enumerate() {
            let at = self.stride.at(token, chunk * CHUNK);
            // SAFETY: whole chunks exist, and every element is initialised.
            unsafe {
                let high = std::slice::from_raw_parts(self.as_bf16(0).add(at), out.len());
                for (out, &bits) in out.iter_mut().zip(high) {
                    *out = from_bf16(bits);
                }
                if self.form == Form::Split {
                    let low = std::slice::from_raw_parts(self.as_bf16(1).add(at), out.len());
                    for (out, &bits) in out.iter_mut().zip(low) {
                        *out += from_bf16(bits);
                    }
                }
            }
        }
    }

    /// One value.
    ///
    /// # Panics
    ///
    /// If there is no such element.
    pub fn get(&self, token: usize, column: usize) -> f32 {
        assert!(token < self.tokens && column < self.columns);
        let at = self.stride.at(token, column);
        // SAFETY: in bounds, just checked; every element is initialised.
        unsafe {
            match self.form {
                Form::F32 => *self.as_f32().add(at),
                Form::Bf16 | Form::Bf16Tiles => from_bf16(*self.as_bf16(0).add(at)),
                Form::Split => {
                    from_bf16(*self.as_bf16(0).add(at)) + from_bf16(*self.as_bf16(1).add(at))
                }
            }
        }
    }

    /// Sets one value, rounding it to the operand's type.
    ///
    /// # Panics
    ///
    /// If there is no such element.
    pub fn set(&mut self, token: usize, column: usize, value: f32) {
        assert!(token < self.tokens && column < self.columns);
        // SAFETY: in bounds, and nobody else writes.
        unsafe { self.sink().store(token, column, &[value]) }
    }
}

/// A place for results: what an epilogue or a norm writes to, from many threads at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sink {
    form: Form,
    stride: Stride,
    start: Shared<u8>,
}

impl Sink {
    /// Stores `values` from `column` on, inside one half chunk: `column % 16 + N <= 16`.
    ///
    /// # Safety
    ///
    /// The elements exist and no other thread touches them.
    #[inline(always)]
    pub(crate) unsafe fn store<const N: usize>(
        &self,
        token: usize,
        column: usize,
        values: &[f32; N],
    ) {
        // SAFETY: by the caller's word.
        unsafe { self.store_n(token, column, values) }
    }

    /// Where bf16 values from `column` on are to be written, if the form is bf16 in one plane.
    #[inline(always)]
    pub(crate) fn bf16_place(&self, token: usize, column: usize) -> Option<*mut u16> {
        match self.form {
            Form::Bf16 | Form::Bf16Tiles => {
                let start = self.start.get().cast::<u16>();
                Some(start.wrapping_add(self.stride.at(token, column)))
            }
            Form::F32 | Form::Split => None,
        }
    }

    /// Where values from `column` on are to be written, if the form is f32.
    #[inline(always)]
    pub(crate) fn f32_place(&self, token: usize, column: usize) -> *mut f32 {
        debug_assert_eq!(self.form, Form::F32);
        self.start
            .get()
            .cast::<f32>()
            .wrapping_add(self.stride.at(token, column))
    }

    /// Where both parts of values from `column` on are to be written, if the form has two.
    #[inline(always)]
    pub(crate) fn split_places(&self, token: usize, column: usize) -> Option<[*mut u16; 2]> {
        (self.form == Form::Split).then(|| {
            let start = self.start.get().cast::<u16>();
            let high = start.wrapping_add(self.stride.at(token, column));
            [high, high.wrapping_add(TILE)]
        })
    }

    /// As [`Sink::store`], for a number of values that is not known beforehand.
    ///
    /// # Safety
    ///
    /// As [`Sink::store`].
    #[inline(always)]
    pub(crate) unsafe fn store_n(&self, token: usize, column: usize, values: &[f32]) {
        let at = self.stride.at(token, column);
        // SAFETY: by the caller's word; the parts do not overlap.
        unsafe {
            let start = self.start.get();
            match self.form {
                Form::F32 => {
                    let out =
                        std::slice::from_raw_parts_mut(start.cast::<f32>().add(at), values.len());
                    out.copy_from_slice(values);
                }
                Form::Bf16 | Form::Bf16Tiles => {
                    let out =
                        std::slice::from_raw_parts_mut(start.cast::<u16>().add(at), values.len());
                    for (out, &value) in out.iter_mut().zip(values) {
                        *out = to_bf16(value);
                    }
                }
                Form::Split => {
                    let high =
                        std::slice::from_raw_parts_mut(start.cast::<u16>().add(at), values.len());
                    let low = start.cast::<u16>().add(at + TILE);
                    let low = std::slice::from_raw_parts_mut(low, values.len());
                    for ((high, low), &value) in high.iter_mut().zip(low).zip(values) {
                        (*high, *low) = split_bf16(value);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_is_read_back_and_nothing_else_changes() {
        for (form, tolerance) in [
            (Form::F32, 0.0),
            (Form::Bf16, 0.004),
            (Form::Bf16Tiles, 0.004),
            (Form::Split, 2e-5),
        ] {
            for (tokens, columns) in [(1, 1), (16, 32), (17, 33), (40, 100)] {
                let mut operand = Operand::zeroed(form, tokens, columns);
                let value = |t: usize, c: usize| ((t * 131 + c * 17) % 97) as f32 / 9.7 - 5.0;
                for t in 0..tokens {
                    for c in 0..columns {
                        assert_eq!(operand.get(t, c), 0.0);
                        operand.set(t, c, value(t, c));
                    }
                }
                for t in 0..tokens {
                    for c in 0..columns {
                        let found = operand.get(t, c);
                        assert!((found - value(t, c)).abs() <= tolerance * value(t, c).abs());
                    }
                }
            }
        }
    }

    #[test]
    fn columns_and_rows_are_copied_whole() {
        for form in [Form::F32, Form::Bf16, Form::Bf16Tiles, Form::Split] {
            let value = |t: usize, c: usize| ((t * 131 + c * 17) % 64) as f32;
            let (tokens, columns) = (7, 150);
            let mut from = Operand::zeroed(form, tokens, columns);
            for t in 0..tokens {
                for c in 0..columns {
                    from.set(t, c, value(t, c));
                }
            }
            for (column, from_column, n) in [(0, 0, 150), (3, 40, 70), (31, 1, 2), (5, 5, 0)] {
                let mut to = Operand::zeroed(form, 20, columns);
                to.copy_columns(2, column, &from, 4, from_column, n);
                to.copy_rows_within(0, 10, 3, columns);
                for t in 0..20 {
                    for c in 0..columns {
                        let copied = (t == 2 || t == 12) && (column..column + n).contains(&c);
                        let expected = if copied {
                            value(4, from_column + c - column)
                        } else {
                            0.0
                        };
                        assert_eq!(to.get(t, c), expected, "{form:?} {t} {c}");
                    }
                }
            }
        }
    }

    #[test]
    fn rows_do_not_compete_for_one_set() {
        for columns in [1, 16, 64, 512, 2048, 4096, 10240] {
            for size in [2, 4] {
                let bytes = row_stride(columns, size) * size;
                assert!(bytes >= columns * size && bytes.is_multiple_of(64) && bytes / 64 % 2 == 1);
            }
        }
    }
}
