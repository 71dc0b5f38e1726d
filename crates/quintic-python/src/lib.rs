//! Native half of the Python package `quintic`: what the package's own modules call.
//!
//! Nothing here is public API. Arrays come in as NumPy arrays of one fixed type and contiguous
//! layout and go out as new ones; which Python types users may hand over, and what they get
//! back, is decided in Python. The GIL is released while Rust works.

mod encoder;
mod error;
mod guard;
mod request;
mod seq2seq;
mod source;
mod texts;

use std::ffi::OsString;

use pyo3::prelude::*;

/// Runs the `quintic` command with `args`, its own name first; returns the exit code.
#[pyfunction]
fn run_command(py: Python<'_>, args: Vec<OsString>) -> PyResult<u8> {
    guard::run(py, || Ok(quintic_cli::run(args)))
}

/// Panics, so that a test can see what becomes of it.
#[pyfunction]
fn panic_for_tests(py: Python<'_>) -> PyResult<()> {
    guard::run(py, || panic!("asked to panic"))
}

/// Names of all presets.
#[pyfunction]
fn preset_names() -> Vec<&'static str> {
    quintic::preset::Preset::ALL
        .iter()
        .flat_map(|preset| preset.names())
        .collect()
}

/// Path of the file or folder that a path or a repository id stands for.
#[pyfunction]
#[pyo3(signature = (model, options))]
fn resolve(py: Python<'_>, model: String, options: encoder::Files) -> PyResult<String> {
    guard::run(py, || {
        let hub = options.hub();
        quintic::checkpoint::hub::resolve(&model, &hub)
    })
    .map(|path| path.display().to_string())
}

#[pymodule]
fn _quintic(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<encoder::Encoder>()?;
    module.add_class::<seq2seq::Model>()?;
    module.add_class::<texts::Tokenizer>()?;
    module.add_function(wrap_pyfunction!(run_command, module)?)?;
    module.add_function(wrap_pyfunction!(preset_names, module)?)?;
    module.add_function(wrap_pyfunction!(resolve, module)?)?;
    module.add_function(wrap_pyfunction!(panic_for_tests, module)?)?;
    module.add_function(wrap_pyfunction!(texts::encode_rows, module)?)?;
    module.add_function(wrap_pyfunction!(texts::embedding_width, module)?)?;
    module.add_function(wrap_pyfunction!(texts::sentence_max_length, module)?)?;
    module.add_function(wrap_pyfunction!(texts::prepare, module)?)?;
    Ok(())
}
