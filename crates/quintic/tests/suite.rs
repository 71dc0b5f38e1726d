//! The suite of cases on every backend that runs here.

#![allow(clippy::unwrap_used)]

use quintic::backend::Backend;
use quintic::backend::cpu::Cpu;
use quintic::backend::reference::Reference;
use quintic::suite::{self, Group, Options};
use quintic::{Compute, ComputeType};
use quintic_kernels::Isa;

/// Runs all cases; every one has to pass.
fn passes<B: Backend>(backend: &B, options: &Options) {
    let mut failures = Vec::new();
    let mut groups = Vec::new();
    let started = std::time::Instant::now();
    let mut worst: Vec<(f64, String)> = Vec::new();
    suite::run(backend, options, &mut |outcome| {
        groups.push(outcome.group);
        worst.push((
            outcome.share(),
            format!("{}/{}", outcome.group, outcome.name),
        ));
        if !outcome.passed() {
            failures.push(format!("{outcome:?}"));
        }
    });
    if std::env::var_os("SUITE_SHOW").is_some() {
        worst.sort_by(|a, b| b.0.total_cmp(&a.0));
        println!(
            "{} {:?} {:?}: {} cases, {:?}, {:?}",
            backend.name(),
            backend.isa(),
            options.dtype,
            groups.len(),
            started.elapsed(),
            &worst[..6]
        );
    }
    let name = format!("{} {:?} {:?}", backend.name(), backend.isa(), options.dtype);
    assert!(
        failures.is_empty(),
        "{name}: {} of {}\n{}",
        failures.len(),
        groups.len(),
        failures.join("\n")
    );
    for group in Group::ALL {
        assert!(groups.contains(&group), "{name}: no case of {group}");
    }
}

fn cpu_passes(isa: Isa) {
    for dtype in ComputeType::ALL {
        let compute = Compute {
            dtype,
            threads: 1.try_into().ok(),
            ..Compute::default()
        };
        passes(&Cpu::with_isa(isa, &compute).unwrap(), &Options::new(dtype));
    }
}

#[test]
fn the_reference_passes() {
    for dtype in ComputeType::ALL {
        passes(&Reference, &Options::new(dtype));
    }
}

#[test]
fn portable_code_passes() {
    cpu_passes(Isa::Portable);
}

/// The others of this machine, each in a thread of its own.
#[test]
fn every_instruction_set_passes() {
    std::thread::scope(|scope| {
        for isa in Isa::available() {
            if isa != Isa::Portable {
                scope.spawn(move || cpu_passes(isa));
            }
        }
    });
}
