//! tmp
pub mod clean;
