//! Parse, start logs, run, one error, exit code.

use clap::Parser;
use ssdkd::{cli::Cli, commands, logs};

fn main() -> std::process::ExitCode {
    let cli = Cli::parse();
    let timings = logs::start();
    match commands::run(cli.command, timings) {
        Ok(outcome) => std::process::ExitCode::from(outcome.exit_code()),
        Err(error) => std::process::ExitCode::from(error.exit_code() as u8),
    }
}
