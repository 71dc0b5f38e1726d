//! Engine errors to Python exceptions.

use pyo3::prelude::*;
use pyo3::types::PyType;
use quintic::{Error, ErrorKind};

/// The class of `quintic.errors` that stands for a kind.
fn class_name(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Io => "FileError",
        ErrorKind::NotFound => "ModelNotFoundError",
        ErrorKind::Config => "ConfigError",
        ErrorKind::Checkpoint => "CheckpointError",
        ErrorKind::Tokenizer => "TokenizerError",
        ErrorKind::Input => "InputError",
        ErrorKind::Unsupported => "UnsupportedError",
        ErrorKind::Download => "DownloadError",
        ErrorKind::Device => "DeviceError",
        _ => "QuinticError",
    }
}

/// The exception of an error, with the command line's text.
pub(crate) fn exception(py: Python<'_>, error: &Error) -> PyErr {
    instance(py, class_name(error.kind()), error.report())
}

/// What a panic becomes: a bug of the engine, told as an exception that programs can catch.
pub(crate) fn from_panic(py: Python<'_>, payload: &(dyn std::any::Any + Send)) -> PyErr {
    let message = payload
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| payload.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    instance(py, "InternalError", format!("internal error: {message}"))
}

fn instance(py: Python<'_>, class: &str, message: String) -> PyErr {
    let found = py
        .import("quintic.errors")
        .and_then(|module| module.getattr(class))
        .and_then(|class| Ok(class.cast_into::<PyType>()?));
    match found {
        Ok(class) => PyErr::from_type(class, message),
        Err(broken_package) => broken_package,
    }
}
