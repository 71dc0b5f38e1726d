//! How fast a synthetic v1.1 base generates: greedy or with beams, 64 tokens from 64.
//!
//!     cargo run --release -p quintic --example generate_speed -- bf16 [ROWS] [BEAMS] [THREADS]

use std::num::NonZeroUsize;
use std::time::Instant;

use quintic::generate::GenerateOptions;
use quintic::{
    BackendKind, Compute, ComputeType, DType, Error, Result, Seq2Seq, Sources, synthetic,
};

const TOKENS: usize = 64;
const RUNS: usize = 7;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let dtype = ComputeType::parse(&args.next().unwrap_or_else(|| "bf16".to_owned()))?;
    let mut number = |default: usize| match args.next().map(|arg| arg.parse()) {
        None => Ok(default),
        Some(Ok(number)) => Ok(number),
        Some(Err(_)) => Err(Error::input("expected a number")),
    };
    let (rows, beams) = (number(1)?, number(1)?);
    let threads = NonZeroUsize::new(number(0)?);

    let config = synthetic::config("v1_1-base")
        .ok_or_else(|| Error::input("the shape `v1_1-base` is gone"))?;
    let (stored, bytes) = match dtype {
        ComputeType::F32 => (DType::F32, 4.0),
        _ => (DType::BF16, 2.0),
    };
    let compute = Compute {
        dtype,
        threads,
        ..Compute::default()
    };
    let mut weights = synthetic::SyntheticWeights::new(config.clone(), stored);
    let model = Seq2Seq::from_source(config.clone(), &mut weights, BackendKind::Cpu, &compute)?;
    let mut generation = model.generation_config()?;
    let options = serde_json::json!({
        "max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "num_beams": beams,
        "decoder_start_token_id": 0,
    });
    if let Some(options) = options.as_object() {
        generation.choose(options)?;
    }
    let sources = synthetic::token_rows(&vec![TOKENS; rows], config.vocab_size);
    let options = GenerateOptions {
        max_rows: rows * beams,
        ..GenerateOptions::default()
    };
    let mut times = Vec::new();
    for run in 0..=RUNS {
        let started = Instant::now();
        let results = model.generate(Sources::Ids(&sources), &generation, &options)?;
        let n_new: usize = results.iter().map(|r| r[0].new_tokens().len()).sum();
        assert_eq!(
            n_new,
            rows * TOKENS,
            "every sequence is as long as asked for"
        );
        // The first run warms up.
        if run > 0 {
            times.push(started.elapsed().as_secs_f64());
        }
    }
    times.sort_by(f64::total_cmp);
    let median = times[RUNS / 2];
    // Weights that a step reads: all of the decoder's but cross-attention's keys and values.
    let (d, inner) = (config.d_model as f64, config.inner_dim() as f64);
    let layer = 6.0 * d * inner + 3.0 * d * config.d_ff as f64;
    let step_bytes =
        bytes * (config.num_decoder_layers as f64 * layer + d * config.vocab_size as f64);
    println!(
        "{} {rows} rows, {beams} beams, {} threads, {}: {:.1} ms (min {:.1}, max {:.1}), {:.1} \
         tokens/s; a step reads {:.0} MB of weights, {:.1} GB/s over all",
        dtype.name(),
        model.encoder().threads(),
        model.encoder().isa().unwrap_or("-"),
        median * 1e3,
        times[0] * 1e3,
        times[RUNS - 1] * 1e3,
        (rows * TOKENS) as f64 / median,
        step_bytes / 1e6,
        step_bytes * TOKENS as f64 / median / 1e9,
    );
    Ok(())
}
