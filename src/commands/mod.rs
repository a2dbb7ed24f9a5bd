//! One file per subcommand: glue between arguments, library and screen.

mod bench;
mod config;
mod data;
mod doctor;
mod eval;
mod export;
mod inspect;
mod predict;
mod report;
mod study;
mod sweep;
mod train;

use crate::cli::{Command, ConfigArgs};
use crate::config::{Job, Loaded, load};
use crate::error::{Error, Result, STOPPED};
use crate::logs::{self, launched_rank};
use crate::methods;
use crate::metrics::Timings;
use crate::parallel::{Launch, World, end_with};

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
            Self::Stopped => STOPPED as u8,
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
        Command::Predict(args) => logs::trace_is_open().and_then(|()| predict::run(&args)).map(done),
        Command::Export(args) => logs::trace_is_open().and_then(|()| export::run(&args)).map(done),
        Command::Inspect(args) => logs::trace_is_open().and_then(|()| inspect::run(&args)).map(done),
        Command::Report(args) => logs::trace_is_open().and_then(|()| report::run(&args)).map(done),
        Command::Data { action } => logs::trace_is_open().and_then(|()| data::run(&action)).map(done),
        Command::Bench { action } => bench::run(&action).map(done),
        Command::Sweep { action } => sweep::run(&action),
        Command::Study { action } => study::run(&action),
        Command::Doctor(args) => doctor::run(&args).map(done),
        Command::Config { action } => logs::trace_is_open().and_then(|()| config::run(&action)).map(done),
    };
    outcome.inspect_err(print)
}

/// On the leading rank only: an error that reaches this point is known to all ranks.
fn print(error: &Error) {
    if launched_rank() == 0 {
        eprintln!("{}", error.render());
    }
}

/// Joins the job; a trace that one rank cannot write is refused by all. A collective.
fn join() -> Result<Launch> {
    let launch = Launch::join()?;
    launch.agree(logs::trace_is_open())?;
    Ok(launch)
}

/// What ranks do together without agreeing on how it went: an error that one of several alone knows of ends the job.
fn together<T>(ranks: usize, outcome: Result<T>) -> Result<T> {
    outcome.inspect_err(|error| {
        if ranks > 1 && !error.is_known_to_all() {
            end_with(error, launched_rank());
        }
    })
}

/// Makes one trace of those of all ranks, where there are some. The last thing that ranks do together. A collective.
fn join_traces(world: &World) -> Result<()> {
    if !logs::is_traced() {
        return Ok(());
    }
    if !world.leads() {
        logs::end_trace();
    }
    world.barrier()?;
    if world.leads() {
        logs::join_traces(world.layout().ranks());
    }
    // No rank ends before that is done: mpirun kills all when one has a code other than 0.
    world.barrier()
}

/// Merges and checks a configuration.
fn configured(args: &ConfigArgs, job: Job) -> Result<Loaded> {
    let loaded = merged(args)?;
    methods::check(&loaded.config, job)?;
    Ok(loaded)
}

/// Merges a configuration.
fn merged(args: &ConfigArgs) -> Result<Loaded> {
    let mut sets = args.set.clone();
    sets.extend(args.data_dir.iter().map(|dir| format!("data.dir={}", dir.display())));
    load(&args.config, &sets)
}
