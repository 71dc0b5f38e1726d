//! Errors to text and exit codes.

use std::error::Error as _;
use std::process::ExitCode;

use quintic::{Error, ErrorKind, Result};

/// The exit code of an error; 0 is success, 1 is `compare`'s for a difference and 2 is clap's
/// for a wrong command line.
pub(crate) fn code(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::Io => 3,
        ErrorKind::NotFound => 4,
        ErrorKind::Config => 5,
        ErrorKind::Checkpoint => 6,
        ErrorKind::Tokenizer => 7,
        ErrorKind::Input => 8,
        ErrorKind::Unsupported => 9,
        ErrorKind::Download => 10,
        // What a shell reports for a program that SIGINT ended.
        ErrorKind::Interrupted => 130,
        _ => 1,
    }
}

/// Prints an error with its causes, and turns the result into an exit code.
pub(crate) fn report(result: Result<ExitCode>) -> ExitCode {
    let error = match result {
        Ok(code) => return code,
        Err(error) => error,
    };
    if !is_closed_pipe(&error) {
        eprintln!("{}", text(&error));
    }
    ExitCode::from(code(error.kind()))
}

/// Whoever closed our standard output, such as `head`, has what it wanted: no words.
fn is_closed_pipe(error: &Error) -> bool {
    let cause = error
        .source()
        .and_then(|cause| cause.downcast_ref::<std::io::Error>());
    cause.is_some_and(|cause| cause.kind() == std::io::ErrorKind::BrokenPipe)
}

fn text(error: &Error) -> String {
    let mut text = String::from("error: ");
    if let Some(place) = error.place() {
        text += &format!("{place}: ");
    }
    text += error.message();
    let mut cause = error.source();
    while let Some(inner) = cause {
        // A cause that the message already quotes would only be said twice.
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text += &format!("\n  caused by: {inner_text}");
        }
        cause = inner.source();
    }
    if let Some(hint) = error.hint_text() {
        text += &format!("\n\nhint: {hint}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_code_of_its_own() {
        let mut codes: Vec<u8> = ErrorKind::ALL.into_iter().map(code).collect();
        assert!(
            codes.iter().all(|&code| code > 2),
            "0, 1 and 2 mean something else"
        );
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), ErrorKind::ALL.len());
    }

    #[test]
    fn the_hint_stands_last() {
        let cause = std::io::Error::other("the disk is on fire");
        let error = Error::config("broken")
            .at("config.json")
            .hint("repair it")
            .source_error(cause);
        assert_eq!(
            text(&error),
            "error: config.json: broken\n  caused by: the disk is on fire\n\nhint: repair it"
        );
    }
}
