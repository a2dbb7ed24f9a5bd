//! Parse, start logs, run, one error, exit code.

use clap::Parser;
use ssdkd::{cli::Cli, commands, logs};

fn main() -> std::process::ExitCode {
    let cli = Cli::parse();
    let timings = logs::start();
    match commands::run(cli.command, timings) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => std::process::ExitCode::from(error.exit_code() as u8),
    }
}
