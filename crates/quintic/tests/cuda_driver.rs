//! The driver layer of the CUDA backend, with libraries in the place of the driver's and of
//! cuBLASLt's that a CPU plays.
//!
//! The system's loader looks for libraries where the environment said so when a process began; so
//! each test runs itself again in a process of its own.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;

use quintic::batch::PackedBatch;
use quintic::suite::{self, Options};
use quintic::{BackendKind, ComputeChoice, ComputeType, ErrorKind, LoadOptions, TextEncoder};
use quintic_cuda::memory::Memory;

const HERE: &str = "QUINTIC_TEST_STAND_IN";

/// Whether this process has the stand-in. If not, runs `test` in one that has.
fn has_stand_in(test: &str) -> bool {
    if std::env::var_os(HERE).is_some() {
        return true;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test])
        .env(HERE, "1")
        .env("LD_LIBRARY_PATH", quintic_cuda_emulator::STAND_IN)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{}\n{text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    false
}

fn load(name: &str, backend: BackendKind, dtype: ComputeType) -> TextEncoder {
    let options = LoadOptions {
        backend,
        compute: ComputeChoice {
            dtype: Some(dtype),
            ..ComputeChoice::default()
        },
        ..LoadOptions::default()
    };
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/goldens");
    TextEncoder::load(goldens.join(name).to_str().unwrap(), &options).unwrap()
}

#[test]
fn the_suite_passes_through_the_driver() {
    if !has_stand_in("the_suite_passes_through_the_driver") {
        return;
    }
    assert!(BackendKind::Cuda(0).available().is_ok());
    for (dtype, filter) in [
        (ComputeType::Bf16, "pass/"),
        (ComputeType::F16, "product/gate"),
        (ComputeType::Bf16, "product/store"),
        (ComputeType::F32, "cache/"),
        (ComputeType::Bf16, "attention/mixed"),
    ] {
        let mut options = Options::new(dtype);
        options.filter = Some(filter.to_owned());
        let (mut n_cases, mut failures) = (0, Vec::new());
        suite::run_on(BackendKind::Cuda(0), &options, &mut |outcome| {
            n_cases += 1;
            if !outcome.passed() {
                failures.push(format!("{outcome:?}"));
            }
        })
        .unwrap();
        assert!(failures.is_empty(), "{dtype:?}\n{}", failures.join("\n"));
        assert!(n_cases > 0, "{filter}");
    }
}

/// Models on the device, passes first tried out, then recorded, then run from the recording; from
/// several threads, each of which has to have the context.
#[test]
fn models_run_through_the_driver() {
    if !has_stand_in("models_run_through_the_driver") {
        return;
    }
    for dtype in ComputeType::ALL {
        for name in ["t5-v1_1", "umt5"] {
            let encoder = load(name, BackendKind::Cuda(0), dtype);
            assert_eq!(
                (encoder.backend_name(), encoder.isa()),
                ("cuda", Some("sm_90"))
            );
            let exact = load(name, BackendKind::Reference, ComputeType::F32);
            let rows = [vec![3, 1, 4, 1, 5, 9, 2, 6], vec![5], vec![35; 40]];
            let batch = PackedBatch::from_rows(&rows, encoder.config().vocab_size).unwrap();
            let expected = exact.hidden_states(&batch, false).unwrap().last;
            let bound = match dtype {
                ComputeType::F32 => 4e-6,
                ComputeType::Bf16 => 3e-2,
                ComputeType::F16 => 4e-3,
            };
            std::thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| {
                        for time in 0..3 {
                            let found = encoder.hidden_states(&batch, false).unwrap().last;
                            let square = |x: f32| f64::from(x) * f64::from(x);
                            let error: f64 = found
                                .iter()
                                .zip(&expected)
                                .map(|(&a, &b)| square(a - b))
                                .sum();
                            let size: f64 = expected.iter().map(|&x| square(x)).sum();
                            let error = (error / size).sqrt();
                            assert!(error <= bound, "{name} {dtype:?}, time {time}: {error:e}");
                        }
                    });
                }
            });
        }
    }
}

/// Copies that go through pinned buffers, one after the other without a pause: each piece has to
/// have left a buffer before the next one enters it.
#[test]
fn large_copies_arrive_whole() {
    if !has_stand_in("large_copies_arrive_whole") {
        return;
    }
    let memory = Memory::new(quintic_cuda::driver::open(0).unwrap());
    // Three pieces and a bit, exactly one, one that is small.
    for n_bytes in [100_000_004usize, 32 << 20, 1_000, 1 << 20] {
        let values = |seed: u32| -> Vec<u32> {
            (0..n_bytes as u32 / 4)
                .map(|at| at.wrapping_mul(2_654_435_761).wrapping_add(seed))
                .collect()
        };
        let (first, second) = (values(1), values(2));
        let a = memory.upload(&first).unwrap();
        let b = memory.upload(&second).unwrap();
        let copy = memory.buffer(n_bytes).unwrap();
        copy.copy_from(0, &b, 0, n_bytes).unwrap();
        assert!(a.read::<u32>(0, n_bytes / 4).unwrap() == first, "{n_bytes}");
        assert!(
            copy.read::<u32>(0, n_bytes / 4).unwrap() == second,
            "{n_bytes}"
        );
    }
}

#[test]
fn a_second_device_is_refused_by_number() {
    if !has_stand_in("a_second_device_is_refused_by_number") {
        return;
    }
    let error = BackendKind::Cuda(1).available().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert_eq!(error.place(), Some("backend `cuda:1`"));
    assert_eq!(error.message(), "there is no CUDA device 1, only device 0");
    let devices = quintic::backend::cuda::devices().unwrap();
    assert_eq!(devices.len(), 1);
    assert_eq!(
        (devices[0].name.as_str(), devices[0].capability),
        ("a stand-in", (9, 0))
    );
}
