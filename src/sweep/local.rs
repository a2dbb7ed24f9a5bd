//! Trials run by this process, a few at a time.

use super::claim::{Claim, now};
use super::file::Halving;
use super::folder::LOG;
use super::gpu::Mps;
use super::launch::{Request, Slot};
use super::plan::{Trial, shown};
use super::stand::{Ended, Outcome, Stand, Trials};
use crate::error::{Error, Result, STOPPED, is_of_memory};
use crate::files;
use crate::run_folder::{State, Status};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use std::collections::BTreeSet;
use std::io::{Read, Seek, SeekFrom, Write, stderr, stdout};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What a runner has seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Trials finished.
    pub done: usize,
    /// Trials that wait at a rung.
    pub paused: usize,
    /// Trials that failed.
    pub failed: usize,
    /// Whether a signal ended it.
    pub stopped: bool,
}

/// A trial on its slot.
struct Job {
    trial: usize,
    rung: Option<usize>,
    slot: usize,
    claim: Claim,
    child: Child,
    began: Instant,
    before: Outcome,
}

struct Runner<'a> {
    request: &'a Request,
    slots: Vec<Slot>,
    mps: Option<Mps>,
    jobs: Vec<Job>,
    /// Known to be done: not looked at again.
    done: BTreeSet<usize>,
    /// Interrupted by somebody else while we had them: for the next runner.
    left: BTreeSet<usize>,
    begun: usize,
    tally: Tally,
}

/// Signals that end a runner: their flags are set and nothing else.
pub(super) struct Signals {
    any: Arc<AtomicBool>,
    interrupt: Arc<AtomicBool>,
}

impl Signals {
    pub(super) fn listen() -> Result<Self> {
        let (any, interrupt) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let hung_up = (!is_ignored(SIGHUP)).then_some((SIGHUP, &any));
        for (signal, flag) in [(SIGINT, &any), (SIGTERM, &any), (SIGUSR1, &any), (SIGINT, &interrupt)].into_iter().chain(hung_up) {
            signal_hook::flag::register(signal, flag.clone())
                .map_err(|e| Error::refused(format!("cannot listen for signal {signal}: {e}")))?;
        }
        Ok(Self { any, interrupt })
    }

    /// What is wanted of runs that were `asked` to stop before, or not: the first signal lets them save, another interrupt kills them.
    fn wish(&self, asked: bool) -> Option<Wish> {
        if !asked && self.any.load(Ordering::Relaxed) {
            self.interrupt.store(false, Ordering::Relaxed);
            return Some(Wish::Save);
        }
        (asked && self.interrupt.swap(false, Ordering::Relaxed)).then_some(Wish::Kill)
    }

    /// Waits for a process in a group of its own and passes on what is wanted of it. Its end, and whether it was asked to stop.
    pub(super) fn wait(&self, child: &mut Child) -> Result<(ExitStatus, bool)> {
        let mut asked = false;
        loop {
            if let Some(status) = child.try_wait().map_err(|e| Error::refused(format!("cannot wait for a run: {e}")))? {
                return Ok((status, asked));
            }
            if let Some(wish) = self.wish(asked) {
                asked = true;
                send(child, wish);
            }
            std::thread::sleep(TICK);
        }
    }
}

/// Whether a signal was ignored when this process began: nohup lets a process outlive its terminal.
fn is_ignored(signal: i32) -> bool {
    // SAFETY: an all-zero action is valid, and the call only fills it in.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &mut action) == 0 && action.sa_sigaction == libc::SIG_IGN
    }
}

/// Says something to whoever still listens: trials must not lose their runner because a terminal was closed, or a pipe.
pub fn say(mut to: impl Write, text: &str) {
    let _ = writeln!(to, "{}", text.trim_end());
}

/// What signals ask of runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    /// Save and stop.
    Save,
    /// End at once.
    Kill,
}

/// Runs trials until none is left to be run, or `at_most` were begun; others may be doing the same. Trials that fail do not end it. At
/// SIGINT, SIGTERM, SIGUSR1 or SIGHUP (a closed terminal) the running ones save and stop; a second SIGINT kills them.
pub fn run(request: &Request, slots: Vec<Slot>, at_most: Option<usize>) -> Result<Tally> {
    let signals = Signals::listen()?;
    let shared = slots.iter().enumerate().any(|(i, slot)| !slot.gpus.is_empty() && slots[..i].iter().any(|other| other.gpus == slot.gpus));
    let mps = if shared { Mps::start()? } else { None };
    let (done, left) = (BTreeSet::new(), BTreeSet::new());
    let mut runner = Runner { request, slots, mps, jobs: Vec::new(), done, left, begun: 0, tally: Tally::default() };
    let outcome = runner.work(&signals, at_most);
    if outcome.is_err() {
        // What is running must not be left without a runner.
        runner.tell(Wish::Save);
        while !runner.jobs.is_empty() && runner.reap(true).is_ok() {
            std::thread::sleep(TICK);
        }
    }
    outcome.map(|()| runner.tally)
}

const TICK: Duration = Duration::from_millis(50);

impl Runner<'_> {
    fn work(&mut self, signals: &Signals, at_most: Option<usize>) -> Result<()> {
        let mut look = true;
        loop {
            if let Some(wish) = signals.wish(self.tally.stopped) {
                (self.tally.stopped, look) = (true, false);
                match wish {
                    Wish::Save => say(stderr(), &format!("{} running trials are asked to save and stop", self.jobs.len())),
                    Wish::Kill => say(stderr(), "killed: what was computed since the last checkpoints is lost"),
                }
                self.tell(wish);
            }
            // Only an end can make room, or make a rung's best known.
            look |= self.reap(self.tally.stopped)?;
            while look && !self.tally.stopped && self.jobs.len() < self.slots.len() && at_most.is_none_or(|most| self.begun < most) {
                look = self.begin_next()?;
            }
            look = false;
            if self.jobs.is_empty() {
                return Ok(());
            }
            std::thread::sleep(TICK);
        }
    }

    /// Takes the first trial that can be had and starts it. Whether there was one.
    fn begin_next(&mut self) -> Result<bool> {
        let plan = &self.request.plan;
        let trials = Trials::read(&self.request.folder, plan, &self.done)?;
        self.done.extend((0..plan.trials.len()).filter(|&i| trials.0[i].stand == Stand::Done));
        trials.set_free(&self.request.folder, plan)?;
        for (trial, rung) in trials.next(plan) {
            if self.left.contains(&trial) {
                continue;
            }
            let folder = self.request.folder.trial(&plan.trials[trial]);
            files::create_folder(&folder)?;
            let Some(claim) = Claim::take(&folder)? else { continue };
            // Between the look and the claim another runner may have been through with it.
            let now = Outcome::read(&folder);
            if !now.as_ref().is_ok_and(|now| *now == trials.0[trial].outcome) {
                claim.give_up(&folder)?;
                return now.map(|_| true);
            }
            self.begin(trial, rung, claim, now?.unwrap_or_else(Outcome::none))?;
            return Ok(true);
        }
        Ok(false)
    }

    fn begin(&mut self, index: usize, rung: Option<usize>, claim: Claim, before: Outcome) -> Result<()> {
        let (plan, trial) = (&self.request.plan, &self.request.plan.trials[index]);
        let until = until(plan.halving.as_ref(), trial, rung);
        let slot = (0..self.slots.len()).find(|slot| self.jobs.iter().all(|job| job.slot != *slot)).unwrap_or_default();
        let began = Instant::now();
        let started = self.request.command(trial, until, &self.slots[slot]).and_then(|mut command| {
            if let Some(mps) = &self.mps {
                command.envs(mps.environment());
            }
            let goal = until.map(|round| format!(" up to round {round} of {}", trial.rounds)).unwrap_or_default();
            say(stdout(), &format!("{} begins{goal}: {}", trial.name(), shown(&trial.set)));
            let program = command.get_program().to_string_lossy().into_owned();
            command.spawn().map_err(|e| Error::refused(format!("{program} cannot be started: {e}")))
        });
        let child = match started {
            Ok(child) => child,
            Err(e) => {
                // What never began is free again.
                claim.give_up(&self.request.folder.trial(trial))?;
                return Err(e);
            }
        };
        self.begun += 1;
        self.jobs.push(Job { trial: index, rung, slot, claim, child, began, before });
        Ok(())
    }

    fn tell(&self, wish: Wish) {
        self.jobs.iter().for_each(|job| send(&job.child, wish));
    }

    /// Looks after trials that have ended. Whether any has.
    fn reap(&mut self, asked: bool) -> Result<bool> {
        let mut any = false;
        let mut at = 0;
        while at < self.jobs.len() {
            let ended = self.jobs[at].child.try_wait().map_err(|e| Error::refused(format!("cannot wait for a trial: {e}")))?;
            match ended {
                Some(status) => {
                    let job = self.jobs.swap_remove(at);
                    self.end(job, status, asked)?;
                    any = true;
                }
                None => at += 1,
            }
        }
        Ok(any)
    }

    fn end(&mut self, job: Job, status: ExitStatus, asked: bool) -> Result<()> {
        let trial = &self.request.plan.trials[job.trial];
        let folder = self.request.folder.trial(trial);
        let (ended, reason) = judge(&folder, status, asked);
        let mut rungs = job.before.rungs;
        if let (Some(halving), Some(rung), Ended::Paused) = (&self.request.plan.halving, job.rung, ended) {
            rungs.truncate(rung);
            rungs.push(metric_at(&folder, &halving.metric, halving.rounds(trial.rounds)[rung])?);
        }
        let seconds = job.before.seconds + job.began.elapsed().as_secs_f64();
        let outcome =
            Outcome { ended, code: status.code(), reason: reason.clone(), launches: job.before.launches + 1, seconds, rungs, at: now() };
        if !job.claim.stands(&folder)? {
            // On the user's word: what comes of the trial is another's to say.
            say(stderr(), &format!("{} was taken over by another runner", trial.name()));
            self.left.insert(job.trial);
            return Ok(());
        }
        outcome.write(&folder)?;
        job.claim.give_up(&folder)?;
        match ended {
            Ended::Done => self.tally.done += 1,
            Ended::Paused => self.tally.paused += 1,
            Ended::Failed => self.tally.failed += 1,
            Ended::Stopped => drop(self.left.insert(job.trial)),
        }
        say(stdout(), &format!("{} {}{}", trial.name(), ended.name(), reason.map(|reason| format!(": {reason}")).unwrap_or_default()));
        Ok(())
    }
}

/// Signals a process that leads a group.
fn send(child: &Child, wish: Wish) {
    let process = child.id() as i32;
    // Only a kill goes to the whole group: mpirun passes the others on to its ranks.
    let (target, signal) = match wish {
        Wish::Save => (process, libc::SIGUSR1),
        Wish::Kill => (-process, libc::SIGKILL),
    };
    // SAFETY: a signal to a process that we started and have not waited for.
    unsafe { libc::kill(target, signal) };
}

/// The round at which a trial pauses on its way to a rung; none on its way to the end.
fn until(halving: Option<&Halving>, trial: &Trial, rung: Option<usize>) -> Option<u64> {
    let (halving, rung) = (halving?, rung?);
    (rung < halving.rungs.len()).then(|| halving.rounds(trial.rounds)[rung])
}

/// How a launch ended. The run's own folder is asked first: exit codes do not survive every launcher.
fn judge(folder: &Path, status: ExitStatus, asked: bool) -> (Ended, Option<String>) {
    let state = Status::read(folder).ok();
    match state.as_ref().map(|status| status.state) {
        Some(State::Finished) => return (Ended::Done, None),
        Some(State::Paused) if status.success() => return (Ended::Paused, None),
        _ => {}
    }
    // One that would have failed anyhow shows it when it goes on.
    if asked || status.code() == Some(STOPPED) {
        return (Ended::Stopped, Some("told to stop".into()));
    }
    // A shell, and mpirun, say 128 and the signal.
    let signal = status.signal().or(status.code().map(|code| code - 128).filter(|signal| (1..=64).contains(signal)));
    let cause = state.filter(|status| status.state == State::Failed).and_then(|status| status.cause);
    // The log is of this attempt; a state may be of one before.
    let said = last_words(folder).or(cause).unwrap_or_else(|| format!("ended with {status}, and said nothing"));
    let reason = match (signal, status.code()) {
        (Some(libc::SIGKILL), _) => "killed by signal 9 (SIGKILL): out of memory, as a rule".to_owned(),
        (Some(signal), _) => format!("killed by signal {signal}: {said}"),
        (None, Some(2)) => format!("refused: {said}"),
        _ if is_of_memory(&said) => format!("out of memory: {said}"),
        _ => said,
    };
    (Ended::Failed, Some(reason))
}

/// The last error in a trial's log, else its last line.
fn last_words(folder: &Path) -> Option<String> {
    let mut file = std::fs::File::open(folder.join(LOG)).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(16_384))).ok()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    // Open MPI frames what it says in dashes.
    let lines = || text.lines().map(str::trim).filter(|line| line.contains(char::is_alphanumeric));
    let line = lines().rfind(|line| line.starts_with("error:")).or_else(|| lines().next_back())?;
    Some(line.trim_start_matches("error:").trim().to_owned())
}

/// The last value of a column up to a round.
fn metric_at(folder: &Path, metric: &str, rounds: u64) -> Result<Option<f64>> {
    let path = folder.join("metrics.csv");
    let trouble = |e: csv::Error| Error::file(&path, e.to_string());
    let mut reader = csv::Reader::from_path(&path).map_err(trouble)?;
    let Some(column) = reader.headers().map_err(trouble)?.iter().position(|name| name == metric) else { return Ok(None) };
    let mut value = None;
    for row in reader.records().take(rounds as usize) {
        value = row.map_err(trouble)?.get(column).and_then(|cell| cell.parse().ok()).or(value);
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Not asked for where nohup has started the tests.
    #[test]
    fn a_closed_terminal_lets_trials_save() {
        let ignored = is_ignored(SIGHUP);
        let signals = Signals::listen().unwrap();
        assert_eq!(signals.wish(false), None);
        signal_hook::low_level::raise(SIGHUP).unwrap();
        assert_eq!(signals.wish(false), (!ignored).then_some(Wish::Save));
        assert_eq!(signals.wish(true), None, "only a second interrupt kills");
    }
}
