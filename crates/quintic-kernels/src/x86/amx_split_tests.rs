//! The tile kernels of two parts beside plain loops, on an emulator where the machine has no tiles.

use super::*;
use crate::micro::{Again, CHUNK, Fetch, First, PANEL};
use crate::tests::noise;
use crate::tiles::SIZE;
use crate::x86::amx::{enter, leave};

const ROWS: [usize; 7] = [1, 2, 15, 16, 17, 31, 32];
const CHUNKS: [usize; 5] = [0, 1, 2, 3, 5];

/// What stands where nothing may be written.
const UNTOUCHED: f32 = -12345.0;

/// What sums begin with.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Begin {
    Zeros,
    /// A row of its own for each row, with gaps between them.
    Rows,
    /// One strip, a value further back for every row.
    Strip,
}

struct Case {
    rows: usize,
    chunks: usize,
    c_row: usize,
    begin: Begin,
    /// Parts of `b`.
    b_parts: usize,
    /// `[part][row][k]` and `[part][k][column]`.
    a: [Vec<half::bf16>; 2],
    b: [Vec<half::bf16>; 2],
    first: Vec<f32>,
}

impl Case {
    /// Values that `next` gives; those of a row do not depend on the number of rows.
    fn new(
        rows: usize,
        chunks: usize,
        begin: Begin,
        b_parts: usize,
        c_row: usize,
        value: &mut dyn FnMut() -> f32,
    ) -> Self {
        let depth = CHUNK * chunks;
        let mut values = |n: usize| (0..n).map(|_| half::bf16::from_f32(value())).collect();
        Case {
            rows,
            chunks,
            c_row,
            begin,
            b_parts,
            a: [values(32 * depth), values(32 * depth)],
            b: [values(depth * PANEL), values(depth * PANEL)],
            first: (0..32 * 40).map(|_| value()).collect(),
        }
    }

    /// The value that row `row`'s sum of a column begins with.
    fn first_of(&self, row: usize, column: usize) -> f32 {
        match self.begin {
            Begin::Zeros => 0.0,
            Begin::Rows => self.first[row * 40 + column],
            Begin::Strip => self.first[31 - row + column],
        }
    }

    /// Both parts of `a` in tiles. Rows behind the last one are NaN.
    fn tiles(&self) -> Vec<u16> {
        let mut tiles = vec![half::bf16::NAN.to_bits(); 32 / 16 * self.chunks * 2 * SIZE];
        for (part, values) in self.a.iter().enumerate() {
            for row in 0..self.rows {
                for k in 0..CHUNK * self.chunks {
                    let tile = (row / 16 * self.chunks + k / CHUNK) * 2 + part;
                    tiles[tile * SIZE + row % 16 * CHUNK + k % CHUNK] =
                        values[row * CHUNK * self.chunks + k].to_bits();
                }
            }
        }
        tiles
    }

    /// A part of `b` in chunks.
    fn panel(&self, part: usize) -> Vec<u16> {
        let mut panel = vec![0; self.chunks * CHUNK * PANEL];
        for k in 0..CHUNK * self.chunks {
            for column in 0..PANEL {
                let half = k / CHUNK * 2 + column / 16;
                let at = half * SIZE + k % CHUNK / 2 * CHUNK + column % 16 * 2 + k % 2;
                panel[at] = self.b[part][k * PANEL + column].to_bits();
            }
        }
        panel
    }

    fn run(&self) -> Vec<f32> {
        let (a, b, rest) = (self.tiles(), self.panel(0), self.panel(1));
        let whole_rows = self.rows.next_multiple_of(16);
        // A column beyond the panel, and a row beyond the last tile.
        let mut c = vec![UNTOUCHED; (whole_rows + 1) * self.c_row];
        let block = SplitBlock {
            a: a.as_ptr(),
            a_group: self.chunks * 2 * SIZE,
            b: b.as_ptr(),
            rest: match self.b_parts {
                1 => std::ptr::null(),
                _ => rest.as_ptr(),
            },
            // Every way to read is tested, over all sizes.
            again: [Again::A, Again::Memory, Again::Next][(self.rows + self.chunks) % 3],
            fetch: Fetch::firsts(b.as_ptr()),
            chunks: self.chunks,
            c: c.as_mut_ptr(),
            c_row: self.c_row,
            rows: self.rows,
            first: match self.begin {
                Begin::Zeros => None,
                Begin::Rows => Some(First {
                    at: self.first.as_ptr(),
                    row: 40,
                }),
                Begin::Strip => Some(First {
                    at: self.first[31..].as_ptr(),
                    row: -1,
                }),
            },
        };
        quintic_tiles::install();
        // SAFETY: tiles work, if need be in software; the matrices have memory for whole tiles.
        unsafe {
            enter();
            // Leaves something in the tiles, which no later block may add to.
            run(&block);
            run(&block);
            leave();
        }
        for (at, &value) in c.iter().enumerate() {
            if at / self.c_row >= whole_rows || at % self.c_row >= PANEL {
                assert_eq!(value, UNTOUCHED, "{at}");
            }
        }
        c
    }

    /// The three products of parts, and the sum of all terms' magnitudes.
    fn expected(&self, row: usize, column: usize) -> (f64, f64) {
        let first = f64::from(self.first_of(row, column));
        let (mut sum, mut magnitude) = (first, first.abs());
        for k in 0..CHUNK * self.chunks {
            let a = |part: usize| self.a[part][row * CHUNK * self.chunks + k].to_f64();
            let b = |part: usize| self.b[part][k * PANEL + column].to_f64();
            let terms = [a(0) * b(0), a(1) * b(0), a(0) * b(1)];
            for term in &terms[..1 + self.b_parts] {
                sum += term;
                magnitude += term.abs();
            }
        }
        (sum, magnitude)
    }
}

fn for_each_case(value: &mut dyn FnMut() -> f32, check: impl Fn(&Case)) {
    for rows in ROWS {
        for chunks in CHUNKS {
            for begin in [Begin::Zeros, Begin::Rows, Begin::Strip] {
                for (b_parts, c_row) in [(1, 32), (1, 37), (2, 32), (2, 37)] {
                    check(&Case::new(rows, chunks, begin, b_parts, c_row, value));
                }
            }
        }
    }
}

/// Sums of small integers are exact in any order, so that a term too many, too few, or at a wrong place cannot hide in a
/// bound.
#[test]
fn integers_are_summed_exactly() {
    let mut next = noise(3);
    for_each_case(&mut || (next() * 8.0).round(), |case| {
        let c = case.run();
        for row in 0..case.rows {
            for column in 0..PANEL {
                let found = f64::from(c[row * case.c_row + column]);
                assert_eq!(found, case.expected(row, column).0, "{row} {column}");
            }
        }
    });
}

/// Products of two bf16 are exact. A term is rounded in at most 17 sums of its chunk's pairs (see the tests of other tile
/// kernels) and in one addition for each product of parts and chunk; each to 2^-24 of what is summed.
#[test]
fn products_are_those_of_plain_loops() {
    let mut next = noise(4);
    for_each_case(&mut || next(), |case| {
        let c = case.run();
        let bound = (17 + 3 * case.chunks) as f64 * 2f64.powi(-24);
        for row in 0..case.rows {
            for column in 0..PANEL {
                let found = f64::from(c[row * case.c_row + column]);
                let (expected, magnitude) = case.expected(row, column);
                let error = (found - expected).abs();
                assert!(error <= bound * magnitude, "{row} {column}: {error}");
            }
        }
    });
}

#[test]
fn a_row_is_the_same_among_any_rows() {
    for chunks in CHUNKS {
        for b_parts in [1, 2] {
            let of = |rows: usize, begin| {
                let mut next = noise(chunks);
                Case::new(rows, chunks, begin, b_parts, 32, &mut || next()).run()
            };
            for begin in [Begin::Zeros, Begin::Rows, Begin::Strip] {
                let all = of(32, begin);
                for rows in ROWS {
                    let some = of(rows, begin);
                    for at in 0..rows * PANEL {
                        assert_eq!(some[at].to_bits(), all[at].to_bits(), "{rows} {at}");
                    }
                }
            }
        }
    }
}

#[test]
fn what_is_not_finite_stays_in_its_row() {
    let mut next = noise(5);
    for rows in [16, 32] {
        for (part, b_parts) in [(0, 1), (1, 1), (0, 2), (1, 2)] {
            let mut case = Case::new(rows, 2, Begin::Strip, b_parts, 32, &mut || next());
            let finite = case.run();
            case.a[part][7 * 2 * CHUNK + 40] = half::bf16::INFINITY;
            let c = case.run();
            for at in 0..rows * PANEL {
                match at / PANEL {
                    7 => assert!(!c[at].is_finite()),
                    _ => assert_eq!(c[at].to_bits(), finite[at].to_bits()),
                }
            }
        }
    }
}
