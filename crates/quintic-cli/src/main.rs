//! The `quintic` command. See `quintic --help`.

mod args;
mod batches;
mod commands;
mod exit;
mod job;
mod memory;
mod model;
mod sink;
mod texts;

use clap::Parser;

use args::{Cli, Command};

fn main() -> std::process::ExitCode {
    let cli = Cli::parse();
    let result = match &cli.command {
        Command::Encode(args) => commands::encode::run(args),
        Command::Inspect(args) => commands::inspect::run(args),
        Command::Tokenize(args) => commands::tokenize::run(args),
        Command::Compare(args) => commands::compare::run(args),
    };
    exit::report(result)
}
