//! Whether every trial of a sweep can run, said before any of them does.

use super::collect::values;
use super::file::SweepFile;
use super::keys::put;
use super::plan::shown;
use super::points::Point;
use crate::config::{self, Config, DatasetName, Job, StopSignal, check_paths, is_free, load_with, method_values};
use crate::data::{self, Split};
use crate::error::{Error, Finding, Result};
use crate::files;
use crate::methods::{self, Memory, Method};
use crate::metrics::{BufferSummary, NetworkScore, RoundRecord, Summary, header};
use crate::task::Task;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// A trial that can be run.
pub(super) struct Checked {
    pub hash: String,
    pub rounds: u64,
    pub logical_ranks: usize,
}

/// Checks trials one by one and gathers what is wrong with them.
pub(super) struct Checker<'a> {
    file: &'a SweepFile,
    set: &'a Point,
    /// Base configurations, one for every method that occurs.
    bases: BTreeMap<String, Table>,
    hashes: BTreeMap<PathBuf, String>,
    /// Data sets whose training images are there.
    opened: Vec<(DatasetName, Option<PathBuf>)>,
    problems: Vec<Problem>,
    /// Those of the trials, each once.
    tasks: Vec<Task>,
    /// What is legal but probably not meant, and in how many trials.
    pub warnings: BTreeMap<String, usize>,
}

/// A finding, with how many trials have it and what the first of them sets.
struct Problem {
    finding: Finding,
    trials: usize,
    first: String,
}

/// Kinds of findings after which the rest is not worth listing: looking for the wording of each takes its time.
const ENOUGH: usize = 20;

impl<'a> Checker<'a> {
    /// Of a sweep's file; `set` is what every trial sets.
    pub(super) fn new(file: &'a SweepFile, set: &'a Point) -> Self {
        Self {
            file,
            set,
            bases: BTreeMap::new(),
            hashes: BTreeMap::new(),
            opened: Vec::new(),
            problems: Vec::new(),
            tasks: Vec::new(),
            warnings: BTreeMap::new(),
        }
    }

    /// A trial by what it sets; none where something is wrong with it.
    pub(super) fn check(&mut self, set: &Point) -> Option<Checked> {
        if self.problems.len() >= ENOUGH {
            return None;
        }
        match self.checked(set) {
            Ok(checked) => Some(checked),
            Err(error) => {
                let findings = match error {
                    Error::Config(findings) => findings,
                    other => vec![Finding::new("config", other.to_string())],
                };
                for finding in findings {
                    match self.problems.iter_mut().find(|known| known.finding == finding) {
                        Some(known) => known.trials += 1,
                        None => self.problems.push(Problem { finding, trials: 1, first: shown(set) }),
                    }
                }
                None
            }
        }
    }

    fn checked(&mut self, set: &Point) -> Result<Checked> {
        if let Some(twice) = set.iter().enumerate().find(|(i, (key, _))| set[..*i].iter().any(|(other, _)| other == key)) {
            return Err(Error::config(&twice.1.0, "is set by two axes at once"));
        }
        let job = self.file.command;
        let mut config = self.config(set)?;
        methods::check(&config, job)?;
        check_paths(&config)?;
        if !config.checkpoint.signals.contains(&StopSignal::Usr1) {
            return Err(Error::config("checkpoint.signals", "lacks \"usr1\", by which a sweep tells its trials to save and stop"));
        }
        if let Job::Teach = job {
            (config.train.rounds, config.train.warmup_rounds) = (config.teach.epochs, 0);
        }
        let method = if job == Job::Train { Method::of(&config) } else { Method::teach() };
        if method.memory == Memory::RealData {
            self.training_images(&config)?;
        }
        self.length(&config, job);
        let backbone = if job == Job::Train { &config.student.backbone } else { &config.teach.backbone };
        let [teacher, backbone] = [self.hash(method.teacher_weights(&config)?)?, self.hash(backbone.as_deref())?];
        let plan = config::Plan::new(&config, job, self.file.resources.ranks, &teacher, &backbone)?;
        let rounds = job.rounds(&config);
        let task = Task::of(config.dataset);
        self.metric(&Summary {
            teacher: method.teacher_weights(&config)?.map(|_| NetworkScore::blank_teacher(task)),
            buffer: method.stores_images().then(BufferSummary::default),
            ..Summary::blank(task)
        })?;
        self.rungs(&config, task, rounds)?;
        if !self.tasks.contains(&task) {
            self.tasks.push(task);
        }
        for warning in plan.warnings {
            *self.warnings.entry(warning).or_default() += 1;
        }
        // Keys that do not belong to a run's identity count where an axis sets them.
        let free = set.iter().filter(|(key, _)| is_free(key)).map(|(key, value)| format!("{key}={value}\n"));
        // What has its default is left out: a key that a newer version brings must not make all trials new ones.
        let defaults = config::values(&Config::default());
        let said = plan.identity.iter().filter(|(key, value)| defaults.get(*key) != Some(*value));
        let identity = said.map(|(key, value)| format!("{key}={value}\n"));
        let text: String = std::iter::once(format!("{}\n", job.command())).chain(identity).chain(free).collect();
        let hash = files::sha256(text.as_bytes())[..10].to_owned();
        Ok(Checked { hash, rounds, logical_ranks: plan.layout.logical_ranks() })
    }

    /// Values of a trial put into the base configuration of its method; where that does not work, the layers say why.
    fn config(&mut self, set: &Point) -> Result<Config> {
        let mut values = self.base(set)?;
        let all_put = set.iter().all(|(key, value)| put(&mut values, key, value.clone()).is_some());
        match Value::Table(values).try_into() {
            Ok(config) if all_put => Ok(config),
            _ => self.merged(set),
        }
    }

    /// A method brings values along, below all that is said.
    fn base(&mut self, set: &Point) -> Result<Table> {
        let method: Point = set.iter().filter(|(key, _)| key == "method").cloned().collect();
        let name = shown(&method);
        if let Some(known) = self.bases.get(&name) {
            return Ok(known.clone());
        }
        let base = Table::try_from(self.merged(&method)?).map_err(|e| Error::refused(e.to_string()))?;
        self.bases.insert(name, base.clone());
        Ok(base)
    }

    fn merged(&self, set: &[(String, Value)]) -> Result<Config> {
        let values = self.set.iter().chain(set).cloned().collect();
        let mut config = load_with(&self.file.config, values, "this sweep")?.config;
        config.parallel.logical_ranks.get_or_insert(self.file.resources.ranks);
        Ok(config)
    }

    /// Of a file's contents, read once; nothing where there is none.
    fn hash(&mut self, file: Option<&Path>) -> Result<String> {
        let Some(path) = file else { return Ok(String::new()) };
        if let Some(known) = self.hashes.get(path) {
            return Ok(known.clone());
        }
        let hash = files::hash(file)?;
        self.hashes.insert(path.into(), hash.clone());
        Ok(hash)
    }

    /// Whether the images that a method trains on are there, in the few files of CIFAR or MNIST; each data set is read once. Folders of
    /// pictures would take minutes: their launches look at them.
    fn training_images(&mut self, config: &Config) -> Result<()> {
        let place = (config.dataset, config.data.dir.clone());
        let is_quick =
            matches!(config.dataset, DatasetName::Cifar10 | DatasetName::Cifar100 | DatasetName::Mnist | DatasetName::FashionMnist);
        if is_quick && !self.opened.contains(&place) {
            data::open(config.dataset, &config.data, Split::Train).map_err(|error| {
                let hint = error.hint().map(|hint| format!(" ({hint})")).unwrap_or_default();
                Error::config("data.dir", format!("needed by what trains on real images: {error}{hint}"))
            })?;
            self.opened.push(place);
        }
        Ok(())
    }

    /// A tenth of what a method was published with is mostly another method's length.
    fn length(&mut self, config: &Config, job: Job) {
        let published = method_values(config.method.name()).get("train.rounds").and_then(Value::as_integer).unwrap_or(0);
        let rounds = config.train.rounds;
        if job == Job::Train && published > 10 * rounds as i64 {
            let name = config.method.name();
            let warning = format!("train.rounds: {rounds} rounds; {name} is published with {published} (configs/methods/{name}.toml)");
            *self.warnings.entry(warning).or_default() += 1;
        }
    }

    /// Whether reports like this one have the number that tables are to be sorted by.
    fn metric(&self, blank: &Summary) -> Result<()> {
        let Some(metric) = &self.file.metric else { return Ok(()) };
        let blank = serde_json::to_value(blank).map_err(|e| Error::refused(e.to_string()))?;
        let mut row = Vec::new();
        values("report", &blank, &mut row);
        let numbers = row.iter().filter(|(_, cell)| cell.as_ref().is_some_and(|cell| cell.number().is_some()));
        let names: Vec<&str> = numbers.filter_map(|(name, _)| name.strip_prefix("report.")).collect();
        if names.contains(&metric.as_str()) {
            return Ok(());
        }
        Err(Error::config("metric", format!("no report will have a number `{metric}`: there are {}", names.join(", "))))
    }

    fn rungs(&self, config: &Config, task: Task, all: u64) -> Result<()> {
        let Some(halving) = &self.file.halving else { return Ok(()) };
        let metric = halving.metric.clone().unwrap_or_else(|| task.column());
        let columns = header::<RoundRecord>();
        if !columns.split(',').any(|column| column == metric) {
            return Err(Error::config("halving.metric", format!("`{metric}` is no column of metrics.csv, which has {columns}")));
        }
        let is_evaluated = metric.starts_with("student_") && metric != "student_step";
        let evaluated = RoundRecord::default().evaluated(&task.blank(), task.has_data().then_some(0.0));
        let evaluated = serde_json::to_value(evaluated).map_err(|e| Error::refused(e.to_string()))?;
        if is_evaluated && !evaluated[&metric].is_number() {
            let (dataset, score) = (config.dataset.name(), task.column());
            return Err(Error::config(
                "halving.metric",
                format!("`{metric}` is no number of runs on {dataset}, which are scored by `{score}`"),
            ));
        }
        let rounds = halving.rounds(all);
        if rounds[0] == 0 || rounds.windows(2).any(|pair| pair[0] >= pair[1]) {
            return Err(Error::config(
                "halving.rungs",
                format!("come to rounds {rounds:?}, the last of which is the whole run: they have to rise"),
            ));
        }
        let every = config.train.eval_every_rounds;
        let blind = rounds[..rounds.len() - 1].iter().find(|round| !round.is_multiple_of(every) || **round <= config.train.warmup_rounds);
        match blind.filter(|_| is_evaluated) {
            Some(round) => Err(Error::config(
                "halving.rungs",
                format!(
                    "round {round} is not evaluated, so that `{metric}` is not known there: take multiples of train.eval_every_rounds = {every} past \
                     train.warmup_rounds = {}",
                    config.train.warmup_rounds
                ),
            )),
            None => Ok(()),
        }
    }

    /// The metric that is named, else the score of the task that all trials have.
    ///
    /// # Errors
    /// None is named, and trials have different tasks: the finding is of `key`.
    pub(super) fn metric_of_all(&self, key: &str, named: Option<&String>, score: fn(Task) -> String) -> Result<String> {
        match (named, &self.tasks[..]) {
            (Some(name), _) => Ok(name.clone()),
            (None, [task]) => Ok(score(*task)),
            (None, tasks) => {
                let scores: Vec<String> = tasks.iter().map(|task| score(*task)).collect();
                let problem = format!("is left out, but trials are scored differently ({}): name what all have", scores.join(", "));
                Err(Error::config(key, problem))
            }
        }
    }

    /// What was found in `trials` trials, each finding once.
    pub(super) fn findings(&self, trials: usize) -> Result<()> {
        if self.problems.is_empty() {
            return Ok(());
        }
        let stopped = if self.problems.len() >= ENOUGH { "; trials after these were not looked at" } else { "" };
        let finding = |problem: &Problem| {
            let axis = self.file.axes.iter().find(|axis| axis.name == problem.finding.key || axis.decides(&problem.finding.key));
            let of = axis.map_or(String::new(), |axis| format!("axis `{}`, ", axis.name));
            let place = format!("{of}{} of {trials} trials, the first with {}", problem.trials, problem.first);
            Finding::new(&problem.finding.key, format!("{} ({place}{stopped})", problem.finding.problem))
        };
        Err(Error::Config(self.problems.iter().map(finding).collect()))
    }
}
