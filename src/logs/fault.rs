//! Faults on demand, for the durability tests and nothing else.
//!
//! `SSDKD_FAULT_FOR_TESTS="ACTION RANK SPAN N"` makes rank RANK do ACTION when it enters the span SPAN for the N-th time (from 1):
//! `kill`, `stop`, `term`, `usr1` and `usr2` send it that signal, `panic` panics. Spans are those of the timings, such as `inversion`,
//! `distillation`, `communication`, `evaluation` and `writing` (one file of a checkpoint).

use std::sync::atomic::{AtomicU64, Ordering};
use tracing::span::Id;
use tracing::subscriber::Subscriber;
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

const VARIABLE: &str = "SSDKD_FAULT_FOR_TESTS";

/// Waits for the span at which its rank is to fail.
pub(super) struct Fault {
    action: Action,
    span: String,
    entries_left: AtomicU64,
}

#[derive(Clone, Copy)]
enum Action {
    Signal(i32),
    Panic,
}

impl Fault {
    /// The fault that is asked for on this rank.
    pub(super) fn asked_for(rank: usize) -> Option<Self> {
        Self::parse(&std::env::var(VARIABLE).ok()?, rank)
    }

    fn parse(text: &str, rank: usize) -> Option<Self> {
        let [action, on, span, entry] = text.split_whitespace().collect::<Vec<_>>().try_into().ok()?;
        let action = match action {
            "kill" => Action::Signal(libc::SIGKILL),
            "stop" => Action::Signal(libc::SIGSTOP),
            "term" => Action::Signal(libc::SIGTERM),
            "usr1" => Action::Signal(libc::SIGUSR1),
            "usr2" => Action::Signal(libc::SIGUSR2),
            "panic" => Action::Panic,
            _ => return None,
        };
        let entries_left = AtomicU64::new(entry.parse().ok()?);
        (on.parse() == Ok(rank)).then(|| Self { action, span: span.into(), entries_left })
    }

    fn is_due(&self, span: &str) -> bool {
        span == self.span && self.entries_left.fetch_sub(1, Ordering::Relaxed) == 1
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Fault {
    fn on_enter(&self, id: &Id, context: Context<'_, S>) {
        if context.span(id).is_some_and(|span| self.is_due(span.name())) {
            match self.action {
                Action::Signal(signal) => {
                    // SAFETY: sends a signal to this process.
                    unsafe { libc::raise(signal) };
                }
                Action::Panic => panic!("a panic that {VARIABLE} asked for"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_comes_once_at_the_entry_asked_for_on_the_rank_asked_for() {
        let fault = Fault::parse("kill 1 inversion 2", 1).unwrap();
        assert_eq!(["inversion", "evaluation", "inversion", "inversion"].map(|span| fault.is_due(span)), [false, false, true, false]);
        assert!(Fault::parse("kill 1 inversion 2", 0).is_none());
        assert!(Fault::parse("explode 1 inversion 2", 1).is_none());
    }
}
