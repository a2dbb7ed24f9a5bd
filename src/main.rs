//! Parse, start logs, run, one error, exit code.

use clap::Parser;
use ssdkd::{cli::Cli, commands, device, logs, memory, parallel::Launch};
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(usage) => return explain(&usage),
    };
    device::prepare();
    memory::keep_freed();
    let timings = logs::start(cli.trace.as_deref());
    let outcome = commands::run(cli.command, timings);
    logs::end_trace();
    match outcome {
        Ok(outcome) => ExitCode::from(outcome.exit_code()),
        Err(error) => ExitCode::from(error.exit_code() as u8),
    }
}

/// Prints help, the version or what is wrong with the arguments, once for all ranks.
fn explain(usage: &clap::Error) -> ExitCode {
    if logs::launched_rank() == 0 {
        let _ = usage.print();
    }
    if usage.exit_code() != 0 {
        // mpirun kills all ranks when the first of them fails: joining makes each wait until the leading one has printed.
        let _ = Launch::join();
    }
    ExitCode::from(usage.exit_code() as u8)
}
