//! The `quintic` command. See `quintic --help`.

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

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match &cli.command {
        Command::Encode(args) => commands::encode::run(args).map(|()| ExitCode::SUCCESS),
        Command::Inspect(args) => commands::inspect::run(args).map(|()| ExitCode::SUCCESS),
        Command::Tokenize(args) => commands::tokenize::run(args).map(|()| ExitCode::SUCCESS),
        Command::Compare(args) => commands::compare::run(args),
        Command::Convert(args) => commands::convert::run(args).map(|()| ExitCode::SUCCESS),
        Command::Bench(args) => commands::bench::run(args),
    };
    exit::report(result)
}
