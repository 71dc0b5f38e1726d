//! What fuzzing checks, in a few seconds: every seed, every input that once broke something,
//! and a few thousand mutations that are the same in every run. `docs/fuzzing.md` says how
//! to fuzz for longer.

mod fuzz_support;

use fuzz_support::mutate::Random;
use fuzz_support::target;

/// Mutated inputs of each target: `QUINTIC_ROUNDS` times the number given.
fn rounds() -> usize {
    let rounds = std::env::var("QUINTIC_ROUNDS").ok();
    rounds.and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// Checks the seeds, what `testdata/fuzz` keeps for the target, and `n` mutations of both.
fn replay(name: &str, n: usize) {
    let target = target(name);
    let mut inputs = (target.seeds)();
    let seeds = inputs.len();
    inputs.extend(kept(name));
    for input in &inputs {
        (target.check)(input);
    }
    assert!(seeds > 0);
    let mut random = Random::new(0x5EED_F022);
    for round in 0..n * rounds() {
        let mut input = (target.mutate)(&inputs[round % inputs.len()], &mut random);
        while random.below(3) == 0 {
            input = (target.mutate)(&input, &mut random);
        }
        (target.check)(&input);
    }
}

/// Inputs that once broke something, in `testdata/fuzz/TARGET`.
fn kept(name: &str) -> Vec<Vec<u8>> {
    let folder = fuzz_support::seeds::testdata().join("fuzz").join(name);
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut paths: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    paths.sort();
    paths
        .iter()
        .filter_map(|path| std::fs::read(path).ok())
        .collect()
}

#[test]
fn configs() {
    replay("config", 4000);
}

#[test]
fn safetensors_and_indexes() {
    replay("safetensors", 4000);
}

#[test]
fn gguf_files() {
    replay("gguf", 4000);
}

#[test]
fn sentencepiece_models() {
    replay("spiece", 3000);
}

#[test]
fn tokenizer_json_files() {
    replay("tokenizer_json", 2000);
}

#[test]
fn padded_batches() {
    replay("masks", 4000);
}
