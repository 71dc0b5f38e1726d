//! How work runs: without the GIL, interruptible, and without taking the interpreter down.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use quintic::Result;

use crate::error;

/// How often signals are looked for: soon enough for a person at the keyboard, seldom enough
/// that taking the GIL from busy threads costs nothing.
const INTERVAL: Duration = Duration::from_millis(50);

/// Runs `work` without the GIL.
///
/// # Errors
///
/// The exception of its error or of its panic.
pub(crate) fn run<T: Send>(py: Python<'_>, work: impl FnOnce() -> Result<T> + Send) -> PyResult<T> {
    // A panic leaves nothing behind that is used again: models are immutable, and buffers are
    // the call's own.
    match py.detach(|| catch_unwind(AssertUnwindSafe(work))) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(error::exception(py, &error)),
        Err(payload) => Err(error::from_panic(py, &*payload)),
    }
}

/// As [`run`], for work that asks now and then whether it is to end early.
///
/// # Errors
///
/// As [`run`]; what a signal handler raised, such as `KeyboardInterrupt`, if that is why the
/// work ended.
pub(crate) fn run_interruptible<T: Send>(
    py: Python<'_>,
    work: impl FnOnce(&Signals) -> Result<T> + Send,
) -> PyResult<T> {
    let signals = Signals::new();
    let result = run(py, || work(&signals));
    match signals.raised.into_inner() {
        Ok(Some(raised)) => Err(raised),
        _ => result,
    }
}

/// Whether Python's signal handlers want the work to end.
pub(crate) struct Signals {
    last_look: Mutex<Instant>,
    raised: Mutex<Option<PyErr>>,
}

impl Signals {
    fn new() -> Self {
        Signals {
            last_look: Mutex::new(Instant::now()),
            raised: Mutex::new(None),
        }
    }

    /// Runs pending signal handlers; true if one of them raised. Handlers run in Python's main
    /// thread alone, so that elsewhere this is always false.
    pub(crate) fn pending(&self) -> bool {
        let Ok(mut last_look) = self.last_look.lock() else {
            return false;
        };
        if last_look.elapsed() < INTERVAL {
            return false;
        }
        *last_look = Instant::now();
        self.note(Python::attach(|py| py.check_signals()))
    }

    /// Keeps what was raised, to be raised again when the work has ended; says whether there is
    /// anything.
    pub(crate) fn note(&self, outcome: PyResult<()>) -> bool {
        let Ok(mut raised) = self.raised.lock() else {
            return false;
        };
        if let Err(error) = outcome {
            raised.get_or_insert(error);
        }
        raised.is_some()
    }
}
