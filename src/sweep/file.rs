//! The sweep file, as typed.

use super::axes::{self, Axis};
use super::halving::Goal;
use crate::config::{Job, flat, misread};
use crate::error::{Error, Finding, Result};
use crate::files;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// How points are chosen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// Every combination.
    #[default]
    Grid,
    /// Independent uniform points.
    Random,
    /// A scrambled Sobol sequence: evenly spread.
    Sobol,
}

/// Which trials come first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// All repeats of the first point.
    #[default]
    Points,
    /// All points with the first seed: half-way through there is something to compare.
    Seeds,
}

/// What a trial is given, and what Slurm is asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Resources {
    /// Ranks of a trial.
    pub ranks: usize,
    /// Threads of a rank. Left out: the cores of its share of the machine divided by its ranks; a Slurm task asks for 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// Nodes of a trial (Slurm).
    pub nodes: usize,
    /// Time limit of an array task (Slurm).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
    /// Partition (Slurm).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partition: Option<String>,
    /// Account (Slurm).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    /// Memory of a trial in megabytes (Slurm).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<u64>,
    /// Trials that share a machine: a Slurm task takes so many at a time, and `run` unless told otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trials_per_node: Option<usize>,
    /// Trials that share a GPU, or the GPUs of a trial's ranks. Left out, each trial has its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trials_per_gpu: Option<usize>,
    /// Array tasks that run at a time (Slurm).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throttle: Option<usize>,
    /// How long before the time limit trials are told to save and stop, in seconds (Slurm).
    pub signal_s: u64,
    /// Further options of sbatch.
    pub sbatch: Vec<String>,
}

impl Default for Resources {
    fn default() -> Self {
        Self {
            ranks: 1,
            threads: None,
            nodes: 1,
            time: None,
            partition: None,
            account: None,
            memory_mb: None,
            trials_per_node: None,
            trials_per_gpu: None,
            throttle: None,
            signal_s: 300,
            sbatch: Vec::new(),
        }
    }
}

impl Resources {
    /// Trials that an array task runs side by side.
    pub fn packed(&self) -> usize {
        self.trials_per_node.or(self.trials_per_gpu).unwrap_or(1)
    }
}

/// Asynchronous successive halving. A plan names its metric and goal; a sweep file may leave them out ([`HalvingWritten`]).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Halving<Metric = String, Better = Goal> {
    /// Column of `metrics.csv`.
    pub metric: Metric,
    /// Which end of it is good.
    pub goal: Better,
    /// Rounds after which trials are compared: whole numbers, or shares of a trial's rounds below 1.
    pub rungs: Vec<f64>,
    /// Of so many trials that reached a rung, one goes on.
    #[serde(default = "three")]
    pub factor: usize,
}

/// As in a sweep file: without a metric it is the score of the data set's task, without a goal the metric's own.
pub type HalvingWritten = Halving<Option<String>, Option<Goal>>;

fn three() -> usize {
    3
}

impl<Metric, Better> Halving<Metric, Better> {
    /// Rounds of a trial's rungs, the last of all being its whole length.
    pub fn rounds(&self, all: u64) -> Vec<u64> {
        let at = |rung: &f64| if *rung < 1.0 { (rung * all as f64).round() as u64 } else { *rung as u64 };
        self.rungs.iter().map(at).chain([all]).collect()
    }
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Written {
    config: OneOrMore,
    command: Job,
    strategy: Strategy,
    order: Order,
    trials: Option<usize>,
    seed: u64,
    repeats: Option<u64>,
    seeds: Option<Vec<u64>>,
    metric: Option<String>,
    goal: Option<Goal>,
    set: Table,
    axes: Table,
    resources: Resources,
    halving: Option<HalvingWritten>,
}

impl Default for Written {
    fn default() -> Self {
        Self {
            config: OneOrMore::More(Vec::new()),
            command: Job::Train,
            strategy: Strategy::Grid,
            order: Order::Points,
            trials: None,
            seed: 0,
            repeats: None,
            seeds: None,
            metric: None,
            goal: None,
            set: Table::new(),
            axes: Table::new(),
            resources: Resources::default(),
            halving: None,
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(PathBuf),
    More(Vec<PathBuf>),
}

/// A sweep file that is consistent in itself.
#[derive(Debug, Clone)]
pub struct SweepFile {
    /// Where it lies.
    pub path: PathBuf,
    /// Base configurations, later ones win.
    pub config: Vec<PathBuf>,
    /// What a trial runs.
    pub command: Job,
    /// How points are chosen.
    pub strategy: Strategy,
    /// Which trials come first.
    pub order: Order,
    /// Points of a random or Sobol sweep.
    pub trials: usize,
    /// Seed of the points.
    pub seed: u64,
    /// Seeds of the repeats; empty: as many as `repeats`, from the base configuration's on.
    pub seeds: Vec<u64>,
    /// Number of repeats.
    pub repeats: u64,
    /// What tables are sorted by: a value of `report.json`. Left out: the score that runs are quoted by.
    pub metric: Option<String>,
    /// Which end of it is good. Left out: the metric's own.
    pub goal: Option<Goal>,
    /// Keys that every trial sets.
    pub set: Vec<(String, Value)>,
    /// Directions.
    pub axes: Vec<Axis>,
    /// What a trial is given.
    pub resources: Resources,
    /// Early stopping.
    pub halving: Option<HalvingWritten>,
}

/// A time limit as sbatch takes it: minutes, minutes:seconds, hours:minutes:seconds, or days- before hours and what follows them. None
/// for words such as UNLIMITED, and for what sbatch will refuse.
fn seconds(limit: &str) -> Option<u64> {
    let (days, clock) = limit.split_once('-').map_or((None, limit), |(days, clock)| (Some(days), clock));
    let parts: Vec<u64> = clock.split(':').map(|part| part.parse().ok()).collect::<Option<_>>()?;
    Some(match (days, parts.as_slice()) {
        (None, [m]) => 60 * m,
        (None, [m, s]) => 60 * m + s,
        (None, [h, m, s]) => 3600 * h + 60 * m + s,
        (Some(days), [h, rest @ ..]) if rest.len() <= 2 => {
            let of = |place: usize| rest.get(place).copied().unwrap_or(0);
            86_400 * days.parse::<u64>().ok()? + 3600 * h + 60 * of(0) + of(1)
        }
        _ => return None,
    })
}

impl SweepFile {
    /// Reads and checks it.
    ///
    /// # Errors
    /// All findings at once; a file that is not there, or no TOML.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = files::read(path)?;
        let text = String::from_utf8(bytes).map_err(|_| Error::file(path, "is not text"))?;
        let written: Written = toml::from_str(&text).map_err(|e| misread(path, &text, &e))?;
        let mut findings = Vec::new();
        let axes = axes::read(&written.axes, &mut findings);
        let mut find = |bad: bool, key: &str, problem: &str| {
            if bad {
                findings.push(Finding::new(key, problem));
            }
        };
        let grid = written.strategy == Strategy::Grid;
        find(grid && written.trials.is_some(), "trials", "belongs to random and Sobol sweeps: a grid has as many as its axes make");
        find(!grid && written.trials.unwrap_or(0) == 0, "trials", "is left out: a random or Sobol sweep wants the number of its points");
        find(written.repeats == Some(0), "repeats", "is 0");
        find(written.repeats.is_some() && written.seeds.is_some(), "seeds", "and repeats both say how often: leave one out");
        find(written.seeds.as_ref().is_some_and(Vec::is_empty), "seeds", "is empty");
        let seed_is_an_axis = axes.iter().any(|axis| axis.name == "seed");
        find(seed_is_an_axis, "axes.seed", "repeats over seeds are not an axis: write seeds = […] or repeats = N at the top");
        let r = &written.resources;
        for (name, value) in [
            ("ranks", Some(r.ranks)),
            ("threads", r.threads),
            ("nodes", Some(r.nodes)),
            ("trials_per_node", r.trials_per_node),
            ("trials_per_gpu", r.trials_per_gpu),
            ("throttle", r.throttle),
        ] {
            find(value == Some(0), &format!("resources.{name}"), "is 0");
        }
        find(r.nodes > r.ranks, "resources.nodes", "is more than resources.ranks: a node without a rank computes nothing");
        // Slurm may send the signal a minute early.
        let warned = r.signal_s + 60;
        find(
            r.time.as_deref().and_then(seconds).is_some_and(|limit| limit <= warned),
            "resources.time",
            &format!(
                "leaves no time to compute: trials are told to save resources.signal_s = {} s before it, and up to a minute earlier",
                r.signal_s
            ),
        );
        find(
            r.nodes > 1 && r.packed() > 1,
            "resources.nodes",
            "a trial of several nodes cannot share them: leave trials_per_node and trials_per_gpu out",
        );
        if let Some(halving) = &written.halving {
            let rising = halving.rungs.windows(2).all(|pair| pair[0] < pair[1]);
            let mixed = halving.rungs.iter().any(|r| *r < 1.0) && halving.rungs.iter().any(|r| *r >= 1.0);
            let odd = halving.rungs.iter().any(|r| r.is_nan() || *r <= 0.0 || (*r >= 1.0 && r.fract() != 0.0));
            find(
                halving.rungs.is_empty() || !rising || mixed || odd,
                "halving.rungs",
                "wants rising numbers of rounds, or rising shares below 1",
            );
            find(halving.factor < 2, "halving.factor", "is below 2");
        }
        if !findings.is_empty() {
            return Err(Error::Config(findings));
        }
        let folder = path.parent().unwrap_or(Path::new(""));
        let config = match written.config {
            OneOrMore::One(file) => vec![file],
            OneOrMore::More(files) => files,
        };
        let mut set = Vec::new();
        flat("", &written.set, &mut set);
        Ok(Self {
            path: path.into(),
            config: config.iter().map(|file| folder.join(file)).collect(),
            command: written.command,
            strategy: written.strategy,
            order: written.order,
            trials: written.trials.unwrap_or(0),
            seed: written.seed,
            repeats: written.seeds.as_ref().map_or(written.repeats.unwrap_or(1), |seeds| seeds.len() as u64),
            seeds: written.seeds.unwrap_or_default(),
            metric: written.metric,
            goal: written.goal,
            set,
            axes,
            resources: written.resources,
            halving: written.halving,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_limits_are_read_as_sbatch_reads_them() {
        for (limit, wanted) in [
            ("5", Some(300)),
            ("5:30", Some(330)),
            ("01:00:05", Some(3605)),
            ("1-2", Some(93_600)),
            ("1-2:03", Some(93_780)),
            ("1-02:03:04", Some(93_784)),
            ("UNLIMITED", None),
            ("1:2:3:4", None),
        ] {
            assert_eq!(seconds(limit), wanted, "{limit}");
        }
    }
}
