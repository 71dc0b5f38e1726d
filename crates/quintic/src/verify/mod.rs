//! How far each way to compute is from exact sums, on a model and texts of one's own.
//!
//! [`Reference`] runs a model on the reference backend once and keeps what it gives; each
//! [`Way`] then loads the model, computes the same rows and is dropped again, so that there is
//! never more than one model in memory.
//!
//! # Numerics
//!
//! The reference sums in f64 and rounds to f32 where a buffer is written
//! ([`crate::backend::reference`]): its own distance from float64 is about that of one rounding
//! a buffer, and below that of every way measured here. Weights are taken as the files hold
//! them. So a way that rounds weights pays for that, too, unless they were stored so.
//!
//! # Memory
//!
//! Beside the model: the states of all rows, `[tokens, d_model]` in f32, twice, and 8 bytes a
//! value for their quantiles; then as much for logits of at most [`MAX_DECODER_ROWS`] rows.

mod distance;
mod prompts;

use crate::backend::cpu::Cpu;
use crate::backend::{Backend, Scale};
use crate::checkpoint::Checkpoint;
use crate::compute::{Compute, ComputeType, MatmulPrecision};
use crate::generate::{GenerateOptions, GenerationConfig};
use crate::keep::Site;
use crate::loading::BackendKind;
use crate::text_encoder::{RowsOptions, TextEncoder};
use crate::weight_type::WeightType;
use crate::{Decode, Error, Result, Seq2Seq, Sources};

pub use self::distance::{Distance, cosine};
pub use self::prompts::PROMPTS;

/// The quantiles of |difference| that are told.
pub const QUANTILES: [f64; 5] = [0.5, 0.9, 0.99, 0.999, 0.9999];

/// Most rows that a decoder is compared over: each of its tokens has as many logits as the
/// vocabulary has tokens.
pub const MAX_DECODER_ROWS: usize = 32;

/// A way to compute that can be compared with the reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// What it is called.
    pub name: &'static str,
    dtype: ComputeType,
    matmul_precision: MatmulPrecision,
    weights: WeightType,
}

impl Way {
    /// Every way there is: the one list to add to.
    pub const ALL: [Way; 8] = [
        Way::new("f32", ComputeType::F32),
        Way {
            matmul_precision: MatmulPrecision::High,
            ..Way::new("f32-high", ComputeType::F32)
        },
        Way {
            matmul_precision: MatmulPrecision::Medium,
            ..Way::new("f32-medium", ComputeType::F32)
        },
        Way::new("bf16", ComputeType::Bf16),
        Way::new("f16", ComputeType::F16),
        // What is not kept in integers is bf16.
        Way::in_integers("int8", WeightType::Int8),
        Way::in_integers("w8a8", WeightType::W8A8),
        Way::in_integers("int4", WeightType::Int4),
    ];

    const fn new(name: &'static str, dtype: ComputeType) -> Self {
        Way {
            name,
            dtype,
            matmul_precision: MatmulPrecision::Highest,
            weights: WeightType::AsStored,
        }
    }

    const fn in_integers(name: &'static str, weights: WeightType) -> Self {
        Way {
            weights,
            ..Way::new(name, ComputeType::Bf16)
        }
    }

    /// The way of a name.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) if there is none.
    pub fn parse(name: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|way| way.name == name)
            .ok_or_else(|| {
                let names = Self::ALL.map(|way| format!("`{}`", way.name));
                Error::unsupported(format!(
                    "there is no way to compute `{name}`, expected one of {}",
                    names.join(", ")
                ))
            })
    }

    /// The ways that compute differently on this backend of this machine, each once.
    ///
    /// # Errors
    ///
    /// If the backend cannot be had.
    pub fn all_on(backend: BackendKind) -> Result<Vec<Way>> {
        // Where `high` is not `highest`: see `MatmulPrecision::High`.
        let splits = match backend {
            BackendKind::Cpu => Cpu::new(&Compute::default())?.isa() == Some("amx"),
            BackendKind::Cuda(_) | BackendKind::Reference => false,
        };
        let differs = |way: &Way| match (backend, way.matmul_precision) {
            (BackendKind::Reference, _) => way.compute() == Compute::default(),
            (BackendKind::Cuda(_), _) if way.weights != WeightType::AsStored => false,
            (_, MatmulPrecision::Highest) => true,
            (_, MatmulPrecision::High) => splits,
            // Its products are those of bf16.
            (_, MatmulPrecision::Medium) => false,
        };
        Ok(Self::ALL.into_iter().filter(differs).collect())
    }

    /// How it computes.
    pub fn compute(self) -> Compute {
        Compute {
            dtype: self.dtype,
            matmul_precision: self.matmul_precision,
            weights: self.weights,
            ..Compute::default()
        }
    }
}

/// What a run tells of its progress: rows that are done, and of how many.
pub type Progress<'a> = &'a (dyn Fn(usize, usize) + Sync);

/// What to compute.
#[derive(Clone, Copy)]
pub struct Options<'a> {
    /// Most tokens computed at a time.
    pub batch_tokens: usize,
    /// Most tokens that the decoder writes behind each row, greedily; 0 leaves it out.
    pub new_tokens: usize,
    /// Told after each batch.
    pub progress: Option<Progress<'a>>,
}

/// Rows, and what exact sums make of them.
pub struct Reference {
    rows: Vec<Vec<u32>>,
    d_model: usize,
    states: Vec<Vec<f32>>,
    decoded: Option<Exact>,
}

/// A decoder's input and the logits behind each of its tokens.
struct Exact {
    rows: Vec<Vec<u32>>,
    vocab: usize,
    logits: Vec<f32>,
}

/// How far one way is from the reference.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// The backend that computed.
    pub backend: &'static str,
    /// Its instruction set, if that is a choice.
    pub isa: Option<&'static str>,
    /// Of the encoder's last hidden states, all values of all tokens.
    pub states: Distance,
    /// By token.
    pub tokens: Tokens,
    /// Of the decoder's logits; `None` if the decoder was left out.
    pub logits: Option<LogitsReport>,
    /// Passes that were run again since f16 had not held a value, see
    /// [`TextEncoder::passes_again`].
    pub passes_again: Option<u64>,
}

/// A model that is measured.
pub(crate) enum Loaded {
    /// Its encoder alone.
    Encoder(TextEncoder),
    /// Both halves.
    Both(Seq2Seq),
}

impl Loaded {
    /// The model, or its encoder, on a backend that computes as `Compute::default()` says.
    pub(crate) fn on<B: Backend + 'static>(
        backend: B,
        checkpoint: &Checkpoint,
        both: bool,
    ) -> Result<Self> {
        let compute = Compute::default();
        Ok(match both {
            true => Loaded::Both(Seq2Seq::on(backend, checkpoint, &compute)?),
            false => Loaded::Encoder(TextEncoder::on(backend, checkpoint, &compute)?),
        })
    }

    pub(crate) fn encoder(&self) -> &TextEncoder {
        match self {
            Loaded::Encoder(encoder) => encoder,
            Loaded::Both(model) => model.encoder(),
        }
    }
}

/// What a model gives for a reference's rows.
pub(crate) struct Found {
    /// Last hidden states, row by row.
    pub(crate) states: Vec<Vec<f32>>,
    /// Logits behind each token of the decoder's input.
    pub(crate) logits: Option<Vec<f32>>,
}

/// Whether a checkpoint has a decoder.
pub(crate) fn has_decoder(checkpoint: &Checkpoint) -> bool {
    let mut names = checkpoint.names();
    names.any(|name| name.starts_with("decoder.block."))
}

/// Cosines between the vectors of a token in two runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Tokens {
    /// Mean over all tokens; 1 of none.
    pub mean: f64,
    /// The token whose cosine is the least, the first of several; `None` without tokens.
    pub worst: Option<WorstToken>,
}

/// The token whose vector points most elsewhere.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WorstToken {
    /// The cosine; NaN counts as the least.
    pub cosine: f64,
    /// Its row.
    pub row: usize,
    /// Its place in the row.
    pub position: usize,
    /// Its id.
    pub id: u32,
}

/// How far logits are from the reference's.
#[derive(Clone, Debug, PartialEq)]
pub struct LogitsReport {
    /// Of all values.
    pub distance: Distance,
    /// Tokens of decoder input, each of which has logits.
    pub n_tokens: usize,
    /// Those among them behind which the likeliest token is another one.
    pub n_other_top: usize,
}

impl Reference {
    /// Runs the reference over `rows`: the encoder and, if there is one and `new_tokens` are
    /// wanted, the decoder, which writes them greedily behind the first
    /// [`MAX_DECODER_ROWS`] rows and then gives the logits of what it wrote.
    ///
    /// # Errors
    ///
    /// As [`TextEncoder::from_checkpoint`] and [`TextEncoder::encode_rows`];
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) for a packed model, whose
    /// weights the reference does not read.
    pub fn compute(
        checkpoint: &Checkpoint,
        rows: Vec<Vec<u32>>,
        options: &Options<'_>,
    ) -> Result<Self> {
        let both = has_decoder(checkpoint) && options.new_tokens > 0;
        let model = Loaded::on(crate::backend::reference::Reference, checkpoint, both)?;
        Self::of(&model, rows, options)
    }

    /// What a model on the reference backend, or on one that computes as it does, gives for `rows`.
    pub(crate) fn of(model: &Loaded, rows: Vec<Vec<u32>>, options: &Options<'_>) -> Result<Self> {
        let config = model.encoder().config();
        let states = encode(model.encoder(), &rows, options)?;
        let decoded = match model {
            Loaded::Encoder(_) => None,
            Loaded::Both(model) => {
                let sources = &rows[..rows.len().min(MAX_DECODER_ROWS)];
                let decoder_rows = greedy(model, sources, options.new_tokens)?;
                Some(Exact {
                    logits: logits(model, sources, &decoder_rows)?,
                    vocab: config.vocab_size,
                    rows: decoder_rows,
                })
            }
        };
        Ok(Reference {
            d_model: config.d_model,
            states,
            decoded,
            rows,
        })
    }

    /// Loads the model another way, computes the same and says how far it is from here. The
    /// model is dropped before the comparison. `new_tokens` of the options has no effect here.
    ///
    /// A decoder is left out where the backend has none for that type.
    ///
    /// # Errors
    ///
    /// As [`TextEncoder::from_checkpoint`].
    pub fn compare(
        &self,
        checkpoint: &Checkpoint,
        backend: BackendKind,
        compute: &Compute,
        options: &Options<'_>,
    ) -> Result<Report> {
        self.compare_from(checkpoint, backend, compute, &[], options)
    }

    /// [`Reference::compare`] of a model that starts with these powers of two, see
    /// [`TextEncoder::start_scales`].
    ///
    /// # Errors
    ///
    /// As [`Reference::compare`].
    pub fn compare_from(
        &self,
        checkpoint: &Checkpoint,
        backend: BackendKind,
        compute: &Compute,
        scales: &[(Site, Scale)],
        options: &Options<'_>,
    ) -> Result<Report> {
        let has_decoder =
            !matches!(backend, BackendKind::Cuda(_)) || compute.dtype != ComputeType::F16;
        let model = match &self.decoded {
            Some(_) if has_decoder => {
                Loaded::Both(Seq2Seq::from_checkpoint(checkpoint, backend, compute)?)
            }
            _ => Loaded::Encoder(TextEncoder::from_checkpoint(checkpoint, backend, compute)?),
        };
        model.encoder().start_scales(scales);
        let found = self.run(&model, options)?;
        let (backend, isa) = (model.encoder().backend_name(), model.encoder().isa());
        let passes_again = model.encoder().passes_again();
        drop(model);
        let (states, tokens) = self.compare_states(&found.states);
        Ok(Report {
            backend,
            isa,
            states,
            tokens,
            logits: self.compare_logits(&found),
            passes_again,
        })
    }

    /// What a model gives for the same rows.
    pub(crate) fn run(&self, model: &Loaded, options: &Options<'_>) -> Result<Found> {
        let states = encode(model.encoder(), &self.rows, options)?;
        let logits = match (model, &self.decoded) {
            (Loaded::Both(model), Some(exact)) => {
                Some(logits(model, &self.rows[..exact.rows.len()], &exact.rows)?)
            }
            _ => None,
        };
        Ok(Found { states, logits })
    }

    /// How far logits of the same rows are, if both have some.
    pub(crate) fn compare_logits(&self, found: &Found) -> Option<LogitsReport> {
        let exact = self.decoded.as_ref()?;
        found.logits.as_ref().map(|logits| exact.compare(logits))
    }

    /// How far states of the same rows are, each `[len, d_model]`.
    ///
    /// # Panics
    ///
    /// If a row has another length.
    pub fn compare_states(&self, states: &[Vec<f32>]) -> (Distance, Tokens) {
        let lengths = |rows: &[Vec<f32>]| rows.iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(
            lengths(states),
            lengths(&self.states),
            "states of the same rows"
        );
        let distance = distance_of(self.states.iter().flatten(), states.iter().flatten());
        let (mut sum, mut n_tokens, mut worst) = (0.0, 0, None::<WorstToken>);
        for (row, (exact, found)) in self.states.iter().zip(states).enumerate() {
            let vectors = exact.chunks_exact(self.d_model);
            let pairs = vectors.zip(found.chunks_exact(self.d_model));
            for (position, (exact, found)) in pairs.enumerate() {
                let cosine = cosine(exact, found);
                (sum, n_tokens) = (sum + cosine, n_tokens + 1);
                // NaN is below every number, and the first NaN stays.
                let is_worst = worst.is_none_or(|worst| {
                    cosine < worst.cosine || (cosine.is_nan() && !worst.cosine.is_nan())
                });
                if is_worst {
                    worst = Some(WorstToken {
                        cosine,
                        row,
                        position,
                        id: self.rows[row][position],
                    });
                }
            }
        }
        let mean = match n_tokens {
            0 => 1.0,
            n => sum / f64::from(n),
        };
        (distance, Tokens { mean, worst })
    }

    /// Token ids, row by row.
    pub fn rows(&self) -> &[Vec<u32>] {
        &self.rows
    }

    /// Last hidden states, row by row, each `[len, d_model]`.
    pub fn states(&self) -> &[Vec<f32>] {
        &self.states
    }

    /// Width of the states.
    pub fn d_model(&self) -> usize {
        self.d_model
    }

    /// Number of tokens of all rows.
    pub fn n_tokens(&self) -> usize {
        self.rows.iter().map(Vec::len).sum()
    }

    /// Sizes of the states' values: their quantiles and the largest. The root mean square is
    /// [`Reference::rms`]; relative to itself it is 1.
    pub fn sizes(&self) -> Distance {
        let values = self.states.iter().flatten();
        Distance::between(values.map(|&value| (f64::from(value), 0.0)), &QUANTILES)
    }

    /// Root mean square of the states' values, in f64.
    pub fn rms(&self) -> f64 {
        let values = self.states.iter().flatten();
        let sum: f64 = values.map(|&value| f64::from(value).powi(2)).sum();
        match self.n_tokens() * self.d_model {
            0 => 0.0,
            n => (sum / n as f64).sqrt(),
        }
    }
}

impl Exact {
    fn compare(&self, logits: &[f32]) -> LogitsReport {
        let both = || {
            let exact = self.logits.chunks_exact(self.vocab);
            exact.zip(logits.chunks_exact(self.vocab))
        };
        LogitsReport {
            distance: distance_of(self.logits.iter(), logits.iter()),
            n_tokens: both().count(),
            n_other_top: both().filter(|(a, b)| likeliest(a) != likeliest(b)).count(),
        }
    }
}

fn distance_of<'a>(
    exact: impl Iterator<Item = &'a f32>,
    found: impl Iterator<Item = &'a f32>,
) -> Distance {
    let pairs = exact.zip(found);
    let pairs = pairs.map(|(&exact, &found)| (f64::from(exact), f64::from(found)));
    Distance::between(pairs, &QUANTILES)
}

/// Place of the largest score, the first of equals.
fn likeliest(scores: &[f32]) -> usize {
    let places = 0..scores.len();
    places.fold(0, |best, at| match scores[at] > scores[best] {
        true => at,
        false => best,
    })
}

fn encode(
    encoder: &TextEncoder,
    rows: &[Vec<u32>],
    options: &Options<'_>,
) -> Result<Vec<Vec<f32>>> {
    let in_touch = RowsOptions {
        progress: options.progress,
        ..RowsOptions::default()
    };
    encoder.encode_rows_with(rows, options.batch_tokens, None, &in_touch)
}

/// The decoder's input for what it writes greedily: the start token and all but the last.
fn greedy(model: &Seq2Seq, sources: &[Vec<u32>], new_tokens: usize) -> Result<Vec<Vec<u32>>> {
    let own = model.generation_config()?;
    if own.decoder_start_token_id.is_none() {
        return Err(
            Error::config("the model does not say what its decoder starts with")
                .hint("leave the decoder out"),
        );
    }
    // Rules of the model's own, such as beams, would only hide its likeliest tokens.
    let config = GenerationConfig {
        max_new_tokens: Some(new_tokens),
        eos_token_id: own.eos_token_id,
        pad_token_id: own.pad_token_id,
        decoder_start_token_id: own.decoder_start_token_id,
        ..GenerationConfig::default()
    };
    let written = model.generate(Sources::Ids(sources), &config, &GenerateOptions::default())?;
    let inputs = written.into_iter().map(|sequences| {
        let best = sequences.into_iter().next();
        let mut tokens = best.map(|best| best.tokens).unwrap_or_default();
        tokens.pop();
        tokens
    });
    Ok(inputs.collect())
}

/// Logits behind each token of decoder input, `[tokens, vocab]`.
fn logits(model: &Seq2Seq, sources: &[Vec<u32>], rows: &[Vec<u32>]) -> Result<Vec<f32>> {
    let decoded = model.decode(&Decode {
        sources: Sources::Ids(sources),
        rows,
        targets: None,
        keep_logits: true,
        keep_inner: false,
        interrupted: None,
    })?;
    Ok(decoded.logits)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two rows of two and one token, d_model 2.
    fn reference() -> Reference {
        Reference {
            rows: vec![vec![7, 1], vec![9]],
            d_model: 2,
            states: vec![vec![3.0, 4.0, 1.0, 0.0], vec![0.0, 2.0]],
            decoded: None,
        }
    }

    #[test]
    fn states_by_hand() {
        let reference = reference();
        let found = [vec![3.0, 4.0, 1.0, 0.0], vec![2.0, 2.0]];
        let (distance, tokens) = reference.compare_states(&found);
        assert_eq!((distance.n_values, distance.max), (6, 2.0));
        // One of six values is off by 2; the squares of the exact ones sum to 30.
        assert_eq!(distance.quantiles, [0.0, 2.0, 2.0, 2.0, 2.0]);
        assert_eq!(distance.relative_rms, (4.0f64 / 30.0).sqrt());
        let worst = tokens.worst.unwrap();
        assert_eq!((worst.row, worst.position, worst.id), (1, 0, 9));
        let expected = 2.0 / 8f64.sqrt();
        assert!((worst.cosine - expected).abs() < 1e-15);
        assert!((tokens.mean - (2.0 + expected) / 3.0).abs() < 1e-15);
        assert_eq!(reference.rms(), (30.0f64 / 6.0).sqrt());
        let sizes = reference.sizes();
        assert_eq!((sizes.max, sizes.relative_rms), (4.0, 1.0));
        assert_eq!(reference.n_tokens(), 3);
    }

    #[test]
    fn the_first_nan_is_the_worst_token() {
        let found = [vec![-3.0, -4.0, f32::NAN, 0.0], vec![f32::NAN, 2.0]];
        let (distance, tokens) = reference().compare_states(&found);
        assert!(distance.max.is_nan() && tokens.mean.is_nan());
        let worst = tokens.worst.unwrap();
        assert_eq!((worst.row, worst.position), (0, 1));
        assert!(worst.cosine.is_nan());
    }

    #[test]
    fn logits_by_hand() {
        let exact = Exact {
            rows: vec![vec![0, 5]],
            vocab: 3,
            logits: vec![1.0, 2.0, 0.0, 5.0, 5.0, 1.0],
        };
        let report = exact.compare(&[1.0, 1.5, 1.75, 5.0, 5.0, 1.0]);
        assert_eq!((report.n_tokens, report.n_other_top), (2, 1));
        assert_eq!(report.distance.max, 1.75);
        // Among equals the first is the likeliest.
        assert_eq!(
            exact.compare(&[1.0, 2.0, 0.0, 5.0, 4.0, 1.0]).n_other_top,
            0
        );
        assert_eq!(
            exact.compare(&[1.0, 2.0, 0.0, 5.0, 6.0, 1.0]).n_other_top,
            1
        );
    }

    #[test]
    fn names_are_distinct_and_parsed() {
        for (place, way) in Way::ALL.into_iter().enumerate() {
            let found = Way::parse(way.name).unwrap();
            assert_eq!(found, way);
            assert!(Way::ALL[..place].iter().all(|other| other.name != way.name));
            assert!(
                Way::ALL[..place]
                    .iter()
                    .all(|other| other.compute() != way.compute())
            );
        }
        let error = Way::parse("f64").unwrap_err().to_string();
        assert!(
            error.contains("`f64`") && error.contains("`bf16`"),
            "{error}"
        );
        assert_eq!(Way::all_on(BackendKind::Reference).unwrap(), [Way::ALL[0]]);
        let on_cpu = Way::all_on(BackendKind::Cpu).unwrap();
        let names: Vec<&str> = on_cpu.iter().map(|way| way.name).collect();
        let names: Vec<&str> = names
            .into_iter()
            .filter(|name| *name != "f32-high")
            .collect();
        assert_eq!(names, ["f32", "bf16", "f16", "int8", "w8a8", "int4"]);
    }
}
