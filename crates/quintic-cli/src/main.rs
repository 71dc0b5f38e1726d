//! The `quintic` command. See `quintic --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(quintic_cli::run(std::env::args_os()))
}
