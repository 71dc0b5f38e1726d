//! What the fuzz targets do with an input, and the inputs that they start from. The targets
//! in `fuzz/` and the tests in `fuzz_regressions.rs` share it, so that what one finds the
//! other keeps.
//!
//! A check panics if the library breaks a promise; an error that the library returns is a
//! good outcome for bytes that somebody else wrote.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "tests: the targets use their own parts, and a failing unwrap is the report"
)]

#[path = "../gguf_support/mod.rs"]
pub mod gguf_support;
pub mod masks;
pub mod mutate;
pub mod seeds;
pub mod tokenizers;
pub mod weights;

use quintic::backend::Buckets;
use quintic::config::T5Config;

/// A fuzz target: its name, its check, its mutation and the inputs it starts from.
pub struct Target {
    pub name: &'static str,
    pub check: fn(&[u8]),
    pub mutate: fn(&[u8], &mut mutate::Random) -> Vec<u8>,
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const TARGETS: [Target; 6] = [
    Target {
        name: "config",
        check: config,
        mutate: |input, random| mutate::json_after(0, input, random),
        seeds: seeds::config,
    },
    Target {
        name: "safetensors",
        check: weights::safetensors,
        mutate: |input, random| mutate::json_after(weights::PREFIX, input, random),
        seeds: seeds::safetensors,
    },
    Target {
        name: "gguf",
        check: weights::gguf,
        mutate: |input, random| mutate::bytes(input, random),
        seeds: seeds::gguf,
    },
    Target {
        name: "spiece",
        check: tokenizers::spiece,
        mutate: |input, random| mutate::bytes(input, random),
        seeds: seeds::spiece,
    },
    Target {
        name: "tokenizer_json",
        check: tokenizers::tokenizer_json,
        mutate: |input, random| {
            let prefix = tokenizers::Parts::of(input).model_start;
            mutate::json_after(prefix, input, random)
        },
        seeds: seeds::tokenizer_json,
    },
    Target {
        name: "masks",
        check: masks::masks,
        mutate: |input, random| mutate::bytes(input, random),
        seeds: seeds::masks,
    },
];

/// The target of that name.
pub fn target(name: &str) -> &'static Target {
    TARGETS.iter().find(|target| target.name == name).unwrap()
}

/// `config.json`: what is accepted has sizes that can be computed with.
pub fn config(input: &[u8]) {
    let config = match T5Config::from_json(input) {
        Ok(config) => config,
        Err(error) => {
            assert!(!error.message().is_empty());
            return;
        }
    };
    for size in [
        config.vocab_size,
        config.d_model,
        config.d_kv,
        config.d_ff,
        config.num_heads,
        config.num_layers,
    ] {
        assert!((1..=1 << 28).contains(&size), "{config:?}");
    }
    assert!(config.num_layers <= 4096 && config.num_decoder_layers <= 4096);
    assert!(config.inner_dim() >= config.d_kv.max(config.num_heads));
    assert!(config.encoder_parameters() > 0);
    assert!(config.layer_norm_epsilon >= 0.0 && config.layer_norm_epsilon.is_finite());
    let (n_buckets, distance) = (
        config.relative_attention_num_buckets,
        config.relative_attention_max_distance,
    );
    // The table has an entry a distance; building millions of them would test nothing more.
    if distance <= 1024 {
        let buckets = Buckets::bidirectional(n_buckets, distance);
        for distance in [
            0,
            1,
            -1,
            127,
            -128,
            i64::from(i32::MAX),
            -i64::from(i32::MAX),
        ] {
            assert!(buckets.of(distance) < n_buckets);
        }
    }
}
