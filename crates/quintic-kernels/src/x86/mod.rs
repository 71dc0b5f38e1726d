//! What is specific to x86-64: detection, and kernels written in its instructions.

pub(crate) mod amx;
pub(crate) mod detect;
