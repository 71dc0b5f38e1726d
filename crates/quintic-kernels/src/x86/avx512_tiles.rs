//! Tiles of queries, keys and values by AVX-512: a row of 32 values is a vector.

use std::arch::x86_64::*;

use crate::operand::Form;
use crate::tiles::{PLAIN, ROWS, SIZE, TileOf, Tiles, WIDTH};

pub(crate) const TILES: Tiles = Tiles { rows, keys, values };

/// Rows between the one that is read and the one that is fetched: operands are wide, so that rows are far apart and
/// no prefetcher follows them.
const AHEAD: usize = 16;

/// # Safety
///
/// As [`Tiles::rows`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn rows(tile: &TileOf<'_>) {
    if !is_plain(tile) {
        // SAFETY: by the caller's word.
        return unsafe { (PLAIN.rows)(tile) };
    }
    for row in 0..ROWS {
        // SAFETY: by the caller's word.
        unsafe {
            let (high, low) = load(tile, row);
            store(tile.high, row * WIDTH, high);
            store(tile.low, row * WIDTH, low);
        }
    }
}

/// # Safety
///
/// As [`Tiles::keys`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn keys(tile: &TileOf<'_>) {
    if !is_plain(tile) {
        // SAFETY: by the caller's word.
        return unsafe { (PLAIN.keys)(tile) };
    }
    let (mut high, mut low) = (
        [_mm512_setzero_si512(); ROWS],
        [_mm512_setzero_si512(); ROWS],
    );
    for row in 0..ROWS {
        // SAFETY: by the caller's word.
        (high[row], low[row]) = unsafe { load(tile, row) };
    }
    // Pairs of `k` stay together: what changes places is 32 bits wide.
    for (to, rows) in [(tile.high, high), (tile.low, low)] {
        if to.is_null() {
            continue;
        }
        for (pair, keys) in transposed(rows).into_iter().enumerate() {
            // SAFETY: by the caller's word.
            unsafe { store(to, pair * WIDTH, keys) };
        }
    }
}

/// # Safety
///
/// As [`Tiles::values`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn values(tile: &TileOf<'_>) {
    if !is_plain(tile) {
        // SAFETY: by the caller's word.
        return unsafe { (PLAIN.values)(tile) };
    }
    // Column `c` of the one row, then column `c` of the other, for 16 columns.
    let mut order = [0u16; WIDTH];
    for (i, order) in order.iter_mut().enumerate() {
        *order = (i / 2 + i % 2 * WIDTH) as u16;
    }
    // SAFETY: so many values are there.
    let first = unsafe { _mm512_loadu_si512(order.as_ptr().cast()) };
    let second = _mm512_add_epi16(first, _mm512_set1_epi16(16));
    for pair in 0..ROWS {
        // SAFETY: by the caller's word.
        unsafe {
            let (even, odd) = (load(tile, 2 * pair), load(tile, 2 * pair + 1));
            for (to, even, odd) in [(tile.high, even.0, odd.0), (tile.low, even.1, odd.1)] {
                let columns = _mm512_permutex2var_epi16(even, first, odd);
                store(to, pair * WIDTH, columns);
                let columns = _mm512_permutex2var_epi16(even, second, odd);
                store(to, SIZE + pair * WIDTH, columns);
            }
        }
    }
}

/// Whether a row is one piece of memory.
fn is_plain(tile: &TileOf<'_>) -> bool {
    tile.x.form == Form::F32 || (tile.column.is_multiple_of(WIDTH) && tile.columns == WIDTH)
}

/// Writes to a place that there may not be.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store(to: *mut u16, at: usize, values: __m512i) {
    if !to.is_null() {
        // SAFETY: by the caller's word.
        unsafe { _mm512_storeu_si512(to.add(at).cast(), values) };
    }
}

/// Both parts of a row's values.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn load(tile: &TileOf<'_>, row: usize) -> (__m512i, __m512i) {
    let nothing = _mm512_setzero_si512();
    if row >= tile.rows {
        return (nothing, nothing);
    }
    let at = |row: usize| tile.x.stride.at(tile.token + row, tile.column);
    // SAFETY: the row exists, by the caller's word; the masks leave out what is not asked for; a prefetch reads
    // nothing that could be seen.
    unsafe {
        if tile.x.form == Form::Split {
            let plane = |plane: usize| tile.x.as_bf16(plane);
            _mm_prefetch::<_MM_HINT_T0>(plane(0).wrapping_add(at(row + AHEAD)).cast());
            let high = _mm512_loadu_si512(plane(0).add(at(row)).cast());
            if tile.low.is_null() {
                return (high, nothing);
            }
            _mm_prefetch::<_MM_HINT_T0>(plane(1).wrapping_add(at(row + AHEAD)).cast());
            return (high, _mm512_loadu_si512(plane(1).add(at(row)).cast()));
        }
        let x = tile.x.as_f32();
        let ahead = x.wrapping_add(at(row + AHEAD));
        _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
        _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(16).cast());
        let half = |half: usize| {
            let mask = mask_of(tile.columns.saturating_sub(16 * half));
            _mm512_maskz_loadu_ps(mask, x.wrapping_add(at(row) + 16 * half))
        };
        split(half(0), half(1))
    }
}

/// The first `n` of 16 lanes.
fn mask_of(n: usize) -> __mmask16 {
    ((1u32 << n.min(16)) - 1) as __mmask16
}

/// Sixteen values of either, as bf16, and what that leaves of them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(crate) fn split(a: __m512, b: __m512) -> (__m512i, __m512i) {
    let (high_a, high_b) = (to_bf16(a), to_bf16(b));
    let rest = |x: __m512, high: __m512i| {
        let rest = _mm512_sub_ps(x, _mm512_castsi512_ps(_mm512_slli_epi32::<16>(high)));
        // Where the first part is infinite, nothing is to be added.
        const NOT_FINITE: i32 = 0x99;
        let finite = _knot_mask16(_mm512_fpclass_ps_mask::<NOT_FINITE>(rest));
        _mm512_maskz_mov_ps(finite, rest)
    };
    let (low_a, low_b) = (rest(a, high_a), rest(b, high_b));
    (join(high_a, high_b), join(to_bf16(low_a), to_bf16(low_b)))
}

/// The low halves of 16 and of 16 lanes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(crate) fn join(a: __m512i, b: __m512i) -> __m512i {
    let a = _mm512_castsi256_si512(_mm512_cvtepi32_epi16(a));
    _mm512_inserti64x4::<1>(a, _mm512_cvtepi32_epi16(b))
}

/// [`math::to_bf16`](crate::math::to_bf16), each in the lower half of 32 bits.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn to_bf16(x: __m512) -> __m512i {
    let bits = _mm512_castps_si512(x);
    let upper = _mm512_srli_epi32::<16>(bits);
    let odd = _mm512_and_si512(upper, _mm512_set1_epi32(1));
    let rounding = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
    let rounded = _mm512_srli_epi32::<16>(_mm512_add_epi32(bits, rounding));
    let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
    _mm512_mask_or_epi32(rounded, nan, upper, _mm512_set1_epi32(0x40))
}

/// Lane `i` of vector `j` goes to lane `j` of vector `i`.
#[inline]
#[target_feature(enable = "avx512f")]
fn transposed(r: [__m512i; ROWS]) -> [__m512i; ROWS] {
    // Within quarters: pairs of 32 bits, then of 64.
    let mut s = r;
    for i in 0..4 {
        let [a, b, c, d] = [r[4 * i], r[4 * i + 1], r[4 * i + 2], r[4 * i + 3]];
        let (ab, ab2) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let (cd, cd2) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
        s[4 * i] = _mm512_unpacklo_epi64(ab, cd);
        s[4 * i + 1] = _mm512_unpackhi_epi64(ab, cd);
        s[4 * i + 2] = _mm512_unpacklo_epi64(ab2, cd2);
        s[4 * i + 3] = _mm512_unpackhi_epi64(ab2, cd2);
    }
    // `s[4 i + c]` holds, in quarter `q`, lane `4 q + c` of rows `4 i` to `4 i + 3`. Now the quarters.
    let mut t = r;
    for c in 0..4 {
        let [a, b, d, e] = [s[c], s[4 + c], s[8 + c], s[12 + c]];
        let (even, odd) = (
            _mm512_shuffle_i32x4::<0x88>(a, b),
            _mm512_shuffle_i32x4::<0xdd>(a, b),
        );
        let (even2, odd2) = (
            _mm512_shuffle_i32x4::<0x88>(d, e),
            _mm512_shuffle_i32x4::<0xdd>(d, e),
        );
        t[c] = _mm512_shuffle_i32x4::<0x88>(even, even2);
        t[8 + c] = _mm512_shuffle_i32x4::<0xdd>(even, even2);
        t[4 + c] = _mm512_shuffle_i32x4::<0x88>(odd, odd2);
        t[12 + c] = _mm512_shuffle_i32x4::<0xdd>(odd, odd2);
    }
    t
}
