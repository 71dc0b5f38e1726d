//! The device side of the CUDA backend: kernels, products, recorded passes, memory.
//!
//! This crate knows nothing of models. [`device::Device`] is what it needs from a GPU;
//! [`driver`] is a real one, through libraries that are loaded when they are asked for, so that
//! a program with this crate in it builds and runs where there is no CUDA. The kernels of
//! `kernels/` are plain enough to be compiled as C++ and run on a CPU as well, which is how
//! they are tested without a GPU.

pub mod device;
pub mod driver;
mod error;
pub mod kernels;
pub mod memory;
pub mod parameters;

pub use error::{Error, Result};
