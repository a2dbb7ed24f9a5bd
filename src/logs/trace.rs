//! `--trace`: what every rank did when, in the Trace Event Format that browsers show (docs/trace.md).
//!
//! One complete event (`"ph": "X"`) a span, written when it ends. The layer is our own: the crate for it (tracing-chrome 0.7) knows one
//! process and a clock of its own, and panics on a full disk. Here `pid` is the rank and time is that of the host's clock, so that
//! ranks lie one under the other in one picture.
//!
//! Every rank writes a file of its own and flushes it when its outermost span ends, a round at the latest: a run that is killed leaves
//! its rounds. Appending to one file together would tear lines on network disks; sending events to one rank would need its memory.

use crate::error::{Error, Result};
use crate::parallel::host_name;
use serde_json::{Map, Value, json};
use std::cell::RefCell;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::subscriber::Subscriber;
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

/// The trace of this process, where one was asked for.
static TRACE: OnceLock<Result<Trace>> = OnceLock::new();

/// Opens the trace; [`trace_is_open`] tells whether that was possible. A layer to feed it, if so.
pub(super) fn begin(path: Option<&Path>, rank: usize) -> Option<Spans> {
    let path = path?;
    TRACE.get_or_init(|| Trace::create(path, rank)).as_ref().ok().map(Spans)
}

/// Whether the trace that was asked for can be written.
///
/// # Errors
/// Its file could not be created on this rank.
pub fn trace_is_open() -> Result<()> {
    TRACE.get().map_or(Ok(()), |trace| trace.as_ref().map(drop).map_err(Error::clone))
}

/// Whether a trace was asked for: the same on all ranks, which share a command line.
pub fn is_traced() -> bool {
    TRACE.get().is_some()
}

/// Ends this rank's file.
pub fn end_trace() {
    if let Some(Ok(trace)) = TRACE.get() {
        trace.end();
    }
}

/// Takes the ended files of the ranks 1.. into the one of rank 0, and ends that. Only rank 0 calls it.
pub fn join_traces(ranks: usize) {
    if let Some(Ok(trace)) = TRACE.get() {
        (trace.rank + 1..ranks).for_each(|rank| trace.take_in(rank));
        trace.end();
    }
}

/// One rank's file.
struct Trace {
    /// As asked for: the file of rank 0.
    path: PathBuf,
    rank: usize,
    /// None once it has ended, or could not be written any more.
    out: Mutex<Option<BufWriter<File>>>,
    began: Instant,
    /// Microseconds from 1970 to `began`.
    epoch: u64,
}

/// The file of a rank: as asked for, with `.N` for rank N.
fn file_of(path: &Path, rank: usize) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    if rank > 0 {
        name.push(format!(".{rank}"));
    }
    name.into()
}

impl Trace {
    fn create(path: &Path, rank: usize) -> Result<Self> {
        let own = file_of(path, rank);
        let file = File::create(&own).map_err(|e| {
            Error::refused(format!("the trace {} cannot be created: {e}", own.display()))
                .with_hint("give --trace the name of a file in a folder that exists and may be written to")
        })?;
        let epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64;
        let out = Mutex::new(Some(BufWriter::new(file)));
        let trace = Self { path: path.into(), rank, out, began: Instant::now(), epoch };
        let about = |name: &str, args: Value| json!({"ph": "M", "pid": rank, "tid": 0, "name": name, "args": args});
        trace.write(|out| {
            write!(out, "[\n{}", about("process_name", json!({"name": format!("rank {rank} on {}", host_name())})))?;
            write!(out, ",\n{}", about("process_sort_index", json!({"sort_index": rank})))
        });
        Ok(trace)
    }

    /// Microseconds since 1970, never going back.
    fn now(&self) -> u64 {
        self.epoch + self.began.elapsed().as_micros() as u64
    }

    /// A trace that cannot be written must not end a run: it stops, and says so once.
    fn write(&self, what: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) {
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Err(error)) = out.as_mut().map(what) {
            *out = None;
            drop(out);
            tracing::warn!("the trace {} ends here: {error}", file_of(&self.path, self.rank).display());
        }
    }

    fn end(&self) {
        self.write(|out| out.write_all(b"\n]\n").and_then(|()| out.flush()));
        *self.out.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// A file that is not here stays where it is.
    fn take_in(&self, rank: usize) {
        let path = file_of(&self.path, rank);
        let Ok(file) = File::open(&path) else {
            tracing::warn!("rank {rank} has a disk of its own: its trace stays there, in {}", path.display());
            return;
        };
        self.write(|out| {
            for line in BufReader::new(file).lines() {
                let line = line?;
                let event = line.trim_end_matches(',');
                if !["", "[", "]"].contains(&event) {
                    write!(out, ",\n{event}")?;
                }
            }
            fs::remove_file(&path)
        });
    }
}

/// Writes an event for every span.
pub(super) struct Spans(&'static Trace);

/// What a span says of itself.
#[derive(Default)]
struct Arguments(Map<String, Value>);

impl Visit for Arguments {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.0.insert(field.name().into(), format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().into(), value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.insert(field.name().into(), value.into());
    }
}

/// Threads that entered a span, in the order they came.
static THREADS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static THREAD: usize = THREADS.fetch_add(1, Ordering::Relaxed);
    /// When the open spans of this thread were entered.
    static OPEN: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Spans {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id) {
            let mut arguments = Arguments::default();
            attributes.record(&mut arguments);
            span.extensions_mut().insert(arguments);
        }
    }

    fn on_enter(&self, _: &Id, _: Context<'_, S>) {
        OPEN.with_borrow_mut(|open| open.push(self.0.now()));
    }

    fn on_exit(&self, id: &Id, context: Context<'_, S>) {
        let (entered, is_outermost) = OPEN.with_borrow_mut(|open| (open.pop(), open.is_empty()));
        let (Some(entered), Some(span)) = (entered, context.span(id)) else { return };
        let extensions = span.extensions();
        let event = json!({
            "ph": "X", "name": span.name(), "pid": self.0.rank, "tid": THREAD.with(|n| *n), "ts": entered, "dur": self.0.now() - entered,
            "args": extensions.get::<Arguments>().map(|arguments| &arguments.0),
        });
        self.0.write(|out| {
            write!(out, ",\n{event}")?;
            if is_outermost { out.flush() } else { Ok(()) }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(path: &Path) -> Vec<(u64, String)> {
        let events: Vec<Value> = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        events.iter().map(|e| (e["pid"].as_u64().unwrap(), e["args"]["name"].as_str().unwrap_or_default().to_owned())).collect()
    }

    #[test]
    fn files_of_ranks_become_one_where_they_share_a_disk() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace.json");
        let [first, second, _elsewhere, fourth] = [0, 1, 2, 3].map(|rank| Trace::create(&path, rank).unwrap());
        fs::remove_file(file_of(&path, 2)).unwrap();
        second.end();
        // Ended by force: no bracket closes it.
        fourth.write(|out| out.flush());
        (1..4).for_each(|rank| first.take_in(rank));
        first.end();
        let ranks: Vec<_> = names(&path).into_iter().filter(|(_, name)| !name.is_empty()).collect();
        assert_eq!(ranks, [0, 1, 3].map(|rank| (rank, format!("rank {rank} on {}", host_name()))));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
