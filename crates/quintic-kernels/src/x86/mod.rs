//! What is specific to x86-64: detection, and kernels written in its instructions.

pub(crate) mod amx;
mod amx_fetch;
pub(crate) mod amx_parts;
pub(crate) mod amx_split;
pub(crate) mod avx2;
pub(crate) mod avx2_int8;
pub(crate) mod avx512;
pub(crate) mod avx512_bytes;
pub(crate) mod avx512_int8;
pub(crate) mod avx512_rows;
pub(crate) mod avx512_tiles;
pub(crate) mod avx512bf16_rows;
pub(crate) mod detect;
pub(crate) mod rows;
