//! How trials stand, from the files of their folders, and what is to be run next.

use super::claim::{Claim, NEXT, SlurmJob, now};
use super::folder::{LOG, SweepFolder};
use super::halving::{Ladder, Rung};
use super::plan::{Plan, Trial};
use crate::error::{Error, Result};
use crate::files;
use crate::run_folder::{State, Status};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
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
        Self::seen_by(SlurmJob::own().as_ref(), folder)
    }

    /// The same as `job` sees it: its own claims are none once Slurm has started it again.
    fn seen_by(job: Option<&SlurmJob>, folder: &Path) -> Result<Self> {
        let claim = Claim::read(folder)?.filter(|claim| !claim.is_outlived_by(job, folder));
        let outcome = Outcome::read(folder)?;
        let stand = match (claim, &outcome) {
            (_, Some(Outcome { ended: Ended::Done, .. })) => Stand::Done,
            (Some(claim), _) => Stand::Running(claim),
            (None, Some(outcome)) => match outcome.ended {
                Ended::Done => Stand::Done,
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
        Ok(Self { stand, outcome })
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

/// Every trial of a plan, as they stood when they were looked at.
#[derive(Debug)]
pub struct Trials(pub Vec<Standing>);

impl Trials {
    /// Looks at all of them. Those `known` to be done are not looked at again.
    pub fn read(folder: &SweepFolder, plan: &Plan, known: &BTreeSet<usize>) -> Result<Self> {
        let look = |(i, trial): (usize, &Trial)| match known.contains(&i) && plan.halving.is_none() {
            true => Ok(Standing { stand: Stand::Done, outcome: None }),
            false => Standing::read(&folder.trial(trial)),
        };
        plan.trials.iter().enumerate().map(look).collect::<Result<_>>().map(Self)
    }

    /// Indices of trials that can be run now, in the order in which they should be, each with the index of the rung it is to reach.
    /// Interrupted ones come first.
    pub fn next(&self, plan: &Plan) -> Vec<(usize, Option<usize>)> {
        let Some(halving) = &plan.halving else {
            let all = |stand: Stand| self.0.iter().enumerate().filter(move |(_, s)| s.stand == stand).map(|(i, _)| (i, None));
            return all(Stand::Stopped).chain(all(Stand::Planned)).collect();
        };
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
        // What is begun goes before what is not, whatever its seed.
        steps.sort_by_key(|(i, _)| self.0[*i].stand == Stand::Planned);
        steps
    }
}

/// Makes trials that failed, and those whose runner is gone, ready to be run again; their logs are kept. Named trials only, where any are
/// named. Returns a line for every trial that was looked at.
pub fn retry(folder: &SweepFolder, plan: &Plan, named: &[String], queued: &dyn Fn(&str) -> Option<bool>) -> Result<Vec<(String, String)>> {
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
fn retry_one(folder: &Path, is_named: bool, queued: &dyn Fn(&str) -> Option<bool>) -> Result<Option<String>> {
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

/// Makes a trial whose claim we hold ready to be run again. False: somebody was through with it since it was looked at.
fn again(folder: &Path, seen: Option<Outcome>, reason: &str) -> Result<bool> {
    if Outcome::read(folder)? != seen {
        return Ok(false);
    }
    let before = seen.unwrap_or_else(Outcome::none);
    let log = folder.join(LOG);
    if log.exists() {
        let kept = folder.join(format!("trial-{}.log", before.launches));
        fs::rename(&log, &kept).map_err(|e| Error::io("rename", &log, &e))?;
    }
    Outcome { ended: Ended::Stopped, code: None, reason: Some(reason.into()), at: now(), ..before }.write(folder)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::super::claim::tests::of_job;
    use super::super::file::Resources;
    use super::super::launch::tests::request;
    use super::*;

    fn plan() -> Plan {
        let trial =
            Trial { number: 1, hash: "h".into(), point: 1, repeat: 1, rounds: 4, logical_ranks: 1, names: Vec::new(), set: Vec::new() };
        Plan { trials: vec![trial], ..request(Resources::default()).plan }
    }

    fn failed(folder: &Path) -> Outcome {
        let outcome = Outcome { ended: Ended::Failed, reason: Some("why".into()), launches: 1, ..Outcome::none() };
        outcome.write(folder).unwrap();
        outcome
    }

    /// Of any number of retries at a time one changes the trial, and none what a runner has made of it since it was looked at.
    #[test]
    fn retries_do_not_undo_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, plan) = (SweepFolder::new(dir.path()).unwrap(), plan());
        let path = folder.trial(&plan.trials[0]);
        fs::create_dir_all(&path).unwrap();
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

    /// A task that Slurm has started again goes on with the trials that it had, and nobody else does.
    #[test]
    fn a_requeued_task_is_offered_its_own_trials() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("claim"), serde_json::to_string(&of_job("7", 0)).unwrap()).unwrap();
        let offered = |id: &str, restart| {
            let job = SlurmJob { id: id.into(), restart };
            let standing = Standing::seen_by(Some(&job), dir.path()).unwrap();
            Trials(vec![standing]).next(&plan()).len()
        };
        assert_eq!((offered("7", 1), offered("7", 0), offered("8", 1)), (1, 0, 0));
        Outcome::none().write(dir.path()).unwrap();
        assert_eq!((offered("7", 1), offered("7", 0)), (1, 0));
        assert!(matches!(Standing::read(dir.path()).unwrap().stand, Stand::Running(_)));
    }
}
