//! Which products of a model may be kept in integers, and how its values fit into f16: found by
//! measurement, written down as a [`Plan`].
//!
//! [`calibrate`] runs the reference backend over some texts, then the CPU backend with every
//! product's weights twice in memory, in integers and not. One product after the other is put into
//! integers alone, and the relative root mean square of what the model then gives is measured:
//! of the encoder's hidden states, and of the decoder's logits if there is a decoder.
//!
//! # The choice
//!
//! Errors of different products are nearly independent, so their squares add up. The products
//! are put in the order of `(e^2 - e0^2) / (x^2 - e0^2)` for each weight, where `e` is the error
//! with this product alone in integers, `e0` that without any, and `x` the bound: the share of what
//! may be lost that a weight in integers costs. With logits it is the larger of the two shares.
//! That is an order only. How many products of it, from the first on, are put into integers is found
//! by measuring: the most whose error is at most `x`, by halving the interval. So
//! a plan's error is a measured one, on these texts.
//!
//! The bound is [`TIMES_BF16`] times the model's own error in bf16 without integers, unless one is
//! given.
//!
//! # Powers of two
//!
//! While the reference runs, the largest magnitudes of each feed-forward layer are kept. From them
//! follow the exponents with which f16 holds them and 8 times as much. On the CPU f16 is the type of
//! weights alone, so nothing needs them; the CUDA backend rounds what flows to f16, and starts from
//! them instead of finding its own by running passes again.
//!
//! # Memory and time
//!
//! The model twice (in 16 bits and in integers, 14 GB for an encoder of XXL's size), and its states as
//! in [`crate::verify`]. The reference's pass computes a feed-forward layer's first product twice.
//! A layer has four sites, a model with `n` sites takes about `n + 15` passes over the texts.

mod choose;
mod file;
mod fingerprint;
mod peaks;
mod plan;
mod switch;
mod through;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;

use crate::backend::Scale;
use crate::backend::cpu::Cpu;
use crate::checkpoint::Checkpoint;
use crate::compute::{Compute, ComputeType};
use crate::config::T5Config;
use crate::keep::{Keep, Site, Stack};
use crate::loading::{BackendKind, config_of};
use crate::verify::{self, Found, Loaded, Reference, has_decoder};
use crate::weight_type::{ProductKind, WeightType};
use crate::{Error, Result};

pub use self::fingerprint::fingerprint;
pub use self::peaks::Peaks;
pub use self::plan::{Errors, FeedForward, Integers, Plan, Product, Texts};

use self::choose::{choose, order};
use self::peaks::Watched;
use self::switch::{Switched, Switches};
use self::through::Through;

/// The bound, unless one is given, as a multiple of the model's own error in bf16 without integers.
///
/// transformers in bf16 is farther from exact sums than bf16 is here, since it keeps the residual
/// stream in 16 bits: measured on FLAN-T5-small's states, 2.2 times as far on captions and 3.5 times
/// on [`PROMPTS`](crate::verify::PROMPTS). So a plan's results are nearer to exact ones than what
/// people have who compute such a model in bf16 there.
pub const TIMES_BF16: f64 = 2.0;

/// What a calibration tells of its progress: what is computed, how many parts of it are done, and
/// of how many.
pub type Progress<'a> = &'a (dyn Fn(&str, usize, usize) + Sync);

/// What to measure with, beside the model.
#[derive(Clone, Copy)]
pub struct Options<'a> {
    /// Type of the products that are not in integers.
    pub dtype: ComputeType,
    /// What the weights of the others become; with [`WeightType::AsStored`] only the sizes of
    /// values are looked at.
    pub weights: WeightType,
    /// Largest error, of states and of logits; by default [`TIMES_BF16`] times that of bf16.
    pub at_most: Option<f64>,
    /// Most tokens computed at a time.
    pub batch_tokens: usize,
    /// Most tokens that the decoder writes behind each row; 0 leaves it out, and its products out
    /// of the integers.
    pub new_tokens: usize,
    /// Threads; by default as many as this process has cores.
    pub threads: Option<NonZeroUsize>,
    /// Told after each part.
    pub progress: Option<Progress<'a>>,
}

/// Measures a model over `rows` of token ids and makes its plan. `model` is what the plan will call
/// it. See the [module](self) docs.
///
/// # Errors
///
/// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) for a packed model, or one with more
/// than [`Keep::MAX_LAYERS`] layers; [`ErrorKind::Input`](crate::ErrorKind::Input) if there are no
/// tokens, or the bound is below the error without integers;
/// [`ErrorKind::Checkpoint`](crate::ErrorKind::Checkpoint) if its results are not finite; and what
/// loading and running it may report.
pub fn calibrate(
    checkpoint: &Checkpoint,
    model: &str,
    rows: Vec<Vec<u32>>,
    options: &Options<'_>,
) -> Result<Plan> {
    let here = |error: Error| error.at_if_placeless(checkpoint.path().display());
    if checkpoint.packed().is_some() {
        return Err(here(
            Error::unsupported("the model is packed: what it computes with is chosen already")
                .hint("name the model that was packed"),
        ));
    }
    if let Some(bound) = options
        .at_most
        .filter(|bound| !(*bound > 0.0 && bound.is_finite()))
    {
        return Err(Error::input(format!(
            "the largest error is {bound}, expected a positive number"
        )));
    }
    if rows.iter().all(Vec::is_empty) {
        return Err(Error::input("the texts have no tokens"));
    }
    let config = config_of(checkpoint)?;
    let most = config.num_layers.max(config.num_decoder_layers);
    if options.weights != WeightType::AsStored && most > Keep::MAX_LAYERS {
        return Err(here(Error::unsupported(format!(
            "a stack has {most} layers, expected at most {}",
            Keep::MAX_LAYERS
        ))));
    }
    let bench = Bench::new(checkpoint, rows, options)?;
    let integers = match options.weights {
        WeightType::AsStored => None,
        _ => Some(bench.integers()?),
    };
    let keep = match &integers {
        None => Keep::default(),
        Some(integers) => keep(integers, bench.unmeasured(&config))?,
    };
    let isa = Cpu::new(&bench.compute())?;
    let isa = crate::backend::Backend::isa(&isa).map(str::to_owned);
    Ok(Plan {
        fingerprint: fingerprint(checkpoint)?,
        model: model.to_owned(),
        dtype: options.dtype,
        weights: options.weights,
        keep,
        isa,
        texts: Texts {
            rows: bench.reference.rows().len(),
            tokens: bench.reference.n_tokens(),
        },
        integers,
        feed_forward: bench.feed_forward,
    })
}

/// Everything but what is in integers, what was not measured among it. A kind of which nothing is
/// in integers is kept by its name alone.
fn keep(integers: &Integers, mut names: Vec<String>) -> Result<Keep> {
    for kind in ProductKind::ALL {
        let mut of_kind = integers.products.iter().filter(|p| p.site.kind == kind);
        let all_kept = of_kind.clone().all(|product| !product.in_integers);
        if all_kept && of_kind.next().is_some() {
            names.push(kind.name().to_owned());
        }
    }
    let kept = integers.products.iter().filter(|p| !p.in_integers);
    names.extend(kept.map(|product| product.site.to_string()));
    match names.is_empty() {
        true => Ok(Keep::default()),
        false => Keep::parse(&names.join(",")),
    }
}

/// A model on the bench.
struct Bench<'a> {
    checkpoint: &'a Checkpoint,
    options: &'a Options<'a>,
    both: bool,
    reference: Reference,
    feed_forward: Vec<FeedForward>,
}

impl<'a> Bench<'a> {
    /// Runs the reference.
    fn new(
        checkpoint: &'a Checkpoint,
        rows: Vec<Vec<u32>>,
        options: &'a Options<'a>,
    ) -> Result<Self> {
        let both = has_decoder(checkpoint) && options.new_tokens > 0;
        let found = peaks::Found::default();
        let watched = Through(Watched {
            found: Arc::clone(&found),
        });
        let tell = |done, all| tell(options, "reference", done, all);
        let verify = verify_options(options, &tell);
        let reference = Reference::of(&Loaded::on(watched, checkpoint, both)?, rows, &verify)?;
        if !reference.rms().is_finite() {
            return Err(Error::checkpoint(
                "hidden states are not finite even with exact sums, so nothing can be measured",
            )
            .at(checkpoint.path().display()));
        }
        let layer = |(&site, &peaks): (&Site, &Peaks)| FeedForward {
            site,
            peaks,
            scale: Scale::for_peaks(peaks.product, peaks.gated),
        };
        let feed_forward = found.lock().iter().map(layer).collect();
        Ok(Bench {
            checkpoint,
            options,
            both,
            reference,
            feed_forward,
        })
    }

    fn compute(&self) -> Compute {
        Compute {
            dtype: self.options.dtype,
            weights: self.options.weights,
            threads: self.options.threads,
            ..Compute::default()
        }
    }

    /// Products that no text went through, by name.
    fn unmeasured(&self, config: &T5Config) -> Vec<String> {
        if self.both || !has_decoder(self.checkpoint) {
            return Vec::new();
        }
        let last = config.num_decoder_layers.saturating_sub(1);
        let name = |kind: ProductKind| match kind {
            ProductKind::Head => kind.name().to_owned(),
            kind => format!("{}.0-{last}.{}", Stack::Decoder.name(), kind.name()),
        };
        ProductKind::ALL.map(name).to_vec()
    }

    fn errors(&self, found: &Found) -> Result<Errors> {
        let errors = Errors {
            states: self.reference.compare_states(&found.states).0.relative_rms,
            logits: self
                .reference
                .compare_logits(found)
                .map(|logits| logits.distance.relative_rms),
        };
        match errors.states.is_finite() && errors.logits.is_none_or(f64::is_finite) {
            true => Ok(errors),
            false => Err(Error::checkpoint(format!(
                "the relative error is {}, expected a number: states or logits are not finite, or \
                 all zeros",
                errors.states
            ))
            .at(self.checkpoint.path().display())),
        }
    }

    /// The model in bf16 without integers.
    fn bf16(&self, quiet: &verify::Options<'_>) -> Result<Errors> {
        tell(self.options, "bf16", 0, 1);
        let compute = Compute {
            dtype: ComputeType::Bf16,
            weights: WeightType::AsStored,
            ..self.compute()
        };
        let report =
            (self.reference).compare(self.checkpoint, BackendKind::Cpu, &compute, quiet)?;
        Ok(Errors {
            states: report.states.relative_rms,
            logits: report.logits.map(|logits| logits.distance.relative_rms),
        })
    }

    fn integers(&self) -> Result<Integers> {
        let ignore = |_, _| ();
        let quiet = verify_options(self.options, &ignore);
        let bf16 = match self.options.dtype {
            ComputeType::Bf16 => None,
            _ => Some(self.bf16(&quiet)?),
        };
        tell(self.options, "weights", 0, 1);
        let switches = Arc::new(Switches::default());
        let switched = Switched::new(Cpu::new(&self.compute())?, Arc::clone(&switches));
        let model = Loaded::on(Through(switched), self.checkpoint, self.both)?;
        let measure = |in_integers: &dyn Fn(Site) -> bool| -> Result<Errors> {
            switches.set(in_integers);
            self.errors(&self.reference.run(&model, &quiet)?)
        };
        let sites = switches.sites();
        let without = measure(&|_| false)?;
        let bf16 = bf16.unwrap_or(without);
        let at_most = self.bound(&bf16, &without)?;
        let all = measure(&|_| true)?;
        let mut kinds = Vec::new();
        for kind in ProductKind::ALL {
            if sites.keys().any(|site| site.kind == kind) {
                tell(self.options, "kinds", kinds.len(), ProductKind::ALL.len());
                kinds.push((kind, measure(&|site| site.kind == kind)?));
            }
        }
        let mut alone = BTreeMap::new();
        for &site in sites.keys() {
            tell(self.options, "products", alone.len(), sites.len());
            alone.insert(site, measure(&|one| one == site)?);
        }
        let order = order(&sites, &alone, &without, &at_most);
        tell(self.options, "plan", 0, 1);
        let chosen = choose(&order, &at_most, without, all, &|set| {
            measure(&|site| set.contains(&site))
        })?;
        let product = |(&site, &weights): (&Site, &u64)| Product {
            site,
            weights,
            errors: alone[&site],
            in_integers: chosen.in_integers.contains(&site),
        };
        Ok(Integers {
            at_most,
            bf16,
            without,
            all,
            plan: chosen.errors,
            kinds,
            products: sites.iter().map(product).collect(),
        })
    }

    fn bound(&self, bf16: &Errors, without: &Errors) -> Result<Errors> {
        let times = |error: f64| self.options.at_most.unwrap_or(TIMES_BF16 * error);
        let at_most = Errors {
            states: times(bf16.states),
            logits: bf16.logits.map(times),
        };
        for (what, least, bound) in [
            ("hidden states", Some(without.states), Some(at_most.states)),
            ("logits", without.logits, at_most.logits),
        ] {
            if let (Some(least), Some(bound)) = (least, bound)
                && least > bound
            {
                return Err(Error::input(format!(
                    "the largest error asked for is {bound:.3e}, but that of the {what} is \
                     {least:.3e} in {} without integers",
                    self.options.dtype.name()
                ))
                .hint("allow a larger one, or name a finer type"));
            }
        }
        Ok(at_most)
    }
}

fn verify_options<'a>(
    options: &Options<'_>,
    progress: &'a (dyn Fn(usize, usize) + Sync),
) -> verify::Options<'a> {
    verify::Options {
        batch_tokens: options.batch_tokens,
        new_tokens: options.new_tokens,
        progress: Some(progress),
    }
}

fn tell(options: &Options<'_>, what: &str, done: usize, all: usize) {
    if let Some(progress) = options.progress {
        progress(what, done, all);
    }
}
