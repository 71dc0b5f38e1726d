#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use quintic_fuzz::{leave_caught_panics_alone, mutate, target};

fuzz_target!(
    init: leave_caught_panics_alone(),
    |input: &[u8]| (target("gguf").check)(input)
);

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    mutate(target("gguf"), data, size, max_size, seed)
});
