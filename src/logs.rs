//! Logs: fields to stderr for people, JSON lines in the run folder for programs; and what a panic does.

mod fault;
mod trace;

pub use trace::{end_trace, is_traced, join_traces, trace_is_open};

use crate::error::{Error, is_of_memory};
use crate::metrics::Timings;
use crate::parallel::{end_job, end_with, host_name, launcher_columns};
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};
use tracing_subscriber::filter::{EnvFilter, LevelFilter, Targets};
use tracing_subscriber::prelude::*;

/// The JSON log of this process, once the run folder is known.
static JSON: OnceLock<Mutex<File>> = OnceLock::new();

/// Variables that name this process's rank before MPI is up.
const RANK_VARIABLES: [&str; 4] = ["OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID"];

/// Rank as the launcher's environment has it; 0 without one.
pub fn launched_rank() -> usize {
    RANK_VARIABLES.iter().find_map(|name| std::env::var(name).ok()?.parse().ok()).unwrap_or(0)
}

/// Starts logging and timing, and makes a panic end the whole job with one line.
///
/// `SSDKD_LOG` sets what goes to stderr (for example `debug`); otherwise rank 0 logs a line a round, and warnings only when a
/// progress bar is on screen; other ranks log warnings. Every span also goes to the file `trace`, if one is named.
pub fn start(trace: Option<&Path>) -> Timings {
    let (timings, layer) = Timings::new();
    let rank = launched_rank();
    let quiet = rank != 0 || io::stderr().is_terminal() || launcher_columns().is_some();
    let default = if quiet { "warn" } else { "info" };
    let filter = EnvFilter::try_from_env("SSDKD_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let people = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .with_filter(filter);
    let programs = tracing_subscriber::fmt::layer().json().with_writer(|| JsonLog).with_filter(LevelFilter::INFO);
    let spans = || Targets::new().with_target("ssdkd", LevelFilter::DEBUG);
    let (times, fault) = (layer.with_filter(spans()), fault::Fault::asked_for(rank).with_filter(spans()));
    let trace = trace::begin(trace, rank).with_filter(spans());
    tracing_subscriber::registry().with(people).with(programs).with(times).with(trace).with(fault).init();
    std::panic::set_hook(Box::new(move |panic| {
        let payload = panic.payload();
        if let Some(error) = payload.downcast_ref::<Error>() {
            end_with(error, rank)
        }
        let cause = payload.downcast_ref::<&str>().map(|s| (*s).to_owned()).or_else(|| payload.downcast_ref::<String>().cloned());
        let place = panic.location().map(|l| format!(" at {}:{}", l.file(), l.line())).unwrap_or_default();
        let cause = cause.unwrap_or_default();
        if cause.starts_with("failed printing to std") && cause.contains("Broken pipe") {
            // Who reads the output has gone (`| head`): no fault, and nobody to tell. The code is that of SIGPIPE.
            end_job(141)
        }
        let said = words_of(&cause);
        if is_of_memory(said) {
            end_with(&Error::torch("a computation", &said), rank)
        }
        let line = format!("error: rank {rank} on {}: {said}{place}", host_name());
        let _ = writeln!(io::stderr(), "{line}\nhint: this is a fault of ssdkd; please report it with this line and the command");
        end_job(1)
    }));
    timings
}

/// What a panic says to a person: its first line. That of a libtorch call stands within Rust's own words, with C++'s calls behind it, all
/// of it escaped.
fn words_of(panic: &str) -> &str {
    let text = panic.rsplit_once("value: Torch(\"").map_or(panic, |(_, text)| text);
    text.split("\\n").next().unwrap_or(text).lines().next().unwrap_or_default().trim_end_matches("\")")
}

/// Adds a JSON log in the run folder.
pub fn write_json_to(path: &Path) -> io::Result<()> {
    let file = File::options().create(true).append(true).open(path)?;
    let _ = JSON.set(Mutex::new(file));
    Ok(())
}

struct JsonLog;

impl Write for JsonLog {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match JSON.get() {
            // A log that cannot be written must not end a run.
            Some(file) => Ok(file.lock().unwrap_or_else(PoisonError::into_inner).write(line).unwrap_or(line.len())),
            None => Ok(line.len()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_says_one_line() {
        let error = tch::Tensor::zeros([2], (tch::Kind::Float, tch::Device::Cpu)).f_view([3]).unwrap_err();
        let panic = format!("called `Result::unwrap()` on an `Err` value: {error:?}");
        assert_eq!(words_of(&panic), "shape '[3]' is invalid for input of size 2", "{panic}");
        assert_eq!(words_of("index out of bounds\nand more"), "index out of bounds");
        let full =
            r#"called `Result::unwrap()` on an `Err` value: Torch("CUDA out of memory. Tried to allocate 2.00 GiB.\nException raised")"#;
        assert!(words_of(full) == "CUDA out of memory. Tried to allocate 2.00 GiB." && is_of_memory(words_of(full)));
    }
}
