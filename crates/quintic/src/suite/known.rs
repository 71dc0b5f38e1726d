//! The suite on backends that this build knows by name.

use super::{Options, Outcome, run};
use crate::backend::Backend;
use crate::backend::cpu::Cpu;
use crate::backend::reference::Reference;
use crate::compute::{Compute, ComputeType};
use crate::loading::{BackendKind, open_cuda};
use crate::{Error, Result};

/// What the suite ran on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ran {
    /// Name of the backend.
    pub backend: &'static str,
    /// Its instruction set, if that is a choice.
    pub isa: Option<&'static str>,
}

impl Ran {
    fn of(backend: &impl Backend) -> Self {
        Ran {
            backend: backend.name(),
            isa: backend.isa(),
        }
    }
}

impl Options {
    /// All cases, and what the backend of a kind promises.
    pub fn of(kind: BackendKind, dtype: ComputeType) -> Self {
        match kind {
            BackendKind::Cpu | BackendKind::Reference => Options::new(dtype),
            // Another number of tokens may be multiplied in another order.
            BackendKind::Cuda(_) => Options {
                row_bits: false,
                ..Options::new(dtype)
            },
        }
    }
}

/// The types that a backend computes in.
pub fn dtypes(kind: BackendKind) -> &'static [ComputeType] {
    match kind {
        BackendKind::Cpu | BackendKind::Cuda(_) => &ComputeType::ALL,
        // It has one way to compute, and that is not f32 but better.
        BackendKind::Reference => &[ComputeType::F32],
    }
}

/// Runs the cases on the backend of a kind, as a model would be loaded on it.
///
/// # Errors
///
/// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) if this machine has no such backend
/// or the backend does not compute in `options.dtype`. What goes wrong inside of a case is its
/// outcome.
pub fn run_on(
    kind: BackendKind,
    options: &Options,
    on_case: &mut dyn FnMut(&Outcome),
) -> Result<Ran> {
    let dtype = options.dtype;
    if !dtypes(kind).contains(&dtype) {
        return Err(Error::unsupported(format!(
            "the {} backend does not compute in {}",
            kind.name(),
            dtype.name()
        )));
    }
    let compute = Compute {
        dtype,
        ..Compute::default()
    };
    match kind {
        BackendKind::Cpu => {
            let backend = Cpu::new(&compute)?;
            run(&backend, options, on_case);
            Ok(Ran::of(&backend))
        }
        BackendKind::Cuda(ordinal) => {
            let backend = open_cuda(ordinal, &compute)?;
            // Products may be summed in another order in another company.
            let options = Options {
                row_bits: false,
                ..options.clone()
            };
            run(&backend, &options, on_case);
            Ok(Ran::of(&backend))
        }
        BackendKind::Reference => {
            run(&Reference, options, on_case);
            Ok(Ran::of(&Reference))
        }
    }
}
