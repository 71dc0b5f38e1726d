//! The kernels as functions: grid, block and shared memory of each, and the checks that make a
//! launch sound.
//!
//! Sizes that disagree are a bug of the caller's and panic with the numbers.

use bytemuck::Pod;

use crate::Result;
use crate::device::{Address, Device, Element, Launch};
use crate::parameters::{
    AppendKv, AttendPlain, AttendTiles, Convert, Embed, Gate, PlaceRows, PoolRows, RmsNorm, Tile,
};

/// Threads of a block of most kernels; `ROW_THREADS` in the sources.
const ROW_THREADS: u32 = 256;
/// Columns of one thread of `gate_*`.
const GATE_COLUMNS: u32 = 8;
/// Queries of a [`Tile`].
pub const TILE_QUERIES: usize = 64;
const TILE_KEYS: usize = 64;
const TILE_THREADS: u32 = 128;
const PLAIN_THREADS: u32 = 128;
/// The widest head that [`attend_plain`] takes.
pub const PLAIN_WIDTH: usize = 512;
/// Head widths that [`attend_tiles`] takes.
pub const TILE_WIDTHS: [usize; 2] = [64, 128];
/// The longest strip of bias, `2 * reach + 1`, that [`attend_tiles`] takes.
pub const TILE_STRIP: usize = 8191;

/// Names and numbers of the functions that `gate_*` knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[allow(missing_docs, reason = "their names are their formulas'")]
pub enum Activation {
    Relu = 0,
    GeluTanh = 1,
    GeluErf = 2,
    QuickGelu = 3,
    Silu = 4,
    Tanh = 5,
    Sigmoid = 6,
    Linear = 7,
}

/// Which keys a query of [`attend_plain`] sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum PlainMask {
    /// All of its row.
    None = 0,
    /// Those with a flag.
    Keys = 1,
    /// Those with a flag for this query.
    Pairs = 2,
    /// Up to its own position.
    Causal = 3,
}

/// Blocks that are enough to fill any device, for kernels that walk in steps of the grid.
fn walking_blocks(count: u64) -> u32 {
    count.div_ceil(u64::from(ROW_THREADS)).min(16_384) as u32
}

fn type_code(element: Element) -> u32 {
    match element {
        Element::F32 => 0,
        Element::Bf16 => 1,
        Element::F16 => 2,
    }
}

/// # Safety
///
/// As [`Device::launch`].
unsafe fn launch<P: Pod>(
    device: &dyn Device,
    kernel: &str,
    grid: [usize; 3],
    block: u32,
    shared_bytes: usize,
    parameter: &P,
) -> Result<()> {
    let grid = grid.map(|n| u32::try_from(n).unwrap_or_else(|_| panic!("{n} blocks of {kernel}")));
    assert!(
        grid[1] <= 65_535 && grid[2] <= 65_535,
        "{grid:?} of {kernel}"
    );
    // SAFETY: passed on; the name and the type of the parameter are paired below.
    unsafe {
        device.launch(&Launch {
            kernel,
            grid,
            block,
            shared_bytes: shared_bytes as u32,
            parameter: bytemuck::bytes_of(parameter),
        })
    }
}

/// `out[t] = table[ids[t]]` in f32.
///
/// # Errors
///
/// As the device's; so below.
///
/// # Safety
///
/// The addresses hold what `parameters.cuh` says of them, in the sizes that the counts give; so
/// below.
pub unsafe fn embed(d: &dyn Device, table: Element, tokens: usize, p: &Embed) -> Result<()> {
    let kernel = match table {
        Element::F32 => "embed_f32",
        Element::Bf16 => "embed_bf16",
        Element::F16 => "embed_f16",
    };
    // SAFETY: the caller's.
    unsafe { launch(d, kernel, [tokens, 1, 1], ROW_THREADS, 0, p) }
}

/// `out[t] = x[t] / sqrt(mean(x[t]^2) + eps) * gain`.
///
/// # Errors
///
/// See [`embed`].
///
/// # Safety
///
/// See [`embed`].
pub unsafe fn rms_norm(d: &dyn Device, out: Element, tokens: usize, p: &RmsNorm) -> Result<()> {
    let kernel = match out {
        Element::F32 => "rms_norm_f32",
        Element::Bf16 => "rms_norm_bf16",
        Element::F16 => "rms_norm_f16",
    };
    // SAFETY: the caller's.
    unsafe { launch(d, kernel, [tokens, 1, 1], ROW_THREADS, 0, p) }
}

/// Activation, with or without a gate.
///
/// # Errors
///
/// See [`embed`].
///
/// # Safety
///
/// See [`embed`].
pub unsafe fn gate(d: &dyn Device, element: Element, p: &Gate) -> Result<()> {
    let kernel = match element {
        Element::F32 => "gate_f32",
        Element::Bf16 => "gate_bf16",
        Element::F16 => "gate_f16",
    };
    let columns = p.columns.div_ceil(ROW_THREADS * GATE_COLUMNS) as usize;
    let grid = [columns, (p.tokens as usize).min(65_535), 1];
    // SAFETY: the caller's.
    unsafe { launch(d, kernel, grid, ROW_THREADS, 0, p) }
}

/// Numbers of one type to another, with a factor for each column. `src_type` and `dst_type` of
/// the parameter are set here.
///
/// # Errors
///
/// See [`embed`].
///
/// # Safety
///
/// See [`embed`].
pub unsafe fn convert(d: &dyn Device, from: Element, to: Element, p: &Convert) -> Result<()> {
    let p = Convert {
        src_type: type_code(from),
        dst_type: type_code(to),
        ..*p
    };
    let blocks = walking_blocks(p.count) as usize;
    // SAFETY: the caller's.
    unsafe { launch(d, "convert_any", [blocks, 1, 1], ROW_THREADS, 0, &p) }
}

/// One vector a row.
///
/// # Errors
///
/// See [`embed`].
///
/// # Safety
///
/// See [`embed`].
pub unsafe fn pool_rows(d: &dyn Device, rows: usize, p: &PoolRows) -> Result<()> {
    let blocks = p.columns.div_ceil(ROW_THREADS) as usize;
    // Rows beyond what a grid's second side can count are more launches.
    for first in (0..rows).step_by(65_535) {
        let part = PoolRows {
            row_starts: p.row_starts.offset(4 * first),
            out: p.out.offset(4 * first * p.columns as usize),
            ..*p
        };
        let n = (rows - first).min(65_535);
        // SAFETY: the caller's; the part is inside the whole.
        unsafe { launch(d, "pool_f32", [blocks, n, 1], ROW_THREADS, 0, &part)? };
    }
    Ok(())
}

/// Rows of a stream to where they are wanted, in another type. `out_type` of the parameter is set
/// here.
///
/// # Errors
///
/// See [`embed`].
///
/// # Safety
///
/// See [`embed`].
pub unsafe fn place_rows(
    d: &dyn Device,
    out: Element,
    results: usize,
    p: &PlaceRows,
) -> Result<()> {
    let p = PlaceRows {
        out_type: type_code(out),
        ..*p
    };
    // SAFETY: the caller's.
    unsafe { launch(d, "place_f32", [results, 1, 1], ROW_THREADS, 0, &p) }
}

/// Copies new keys and values into a cache.
///
/// # Errors
///
/// See [`embed`].
///
/// # Safety
///
/// See [`embed`].
pub unsafe fn append_kv(
    d: &dyn Device,
    element: Element,
    tokens: usize,
    p: &AppendKv,
) -> Result<()> {
    let kernel = match element {
        Element::F32 => "append_kv_f32",
        Element::Bf16 | Element::F16 => "append_kv_16",
    };
    // SAFETY: the caller's.
    unsafe { launch(d, kernel, [tokens, 1, 1], ROW_THREADS, 0, p) }
}

/// Whether [`attend_tiles`] can compute attention of that form.
pub fn tiles_fit(element: Element, d_kv: usize, reach: usize) -> bool {
    element != Element::F32 && TILE_WIDTHS.contains(&d_kv) && 2 * reach < TILE_STRIP
}

/// The tiles of rows with these bounds, the longest rows first: their blocks take longest.
pub fn tiles(row_starts: &[usize]) -> Vec<Tile> {
    let mut rows: Vec<usize> = (0..row_starts.len() - 1).collect();
    rows.sort_by_key(|&row| std::cmp::Reverse(row_starts[row + 1] - row_starts[row]));
    let mut tiles = Vec::new();
    for row in rows {
        let length = row_starts[row + 1] - row_starts[row];
        tiles.extend((0..length).step_by(TILE_QUERIES).map(|first| Tile {
            row: row as u32,
            first: first as u32,
        }));
    }
    tiles
}

/// Attention on matrix units, for what [`tiles_fit`] says; `tiles` blocks a head.
///
/// # Errors
///
/// See [`embed`].
///
/// # Safety
///
/// See [`embed`].
pub unsafe fn attend_tiles(
    d: &dyn Device,
    element: Element,
    d_kv: usize,
    tiles: usize,
    p: &AttendTiles,
) -> Result<()> {
    let kernel = match (d_kv, element) {
        (64, Element::Bf16) => "attend_64_bf16",
        (64, Element::F16) => "attend_64_f16",
        (128, Element::Bf16) => "attend_128_bf16",
        (128, Element::F16) => "attend_128_f16",
        other => panic!("no tiles for {other:?}"),
    };
    let strip = match p.bias {
        Address::NULL => 0,
        _ => (2 * p.reach as usize + 1) * 4,
    };
    let shared = 4 * TILE_KEYS * d_kv * 2 + strip;
    let grid = [tiles, p.heads as usize, 1];
    // SAFETY: the caller's.
    unsafe { launch(d, kernel, grid, TILE_THREADS, shared, p) }
}

/// Attention of any form, for heads up to [`PLAIN_WIDTH`].
///
/// # Errors
///
/// See [`embed`].
///
/// # Safety
///
/// See [`embed`].
pub unsafe fn attend_plain(
    d: &dyn Device,
    element: Element,
    tokens: usize,
    p: &AttendPlain,
) -> Result<()> {
    assert!(p.d_kv as usize <= PLAIN_WIDTH, "heads of {}", p.d_kv);
    let kernel = match element {
        Element::F32 => "attend_plain_f32",
        Element::Bf16 => "attend_plain_bf16",
        Element::F16 => "attend_plain_f16",
    };
    let grid = [tokens, p.heads as usize, 1];
    // SAFETY: the caller's.
    unsafe { launch(d, kernel, grid, PLAIN_THREADS, 0, p) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_every_query_once_and_long_rows_come_first() {
        let starts = [0, 0, 1, 65, 130, 130, 330];
        let found = tiles(&starts);
        let mut seen = vec![0; 330];
        for tile in &found {
            let (first, end) = (starts[tile.row as usize], starts[tile.row as usize + 1]);
            let from = first + tile.first as usize;
            assert!(from < end, "{tile:?} is empty");
            for count in &mut seen[from..end.min(from + TILE_QUERIES)] {
                *count += 1;
            }
        }
        assert!(seen.iter().all(|&count| count == 1), "{seen:?}");
        assert_eq!(found[0].row, 5);
    }
}
