//! Queries, keys and values in the order in which products of bf16 read them.
//!
//! An attention's operands stand token after token. Its products want 16 rows of 32 columns side by side (what
//! is multiplied), or pairs of `k` for 16 columns each (what it is multiplied with, see
//! [`Bf16Block`](crate::micro::Bf16Block)). Here such pieces are made, from f32 or from values that were split into
//! two parts of bf16 when they were written. Both ways give the same bits.

use crate::math::split_bf16;
use crate::micro::CHUNK;
use crate::operand::{Form, Operand};

/// A piece of an operand: some rows, and at most [`CHUNK`] columns. What is missing to a whole tile is zero.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TileOf<'a> {
    /// In f32, or split into two parts of bf16.
    pub(crate) x: &'a Operand,
    /// First row, and how many there are.
    pub(crate) token: usize,
    pub(crate) rows: usize,
    /// First column, and how many there are.
    pub(crate) column: usize,
    pub(crate) columns: usize,
    /// Where the nearest bf16 go.
    pub(crate) high: *mut u16,
    /// Where the nearest bf16 to the rest go; null if that is left out.
    pub(crate) low: *mut u16,
}

/// Values of a row of a tile.
pub(crate) const WIDTH: usize = CHUNK;

/// Most rows of a tile of queries or keys.
pub(crate) const ROWS: usize = 16;

/// Values of such a tile.
pub(crate) const SIZE: usize = ROWS * WIDTH;

/// Makes pieces. All are `unsafe` to call for the same reasons: the instruction set is available, the rows and columns
/// exist, and the places of a whole tile are this thread's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tiles {
    /// Up to 16 rows, one after the other: what is multiplied.
    pub(crate) rows: unsafe fn(&TileOf<'_>),
    /// Up to 16 rows that become columns: half a chunk of what is multiplied with.
    pub(crate) keys: unsafe fn(&TileOf<'_>),
    /// Up to 32 rows that become `k`: a chunk of what is multiplied with, 32 columns.
    pub(crate) values: unsafe fn(&TileOf<'_>),
}

/// Value by value; what other ways are tested against.
pub(crate) const PLAIN: Tiles = Tiles { rows, keys, values };

/// Both parts of a value; zeros outside.
fn parts(tile: &TileOf<'_>, row: usize, column: usize) -> (u16, u16) {
    if row >= tile.rows || column >= tile.columns {
        return (0, 0);
    }
    let at = tile.x.stride.at(tile.token + row, tile.column + column);
    // SAFETY: the element exists, by the caller's word.
    unsafe {
        match tile.x.form {
            Form::Split => (*tile.x.as_bf16(0).add(at), *tile.x.as_bf16(1).add(at)),
            _ => split_bf16(*tile.x.as_f32().add(at)),
        }
    }
}

/// Writes the tile's values, each to the place that `to` gives for its row and column.
unsafe fn place(tile: &TileOf<'_>, rows: usize, to: impl Fn(usize, usize) -> usize) {
    for row in 0..rows {
        for column in 0..WIDTH {
            let (high, low) = parts(tile, row, column);
            // SAFETY: by the caller's word.
            unsafe {
                *tile.high.add(to(row, column)) = high;
                if !tile.low.is_null() {
                    *tile.low.add(to(row, column)) = low;
                }
            }
        }
    }
}

unsafe fn rows(tile: &TileOf<'_>) {
    // SAFETY: by the caller's word.
    unsafe { place(tile, ROWS, |row, column| row * WIDTH + column) }
}

unsafe fn keys(tile: &TileOf<'_>) {
    let to = |row: usize, column: usize| column / 2 * WIDTH + row * 2 + column % 2;
    // SAFETY: by the caller's word.
    unsafe { place(tile, ROWS, to) }
}

unsafe fn values(tile: &TileOf<'_>) {
    let to = |row: usize, column: usize| {
        column / 16 * SIZE + row / 2 * WIDTH + column % 16 * 2 + row % 2
    };
    // SAFETY: by the caller's word.
    unsafe { place(tile, 2 * ROWS, to) }
}

/// Columns of a row in f32, of an operand in f32 or in parts.
///
/// # Panics
///
/// If they do not exist.
pub(crate) fn read(x: &Operand, token: usize, column: usize, out: &mut [f32]) {
    assert!(token < x.tokens && column + out.len() <= x.columns);
    if let Some(row) = x.row_f32(token) {
        return out.copy_from_slice(&row[column..column + out.len()]);
    }
    for (i, out) in out.iter_mut().enumerate() {
        *out = x.get(token, column + i);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::math::{from_bf16, to_bf16};
    use crate::tests::{for_each_isa, noise};

    /// The same values in f32 and in parts.
    fn operands(tokens: usize, columns: usize) -> [Operand; 2] {
        let mut operands =
            [Form::F32, Form::Split].map(|form| Operand::zeroed(form, tokens, columns));
        let mut next = noise(tokens + columns);
        for token in 0..tokens {
            for column in 0..columns {
                let value = match (token * columns + column) % 97 {
                    3 => f32::INFINITY,
                    5 => f32::NEG_INFINITY,
                    _ => next() * 10f32.powi((column % 9) as i32 - 4),
                };
                for x in &mut operands {
                    x.set(token, column, value);
                }
            }
        }
        operands
    }

    #[test]
    fn tiles_equal_those_made_value_by_value() {
        for_each_isa(|kernels| {
            let tiles = kernels.table.tiles;
            let (tokens, columns) = (70, 200);
            let operands = operands(tokens, columns);
            for (token, column) in [(0, 0), (5, 32), (17, 64), (3, 7), (38, 160)] {
                for (rows, width) in [
                    (16, 32),
                    (1, 32),
                    (16, 1),
                    (15, 31),
                    (0, 0),
                    (7, 17),
                    (32, 32),
                    (19, 20),
                ] {
                    for has_low in [true, false] {
                        for (ours, plain, most) in [
                            (tiles.rows, PLAIN.rows, 16),
                            (tiles.keys, PLAIN.keys, 16),
                            (tiles.values, PLAIN.values, 32),
                        ] {
                            let made: Vec<_> = operands
                                .iter()
                                .flat_map(|x| [(x, ours), (x, plain)])
                                .map(|(x, make)| {
                                    let mut memory = vec![7u16; 4 * SIZE];
                                    let (high, low) = memory.split_at_mut(2 * SIZE);
                                    let tile = TileOf {
                                        x,
                                        token,
                                        rows: rows.min(most),
                                        column,
                                        columns: width,
                                        high: high.as_mut_ptr(),
                                        low: match has_low {
                                            true => low.as_mut_ptr(),
                                            false => std::ptr::null_mut(),
                                        },
                                    };
                                    // SAFETY: everything exists; the instruction set is there.
                                    unsafe { make(&tile) };
                                    memory
                                })
                                .collect();
                            for other in &made[1..] {
                                assert!(
                                    *other == made[0],
                                    "{} {token} {column} {rows} {width}",
                                    kernels.isa()
                                );
                            }
                        }
                    }
                }
            }
        });
    }

    #[test]
    fn the_sum_of_both_parts_is_the_value() {
        let [wide, split] = operands(20, 40);
        for token in 0..20 {
            let (mut a, mut b) = (vec![0.0; 33], vec![0.0; 33]);
            read(&wide, token, 7, &mut a);
            read(&split, token, 7, &mut b);
            for (a, b) in a.into_iter().zip(b) {
                assert!(
                    a == b || (a - b).abs() <= a.abs() * 2f32.powi(-16),
                    "{a} {b}"
                );
            }
        }
        // What is left out of a value in one part is its second part.
        assert_eq!(to_bf16(1.0 + 2f32.powi(-9)), to_bf16(1.0));
        assert_eq!(from_bf16(split_bf16(1.0 + 2f32.powi(-9)).1), 2f32.powi(-9));
    }
}
