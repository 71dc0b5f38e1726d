//! What the fuzz targets have in common; their checks, seeds and mutations are those of the
//! library's own tests.

#[path = "../../crates/quintic/tests/fuzz_support/mod.rs"]
mod fuzz_support;

pub use fuzz_support::mutate::Random;
pub use fuzz_support::{TARGETS, Target, target};

/// libFuzzer's own mutation for two seeds of three, the target's for the third.
pub fn mutate(target: &Target, data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    if seed.is_multiple_of(3) {
        let mut random = Random::new(u64::from(seed).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let mutated = (target.mutate)(&data[..size], &mut random);
        if mutated.len() <= max_size {
            data[..mutated.len()].copy_from_slice(&mutated);
            return mutated.len();
        }
    }
    libfuzzer_sys::fuzzer_mutate(data, size, max_size)
}

/// Makes a panic a find only where it is one. libFuzzer's hook ends the process at every
/// panic, but the library catches those of the `tokenizers` crate and returns them as
/// errors. Panics of our own code still end the process at once, and so does any panic that
/// nothing catches.
pub fn leave_caught_panics_alone() {
    let end_the_process = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let foreign = |file: &str| file.contains("/registry/") || file.starts_with("/rustc/");
        if !panic.location().is_some_and(|place| foreign(place.file())) {
            end_the_process(panic);
        }
    }));
}
