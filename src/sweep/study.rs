//! Studies: sweeps whose axes are known beforehand, with tables laid out as publications have them.

use super::folder::SweepFolder;
use super::plan::{Plan, said_file, said_values};
use crate::config::{Config, DatasetName, Difficulty, Diversity, Loaded, MethodName, is_path, literal, load_with, method_values};
use crate::error::{Error, Result};
use crate::files;
use crate::methods::Method;
use crate::task::Task;
use std::path::{Path, PathBuf};
use toml::Value;

/// What is studied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Size of the synthetic data: a buffer of some shares of the original training set (SSD-KD, Figure 1 and Table 5).
    Scale,
    /// Diversity factor, difficulty factor and priority sampling, each on and off: eight rows.
    Ablation,
    /// Methods side by side, on one pair of networks or several.
    Compare,
    /// A row of the published tables, on one pair of networks or several: how far from the printed figures it ends.
    Reproduce,
}

/// What the names of a comparison's rows and columns are called.
pub(super) const VARIANT: &str = "variant";
pub(super) const PAIR: &str = "pair";

impl Kind {
    const ALL: [Self; 4] = [Self::Scale, Self::Ablation, Self::Compare, Self::Reproduce];

    /// Name of its sweep file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scale => "scale",
            Self::Ablation => "ablation",
            Self::Compare => "compare",
            Self::Reproduce => "reproduce",
        }
    }

    /// Of a sweep that a study has planned: the sweep file in its folder says so in its first line.
    pub(super) fn of(folder: &SweepFolder, plan: &Plan) -> Option<Self> {
        let file = Path::new(plan.file.file_name()?);
        let text = std::fs::read_to_string(folder.path().join(file)).ok()?;
        Self::ALL.into_iter().find(|kind| file.file_stem().is_some_and(|stem| stem == kind.name()) && text.starts_with(&kind.mark()))
    }

    fn mark(self) -> String {
        format!("# Written by `ssdkd study {}`.\n", self.name())
    }
}

/// A study as asked for.
#[derive(Debug)]
pub struct Study {
    /// What is studied.
    pub kind: Kind,
    /// Runs of each row.
    pub seeds: u64,
    /// Buffers of a study of sizes, in per cent of the original training set.
    pub sizes: Vec<f64>,
    /// Rows of a comparison: configuration files and `KEY=VALUE`, after `NAME: ` if one is given; none: every method as published.
    pub variants: Vec<String>,
    /// Columns of a comparison or of a published row: configuration files and `KEY=VALUE`, after `NAME: ` if one is given; none: the base configuration alone.
    pub pairs: Vec<String>,
    /// Ranks of a run.
    pub ranks: usize,
    /// Threads of a rank.
    pub threads: Option<usize>,
}

impl Study {
    /// Writes the base configuration and the sweep file into the study's folder and returns the latter's path.
    ///
    /// # Errors
    /// A data set or method that this study is not about.
    pub fn write(&self, base: &Loaded, folder: &SweepFolder) -> Result<PathBuf> {
        let task = self.check(base)?;
        let body = self.body(&base.config)?;
        files::create_folder(folder.path())?;
        files::write(&folder.path().join("base.toml"), said_file(base, self.ranks)?.as_bytes())?;
        let threads = self.threads.map_or(String::new(), |threads| format!("threads = {threads}\n"));
        let text = format!(
            "{}config = \"base.toml\"\nrepeats = {}\norder = \"seeds\"\nmetric = \"{}\"\n\n{body}\n[resources]\nranks = {}\n{threads}",
            self.kind.mark(),
            self.seeds,
            task.score().0,
            self.ranks,
        );
        let path = folder.path().join(format!("{}.toml", self.kind.name()));
        files::write(&path, text.as_bytes())?;
        Ok(path)
    }

    /// What the runs are scored by.
    fn check(&self, base: &Loaded) -> Result<Task> {
        let (kind, method) = (self.kind, base.config.method);
        if matches!(kind, Kind::Scale | Kind::Ablation) && method != MethodName::SsdKd {
            let problem = format!("{} has no bounded, prioritised buffer: {} is a study of ssd_kd", method.name(), kind.name());
            return Err(Error::config("method", problem));
        }
        if let Some(size) = self.sizes.iter().find(|size| !(size.is_finite() && **size > 0.0)) {
            return Err(Error::refused(format!("--sizes: {size} per cent of a training set is no size")));
        }
        let mut tasks = self.pairs.iter().map(|text| Ok(Task::of(pair(text, base)?.dataset)));
        let first = tasks.next().unwrap_or_else(|| Ok(Task::of(base.config.dataset)))?;
        for other in tasks {
            if other? != first {
                return Err(Error::refused("--pair: pairs that are scored differently").with_hint("make a study for each task"));
            }
        }
        Ok(first)
    }

    /// The tables `[set]` and `[axes]` of the sweep file.
    fn body(&self, base: &Config) -> Result<String> {
        let axes = |rows: String| format!("[axes]\n{rows}");
        Ok(match self.kind {
            Kind::Scale => {
                let logical = base.parallel.logical_ranks.unwrap_or(self.ranks);
                let images = training_images(base)? as f64;
                let capacity = |size: f64| ((images * size / 100.0 / logical as f64).round() as usize).max(1) * logical;
                let row = |&size: &f64| Choice {
                    name: format!("{size} %"),
                    sets: vec![("replay.capacity".into(), Value::Integer(capacity(size) as i64))],
                };
                // The same training for all sizes: what is derived from the capacity is that of the base configuration.
                let steps = crate::config::steps_per_round(base);
                format!("[set]\ndistill.steps_per_round = {steps}\n\n{}", axes(axis("size", self.sizes.iter().map(row))))
            }
            Kind::Ablation => axes(axis("factors", ablations(base)?.into_iter())),
            Kind::Compare => {
                let variants = if self.variants.is_empty() {
                    MethodName::ALL.into_iter().map(published_method).collect()
                } else {
                    choices("--variant", &self.variants)?
                };
                let pairs = choices("--pair", &self.pairs)?;
                axes(if pairs.is_empty() { axis(VARIANT, variants.into_iter()) } else { cells(&variants, &pairs) })
            }
            Kind::Reproduce if self.pairs.is_empty() => axes(String::new()),
            Kind::Reproduce => axes(axis(PAIR, choices("--pair", &self.pairs)?.into_iter())),
        })
    }
}

/// What a row, a column or a cell sets, and what tables call it.
#[derive(Clone)]
struct Choice {
    name: String,
    sets: Vec<(String, Value)>,
}

impl Choice {
    /// `[NAME:] FILE … KEY=VALUE …`, of the option that is named. Without a name it is called by its networks or its words, a method by its name alone.
    fn read(option: &str, text: &str) -> Result<Self> {
        let (name, words) = match text.split_once(':') {
            Some((name, words)) if !name.contains('=') && words.starts_with(char::is_whitespace) => (Some(name.trim()), words),
            _ => (None, text),
        };
        let (sets, files): (Vec<&str>, Vec<&str>) = words.split_whitespace().partition(|word| word.contains('='));
        if let Some(word) = files.iter().find(|word| !Path::new(word).is_file()) {
            return Err(Error::refused(format!("{option}: `{word}` is neither KEY=VALUE nor a file")));
        }
        let files: Vec<PathBuf> = files.into_iter().map(PathBuf::from).collect();
        let sets = said_values(&load_with(&files, sets.into_iter().map(assignment).collect(), option)?)?;
        let of = |key: &str| sets.iter().find(|(name, _)| name == key).and_then(|(_, value)| value.as_str());
        let networks = || of("teacher.model").zip(of("student.model")).map(|(teacher, student)| format!("{teacher} → {student}"));
        let short = || words.split_whitespace().map(|word| word.strip_prefix("method=").unwrap_or(word)).collect::<Vec<_>>().join(" ");
        Ok(Self { name: name.map(str::to_owned).or_else(networks).unwrap_or_else(short), sets })
    }

    fn row(&self, name: &str) -> String {
        let sets: String = self.sets.iter().map(|(key, value)| format!(", {key} = {value}")).collect();
        format!("  {{ name = {name}{sets} }},\n")
    }
}

/// One for each text of an option, under names that tell them apart.
fn choices(option: &str, texts: &[String]) -> Result<Vec<Choice>> {
    let choices = texts.iter().map(|text| Choice::read(option, text)).collect::<Result<Vec<_>>>()?;
    let is_new = |at: usize| choices[..at].iter().all(|other| other.name != choices[at].name);
    match (0..choices.len()).find(|&at| !is_new(at)) {
        Some(at) => Err(Error::refused(format!("{option}: two are called `{}`", choices[at].name))
            .with_hint(format!("give them names: {option} \"NAME: {}\"", texts[at]))),
        None => Ok(choices),
    }
}

/// An axis of named values in a sweep file.
fn axis(name: &str, choices: impl Iterator<Item = Choice>) -> String {
    let row = |choice: Choice| choice.row(&Value::String(choice.name.clone()).to_string());
    format!("{name} = [\n{}]\n", choices.map(row).collect::<String>())
}

/// Every variant on every pair; where both set a key, the variant's value counts.
fn cells(variants: &[Choice], pairs: &[Choice]) -> String {
    let cell = |variant: &Choice, pair: &Choice| {
        let is_left = |(key, _): &&(String, Value)| !variant.sets.iter().any(|(other, _)| other == key);
        let sets = pair.sets.iter().filter(is_left).chain(&variant.sets).cloned().collect();
        let [row, column] = [variant, pair].map(|choice| Value::String(choice.name.clone()));
        Choice { name: String::new(), sets }.row(&format!("{{ {VARIANT} = {row}, {PAIR} = {column} }}"))
    };
    let rows: String = variants.iter().flat_map(|variant| pairs.iter().map(move |pair| cell(variant, pair))).collect();
    format!("cell = [\n{rows}]\n")
}

/// Every combination of the three parts, each on or off; all on comes first.
fn ablations(base: &Config) -> Result<Vec<Choice>> {
    let value = |value: Result<Value, toml::ser::Error>| value.map_err(|e| Error::refused(e.to_string()));
    let diversity = if base.phi.diversity == Diversity::Off { Diversity::Linear } else { base.phi.diversity };
    let difficulty = if base.phi.difficulty == Difficulty::Off { Difficulty::Focal } else { base.phi.difficulty };
    let parts = [
        ("diversity", "phi.diversity", value(Value::try_from(diversity))?, "off"),
        ("difficulty", "phi.difficulty", value(Value::try_from(difficulty))?, "off"),
        ("priority", "replay.draw", "priority".into(), "uniform"),
    ];
    let row = |bits: usize| {
        let is_on = |i: usize| bits >> (2 - i) & 1 == 0;
        let kept: Vec<&str> = (0..3).filter(|&i| is_on(i)).map(|i| parts[i].0).collect();
        let set = |i: usize| (parts[i].1.to_owned(), if is_on(i) { parts[i].2.clone() } else { parts[i].3.into() });
        Choice { name: if kept.is_empty() { "none".into() } else { kept.join(" + ") }, sets: (0..3).map(set).collect() }
    };
    Ok((0..8).map(row).collect())
}

/// A method that makes its images as published; how long it trains, and with what rates, is left to the base configuration.
fn published_method(method: MethodName) -> Choice {
    let mut sets = vec![("method".to_owned(), Value::from(method.name()))];
    let config = Config { method, ..Config::default() };
    sets.extend(method_values(method.name()).into_iter().filter(|(key, _)| key.starts_with("inversion.") || key.starts_with("generator.")));
    if Method::of(&config).only_disagrees(&config.inversion) {
        sets.push(("train.warmup_rounds".into(), 0.into()));
    }
    Choice { name: method.name().into(), sets }
}

/// The base configuration with a pair's values.
fn pair(text: &str, base: &Loaded) -> Result<Config> {
    let values = said_values(base)?.into_iter().chain(Choice::read("--pair", text)?.sets).collect();
    Ok(load_with(&[], values, "--pair")?.config)
}

/// `key=value` as TOML has it; relative paths are of the working folder.
fn assignment(word: &str) -> (String, Value) {
    let (key, value) = word.split_once('=').unwrap_or((word, ""));
    let value = match literal(value) {
        Value::String(path) if is_path(key) => Value::String(std::path::absolute(&path).map_or(path, |p| p.to_string_lossy().into_owned())),
        other => other,
    };
    (key.to_owned(), value)
}

/// Images of the original training set.
///
/// # Errors
/// A data set of which that is not known.
pub(super) fn training_images(config: &Config) -> Result<usize> {
    Ok(match config.dataset {
        DatasetName::Cifar10 | DatasetName::Cifar100 => 50_000,
        DatasetName::FashionMnist | DatasetName::Mnist => 60_000,
        DatasetName::Nyuv2 => 795,
        DatasetName::Scenes13 => config.data.train_scenes,
        DatasetName::Svhn => 73_257,
        DatasetName::TinyImagenet => 100_000,
        DatasetName::Folder | DatasetName::None => {
            let problem = format!("{}: sizes in per cent of a training set need a data set that has a known one", config.dataset.name());
            return Err(Error::config("dataset", problem));
        }
    })
}

/// Folder of a study, by name unless one is given.
pub fn folder_of(kind: Kind, dir: Option<&Path>) -> Result<SweepFolder> {
    SweepFolder::new(&dir.map_or_else(|| PathBuf::from("runs").join(kind.name()), Path::to_path_buf))
}
