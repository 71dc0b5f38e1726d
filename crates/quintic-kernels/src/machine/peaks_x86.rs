//! Loops that do nothing but one instruction, on as many registers as hide its latency.

use std::arch::asm;
use std::arch::x86_64::*;
use std::hint::black_box;

use super::{Loop, Unit};
use crate::Isa;
use crate::x86::amx;

/// Independent sums: four cycles of latency and two instructions a cycle need eight; bf16 dot
/// products take up to six cycles.
const SUMS: usize = 12;

/// The loop of a unit, if this machine has it.
pub(super) fn busy_loop(unit: Unit) -> Option<Loop> {
    let (available, busy): (bool, Loop) = match unit {
        Unit::PortableF32 => (true, sse2_f32),
        Unit::Avx2F32 => (Isa::Avx2.is_available(), |n| {
            // SAFETY: returned only where its features were detected.
            unsafe { avx2_f32(n) }
        }),
        Unit::Avx512F32 => (Isa::Avx512.is_available(), |n| {
            // SAFETY: returned only where its features were detected.
            unsafe { avx512_f32(n) }
        }),
        Unit::Avx512Bf16 => (Isa::Avx512Bf16.is_available(), |n| {
            // SAFETY: returned only where its features were detected.
            unsafe { avx512_bf16(n) }
        }),
        Unit::Avx512Vnni => (
            Isa::Avx512.is_available() && is_x86_feature_detected!("avx512vnni"),
            |n| {
                // SAFETY: returned only where its features were detected.
                unsafe { avx512_vnni(n) }
            },
        ),
        Unit::AmxBf16 => (Isa::Amx.is_available(), |n| {
            // SAFETY: returned only where its features were detected; tiles are configured
            // before and released after.
            unsafe {
                (amx::MICRO.enter)();
                amx::peak_loop(n);
                (amx::MICRO.leave)();
            }
            (n * amx::PEAK_FLOPS) as f64
        }),
    };
    available.then_some(busy)
}

/// Hides a register's value from the compiler, which could else fold the loop.
macro_rules! hide {
    ($class:ident, $value:expr) => {
        // SAFETY: no instruction at all.
        unsafe { asm!("/* {0} */", inout($class) $value, options(nomem, nostack, preserves_flags)) }
    };
}

/// The baseline has no fused multiply-add: a product and an addition are two instructions.
fn sse2_f32(iterations: u64) -> f64 {
    // SAFETY: every x86-64 CPU has SSE2.
    let (factor, term) = unsafe { (_mm_set1_ps(0.999), _mm_set1_ps(1e-3)) };
    // SAFETY: as above.
    let mut sums = [unsafe { _mm_setzero_ps() }; SUMS];
    for _ in 0..iterations {
        for sum in &mut sums {
            // SAFETY: as above.
            *sum = unsafe { _mm_add_ps(_mm_mul_ps(*sum, factor), term) };
            hide!(xmm_reg, *sum);
        }
    }
    black_box(sums);
    (iterations * SUMS as u64 * 4 * 2) as f64
}

/// # Safety
///
/// AVX2 and FMA are available.
#[target_feature(enable = "avx2,fma")]
fn avx2_f32(iterations: u64) -> f64 {
    let (factor, term) = (_mm256_set1_ps(0.999), _mm256_set1_ps(1e-3));
    let mut sums = [_mm256_setzero_ps(); SUMS];
    for _ in 0..iterations {
        for sum in &mut sums {
            *sum = _mm256_fmadd_ps(*sum, factor, term);
            hide!(ymm_reg, *sum);
        }
    }
    black_box(sums);
    (iterations * SUMS as u64 * 8 * 2) as f64
}

/// # Safety
///
/// AVX512F is available.
#[target_feature(enable = "avx512f")]
fn avx512_f32(iterations: u64) -> f64 {
    let (factor, term) = (_mm512_set1_ps(0.999), _mm512_set1_ps(1e-3));
    let mut sums = [_mm512_setzero_ps(); SUMS];
    for _ in 0..iterations {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(*sum, factor, term);
            hide!(zmm_reg, *sum);
        }
    }
    black_box(sums);
    (iterations * SUMS as u64 * 16 * 2) as f64
}

/// # Safety
///
/// AVX512F and AVX512_BF16 are available.
#[target_feature(enable = "avx512f,avx512bf16")]
fn avx512_bf16(iterations: u64) -> f64 {
    // SAFETY: both types are 512 plain bits. 0x3c00 is 0.0078125, small enough for any sum.
    let (a, b): (__m512bh, __m512bh) = unsafe {
        (
            std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi16(0x3c00)),
            std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi16(0x3c01)),
        )
    };
    let mut sums = [_mm512_setzero_ps(); SUMS];
    for _ in 0..iterations {
        for sum in &mut sums {
            *sum = _mm512_dpbf16_ps(*sum, a, b);
            hide!(zmm_reg, *sum);
        }
    }
    black_box(sums);
    (iterations * SUMS as u64 * 32 * 2) as f64
}

/// # Safety
///
/// AVX512F and AVX512_VNNI are available.
#[target_feature(enable = "avx512f,avx512vnni")]
fn avx512_vnni(iterations: u64) -> f64 {
    let (a, b) = (_mm512_set1_epi8(1), _mm512_set1_epi8(2));
    let mut sums = [_mm512_setzero_si512(); SUMS];
    for _ in 0..iterations {
        for sum in &mut sums {
            *sum = _mm512_dpbusd_epi32(*sum, a, b);
            hide!(zmm_reg, *sum);
        }
    }
    black_box(sums);
    (iterations * SUMS as u64 * 64 * 2) as f64
}
