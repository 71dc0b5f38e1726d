//! What can go wrong on a device.

use std::fmt;

/// An error of a device or of the libraries that drive it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// There is no such device here, or no driver, or a library is missing or too old.
    Unavailable(String),
    /// The device's memory does not hold what was asked for.
    OutOfMemory {
        /// What was asked for.
        bytes: usize,
        /// What was free then, if that is known.
        free: Option<usize>,
    },
    /// An operation failed: what was done, and what the driver said.
    Failed(String),
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Unavailable(what) | Error::Failed(what) => f.write_str(what),
            Error::OutOfMemory { bytes, free } => {
                write!(f, "the device has no room for {bytes} bytes")?;
                match free {
                    Some(free) => write!(f, ", {free} are free"),
                    None => Ok(()),
                }
            }
        }
    }
}

impl std::error::Error for Error {}
