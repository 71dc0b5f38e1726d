//! What one run computes.

use std::num::NonZeroUsize;
use std::path::Path;

use quintic::batch::{Layout, PackedBatch, PadRows};
use quintic::config::T5Config;
use quintic::generate::{GenerateOptions, GenerationConfig};
use quintic::synthetic;
use quintic::{Error, Result, Seq2Seq, Sources};
use serde_json::json;

use crate::args::BenchArgs;
use crate::batches;

/// Lengths of 32 captions, drawn once from a log-normal distribution with median 24 and sigma
/// 1, cut to 4 to 512 tokens: 1,298 tokens. Other numbers of rows repeat or cut the list.
const LOGNORMAL: [usize; 32] = [
    87, 102, 26, 11, 8, 25, 9, 6, 29, 27, 41, 10, 24, 22, 5, 41, 33, 262, 29, 21, 82, 29, 60, 17,
    30, 67, 48, 27, 8, 37, 26, 49,
];

/// Tokens in a batch; more is a mistake that memory would answer.
const MAX_TOKENS: usize = 1 << 24;

pub(super) struct Workload {
    pub(super) batch: PackedBatch,
    /// The padded shape that ids came in: rows, positions, and where results go.
    pub(super) padded: Option<(usize, usize, Layout)>,
    /// What is written after every row has been read.
    pub(super) generation: Option<Generation>,
}

/// Tokens without an end, so that every row gets as many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Generation {
    pub(super) new_tokens: NonZeroUsize,
    pub(super) beams: NonZeroUsize,
}

impl Generation {
    pub(super) fn of(args: &BenchArgs) -> Option<Self> {
        Some(Generation {
            new_tokens: args.new_tokens?,
            beams: args.num_beams,
        })
    }

    fn config(self, model: &T5Config) -> Result<GenerationConfig> {
        let mut config = GenerationConfig::of_model(model, None)?;
        let chosen = json!({
            "max_new_tokens": self.new_tokens,
            "num_beams": self.beams,
            // Not null, which leaves the model's own.
            "eos_token_id": [],
            "decoder_start_token_id": config.decoder_start_token_id.unwrap_or(0),
        });
        config.choose(chosen.as_object().unwrap_or(&serde_json::Map::new()))?;
        Ok(config)
    }

    /// The best sequence's new tokens, a row for each source.
    pub(super) fn run(self, model: &Seq2Seq, sources: &[Vec<u32>]) -> Result<Vec<Vec<u32>>> {
        let config = self.config(model.config())?;
        let options = GenerateOptions {
            max_rows: sources.len() * self.beams.get(),
            ..GenerateOptions::default()
        };
        let results = model.generate(Sources::Ids(sources), &config, &options)?;
        Ok(results
            .iter()
            .map(|sequences| sequences[0].new_tokens().to_vec())
            .collect())
    }

    /// Operations beyond the encoder's: cross keys and values once, and a step for each token,
    /// as greedy search does it; beams are counted as one row, since one row is what they give.
    fn flops(self, config: &T5Config, lengths: &[usize]) -> f64 {
        let (d_model, d_ff) = (config.d_model as f64, config.d_ff as f64);
        let (inner, layers) = (config.inner_dim() as f64, config.num_decoder_layers as f64);
        let n_ff = if config.feed_forward.gated { 3.0 } else { 2.0 };
        let new = self.new_tokens.get() as f64;
        let step = 2.0 * layers * d_model * (6.0 * inner + n_ff * d_ff)
            + 2.0 * d_model * config.vocab_size as f64;
        lengths
            .iter()
            .map(|&length| {
                let length = length as f64;
                let cross = length * layers * 4.0 * d_model * inner;
                // Token t looks back at t + 1 tokens and at the whole source.
                let attention = layers * 4.0 * inner * (new * (new + 1.0) / 2.0 + new * length);
                cross + new * step + attention
            })
            .sum()
    }
}

impl Workload {
    pub(super) fn of(args: &BenchArgs, vocab_size: usize) -> Result<Self> {
        if let Some(path) = &args.input_ids {
            let ids = batches::read(path)?;
            let (batch, layout) = ids.pack(PadRows::Zero, vocab_size)?;
            return Workload {
                batch,
                padded: Some((ids.rows(), ids.len(), layout)),
                generation: Generation::of(args),
            }
            .checked();
        }
        let rows = match &args.ids_json {
            Some(path) => rows_of_json(path)?,
            None => synthetic::token_rows(&lengths(args)?, vocab_size),
        };
        Workload {
            batch: PackedBatch::from_rows(&rows, vocab_size)?,
            padded: None,
            generation: Generation::of(args),
        }
        .checked()
    }

    /// Rows of the lengths that `--lengths` and `--also` name.
    pub(super) fn of_lengths(text: &str, rows: Option<usize>, vocab_size: usize) -> Result<Self> {
        let rows = synthetic::token_rows(&lengths_of(text, rows)?, vocab_size);
        Workload {
            batch: PackedBatch::from_rows(&rows, vocab_size)?,
            padded: None,
            generation: None,
        }
        .checked()
    }

    fn checked(self) -> Result<Self> {
        match self.batch.n_tokens() {
            0 => Err(Error::input("there are no tokens, expected one at least")),
            _ => Ok(self),
        }
    }

    /// The rows' ids.
    pub(super) fn rows(&self) -> Vec<Vec<u32>> {
        let starts = self.batch.row_starts();
        let ids = self.batch.ids();
        starts
            .windows(2)
            .map(|ends| ids[ends[0]..ends[1]].to_vec())
            .collect()
    }

    /// Tokens that rates count: those written, or else those read.
    pub(super) fn n_tokens(&self) -> usize {
        match self.generation {
            Some(generation) => self.batch.n_rows() * generation.new_tokens.get(),
            None => self.batch.n_tokens(),
        }
    }

    /// Rows, tokens of each of them.
    pub(super) fn lengths(&self) -> Vec<usize> {
        let starts = self.batch.row_starts();
        starts.windows(2).map(|pair| pair[1] - pair[0]).collect()
    }

    /// Multiplications and additions of one pass, of real tokens alone: every parameter of a
    /// product once a token, and the two products of attention.
    pub(super) fn flops(&self, config: &T5Config) -> f64 {
        let (d_model, d_ff) = (config.d_model as f64, config.d_ff as f64);
        let (inner, layers) = (config.inner_dim() as f64, config.num_layers as f64);
        let n_ff = if config.feed_forward.gated { 3.0 } else { 2.0 };
        let per_token = 2.0 * layers * d_model * (4.0 * inner + n_ff * d_ff);
        let lengths = self.lengths();
        let encoder: f64 = lengths
            .iter()
            .map(|&len| len as f64)
            .map(|len| len * per_token + layers * 4.0 * len * len * inner)
            .sum();
        let decoder = self.generation.map(|new| new.flops(config, &lengths));
        encoder + decoder.unwrap_or(0.0)
    }
}

/// Lengths of all rows that the arguments ask for.
fn lengths(args: &BenchArgs) -> Result<Vec<usize>> {
    let rows = args.rows.map(usize::from);
    match (&args.lengths, args.tokens) {
        (Some(text), _) => lengths_of(text, rows),
        (None, Some(tokens)) if rows.unwrap_or(1) <= MAX_TOKENS => {
            few_enough(vec![tokens.get(); rows.unwrap_or(1)])
        }
        (None, Some(_)) => Err(too_many()),
        (None, None) => Ok(Vec::new()),
    }
}

/// Lengths that a text names: as captions have them, so many if that is said, or a list.
fn lengths_of(text: &str, rows: Option<usize>) -> Result<Vec<usize>> {
    match (text, rows) {
        ("lognormal", rows) if rows.unwrap_or(0) <= MAX_TOKENS => {
            let rows = rows.unwrap_or(LOGNORMAL.len());
            few_enough(LOGNORMAL.into_iter().cycle().take(rows).collect())
        }
        ("lognormal", _) => Err(too_many()),
        (_, Some(_)) => Err(Error::input(
            "`--rows` and a list of `--lengths` both say how many rows there are",
        )),
        (list, None) => few_enough(list.split(',').map(length).collect::<Result<_>>()?),
    }
}

fn few_enough(lengths: Vec<usize>) -> Result<Vec<usize>> {
    let total = lengths
        .iter()
        .try_fold(0usize, |sum, &length| sum.checked_add(length));
    match total {
        Some(tokens) if tokens <= MAX_TOKENS => Ok(lengths),
        _ => Err(too_many()),
    }
}

fn length(text: &str) -> Result<usize> {
    match text.trim().parse() {
        Ok(length) if length > 0 => Ok(length),
        _ => Err(Error::input(format!(
            "found `{text}` in `--lengths`, expected `lognormal` or positive numbers such as `5,31,8`"
        ))),
    }
}

fn too_many() -> Error {
    Error::input(format!(
        "more than {MAX_TOKENS} tokens in a batch are too many"
    ))
}

fn rows_of_json(path: &Path) -> Result<Vec<Vec<u32>>> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, "read", e))?;
    serde_json::from_slice(&bytes).map_err(|e| {
        Error::input(format!("not a list of rows, each a list of token ids: {e}"))
            .at(path.display())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caption_lengths() {
        assert_eq!(LOGNORMAL.iter().sum::<usize>(), 1298);
        assert_eq!(LOGNORMAL.iter().max(), Some(&262));
    }

    #[test]
    fn flops_count_real_tokens_and_attention_inside_rows() {
        let config = synthetic::config("v1_1-base").unwrap();
        let of = |lengths: &[usize]| {
            let rows = synthetic::token_rows(lengths, config.vocab_size);
            Workload {
                batch: PackedBatch::from_rows(&rows, config.vocab_size).unwrap(),
                padded: None,
                generation: None,
            }
            .flops(&config)
        };
        // 84.9 M parameters of products; 12 layers of 768 wide attention.
        let per_token = 2.0 * 12.0 * (4 * 768 * 768 + 3 * 768 * 2048) as f64;
        assert_eq!(
            of(&[512]),
            512.0 * per_token + 12.0 * 4.0 * 512.0 * 512.0 * 768.0
        );
        assert_eq!(of(&[3, 5]), of(&[3]) + of(&[5]));
    }
    #[test]
    fn flops_of_generation() {
        let mut config = synthetic::config("tiny").unwrap();
        (
            config.num_layers,
            config.num_decoder_layers,
            config.vocab_size,
        ) = (0, 1, 1000);
        let generation = Generation {
            new_tokens: NonZeroUsize::new(2).unwrap(),
            beams: NonZeroUsize::new(4).unwrap(),
        };
        // Nothing ends a row before it has as many tokens as are counted.
        config.eos_token_ids = vec![1];
        let chosen = generation.config(&config).unwrap();
        assert!(chosen.eos_token_id.is_empty());
        assert_eq!((chosen.max_new_tokens, chosen.num_beams), (Some(2), 4));
        // Cross keys and values of 3 tokens; two steps; 1 + 2 tokens back and 3 across, twice.
        let cross = 3 * 2 * 2 * 128 * 128;
        let steps = 2 * 2 * (6 * 128 * 128 + 3 * 128 * 256 + 128 * 1000);
        let attention = 4 * 128 * (1 + 2 + 2 * 3);
        let found = generation.flops(&config, &[3]);
        assert_eq!(found, f64::from(cross + steps + attention));
    }
}
