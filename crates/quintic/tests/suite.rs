//! The suite of cases on every backend that runs here.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use quintic::backend::Backend;
use quintic::backend::cpu::Cpu;
use quintic::backend::cuda::Cuda;
use quintic::backend::reference::Reference;
use quintic::suite::{self, Group, Options};
use quintic::{Compute, ComputeType, MatmulPrecision};
use quintic_cuda_emulator::EmulatedDevice;
use quintic_kernels::Isa;

/// Runs the cases; every one has to pass.
fn passes<B: Backend>(backend: &B, options: &Options) {
    let (mut groups, mut failures) = (Vec::new(), Vec::new());
    suite::run(backend, options, &mut |outcome| {
        groups.push(outcome.group);
        if !outcome.passed() {
            failures.push(format!("{outcome:?}"));
        }
    });
    let name = format!("{} {:?} {:?}", backend.name(), backend.isa(), options.dtype);
    assert!(
        failures.is_empty(),
        "{name}: {} of {} fail\n{}",
        failures.len(),
        groups.len(),
        failures.join("\n")
    );
    assert!(!groups.is_empty(), "{name}: no cases");
    for group in Group::ALL {
        let wanted = options.filter.is_none();
        assert!(!wanted || groups.contains(&group), "{name}: no {group}");
    }
}

fn cpu(isa: Isa, dtype: ComputeType) -> Cpu {
    let compute = Compute {
        dtype,
        threads: 1.try_into().ok(),
        ..Compute::default()
    };
    Cpu::with_isa(isa, &compute).unwrap()
}

fn cpu_passes(isa: Isa) {
    for dtype in ComputeType::ALL {
        passes(&cpu(isa, dtype), &Options::new(dtype));
    }
}

fn group_passes(isa: Isa, dtype: ComputeType, group: Group) {
    let mut options = Options::new(dtype);
    options.filter = Some(format!("{group}/"));
    passes(&cpu(isa, dtype), &options);
}

#[test]
fn the_reference_passes() {
    for dtype in ComputeType::ALL {
        passes(&Reference, &Options::new(dtype));
    }
}

/// The kernels' sources and everything around them on a device that a CPU plays, groups at a
/// time: forwards, and with blocks and threads in the opposite order.
#[test]
fn cuda_passes_on_an_emulated_device() {
    std::thread::scope(|scope| {
        for dtype in ComputeType::ALL {
            for group in Group::ALL {
                scope.spawn(move || {
                    let device = Arc::new(EmulatedDevice::new(1 << 30));
                    device.run_backwards(group == Group::Attention);
                    let compute = Compute {
                        dtype,
                        ..Compute::default()
                    };
                    let cuda = Cuda::new(device, &compute).unwrap();
                    let mut options = Options::new(dtype);
                    options.filter = Some(format!("{group}/"));
                    // Products may be summed in another order in another company.
                    options.row_bits = false;
                    passes(&cuda, &options);
                });
            }
        }
    });
}

#[test]
fn portable_code_passes() {
    cpu_passes(Isa::Portable);
}

/// The others of this machine, and emulated tiles where only those are missing; each in a thread
/// of its own.
#[test]
fn every_instruction_set_passes() {
    let has_tiles = Isa::Amx.is_available();
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    {
        quintic_tiles::install();
        // SAFETY: the emulator answers for tile instructions in the whole process.
        unsafe { quintic_kernels::testing::assume_tiles() };
    }
    std::thread::scope(|scope| {
        for isa in Isa::available() {
            match isa {
                Isa::Portable => (),
                // Emulated tiles are slow, and only bf16 uses them; whole models run on them in
                // `cpu_backend.rs`.
                Isa::Amx if !has_tiles => {
                    for group in Group::ALL {
                        if group != Group::Pass {
                            scope.spawn(move || group_passes(isa, ComputeType::Bf16, group));
                        }
                    }
                }
                _ => {
                    scope.spawn(move || cpu_passes(isa));
                }
            }
        }
    });
}

/// What is rounded, where, and on how many threads is the caller's choice.
#[test]
fn other_ways_to_compute_pass() {
    let with = |dtype, threads: usize| Compute {
        dtype,
        threads: threads.try_into().ok(),
        ..Compute::default()
    };
    let isa = Isa::choose().unwrap();
    let run = |compute: Compute, dtype, filter: &str| {
        let mut options = Options::new(dtype);
        options.filter = Some(filter.to_owned());
        passes(&Cpu::with_isa(isa, &compute).unwrap(), &options);
    };
    for dtype in [ComputeType::F32, ComputeType::Bf16] {
        // By threads, attention divides rows of queries, and products tokens and columns.
        run(with(dtype, 3), dtype, "attention/mixed");
        run(with(dtype, 3), dtype, "product/add");
        let folded = Compute {
            fold_norm_gains: true,
            ..with(dtype, 1)
        };
        run(folded, dtype, "pass/");
    }
    let medium = Compute {
        matmul_precision: MatmulPrecision::Medium,
        ..with(ComputeType::F32, 1)
    };
    run(medium, ComputeType::Bf16, "16");
}
