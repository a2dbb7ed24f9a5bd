//! From a sweep file to numbered, hashed, checked trials, and the plan's own file.

use super::axes::{Axis, NAME};
use super::check::Checker;
use super::file::{Halving, Order, Resources, SweepFile};
use super::folder::SweepFolder;
use super::halving::Goal;
use super::keys::{get, put};
use super::points::{Point, points};
use crate::config::{self, Config, Job, Loaded, is_path, load_with};
use crate::error::{Error, Result};
use crate::files;
use crate::task::Task;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// One run of a sweep.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(from = "TrialWritten")]
pub struct Trial {
    /// From 1; stays with the trial when the sweep is planned again.
    pub number: usize,
    /// Of the values that fix its numbers: a trial with the same hash is the same trial.
    pub hash: String,
    /// Trials of one point differ in their seed only. From 1.
    pub point: usize,
    /// Which seed. From 1.
    pub repeat: usize,
    /// Rounds of the whole run.
    pub rounds: u64,
    /// M.
    pub logical_ranks: usize,
    /// What tables call its values of each axis, where the sweep file has names.
    pub names: Vec<(String, String)>,
    /// What it sets on top of the plan's configuration, the seed last.
    pub set: Point,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TrialWritten {
    number: usize,
    hash: String,
    point: usize,
    repeat: usize,
    rounds: u64,
    logical_ranks: usize,
    #[serde(default)]
    names: Table,
    set: Table,
}

impl From<TrialWritten> for Trial {
    fn from(t: TrialWritten) -> Self {
        let TrialWritten { number, hash, point, repeat, rounds, logical_ranks, names, set } = t;
        Self {
            number,
            hash,
            point,
            repeat,
            rounds,
            logical_ranks,
            names: names.into_iter().map(|(of, name)| (of, name.as_str().unwrap_or_default().to_owned())).collect(),
            set: set.into_iter().collect(),
        }
    }
}

impl Trial {
    /// Name of its folder.
    pub fn name(&self) -> String {
        format!("{:04}-{}", self.number, self.hash)
    }

    /// What it sets, as `--set` takes it.
    pub fn sets(&self) -> Vec<String> {
        assignments(&self.set).collect()
    }

    /// What tables call its point: the names of its values, or what they set; empty where nothing is set.
    pub fn title(&self) -> String {
        if self.names.is_empty() {
            return shown(&self.set.iter().filter(|(key, _)| key != "seed").cloned().collect::<Vec<_>>());
        }
        self.names.iter().map(|(_, name)| name.as_str()).collect::<Vec<_>>().join(", ")
    }

    fn line(&self) -> String {
        let set = Value::Table(self.set.iter().cloned().collect());
        let names = Value::Table(self.names.iter().map(|(axis, name)| (axis.clone(), name.clone().into())).collect());
        let names = if self.names.is_empty() { String::new() } else { format!("names = {names}\n") };
        format!(
            "\n[[trial]]\nnumber = {}\nhash = \"{}\"\npoint = {}\nrepeat = {}\nrounds = {}\nlogical_ranks = {}\n{names}set = {set}\n",
            self.number, self.hash, self.point, self.repeat, self.rounds, self.logical_ranks
        )
    }
}

/// A planned sweep: `plan.toml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// The sweep file it was made from.
    pub file: PathBuf,
    /// The base configuration, merged, in the sweep's folder.
    pub config: String,
    /// What a trial runs.
    pub command: Job,
    /// What tables are sorted by: a value of `report.json`.
    pub metric: String,
    /// Which end of it is good.
    pub goal: Goal,
    /// What a trial is given.
    pub resources: Resources,
    /// Early stopping.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub halving: Option<Halving>,
    /// The trials, by number.
    #[serde(rename = "trial", default, skip_serializing)]
    pub trials: Vec<Trial>,
}

impl Plan {
    /// Reads a sweep folder's plan.
    ///
    /// # Errors
    /// There is none; one that was changed by hand and is none any more, with its line.
    pub fn read(folder: &SweepFolder) -> Result<Self> {
        let path = folder.plan();
        if !path.exists() {
            return Err(Error::file(folder.path(), "is no sweep's folder: it holds no plan.toml")
                .with_hint("make one: `ssdkd sweep plan FILE --dir DIR`"));
        }
        let text = String::from_utf8_lossy(&files::read(&path)?).into_owned();
        toml::from_str(&text).map_err(|e| config::misread(&path, &text, &e))
    }

    fn text(&self) -> Result<String> {
        let head = toml::to_string(self).map_err(|e| Error::refused(e.to_string()))?;
        let points = self.trials.iter().map(|trial| trial.point).max().unwrap_or(0);
        let trials: String = self.trials.iter().map(Trial::line).collect();
        Ok(format!(
            "# {} trials of {points} points. Made by `ssdkd sweep plan`: change the sweep file and plan again.\n{head}{trials}",
            self.trials.len()
        ))
    }

    /// The value of a key in each trial that has one; `base`: the plan's configuration.
    pub(super) fn values(&self, base: &Config, key: &str) -> Result<Vec<Value>> {
        let base = get(&table(base)?, key).cloned();
        let own = |trial: &Trial| trial.set.iter().find(|(name, _)| name == key).map(|(_, value)| value.clone());
        Ok(self.trials.iter().filter_map(|trial| own(trial).or_else(|| base.clone())).collect())
    }

    /// Whether every trial can be cut to so many ranks.
    ///
    /// # Errors
    /// As a launch on so many ranks would say it.
    pub fn fits(&self, ranks: usize) -> Result<()> {
        self.trials.iter().try_for_each(|trial| crate::layout::Layout::new(trial.logical_ranks, ranks).map(|_| ()))
    }
}

/// What planning came to.
#[derive(Debug)]
pub struct Planned {
    /// The plan.
    pub plan: Plan,
    /// Trials that were not there before.
    pub new: usize,
    /// Folders of trials that the plan has no longer; they stay where they are.
    pub left_out: usize,
    /// Combinations that come to the same run as another one.
    pub doubles: usize,
    /// Points of a random or Sobol sweep that came out like one before.
    pub drawn_again: usize,
    /// What is legal but probably not meant, and in how many trials.
    pub warnings: BTreeMap<String, usize>,
}

/// Makes the plan of a sweep, checks every trial, and writes it all into the folder. Trials that were there keep their number and folder.
///
/// # Errors
/// Every finding of every trial at once, each with the axis it comes from; a folder with the plan of another file. Nothing is written then.
pub fn plan(file: &SweepFile, folder: &SweepFolder) -> Result<Planned> {
    is_free_for(folder, &file.path)?;
    let near = |set: &[(String, Value)]| -> Point { set.iter().map(|(k, v)| (k.clone(), resolved(&file.path, k, v))).collect() };
    let set = near(&file.set);
    let base = load_with(&file.config, set.iter().cloned().collect(), "[set]")?;
    let values = table(&base.config)?;
    let text = said_file(&base, file.resources.ranks)?;
    let known = |key: &str| get(&values, key).cloned();
    let found = points(&file.axes, file.strategy, file.trials, file.seed, &known)?;
    let drawn_again = file.trials.saturating_sub(found.len());
    let seeds: Vec<u64> =
        if file.seeds.is_empty() { (base.config.seed..base.config.seed + file.repeats).collect() } else { file.seeds.clone() };

    let mut checker = Checker::new(file, &set);
    let (mut trials, mut doubles, mut count) = (Vec::<Trial>::new(), 0, 0);
    let mut numbers = Numbers::known(folder)?;
    let mut seen = std::collections::BTreeSet::new();
    let found: Vec<(Vec<(String, String)>, Point)> = found.iter().map(|point| named(&near(point), &file.axes)).collect();
    let mut all: Vec<(usize, usize)> = (0..found.len()).flat_map(|index| (0..seeds.len()).map(move |repeat| (index, repeat))).collect();
    if file.order == Order::Seeds {
        all.sort_by_key(|(_, repeat)| *repeat);
    }
    for (index, repeat) in all {
        let (names, mut set) = found[index].clone();
        let seed = i64::try_from(seeds[repeat]).map_err(|_| Error::config("seeds", format!("{} is too large", seeds[repeat])))?;
        set.push(("seed".into(), Value::Integer(seed)));
        count += 1;
        let Some(checked) = checker.check(&set) else { continue };
        if seen.insert(checked.hash.clone()) {
            let (rounds, logical_ranks) = (checked.rounds, checked.logical_ranks);
            let number = numbers.of(&checked.hash);
            trials.push(Trial { number, hash: checked.hash, point: index + 1, repeat: repeat + 1, rounds, logical_ranks, names, set });
        } else {
            doubles += 1;
        }
    }
    checker.findings(count)?;
    let metric = checker.metric_of_all("metric", file.metric.as_ref(), |task| task.score().0.to_owned())?;
    let halving = match file.halving.clone() {
        Some(Halving { metric, goal, rungs, factor }) => {
            let metric = checker.metric_of_all("halving.metric", metric.as_ref(), Task::column)?;
            Some(Halving { goal: goal.unwrap_or_else(|| Goal::of(&metric)), metric, rungs, factor })
        }
        None => None,
    };
    let warnings = checker.warnings;
    trials.sort_by_key(|trial| trial.number);
    let left_out = numbers.folders.iter().filter(|hash| !seen.contains(*hash)).count();
    let plan = Plan {
        file: std::path::absolute(&file.path).unwrap_or_else(|_| file.path.clone()),
        config: format!("config-{}.toml", &files::sha256(text.as_bytes())[..8]),
        command: file.command,
        goal: file.goal.unwrap_or_else(|| Goal::of(&metric)),
        metric,
        resources: file.resources.clone(),
        halving,
        trials,
    };
    files::create_folder(&folder.trials())?;
    files::create_folder(&folder.jobs())?;
    super::launch::write_scripts(folder)?;
    files::write(&folder.path().join(&plan.config), text.as_bytes())?;
    // Last: from here on it can be run.
    files::write(&folder.plan(), plan.text()?.as_bytes())?;
    Ok(Planned { plan, new: numbers.new, left_out, doubles, drawn_again, warnings })
}

/// Whether a folder's plan, if it has one, is of this file: tasks that were submitted for another would run what is in the place of theirs.
/// Studies, whose files lie in the folder, follow each other there.
fn is_free_for(folder: &SweepFolder, file: &Path) -> Result<()> {
    let Some(before) = Plan::read(folder).ok().map(|plan| plan.file) else { return Ok(()) };
    let own = folder.path().canonicalize().ok();
    let is_own = |path: &Path| path.parent() == own.as_deref();
    match (before.canonicalize(), file.canonicalize()) {
        (Ok(before), Ok(file)) if before != file && !(is_own(&before) && is_own(&file)) => {
            let (place, before) = (folder.path().display(), before.display());
            Err(Error::refused(format!("{place} has the plan of {before}"))
                .with_hint(format!("name another --dir, or remove {}", folder.plan().display())))
        }
        _ => Ok(()),
    }
}

/// The names of a point's values, where any axis has names also the words of those that have none, and what the point sets.
fn named(point: &Point, axes: &[Axis]) -> (Vec<(String, String)>, Point) {
    let (names, set): (Point, Point) = point.iter().cloned().partition(|(key, _)| key.starts_with(NAME));
    if names.is_empty() {
        return (Vec::new(), set);
    }
    let said =
        |(key, name): &(String, Value)| (key[NAME.len()..].to_owned(), name.as_str().map_or_else(|| name.to_string(), str::to_owned));
    let words = |axis: &&Axis| shown(&set.iter().filter(|(key, _)| axis.decides(key)).cloned().collect::<Vec<_>>());
    let nameless = axes.iter().filter(|axis| !axis.is_named()).map(|axis| (axis.name.clone(), words(&axis)));
    (names.iter().map(said).chain(nameless.filter(|(_, words)| !words.is_empty())).collect(), set)
}

fn table(config: &Config) -> Result<Table> {
    Table::try_from(config).map_err(|e| Error::refused(e.to_string()))
}

/// What a configuration's files and its caller say, key by key; paths are absolute.
pub(super) fn said_values(base: &Loaded) -> Result<Point> {
    let values = table(&base.config)?;
    let near = |key: &str, value: &Value| match value {
        Value::String(path) if is_path(key) => absolute(Path::new(path)),
        other => other.clone(),
    };
    Ok(base.said().filter_map(|key| Some((key.to_owned(), near(key, get(&values, key)?)))).collect())
}

/// The same as a file of its own. What a method brings along is left to the trials, since each may have another.
pub(super) fn said_file(base: &Loaded, ranks: usize) -> Result<String> {
    let mut out = Table::new();
    for (key, value) in said_values(base)? {
        put(&mut out, &key, value);
    }
    if base.config.parallel.logical_ranks.is_none() {
        // A run would take this over from its first launch; a plan must not depend on how its trials are launched.
        put(&mut out, "parallel.logical_ranks", Value::Integer(ranks as i64));
    }
    toml::to_string(&out).map_err(|e| Error::refused(e.to_string()))
}

fn absolute(path: &Path) -> Value {
    Value::String(std::path::absolute(path).unwrap_or_else(|_| path.into()).to_string_lossy().into_owned())
}

/// Paths in a sweep file are relative to it, as in any configuration.
fn resolved(file: &Path, key: &str, value: &Value) -> Value {
    match value {
        Value::String(path) if is_path(key) => absolute(&file.parent().unwrap_or(Path::new("")).join(path)),
        other => other.clone(),
    }
}

/// Numbers of trials that were planned before.
struct Numbers {
    known: BTreeMap<String, usize>,
    folders: Vec<String>,
    next: usize,
    new: usize,
}

impl Numbers {
    fn known(folder: &SweepFolder) -> Result<Self> {
        let planned = if folder.plan().exists() { Plan::read(folder)?.trials } else { Vec::new() };
        let mut known: BTreeMap<String, usize> = planned.into_iter().map(|trial| (trial.hash, trial.number)).collect();
        let mut folders = Vec::new();
        for entry in std::fs::read_dir(folder.trials()).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some((number, hash)) = name.split_once('-').and_then(|(number, hash)| Some((number.parse().ok()?, hash.to_owned()))) {
                folders.push(hash.clone());
                known.entry(hash).or_insert(number);
            }
        }
        let next = known.values().max().map_or(1, |last| last + 1);
        Ok(Self { known, folders, next, new: 0 })
    }

    fn of(&mut self, hash: &str) -> usize {
        if let Some(number) = self.known.get(hash) {
            return *number;
        }
        (self.new, self.next) = (self.new + 1, self.next + 1);
        self.next - 1
    }
}

/// What a trial sets, for people.
pub(super) fn shown(set: &[(String, Value)]) -> String {
    assignments(set).collect::<Vec<_>>().join(" ")
}

fn assignments(set: &[(String, Value)]) -> impl Iterator<Item = String> {
    set.iter().map(|(key, value)| format!("{key}={}", written(value)))
}

/// A value as TOML; TOML's own writer spells out every zero of 1e-9.
fn written(value: &Value) -> String {
    match value {
        Value::Float(number) if number.is_finite() => format!("{number:?}"),
        other => other.to_string(),
    }
}
