//! What a sweep came to: a row for every trial, and a line for every point.

use super::folder::SweepFolder;
use super::halving::Goal;
use super::plan::{Plan, Trial, shown};
use super::stand::{Stand, Standing, Trials};
use super::table::{Cell, Table};
use crate::error::{Error, Result};
use crate::files;
use crate::metrics::{mean_and_std, spread};
use crate::report::Group;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Writes `results.csv`, `results.parquet` and `results.md` into the sweep's folder and returns their paths and the last one's text.
///
/// A row has the trial, how it stands, what it sets, and every single value of its `report.json` under `report.`; a trial without a
/// report has the rest. `metrics` instead of the plan's: columns of the Markdown table, which is sorted by the first, the better end of it
/// first.
///
/// # Errors
/// A metric that no report has, with those there are; a damaged report; a folder that cannot be written.
pub fn collect(folder: &SweepFolder, plan: &Plan, metrics: &[String]) -> Result<(Vec<PathBuf>, String)> {
    let trials = Trials::read(folder, plan, &BTreeSet::new())?;
    let mut table = Table::default();
    for (trial, standing) in plan.trials.iter().zip(&trials.0) {
        table.push(row(folder, trial, standing)?);
    }
    let metrics = if metrics.is_empty() { vec![plan.metric.clone()] } else { metrics.to_vec() };
    let is_there = |metric: &&String| table.columns.iter().any(|column| column.strip_prefix("report.") == Some(metric));
    if let Some(missing) = metrics.iter().find(|metric| !is_there(metric)).filter(|_| trials.0.iter().any(|t| t.stand == Stand::Done)) {
        let known: Vec<&str> = table.columns.iter().filter_map(|column| column.strip_prefix("report.")).collect();
        return Err(Error::config("metric", format!("no report has `{missing}`: there are {}", known.join(", "))));
    }
    let page = page(&folder.name(), plan, &table, &trials, &metrics);
    let mut written = Vec::new();
    for (name, bytes) in [("results.csv", table.csv()?), ("results.parquet", table.parquet()?), ("results.md", page.clone().into_bytes())] {
        let path = folder.path().join(name);
        files::write(&path, &bytes)?;
        written.push(path);
    }
    Ok((written, page))
}

/// The trials of each point, for one page about all of them.
pub fn groups(folder: &SweepFolder, plan: &Plan) -> Vec<Group> {
    let mut points: BTreeMap<usize, Group> = BTreeMap::new();
    for trial in &plan.trials {
        let name = || Some(trial.title()).filter(|title| !title.is_empty()).unwrap_or_else(|| folder.name());
        let group = points.entry(trial.point).or_insert_with(|| Group { name: name(), runs: Vec::new() });
        group.runs.push(folder.trial(trial));
    }
    points.into_values().collect()
}

/// Everything that is known of a trial, by column.
fn row(folder: &SweepFolder, trial: &Trial, standing: &Standing) -> Result<Vec<(String, Option<Cell>)>> {
    let path = folder.trial(trial);
    let text = |text: String| Some(Cell::Text(text));
    let mut row = vec![
        ("trial".to_owned(), text(trial.name())),
        ("point".into(), Some(Cell::Whole(trial.point as i64))),
        ("repeat".into(), Some(Cell::Whole(trial.repeat as i64))),
        ("state".into(), text(standing.stand.name().into())),
        ("rounds".into(), Some(Cell::Whole(standing.rounds_done(&path, trial) as i64))),
    ];
    row.extend(trial.names.iter().map(|(axis, name)| (axis.clone(), text(name.clone()))));
    row.extend(trial.set.iter().map(|(key, value)| (key.clone(), Some(Cell::of_toml(value)))));
    let rungs = standing.outcome.iter().flat_map(|outcome| outcome.rungs.iter().enumerate());
    row.extend(rungs.map(|(i, value)| (format!("rung.{}", i + 1), value.map(Cell::Number))));
    if standing.stand == Stand::Done {
        let report = report(&path)?;
        values("report", &report, &mut row);
        // The one list that is worth a column.
        let tags: Vec<&str> = report["tags"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        row.extend((!tags.is_empty()).then(|| ("report.tags".to_owned(), text(tags.join(",")))));
    }
    Ok(row)
}

/// What is known of a trial, or what all trials of a point set.
#[derive(Default)]
pub(super) struct Cells(pub(super) Vec<(String, Option<Cell>)>);

impl Cells {
    fn get(&self, column: &str) -> Option<&Cell> {
        self.0.iter().find(|(name, _)| name == column)?.1.as_ref()
    }

    pub(super) fn number(&self, column: &str) -> Option<f64> {
        self.get(column)?.number()
    }

    pub(super) fn text(&self, column: &str) -> String {
        self.get(column).map_or_else(String::new, Cell::to_string)
    }
}

/// A point of a sweep.
pub(super) struct Found {
    /// What tables call it.
    pub title: String,
    /// The name of its value of each axis, where the sweep file has names.
    pub names: Vec<(String, String)>,
    /// What it sets.
    pub set: Cells,
    /// Everything that is known of its trials.
    pub trials: Vec<Cells>,
}

/// A sweep by its points, and a line for every trial that failed or lost its runner.
pub(super) fn found(folder: &SweepFolder, plan: &Plan) -> Result<(Vec<Found>, Vec<String>)> {
    let trials = Trials::read(folder, plan, &BTreeSet::new())?;
    let mut points: BTreeMap<usize, Found> = BTreeMap::new();
    for (trial, standing) in plan.trials.iter().zip(&trials.0) {
        let set = || trial.set.iter().filter(|(key, _)| key != "seed").map(|(key, value)| (key.clone(), Some(Cell::of_toml(value))));
        let new = || Found { title: trial.title(), names: trial.names.clone(), set: Cells(set().collect()), trials: Vec::new() };
        points.entry(trial.point).or_insert_with(new).trials.push(Cells(row(folder, trial, standing)?));
    }
    Ok((points.into_values().collect(), failed(plan, &trials)))
}

fn report(folder: &Path) -> Result<Value> {
    let path = folder.join("report.json");
    serde_json::from_slice(&files::read(&path)?).map_err(|e| Error::file(&path, e.to_string()))
}

/// Every single value under its dotted name.
pub(super) fn values(prefix: &str, value: &Value, row: &mut Vec<(String, Option<Cell>)>) {
    match value {
        Value::Object(fields) => fields.iter().for_each(|(name, inner)| values(&format!("{prefix}.{name}"), inner, row)),
        leaf => row.extend(Cell::of_json(leaf).map(|cell| (prefix.to_owned(), Some(cell)))),
    }
}

/// Trials of a point.
struct Line {
    point: usize,
    rows: Vec<usize>,
    done: usize,
    best: Option<f64>,
}

fn page(name: &str, plan: &Plan, table: &Table, trials: &Trials, metrics: &[String]) -> String {
    let number = |row: usize, metric: &str| table.get(row, &format!("report.{metric}")).and_then(Cell::number);
    let of = |rows: &[usize], metric: &str| rows.iter().filter_map(|&row| number(row, metric)).collect::<Vec<f64>>();
    let mut points: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    plan.trials.iter().enumerate().for_each(|(row, trial)| points.entry(trial.point).or_default().push(row));
    let mut lines: Vec<Line> = points
        .into_iter()
        .map(|(point, rows)| {
            let found = of(&rows, &metrics[0]);
            let done = rows.iter().filter(|&&row| trials.0[row].stand == Stand::Done).count();
            Line { point, done, best: (!found.is_empty()).then(|| mean_and_std(&found).0), rows }
        })
        .collect();
    let goal = if metrics[0] == plan.metric { plan.goal } else { Goal::of(&metrics[0]) };
    lines.sort_by(|a, b| (b.best.is_some().cmp(&a.best.is_some())).then(goal.order(a.best, b.best)).then(a.point.cmp(&b.point)));

    // Axes whose values have names, and keys that some trials set, but for the seed.
    let mut keys: Vec<&str> = Vec::new();
    let axes = plan.trials.iter().flat_map(|trial| &trial.names).map(|(axis, _)| axis);
    for key in axes.chain(plan.trials.iter().flat_map(|trial| &trial.set).map(|(key, _)| key)) {
        if key != "seed" && !keys.contains(&key.as_str()) {
            keys.push(key);
        }
    }
    let whole = lines.iter().filter(|line| line.done == line.rows.len()).count();
    let done = lines.iter().map(|line| line.done).sum::<usize>();
    let mut out = format!("# {name}\n\n{done} of {} trials done; {whole} of {} points whole.", plan.trials.len(), lines.len());
    let partial = lines.len() - whole;
    if partial > 0 {
        let _ = write!(out, " A point marked * is missing repeats.");
    }
    let _ = write!(out, " Mean ± sample standard deviation over repeats; best {} first.\n\n| point |", metrics[0]);
    for column in keys.iter().copied().chain(metrics.iter().map(String::as_str)) {
        let _ = write!(out, " {column} |");
    }
    let _ = write!(out, " repeats |\n| --- |{}", " --- |".repeat(keys.len() + metrics.len() + 1));
    for line in &lines {
        let mark = if line.done < line.rows.len() { "*" } else { "" };
        let _ = write!(out, "\n| {}{mark} |", line.point);
        for key in &keys {
            let cell = table.get(line.rows[0], key).map_or("–".into(), |cell| cell.to_string().replace('|', "\\|"));
            let _ = write!(out, " {cell} |");
        }
        for metric in metrics {
            let _ = write!(out, " {} |", spread(&of(&line.rows, metric), 4));
        }
        let _ = write!(out, " {} of {}{} |", line.done, line.rows.len(), others(line, trials));
    }
    out.push('\n');
    let failed = failed(plan, trials).concat();
    if !failed.is_empty() {
        let _ = write!(out, "\nFailed:\n\n{failed}");
    }
    out
}

/// A line for every trial that failed or lost its runner.
fn failed(plan: &Plan, trials: &Trials) -> Vec<String> {
    let line = |(trial, standing): (&Trial, &Standing)| {
        let reason = match &standing.stand {
            Stand::Failed(reason) => reason,
            Stand::Running(claim) if claim.is_dead_here() => "its runner is dead",
            _ => return None,
        };
        Some(format!("* {} ({}): {reason}\n", trial.name(), shown(&trial.set)))
    };
    plan.trials.iter().zip(&trials.0).filter_map(line).collect()
}

/// What became of repeats that are not done.
fn others(line: &Line, trials: &Trials) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    line.rows
        .iter()
        .map(|&row| trials.0[row].stand.name())
        .filter(|name| *name != "done")
        .for_each(|name| *counts.entry(name).or_default() += 1);
    counts.iter().map(|(name, count)| format!(", {count} {name}")).collect()
}
