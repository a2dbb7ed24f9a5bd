//! How a sweep stands, for people and as JSON.

use super::claim::now;
use super::file::Halving;
use super::folder::SweepFolder;
use super::plan::{Plan, Trial, shown};
use super::stand::{Stand, Standing, Trials};
use crate::error::Result;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// A sweep at a glance.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Status {
    /// Trials by how they stand.
    pub counts: BTreeMap<&'static str, usize>,
    /// Seconds until those that are open are done, at the pace so far and with as many at a time as now. None where nothing runs, or
    /// no round is over yet.
    pub seconds_left: Option<f64>,
    /// Every trial.
    pub trials: Vec<Row>,
}

/// A trial at a glance.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// Folder.
    pub name: String,
    /// How it stands.
    pub state: &'static str,
    /// Rounds that are over.
    pub round: u64,
    /// Rounds of the whole run.
    pub rounds: u64,
    /// What it sets.
    pub set: String,
    /// Who has it, why it failed or stopped, since when nothing was heard of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl Status {
    /// Reads the trials' files and asks nobody.
    ///
    /// # Errors
    /// As [`Trials::read`].
    pub fn read(folder: &SweepFolder, plan: &Plan) -> Result<Self> {
        let trials = Trials::read(folder, plan, &BTreeSet::new())?;
        let mut counts = BTreeMap::new();
        let mut rows = Vec::new();
        let mut pace = Pace::default();
        for (trial, standing) in plan.trials.iter().zip(&trials.0) {
            *counts.entry(standing.stand.name()).or_default() += 1;
            let path = folder.trial(trial);
            let round = standing.rounds_done(&path, trial);
            pace.count(standing, trial, round, plan.halving.as_ref());
            let state = standing.stand.name();
            rows.push(Row { name: trial.name(), state, round, rounds: trial.rounds, set: shown(&trial.set), note: note(standing, &path) });
        }
        Ok(Self { counts, seconds_left: pace.seconds_left(), trials: rows })
    }
}

/// Rounds and seconds of all trials.
#[derive(Default)]
struct Pace {
    rounds: u64,
    seconds: f64,
    /// Rounds that open trials have to their ends, or to their next rungs.
    left: f64,
    /// Rounds that a halving can be expected to have left.
    expected: f64,
    running: usize,
}

impl Pace {
    fn count(&mut self, standing: &Standing, trial: &Trial, round: u64, halving: Option<&Halving>) {
        let before = standing.outcome.as_ref().map_or(0.0, |outcome| outcome.seconds);
        let since = match &standing.stand {
            Stand::Running(claim) if !claim.is_dead_here() => {
                self.running += 1;
                now().saturating_sub(claim.since) as f64
            }
            _ => 0.0,
        };
        if round > 0 && before + since > 0.0 {
            self.rounds += round;
            self.seconds += before + since;
        }
        let goals = halving.map_or_else(|| vec![trial.rounds], |halving| halving.rounds(trial.rounds));
        // What waits at a rung may wait for good.
        if !matches!(standing.stand, Stand::Done | Stand::Failed(_) | Stand::Paused) {
            let goal = goals.iter().copied().find(|goal| *goal > round).unwrap_or(trial.rounds);
            self.left += goal.saturating_sub(round) as f64;
        }
        if let Some(halving) = halving {
            // Of so many trials that reach a rung, one goes on.
            let share = |rung: usize| 1.0 / (halving.factor as f64).powi(rung as i32);
            let before = std::iter::once(0).chain(goals.iter().copied());
            let all = goals.iter().zip(before).enumerate().map(|(rung, (goal, before))| (goal - before) as f64 * share(rung));
            self.expected += all.sum::<f64>() - round as f64;
        }
    }

    fn seconds_left(&self) -> Option<f64> {
        let left = self.left.max(self.expected);
        (self.rounds > 0 && self.running > 0).then(|| self.seconds / self.rounds as f64 * left / self.running as f64)
    }
}

fn note(standing: &Standing, folder: &Path) -> Option<String> {
    match &standing.stand {
        Stand::Running(claim) if claim.is_dead_here() => {
            Some(format!("its runner is dead ({claim}): `ssdkd sweep retry` makes it free again"))
        }
        Stand::Running(claim) => {
            let heard = |name: &str| fs::metadata(folder.join(name)).and_then(|file| file.modified()).ok();
            let last = ["metrics.csv", "state.json", "trial.log", "claim"].into_iter().filter_map(heard).max();
            let silent = last.and_then(|last| SystemTime::now().duration_since(last).ok()).unwrap_or_default();
            let silence =
                if silent > Duration::from_secs(600) { format!(", silent for {}", time(silent.as_secs_f64())) } else { String::new() };
            Some(format!("{claim}{silence}"))
        }
        Stand::Failed(reason) => Some(reason.clone()),
        Stand::Stopped => standing.outcome.as_ref().and_then(|outcome| outcome.reason.clone()),
        Stand::Paused => {
            let value = standing.outcome.as_ref().and_then(|outcome| *outcome.rungs.last()?);
            value.map(|value| format!("metric {value:.4} at its rung"))
        }
        _ => None,
    }
}

/// The table that `ssdkd sweep status` prints: counts, then every trial that is not simply planned or done.
pub fn table(status: &Status, name: &str) -> String {
    let counts: Vec<String> = status.counts.iter().map(|(state, count)| format!("{count} {state}")).collect();
    let left = status.seconds_left.map(|seconds| format!("; about {} left", time(seconds))).unwrap_or_default();
    let mut out = format!("{name}: {} trials: {}{left}\n", status.trials.len(), counts.join(", "));
    for row in status.trials.iter().filter(|row| !matches!(row.state, "planned" | "done")) {
        let note = row.note.as_ref().map(|note| format!("  {note}")).unwrap_or_default();
        out.push_str(&format!("{}  {:8} round {} of {}  {}{note}\n", row.name, row.state, row.round, row.rounds, row.set));
    }
    out
}

fn time(seconds: f64) -> String {
    let minutes = (seconds / 60.0).round() as u64;
    match minutes {
        0 => format!("{seconds:.0} s"),
        1..60 => format!("{minutes} min"),
        _ => format!("{} h {:02} min", minutes / 60, minutes % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::super::claim::Claim;
    use super::super::halving::Goal;
    use super::super::stand::{Ended, Outcome};
    use super::*;

    /// 1,000 s a round so far; what has failed or waits at a rung is not waited for.
    #[test]
    fn the_time_left_follows_from_the_rounds_so_far() {
        let folder = tempfile::tempdir().unwrap();
        let claim = Claim::take(folder.path()).unwrap().unwrap();
        let trial =
            Trial { number: 1, hash: "h".into(), point: 1, repeat: 1, rounds: 12, logical_ranks: 1, names: Vec::new(), set: Vec::new() };
        let after = |seconds: f64| {
            Some(Outcome { ended: Ended::Stopped, code: None, reason: None, launches: 1, seconds, rungs: Vec::new(), at: 0 })
        };
        let mut pace = Pace::default();
        let mut count = |stand, outcome, round| pace.count(&Standing { stand, outcome }, &trial, round, None);
        count(Stand::Done, after(12_000.0), 12);
        count(Stand::Planned, None, 0);
        count(Stand::Failed("why".into()), after(4000.0), 4);
        count(Stand::Paused, after(4000.0), 4);
        count(Stand::Stopped, after(2000.0), 2);
        assert_eq!(pace.seconds_left(), None, "nothing runs");
        pace.count(&Standing { stand: Stand::Running(claim.clone()), outcome: after(3000.0) }, &trial, 3, None);
        let wanted = 1000.0 * f64::from(12 + 10 + 9);
        let left = pace.seconds_left().unwrap();
        assert!((left - wanted).abs() < 0.01 * wanted, "{left}");
        pace.count(&Standing { stand: Stand::Running(claim), outcome: after(3000.0) }, &trial, 3, None);
        let wanted = 1000.0 * f64::from(12 + 10 + 9 + 9) / 2.0;
        assert!((pace.seconds_left().unwrap() - wanted).abs() < 0.01 * wanted, "two at a time");

        // Nine trials of 12 rounds with rungs after 2 and 6: all have 2 rounds before them, three 4 more, one 6 more.
        let halving = Halving { metric: "m".into(), goal: Goal::Max, rungs: vec![2.0, 6.0], factor: 3 };
        let mut pace = Pace::default();
        let running = || Standing { stand: Stand::Running(Claim::read(folder.path()).unwrap().unwrap()), outcome: after(1000.0) };
        pace.count(&running(), &trial, 1, Some(&halving));
        (0..8).for_each(|_| pace.count(&Standing { stand: Stand::Planned, outcome: None }, &trial, 0, Some(&halving)));
        let wanted = 1000.0 * (9.0 * 2.0 + 3.0 * 4.0 + 6.0 - 1.0);
        assert!((pace.seconds_left().unwrap() - wanted).abs() < 0.01 * wanted, "{:?}", pace.seconds_left());
    }
}
