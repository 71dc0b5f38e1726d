//! What a calibration found, and what follows from it.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Peaks;
use super::fingerprint::fingerprint;
use crate::backend::Scale;
use crate::checkpoint::Checkpoint;
use crate::compute::{Compute, ComputeChoice, ComputeType, MatmulPrecision};
use crate::keep::Site;
use crate::weight_type::{ProductKind, WeightType};
use crate::{Error, Result};

/// Relative root mean squares of what a model gives, against the reference backend.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Errors {
    /// Of the encoder's last hidden states.
    pub states: f64,
    /// Of the decoder's logits; `None` if no decoder was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logits: Option<f64>,
}

impl Errors {
    /// Whether neither is above a bound; NaN is.
    pub fn within(&self, bound: &Errors) -> bool {
        let logits = match (self.logits, bound.logits) {
            (Some(found), Some(bound)) => found <= bound,
            (None, _) | (_, None) => true,
        };
        self.states <= bound.states && logits
    }
}

/// What the products of one site cause alone in integers, all others being left out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Product {
    /// Which.
    pub site: Site,
    /// Number of weights.
    pub weights: u64,
    /// With these products alone in integers.
    pub errors: Errors,
    /// Whether the plan has them in integers.
    pub in_integers: bool,
}

/// What was measured of integers.
#[derive(Clone, Debug, PartialEq)]
pub struct Integers {
    /// What the plan keeps to.
    pub at_most: Errors,
    /// Of bf16 without integers, which the bound is a multiple of unless it was given.
    pub bf16: Errors,
    /// Without integers, in the type of the plan.
    pub without: Errors,
    /// With all products in integers.
    pub all: Errors,
    /// With those in integers that the plan has so: measured, not added up.
    pub plan: Errors,
    /// With all products of one kind in integers, and no others.
    pub kinds: Vec<(ProductKind, Errors)>,
    /// Each site alone.
    pub products: Vec<Product>,
}

impl Integers {
    /// Share of all weights of products that the plan has in integers; 0 of none.
    pub fn share(&self) -> f64 {
        let count = |only: bool| -> u64 {
            let products = self.products.iter();
            let counted = products.filter(|product| product.in_integers || !only);
            counted.map(|product| product.weights).sum()
        };
        match count(false) {
            0 => 0.0,
            all => count(true) as f64 / all as f64,
        }
    }
}

/// How large one feed-forward layer's values became, and what f16 needs to hold them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FeedForward {
    /// Its first product.
    pub site: Site,
    /// The largest magnitudes.
    pub peaks: Peaks,
    /// The powers of two with which f16 has room for 8 times as much.
    pub scale: Scale,
}

/// What a model was measured over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Texts {
    /// Rows.
    pub rows: usize,
    /// Tokens of all rows.
    pub tokens: usize,
}

/// How a checkpoint is to be computed, and what was measured for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The checkpoint's, see [`fingerprint`].
    pub fingerprint: String,
    /// What the model was called when it was measured.
    pub model: String,
    /// Type of products that are not in integers.
    pub dtype: ComputeType,
    /// What the weights of the others are kept as.
    pub weights: WeightType,
    /// Products that are not.
    pub keep: crate::Keep,
    /// Instruction set that was measured on.
    pub isa: Option<String>,
    /// What was measured over.
    pub texts: Texts,
    /// `None` if weights stay as stored.
    pub integers: Option<Integers>,
    /// Every feed-forward layer.
    pub feed_forward: Vec<FeedForward>,
}

impl Plan {
    /// Reads the plan of a checkpoint.
    ///
    /// # Errors
    ///
    /// As [`Plan::read`] and [`Plan::check`], with the plan's path.
    pub fn read_for(path: &Path, checkpoint: &Checkpoint) -> Result<Self> {
        let plan = Plan::read(path)?;
        plan.check(checkpoint)
            .map_err(|error| error.at_if_placeless(path.display()))?;
        Ok(plan)
    }

    /// Whether the plan is this checkpoint's.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Input`](crate::ErrorKind::Input) if it is another one's, naming both; those of
    /// [`fingerprint`].
    pub fn check(&self, checkpoint: &Checkpoint) -> Result<()> {
        let found = fingerprint(checkpoint)?;
        if found == self.fingerprint {
            return Ok(());
        }
        Err(Error::input(format!(
            "is of another checkpoint: it was measured on `{}` ({}), but the model is `{}` \
             ({found})",
            self.model,
            self.fingerprint,
            checkpoint.path().display()
        ))
        .hint("measure this model: `quintic calibrate`"))
    }

    /// What is chosen beside the plan, completed by it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Input`](crate::ErrorKind::Input) if something is chosen that the plan was not
    /// measured for.
    pub fn complete(&self, chosen: &ComputeChoice) -> Result<ComputeChoice> {
        let measured = Compute {
            dtype: self.dtype,
            weights: self.weights,
            keep: self.keep,
            ..Compute::default()
        };
        let folds = |folds: bool| if folds { "true" } else { "false" };
        let keep = |keep: crate::Keep| keep.names();
        let asked_keep = chosen.keep.unwrap_or(measured.keep);
        for (name, asked, has) in [
            (
                "dtype",
                chosen.dtype.unwrap_or(measured.dtype).name(),
                measured.dtype.name(),
            ),
            (
                "matmul_precision",
                chosen.matmul_precision.unwrap_or_default().name(),
                MatmulPrecision::default().name(),
            ),
            (
                "fold_norm_gains",
                folds(chosen.fold_norm_gains.unwrap_or_default()),
                folds(false),
            ),
            (
                "weights",
                chosen.weights.unwrap_or(measured.weights).name(),
                measured.weights.name(),
            ),
            ("keep", &keep(asked_keep), &keep(measured.keep)),
        ] {
            if asked != has {
                return Err(Error::input(format!(
                    "`{name}` is `{asked}`, but the plan was measured for `{has}`"
                ))
                .hint(format!(
                    "leave `{name}` to the plan, or measure another for `{asked}`"
                )));
            }
        }
        Ok(ComputeChoice {
            threads: chosen.threads,
            ..ComputeChoice::from(measured)
        })
    }

    /// The powers of two that are not 1, for [`TextEncoder::start_scales`](crate::TextEncoder::start_scales).
    pub fn scales(&self) -> Vec<(Site, Scale)> {
        let layers = self.feed_forward.iter();
        let needed = layers.filter(|layer| layer.scale != Scale::default());
        needed.map(|layer| (layer.site, layer.scale)).collect()
    }

    /// In a line: which weights are in integers, and which are not.
    pub fn describe(&self) -> String {
        match &self.integers {
            Some(integers) => format!(
                "{} of the weights of products in {}, in {} {}; error {:.2e} at most {:.2e}",
                percent(integers.share()),
                self.weights.name(),
                self.dtype.name(),
                self.keep.names(),
                integers.plan.states,
                integers.at_most.states,
            ),
            None => format!(
                "weights as stored; powers of two for {} of {} feed-forward layers in f16",
                self.scales().len(),
                self.feed_forward.len()
            ),
        }
    }
}

fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}
