//! Ends a job that hangs. A thread on every rank notices that its own rank waits too long in one collective, learns from the other
//! ranks' heartbeats who did not come, says so and ends the process; the launcher then ends the others.
//!
//! Every rank goes through the same collectives in the same order, so their number tells who is behind. Heartbeats are small
//! files in the run folder, which all ranks share: MPI belongs to the main thread and may be the very thing that hangs. Clocks of
//! different hosts are never compared: a rank is alive as long as its heartbeat *changes*.
//!
//! Before a run folder is held, heartbeats lie in the host's temporary folder: ranks of one host see each other, of the others
//! nothing is known, and nobody is late for that.

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

/// Waits for ranks of which nothing is seen are at least this long: they may be reading data.
const UNSEEN: Duration = Duration::from_secs(600);

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
    /// Ranks that have not entered it. None: all that are seen have, and it still does not end.
    late: Vec<usize>,
    /// Whether there are ranks of which nothing is seen.
    unseen: bool,
    /// Whether this rank is the one to say so.
    speaks: bool,
}

/// Judges heartbeats. Knows time only as what it is told.
struct Vigil {
    rank: usize,
    timeout: Duration,
    phase: Phase,
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
    fn new(rank: usize, timeout: Duration, phase: Phase, period: Duration) -> Self {
        Self { rank, timeout, phase, longest_gap: 5 * period, last_look: Duration::ZERO, wait: None }
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
        let sees_all = self.phase == Phase::Run;
        let behind = |beat: &Option<Beat>| beat.map_or(sees_all, |b| b.collectives < mine.collectives);
        let moved = wait.seen.iter().zip(&beats).any(|(before, now)| (before.is_none() || behind(before)) && before != now);
        let first_look = wait.seen.is_empty();
        wait.seen = beats;
        if moved {
            wait.since = now;
            return None;
        }
        let late: Vec<usize> = (0..wait.seen.len()).filter(|&r| behind(&wait.seen[r])).collect();
        let unseen = !sees_all && wait.seen.contains(&None);
        let limit = if late.is_empty() && unseen { self.timeout.max(UNSEEN) } else { self.timeout };
        if first_look || now - wait.since < limit {
            return None;
        }
        let number = |beat: &Option<Beat>| beat.map_or(0, |b| b.collectives);
        let furthest = wait.seen.iter().map(number).max();
        Some(Hang {
            collective: mine.collectives,
            late,
            unseen,
            speaks: wait.seen.iter().position(|b| Some(number(b)) == furthest) == Some(self.rank),
        })
    }
}

/// What a watchdog watches over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The time before a run folder is held: reading files counts as work, and only ranks of this host are seen.
    StartUp,
    /// The run: all ranks write heartbeats that all can see.
    Run,
}

/// Watches over this rank as long as it lives.
pub struct Watchdog {
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
    heartbeat: PathBuf,
}

impl Launch {
    /// Starts this rank's watchdog for the time before a run folder is held. Called by the main thread. Ranks of this host whose main
    /// thread neither computes nor reads are late after `timeout_s`; for ranks of other hosts a start-up waits ten minutes at least.
    /// `timeout_s` 0 and a rank that is alone need none.
    ///
    /// # Errors
    /// The operating system has no thread left.
    pub fn watch(&self, timeout_s: u64) -> Result<Option<Watchdog>> {
        let folder = std::env::temp_dir().join(format!("ssdkd-start-{}", self.token()));
        Watchdog::start(self.rank().0, self.hosts().to_vec(), self.pulse(), folder, Phase::StartUp, timeout_s)
    }
}

impl World {
    /// Starts this rank's watchdog; its heartbeat lies in `run_folder`, which holds none of an earlier launch. `timeout_s` 0 and a
    /// rank that is alone need none.
    ///
    /// # Errors
    /// The folder cannot be written, or the operating system has no thread left.
    pub fn watch(&self, run_folder: &Path, timeout_s: u64) -> Result<Option<Watchdog>> {
        Watchdog::start(self.rank().0, self.hosts().to_vec(), self.pulse(), run_folder.join(HEARTBEATS), Phase::Run, timeout_s)
    }
}

impl Watchdog {
    fn start(rank: usize, hosts: Vec<String>, pulse: Arc<Pulse>, folder: PathBuf, phase: Phase, timeout_s: u64) -> Result<Option<Self>> {
        if timeout_s == 0 || hosts.len() == 1 {
            return Ok(None);
        }
        match (files::create_folder(&folder), phase) {
            // A host without a temporary folder: then its ranks do not see each other.
            (Ok(()), _) | (Err(_), Phase::StartUp) => {}
            (Err(error), Phase::Run) => return Err(error),
        }
        let paths: Vec<PathBuf> = (0..hosts.len()).map(|r| folder.join(format!("rank-{r:05}"))).collect();
        let heartbeat = paths[rank].clone();
        let timeout = Duration::from_secs(timeout_s);
        let period = (timeout / 20).max(Duration::from_secs(1));
        let mut work = MainThread::new();
        let (end, ended) = channel();
        let body = move || {
            let (began, mut vigil) = (Instant::now(), Vigil::new(rank, timeout, phase, period));
            loop {
                let (mut mine, inside) = pulse.beat();
                if phase == Phase::StartUp {
                    mine.progress += work.so_far(inside.is_some());
                }
                mine.write(&paths[rank]);
                let peers = || paths.iter().map(|path| Beat::read(path)).collect();
                if let (Some(hang), Some(operation)) = (vigil.look(began.elapsed(), mine, inside.is_some(), peers), inside) {
                    if phase == Phase::StartUp {
                        // The ranks that are ended with this one cannot do it.
                        let _ = fs::remove_dir_all(&folder);
                    }
                    give_up(hang.speaks, &message(&hang, operation, &hosts, rank, timeout, phase), period);
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
        let _ = fs::remove_file(&self.heartbeat);
        // Goes with the last one.
        let _ = self.heartbeat.parent().map(fs::remove_dir);
    }
}

/// Processor time of the thread that made this: what reads files and builds networks knows of no watchdog, but needs some. A thread
/// that waits for a disk that does not answer needs none.
struct MainThread {
    clock: Option<libc::clockid_t>,
    milliseconds: u64,
}

impl MainThread {
    fn new() -> Self {
        let mut clock = 0;
        // SAFETY: a living thread, and a variable for the answer.
        let found = unsafe { libc::pthread_getcpuclockid(libc::pthread_self(), &mut clock) } == 0;
        Self { clock: found.then_some(clock), milliseconds: 0 }
    }

    /// Milliseconds of work. A thread that waits in a collective may spin: that is none.
    fn so_far(&mut self, waits: bool) -> u64 {
        if let (Some(clock), false) = (self.clock, waits) {
            let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            // SAFETY: a variable for the answer; the clock of a thread that has ended is refused.
            if unsafe { libc::clock_gettime(clock, &mut time) } == 0 {
                self.milliseconds = 1_000 * time.tv_sec as u64 + time.tv_nsec as u64 / 1_000_000;
            }
        }
        self.milliseconds
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

fn message(hang: &Hang, operation: Operation, hosts: &[String], rank: usize, timeout: Duration, phase: Phase) -> String {
    let (seconds, waited, host) = (timeout.as_secs(), timeout.max(UNSEEN).as_secs(), &hosts[rank]);
    let of_start = if phase == Phase::StartUp { " of the start-up" } else { "" };
    let what = format!("{} number {}{of_start}", operation.name(), hang.collective);
    let late: Vec<String> = hang.late.iter().map(|&r| format!("rank {r} on {}", hosts[r])).collect();
    let (problem, cause) = match (late.is_empty(), phase) {
        (false, Phase::Run) => (
            format!("{} did not arrive at {what} within {seconds} s", late.join(", ")),
            "that process may be stopped, out of memory, or on a host that is down; its log in the run folder has its last words",
        ),
        (false, Phase::StartUp) => (
            format!("{} did not arrive at {what} within {seconds} s", late.join(", ")),
            "that process may be stopped, or wait for a disk that does not answer",
        ),
        (true, _) if hang.unseen => (
            format!("rank {rank} on {host} waited for {waited} s in {what} for ranks of other hosts"),
            "a host may be down, not see the files, or be slow to read them",
        ),
        (true, _) => (
            format!("rank {rank} on {host}: all ranks arrived at {what}, but it did not end within {seconds} s"),
            "the network between the hosts may be down (`ssdkd doctor` on the same ranks tries it)",
        ),
    };
    let goes_on = if phase == Phase::Run { " to go on from the last checkpoint" } else { "" };
    format!(
        "error: {problem}\nhint: {cause}; start the same command again{goes_on}, and raise parallel.timeout_s (now {seconds}) if ranks may \
         keep others waiting that long"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parallel::test_ranks::on_launches;

    const TIMEOUT: u64 = 20;

    fn beat(collectives: u64, progress: u64) -> Option<Beat> {
        Some(Beat { collectives, progress })
    }

    /// What rank `rank` finds, looking once a second while it waits in collective 5; `peers` by second.
    fn waiting(rank: usize, seconds: u64, peers: impl Fn(u64) -> Vec<Option<Beat>>) -> Option<(u64, Hang)> {
        waiting_in(Phase::Run, rank, seconds, peers)
    }

    fn waiting_in(phase: Phase, rank: usize, seconds: u64, peers: impl Fn(u64) -> Vec<Option<Beat>>) -> Option<(u64, Hang)> {
        let mut vigil = Vigil::new(rank, Duration::from_secs(TIMEOUT), phase, Duration::from_secs(1));
        (0..seconds).find_map(|second| {
            let mine = Beat { collectives: 5, progress: 7 };
            Some((second, vigil.look(Duration::from_secs(second), mine, true, || peers(second))?))
        })
    }

    #[test]
    fn silent_ranks_that_are_behind_are_named_by_the_lowest_that_waits() {
        let peers = |_| vec![beat(4, 9), beat(5, 7), beat(5, 1), None];
        let hang = |speaks| Hang { collective: 5, late: vec![0, 3], unseen: false, speaks };
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
        assert_eq!((second, hang), (TIMEOUT, Hang { collective: 5, late: vec![], unseen: false, speaks: true }));
        // The last one has just come: its arrival starts the time anew.
        let (second, _) = waiting(0, 60, |second| vec![beat(5, 7), beat(if second < 15 { 4 } else { 5 }, 3)]).unwrap();
        assert_eq!(second, 15 + TIMEOUT);
    }

    /// A job that the scheduler suspended and woke an hour later.
    #[test]
    fn a_rank_that_was_suspended_blames_nobody() {
        let mut vigil = Vigil::new(1, Duration::from_secs(TIMEOUT), Phase::Run, Duration::from_secs(1));
        let mut look =
            |second| vigil.look(Duration::from_secs(second), Beat { collectives: 5, progress: 7 }, true, || vec![beat(4, 9), beat(5, 7)]);
        assert!((0..15).all(|second| look(second).is_none()));
        assert!((3600..3600 + TIMEOUT).all(|second| look(second).is_none()));
        assert!(look(3600 + TIMEOUT).is_some());
    }

    /// Ranks 0 and 1 on one host, 2 and 3 on another, each host seen from itself alone.
    #[test]
    fn in_a_start_up_the_late_one_of_this_host_is_named_and_others_are_waited_for() {
        let here = |_| vec![None, None, beat(5, 7), beat(4, 9)];
        let hang = Hang { collective: 5, late: vec![3], unseen: true, speaks: true };
        assert_eq!(waiting_in(Phase::StartUp, 2, 700, here), Some((TIMEOUT, hang)));
        let there = |_| vec![beat(5, 7), beat(5, 7), None, None];
        let hang = |speaks| Hang { collective: 5, late: vec![], unseen: true, speaks };
        assert_eq!(waiting_in(Phase::StartUp, 0, 700, there), Some((UNSEEN.as_secs(), hang(true))));
        assert_eq!(waiting_in(Phase::StartUp, 1, 700, there), Some((UNSEEN.as_secs(), hang(false))));
        // One that reads data for longer than the time-out is no hang.
        assert_eq!(waiting_in(Phase::StartUp, 0, 500, |second| vec![beat(5, 7), beat(4, second)]), None);
        // One that is seen late has its time from then on.
        let (second, hang) = waiting_in(Phase::StartUp, 0, 500, |second| vec![beat(5, 7), beat(4, 1).filter(|_| second >= 400)]).unwrap();
        assert_eq!((second, hang.late), (400 + TIMEOUT, vec![1]));
    }

    #[test]
    fn a_thread_that_works_is_told_from_one_that_sleeps() {
        let mut work = MainThread::new();
        let (before, began) = (work.so_far(false), Instant::now());
        while work.so_far(false) < before + 20 {
            assert!(began.elapsed() < Duration::from_secs(60), "no work was seen");
        }
        let worked = work.so_far(false);
        std::thread::sleep(Duration::from_millis(300));
        assert!(work.so_far(false) < worked + 100, "sleep is no work");
        let (waited, began) = (work.so_far(true), Instant::now());
        while began.elapsed() < Duration::from_millis(100) {}
        assert_eq!(work.so_far(true), waited, "a wait in a collective is no work");
    }

    /// Two ranks of one host as threads: their files lie side by side and are gone with the watchdogs.
    #[test]
    fn heartbeats_of_a_start_up_are_seen_by_ranks_of_the_host_and_leave_nothing() {
        let folders = on_launches(2, |launch| {
            let folder = std::env::temp_dir().join(format!("ssdkd-start-{}", launch.token()));
            let watchdog = launch.watch(60).unwrap();
            let began = Instant::now();
            while (0..2).any(|rank| Beat::read(&folder.join(format!("rank-{rank:05}"))).is_none()) {
                assert!(began.elapsed() < Duration::from_secs(60), "no heartbeats in {}", folder.display());
                std::thread::sleep(Duration::from_millis(10));
            }
            launch.comm().barrier().unwrap();
            drop(watchdog);
            launch.comm().barrier().unwrap();
            folder
        });
        assert_eq!(folders[0], folders[1]);
        assert!(!folders[0].exists());
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
        let text = |late: &[usize], unseen, phase| {
            let hang = Hang { collective: 123, late: late.to_vec(), unseen, speaks: true };
            message(&hang, Operation::AllToAll, &hosts, 0, Duration::from_secs(TIMEOUT), phase)
        };
        for (text, begins) in [
            (text(&[1], false, Phase::Run), "error: rank 1 on b did not arrive at all-to-all number 123 within 20 s\nhint: "),
            (
                text(&[1], true, Phase::StartUp),
                "error: rank 1 on b did not arrive at all-to-all number 123 of the start-up within 20 s\nhint: ",
            ),
            (
                text(&[], true, Phase::StartUp),
                "error: rank 0 on a waited for 600 s in all-to-all number 123 of the start-up for ranks of other hosts\n",
            ),
            (
                text(&[], false, Phase::Run),
                "error: rank 0 on a: all ranks arrived at all-to-all number 123, but it did not end within 20 s\nhint: ",
            ),
        ] {
            assert!(text.starts_with(begins) && text.contains("parallel.timeout_s (now 20)"), "{text}");
        }
    }
}
