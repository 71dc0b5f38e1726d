//! The `quintic` command as a function, for the binary and for whoever installs it another way.

mod args;
mod batches;
mod commands;
mod exit;
mod job;
mod machine;
mod memory;
mod model;
mod pooling;
mod show;
mod sink;
mod source;
mod texts;

use std::ffi::OsString;

use clap::Parser;

use args::{Cli, Command};

/// Exit code of a wrong command line, as clap's own.
const USAGE: u8 = 2;

/// Runs the command line `args`, its program name included, and returns the exit code. Prints to
/// standard output and standard error.
pub fn run(args: impl IntoIterator<Item = OsString>) -> u8 {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(message) => {
            // Help and version are messages too, on standard output. Nobody is left to be told
            // that they cannot be printed.
            let _ = message.print();
            return if message.use_stderr() { USAGE } else { 0 };
        }
    };
    let result = match &cli.command {
        Command::Encode(args) => commands::encode::run(args).map(|()| 0),
        Command::Generate(args) => commands::generate::run(args).map(|()| 0),
        Command::Translate(args) => commands::generate::translate(args).map(|()| 0),
        Command::Score(args) => commands::score::run(args).map(|()| 0),
        Command::Inspect(args) => commands::inspect::run(args).map(|()| 0),
        Command::Tokenize(args) => commands::tokenize::run(args).map(|()| 0),
        Command::Compare(args) => commands::compare::run(args),
        Command::Convert(args) => commands::convert::run(args).map(|()| 0),
        Command::Bench(args) => commands::bench::run(args),
        Command::Calibrate(args) => commands::calibrate::run(args).map(|()| 0),
        Command::Check(args) => commands::check::run(args),
        Command::Verify(args) => commands::verify::run(args),
    };
    exit::report(result)
}
