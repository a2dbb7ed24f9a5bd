//! Ends a job that hangs. A thread on every rank notices that its own rank waits too long in one collective, learns from the other
//! ranks' heartbeats who did not come, says so and ends the process; the launcher then ends the others.
//!
//! Every rank goes through the same collectives in the same order, so their number tells who is behind. Heartbeats are small
//! files in the run folder, which all ranks share: MPI belongs to the main thread and may be the very thing that hangs. Clocks of
//! different hosts are never compared: a rank is alive as long as its heartbeat *changes*.

use super::world::{Launch, World};
use crate::error::{Error, Result};
use crate::files;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Folder of the heartbeats in a run folder.
pub const HEARTBEATS: &str = "heartbeats";

/// Work done by this process. One process is one rank wherever a watchdog runs.
static PROGRESS: AtomicU64 = AtomicU64::new(0);

/// Counts a piece of work that is no collective: an inner step, a batch of an evaluation, a file. Whoever waits for this rank then
/// knows that it is still coming.
pub fn made_progress() {
    PROGRESS.fetch_add(1, Ordering::Relaxed);
}

/// A kind of collective, by the name it is reported with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Operation {
    Barrier = 1,
    AllGather,
    AllToAll,
    AllReduce,
}

impl Operation {
    const ALL: [Self; 4] = [Self::Barrier, Self::AllGather, Self::AllToAll, Self::AllReduce];

    fn name(self) -> &'static str {
        match self {
            Self::Barrier => "barrier",
            Self::AllGather => "all-gather",
            Self::AllToAll => "all-to-all",
            Self::AllReduce => "all-reduce",
        }
    }
}

/// The collectives a rank goes through, as its watchdog sees them.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    entered: AtomicU64,
    inside: AtomicU8,
}

/// A rank is inside a collective as long as this lives.
pub(super) struct Inside<'a>(&'a Pulse);

impl Pulse {
    pub(super) fn enter(&self, operation: Operation) -> Inside<'_> {
        self.entered.fetch_add(1, Ordering::Relaxed);
        self.inside.store(operation as u8, Ordering::Relaxed);
        Inside(self)
    }

    fn beat(&self) -> (Beat, Option<Operation>) {
        let inside = self.inside.load(Ordering::Relaxed);
        let beat = Beat { collectives: self.entered.load(Ordering::Relaxed), progress: PROGRESS.load(Ordering::Relaxed) };
        (beat, Operation::ALL.into_iter().find(|o| *o as u8 == inside))
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.inside.store(0, Ordering::Relaxed);
    }
}

/// What a heartbeat says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Beat {
    /// Collectives entered so far.
    collectives: u64,
    /// Other work done so far.
    progress: u64,
}

impl Beat {
    /// Written over the last one: of one length, so that neither a full disk nor a torn write leaves half a heartbeat for long.
    fn write(self, path: &Path) {
        let text = format!("{:020} {:020}\n", self.collectives, self.progress);
        // Opened anew each time, since network file systems pass a file on when it is closed. A heartbeat that cannot be written
        // must not end a run; it is missed only where somebody waits.
        let _ = File::options().create(true).truncate(false).write(true).open(path).and_then(|mut file| file.write_all(text.as_bytes()));
    }

    fn read(path: &Path) -> Option<Self> {
        let text = fs::read_to_string(path).ok()?;
        let mut numbers = text.split_whitespace().map(str::parse);
        Some(Self { collectives: numbers.next()?.ok()?, progress: numbers.next()?.ok()? })
    }
}

/// A collective that does not end.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hang {
    /// Its number, from 1.
    collective: u64,
    /// Ranks that have not entered it. None: all have, and it still does not end.
    late: Vec<usize>,
    /// Whether this rank is the one to say so.
    speaks: bool,
}

/// Judges heartbeats. Knows time only as what it is told.
struct Vigil {
    rank: usize,
    timeout: Duration,
    /// A longer gap between two looks means that this process was suspended itself, and may blame nobody.
    longest_gap: Duration,
    last_look: Duration,
    wait: Option<Wait>,
}

struct Wait {
    collective: u64,
    since: Duration,
    seen: Vec<Option<Beat>>,
}

impl Vigil {
    fn new(rank: usize, timeout: Duration, period: Duration) -> Self {
        Self { rank, timeout, longest_gap: 5 * period, last_look: Duration::ZERO, wait: None }
    }

    /// A look at this rank, and at the others (`peers`, one for each rank) once it has waited for half of the time-out: then any
    /// sign of life of a rank that is behind starts the time anew.
    fn look(&mut self, now: Duration, mine: Beat, waits: bool, peers: impl FnOnce() -> Vec<Option<Beat>>) -> Option<Hang> {
        let suspended = now - self.last_look > self.longest_gap;
        self.last_look = now;
        let same = |w: &&mut Wait| waits && !suspended && w.collective == mine.collectives;
        let Some(wait) = self.wait.as_mut().filter(same) else {
            self.wait = waits.then_some(Wait { collective: mine.collectives, since: now, seen: Vec::new() });
            return None;
        };
        if 2 * (now - wait.since) < self.timeout {
            return None;
        }
        // A heartbeat that cannot be read at the moment is taken as it was last.
        let mut beats = peers();
        beats.iter_mut().zip(&wait.seen).for_each(|(now, before)| *now = now.or(*before));
        beats[self.rank] = Some(mine);
        let behind = |beat: &Option<Beat>| beat.is_none_or(|b| b.collectives < mine.collectives);
        let moved = wait.seen.iter().zip(&beats).any(|(before, now)| behind(before) && before != now);
        let first_look = wait.seen.is_empty();
        wait.seen = beats;
        if moved {
            wait.since = now;
            return None;
        }
        if first_look || now - wait.since < self.timeout {
            return None;
        }
        let number = |beat: &Option<Beat>| beat.map_or(0, |b| b.collectives);
        let furthest = wait.seen.iter().map(number).max();
        Some(Hang {
            collective: mine.collectives,
            late: (0..wait.seen.len()).filter(|&r| behind(&wait.seen[r])).collect(),
            speaks: wait.seen.iter().position(|b| Some(number(b)) == furthest) == Some(self.rank),
        })
    }
}

/// Watches over this rank as long as it lives.
pub struct Watchdog {
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
    heartbeat: Option<PathBuf>,
}

impl Launch {
    /// Starts this rank's watchdog for the time before a run folder is held: there are no heartbeats yet, so it ends a start-up that
    /// hangs without knowing for whom it waits. `timeout_s` 0 and a rank that is alone need none.
    ///
    /// # Errors
    /// The operating system has no thread left.
    pub fn watch(&self, timeout_s: u64) -> Result<Option<Watchdog>> {
        Watchdog::start(self.rank().0, self.hosts().to_vec(), self.pulse(), Heartbeats::None, timeout_s)
    }
}

impl World {
    /// Starts this rank's watchdog; its heartbeat lies in `run_folder`, which holds none of an earlier launch. `timeout_s` 0 and a
    /// rank that is alone need none.
    ///
    /// # Errors
    /// The folder cannot be written, or the operating system has no thread left.
    pub fn watch(&self, run_folder: &Path, timeout_s: u64) -> Result<Option<Watchdog>> {
        let folder = run_folder.join(HEARTBEATS);
        if timeout_s > 0 && self.layout().ranks() > 1 {
            files::create_folder(&folder)?;
        }
        let paths = (0..self.layout().ranks()).map(|r| folder.join(format!("rank-{r:05}"))).collect();
        Watchdog::start(self.rank().0, self.hosts().to_vec(), self.pulse(), Heartbeats::Files(paths), timeout_s)
    }
}

/// What a watchdog knows of the other ranks.
enum Heartbeats {
    /// Nothing: then all are taken to be where this rank is.
    None,
    /// A file for each rank.
    Files(Vec<PathBuf>),
}

impl Heartbeats {
    fn read(&self, mine: Beat, ranks: usize) -> Vec<Option<Beat>> {
        match self {
            Self::None => vec![Some(mine); ranks],
            Self::Files(paths) => paths.iter().map(|path| Beat::read(path)).collect(),
        }
    }
}

impl Watchdog {
    fn start(rank: usize, hosts: Vec<String>, pulse: Arc<Pulse>, heartbeats: Heartbeats, timeout_s: u64) -> Result<Option<Self>> {
        if timeout_s == 0 || hosts.len() == 1 {
            return Ok(None);
        }
        let timeout = Duration::from_secs(timeout_s);
        let period = (timeout / 20).max(Duration::from_secs(1));
        let heartbeat = if let Heartbeats::Files(paths) = &heartbeats { Some(paths[rank].clone()) } else { None };
        let own = heartbeat.clone();
        let (end, ended) = channel();
        let body = move || {
            let (began, mut vigil) = (Instant::now(), Vigil::new(rank, timeout, period));
            loop {
                let (mine, inside) = pulse.beat();
                own.iter().for_each(|path| mine.write(path));
                let peers = || heartbeats.read(mine, hosts.len());
                if let (Some(hang), Some(operation)) = (vigil.look(began.elapsed(), mine, inside.is_some(), peers), inside) {
                    // Rank 0 would speak for all; where nobody knows who is late it may be the late one itself.
                    let blind = own.is_none();
                    let text = if blind { blind_message(&hang, operation, &hosts[rank], rank, timeout) } else { message(&hang, operation, &hosts, rank, timeout) };
                    give_up(hang.speaks || blind && rank == 1, &text, period);
                }
                match ended.recv_timeout(period) {
                    Err(RecvTimeoutError::Timeout) => {}
                    Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("watchdog".into())
            .spawn(body)
            .map_err(|e| Error::refused(format!("cannot start the watchdog's thread: {e}")))?;
        Ok(Some(Self { end: Some(end), thread: Some(thread), heartbeat }))
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        if let Some(heartbeat) = &self.heartbeat {
            let _ = fs::remove_file(heartbeat);
            // Goes with the last one.
            let _ = heartbeat.parent().map(fs::remove_dir);
        }
    }
}

/// Ends this process at once: the main thread hangs, so nothing can be unwound, and MPI may be called from there alone.
fn give_up(speaks: bool, text: &str, period: Duration) -> ! {
    if speaks {
        eprintln!("{text}");
    } else {
        // The one that speaks ends the job; where the launcher lets the others live, they follow.
        std::thread::sleep(3 * period);
    }
    // SAFETY: ends the process without running anything else of it.
    unsafe { libc::_exit(1) }
}

fn blind_message(hang: &Hang, operation: Operation, host: &str, rank: usize, timeout: Duration) -> String {
    let (what, number, seconds) = (operation.name(), hang.collective, timeout.as_secs());
    format!(
        "error: rank {rank} on {host} waited for {seconds} s in {what} number {number} of the start-up for a rank that did not come\n\
         hint: a process may be stopped, out of memory, or on a host that is down or does not see the files; start the same command \
         again, and raise parallel.timeout_s (now {seconds}) if reading the data may take that long"
    )
}

fn message(hang: &Hang, operation: Operation, hosts: &[String], rank: usize, timeout: Duration) -> String {
    let seconds = timeout.as_secs();
    let (what, number) = (operation.name(), hang.collective);
    let late: Vec<String> = hang.late.iter().map(|&r| format!("rank {r} on {}", hosts[r])).collect();
    let (problem, cause) = if late.is_empty() {
        let host = &hosts[rank];
        let problem = format!("rank {rank} on {host}: all ranks arrived at {what} number {number}, but it did not end within {seconds} s");
        (problem, "the network between the hosts may be down (`ssdkd doctor` on the same ranks tries it)")
    } else {
        let problem = format!("{} did not arrive at {what} number {number} within {seconds} s", late.join(", "));
        (problem, "that process may be stopped, out of memory, or on a host that is down; its log in the run folder has its last words")
    };
    format!(
        "error: {problem}\nhint: {cause}; start the same command again to go on from the last checkpoint, and raise \
         parallel.timeout_s (now {seconds}) if ranks may keep others waiting that long"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: u64 = 20;

    fn beat(collectives: u64, progress: u64) -> Option<Beat> {
        Some(Beat { collectives, progress })
    }

    /// What rank `rank` finds, looking once a second while it waits in collective 5; `peers` by second.
    fn waiting(rank: usize, seconds: u64, peers: impl Fn(u64) -> Vec<Option<Beat>>) -> Option<(u64, Hang)> {
        let mut vigil = Vigil::new(rank, Duration::from_secs(TIMEOUT), Duration::from_secs(1));
        (0..seconds).find_map(|second| {
            let mine = Beat { collectives: 5, progress: 7 };
            Some((second, vigil.look(Duration::from_secs(second), mine, true, || peers(second))?))
        })
    }

    #[test]
    fn silent_ranks_that_are_behind_are_named_by_the_lowest_that_waits() {
        let peers = |_| vec![beat(4, 9), beat(5, 7), beat(5, 1), None];
        let hang = |speaks| Hang { collective: 5, late: vec![0, 3], speaks };
        assert_eq!(waiting(1, 60, peers), Some((TIMEOUT, hang(true))));
        assert_eq!(waiting(2, 60, peers), Some((TIMEOUT, hang(false))));
    }

    #[test]
    fn a_rank_that_still_works_is_waited_for_and_found_once_it_stops() {
        let works_until = |end: u64| move |second: u64| vec![beat(4, second.min(end)), beat(5, 7)];
        assert_eq!(waiting(1, 300, works_until(300)), None);
        let (second, hang) = waiting(1, 300, works_until(100)).unwrap();
        assert_eq!(hang.late, [0]);
        assert!((100 + TIMEOUT..=100 + 2 * TIMEOUT).contains(&second), "{second}");
    }

    #[test]
    fn a_collective_that_all_entered_and_none_leaves_is_a_hang_too() {
        let (second, hang) = waiting(0, 60, |_| vec![beat(5, 7), beat(5, 3)]).unwrap();
        assert_eq!((second, hang), (TIMEOUT, Hang { collective: 5, late: vec![], speaks: true }));
        // The last one has just come: its arrival starts the time anew.
        let (second, _) = waiting(0, 60, |second| vec![beat(5, 7), beat(if second < 15 { 4 } else { 5 }, 3)]).unwrap();
        assert_eq!(second, 15 + TIMEOUT);
    }

    /// A job that the scheduler suspended and woke an hour later.
    #[test]
    fn a_rank_that_was_suspended_blames_nobody() {
        let mut vigil = Vigil::new(1, Duration::from_secs(TIMEOUT), Duration::from_secs(1));
        let mut look =
            |second| vigil.look(Duration::from_secs(second), Beat { collectives: 5, progress: 7 }, true, || vec![beat(4, 9), beat(5, 7)]);
        assert!((0..15).all(|second| look(second).is_none()));
        assert!((3600..3600 + TIMEOUT).all(|second| look(second).is_none()));
        assert!(look(3600 + TIMEOUT).is_some());
    }

    #[test]
    fn heartbeats_are_read_as_written_and_half_of_one_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rank-00000");
        for n in [u64::MAX, 3] {
            Beat { collectives: n, progress: 4 }.write(&path);
            assert_eq!(Beat::read(&path), beat(n, 4));
        }
        fs::write(&path, "0000000").unwrap();
        assert_eq!(Beat::read(&path), None);
    }

    #[test]
    fn the_message_names_ranks_hosts_and_the_way_out() {
        let hosts = ["a".to_owned(), "b".to_owned()];
        let hang = Hang { collective: 123, late: vec![1], speaks: true };
        let text = message(&hang, Operation::AllToAll, &hosts, 0, Duration::from_secs(TIMEOUT));
        assert!(text.starts_with("error: rank 1 on b did not arrive at all-to-all number 123 within 20 s\nhint: "), "{text}");
        assert!(text.contains("parallel.timeout_s (now 20)"), "{text}");
    }
}
