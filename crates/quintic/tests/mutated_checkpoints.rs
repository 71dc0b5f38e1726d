//! Valid files with random damage: nothing panics, and what the reference reader of the
//! safetensors format accepts is accepted, no more.
#![allow(clippy::unwrap_used, reason = "a failing unwrap here is the report")]

mod checkpoint_support;

use checkpoint_support::*;
use quintic::checkpoint::{Checkpoint, OpenOptions, SafetensorsFile};

fn torch_file(name: &str) -> Vec<u8> {
    std::fs::read(pytorch_file(name)).unwrap()
}

/// A small generator of repeatable numbers (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

/// Opens the mutated file and takes every tensor; only the absence of panics counts.
fn exercise(path: &std::path::Path) {
    let Ok(checkpoint) = Checkpoint::open(path, &OpenOptions::default()) else {
        return;
    };
    for name in checkpoint.names() {
        if let Ok(tensor) = checkpoint.take(name) {
            std::hint::black_box(tensor.bytes().iter().fold(0u8, |sum, byte| sum ^ byte));
        }
    }
    let _ = quintic::checkpoint::infer_shape(&checkpoint);
    let _ = checkpoint.embedded_tokenizer();
}

fn mutate(whole: &[u8], random: &mut Random, limit: usize) -> Vec<u8> {
    let mut bytes = whole.to_vec();
    for _ in 0..1 + random.below(4) {
        let at = random
            .below(limit.min(bytes.len()).max(1))
            .min(bytes.len() - 1);
        match random.below(6) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.below(256) as u8,
            2 => bytes[at] = [0, 0xFF, 0x7F, 0x80][random.below(4)],
            3 if bytes.len() > 1 => drop(bytes.remove(at)),
            4 => bytes.insert(at, random.below(256) as u8),
            _ => bytes.truncate(at.max(1)),
        }
    }
    bytes
}

/// How often the mutations are repeated, each time with other numbers: `QUINTIC_ROUNDS`,
/// or once.
fn rounds() -> u64 {
    std::env::var("QUINTIC_ROUNDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(1)
}

#[test]
fn random_mutations_never_panic() {
    for round in 0..rounds() {
        mutate_all(Random(0x5EED_CAFE + round));
    }
}

fn mutate_all(mut random: Random) {
    let folder = Folder::new();
    let whole = safetensors(&encoder(&Shape::default()), &[("a", "b")]);
    let header = whole.len().min(2500);
    for _ in 0..1500 {
        let bytes = mutate(&whole, &mut random, header);
        let path = folder.write("x.safetensors", &bytes);
        exercise(&path);
        let reference = safetensors::SafeTensors::deserialize(&bytes).map(|_| ());
        let ours = SafetensorsFile::open(&path).map(|_| ());
        assert_eq!(
            ours.is_ok(),
            reference.is_ok(),
            "ours: {ours:?}, the reference: {reference:?}"
        );
    }
    for file in [
        "plain.bin",
        "legacy.bin",
        "nested_state_dict.bin",
        "views.bin",
        "evil_plain.bin",
    ] {
        let whole = torch_file(file);
        for _ in 0..400 {
            exercise(&folder.write("x.bin", mutate(&whole, &mut random, whole.len())));
        }
    }
}
