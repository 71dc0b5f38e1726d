//! A plan as a file of JSON.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Peaks;
use super::plan::{Errors, FeedForward, Integers, Plan, Product, Texts};
use crate::backend::Scale;
use crate::compute::ComputeType;
use crate::keep::{Keep, Site};
use crate::limits::{MAX_JSON_BYTES, read_file};
use crate::output::AtomicFile;
use crate::weight_type::{ProductKind, WeightType};
use crate::{Error, ErrorKind, Result};

const VERSION: u32 = 1;

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct File {
    quintic_plan: u32,
    model: String,
    checkpoint: String,
    dtype: String,
    weights: String,
    keep: String,
    isa: Option<String>,
    texts: Texts,
    integers: Option<IntegersOfFile>,
    feed_forward: Vec<FeedForwardOfFile>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct IntegersOfFile {
    at_most: Errors,
    bf16: Errors,
    without: Errors,
    all: Errors,
    plan: Errors,
    kinds: Vec<KindOfFile>,
    products: Vec<ProductOfFile>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct KindOfFile {
    product: String,
    errors: Errors,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct ProductOfFile {
    product: String,
    weights: u64,
    errors: Errors,
    in_integers: bool,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct FeedForwardOfFile {
    product: String,
    product_peak: f32,
    gated_peak: f32,
    inner_exponent: i32,
    outer_exponent: i32,
}

impl Plan {
    /// The plan as JSON.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Input`] if a number is not finite, which JSON does not hold.
    pub fn to_json(&self) -> Result<String> {
        serde_json::to_string_pretty(&self.to_file())
            .map(|text| text + "\n")
            .map_err(|error| Error::input("the plan cannot be written").source_error(error))
    }

    /// Writes the plan; the file appears when it is complete.
    ///
    /// # Errors
    ///
    /// As [`AtomicFile`] and [`Plan::to_json`].
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut file = AtomicFile::create(path)?;
        file.write(self.to_json()?.as_bytes())?;
        file.finish()
    }

    /// Reads a plan.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] or [`ErrorKind::NotFound`] if there is no such file;
    /// [`ErrorKind::Input`] if it is no plan or says what makes no sense;
    /// [`ErrorKind::Unsupported`] if it is one of another version.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = read_file(path, MAX_JSON_BYTES, ErrorKind::Input)?;
        Self::parse(&bytes).map_err(|error| error.at(path.display()))
    }

    /// [`Plan::read`] of a file's bytes.
    ///
    /// # Errors
    ///
    /// As [`Plan::read`].
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Any {
            quintic_plan: u32,
        }
        let not = |error: serde_json::Error| {
            Error::input(format!(
                "not a plan that `quintic calibrate` wrote: {error}"
            ))
        };
        let any: Any = serde_json::from_slice(bytes).map_err(not)?;
        if any.quintic_plan != VERSION {
            return Err(Error::unsupported(format!(
                "a plan of version {}, this version of quintic reads {VERSION}",
                any.quintic_plan
            ))
            .hint("run `quintic calibrate` again"));
        }
        let file: File = serde_json::from_slice(bytes).map_err(not)?;
        file.into_plan()
    }

    fn to_file(&self) -> File {
        File {
            quintic_plan: VERSION,
            model: self.model.clone(),
            checkpoint: self.fingerprint.clone(),
            dtype: self.dtype.name().to_owned(),
            weights: self.weights.name().to_owned(),
            keep: self.keep.names(),
            isa: self.isa.clone(),
            texts: self.texts,
            integers: self.integers.as_ref().map(|integers| IntegersOfFile {
                at_most: integers.at_most,
                bf16: integers.bf16,
                without: integers.without,
                all: integers.all,
                plan: integers.plan,
                kinds: (integers.kinds.iter())
                    .map(|(kind, errors)| KindOfFile {
                        product: kind.name().to_owned(),
                        errors: *errors,
                    })
                    .collect(),
                products: (integers.products.iter())
                    .map(|product| ProductOfFile {
                        product: product.site.to_string(),
                        weights: product.weights,
                        errors: product.errors,
                        in_integers: product.in_integers,
                    })
                    .collect(),
            }),
            feed_forward: (self.feed_forward.iter())
                .map(|layer| FeedForwardOfFile {
                    product: layer.site.to_string(),
                    product_peak: layer.peaks.product,
                    gated_peak: layer.peaks.gated,
                    inner_exponent: layer.scale.inner,
                    outer_exponent: layer.scale.outer,
                })
                .collect(),
        }
    }
}

impl File {
    fn into_plan(self) -> Result<Plan> {
        let at = |field: &'static str| move |error: Error| of_input(&error).at(field);
        let weights = WeightType::parse(&self.weights).map_err(at("`weights`"))?;
        if self.integers.is_some() != (weights != WeightType::AsStored) {
            return Err(Error::input(format!(
                "`weights` is `{}`, but `integers` is {}",
                weights.name(),
                match self.integers {
                    Some(_) => "there",
                    None => "null",
                }
            )));
        }
        let keep = Keep::parse(&self.keep).map_err(at("`keep`"))?;
        let integers = self.integers.map(|integers| integers.into_plan(&keep));
        let feed_forward = self.feed_forward.into_iter();
        Ok(Plan {
            fingerprint: self.checkpoint,
            model: self.model,
            dtype: ComputeType::parse(&self.dtype).map_err(at("`dtype`"))?,
            weights,
            keep,
            isa: self.isa,
            texts: self.texts,
            integers: integers.transpose().map_err(at("`integers`"))?,
            feed_forward: feed_forward
                .map(FeedForwardOfFile::into_plan)
                .collect::<Result<_>>()
                .map_err(at("`feed_forward`"))?,
        })
    }
}

/// What is written wrongly is the plan's fault.
fn of_input(error: &Error) -> Error {
    let message = Error::input(error.message());
    match error.place() {
        Some(place) => message.at(place),
        None => message,
    }
}

impl IntegersOfFile {
    fn into_plan(self, keep: &Keep) -> Result<Integers> {
        let product = |product: ProductOfFile| {
            let site = Site::parse(&product.product)?;
            if keep.contains(site) == product.in_integers {
                return Err(Error::input(format!(
                    "`in_integers` of `{site}` is {}, but `keep` is `{}`",
                    product.in_integers,
                    keep.names()
                )));
            }
            Ok(Product {
                site,
                weights: product.weights,
                errors: product.errors,
                in_integers: product.in_integers,
            })
        };
        let kind = |kind: KindOfFile| match ProductKind::of_name(&kind.product) {
            Some(found) => Ok((found, kind.errors)),
            None => Err(Error::input(format!(
                "there is no kind of product `{}`",
                kind.product
            ))),
        };
        Ok(Integers {
            at_most: self.at_most,
            bf16: self.bf16,
            without: self.without,
            all: self.all,
            plan: self.plan,
            kinds: self.kinds.into_iter().map(kind).collect::<Result<_>>()?,
            products: (self.products.into_iter())
                .map(product)
                .collect::<Result<_>>()?,
        })
    }
}

impl FeedForwardOfFile {
    fn into_plan(self) -> Result<FeedForward> {
        let site = Site::parse(&self.product)?;
        if site.kind != ProductKind::Wi {
            return Err(Error::input(format!(
                "`{site}` is not the first product of a feed-forward layer"
            )));
        }
        for (name, exponent) in [
            ("inner_exponent", self.inner_exponent),
            ("outer_exponent", self.outer_exponent),
        ] {
            if !(0..=Scale::MAX_EXPONENT).contains(&exponent) {
                return Err(Error::input(format!(
                    "`{name}` of `{site}` is {exponent}, expected 0 to {}",
                    Scale::MAX_EXPONENT
                )));
            }
        }
        Ok(FeedForward {
            site,
            peaks: Peaks {
                product: self.product_peak,
                gated: self.gated_peak,
            },
            scale: Scale {
                inner: self.inner_exponent,
                outer: self.outer_exponent,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{
  "quintic_plan": 1,
  "model": "m",
  "checkpoint": "fnv1a-128:00",
  "dtype": "bf16",
  "weights": "int8",
  "keep": "encoder.0.wo",
  "isa": "avx512",
  "texts": {"rows": 2, "tokens": 9},
  "integers": {
    "at_most": {"states": 0.01},
    "bf16": {"states": 0.005},
    "without": {"states": 0.005},
    "all": {"states": 0.02},
    "plan": {"states": 0.009},
    "kinds": [{"product": "wo", "errors": {"states": 0.015}}],
    "products": [
      {"product": "encoder.0.wo", "weights": 300, "errors": {"states": 0.015}, "in_integers": false},
      {"product": "encoder.1.wo", "weights": 100, "errors": {"states": 0.007}, "in_integers": true}
    ]
  },
  "feed_forward": [
    {"product": "encoder.0.wi", "product_peak": 100.5, "gated_peak": 1e6, "inner_exponent": 0, "outer_exponent": 7}
  ]
}"#;

    #[test]
    fn a_plan_is_read_back() {
        let plan = Plan::parse(GOOD.as_bytes()).unwrap();
        assert_eq!(plan.keep, Keep::parse("encoder.0.wo").unwrap());
        assert_eq!(plan.integers.as_ref().unwrap().share(), 0.25);
        assert_eq!(plan.scales().len(), 1);
        assert_eq!(plan.scales()[0].1, Scale { inner: 0, outer: 7 });
        let again = Plan::parse(plan.to_json().unwrap().as_bytes()).unwrap();
        assert_eq!(again, plan);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plan.json");
        plan.write(&path).unwrap();
        assert_eq!(Plan::read(&path).unwrap(), plan);
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (from, to, message) in [
            ("\"quintic_plan\": 1", "\"quintic_plan\": 2", "of version 2"),
            (
                "\"quintic_plan\": 1",
                "\"plan\": 1",
                "missing field `quintic_plan`",
            ),
            (
                "\"int8\"",
                "\"int3\"",
                "`weights`: weights cannot be kept as `int3`",
            ),
            ("\"int8\"", "\"as-stored\"", "but `integers` is there"),
            (
                "\"bf16\",",
                "\"f64\",",
                "`dtype`: products cannot be computed in `f64`",
            ),
            (
                "\"encoder.0.wo\",\n",
                "\"wo\",\n",
                "`integers`: `in_integers` of `encoder.1.wo`",
            ),
            (
                "\"encoder.0.wo\",\n",
                "\"up\",\n",
                "`keep`: there is no product `up`",
            ),
            (
                "\"encoder.1.wo\"",
                "\"encoder.1\"",
                "there is no product `encoder.1`",
            ),
            (
                "\"outer_exponent\": 7",
                "\"outer_exponent\": -1",
                "is -1, expected 0 to 116",
            ),
            (
                "\"outer_exponent\": 7",
                "\"outer_exponent\": 1e9",
                "not a plan",
            ),
            (
                "\"encoder.0.wi\"",
                "\"encoder.0.wo\"",
                "`feed_forward`: `encoder.0.wo` is not",
            ),
            ("\"weights\": 300", "\"weights\": -300", "not a plan"),
            (
                "\"product\": \"wo\"",
                "\"product\": \"up\"",
                "no kind of product `up`",
            ),
            ("\"model\"", "\"modell\"", "unknown field `modell`"),
            ("{\n", "[\n", "not a plan"),
        ] {
            let bad = GOOD.replacen(from, to, 1);
            assert_ne!(bad, GOOD, "{from}");
            let error = Plan::parse(bad.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(message), "{message}: {error}");
        }
        assert!(Plan::parse(b"").is_err() && Plan::parse(b"\xff").is_err());
        let missing = Plan::read(Path::new("/nowhere/plan.json")).unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::NotFound);
    }
}
