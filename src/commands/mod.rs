//! One file per subcommand: glue between arguments, library and screen.

mod config;
mod doctor;
mod eval;
mod export;
mod inspect;
mod predict;
mod train;

use crate::cli::{Command, ConfigArgs};
use crate::config::{Loaded, check, load};
use crate::error::{Error, Result};
use crate::logs::launched_rank;
use crate::metrics::Timings;

/// Runs a command; a failure is printed once.
pub fn run(command: Command, timings: Timings) -> Result<()> {
    let outcome = match command {
        Command::Train(args) => train::train(&args, timings),
        Command::Teach(args) => train::teach(&args, timings),
        Command::Eval(args) => eval::run(&args),
        Command::Predict(args) => predict::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Doctor => doctor::run(),
        Command::Config { action } => config::run(&action),
    };
    outcome.inspect_err(print)
}

/// On the leading rank only: an error that reaches this point is known to all ranks.
fn print(error: &Error) {
    if launched_rank() == 0 {
        eprintln!("{}", error.render());
    }
}

/// Merges and checks a configuration.
fn configured(args: &ConfigArgs) -> Result<Loaded> {
    let loaded = merged(args)?;
    check(&loaded.config)?;
    Ok(loaded)
}

/// Merges a configuration.
fn merged(args: &ConfigArgs) -> Result<Loaded> {
    let mut sets = args.set.clone();
    sets.extend(args.data_dir.iter().map(|dir| format!("data.dir={}", dir.display())));
    load(&args.config, &sets)
}
