//! Bounds on what is read into memory before anything is known about it.

/// Largest JSON side file (config, index, modules) that is read. The largest published
/// ones are below 1 MB.
pub(crate) const MAX_JSON_BYTES: u64 = 64 << 20;
