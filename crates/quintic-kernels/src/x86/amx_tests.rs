//! The tile kernels beside plain loops, on an emulator where the machine has no tiles.

use super::*;
use crate::micro::{CHUNK, Fetch, PANEL, reference};

/// Where the chunks of `a` are.
#[derive(Clone, Copy, Debug)]
enum Layout {
    /// Rows one behind the other, with odd gaps between them.
    Rows,
    /// Tiles of 16 rows and one chunk.
    Tiles,
}

const LAYOUTS: [Layout; 2] = [Layout::Rows, Layout::Tiles];
const ROWS: [usize; 7] = [1, 2, 15, 16, 17, 31, 32];
const CHUNKS: [usize; 6] = [1, 2, 3, 5, 16, 33];

/// What stands where nothing may be written.
const UNTOUCHED: f32 = -12345.0;

struct Case {
    layout: Layout,
    rows: usize,
    chunks: usize,
    c_row: usize,
    accumulate: bool,
    a: Vec<u16>,
    b: Vec<u16>,
    c: Vec<f32>,
}

impl Case {
    /// Values between -1 and 1. Those of a row do not depend on the number of rows, nor on
    /// the layout; rows that fill up the last tile are NaN.
    fn new(layout: Layout, rows: usize, chunks: usize, c_row: usize, accumulate: bool) -> Case {
        let whole_rows = rows.next_multiple_of(MICRO.row_multiple);
        let mut case = Case {
            layout,
            rows,
            chunks,
            c_row,
            accumulate,
            a: Vec::new(),
            b: (0..1024 * chunks)
                .map(|at| value(7, at).to_bits())
                .collect(),
            // A column of `c` beyond the panel, and a row beyond the last tile.
            c: vec![UNTOUCHED; (whole_rows + 1) * c_row],
        };
        case.a = vec![half::bf16::NAN.to_bits(); case.at(whole_rows, 0) + CHUNK * chunks];
        for row in 0..rows {
            for k in 0..CHUNK * chunks {
                let at = case.at(row, k);
                case.a[at] = value(row + 1000, k).to_bits();
            }
            for column in 0..PANEL {
                case.c[row * c_row + column] = 4.0 * value(row + 2000, column).to_f32();
            }
        }
        case
    }

    fn name(&self) -> (Layout, usize, usize, usize, bool) {
        let Case {
            rows,
            chunks,
            c_row,
            accumulate,
            ..
        } = *self;
        (self.layout, rows, chunks, c_row, accumulate)
    }

    fn strides(&self) -> [usize; 3] {
        match self.layout {
            Layout::Rows => {
                let row = CHUNK * self.chunks + 7;
                [row, 16 * row, CHUNK]
            }
            Layout::Tiles => [CHUNK, 512 * self.chunks, 512],
        }
    }

    /// Where an element of `a` is.
    fn at(&self, row: usize, k: usize) -> usize {
        let [a_row, a_group, a_chunk] = self.strides();
        row / 16 * a_group + row % 16 * a_row + k / CHUNK * a_chunk + k % CHUNK
    }

    fn block(&self, c: &mut [f32]) -> Bf16Block {
        let [a_row, a_group, a_chunk] = self.strides();
        Bf16Block {
            a: self.a.as_ptr(),
            a_row,
            a_group,
            a_chunk,
            b: self.b.as_ptr(),
            chunks: self.chunks,
            c: c.as_mut_ptr(),
            c_row: self.c_row,
            rows: self.rows,
            accumulate: self.accumulate,
            // Every way to read is tested, over all sizes.
            again: [Again::A, Again::B, Again::Memory, Again::Next][(self.rows + self.chunks) % 4],
            fetch: Fetch::firsts(self.b.as_ptr()),
        }
    }

    fn run(&self) -> Vec<f32> {
        let (mut before, mut c) = (self.c.clone(), self.c.clone());
        let (first, block) = (self.block(&mut before), self.block(&mut c));
        quintic_tiles::install();
        // SAFETY: tiles work, if need be in software; the matrices have memory for whole
        // tiles.
        unsafe {
            (MICRO.enter)();
            // Leaves something in the tiles, which no later block may add to.
            (MICRO.run)(&first);
            (MICRO.run)(&block);
            (MICRO.leave)();
        }
        c
    }

    fn expected(&self) -> Vec<f32> {
        let mut c = self.c.clone();
        let block = self.block(&mut c);
        // SAFETY: the matrices are allocated.
        unsafe { reference::bf16_block(&block) };
        c
    }

    /// For every sum, the sum of the absolute values of its terms, `c` among them.
    fn magnitudes(&self) -> Vec<f32> {
        let absolute = |values: &[u16]| values.iter().map(|bits| bits & 0x7FFF).collect();
        let case = Case {
            a: absolute(&self.a),
            b: absolute(&self.b),
            c: self.c.iter().map(|value| value.abs()).collect(),
            ..*self
        };
        case.expected()
    }
}

/// A value between -1 and 1 that looks random.
fn value(stream: usize, at: usize) -> half::bf16 {
    let mut bits = (stream as u64) << 32 | at as u64;
    for _ in 0..2 {
        bits = (bits ^ bits >> 31).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
    half::bf16::from_f32((bits >> 40) as f32 / (1 << 23) as f32 - 1.0)
}

fn cases() -> impl Iterator<Item = Case> {
    LAYOUTS.into_iter().flat_map(|layout| {
        ROWS.into_iter().flat_map(move |rows| {
            CHUNKS.into_iter().flat_map(move |chunks| {
                [(false, 32), (false, 33), (true, 32), (true, 50)]
                    .map(|(accumulate, c_row)| Case::new(layout, rows, chunks, c_row, accumulate))
            })
        })
    })
}

/// Every term of a sum is rounded as part of at most 16 partial sums of its half of the
/// pairs, then in the sum of both halves, then in one addition per chunk; bf16 products
/// themselves are exact. That is at most `17 + chunks` roundings of 2^-24 each, of which
/// `c` takes part in the last `chunks`, and one more of the expected value. With
/// `k = 32 * chunks` it is less than `2 * k` roundings, and that leaves room for any other
/// order in which a tile unit might sum.
#[test]
fn products_are_those_of_plain_loops() {
    for case in cases() {
        let (c, expected, magnitudes) = (case.run(), case.expected(), case.magnitudes());
        let bound = 2.0 * (CHUNK * case.chunks) as f32 * 2.0f32.powi(-24);
        let name = (
            case.layout,
            case.rows,
            case.chunks,
            case.c_row,
            case.accumulate,
        );
        for row in 0..case.rows {
            for column in 0..PANEL {
                let at = row * case.c_row + column;
                let error = (c[at] - expected[at]).abs();
                assert!(
                    error <= bound * magnitudes[at],
                    "{name:?} {row} {column}: {error}"
                );
            }
        }
        let whole_rows = case.rows.next_multiple_of(MICRO.row_multiple);
        for (at, &value) in c.iter().enumerate() {
            if at / case.c_row >= whole_rows || at % case.c_row >= PANEL {
                assert_eq!(value, UNTOUCHED, "{name:?} {at}");
            }
        }
    }
}

/// Sums of small integers are exact in any order, so that a term too many, too few, or at
/// a wrong place cannot hide in a bound.
#[test]
fn integers_are_summed_exactly() {
    for mut case in cases() {
        for bits in case.a.iter_mut().chain(&mut case.b) {
            let value = half::bf16::from_bits(*bits).to_f32();
            *bits = half::bf16::from_f32((value * 8.0).round()).to_bits();
        }
        for value in &mut case.c {
            *value = value.round();
        }
        let (c, expected) = (case.run(), case.expected());
        for row in 0..case.rows {
            let row = row * case.c_row..row * case.c_row + PANEL;
            assert_eq!(c[row.clone()], expected[row], "{:?}", case.name());
        }
    }
}

#[test]
fn no_chunks_are_a_product_of_zero() {
    for (rows, accumulate) in [(1, false), (1, true), (32, false), (32, true)] {
        let case = Case::new(Layout::Tiles, rows, 0, 32, accumulate);
        assert_eq!(case.run()[..rows * 32], case.expected()[..rows * 32]);
    }
}

fn bits(c: &[f32], case: &Case, row: usize) -> Vec<u32> {
    let row = &c[row * case.c_row..][..PANEL];
    row.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn a_row_is_the_same_among_any_rows() {
    for chunks in CHUNKS {
        for accumulate in [false, true] {
            let all = Case::new(Layout::Rows, 32, chunks, 32, accumulate);
            let expected = all.run();
            for layout in LAYOUTS {
                for rows in ROWS {
                    let some = Case::new(layout, rows, chunks, 40, accumulate);
                    let c = some.run();
                    for row in 0..rows {
                        assert_eq!(bits(&c, &some, row), bits(&expected, &all, row));
                    }
                }
            }
            // A row as the first of all.
            let mut moved = Case::new(Layout::Tiles, 1, chunks, 32, accumulate);
            for k in 0..CHUNK * chunks {
                let at = moved.at(0, k);
                moved.a[at] = all.a[all.at(29, k)];
            }
            moved.c[..PANEL].copy_from_slice(&all.c[29 * 32..][..PANEL]);
            assert_eq!(bits(&moved.run(), &moved, 0), bits(&expected, &all, 29));
        }
    }
}

#[test]
fn what_is_not_finite_stays_in_its_row() {
    for rows in [16, 32] {
        for bad_row in [0, 3, 15, rows - 1] {
            for bad in [half::bf16::NAN, half::bf16::INFINITY] {
                let mut case = Case::new(Layout::Rows, rows, 3, 32, true);
                let finite = case.run();
                let at = case.at(bad_row, 40);
                case.a[at] = bad.to_bits();
                let c = case.run();
                for row in 0..rows {
                    if row == bad_row {
                        let values = &c[row * 32..][..PANEL];
                        assert!(values.iter().all(|value| !value.is_finite()));
                    } else {
                        assert_eq!(bits(&c, &case, row), bits(&finite, &case, row));
                    }
                }
            }
        }
    }
}

#[test]
fn threads_have_tiles_of_their_own() {
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                let case = Case::new(Layout::Tiles, 8 * thread + 1, 16, 32, false);
                let rows = |c: &[f32]| -> Vec<_> {
                    (0..case.rows).map(|row| bits(c, &case, row)).collect()
                };
                let first = rows(&case.run());
                for _ in 0..20 {
                    assert!(rows(&case.run()) == first);
                }
            });
        }
    });
}

#[test]
fn the_peak_loop_ends() {
    quintic_tiles::install();
    for iterations in [0, 1, 100] {
        // SAFETY: tiles work, if need be in software.
        unsafe {
            (MICRO.enter)();
            peak_loop(iterations);
            (MICRO.leave)();
        }
    }
}
