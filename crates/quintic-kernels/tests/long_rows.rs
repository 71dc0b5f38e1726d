//! A row of 16,384 tokens: memory grows with its length, not with its square. The only test of
//! its process, whose memory it looks at.

#![allow(clippy::unwrap_used)]

#[path = "../examples/score_mods/plain.rs"]
mod plain;

use plain::Case;
use quintic_kernels::{Isa, Kernels, NoMask, Precision, RelativeBias};

const TOKENS: usize = 16_384;

/// The most memory that this process has held so far, where the system tells.
fn peak_bytes() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[test]
fn a_row_of_16384_tokens_is_exact_and_needs_no_square_of_memory() {
    let kernels = Kernels::new(Isa::detect(), 2).unwrap();
    let value = |distance: i64| (distance.clamp(-128, 128) * 7).rem_euclid(13) as f32 / 4.0;
    let bias = RelativeBias::new(1, 128, |_, distance| value(distance));
    let exact = |_, query, key| f64::from(value(key as i64 - query as i64));
    let case = Case::new(&kernels, 1, 64, &[TOKENS]);
    let before = peak_bytes();
    for precision in [Precision::F32, Precision::Bf16] {
        case.check(&kernels, precision, &bias, &NoMask, exact, |_, _| true);
    }
    if let (Some(before), Some(after)) = (before, peak_bytes()) {
        // Results of 4 MiB, and for each thread keys and values of 8 MiB.
        let grown = after - before;
        let square = TOKENS * TOKENS * size_of::<f32>();
        assert!(grown < square / 16, "{} MiB more", grown >> 20);
    }
}
