//! The tile unit: its state, and what instructions do to it.

use std::fmt;

use crate::decode::Product;

pub(crate) const TILES: usize = 8;
pub(crate) const ROWS: usize = 16;
pub(crate) const ROW_BYTES: usize = 64;

/// The memory operand of LDTILECFG and STTILECFG: a palette, a start row, for each tile its
/// row length (two bytes each from 16 on) and its rows (a byte each from 48 on).
pub(crate) type Config = [u8; 64];

/// Why the hardware would have refused an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    NotConfigured,
    TileNotConfigured(usize),
    Palette(u8),
    StartRow,
    Reserved(usize),
    TileShape {
        tile: usize,
        rows: usize,
        row_bytes: usize,
    },
    SameTile,
    PartialElement(usize),
    Shapes {
        sum: (usize, usize),
        a: (usize, usize),
        b: (usize, usize),
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Refusal::NotConfigured => f.write_str("tiles are not configured"),
            Refusal::TileNotConfigured(tile) => write!(f, "tile {tile} is not configured"),
            Refusal::Palette(palette) => write!(f, "there is no palette {palette}"),
            Refusal::StartRow => f.write_str("a start row is not supported"),
            Refusal::Reserved(byte) => write!(f, "reserved byte {byte} is not zero"),
            Refusal::TileShape {
                tile,
                rows,
                row_bytes,
            } => write!(f, "tile {tile} cannot be {rows} rows of {row_bytes} bytes"),
            Refusal::SameTile => f.write_str("two operands are the same tile"),
            Refusal::PartialElement(tile) => {
                write!(f, "rows of tile {tile} are not whole groups of 4 bytes")
            }
            Refusal::Shapes { sum, a, b } => {
                let [sum, a, b] = [sum, a, b].map(|(rows, bytes)| Shape(rows, bytes));
                write!(f, "shapes {sum} += {a} * {b} disagree")
            }
        }
    }
}

/// Rows, and bytes of a row.
struct Shape(usize, usize);

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} x {} bytes", self.0, self.1)
    }
}

/// One row of a tile.
pub(crate) type Row = [u8; ROW_BYTES];

/// The tile unit of a thread.
pub(crate) struct Tiles {
    configured: bool,
    rows: [u8; TILES],
    row_bytes: [u8; TILES],
    data: [[Row; ROWS]; TILES],
}

impl Tiles {
    pub(crate) const fn new() -> Tiles {
        Tiles {
            configured: false,
            rows: [0; TILES],
            row_bytes: [0; TILES],
            data: [[[0; ROW_BYTES]; ROWS]; TILES],
        }
    }

    pub(crate) fn load_config(&mut self, config: &Config) -> Result<(), Refusal> {
        match config[0] {
            0 => {
                self.release();
                return Ok(());
            }
            1 => {}
            palette => return Err(Refusal::Palette(palette)),
        }
        if config[1] != 0 {
            return Err(Refusal::StartRow);
        }
        for reserved in (2..16).chain(32..48).chain(56..64) {
            if config[reserved] != 0 {
                return Err(Refusal::Reserved(reserved));
            }
        }
        let (mut all_rows, mut all_row_bytes) = ([0; TILES], [0; TILES]);
        for tile in 0..TILES {
            let rows = usize::from(config[48 + tile]);
            let row_bytes = u16::from_le_bytes([config[16 + 2 * tile], config[17 + 2 * tile]]);
            let row_bytes = usize::from(row_bytes);
            if rows > ROWS || row_bytes > ROW_BYTES || (rows == 0) != (row_bytes == 0) {
                return Err(Refusal::TileShape {
                    tile,
                    rows,
                    row_bytes,
                });
            }
            // Both were just seen to be small.
            (all_rows[tile], all_row_bytes[tile]) = (rows as u8, row_bytes as u8);
        }
        self.release();
        (self.configured, self.rows, self.row_bytes) = (true, all_rows, all_row_bytes);
        Ok(())
    }

    /// All zeros where nothing is configured.
    pub(crate) fn config(&self) -> Config {
        let mut config = [0; 64];
        config[0] = u8::from(self.configured);
        for tile in 0..TILES {
            config[16 + 2 * tile] = self.row_bytes[tile];
            config[48 + tile] = self.rows[tile];
        }
        config
    }

    pub(crate) fn release(&mut self) {
        *self = const { Tiles::new() };
    }

    pub(crate) fn zero(&mut self, tile: usize) -> Result<(), Refusal> {
        self.shape(tile)?;
        self.data[tile] = [[0; ROW_BYTES]; ROWS];
        Ok(())
    }

    /// Rows of a tile, and bytes of a row.
    pub(crate) fn shape(&self, tile: usize) -> Result<(usize, usize), Refusal> {
        if !self.configured {
            return Err(Refusal::NotConfigured);
        }
        if self.rows[tile] == 0 {
            return Err(Refusal::TileNotConfigured(tile));
        }
        Ok((self.rows[tile].into(), self.row_bytes[tile].into()))
    }

    /// As [`Tiles::shape`], of a tile that goes to or comes from memory: in groups of 4 bytes, as a CPU with tiles was
    /// found to ask for.
    fn whole_shape(&self, tile: usize) -> Result<(usize, usize), Refusal> {
        let (rows, row_bytes) = self.shape(tile)?;
        match row_bytes.is_multiple_of(4) {
            true => Ok((rows, row_bytes)),
            false => Err(Refusal::PartialElement(tile)),
        }
    }

    /// Fills the configured rows, and zeroes what is beside and below them. `fill` gets the
    /// number of a row and its configured bytes.
    pub(crate) fn load(
        &mut self,
        tile: usize,
        mut fill: impl FnMut(usize, &mut [u8]),
    ) -> Result<(), Refusal> {
        let (rows, row_bytes) = self.whole_shape(tile)?;
        self.data[tile] = [[0; ROW_BYTES]; ROWS];
        for (number, row) in self.data[tile][..rows].iter_mut().enumerate() {
            fill(number, &mut row[..row_bytes]);
        }
        Ok(())
    }

    /// Hands out the configured rows: their numbers and configured bytes.
    pub(crate) fn store(
        &self,
        tile: usize,
        mut take: impl FnMut(usize, &[u8]),
    ) -> Result<(), Refusal> {
        let (rows, row_bytes) = self.whole_shape(tile)?;
        for (number, row) in self.data[tile][..rows].iter().enumerate() {
            take(number, &row[..row_bytes]);
        }
        Ok(())
    }

    /// Hands out all 16 rows, whatever is configured.
    #[cfg(test)]
    pub(crate) fn whole(&self, tile: usize) -> &[Row; ROWS] {
        &self.data[tile]
    }

    /// `sum += a * b`. Each element of `a`, `b` and `sum` here is a group of four bytes.
    pub(crate) fn product(
        &mut self,
        kind: Product,
        sum: usize,
        a: usize,
        b: usize,
    ) -> Result<(), Refusal> {
        if sum == a || sum == b || a == b {
            return Err(Refusal::SameTile);
        }
        let shapes = (self.shape(sum)?, self.shape(a)?, self.shape(b)?);
        for tile in [sum, a, b] {
            if !self.row_bytes[tile].is_multiple_of(4) {
                return Err(Refusal::PartialElement(tile));
            }
        }
        let ((rows, sum_bytes), (a_rows, a_bytes), (b_rows, b_bytes)) = shapes;
        if rows != a_rows || sum_bytes != b_bytes || a_bytes / 4 != b_rows {
            let (sum, a, b) = shapes;
            return Err(Refusal::Shapes { sum, a, b });
        }

        let (depth, columns) = (b_rows, sum_bytes / 4);
        let (a, b) = (self.data[a], self.data[b]);
        let sum = &mut self.data[sum];
        // All 16 columns are computed, which a compiler vectorises. Those that are not
        // configured are zero in `b`, but not in the result if `a` has an infinity.
        match kind {
            Product::Bf16 => {
                #[target_feature(enable = "avx2,fma")]
                fn fused(sum: &mut [Row], a: &[Row; ROWS], b: &[Row]) {
                    bf16_product(sum, a, b);
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    // SAFETY: both features were detected.
                    unsafe { fused(&mut sum[..rows], &a, &b[..depth]) }
                } else {
                    bf16_product(&mut sum[..rows], &a, &b[..depth]);
                }
            }
            Product::Signed => byte_product(&mut sum[..rows], &a, &b[..depth], |byte| {
                byte.cast_signed().into()
            }),
            Product::UnsignedSigned => {
                byte_product(&mut sum[..rows], &a, &b[..depth], i32::from);
            }
        }
        for row in &mut sum[..rows] {
            row[4 * columns..].fill(0);
        }
        Ok(())
    }
}

/// The 16 groups of a row.
fn groups(row: &Row) -> [[u8; 4]; 16] {
    std::array::from_fn(|at| {
        [
            row[4 * at],
            row[4 * at + 1],
            row[4 * at + 2],
            row[4 * at + 3],
        ]
    })
}

/// The two bf16 of every group, as f32; denormals become zeros.
#[inline(always)]
fn pairs(row: &Row) -> ([f32; 16], [f32; 16]) {
    let wide = |low, high| flushed(f32::from_bits(u32::from_le_bytes([0, 0, low, high])));
    let groups = groups(row);
    (
        groups.map(|[low, high, _, _]| wide(low, high)),
        groups.map(|[_, _, low, high]| wide(low, high)),
    )
}

/// A zero of the same sign if `value` is denormal.
#[inline(always)]
fn flushed(value: f32) -> f32 {
    const SIGN: u32 = 1 << 31;
    if value.abs() < f32::MIN_POSITIVE {
        f32::from_bits(value.to_bits() & SIGN)
    } else {
        value
    }
}

/// The sums of the first and of the second factors of all pairs are kept apart, each by fused
/// operations in the order of `k`; their sum is then added to the tile's.
#[inline(always)]
fn bf16_product(sum: &mut [Row], a: &[Row; ROWS], b: &[Row]) {
    let mut wide_b = [([0.0f32; 16], [0.0f32; 16]); ROWS];
    for (wide, row) in wide_b.iter_mut().zip(b) {
        *wide = pairs(row);
    }
    for (sum, a) in sum.iter_mut().zip(a) {
        let (a_first, a_second) = pairs(a);
        let (mut first, mut second) = ([0.0f32; 16], [0.0f32; 16]);
        for (k, (b_first, b_second)) in wide_b[..b.len()].iter().enumerate() {
            for n in 0..16 {
                first[n] = flushed(a_first[k].mul_add(b_first[n], first[n]));
                second[n] = flushed(a_second[k].mul_add(b_second[n], second[n]));
            }
        }
        let old = groups(sum).map(|group| flushed(f32::from_le_bytes(group)));
        for n in 0..16 {
            let new = flushed(old[n] + flushed(first[n] + second[n]));
            sum[4 * n..4 * n + 4].copy_from_slice(&new.to_le_bytes());
        }
    }
}

/// Products of four bytes each are summed and wrap around; only `b` is always signed.
fn byte_product(sum: &mut [Row], a: &[Row; ROWS], b: &[Row], a_value: impl Fn(u8) -> i32) {
    for (sum, a) in sum.iter_mut().zip(a) {
        let mut sums = groups(sum).map(i32::from_le_bytes);
        for (a, b) in groups(a).iter().zip(b) {
            for (sum, b) in sums.iter_mut().zip(groups(b)) {
                for (&a, b) in a.iter().zip(b) {
                    // A product of two bytes cannot overflow.
                    *sum = sum.wrapping_add(a_value(a) * i32::from(b.cast_signed()));
                }
            }
        }
        for (bytes, sum) in sum.chunks_exact_mut(4).zip(sums) {
            bytes.copy_from_slice(&sum.to_le_bytes());
        }
    }
}
