//! Weights that stay as they are in a file, and are expanded while they are multiplied.
//!
//! Packing quantised weights would make them two to eight times as large. Here a product keeps
//! where its rows are, most often in a memory map; before a piece of a panel is multiplied, it is
//! expanded into a worker's own memory, in the order that the innermost products read.
//!
//! Rows of one product may be stored in different ways: q, k and v are one product, and files keep
//! v in more bits.

use std::sync::Arc;

use crate::blocks::{BlockType, Fp8, GROUP, Group, Raw, raw};
use crate::micro::PANEL;
use crate::pack::Bytes;

/// How the rows of a matrix are stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Encoding {
    /// f32, little endian.
    F32,
    /// f16, little endian.
    F16,
    /// bf16, little endian.
    Bf16,
    /// Floats of 8 bits, each multiplied by `scale` in f32. NaN is read as 0 if `nan_as_zero`.
    Fp8 {
        /// Which.
        kind: Fp8,
        /// Factor of all values.
        scale: f32,
        /// What becomes of NaN.
        nan_as_zero: bool,
    },
    /// Blocks, a whole number of them in each row.
    Blocks(BlockType),
}

impl Encoding {
    /// Bytes of a row of `depth` values; `None` if that is no whole number of blocks.
    pub fn row_bytes(self, depth: usize) -> Option<usize> {
        match self {
            Encoding::F32 => depth.checked_mul(4),
            Encoding::F16 | Encoding::Bf16 => depth.checked_mul(2),
            Encoding::Fp8 { .. } => Some(depth),
            Encoding::Blocks(kind) => kind.bytes_of(depth),
        }
    }
}

/// A matrix `[rows, depth]` in somebody else's memory, row after row, at any address.
#[derive(Clone)]
pub struct StoredMatrix {
    /// How its rows are stored.
    pub encoding: Encoding,
    /// All rows.
    pub bytes: Arc<dyn Bytes>,
    /// Output columns of the product.
    pub rows: usize,
}

/// Matrices that one product multiplies with, as [`Parts`](crate::Parts).
#[derive(Clone)]
pub enum StoredParts {
    /// One below the other.
    Stacked(Vec<StoredMatrix>),
    /// Two halves of a gate, as long.
    Gated {
        /// What the activation is applied to.
        gate: StoredMatrix,
        /// What it is multiplied with.
        up: StoredMatrix,
    },
}

/// The rows of a product.
pub(crate) struct Rows {
    parts: StoredParts,
    pub(crate) depth: usize,
    /// Multiplies each input column.
    gain: Option<Vec<f32>>,
    /// Whether each weight is rounded to bf16 whatever it is multiplied in.
    rounds: bool,
}

impl Rows {
    /// # Panics
    ///
    /// If a part's bytes are not its rows, halves of a gate differ in rows, or there are not as
    /// many gains as columns.
    pub(crate) fn new(
        parts: StoredParts,
        depth: usize,
        gain: Option<Vec<f32>>,
        rounds: bool,
    ) -> Self {
        let rows = Rows {
            parts,
            depth,
            gain,
            rounds,
        };
        for part in rows.parts() {
            let row_bytes = part.encoding.row_bytes(depth);
            assert_eq!(
                row_bytes.and_then(|n| n.checked_mul(part.rows)),
                Some(part.bytes.bytes().len()),
                "bytes of a matrix of {} x {depth} in {:?}",
                part.rows,
                part.encoding
            );
        }
        if let StoredParts::Gated { gate, up } = &rows.parts {
            assert_eq!(gate.rows, up.rows, "halves of a gate");
        }
        if let Some(gain) = &rows.gain {
            assert_eq!(gain.len(), depth, "gains of a product");
        }
        rows
    }

    fn parts(&self) -> &[StoredMatrix] {
        match &self.parts {
            StoredParts::Stacked(parts) => parts,
            StoredParts::Gated { gate, .. } => std::slice::from_ref(gate),
        }
    }

    /// Columns of the result; of a gate, those after it.
    pub(crate) fn columns(&self) -> usize {
        self.parts().iter().map(|part| part.rows).sum()
    }

    pub(crate) fn is_gated(&self) -> bool {
        matches!(self.parts, StoredParts::Gated { .. })
    }

    /// The row that stands in a column of a panel; `None` beyond the last.
    fn row(&self, panel: usize, column: usize) -> Option<(Encoding, &[u8])> {
        let (part, row) = match &self.parts {
            StoredParts::Stacked(parts) => {
                let mut row = panel * PANEL + column;
                let part = parts.iter().find(|part| {
                    let found = row < part.rows;
                    if !found {
                        row -= part.rows;
                    }
                    found
                })?;
                (part, row)
            }
            StoredParts::Gated { gate, up } => {
                let half = PANEL / 2;
                let part = if column < half { gate } else { up };
                let row = panel * half + column % half;
                if row >= part.rows {
                    return None;
                }
                (part, row)
            }
        };
        let n = part.encoding.row_bytes(self.depth)?;
        Some((part.encoding, &part.bytes.bytes()[row * n..(row + 1) * n]))
    }
}

/// A piece of a panel: its 32 columns, `n` of `k` from `first` on, a multiple of 32.
#[derive(Clone, Copy)]
pub(crate) struct Piece<'a> {
    pub(crate) rows: &'a Rows,
    pub(crate) panel: usize,
    pub(crate) first: usize,
    pub(crate) n: usize,
}

/// Most `k` of a piece.
pub(crate) const MAX_PIECE: usize = 512;

/// The functions that expand pieces, for an instruction set.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expand {
    /// Writes f32 in the order of [`F32Block`](crate::micro::F32Block).
    ///
    /// # Safety
    ///
    /// The instruction set is available; there is room for `n` rounded up to a multiple of 32
    /// times 32 values.
    pub(crate) f32: unsafe fn(&Piece<'_>, *mut f32),
    /// Writes bf16 in the order of [`Bf16Block`](crate::micro::Bf16Block), zeros up to a whole
    /// number of chunks; to the second place the rest that the first leaves, if it is not null.
    ///
    /// # Safety
    ///
    /// As `f32`, for both places.
    pub(crate) bf16: unsafe fn(&Piece<'_>, *mut u16, *mut u16),
}

/// What the bodies leave to an instruction set.
pub(crate) trait Vectors {
    /// As [`Raw::values`].
    ///
    /// # Safety
    ///
    /// The instruction set is available; there is room for 32 values.
    unsafe fn values(raw: &Raw, out: *mut f32);

    /// Writes word `j` of row `i` of `from` to row `j`, word `i` of `to`, for 16 of each; rows are
    /// as far apart as the numbers say.
    ///
    /// # Safety
    ///
    /// The instruction set is available; all those words exist.
    unsafe fn transpose(from: *const u32, from_row: usize, to: *mut u32, to_row: usize);
}

/// Compiles the bodies of this module for an instruction set, as `EXPAND`.
macro_rules! instantiate {
    ($features:literal, $vectors:path) => {
        crate::rows::instantiate!(@ $vectors, #[target_feature(enable = $features)]);
    };
    ($vectors:path) => {
        crate::rows::instantiate!(@ $vectors,);
    };
    (@ $vectors:path, $(#[$feature:meta])?) => {
        pub(crate) const EXPAND: crate::rows::Expand = crate::rows::Expand {
            f32: expand::f32,
            bf16: expand::bf16,
        };

        /// The bodies of `rows`, compiled for this instruction set.
        mod expand {
            // The one thing that every function here asks for: the instruction set.
            #![allow(clippy::missing_safety_doc)]
            use crate::rows::{Piece, body};

            $(#[$feature])?
            pub(super) unsafe fn f32(piece: &Piece<'_>, out: *mut f32) {
                // SAFETY: by the caller's word.
                unsafe { body::f32::<$vectors>(piece, out) }
            }
            $(#[$feature])?
            pub(super) unsafe fn bf16(piece: &Piece<'_>, high: *mut u16, low: *mut u16) {
                // SAFETY: by the caller's word.
                unsafe { body::bf16::<$vectors>(piece, high, low) }
            }
        }
    };
}
pub(crate) use instantiate;

/// Plain Rust.
pub(crate) struct Plain;

impl Vectors for Plain {
    #[inline(always)]
    unsafe fn values(raw: &Raw, out: *mut f32) {
        // SAFETY: by the caller's word; f32 has no stricter alignment than its array.
        unsafe { *out.cast::<Group>() = raw.values() };
    }

    #[inline(always)]
    unsafe fn transpose(from: *const u32, from_row: usize, to: *mut u32, to_row: usize) {
        for j in 0..16 {
            for i in 0..16 {
                // SAFETY: by the caller's word.
                unsafe { *to.add(j * to_row + i) = *from.add(i * from_row + j) };
            }
        }
    }
}

/// The bodies. Always inlined, so that they are compiled with the features of their caller; loops
/// run over slices whose length is not known, since short loops of known length are unrolled
/// before they could become vectors.
pub(crate) mod body {
    use super::*;
    use crate::blocks::fp8::from_f16;
    use crate::math::{from_bf16, split_bf16, to_bf16};

    /// Columns of half a panel.
    const HALF: usize = PANEL / 2;

    /// The values of a column of a piece, as they are multiplied but for rounding.
    #[repr(align(64))]
    struct Column([f32; MAX_PIECE]);

    /// Half a panel's columns in words of 32 bits, one after the other.
    #[repr(align(64))]
    struct Tile<const ROW: usize>([[u32; ROW]; HALF]);

    /// Writes `n` values of a row, `n` rounded up to whole groups; zeros beyond the row.
    ///
    /// # Safety
    ///
    /// The instruction set of `V` is available.
    #[inline(always)]
    unsafe fn column<V: Vectors>(piece: &Piece<'_>, column: usize, out: &mut Column) {
        let whole = piece.n.next_multiple_of(GROUP);
        let out = &mut out.0[..whole];
        let Some((encoding, row)) = piece.rows.row(piece.panel, column) else {
            return out.fill(0.0);
        };
        out[piece.n..].fill(0.0);
        // The format is chosen once, outside of the loops.
        macro_rules! blocks {
            ($kind:expr, $($name:ident)*) => {
                match $kind {
                    $(BlockType::$name => {
                        let groups = const { BlockType::$name.values() / GROUP };
                        let bytes = const { BlockType::$name.bytes() };
                        for (at, out) in out.chunks_exact_mut(GROUP).enumerate() {
                            let index = piece.first / GROUP + at;
                            let block = &row[index / groups * bytes..][..bytes];
                            let raw = raw(BlockType::$name, block, index % groups);
                            // SAFETY: by the caller's word; a chunk is a group.
                            unsafe { V::values(&raw, out.as_mut_ptr()) };
                        }
                    })*
                }
            };
        }
        macro_rules! plain {
            ($size:literal, $value:expr) => {{
                let values = &row[piece.first * $size..][..piece.n * $size];
                for (out, bytes) in out.iter_mut().zip(values.as_chunks::<$size>().0) {
                    *out = $value(*bytes);
                }
            }};
        }
        match encoding {
            Encoding::Blocks(kind) => {
                blocks!(kind, Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS);
            }
            Encoding::F32 => plain!(4, f32::from_le_bytes),
            Encoding::F16 => plain!(2, |b| from_f16(u16::from_le_bytes(b))),
            Encoding::Bf16 => plain!(2, |b| from_bf16(u16::from_le_bytes(b))),
            Encoding::Fp8 {
                kind,
                scale,
                nan_as_zero,
            } => {
                match kind {
                    Fp8::E4M3 => plain!(1, |[b]: [u8; 1]| Fp8::E4M3.decode(b)),
                    Fp8::E5M2 => plain!(1, |[b]: [u8; 1]| Fp8::E5M2.decode(b)),
                }
                if nan_as_zero {
                    for value in &mut *out {
                        *value = if value.is_nan() { 0.0 } else { *value };
                    }
                }
                for value in &mut *out {
                    *value *= scale;
                }
            }
        }
        if let Some(gain) = &piece.rows.gain {
            for (value, gain) in out.iter_mut().zip(&gain[piece.first..]) {
                *value *= gain;
            }
        }
    }

    /// # Safety
    ///
    /// As [`Expand::f32`].
    #[inline(always)]
    pub(crate) unsafe fn f32<V: Vectors>(piece: &Piece<'_>, out: *mut f32) {
        const ROW: usize = MAX_PIECE / 4;
        assert!(piece.n <= ROW, "a piece of {} in f32", piece.n);
        let n = piece.n.next_multiple_of(GROUP);
        let mut values = Column([0.0; MAX_PIECE]);
        let mut tile = Tile([[0; ROW]; HALF]);
        for side in 0..2 {
            for (at, row) in tile.0.iter_mut().enumerate() {
                // SAFETY: by the caller's word.
                unsafe { column::<V>(piece, side * HALF + at, &mut values) };
                if piece.rows.rounds {
                    for (out, &value) in row.iter_mut().zip(&values.0[..n]) {
                        *out = u32::from(to_bf16(value)) << 16;
                    }
                } else {
                    for (out, &value) in row.iter_mut().zip(&values.0[..n]) {
                        *out = value.to_bits();
                    }
                }
            }
            for k in (0..n).step_by(16) {
                let from = tile.0.as_ptr().cast::<u32>().wrapping_add(k);
                let to = out.cast::<u32>().wrapping_add(k * PANEL + side * HALF);
                // SAFETY: 16 rows of the tile; the caller has made room for `n` rows.
                unsafe { V::transpose(from, ROW, to, PANEL) };
            }
        }
    }

    /// # Safety
    ///
    /// As [`Expand::bf16`].
    #[inline(always)]
    pub(crate) unsafe fn bf16<V: Vectors>(piece: &Piece<'_>, high: *mut u16, low: *mut u16) {
        // Two values of a row are a word.
        const ROW: usize = MAX_PIECE / 2;
        assert!(piece.n <= MAX_PIECE, "a piece of {} in bf16", piece.n);
        let n = piece.n.next_multiple_of(GROUP);
        let mut values = Column([0.0; MAX_PIECE]);
        let mut tile = Tile([[0; ROW]; HALF]);
        let turn = |tile: &Tile<ROW>, side: usize, out: *mut u16| {
            for at in 0..n / GROUP {
                let from = tile.0.as_ptr().cast::<u32>().wrapping_add(at * 16);
                let to = out.cast::<u32>().wrapping_add((at * 2 + side) * 256);
                // SAFETY: 16 rows of the tile; the caller has made room for these chunks.
                unsafe { V::transpose(from, ROW, to, 16) };
            }
        };
        // Values of a tile's row, as they lie in memory on a little-endian machine, on which alone
        // there are products of bf16.
        let halves = |row: &mut [u32; ROW]| -> *mut u16 { row.as_mut_ptr().cast() };
        for side in 0..2 {
            for (at, row) in tile.0.iter_mut().enumerate() {
                // SAFETY: by the caller's word; a row is as long as a piece.
                let row = unsafe {
                    column::<V>(piece, side * HALF + at, &mut values);
                    std::slice::from_raw_parts_mut(halves(row), n)
                };
                for (out, &value) in row.iter_mut().zip(&values.0[..n]) {
                    *out = to_bf16(value);
                }
            }
            turn(&tile, side, high);
            if low.is_null() {
                continue;
            }
            for (at, row) in tile.0.iter_mut().enumerate() {
                // SAFETY: as above.
                let row = unsafe {
                    column::<V>(piece, side * HALF + at, &mut values);
                    std::slice::from_raw_parts_mut(halves(row), n)
                };
                for (out, &value) in row.iter_mut().zip(&values.0[..n]) {
                    *out = split_bf16(value).1;
                }
            }
            turn(&tile, side, low);
        }
    }
}
