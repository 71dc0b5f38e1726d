//! The reference backend, with an eye on how large feed-forward layers' values become.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::through::Products;
use crate::Result;
use crate::backend::reference::{Reference, Rows};
use crate::backend::{Backend, Epilogue, Weights};
use crate::keep::Site;
use crate::tensor::Tensor;
use crate::weight_type::ProductKind;

/// Largest magnitudes of one feed-forward layer.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Peaks {
    /// Of its first product: of gate and up, if it is gated.
    pub product: f32,
    /// Behind the activation or the gate.
    pub gated: f32,
}

/// Of each first product of a feed-forward layer.
pub(super) type Found = Arc<Mutex<BTreeMap<Site, Peaks>>>;

/// The reference's products, and what is looked at on the way. Results have the same bits.
pub(super) struct Watched {
    pub(super) found: Found,
}

/// A product's weights.
pub(super) struct Matrix {
    weights: Weights,
    /// Of a first product of a feed-forward layer.
    watched: Option<(Site, Vec<Part>)>,
}

/// A half of a gated product, or all of another.
struct Part {
    weights: Weights,
    columns: usize,
}

impl Products for Watched {
    type Inner = Reference;
    type Matrix = Matrix;

    fn inner(&self) -> &Reference {
        &Reference
    }

    fn prepare(
        &self,
        site: Option<Site>,
        weights: Weights,
        gain: Option<Tensor>,
    ) -> Result<Matrix> {
        let part = |tensor: &Tensor| Part {
            columns: tensor.shape()[0],
            weights: Weights::Stacked(vec![tensor.clone()]),
        };
        let parts = match &weights {
            Weights::Stacked(parts) => parts.iter().map(part).collect(),
            Weights::Gated { gate, up } => vec![part(gate), part(up)],
            // Refused below.
            Weights::Packed(_) => Vec::new(),
        };
        let site = site.filter(|site| site.kind == ProductKind::Wi);
        Ok(Matrix {
            watched: site.map(|site| (site, parts)),
            weights: Reference.prepare_matrix(weights, gain)?,
        })
    }

    fn taken<'a>(&self, w: &'a Matrix) -> &'a Weights {
        &w.weights
    }

    fn linear(&self, x: &Rows, w: &Matrix, epilogue: Epilogue<'_, Reference>) {
        let Some((site, parts)) = &w.watched else {
            return Reference.linear(x, &w.weights, epilogue);
        };
        let mut peaks = Peaks::default();
        for part in parts {
            let mut product = Rows::zeros(x.rows, part.columns);
            Reference.linear(x, &part.weights, Epilogue::Store(&mut product));
            peaks.product = peaks.product.max(largest(&product));
        }
        match epilogue {
            Epilogue::Activate(activation, out) => {
                Reference.linear(x, &w.weights, Epilogue::Activate(activation, out));
                peaks.gated = largest(out);
            }
            Epilogue::Gate(activation, out) => {
                Reference.linear(x, &w.weights, Epilogue::Gate(activation, out));
                peaks.gated = largest(out);
            }
            other => Reference.linear(x, &w.weights, other),
        }
        let mut found = self.found.lock();
        let all = found.entry(*site).or_default();
        all.product = all.product.max(peaks.product);
        all.gated = all.gated.max(peaks.gated);
    }
}

/// NaN does not count: what it comes from is told by the states.
fn largest(rows: &Rows) -> f32 {
    rows.data
        .iter()
        .fold(0.0, |largest, value| f32::max(largest, value.abs()))
}
