//! Few rows of f32 or bf16 with codes of 8 or 4 bits in AVX-512: codes are widened in registers.
//!
//! With few rows reading weights is the limit, so they are read once and in the order in which they
//! stand. Every sum takes the same terms in the same order as over an expanded panel, and gets
//! the same bits.

use std::arch::x86_64::*;
use std::sync::atomic::{Ordering, compiler_fence};

use crate::micro::{Bf16Block, F32Block, PANEL, by_rows};
use crate::quantised::{CHUNK, FewRows, INT4_CHUNK, INT4_CODES, INT8_CHUNK, LINE, QUAD, Quantised};

/// f32 rows; AVX-512 F alone.
pub(crate) const FEW_F32: FewRows<F32Block<u8>> = FewRows {
    max_rows: MOST_ROWS,
    int8: run_f32_int8,
    int4: run_f32_int4,
};

/// bf16 rows; needs AVX512_BF16.
pub(crate) const FEW_BF16: FewRows<Bf16Block> = FewRows {
    max_rows: MOST_ROWS,
    int8: run_bf16_int8,
    int4: run_bf16_int4,
};

/// With more rows expanding a panel once costs less than widening beside every few of them.
const MOST_ROWS: usize = 12;

/// How many bytes ahead of their use codes are asked for, since widening them takes so long that the
/// processor itself does not look far enough ahead: into the second-level cache, and from there into
/// the first.
const FAR: usize = 8192;
const NEAR: usize = 1024;

/// Asks for what is read soon; what is not there does no harm.
#[inline(always)]
pub(super) fn ahead(at: *const u8) {
    // SAFETY: a prefetch reads nothing that could be seen.
    unsafe {
        _mm_prefetch::<_MM_HINT_T1>(at.wrapping_add(FAR).cast());
        _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(NEAR).cast());
    }
}

/// Lines of half a chunk of int4.
const INT4_LINES: usize = CHUNK / QUAD / 2;

/// Columns of half a panel: lanes of a vector.
const HALF: usize = PANEL / 2;

/// Writes sums to `c` or adds them, as `avx512` does.
macro_rules! write {
    ($sums:ident, $block:ident) => {
        for (row, sums) in $sums.iter().enumerate() {
            let c = $block.c.add(row * $block.c_row);
            let halves = if $block.accumulate {
                [
                    _mm512_add_ps(_mm512_loadu_ps(c), sums[0]),
                    _mm512_add_ps(_mm512_loadu_ps(c.add(HALF)), sums[1]),
                ]
            } else {
                *sums
            };
            _mm512_storeu_ps(c, halves[0]);
            _mm512_storeu_ps(c.add(HALF), halves[1]);
        }
    };
}

/// `$bits` bits of each 32-bit lane, from bit `$shift` on, as the lowest bits of a significand whose
/// exponent makes the first of them worth one: an integer plus [`bias`]. Of integers with a sign the
/// topmost bit is flipped by `$flip`, which adds half their range. One instruction, on either
/// of two units; shifts and conversions would take two and three, most of them on one.
macro_rules! as_significand {
    ($lanes:expr, $bits:literal, $shift:literal, $flip:expr) => {{
        let mask = _mm512_set1_epi32(((1 << $bits) - 1) << $shift);
        let rest = _mm512_set1_epi32((127 + 23 - $shift) << 23 | $flip << $shift);
        // `(lanes & mask) ^ rest`.
        _mm512_castsi512_ps(_mm512_ternarylogic_epi32::<0x6a>($lanes, mask, rest))
    }};
}

/// What [`as_significand`] has added to an integer of `bits` bits that began at bit `shift`.
const fn bias(bits: u32, shift: u32) -> f32 {
    ((1u32 << (23 - shift)) + (1 << (bits - 1))) as f32
}

/// The four codes of 16 columns' quads as f32, `k` by `k`. Exact: so are both terms of a difference.
#[inline]
#[target_feature(enable = "avx512f")]
fn four_of_int8(quads: __m512i) -> [__m512; QUAD] {
    let upper = _mm512_srli_epi32::<16>(quads);
    let (even, odd) = (_mm512_set1_ps(bias(8, 0)), _mm512_set1_ps(bias(8, 8)));
    [
        _mm512_sub_ps(as_significand!(quads, 8, 0, 128), even),
        _mm512_sub_ps(as_significand!(quads, 8, 8, 128), odd),
        _mm512_sub_ps(as_significand!(upper, 8, 0, 128), even),
        _mm512_sub_ps(as_significand!(upper, 8, 8, 128), odd),
    ]
}

/// A group's sixteen multipliers as f32, and their products with the biases of nibbles, negated.
struct Multipliers {
    by: __m512,
    biases: [__m512; QUAD],
}

impl Multipliers {
    /// # Safety
    ///
    /// Sixteen bytes exist at `at`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn read(at: *const u8) -> Self {
        // SAFETY: by the caller's word.
        let by = unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(at.cast()))) };
        let of = |shift| _mm512_mul_ps(by, _mm512_set1_ps(-bias(4, shift)));
        Multipliers {
            by,
            biases: [of(0), of(4), of(8), of(12)],
        }
    }
}

/// The eight codes of a line of int4 as f32, `k` by `k`: the product of `q` and the multiplier, of `q`
/// plus 8 as it is stored. Exact: a bias is 8 times 2^20 + 1 or less, which times 15 has 24 bits, and
/// the fused multiplication rounds nothing before the biases have cancelled.
#[inline]
#[target_feature(enable = "avx512f")]
fn eight_of_int4(line: __m512i, by: &Multipliers) -> [__m512; 2 * QUAD] {
    let upper = _mm512_srli_epi32::<16>(line);
    let code = |significand, place: usize| _mm512_fmadd_ps(significand, by.by, by.biases[place]);
    [
        code(as_significand!(line, 4, 0, 0), 0),
        code(as_significand!(line, 4, 8, 0), 2),
        code(as_significand!(upper, 4, 0, 0), 0),
        code(as_significand!(upper, 4, 8, 0), 2),
        code(as_significand!(line, 4, 4, 0), 1),
        code(as_significand!(line, 4, 12, 0), 3),
        code(as_significand!(upper, 4, 4, 0), 1),
        code(as_significand!(upper, 4, 12, 0), 3),
    ]
}

/// The codes of a line of half a chunk of int4.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn int4_line(chunk: *const u8, half: usize, line: usize) -> [__m512; 2 * QUAD] {
    // SAFETY: the chunk's multipliers and lines exist, by the caller's word.
    unsafe {
        let by = Multipliers::read(chunk.add(INT4_CODES + (half * 2 + line / 4) * HALF));
        let at = chunk.add(half * INT4_CODES / 2 + line * LINE);
        ahead(at);
        eight_of_int4(_mm512_loadu_si512(at.cast()), &by)
    }
}

/// Two adjacent `k` as pairs of bf16, which hold codes exactly.
#[inline]
#[target_feature(enable = "avx512f")]
fn pair(even: __m512, odd: __m512) -> __m512bh {
    let even = _mm512_srli_epi32::<16>(_mm512_castps_si512(even));
    let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
    // `(odd & upper) | even`.
    let bits = _mm512_ternarylogic_epi32::<0xec>(_mm512_castps_si512(odd), even, upper);
    // SAFETY: both are 512 bits without an invalid pattern.
    unsafe { std::mem::transmute(bits) }
}

/// A half of a chunk of int8 in f32, line by line.
macro_rules! int8_f32 {
    ($sums:ident, $half:literal, $a:ident, $b:expr, $block:ident) => {
        for quad in 0..CHUNK / QUAD {
            ahead($b.wrapping_add(quad * LINE));
            let codes = four_of_int8(_mm512_loadu_si512($b.add(quad * LINE).cast()));
            for (row, sums) in $sums.iter_mut().enumerate() {
                let a = $a.add(row * $block.a_row + QUAD * quad);
                for (k, &codes) in codes.iter().enumerate() {
                    sums[$half] = _mm512_fmadd_ps(codes, _mm512_set1_ps(*a.add(k)), sums[$half]);
                }
            }
        }
    };
}

/// A line of a half of a chunk of int4 in f32.
macro_rules! int4_f32 {
    ($sums:ident, $half:literal, $line:ident, $a:ident, $b:ident, $block:ident) => {
        let codes = int4_line($b, $half, $line);
        for (row, sums) in $sums.iter_mut().enumerate() {
            let a = $a.add(row * $block.a_row + 2 * QUAD * $line);
            for (k, &codes) in codes.iter().enumerate() {
                sums[$half] = _mm512_fmadd_ps(codes, _mm512_set1_ps(*a.add(k)), sums[$half]);
            }
        }
    };
}

/// Multiplies pairs of bf16 with the rows' from `$k` on.
macro_rules! dot_pair {
    ($sums:ident, $half:literal, $codes:expr, $a:ident, $k:expr, $block:ident) => {
        let codes = $codes;
        for (row, sums) in $sums.iter_mut().enumerate() {
            let a = $a.add(row * $block.a_row + $k).cast::<i32>();
            let a: __m512bh = std::mem::transmute(_mm512_set1_epi32(a.read_unaligned()));
            sums[$half] = _mm512_dpbf16_ps(sums[$half], codes, a);
        }
    };
}

/// A half of a chunk of int8 in bf16.
macro_rules! int8_bf16 {
    ($sums:ident, $half:literal, $a:ident, $b:expr, $block:ident) => {
        for quad in 0..CHUNK / QUAD {
            ahead($b.wrapping_add(quad * LINE));
            let codes = four_of_int8(_mm512_loadu_si512($b.add(quad * LINE).cast()));
            let k = QUAD * quad;
            dot_pair!($sums, $half, pair(codes[0], codes[1]), $a, k, $block);
            dot_pair!($sums, $half, pair(codes[2], codes[3]), $a, k + 2, $block);
        }
    };
}

/// A line of a half of a chunk of int4 in bf16.
macro_rules! int4_bf16 {
    ($sums:ident, $half:literal, $line:ident, $a:ident, $b:ident, $block:ident) => {
        let codes = int4_line($b, $half, $line);
        let k = 2 * QUAD * $line;
        dot_pair!($sums, $half, pair(codes[0], codes[1]), $a, k, $block);
        dot_pair!($sums, $half, pair(codes[2], codes[3]), $a, k + 2, $block);
        dot_pair!($sums, $half, pair(codes[4], codes[5]), $a, k + 4, $block);
        dot_pair!($sums, $half, pair(codes[6], codes[7]), $a, k + 6, $block);
    };
}

/// Both halves of a chunk, the second when the first has been read.
macro_rules! in_order {
    ($first:expr, $second:expr) => {{
        $first;
        compiler_fence(Ordering::SeqCst);
        $second;
    }};
}

/// A kernel of few rows.
macro_rules! few_rows {
    ($run:ident, $rows:ident, $block:ty, $features:literal, |$sums:ident, $a:ident, $b:ident, $of:ident|
     $chunks:expr, $chunk:expr, $size:expr) => {
        /// # Safety
        ///
        /// As [`FewRows`] says.
        #[target_feature(enable = $features)]
        unsafe fn $run(block: &$block) {
            // SAFETY: by the caller's word.
            unsafe { by_rows!($rows, block, 1 2 3 4 5 6 7 8 9 10 11 12) }
        }

        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn $rows<const ROWS: usize>($of: &$block) {
            // SAFETY: rows and chunks are inside what the caller has allocated.
            unsafe {
                let mut $sums = [[_mm512_setzero_ps(); 2]; ROWS];
                let (mut $a, mut $b) = ($of.a, $of.b.cast::<u8>());
                for _ in 0..$chunks {
                    $chunk;
                    $a = $a.add(CHUNK);
                    $b = $b.add($size);
                }
                write!($sums, $of);
            }
        }
    };
}

few_rows!(
    run_f32_int8,
    f32_int8,
    F32Block<u8>,
    "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma",
    |sums, a, b, block| block.depth / CHUNK,
    in_order!(
        int8_f32!(sums, 0, a, b, block),
        int8_f32!(sums, 1, a, b.add(INT8_CHUNK / 2), block)
    ),
    INT8_CHUNK
);
few_rows!(
    run_f32_int4,
    f32_int4,
    F32Block<u8>,
    "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma",
    |sums, a, b, block| block.depth / CHUNK,
    in_order!(
        for line in 0..INT4_LINES {
            int4_f32!(sums, 0, line, a, b, block);
        },
        for line in 0..INT4_LINES {
            int4_f32!(sums, 1, line, a, b, block);
        }
    ),
    INT4_CHUNK
);
few_rows!(
    run_bf16_int8,
    bf16_int8,
    Bf16Block,
    "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma",
    |sums, a, b, block| block.chunks / 2,
    in_order!(
        int8_bf16!(sums, 0, a, b, block),
        int8_bf16!(sums, 1, a, b.add(INT8_CHUNK / 2), block)
    ),
    INT8_CHUNK
);
few_rows!(
    run_bf16_int4,
    bf16_int4,
    Bf16Block,
    "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma",
    |sums, a, b, block| block.chunks / 2,
    in_order!(
        for line in 0..INT4_LINES {
            int4_bf16!(sums, 0, line, a, b, block);
        },
        for line in 0..INT4_LINES {
            int4_bf16!(sums, 1, line, a, b, block);
        }
    ),
    INT4_CHUNK
);

/// By hand: left to the compiler, lanes are taken apart and put together again, or gathered.
pub(crate) const QUANTISED: Quantised = Quantised {
    int8_to_bf16,
    int8_to_f32,
    int4_to_int8,
    scale_columns,
    ..compiled::QUANTISED
};

/// # Safety
///
/// As [`Quantised::int8_to_bf16`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn int8_to_bf16(codes: &[u8], out: &mut [u16]) {
    let chunks = codes.as_chunks::<INT8_CHUNK>().0;
    for (chunk, out) in chunks.iter().zip(out.as_chunks_mut::<INT8_CHUNK>().0) {
        for (at, line) in chunk.as_chunks::<LINE>().0.iter().enumerate() {
            let (half, quad) = (at / (CHUNK / QUAD), at % (CHUNK / QUAD));
            // Two chunks of bf16, in each the halves one after the other, a quad is two pairs.
            let to = (quad / 8 * 2 + half) * INT8_CHUNK / 4 + quad % 8 * LINE;
            let out = &mut out[to..][..LINE];
            // SAFETY: a line was read; two vectors were just found to fit.
            unsafe {
                let codes = four_of_int8(_mm512_loadu_si512(line.as_ptr().cast()));
                for (two, out) in out.as_chunks_mut::<{ LINE / 2 }>().0.iter_mut().enumerate() {
                    let pair: __m512i =
                        std::mem::transmute(pair(codes[2 * two], codes[2 * two + 1]));
                    _mm512_storeu_si512(out.as_mut_ptr().cast(), pair);
                }
            }
        }
    }
}

/// # Safety
///
/// As [`Quantised::int8_to_f32`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn int8_to_f32(codes: &[u8], out: &mut [f32]) {
    let chunks = codes.as_chunks::<INT8_CHUNK>().0;
    for (chunk, out) in chunks.iter().zip(out.as_chunks_mut::<INT8_CHUNK>().0) {
        for (at, line) in chunk.as_chunks::<LINE>().0.iter().enumerate() {
            let (half, quad) = (at / (CHUNK / QUAD), at % (CHUNK / QUAD));
            let rows = &mut out[quad * QUAD * PANEL..][..QUAD * PANEL];
            // SAFETY: a line was read.
            let codes = four_of_int8(unsafe { _mm512_loadu_si512(line.as_ptr().cast()) });
            for (row, codes) in rows.as_chunks_mut::<PANEL>().0.iter_mut().zip(codes) {
                let out = &mut row[half * HALF..][..HALF];
                // SAFETY: sixteen values, just checked.
                unsafe { _mm512_storeu_ps(out.as_mut_ptr(), codes) };
            }
        }
    }
}

/// # Safety
///
/// As [`Quantised::int4_to_int8`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn int4_to_int8(codes: &[u8], out: &mut [u8]) {
    let lower = _mm512_set1_epi16(0x00ff);
    let nibbles = _mm512_set1_epi8(15);
    let eight = _mm512_set1_epi16(8);
    // A multiplier's lower half in both halves of 32 bits.
    let twice = _mm512_set4_epi32(0x0d0c_0d0c, 0x0908_0908, 0x0504_0504, 0x0100_0100);
    let chunks = codes.as_chunks::<INT4_CHUNK>().0;
    for (chunk, out) in chunks.iter().zip(out.as_chunks_mut::<INT8_CHUNK>().0) {
        let (codes, multipliers) = chunk.split_at(INT4_CODES);
        let lines = codes.as_chunks::<LINE>().0;
        for (at, (line, out)) in (lines.iter())
            .zip(out.as_chunks_mut::<{ 2 * LINE }>().0)
            .enumerate()
        {
            let by = &multipliers[at / 4 * HALF..][..HALF];
            ahead(line.as_ptr());
            // SAFETY: a line and sixteen multipliers were read, two lines are written.
            unsafe {
                let by = _mm512_cvtepi8_epi32(_mm_loadu_si128(by.as_ptr().cast()));
                let by = _mm512_shuffle_epi8(by, twice);
                let line = _mm512_loadu_si512(line.as_ptr().cast());
                let halves = [line, _mm512_srli_epi16::<4>(line)];
                for (out, half) in out.as_chunks_mut::<LINE>().0.iter_mut().zip(halves) {
                    let q = _mm512_and_si512(half, nibbles);
                    let even = _mm512_sub_epi16(_mm512_and_si512(q, lower), eight);
                    let odd = _mm512_sub_epi16(_mm512_srli_epi16::<8>(q), eight);
                    let even = _mm512_and_si512(_mm512_mullo_epi16(even, by), lower);
                    let odd = _mm512_slli_epi16::<8>(_mm512_mullo_epi16(odd, by));
                    _mm512_storeu_si512(out.as_mut_ptr().cast(), _mm512_or_si512(even, odd));
                }
            }
        }
    }
}

/// # Safety
///
/// As [`Quantised::scale_columns`].
#[target_feature(enable = "avx512f")]
unsafe fn scale_columns(sums: *mut f32, rows: usize, by: &[f32; PANEL]) {
    // SAFETY: the rows exist, by the caller's word; `by` has two vectors.
    unsafe {
        let by = [0, HALF].map(|half| _mm512_loadu_ps(by.as_ptr().add(half)));
        for row in 0..rows {
            for (half, by) in by.iter().enumerate() {
                let sums = sums.add(row * PANEL + half * HALF);
                _mm512_storeu_ps(sums, _mm512_mul_ps(_mm512_loadu_ps(sums), *by));
            }
        }
    }
}

/// All others.
mod compiled {
    crate::quantised::instantiate!("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma");
}
