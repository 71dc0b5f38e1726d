//! What expanding weights leaves to an instruction set: the arithmetic of blocks, and transposing
//! 16 x 16 words in registers.

use std::arch::x86_64::*;

use crate::blocks::{Raw, TABLE};
use crate::rows::Vectors;

/// AVX2.
pub(crate) struct Avx2;

/// AVX-512 F.
pub(crate) struct Avx512;

impl Vectors for Avx2 {
    #[inline(always)]
    unsafe fn values(raw: &Raw, out: *mut f32) {
        // SAFETY: by the caller's word.
        unsafe { values_avx2(raw, out) }
    }

    #[inline(always)]
    unsafe fn transpose(from: *const u32, from_row: usize, to: *mut u32, to_row: usize) {
        // SAFETY: by the caller's word.
        unsafe { transpose_avx2(from, from_row, to, to_row) }
    }
}

impl Vectors for Avx512 {
    #[inline(always)]
    unsafe fn values(raw: &Raw, out: *mut f32) {
        // SAFETY: by the caller's word.
        unsafe { values_avx512(raw, out) }
    }

    #[inline(always)]
    unsafe fn transpose(from: *const u32, from_row: usize, to: *mut u32, to_row: usize) {
        // SAFETY: by the caller's word.
        unsafe { transpose_avx512(from, from_row, to, to_row) }
    }
}

/// # Safety
///
/// As [`Vectors::values`]; needs AVX-512 F.
#[inline]
#[target_feature(enable = "avx512f,avx2")]
unsafe fn values_avx512(raw: &Raw, out: *mut f32) {
    // SAFETY: a table is 16 bytes; the rest by the caller's word.
    unsafe {
        let table = _mm_loadu_si128(TABLE.as_ptr().cast());
        let offset = _mm512_set1_epi32(raw.offset);
        for half in 0..2 {
            // Not loaded: what was just stored in two halves would have to reach the cache first.
            let [low, high] = [raw.numbers[2 * half], raw.numbers[2 * half + 1]];
            let numbers = _mm_set_epi64x(high as i64, low as i64);
            let numbers = match raw.chooses {
                true => _mm512_cvtepi8_epi32(_mm_shuffle_epi8(table, numbers)),
                false => _mm512_cvtepu8_epi32(numbers),
            };
            let numbers = _mm512_cvtepi32_ps(_mm512_sub_epi32(numbers, offset));
            let scaled = _mm512_mul_ps(_mm512_set1_ps(raw.scale[half]), numbers);
            let values = _mm512_sub_ps(scaled, _mm512_set1_ps(raw.min[half]));
            _mm512_storeu_ps(out.add(16 * half), values);
        }
    }
}

/// # Safety
///
/// As [`Vectors::values`]; needs AVX2.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn values_avx2(raw: &Raw, out: *mut f32) {
    // SAFETY: a table is 16 bytes; the rest by the caller's word.
    unsafe {
        let table = _mm_loadu_si128(TABLE.as_ptr().cast());
        let offset = _mm256_set1_epi32(raw.offset);
        for quarter in 0..4 {
            let numbers = _mm_cvtsi64_si128(raw.numbers[quarter] as i64);
            let numbers = match raw.chooses {
                true => _mm256_cvtepi8_epi32(_mm_shuffle_epi8(table, numbers)),
                false => _mm256_cvtepu8_epi32(numbers),
            };
            let numbers = _mm256_cvtepi32_ps(_mm256_sub_epi32(numbers, offset));
            let scaled = _mm256_mul_ps(_mm256_set1_ps(raw.scale[quarter / 2]), numbers);
            let values = _mm256_sub_ps(scaled, _mm256_set1_ps(raw.min[quarter / 2]));
            _mm256_storeu_ps(out.add(8 * quarter), values);
        }
    }
}

/// # Safety
///
/// As [`Vectors::transpose`]; needs AVX-512 F.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn transpose_avx512(from: *const u32, from_row: usize, to: *mut u32, to_row: usize) {
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
        let [first, second, third, fourth] = [four(0), four(1), four(2), four(3)];
        for (c, &first) in first.iter().enumerate() {
            let even = _mm512_shuffle_i32x4::<0x88>(first, second[c]);
            let even2 = _mm512_shuffle_i32x4::<0x88>(third[c], fourth[c]);
            let odd = _mm512_shuffle_i32x4::<0xdd>(first, second[c]);
            let odd2 = _mm512_shuffle_i32x4::<0xdd>(third[c], fourth[c]);
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
/// As [`Vectors::transpose`]; needs AVX2.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn transpose_avx2(from: *const u32, from_row: usize, to: *mut u32, to_row: usize) {
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
            let (first, second) = (four(0), four(1));
            for (c, &first) in first.iter().enumerate() {
                let put = |lane: usize, row| {
                    _mm256_storeu_si256(to.add((4 * lane + c) * to_row).cast(), row);
                };
                put(0, _mm256_permute2x128_si256::<0x20>(first, second[c]));
                put(1, _mm256_permute2x128_si256::<0x31>(first, second[c]));
            }
        }
    }
}
