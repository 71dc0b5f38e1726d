//! Doors for the fuzz targets: what else needs a file on disk, from bytes. Not for users, and
//! not covered by any promise of stability.

pub use crate::checkpoint::in_memory::{open_gguf, open_safetensors, open_sharded};
