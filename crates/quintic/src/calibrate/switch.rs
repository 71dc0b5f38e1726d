//! The CPU backend with every product's weights twice, in integers and not: which of the two are
//! taken can be changed between passes.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use quintic_kernels::PackedMatrix;

use super::through::Products;
use crate::backend::cpu::Cpu;
use crate::backend::{Backend, Weights};
use crate::keep::Site;
use crate::tensor::Tensor;
use crate::{Error, Result};

/// Which products are in integers, and how many weights each site has.
#[derive(Default)]
pub(super) struct Switches {
    sites: Mutex<BTreeMap<Site, At>>,
}

#[derive(Clone, Copy, Default)]
struct At {
    weights: u64,
    in_integers: bool,
}

impl Switches {
    /// All sites of the model, with their numbers of weights.
    pub(super) fn sites(&self) -> BTreeMap<Site, u64> {
        let sites = self.sites.lock();
        sites.iter().map(|(&site, at)| (site, at.weights)).collect()
    }

    /// From now on the products of these sites are in integers, and no others.
    pub(super) fn set(&self, in_integers: &dyn Fn(Site) -> bool) {
        for (&site, at) in self.sites.lock().iter_mut() {
            at.in_integers = in_integers(site);
        }
    }

    fn add(&self, site: Site, weights: u64) {
        self.sites.lock().entry(site).or_default().weights += weights;
    }

    fn is_on(&self, site: Site) -> bool {
        self.sites
            .lock()
            .get(&site)
            .is_some_and(|at| at.in_integers)
    }
}

/// The CPU's products.
pub(super) struct Switched {
    /// Made for the integers that are measured, none kept out of them.
    cpu: Cpu,
    switches: Arc<Switches>,
}

impl Switched {
    pub(super) fn new(cpu: Cpu, switches: Arc<Switches>) -> Self {
        Switched { cpu, switches }
    }
}

/// A product's weights, in both forms.
pub(super) struct Matrix {
    plain: PackedMatrix,
    integers: Option<(Site, PackedMatrix)>,
}

impl Products for Switched {
    type Inner = Cpu;
    type Matrix = Matrix;

    fn inner(&self) -> &Cpu {
        &self.cpu
    }

    fn prepare(
        &self,
        site: Option<Site>,
        weights: Weights,
        gain: Option<Tensor>,
    ) -> Result<Matrix> {
        let tensors = match &weights {
            Weights::Stacked(parts) => parts.clone(),
            Weights::Gated { gate, up } => vec![gate.clone(), up.clone()],
            Weights::Packed(packed) => {
                return Err(Error::unsupported(
                    "is packed already: nothing can be chosen for it any more",
                )
                .at(format!("tensor `{}`", packed.bytes.name())));
            }
        };
        let copy = match &weights {
            Weights::Gated { gate, up } => Weights::Gated {
                gate: gate.clone(),
                up: up.clone(),
            },
            _ => Weights::Stacked(tensors.clone()),
        };
        let plain = self.cpu.prepare_matrix(weights, gain.clone())?;
        let integers = match site {
            None => None,
            Some(site) => {
                let n = tensors.iter().map(|tensor| tensor.n_elements() as u64);
                self.switches.add(site, n.sum());
                Some((site, self.cpu.prepare_product(site, copy, gain)?))
            }
        };
        Ok(Matrix { plain, integers })
    }

    fn taken<'a>(&self, w: &'a Matrix) -> &'a PackedMatrix {
        match &w.integers {
            Some((site, integers)) if self.switches.is_on(*site) => integers,
            _ => &w.plain,
        }
    }
}
