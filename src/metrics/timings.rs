//! Seconds per kind of work, from the spans that also feed the logs. A span's time excludes that of other kinds inside it; a span of no
//! kind counts as what it lies in.

use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tracing::span::{Attributes, Id};
use tracing::subscriber::Subscriber;
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

/// Accumulated seconds of one process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Seconds {
    /// Wall time of the run.
    pub total: f64,
    /// Inner loops of data inversion.
    pub inversion: f64,
    /// Draws and write-backs, without their communication.
    pub sampling: f64,
    /// Student forward and backward passes.
    pub distillation: f64,
    /// Collectives, waiting included.
    pub communication: f64,
    /// Evaluation, without its communication.
    pub evaluation: f64,
}

/// Handle by which a run reads its times.
#[derive(Clone)]
pub struct Timings {
    busy: Arc<Mutex<HashMap<&'static str, f64>>>,
    began: Instant,
    before: Seconds,
}

impl Timings {
    /// A handle and the layer that feeds it.
    pub fn new() -> (Self, TimingsLayer) {
        let busy = Arc::new(Mutex::new(HashMap::new()));
        (Self { busy: busy.clone(), began: Instant::now(), before: Seconds::default() }, TimingsLayer { busy })
    }

    /// Adds what earlier parts of this run took, read from its folder.
    pub fn resume(&mut self, before: Seconds) {
        self.before = before;
    }

    /// Times so far.
    pub fn seconds(&self) -> Seconds {
        let busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        let of = |name: &str| busy.get(name).copied().unwrap_or_default();
        Seconds {
            total: self.before.total + self.began.elapsed().as_secs_f64(),
            inversion: self.before.inversion + of("inversion"),
            sampling: self.before.sampling + of("sampling"),
            distillation: self.before.distillation + of("distillation"),
            communication: self.before.communication + of("communication"),
            evaluation: self.before.evaluation + of("evaluation"),
        }
    }
}

/// The kind of work that a span is.
fn kind(span: &'static str) -> Option<&'static str> {
    match span {
        "inversion" | "sampling" | "distillation" | "communication" | "evaluation" => Some(span),
        "barrier" | "all-gather" | "all-to-all" | "all-reduce" => Some("communication"),
        _ => None,
    }
}

/// Listens to spans.
pub struct TimingsLayer {
    busy: Arc<Mutex<HashMap<&'static str, f64>>>,
}

thread_local! {
    /// Open spans of this thread: when each was entered, and the seconds of some kind of work inside it.
    static OPEN: RefCell<Vec<(Instant, f64)>> = const { RefCell::new(Vec::new()) };
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for TimingsLayer {
    fn on_new_span(&self, _: &Attributes<'_>, _: &Id, _: Context<'_, S>) {}

    fn on_enter(&self, _: &Id, _: Context<'_, S>) {
        OPEN.with_borrow_mut(|open| open.push((Instant::now(), 0.0)));
    }

    fn on_exit(&self, id: &Id, context: Context<'_, S>) {
        let Some((entered, inside)) = OPEN.with_borrow_mut(Vec::pop) else { return };
        let elapsed = entered.elapsed().as_secs_f64();
        let kind = context.span(id).and_then(|span| kind(span.name()));
        OPEN.with_borrow_mut(|open| {
            if let Some(outer) = open.last_mut() {
                outer.1 += if kind.is_some() { elapsed } else { inside };
            }
        });
        if let Some(kind) = kind {
            *self.busy.lock().unwrap_or_else(PoisonError::into_inner).entry(kind).or_default() += elapsed - inside;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tracing_subscriber::prelude::*;

    #[test]
    fn time_inside_an_inner_span_counts_once() {
        let (timings, layer) = Timings::new();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let _outer = tracing::debug_span!("sampling").entered();
            let _inner = tracing::debug_span!("communication").entered();
            std::thread::sleep(Duration::from_millis(20));
        });
        let seconds = timings.seconds();
        assert!(seconds.communication >= 0.02 && seconds.sampling < seconds.communication, "{seconds:?}");
        assert!(seconds.total >= seconds.communication);
    }

    #[test]
    fn a_span_of_no_kind_counts_as_what_it_lies_in() {
        let (timings, layer) = Timings::new();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let _round = tracing::debug_span!("round").entered();
            let _outer = tracing::debug_span!("inversion").entered();
            let _inner = tracing::debug_span!("inner step").entered();
            std::thread::sleep(Duration::from_millis(20));
            let _collective = tracing::debug_span!("all-gather").entered();
            std::thread::sleep(Duration::from_millis(60));
        });
        let seconds = timings.seconds();
        assert!(seconds.inversion >= 0.02 && seconds.communication >= 0.06, "{seconds:?}");
        assert!(seconds.inversion + seconds.communication <= seconds.total, "{seconds:?}");
    }
}
