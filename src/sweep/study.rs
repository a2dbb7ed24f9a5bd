//! Studies: sweeps whose axes are known beforehand, with tables laid out as publications have them.

use super::collect::{Cells, Found, cells};
use super::folder::SweepFolder;
use super::plan::{Plan, said_file};
use super::published::published;
use crate::config::{Config, DatasetName, Difficulty, Diversity, Loaded, MethodName, is_path, literal, load_with};
use crate::error::{Error, Result};
use crate::files;
use crate::metrics::{mean_and_std, spread};
use crate::report::{Series, bars, lines, to_png};
use crate::task::Task;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use toml::Value;

/// What is studied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Size of the synthetic data: a buffer of 100, 20, 10, 5 and 1 % of the original training set (SSD-KD, Figure 1 and Table 5).
    Scale,
    /// Diversity factor, difficulty factor and priority sampling, each on and off: eight rows.
    Ablation,
    /// Methods side by side, each with its published values where the configuration says nothing.
    Compare,
    /// One row of the published tables: how far from the printed figure it ends.
    Reproduce,
}

/// Shares of the original training set.
const SHARES: [f64; 5] = [1.0, 0.2, 0.1, 0.05, 0.01];

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
    /// Rows of a comparison as `KEY=VALUE KEY=VALUE …`; none: every method.
    pub variants: Vec<String>,
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
        self.check(&base.config)?;
        let axes = self.axes(&base.config)?;
        files::create_folder(folder.path())?;
        files::write(&folder.path().join("base.toml"), said_file(base, self.ranks)?.as_bytes())?;
        let threads = self.threads.map_or(String::new(), |threads| format!("threads = {threads}\n"));
        let text = format!(
            "# Written by `ssdkd study {}`.\nconfig = \"base.toml\"\nrepeats = {}\norder = \"seeds\"\nmetric = \"{}\"\n\n[axes]\n{axes}\n[resources]\nranks = {}\n{threads}",
            self.kind.name(),
            self.seeds,
            Task::of(base.config.dataset).score().0,
            self.ranks,
        );
        let path = folder.path().join(format!("{}.toml", self.kind.name()));
        files::write(&path, text.as_bytes())?;
        Ok(path)
    }

    fn check(&self, base: &Config) -> Result<()> {
        let about_the_buffer = matches!(self.kind, Kind::Scale | Kind::Ablation);
        if about_the_buffer && base.method != MethodName::SsdKd {
            let problem = format!("{} has no bounded, prioritised buffer: {} is a study of ssd_kd", base.method.name(), self.kind.name());
            return Err(Error::config("method", problem));
        }
        if let Some(word) = self.variants.iter().flat_map(|text| text.split_whitespace()).find(|word| !word.contains('=')) {
            return Err(Error::refused(format!("--variant: `{word}` is no KEY=VALUE")));
        }
        Ok(())
    }

    fn axes(&self, base: &Config) -> Result<String> {
        Ok(match self.kind {
            Kind::Scale => {
                let logical = base.parallel.logical_ranks.unwrap_or(self.ranks);
                let images = training_images(base) as f64;
                let capacity = |share: f64| ((images * share / logical as f64).round() as usize).max(1) * logical;
                // The same training for all sizes: what is derived from the capacity is that of the base configuration.
                let steps = crate::config::steps_per_round(base);
                format!("replay.capacity = {:?}\ndistill.steps_per_round = [{steps}]\n", SHARES.map(capacity))
            }
            Kind::Ablation => {
                let on = |off: bool, value: String| if off { "\"off\"".to_owned() } else { value };
                let diversity = if base.phi.diversity == Diversity::Off { Diversity::Linear } else { base.phi.diversity };
                let difficulty = if base.phi.difficulty == Difficulty::Off { Difficulty::Focal } else { base.phi.difficulty };
                let json = |value: serde_json::Result<String>| value.map_err(|e| Error::refused(e.to_string()));
                let (diversity, difficulty) = (json(serde_json::to_string(&diversity))?, json(serde_json::to_string(&difficulty))?);
                let row = |bits: usize| {
                    let off = |bit: usize| bits >> bit & 1 == 1;
                    format!(
                        "  {{ phi.diversity = {}, phi.difficulty = {}, replay.draw = \"{}\" }},\n",
                        on(off(2), diversity.clone()),
                        on(off(1), difficulty.clone()),
                        if off(0) { "uniform" } else { "priority" },
                    )
                };
                format!("variant = [\n{}]\n", (0..8).map(row).collect::<String>())
            }
            Kind::Compare if self.variants.is_empty() => {
                let names: Vec<&str> = MethodName::ALL.iter().map(|method| method.name()).collect();
                format!("method = {names:?}\n")
            }
            Kind::Compare => {
                let row = |text: &String| format!("  {{ {} }},\n", text.split_whitespace().map(assignment).collect::<Vec<_>>().join(", "));
                format!("variant = [\n{}]\n", self.variants.iter().map(row).collect::<String>())
            }
            Kind::Reproduce => String::new(),
        })
    }
}

/// `key=value` as TOML; relative paths are of the working folder.
fn assignment(word: &str) -> String {
    let (key, value) = word.split_once('=').unwrap_or((word, ""));
    let value = match literal(value) {
        Value::String(path) if is_path(key) => Value::String(std::path::absolute(&path).map_or(path, |p| p.to_string_lossy().into_owned())),
        other => other,
    };
    format!("{key} = {value}")
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
    cells: Cells,
    scores: Vec<f64>,
    minutes: Vec<f64>,
    planned: usize,
}

impl Row {
    /// Mean ± std of the score in per cent; what is missing is marked.
    fn score(&self) -> String {
        let mark = if self.scores.len() < self.planned { "*" } else { "" };
        let per_cent: Vec<f64> = self.scores.iter().map(|score| 100.0 * score).collect();
        format!("{}{mark}", spread(&per_cent, 2))
    }

    fn mean(&self) -> Option<f64> {
        (!self.scores.is_empty()).then(|| 100.0 * mean_and_std(&self.scores).0)
    }

    fn time(&self) -> String {
        if self.minutes.is_empty() { "–".into() } else { format!("{:.1}", mean_and_std(&self.minutes).0) }
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
    let mut rows: Vec<Row> = Vec::new();
    let Found { points, failed } = cells(folder, plan)?;
    for (point, trials) in points {
        let scores = trials.iter().filter_map(|t| t.number(&format!("report.{}", plan.metric))).collect();
        let minutes = trials.iter().filter_map(|t| Some(t.number("report.seconds.total")? / 60.0)).collect();
        rows.push(Row { cells: point, scores, minutes, planned: trials.len() });
    }
    let (done, planned) = (rows.iter().map(|r| r.scores.len()).sum::<usize>(), rows.iter().map(|r| r.planned).sum::<usize>());
    let base = base_of(folder, plan)?;
    let (_, unit) = Task::of(base.dataset).score();
    let (table, svg) = match kind {
        Kind::Scale => scale(&mut rows, unit, training_images(&base) as f64),
        Kind::Ablation => ablation(&rows, unit),
        Kind::Compare => compare(&mut rows, unit),
        Kind::Reproduce => reproduce(&base, plan, &rows, unit),
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
    let capacity = |row: &Row| row.cells.number("replay.capacity").unwrap_or(0.0);
    let share = |row: &Row| 100.0 * capacity(row) / original;
    rows.sort_by(|a, b| capacity(b).total_cmp(&capacity(a)));
    let mut table = format!("| synthetic data, % of the original | images | {unit} | minutes |\n| ---: | ---: | ---: | ---: |\n");
    for row in rows.iter() {
        let _ = writeln!(table, "| {:.0} | {:.0} | {} | {} |", share(row), capacity(row), row.score(), row.time());
    }
    let points = rows.iter().rev().filter_map(|row| Some((share(row), row.mean()?))).collect();
    (table, lines("synthetic data, % of the original", unit, &[Series { name: "student".into(), points }]))
}

fn ablation(rows: &[Row], unit: &str) -> (String, String) {
    let mut table = format!("| diversity factor | difficulty factor | priority sampling | {unit} | against all on | minutes |\n");
    table.push_str("| :---: | :---: | :---: | ---: | ---: | ---: |\n");
    let all = rows.first().and_then(Row::mean);
    let (mut names, mut values) = (Vec::new(), Vec::new());
    for row in rows {
        let on = ["phi.diversity", "phi.difficulty", "replay.draw"].map(|key| {
            let text = row.cells.text(key);
            text != "off" && text != "uniform"
        });
        let marks = on.map(|on| if on { "✓" } else { "–" });
        let against = row.mean().zip(all).map_or("–".into(), |(mean, all)| format!("{:+.2}", mean - all));
        let [a, b, c] = marks;
        let _ = writeln!(table, "| {a} | {b} | {c} | {} | {against} | {} |", row.score(), row.time());
        if let Some(mean) = row.mean() {
            let kept: Vec<&str> = ["div", "diff", "prio"].into_iter().zip(on).filter(|(_, on)| *on).map(|(name, _)| name).collect();
            names.push(if kept.is_empty() { "none".to_owned() } else { kept.join("+") });
            values.push(mean);
        }
    }
    (table, bars(unit, &names, &values))
}

fn compare(rows: &mut [Row], unit: &str) -> (String, String) {
    rows.sort_by(|a, b| b.mean().unwrap_or(f64::MIN).total_cmp(&a.mean().unwrap_or(f64::MIN)));
    let mut table = format!("| | {unit} | minutes |\n| --- | ---: | ---: |\n");
    for row in rows.iter() {
        let _ = writeln!(table, "| {} | {} | {} |", row.cells.words(), row.score(), row.time());
    }
    let drawn: Vec<(String, f64)> = rows.iter().filter_map(|row| Some((row.cells.words(), row.mean()?))).collect();
    let (names, values): (Vec<String>, Vec<f64>) = drawn.into_iter().unzip();
    (table, bars(unit, &names, &values))
}

/// The row beside the printed figure.
fn reproduce(config: &Config, plan: &Plan, rows: &[Row], unit: &str) -> (String, String) {
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
    let series = rows.iter().map(|row| Series {
        name: config.method.name().into(),
        points: row.scores.iter().enumerate().map(|(i, score)| (i as f64, 100.0 * score)).collect(),
    });
    let mut all: Vec<Series> = series.collect();
    all.extend(
        figure
            .map(|figure| Series { name: "published".into(), points: vec![(0.0, figure.top1), (plan_repeats(plan) as f64, figure.top1)] }),
    );
    (table, lines("run", unit, &all))
}

fn plan_repeats(plan: &Plan) -> usize {
    plan.trials.iter().map(|trial| trial.repeat).max().unwrap_or(1).saturating_sub(1).max(1)
}

/// Folder of a study, by name unless one is given.
pub fn folder_of(kind: Kind, dir: Option<&Path>) -> Result<SweepFolder> {
    SweepFolder::new(&dir.map_or_else(|| PathBuf::from("runs").join(kind.name()), Path::to_path_buf))
}
