//! What a study shows: a table laid out by its kind, and a plot.

use super::collect::{Found, found};
use super::folder::SweepFolder;
use super::plan::Plan;
use super::published::published;
use super::study::{Kind, PAIR, VARIANT, training_images};
use crate::config::{Config, load_with};
use crate::error::{Error, Result};
use crate::metrics::{mean_and_std, spread};
use crate::report::{Series, dots, lines, to_png};
use crate::task::Task;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;

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
        Kind::Scale => scale(&mut rows, unit, training_images(&base)? as f64),
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

/// Sizes that were never filled are those of what was made.
fn scale(rows: &mut [Row], unit: &str, original: f64) -> (String, String) {
    let capacity = |row: &Row| row.point.set.number("replay.capacity").unwrap_or(0.0);
    let made = |row: &Row| row.point.trials.iter().find_map(|trial| trial.number("report.samples_synthesised")).unwrap_or(f64::INFINITY);
    let share = |images: f64| (10_000.0 * images / original).round() / 100.0;
    rows.sort_by(|a, b| capacity(b).total_cmp(&capacity(a)));
    let mut table = format!("| synthetic data, % of the original | images | {unit} | minutes |\n| ---: | ---: | ---: | ---: |\n");
    for row in rows.iter() {
        let (most, made) = (capacity(row), made(row));
        let never_full = if made < most { format!(" ({made:.0} made)") } else { String::new() };
        let _ = writeln!(table, "| {} | {most:.0}{never_full} | {} | {} |", share(most), row.score(), row.time());
    }
    let points = rows.iter().rev().filter_map(|row| Some((share(capacity(row).min(made(row))), row.mean()?))).collect();
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
    (table, dots(unit, 2, &rows.iter().map(Row::dots).collect::<Vec<_>>()))
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
    (table, dots(unit, 2, &rows.iter().map(Row::dots).collect::<Vec<_>>()))
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
            row.minutes.iter().fold(0.0, |sum, minutes| sum + minutes) / 60.0,
        );
    }
    if let Some(figure) = &figure {
        let _ = writeln!(table, "\n{}", figure.source);
    }
    let drawn = rows.iter().map(|row| (config.method.name().to_owned(), row.scores.clone()));
    let printed = figure.map(|figure| ("published".to_owned(), vec![figure.top1]));
    (table, dots(unit, 2, &drawn.chain(printed).collect::<Vec<_>>()))
}

#[cfg(test)]
mod tests {
    use super::super::collect::Cells;
    use super::*;
    use crate::config::{MethodName, ModelName};

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
        (config.inversion.steps, config.inversion.lr_generator, config.inversion.lr_latent) = (5, 3e-3, 0.01);
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
