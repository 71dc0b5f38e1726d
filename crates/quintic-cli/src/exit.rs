//! Errors to text and exit codes.

use std::error::Error as _;

use quintic::{Error, ErrorKind, Result};

/// The exit code of an error; 0 is success, 1 is `compare`'s for a difference and `check`'s for a
/// case that failed, and 2 is clap's for a wrong command line.
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
        ErrorKind::Device => 11,
        // What a shell reports for a program that SIGINT ended.
        ErrorKind::Interrupted => 130,
        _ => 1,
    }
}

/// Prints an error with its causes, and turns the result into an exit code.
pub(crate) fn report(result: Result<u8>) -> u8 {
    let error = match result {
        Ok(code) => return code,
        Err(error) => error,
    };
    if !is_closed_pipe(&error) {
        eprintln!("error: {}", error.report());
    }
    code(error.kind())
}

/// Whoever closed our standard output, such as `head`, has what it wanted: no words.
fn is_closed_pipe(error: &Error) -> bool {
    let cause = error
        .source()
        .and_then(|cause| cause.downcast_ref::<std::io::Error>());
    cause.is_some_and(|cause| cause.kind() == std::io::ErrorKind::BrokenPipe)
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
}
