//! How trials stand, from the files of their folders, and what is to be run next.

use super::claim::{Claim, NEXT, SlurmJob, now};
use super::file::Halving;
use super::folder::{LOG, SweepFolder};
use super::halving::{Ladder, Rung};
use super::plan::{Plan, Trial};
use crate::error::{Error, Result};
use crate::files;
use crate::run_folder::{State, Status};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

const OUTCOME: &str = "outcome.json";

/// How a trial's last launch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// The run is finished.
    Done,
    /// It waits at a rung.
    Paused,
    /// Interrupted, or to be run again: it goes on where it was.
    Stopped,
    /// It is not started again unless asked for.
    Failed,
}

impl Ended {
    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        }
    }
}

/// `outcome.json`: what the runner saw of a trial's launches. Written by the holder of the trial's claim.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// How the last one ended.
    pub ended: Ended,
    /// Exit code of the launcher.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<i32>,
    /// Why, in a line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Launches so far.
    pub launches: u32,
    /// Wall seconds of all launches.
    pub seconds: f64,
    /// Metric at every rung reached.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rungs: Vec<Option<f64>>,
    /// Seconds since 1970.
    pub at: u64,
}

impl Outcome {
    /// Before the first launch.
    pub(super) fn none() -> Self {
        Self { ended: Ended::Stopped, code: None, reason: None, launches: 0, seconds: 0.0, rungs: Vec::new(), at: now() }
    }

    /// A trial's outcome, if it has been launched.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(OUTCOME);
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|e| Error::file(&path, e.to_string())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io("read", &path, &e)),
        }
    }

    /// Replaces it.
    pub(super) fn write(&self, folder: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).map_err(|e| Error::refused(e.to_string()))?;
        files::write(&folder.join(OUTCOME), text.as_bytes())
    }
}

/// How a trial stands.
#[derive(Debug, Clone, PartialEq)]
pub enum Stand {
    /// Nobody has begun it.
    Planned,
    /// Somebody has it.
    Running(Claim),
    /// Waits at a rung: for others, or for good.
    Paused,
    /// Interrupted: `run` and `submit` go on with it.
    Stopped,
    /// Finished.
    Done,
    /// Not started again unless asked for; why.
    Failed(String),
}

impl Stand {
    /// In a word.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Planned => "planned",
            Self::Running(_) => "running",
            Self::Paused => Ended::Paused.name(),
            Self::Stopped => Ended::Stopped.name(),
            Self::Done => Ended::Done.name(),
            Self::Failed(_) => Ended::Failed.name(),
        }
    }
}

/// A trial as its folder shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Standing {
    /// How it stands.
    pub stand: Stand,
    /// What its launches came to so far.
    pub outcome: Option<Outcome>,
}

impl Standing {
    /// From a trial's folder; one without the runner's files may hold a run that was started by hand.
    pub fn read(folder: &Path) -> Result<Self> {
        Self::seen_by(SlurmJob::own().as_ref(), folder).map(|(standing, _)| standing)
    }

    /// The same as `job` sees it, and the claim that is the job's own from before Slurm started it again: to the job it is none.
    fn seen_by(job: Option<&SlurmJob>, folder: &Path) -> Result<(Self, Option<Claim>)> {
        let (own, claim) = match Claim::read(folder)? {
            Some(claim) if claim.is_outlived_by(job, folder) => (Some(claim), None),
            claim => (None, claim),
        };
        let outcome = Outcome::read(folder)?;
        let stand = match (claim, &outcome) {
            (_, Some(Outcome { ended: Ended::Done, .. })) => Stand::Done,
            (Some(claim), _) => Stand::Running(claim),
            (None, Some(outcome)) => match outcome.ended {
                Ended::Done => Stand::Done,
                Ended::Paused if own.is_some() && !rests(folder) => Stand::Stopped,
                Ended::Paused => Stand::Paused,
                Ended::Stopped => Stand::Stopped,
                Ended::Failed => Stand::Failed(outcome.reason.clone().unwrap_or_default()),
            },
            (None, None) if !folder.join("state.json").exists() => Stand::Planned,
            (None, None) => match Status::read(folder)? {
                Status { state: State::Finished, .. } => Stand::Done,
                Status { state: State::Failed, cause, .. } => Stand::Failed(cause.unwrap_or_default()),
                _ => Stand::Stopped,
            },
        };
        Ok((Self { stand, outcome }, own))
    }

    /// Rounds that are over: of a run in the middle, lines of metrics.csv after its head.
    pub(super) fn rounds_done(&self, folder: &Path, trial: &Trial) -> u64 {
        match self.stand {
            Stand::Planned => 0,
            Stand::Done => trial.rounds,
            _ => {
                let text = fs::read(folder.join("metrics.csv")).unwrap_or_default();
                (text.iter().filter(|byte| **byte == b'\n').count() as u64).saturating_sub(1)
            }
        }
    }
}

/// Whether a run whose holder is gone waits at a rung. Its outcome says so until its next launch has ended, so that the run itself
/// is asked; a state that cannot be read is for the next launch to complain of.
fn rests(folder: &Path) -> bool {
    Status::read(folder).is_ok_and(|status| status.state == State::Paused)
}

/// Every trial of a plan, as they stood when they were looked at; and the claims, by index, that this job had laid before Slurm started it
/// again: to all others those trials are running, so that nobody else would go on with them.
#[derive(Debug)]
pub struct Trials(pub Vec<Standing>, BTreeMap<usize, Claim>);

impl Trials {
    /// Looks at all of them. Those `known` to be done are not looked at again.
    ///
    /// # Errors
    /// A claim, an outcome or a run's state that is damaged or cannot be read.
    pub fn read(folder: &SweepFolder, plan: &Plan, known: &BTreeSet<usize>) -> Result<Self> {
        Self::seen_by(SlurmJob::own().as_ref(), folder, plan, known)
    }

    fn seen_by(job: Option<&SlurmJob>, folder: &SweepFolder, plan: &Plan, known: &BTreeSet<usize>) -> Result<Self> {
        let mut trials = Self(Vec::new(), BTreeMap::new());
        for (i, trial) in plan.trials.iter().enumerate() {
            let (standing, own) = match known.contains(&i) && plan.halving.is_none() {
                true => (Standing { stand: Stand::Done, outcome: None }, None),
                false => Standing::seen_by(job, &folder.trial(trial))?,
            };
            trials.0.push(standing);
            trials.1.extend(own.map(|claim| (i, claim)));
        }
        Ok(trials)
    }

    /// How many are taken, by whoever may be alive or dead.
    pub fn taken(&self) -> usize {
        self.0.iter().filter(|trial| matches!(trial.stand, Stand::Running(_))).count()
    }

    /// How many have a runner that may be alive.
    pub fn with_others(&self) -> usize {
        self.0.iter().filter(|trial| matches!(&trial.stand, Stand::Running(claim) if !claim.is_dead_here())).count()
    }

    /// Gives up the claims of this job's own that nothing is to be done with now: to all others they are running.
    ///
    /// # Errors
    /// A claim that cannot be read, made or removed.
    pub(super) fn set_free(&self, folder: &SweepFolder, plan: &Plan) -> Result<()> {
        for (&i, claim) in self.1.iter().filter(|(i, _)| matches!(self.0[**i].stand, Stand::Paused | Stand::Failed(_))) {
            let folder = folder.trial(&plan.trials[i]);
            // Not where another process of this job has taken it meanwhile.
            if let Some(claim) = claim.take_over(&folder)? {
                claim.give_up(&folder)?;
            }
        }
        Ok(())
    }

    /// Indices of trials that can be run now, in the order in which they should be, each with the index of the rung it is to reach.
    /// This job's own come first, then what is interrupted.
    pub fn next(&self, plan: &Plan) -> Vec<(usize, Option<usize>)> {
        let is_open = |i: &usize| matches!(self.0[*i].stand, Stand::Stopped | Stand::Planned);
        let mut steps = match &plan.halving {
            Some(halving) => self.climbing(plan, halving),
            None => (0..self.0.len()).filter(is_open).map(|i| (i, None)).collect(),
        };
        // A task that may begin a few only must not end without those that wait for it. What is begun goes before what is not, whatever
        // its seed.
        steps.sort_by_key(|(i, _)| (!self.1.contains_key(i), self.0[*i].stand == Stand::Planned));
        steps
    }

    /// Those that can go on to a rung.
    fn climbing(&self, plan: &Plan, halving: &Halving) -> Vec<(usize, Option<usize>)> {
        let mut steps = Vec::new();
        // Trials with the same seed compete; a point's repeats are judged each on its own.
        for repeat in plan.trials.iter().map(|trial| trial.repeat).collect::<BTreeSet<_>>() {
            let members: Vec<usize> = (0..plan.trials.len()).filter(|&i| plan.trials[i].repeat == repeat).collect();
            let entry = |&i: &usize| {
                let stand = match self.0[i].stand {
                    Stand::Planned => Rung::Fresh,
                    Stand::Stopped => Rung::Interrupted,
                    Stand::Running(_) => Rung::Busy,
                    Stand::Paused => Rung::Waiting,
                    Stand::Done | Stand::Failed(_) => Rung::Ended,
                };
                (stand, self.0[i].outcome.as_ref().map(|o| o.rungs.clone()).unwrap_or_default())
            };
            let trials = members.iter().map(entry).collect();
            let ladder = Ladder { trials, rungs: halving.rungs.len(), factor: halving.factor, goal: halving.goal };
            steps.extend(ladder.steps().into_iter().map(|step| (members[step.trial], Some(step.rung))));
        }
        steps
    }
}

/// Makes trials that failed, and those whose runner is gone, ready to be run again; their logs are kept. Named trials only, where any are
/// named. Returns a line for every trial that was looked at.
///
/// # Errors
/// A name that is no trial's; files of a trial that cannot be read or written.
pub fn retry(
    folder: &SweepFolder,
    plan: &Plan,
    named: &[String],
    queued: &dyn Fn(&SlurmJob) -> Option<bool>,
) -> Result<Vec<(String, String)>> {
    let is_meant = |trial: &Trial| named.iter().any(|name| *name == trial.name() || name.parse() == Ok(trial.number));
    if let Some(unknown) = named.iter().find(|name| !plan.trials.iter().any(|t| **name == t.name() || name.parse() == Ok(t.number))) {
        return Err(Error::refused(format!("{unknown} is no trial of this plan"))
            .with_hint("give numbers or names, as `ssdkd sweep status` shows them"));
    }
    let mut said = Vec::new();
    for trial in plan.trials.iter().filter(|trial| named.is_empty() || is_meant(trial)) {
        said.extend(retry_one(&folder.trial(trial), !named.is_empty(), queued)?.map(|line| (trial.name(), line)));
    }
    Ok(said)
}

/// What is to be said of a trial, if anything. Whoever changes one holds its claim, so that no runner and no other retry is in the midst of it.
fn retry_one(folder: &Path, is_named: bool, queued: &dyn Fn(&SlurmJob) -> Option<bool>) -> Result<Option<String>> {
    let Standing { stand, outcome } = Standing::read(folder)?;
    let (claim, reason, line) = match stand {
        Stand::Failed(why) => (Claim::take(folder)?, "to be run again", format!("failed ({why}): to be run again")),
        Stand::Running(claim) => match claim.gone(folder, is_named, queued) {
            Ok(why) => (claim.take_over(folder)?, "its runner was lost", format!("free again: {why}")),
            Err(why) => return Ok(Some(format!("left alone: {why}"))),
        },
        other => return Ok(is_named.then(|| format!("left alone: it is {}", other.name()))),
    };
    let Some(claim) = claim else {
        let next = folder.join(NEXT);
        let way_out = if next.exists() { format!("; if nobody has, remove {}", next.display()) } else { String::new() };
        return Ok(Some(format!("left alone: another has just taken it{way_out}")));
    };
    let is_again = again(folder, outcome, reason);
    claim.give_up(folder)?;
    Ok(Some(if is_again? { line } else { "left alone: another was just at it".into() }))
}

/// Makes a trial whose claim we hold ready to be run again; one that waits at a rung goes on waiting, free of its claim. False: somebody
/// was through with it since it was looked at.
fn again(folder: &Path, seen: Option<Outcome>, reason: &str) -> Result<bool> {
    if Outcome::read(folder)? != seen {
        return Ok(false);
    }
    let before = seen.unwrap_or_else(Outcome::none);
    if before.ended == Ended::Paused && rests(folder) {
        return Ok(true);
    }
    let log = folder.join(LOG);
    // Launches that lost their runner are not counted: the number may be taken.
    let free = (before.launches..=u32::MAX).map(|n| folder.join(format!("trial-{n}.log"))).find(|path| !path.exists());
    if let Some(kept) = free.filter(|_| log.exists()) {
        fs::rename(&log, &kept).map_err(|e| Error::io("rename", &log, &e))?;
    }
    Outcome { ended: Ended::Stopped, code: None, reason: Some(reason.into()), at: now(), ..before }.write(folder)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::super::claim::tests::of_job;
    use super::super::file::Resources;
    use super::super::halving::Goal;
    use super::super::launch::tests::request;
    use super::*;
    use std::path::PathBuf;

    fn plan(trials: usize) -> Plan {
        let trial = |number| Trial {
            number,
            hash: "h".into(),
            point: number,
            repeat: 1,
            rounds: 4,
            logical_ranks: 1,
            names: Vec::new(),
            set: Vec::new(),
        };
        Plan { trials: (1..=trials).map(trial).collect(), ..request(Resources::default()).plan }
    }

    fn halved(trials: usize) -> Plan {
        let halving = Halving { metric: "student_top1".into(), goal: Goal::Max, rungs: vec![1.0, 2.0], factor: 3 };
        Plan { halving: Some(halving), ..plan(trials) }
    }

    /// A sweep's folder, and the one of its first trial.
    fn begun(plan: &Plan) -> (tempfile::TempDir, SweepFolder, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let folder = SweepFolder::new(dir.path()).unwrap();
        let path = folder.trial(&plan.trials[0]);
        fs::create_dir_all(&path).unwrap();
        (dir, folder, path)
    }

    fn claimed(folder: &Path, claim: &Claim) {
        fs::write(folder.join("claim"), serde_json::to_string(claim).unwrap()).unwrap();
    }

    fn says(folder: &Path, state: State) {
        Status { state, ..Status::new() }.write(folder).unwrap();
    }

    fn failed(folder: &Path) -> Outcome {
        let outcome = Outcome { ended: Ended::Failed, reason: Some("why".into()), launches: 1, ..Outcome::none() };
        outcome.write(folder).unwrap();
        outcome
    }

    /// Of any number of retries at a time one changes the trial, and none what a runner has made of it since it was looked at.
    #[test]
    fn retries_do_not_undo_each_other() {
        let plan = plan(1);
        let (_dir, folder, path) = begun(&plan);
        for round in 0..20 {
            let seen = failed(&path);
            fs::write(path.join(LOG), "said").unwrap();
            let lines: Vec<String> = std::thread::scope(|scope| {
                let retries: Vec<_> = (0..4).map(|_| scope.spawn(|| retry(&folder, &plan, &[], &|_| None).unwrap())).collect();
                retries.into_iter().flat_map(|retry| retry.join().unwrap()).map(|(_, line)| line).collect()
            });
            assert_eq!(lines.iter().filter(|line| *line == "failed (why): to be run again").count(), 1, "{round}: {lines:?}");
            assert!(path.join("trial-1.log").exists() && !path.join(LOG).exists() && !path.join("claim").exists());
            assert_eq!(Standing::read(&path).unwrap().stand, Stand::Stopped);
            // One that looked before the others had done it.
            assert!(!again(&path, Some(seen), "late").unwrap());
        }
    }

    /// A task that Slurm has started again goes on with the trials that it had, before any other, and nobody else does.
    #[test]
    fn a_requeued_task_is_offered_its_own_trials() {
        for plan in [plan(4), halved(4)] {
            let dir = tempfile::tempdir().unwrap();
            let folder = SweepFolder::new(dir.path()).unwrap();
            let path = |i: usize| folder.trial(&plan.trials[i]);
            (0..4).for_each(|i| fs::create_dir_all(path(i)).unwrap());
            let offered = |id: &str, restart| {
                let job = SlurmJob { id: id.into(), restart, ..SlurmJob::default() };
                let trials = Trials::seen_by(Some(&job), &folder, &plan, &BTreeSet::new()).unwrap();
                trials.next(&plan).into_iter().map(|(i, _)| i).collect::<Vec<_>>()
            };
            // The second was interrupted, the fourth had not begun when its task ended; nor has the first, that nobody had.
            Outcome::none().write(&path(1)).unwrap();
            (2..4).for_each(|i| claimed(&path(i), &of_job("7", 0)));
            assert_eq!((offered("7", 1), offered("7", 0), offered("8", 1)), (vec![2, 3, 1, 0], vec![1, 0], vec![1, 0]));
            Outcome::none().write(&path(3)).unwrap();
            assert_eq!((offered("7", 1), offered("7", 0)), (vec![3, 2, 1, 0], vec![1, 0]));
            assert!(matches!(Standing::read(&path(3)).unwrap().stand, Stand::Running(_)));
        }
    }

    /// The outcome of a trial that has left its rung still says that it waits there.
    #[test]
    fn a_trial_that_was_lost_on_its_way_to_a_rung_goes_on() {
        let plan = halved(2);
        let (_dir, folder, path) = begun(&plan);
        let paused = Outcome { ended: Ended::Paused, launches: 1, rungs: vec![Some(0.5)], ..Outcome::none() };
        let dead = Claim { process_began: Some(1), ..of_job("7", 0) };
        let job = SlurmJob { id: "7".into(), restart: 1, ..SlurmJob::default() };
        for (state, seen) in [(State::Paused, Stand::Paused), (State::Running, Stand::Stopped), (State::Stopped, Stand::Stopped)] {
            paused.write(&path).unwrap();
            claimed(&path, &dead);
            says(&path, state);
            let trials = Trials::seen_by(Some(&job), &folder, &plan, &BTreeSet::new()).unwrap();
            assert_eq!(trials.0[0].stand, seen, "{state:?}");
            assert_eq!(trials.next(&plan).contains(&(0, Some(1))), seen == Stand::Stopped, "{state:?}");
            trials.set_free(&folder, &plan).unwrap();
            assert_eq!(path.join("claim").exists(), seen != Stand::Paused, "{state:?}");
            claimed(&path, &dead);
            let said = retry(&folder, &plan, &[], &|_| None).unwrap();
            assert_eq!(said[0].1, "free again: its runner is dead");
            assert_eq!(Standing::read(&path).unwrap().stand, seen, "{state:?}");
            assert_eq!(Outcome::read(&path).unwrap().unwrap().rungs, paused.rungs);
            assert!(!path.join("claim").exists());
        }
    }

    #[test]
    fn a_log_of_a_lost_runner_is_kept_beside_others() {
        let plan = plan(1);
        let (_dir, folder, path) = begun(&plan);
        for said in ["first", "second"] {
            claimed(&path, &Claim { process_began: Some(1), ..of_job("7", 0) });
            fs::write(path.join(LOG), said).unwrap();
            retry(&folder, &plan, &[], &|_| None).unwrap();
        }
        let kept = ["trial-0.log", "trial-1.log"].map(|name| fs::read_to_string(path.join(name)).unwrap());
        assert_eq!(kept, ["first", "second"]);
    }
}
