//! Studies: sweeps whose axes are known beforehand, with tables laid out as publications have them.

use super::collect::{Found, found};
use super::folder::SweepFolder;
use super::plan::{Plan, said_file, said_values};
use super::published::published;
use crate::config::{Config, DatasetName, Difficulty, Diversity, Loaded, MethodName, is_path, literal, load_with};
use crate::error::{Error, Result};
use crate::files;
use crate::metrics::{mean_and_std, spread};
use crate::report::{Series, dots, lines, to_png};
use crate::task::Task;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use toml::Value;

/// What is studied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Size of the synthetic data: a buffer of some shares of the original training set (SSD-KD, Figure 1 and Table 5).
    Scale,
    /// Diversity factor, difficulty factor and priority sampling, each on and off: eight rows.
    Ablation,
    /// Methods side by side, each with its published values where the configuration says nothing.
    Compare,
    /// One row of the published tables: how far from the printed figure it ends.
    Reproduce,
}

/// Axes of a comparison.
const VARIANT: &str = "variant";
const PAIR: &str = "pair";

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

    /// Of a sweep that a study has planned.
    fn of(folder: &SweepFolder, plan: &Plan) -> Option<Self> {
        // A study's sweep file lies in its folder; that of a sweep may have any name.
        let stem = plan.file.file_stem()?.to_str()?;
        let own = plan.file.parent().and_then(Path::file_name) == folder.path().file_name();
        Self::ALL.into_iter().find(|kind| own && kind.name() == stem)
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
    /// Rows of a comparison as `KEY=VALUE KEY=VALUE …`, after `NAME: ` if one is given; none: every method.
    pub variants: Vec<String>,
    /// Columns of a comparison: configuration files and `KEY=VALUE`, after `NAME: ` if one is given; none: the base configuration alone.
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
            "# Written by `ssdkd study {}`.\nconfig = \"base.toml\"\nrepeats = {}\norder = \"seeds\"\nmetric = \"{}\"\n\n{body}\n[resources]\nranks = {}\n{threads}",
            self.kind.name(),
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
                let images = training_images(base) as f64;
                let capacity = |size: f64| ((images * size / 100.0 / logical as f64).round() as usize).max(1) * logical;
                let sizes = self.sizes.iter().map(|&size| (format!("{size} %"), format!("replay.capacity = {}", capacity(size))));
                // The same training for all sizes: what is derived from the capacity is that of the base configuration.
                let steps = crate::config::steps_per_round(base);
                format!("[set]\ndistill.steps_per_round = {steps}\n\n{}", axes(axis("size", sizes)))
            }
            Kind::Ablation => axes(axis("factors", ablations(base)?.into_iter())),
            Kind::Compare => {
                let variants = if self.variants.is_empty() {
                    MethodName::ALL.into_iter().map(method_variant).collect()
                } else {
                    self.variants.iter().map(|text| variant(text)).collect::<Result<Vec<_>>>()?
                };
                let pairs = self.pairs.iter().map(|text| pair_variant(text)).collect::<Result<Vec<_>>>()?;
                let pairs = if pairs.is_empty() { String::new() } else { axis(PAIR, pairs.into_iter()) };
                axes(axis(VARIANT, variants.into_iter()) + &pairs)
            }
            Kind::Reproduce => axes(String::new()),
        })
    }
}

/// An axis of named rows in a sweep file.
fn axis(name: &str, rows: impl Iterator<Item = (String, String)>) -> String {
    let row = |(called, sets): (String, String)| format!("  {{ name = {}, {sets} }},\n", Value::String(called));
    format!("{name} = [\n{}]\n", rows.map(row).collect::<String>())
}

/// Every combination of the three parts, each on or off; all on comes first.
fn ablations(base: &Config) -> Result<Vec<(String, String)>> {
    let json = |value: serde_json::Result<String>| value.map_err(|e| Error::refused(e.to_string()));
    let diversity = if base.phi.diversity == Diversity::Off { Diversity::Linear } else { base.phi.diversity };
    let difficulty = if base.phi.difficulty == Difficulty::Off { Difficulty::Focal } else { base.phi.difficulty };
    let (diversity, difficulty) = (json(serde_json::to_string(&diversity))?, json(serde_json::to_string(&difficulty))?);
    let parts = [
        ("diversity", "phi.diversity", diversity.as_str(), "\"off\""),
        ("difficulty", "phi.difficulty", difficulty.as_str(), "\"off\""),
        ("priority", "replay.draw", "\"priority\"", "\"uniform\""),
    ];
    let row = |bits: usize| {
        let on = |i: usize| bits >> (2 - i) & 1 == 0;
        let kept: Vec<&str> = (0..3).filter(|&i| on(i)).map(|i| parts[i].0).collect();
        let sets: Vec<String> = (0..3).map(|i| format!("{} = {}", parts[i].1, if on(i) { parts[i].2 } else { parts[i].3 })).collect();
        (if kept.is_empty() { "none".into() } else { kept.join(" + ") }, sets.join(", "))
    };
    Ok((0..8).map(row).collect())
}

/// A method with what it cannot do without.
fn method_variant(method: MethodName) -> (String, String) {
    let steps = if method.trains_one_generator() { ", inversion.steps = 1" } else { "" };
    let warm_up = if method.has_no_warm_up() { ", train.warmup_rounds = 0" } else { "" };
    (method.name().into(), format!("method = \"{}\"{steps}{warm_up}", method.name()))
}

/// `NAME: WORDS`, or words alone.
fn named(text: &str) -> (Option<&str>, &str) {
    match text.split_once(':') {
        Some((name, words)) if !name.contains('=') && words.starts_with(char::is_whitespace) => (Some(name.trim()), words),
        _ => (None, text),
    }
}

/// `[NAME:] KEY=VALUE …`; without a name, by its words, a method by its name alone.
fn variant(text: &str) -> Result<(String, String)> {
    let (name, words) = named(text);
    if let Some(word) = words.split_whitespace().find(|word| !word.contains('=')) {
        return Err(Error::refused(format!("--variant: `{word}` is no KEY=VALUE")));
    }
    let short = words.split_whitespace().map(|word| word.strip_prefix("method=").unwrap_or(word)).collect::<Vec<_>>().join(" ");
    let sets: Vec<String> = words.split_whitespace().map(assignment).map(|(key, value)| format!("{key} = {value}")).collect();
    Ok((name.map_or(short, str::to_owned), sets.join(", ")))
}

/// `[NAME:] FILE … KEY=VALUE …` as what it sets.
fn pair_values(text: &str) -> Result<Vec<(String, Value)>> {
    let (sets, files): (Vec<&str>, Vec<&str>) = named(text).1.split_whitespace().partition(|word| word.contains('='));
    let files: Vec<PathBuf> = files.into_iter().map(PathBuf::from).collect();
    said_values(&load_with(&files, sets.into_iter().map(assignment).collect(), "--pair")?)
}

fn pair_variant(text: &str) -> Result<(String, String)> {
    let values = pair_values(text)?;
    let of = |key: &str| values.iter().find(|(name, _)| name == key).and_then(|(_, value)| value.as_str());
    let models = of("teacher.model").zip(of("student.model")).map(|(teacher, student)| format!("{teacher} → {student}"));
    let name = named(text).0.map(str::to_owned).or(models).unwrap_or_else(|| text.trim().to_owned());
    let sets: Vec<String> = values.iter().map(|(key, value)| format!("{key} = {value}")).collect();
    Ok((name, sets.join(", ")))
}

/// The base configuration with a pair's values.
fn pair(text: &str, base: &Loaded) -> Result<Config> {
    let values = said_values(base)?.into_iter().chain(pair_values(text)?).collect();
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
fn training_images(config: &Config) -> usize {
    match config.dataset {
        DatasetName::Cifar10 | DatasetName::Cifar100 => 50_000,
        DatasetName::FashionMnist | DatasetName::Mnist => 60_000,
        DatasetName::Nyuv2 => 795,
        DatasetName::Scenes13 => config.data.train_scenes,
    }
}

/// One row of a study's table.
struct Row {
    point: Found,
    /// In per cent.
    scores: Vec<f64>,
    minutes: Vec<f64>,
}

impl Row {
    fn of(point: Found, metric: &str) -> Self {
        let numbers = |column: &str| point.trials.iter().filter_map(|trial| trial.number(column)).collect::<Vec<_>>();
        Self {
            scores: numbers(&format!("report.{metric}")).iter().map(|score| 100.0 * score).collect(),
            minutes: numbers("report.seconds.total").iter().map(|seconds| seconds / 60.0).collect(),
            point,
        }
    }

    /// Mean ± std of the score; what is missing is marked.
    fn score(&self) -> String {
        let mark = if self.scores.len() < self.point.trials.len() { "*" } else { "" };
        format!("{}{mark}", spread(&self.scores, 2))
    }

    fn mean(&self) -> Option<f64> {
        (!self.scores.is_empty()).then(|| mean_and_std(&self.scores).0)
    }

    fn time(&self) -> String {
        if self.minutes.is_empty() { "–".into() } else { format!("{:.1}", mean_and_std(&self.minutes).0) }
    }

    /// The name of its value of an axis.
    fn name(&self, axis: &str) -> &str {
        self.point.names.iter().find(|(name, _)| name == axis).map_or("", |(_, name)| name)
    }

    fn dots(&self) -> (String, Vec<f64>) {
        (self.point.title.clone(), self.scores.clone())
    }
}

/// What a study shows: its table, and its plot as SVG.
pub struct Shown {
    /// Markdown.
    pub page: String,
    /// Empty as long as there is nothing to draw.
    pub svg: String,
    /// Runs that are done.
    pub done: usize,
    /// Runs that are not.
    pub open: usize,
}

/// The table of a study's folder as it stands, laid out by its kind.
///
/// # Errors
/// A folder that no study has planned; a damaged report.
pub fn show(folder: &SweepFolder, plan: &Plan) -> Result<Shown> {
    let Some(kind) = Kind::of(folder, plan) else {
        return Err(Error::file(folder.path(), "is no study's folder").with_hint("`ssdkd sweep collect DIR` shows what a sweep came to"));
    };
    let (points, failed) = found(folder, plan)?;
    let mut rows: Vec<Row> = points.into_iter().map(|point| Row::of(point, &plan.metric)).collect();
    let (done, planned) = (rows.iter().map(|r| r.scores.len()).sum::<usize>(), rows.iter().map(|r| r.point.trials.len()).sum::<usize>());
    let base = base_of(folder, plan)?;
    let unit = Task::unit(&plan.metric);
    let (table, svg) = match kind {
        Kind::Scale => scale(&mut rows, unit, training_images(&base) as f64),
        Kind::Ablation => ablation(&rows, unit),
        Kind::Compare => compare(&mut rows, unit),
        Kind::Reproduce => reproduce(&base, &rows, unit),
    };
    let note = if done < planned { " Rows marked * are missing runs." } else { "" };
    let mut page = format!(
        "# {}\n\n{done} of {planned} runs done.{note} Mean ± sample standard deviation over seeds; the last evaluation counts.\n\n{table}",
        folder.name()
    );
    if !failed.is_empty() {
        let _ = write!(page, "\nFailed (`ssdkd sweep retry` lets them be run again):\n\n{}", failed.concat());
    }
    Ok(Shown { page, svg, done, open: planned - done })
}

/// Writes `study.md`, `study.svg` and `study.png` and returns their paths. Without fonts on this machine there is no PNG.
pub fn write(folder: &SweepFolder, shown: &Shown) -> Result<Vec<PathBuf>> {
    let path = |name: &str| folder.path().join(name);
    let mut files = vec![(path("study.md"), shown.page.clone().into_bytes())];
    if !shown.svg.is_empty() {
        files.push((path("study.svg"), shown.svg.clone().into_bytes()));
        files.extend(to_png(&shown.svg).map(|png| (path("study.png"), png)));
    }
    files.iter().try_for_each(|(path, bytes)| crate::files::write(path, bytes))?;
    Ok(files.into_iter().map(|(path, _)| path).collect())
}

/// The study's base configuration, whatever the environment says now.
fn base_of(folder: &SweepFolder, plan: &Plan) -> Result<Config> {
    Ok(load_with(&[folder.path().join(&plan.config)], BTreeMap::new(), "")?.config)
}

fn scale(rows: &mut [Row], unit: &str, original: f64) -> (String, String) {
    let capacity = |row: &Row| row.point.set.number("replay.capacity").unwrap_or(0.0);
    let share = |row: &Row| (10_000.0 * capacity(row) / original).round() / 100.0;
    rows.sort_by(|a, b| capacity(b).total_cmp(&capacity(a)));
    let mut table = format!("| synthetic data, % of the original | images | {unit} | minutes |\n| ---: | ---: | ---: | ---: |\n");
    for row in rows.iter() {
        let _ = writeln!(table, "| {} | {:.0} | {} | {} |", share(row), capacity(row), row.score(), row.time());
    }
    let points = rows.iter().rev().filter_map(|row| Some((share(row), row.mean()?))).collect();
    (table, lines("synthetic data, % of the original", unit, &[Series { name: "student".into(), points }]))
}

fn ablation(rows: &[Row], unit: &str) -> (String, String) {
    let mut table = format!("| diversity factor | difficulty factor | priority sampling | {unit} | against all on | minutes |\n");
    table.push_str("| :---: | :---: | :---: | ---: | ---: | ---: |\n");
    let all = rows.first().and_then(Row::mean);
    for row in rows {
        let on =
            ["phi.diversity", "phi.difficulty", "replay.draw"].map(|key| !["off", "uniform"].contains(&row.point.set.text(key).as_str()));
        let [a, b, c] = on.map(|on| if on { "✓" } else { "–" });
        let against = row.mean().zip(all).map_or("–".into(), |(mean, all)| format!("{:+.2}", mean - all));
        let _ = writeln!(table, "| {a} | {b} | {c} | {} | {against} | {} |", row.score(), row.time());
    }
    (table, dots(unit, &rows.iter().map(Row::dots).collect::<Vec<_>>()))
}

/// Variants below each other, the best first; where there are pairs, a column for each, in the order in which they were given.
fn compare(rows: &mut [Row], unit: &str) -> (String, String) {
    let mut pairs: Vec<String> = Vec::new();
    for row in rows.iter() {
        let name = row.name(PAIR);
        if !name.is_empty() && !pairs.iter().any(|pair| pair == name) {
            pairs.push(name.to_owned());
        }
    }
    let table = if pairs.is_empty() {
        rows.sort_by(|a, b| b.mean().unwrap_or(f64::MIN).total_cmp(&a.mean().unwrap_or(f64::MIN)));
        let line = |row: &Row| format!("| {} | {} | {} |\n", row.point.title, row.score(), row.time());
        format!("| | {unit} | minutes |\n| --- | ---: | ---: |\n{}", rows.iter().map(line).collect::<String>())
    } else {
        format!("{}\nMinutes of a run:\n\n{}", crossed(rows, &pairs, unit, Row::score), crossed(rows, &pairs, "", Row::time))
    };
    (table, dots(unit, &rows.iter().map(Row::dots).collect::<Vec<_>>()))
}

/// Variants × pairs.
fn crossed(rows: &[Row], pairs: &[String], corner: &str, cell: impl Fn(&Row) -> String) -> String {
    let mut lines: Vec<(&str, Vec<String>)> = Vec::new();
    for row in rows {
        let (variant, column) = (row.name(VARIANT), pairs.iter().position(|pair| pair == row.name(PAIR)));
        let at = lines.iter().position(|(name, _)| *name == variant).unwrap_or_else(|| {
            lines.push((variant, vec!["–".into(); pairs.len()]));
            lines.len() - 1
        });
        if let Some(column) = column {
            lines[at].1[column] = cell(row);
        }
    }
    let line = |(name, cells): &(&str, Vec<String>)| format!("| {name} | {} |\n", cells.join(" | "));
    let heads = format!("| {corner} | {} |\n| --- |{}\n", pairs.join(" | "), " ---: |".repeat(pairs.len()));
    heads + &lines.iter().map(line).collect::<String>()
}

/// The row beside the printed figure.
fn reproduce(config: &Config, rows: &[Row], unit: &str) -> (String, String) {
    let figure = published(config);
    let mut table = format!(
        "| data set | method | pair | {unit} | published | difference | hours of all runs |\n| --- | --- | --- | ---: | ---: | ---: | ---: |\n"
    );
    for row in rows {
        let (printed, difference) = figure.as_ref().map_or(("not published".into(), "–".into()), |figure| {
            let difference = row.mean().map_or("–".into(), |mean| format!("{:+.2}", mean - figure.top1));
            (format!("{:.2} ({})", figure.top1, figure.row), difference)
        });
        let _ = writeln!(
            table,
            "| {} | {} | {} → {} | {} | {printed} | {difference} | {:.2} |",
            config.dataset.name(),
            config.method.name(),
            config.teacher.model.name(),
            config.student.model.name(),
            row.score(),
            row.minutes.iter().sum::<f64>().abs() / 60.0,
        );
    }
    table.push_str(
        "\nPrinted figures are the best of all evaluations on the test images (README of zju-vipa/Fast-Datafree), one run each.\n",
    );
    let drawn = rows.iter().map(|row| (config.method.name().to_owned(), row.scores.clone()));
    let printed = figure.map(|figure| ("published".to_owned(), vec![figure.top1]));
    (table, dots(unit, &drawn.chain(printed).collect::<Vec<_>>()))
}

/// Folder of a study, by name unless one is given.
pub fn folder_of(kind: Kind, dir: Option<&Path>) -> Result<SweepFolder> {
    SweepFolder::new(&dir.map_or_else(|| PathBuf::from("runs").join(kind.name()), Path::to_path_buf))
}

#[cfg(test)]
mod tests {
    use super::super::collect::Cells;
    use super::*;
    use crate::config::ModelName;

    /// A row whose runs have ended with these scores, each after half an hour.
    fn row(title: &str, names: &[(&str, &str)], scores: &[f64]) -> Row {
        let names = names.iter().map(|(axis, name)| ((*axis).to_owned(), (*name).to_owned())).collect();
        let trials = scores.iter().map(|_| Cells::default()).collect();
        let point = Found { title: title.into(), names, set: Cells::default(), trials };
        Row { point, scores: scores.to_vec(), minutes: vec![30.0; scores.len()] }
    }

    /// Fast-5 on CIFAR-10, WRN-40-2 → WRN-16-1: 88.90 printed.
    #[test]
    fn a_reproduced_row_says_how_far_it_is_from_print() {
        let mut config = Config { method: MethodName::FastMeta, ..Config::default() };
        (config.teacher.model, config.student.model) = (ModelName::Wrn40x2, ModelName::Wrn16x1);
        config.inversion.steps = 5;
        let (table, svg) = reproduce(&config, &[row("", &[], &[88.0, 89.0, 90.0])], "top-1, %");
        let wanted = "| cifar10 | fast_meta | wrn40_2 → wrn16_1 | 89.00 ± 1.00 | 88.90 (Fast-5) | +0.10 | 1.50 |";
        assert!(table.contains(wanted), "{table}");
        assert!(svg.contains("published") && svg.contains("88.90"));
    }

    #[test]
    fn a_cell_that_no_run_fills_stays_open() {
        let of = |variant, pair, scores: &[f64]| row("", &[(VARIANT, variant), (PAIR, pair)], scores);
        let mut rows = [of("a", "one", &[1.0]), of("a", "two", &[2.0, 4.0]), of("b", "one", &[])];
        let (table, _) = compare(&mut rows, "mIoU, %");
        assert!(table.starts_with("| mIoU, % | one | two |\n| --- | ---: | ---: |\n| a | 1.00 | 3.00 ± 1.41 |\n| b | –"), "{table}");
    }
}
