//! CPU kernels of the Quintic engine: products with packed weights, attention over packed
//! rows, and row operations, for every instruction set of the machine it runs on.
//!
//! Arithmetic only: no files, no tensor names, no models. [`Kernels`] is the way in.
//!
//! `micro` has the innermost products' contract, one file for each instruction set fulfils it;
//! `product` and `attention` block and distribute them; `rowwise` is everything else, written
//! once and compiled for each instruction set; `pool` has the threads. `machine` measures what
//! the machine can do at most.

mod activation;
mod arena;
mod attention;
#[cfg(test)]
mod attention_tests;
mod attention_weights;
mod blocks;
mod isa;
mod kernels;
pub mod machine;
mod math;
mod memory;
mod micro;
mod operand;
mod pack;
mod parts;
mod pool;
mod portable;
mod product;
mod quantised;
#[cfg(test)]
mod quantised_tests;
mod rows;
#[cfg(test)]
mod rows_tests;
mod rowwise;
mod scores;
mod scratch;
mod table;
#[doc(hidden)]
pub mod testing;
#[cfg(test)]
mod tests;
mod tiles;
mod top;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use activation::Activation;
pub use attention::{Attention, KeysValues};
pub use blocks::{BlockType, Fp8};
pub use isa::{ISA_VARIABLE, Isa, IsaError};
pub use kernels::{Epilogue, Kernels, KernelsError, Precision, Stream};
pub use memory::{ALIGNMENT, Buffer};
pub use operand::Operand;
pub use pack::{Bytes, Element, LAYOUT, PackedMatrix, PackedShape, Parts, Plain, Storage};
pub use pool::Pool;
pub use quantised::MAX_INT_DEPTH;
pub use rows::{Encoding, StoredMatrix, StoredParts};
pub use scores::{
    CausalMask, KeyMask, NoBias, NoMask, PairMask, PositionBias, RelativeBias, ScoreBias,
    ScoreMask, ScoresAt,
};
pub use top::Top;
