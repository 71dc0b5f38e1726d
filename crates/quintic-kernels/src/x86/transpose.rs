//! Transposing 16 x 16 words in registers.

use std::arch::x86_64::*;

/// # Safety
///
/// As [`crate::rows::transpose`]; needs AVX-512 F.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) unsafe fn avx512(from: *const u32, from_row: usize, to: *mut u32, to_row: usize) {
    // SAFETY: by the caller's word.
    unsafe {
        let row = |i: usize| _mm512_loadu_si512(from.add(i * from_row).cast());
        // Of four rows each, in lane `l` of vector `c`: word `4 l + c` of all four.
        let four = |i: usize| {
            let (a, b, c, d) = (row(4 * i), row(4 * i + 1), row(4 * i + 2), row(4 * i + 3));
            let (low, high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
            let (low2, high2) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
            [
                _mm512_unpacklo_epi64(low, low2),
                _mm512_unpackhi_epi64(low, low2),
                _mm512_unpacklo_epi64(high, high2),
                _mm512_unpackhi_epi64(high, high2),
            ]
        };
        let fours = [four(0), four(1), four(2), four(3)];
        for c in 0..4 {
            let even = _mm512_shuffle_i32x4::<0x88>(fours[0][c], fours[1][c]);
            let even2 = _mm512_shuffle_i32x4::<0x88>(fours[2][c], fours[3][c]);
            let odd = _mm512_shuffle_i32x4::<0xdd>(fours[0][c], fours[1][c]);
            let odd2 = _mm512_shuffle_i32x4::<0xdd>(fours[2][c], fours[3][c]);
            let put = |lane: usize, row| {
                _mm512_storeu_si512(to.add((4 * lane + c) * to_row).cast(), row);
            };
            put(0, _mm512_shuffle_i32x4::<0x88>(even, even2));
            put(1, _mm512_shuffle_i32x4::<0x88>(odd, odd2));
            put(2, _mm512_shuffle_i32x4::<0xdd>(even, even2));
            put(3, _mm512_shuffle_i32x4::<0xdd>(odd, odd2));
        }
    }
}

/// # Safety
///
/// As [`crate::rows::transpose`]; needs AVX2.
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) unsafe fn avx2(from: *const u32, from_row: usize, to: *mut u32, to_row: usize) {
    for quarter in 0..4 {
        let (i, j) = (quarter / 2 * 8, quarter % 2 * 8);
        // SAFETY: by the caller's word.
        unsafe {
            let (from, to) = (from.add(i * from_row + j), to.add(j * to_row + i));
            let row = |i: usize| _mm256_loadu_si256(from.add(i * from_row).cast());
            let four = |i: usize| {
                let (a, b, c, d) = (row(4 * i), row(4 * i + 1), row(4 * i + 2), row(4 * i + 3));
                let (low, high) = (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
                let (low2, high2) = (_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
                [
                    _mm256_unpacklo_epi64(low, low2),
                    _mm256_unpackhi_epi64(low, low2),
                    _mm256_unpacklo_epi64(high, high2),
                    _mm256_unpackhi_epi64(high, high2),
                ]
            };
            let fours = [four(0), four(1)];
            for c in 0..4 {
                let put = |lane: usize, row| {
                    _mm256_storeu_si256(to.add((4 * lane + c) * to_row).cast(), row);
                };
                put(
                    0,
                    _mm256_permute2x128_si256::<0x20>(fours[0][c], fours[1][c]),
                );
                put(
                    1,
                    _mm256_permute2x128_si256::<0x31>(fours[0][c], fours[1][c]),
                );
            }
        }
    }
}
