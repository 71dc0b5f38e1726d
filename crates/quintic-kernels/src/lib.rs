//! CPU kernels of the Quintic engine.
//!
//! Arithmetic only: no files, no tensor names, no models.

mod isa;
pub mod machine;
mod micro;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use isa::{ISA_VARIABLE, Isa, IsaError};
