//! What a file of packed matrices says about itself.
//!
//! The `__metadata__` of such a file has six texts, or eight if weights are integers:
//!
//! | name | value |
//! |---|---|
//! | `quintic.packed` | version of this table, `1` |
//! | `quintic.layout` | how packed bytes are ordered, with a version |
//! | `quintic.dtype`, `quintic.matmul_precision` | what products are computed for |
//! | `quintic.fold_norm_gains` | whether the gains of the layers' norms are in the products: `true` or `false` |
//! | `quintic.weights`, `quintic.keep` | what weights are kept as, `int8` for instance, and the products that are not |
//! | `quintic.matrices` | JSON object: a packed tensor's name to `storage`, `columns`, `depth`, `gated` |

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::compute::{Compute, ComputeType, MatmulPrecision};
use crate::keep::Keep;
use crate::weight_type::WeightType;
use crate::{Error, Result};

/// Name of a file of packed matrices in a model folder.
pub(crate) const FILE: &str = "model.packed.safetensors";

const VERSION: &str = "1";

/// How the matrices of a checkpoint are packed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packed {
    /// How packed bytes are ordered, with a version: the backend's affair.
    pub layout: String,
    /// Type that products are computed for.
    pub dtype: ComputeType,
    /// Precision of f32 products.
    pub matmul_precision: MatmulPrecision,
    /// Whether the gains of the layers' norms are in the products. Then they are not stored.
    pub fold_norm_gains: bool,
    /// What weights are kept as.
    pub weights: WeightType,
    /// Products whose weights are not.
    pub keep: Keep,
    /// Every packed matrix by its tensor's name.
    pub matrices: BTreeMap<String, PackedEntry>,
}

/// One packed matrix, apart from its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct PackedEntry {
    /// Type and order of the weights, a name that the layout gives a meaning.
    pub storage: String,
    /// Columns of the product's result; of a gated one, those after the gate.
    pub columns: usize,
    /// Columns of the product's input.
    pub depth: usize,
    /// Whether two halves of a gate are interleaved.
    pub gated: bool,
}

impl Packed {
    /// What the metadata of a header says; `None` if nothing is packed.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) for another version,
    /// [`ErrorKind::Checkpoint`](crate::ErrorKind::Checkpoint) for what has no meaning.
    pub(super) fn read(metadata: &BTreeMap<String, String>) -> Result<Option<Self>> {
        let Some(version) = metadata.get("quintic.packed") else {
            return Ok(None);
        };
        if version != VERSION {
            return Err(Error::unsupported(format!(
                "packed in format version `{version}`, this version of quintic reads `{VERSION}`"
            ))
            .at("metadata `quintic.packed`")
            .hint("pack the model again"));
        }
        let dtype = field(metadata, "quintic.dtype", |text| {
            ComputeType::parse(text).map_err(|error| error.message().to_owned())
        })?;
        let matmul_precision = field(metadata, "quintic.matmul_precision", |text| {
            MatmulPrecision::parse(text).map_err(|error| error.message().to_owned())
        })?;
        let fold_norm_gains = field(metadata, "quintic.fold_norm_gains", |text| {
            text.parse()
                .map_err(|_| format!("found `{text}`, expected `true` or `false`"))
        })?;
        let weights = match metadata.contains_key("quintic.weights") {
            true => field(metadata, "quintic.weights", |text| {
                WeightType::parse(text).map_err(|error| error.message().to_owned())
            })?,
            false => WeightType::AsStored,
        };
        let keep = match weights {
            WeightType::AsStored => Keep::default(),
            _ => field(metadata, "quintic.keep", |text| {
                Keep::parse(text).map_err(|error| error.message().to_owned())
            })?,
        };
        let matrices = field(metadata, "quintic.matrices", |text| {
            serde_json::from_str(text).map_err(|error| format!("not what was expected: {error}"))
        })?;
        Ok(Some(Packed {
            layout: field(metadata, "quintic.layout", |text| Ok(text.to_owned()))?,
            dtype,
            matmul_precision,
            fold_norm_gains,
            weights,
            keep,
            matrices,
        }))
    }

    /// The metadata that [`Packed::read`] reads.
    pub(crate) fn metadata(&self) -> Result<Vec<(&'static str, String)>> {
        let matrices = serde_json::to_string(&self.matrices)
            .map_err(|error| Error::checkpoint("cannot be written").source_error(error))?;
        let mut texts = vec![
            ("format", "pt".to_owned()),
            ("quintic.packed", VERSION.to_owned()),
            ("quintic.layout", self.layout.clone()),
            ("quintic.dtype", self.dtype.name().to_owned()),
            (
                "quintic.matmul_precision",
                self.matmul_precision.name().to_owned(),
            ),
            ("quintic.fold_norm_gains", self.fold_norm_gains.to_string()),
            ("quintic.matrices", matrices),
        ];
        if self.weights != WeightType::AsStored {
            texts.push(("quintic.weights", self.weights.name().to_owned()));
            texts.push(("quintic.keep", self.keep.names()));
        }
        Ok(texts)
    }

    /// What the model is packed for.
    pub fn compute(&self) -> Compute {
        Compute {
            dtype: self.dtype,
            matmul_precision: self.matmul_precision,
            threads: None,
            fold_norm_gains: self.fold_norm_gains,
            weights: self.weights,
            keep: self.keep,
        }
    }

    /// Whether the model is packed for this; threads have no part in it, and a precision is
    /// one of f32 products alone.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Input`](crate::ErrorKind::Input) naming the first difference.
    pub fn check(&self, compute: &Compute) -> Result<()> {
        let precision = |precision: MatmulPrecision| match self.dtype {
            ComputeType::F32 => precision.name(),
            _ => "",
        };
        let (asked_keep, stored_keep) = match self.weights {
            WeightType::AsStored => Default::default(),
            _ => (compute.keep.names(), self.keep.names()),
        };
        let folds = |folds: bool| if folds { "true" } else { "false" };
        for (name, asked, stored) in [
            ("dtype", compute.dtype.name(), self.dtype.name()),
            (
                "matmul_precision",
                precision(compute.matmul_precision),
                precision(self.matmul_precision),
            ),
            (
                "fold_norm_gains",
                folds(compute.fold_norm_gains),
                folds(self.fold_norm_gains),
            ),
            ("weights", compute.weights.name(), self.weights.name()),
            ("keep", &asked_keep, &stored_keep),
        ] {
            if asked != stored {
                return Err(Error::input(format!(
                    "`{name}` is `{asked}`, but the model is packed for `{stored}`"
                ))
                .hint(format!(
                    "leave `{name}` to the packed model, or pack the original for `{asked}`"
                )));
            }
        }
        Ok(())
    }
}

fn field<T>(
    metadata: &BTreeMap<String, String>,
    name: &str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<T> {
    match metadata.get(name) {
        Some(text) => parse(text).map_err(Error::checkpoint),
        None => Err(Error::checkpoint(
            "is missing, but the file says that it is packed",
        )),
    }
    .map_err(|error| error.at(format!("metadata `{name}`")))
}
