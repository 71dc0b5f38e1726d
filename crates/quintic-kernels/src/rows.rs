//! Weights that stay as they are in a file, and are expanded while they are multiplied.
//!
//! Packing quantised weights would make them two to eight times as large. Here a product keeps
//! where its rows are, most often in a memory map; before a piece of a panel is multiplied, it is
//! expanded into a worker's own memory, in the order that the innermost products read.
//!
//! Rows of one product may be stored in different ways: q, k and v are one product, and files keep
//! v in more bits.

use std::sync::Arc;

use crate::blocks::{BlockType, Fp8, GROUP, group};
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

/// Compiles the bodies of this module for an instruction set, as `EXPAND`. The path is a function
/// that transposes 16 x 16 words.
macro_rules! instantiate {
    ($features:literal, $transpose:path) => {
        crate::rows::instantiate!(@ $transpose, #[target_feature(enable = $features)]);
    };
    ($transpose:path) => {
        crate::rows::instantiate!(@ $transpose,);
    };
    (@ $transpose:path, $(#[$feature:meta])?) => {
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
                unsafe { body::f32(piece, out, |a, b, c, d| $transpose(a, b, c, d)) }
            }
            $(#[$feature])?
            pub(super) unsafe fn bf16(piece: &Piece<'_>, high: *mut u16, low: *mut u16) {
                // SAFETY: by the caller's word.
                unsafe { body::bf16(piece, high, low, |a, b, c, d| $transpose(a, b, c, d)) }
            }
        }
    };
}
pub(crate) use instantiate;

/// Writes word `j` of row `i` of `from` to row `j`, word `i` of `to`, for 16 of each; rows are
/// as far apart as the numbers say.
///
/// # Safety
///
/// All those words exist.
#[inline(always)]
pub(crate) unsafe fn transpose(from: *const u32, from_row: usize, to: *mut u32, to_row: usize) {
    for j in 0..16 {
        for i in 0..16 {
            // SAFETY: by the caller's word.
            unsafe { *to.add(j * to_row + i) = *from.add(i * from_row + j) };
        }
    }
}

/// The bodies. Always inlined, so that they are compiled with the features of their caller.
pub(crate) mod body {
    use super::*;
    use crate::blocks::fp8::from_f16;
    use crate::math::{from_bf16, split_bf16, to_bf16};

    type Group = [f32; GROUP];

    /// Columns of half a panel.
    const HALF: usize = PANEL / 2;

    /// Calls `each` with the values of a row, 32 at a time, the last ones filled up with zeros.
    #[inline(always)]
    fn groups(
        (encoding, row): (Encoding, &[u8]),
        piece: &Piece<'_>,
        mut each: impl FnMut(usize, Group),
    ) {
        let n = piece.n.div_ceil(GROUP);
        // The format is chosen once, outside of the loop.
        macro_rules! blocks {
            ($kind:expr, $($name:ident)*) => {
                match $kind {
                    $(BlockType::$name => {
                        let groups = const { BlockType::$name.values() / GROUP };
                        let bytes = const { BlockType::$name.bytes() };
                        for at in 0..n {
                            let index = piece.first / GROUP + at;
                            let block = &row[index / groups * bytes..][..bytes];
                            each(at, group(BlockType::$name, block, index % groups));
                        }
                    })*
                }
            };
        }
        macro_rules! plain {
            ($size:literal, $value:expr) => {{
                let values = &row[piece.first * $size..][..piece.n * $size];
                for (at, bytes) in values.chunks($size * GROUP).enumerate() {
                    let mut group = [0.0; GROUP];
                    for (out, bytes) in group.iter_mut().zip(bytes.as_chunks::<$size>().0) {
                        *out = $value(*bytes);
                    }
                    each(at, group);
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
                kind: Fp8::E4M3,
                scale,
                nan_as_zero,
            } => plain!(1, |[b]: [u8; 1]| scaled(
                Fp8::E4M3.decode(b),
                scale,
                nan_as_zero
            )),
            Encoding::Fp8 {
                kind: Fp8::E5M2,
                scale,
                nan_as_zero,
            } => plain!(1, |[b]: [u8; 1]| scaled(
                Fp8::E5M2.decode(b),
                scale,
                nan_as_zero
            )),
        }
    }

    #[inline(always)]
    fn scaled(value: f32, scale: f32, nan_as_zero: bool) -> f32 {
        match nan_as_zero && value.is_nan() {
            true => 0.0,
            false => value * scale,
        }
    }

    /// Calls `store` with the groups of 16 columns: `(column, number of the group, values)`, as
    /// they are multiplied.
    #[inline(always)]
    fn half(piece: &Piece<'_>, half: usize, mut store: impl FnMut(usize, usize, &Group)) {
        let rows = piece.rows;
        for column in 0..HALF {
            let Some(row) = rows.row(piece.panel, half * HALF + column) else {
                for at in 0..piece.n.div_ceil(GROUP) {
                    store(column, at, &[0.0; GROUP]);
                }
                continue;
            };
            groups(row, piece, |at, mut values| {
                if let Some(gain) = &rows.gain {
                    let gain = &gain[piece.first + at * GROUP..];
                    for (value, gain) in values.iter_mut().zip(gain) {
                        *value *= gain;
                    }
                }
                store(column, at, &values);
            });
        }
    }

    /// # Safety
    ///
    /// As [`Expand::f32`].
    #[inline(always)]
    pub(crate) unsafe fn f32(
        piece: &Piece<'_>,
        out: *mut f32,
        transpose: impl Fn(*const u32, usize, *mut u32, usize),
    ) {
        const ROW: usize = MAX_PIECE / 4;
        assert!(piece.n <= ROW, "a piece of {} in f32", piece.n);
        let mut tile = [0u32; HALF * ROW];
        let rounds = piece.rows.rounds;
        for side in 0..2 {
            half(piece, side, |column, at, values| {
                let place = &mut tile[column * ROW + at * GROUP..][..GROUP];
                for (out, &value) in place.iter_mut().zip(values) {
                    let rounded = from_bf16(to_bf16(value));
                    *out = if rounds { rounded } else { value }.to_bits();
                }
            });
            for k in (0..piece.n).step_by(16) {
                let to = out.cast::<u32>().wrapping_add(k * PANEL + side * HALF);
                transpose(tile[k..].as_ptr(), ROW, to, PANEL);
            }
        }
    }

    /// # Safety
    ///
    /// As [`Expand::bf16`].
    #[inline(always)]
    pub(crate) unsafe fn bf16(
        piece: &Piece<'_>,
        high: *mut u16,
        low: *mut u16,
        transpose: impl Fn(*const u32, usize, *mut u32, usize),
    ) {
        const ROW: usize = MAX_PIECE / 2;
        assert!(piece.n <= MAX_PIECE, "a piece of {} in bf16", piece.n);
        /// Two values of a row are a word, as they lie in memory.
        #[repr(align(64))]
        struct Tile([[u16; 2]; HALF * ROW]);
        let mut tile = Tile([[0; 2]; HALF * ROW]);
        let mut rest = Tile([[0; 2]; HALF * ROW]);
        let turn = |tile: &Tile, side: usize, out: *mut u16| {
            for at in 0..piece.n.div_ceil(GROUP) {
                let to = out.cast::<u32>().wrapping_add((at * 2 + side) * 16 * HALF);
                transpose(tile.0[at * HALF..].as_ptr().cast(), ROW, to, HALF);
            }
        };
        for side in 0..2 {
            if low.is_null() {
                half(piece, side, |column, at, values| {
                    let place = &mut tile.0[column * ROW + at * HALF..][..HALF];
                    for (out, &value) in place.as_flattened_mut().iter_mut().zip(values) {
                        *out = to_bf16(value);
                    }
                });
            } else {
                half(piece, side, |column, at, values| {
                    let place = column * ROW + at * HALF;
                    let tile = tile.0[place..][..HALF].as_flattened_mut();
                    let rest = rest.0[place..][..HALF].as_flattened_mut();
                    for ((high, low), &value) in tile.iter_mut().zip(rest).zip(values) {
                        (*high, *low) = split_bf16(value);
                    }
                });
                turn(&rest, side, low);
            }
            turn(&tile, side, high);
        }
    }
}
