//! What the driver says, as errors of this crate.

use cudarc::driver::result::DriverError;

use crate::{Error, Result};

/// Name and text of a driver's error.
pub(super) fn text(error: DriverError) -> String {
    let name = error.error_name().ok().map(|name| name.to_string_lossy());
    let what = error.error_string().ok().map(|text| text.to_string_lossy());
    match (what, name) {
        (Some(what), Some(name)) => format!("{what} ({name})"),
        _ => format!("error {}", error.0 as u32),
    }
}

/// Says what was done when it failed.
pub(super) trait Done<T> {
    fn done(self, doing: &str) -> Result<T>;
    fn done_with(self, doing: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Done<T> for std::result::Result<T, DriverError> {
    fn done(self, doing: &str) -> Result<T> {
        self.done_with(|| doing.to_owned())
    }

    fn done_with(self, doing: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| Error::Failed(format!("{}: {}", doing(), text(error))))
    }
}
