//! One file per subcommand: glue between arguments, library and screen.

mod bench;
mod config;
mod data;
mod doctor;
mod eval;
mod export;
mod inspect;
mod predict;
mod train;

use crate::cli::{Command, ConfigArgs};
use crate::config::{Job, Loaded, check, load};
use crate::error::{Error, Result};
use crate::logs::launched_rank;
use crate::metrics::Timings;
use crate::task::Task;

/// How a command ended, where it did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Done.
    Done,
    /// Stopped by a signal, with a whole checkpoint.
    Stopped,
}

impl Outcome {
    /// Exit code of the process (docs/exit-codes.md).
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Stopped => 75,
        }
    }
}

/// Runs a command; a failure is printed once.
pub fn run(command: Command, timings: Timings) -> Result<Outcome> {
    let done = |()| Outcome::Done;
    let outcome = match command {
        Command::Train(args) => train::train(&args, timings),
        Command::Teach(args) => train::teach(&args, timings),
        Command::Eval(args) => eval::run(&args).map(done),
        Command::Predict(args) => predict::run(&args).map(done),
        Command::Export(args) => export::run(&args).map(done),
        Command::Inspect(args) => inspect::run(&args).map(done),
        Command::Data { action } => data::run(&action).map(done),
        Command::Bench { action } => bench::run(&action).map(done),
        Command::Doctor => doctor::run().map(done),
        Command::Config { action } => config::run(&action).map(done),
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
fn configured(args: &ConfigArgs, job: Job) -> Result<Loaded> {
    let loaded = merged(args)?;
    check(&loaded.config, job)?;
    let config = &loaded.config;
    Task::check(config.dataset, "teacher.model", config.teacher.model)?;
    if job == Job::Train {
        Task::check(config.dataset, "student.model", config.student.model)?;
    }
    Ok(loaded)
}

/// Merges a configuration.
fn merged(args: &ConfigArgs) -> Result<Loaded> {
    let mut sets = args.set.clone();
    sets.extend(args.data_dir.iter().map(|dir| format!("data.dir={}", dir.display())));
    load(&args.config, &sets)
}
