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
use toml::Value;

/// One row of a study's table.
struct Row {
    point: Found,
    /// In per cent, by repeat; none of runs that are not done.
    scores: Vec<Option<f64>>,
    /// The teacher's, where it was scored.
    teacher: Option<f64>,
    minutes: Vec<f64>,
}

impl Row {
    fn of(point: Found, metric: &str) -> Self {
        let numbers = |column: &str| point.trials.iter().filter_map(|trial| trial.number(column)).collect::<Vec<_>>();
        Self {
            scores: point.trials.iter().map(|trial| Some(100.0 * trial.number(&format!("report.{metric}"))?)).collect(),
            teacher: numbers(&format!("report.{}", metric.replace("student.", "teacher."))).first().map(|score| 100.0 * score),
            minutes: numbers("report.seconds.total").iter().map(|seconds| seconds / 60.0).collect(),
            point,
        }
    }

    /// Mean ± std of the score; what is missing is marked.
    fn score(&self) -> String {
        let mark = if self.scores.contains(&None) { "*" } else { "" };
        format!("{}{mark}", spread(&self.done(), 2))
    }

    /// Scores of the runs that are done.
    fn done(&self) -> Vec<f64> {
        self.scores.iter().copied().flatten().collect()
    }

    /// By how much its mean is above another's, over the seeds that both have.
    fn above(&self, other: &Self) -> Option<f64> {
        let both: Vec<f64> = self.scores.iter().zip(&other.scores).filter_map(|(mine, theirs)| Some((*mine)? - (*theirs)?)).collect();
        (!both.is_empty()).then(|| mean_and_std(&both).0)
    }

    fn mean(&self) -> Option<f64> {
        let done = self.done();
        (!done.is_empty()).then(|| mean_and_std(&done).0)
    }

    fn time(&self) -> String {
        if self.minutes.is_empty() { "–".into() } else { format!("{:.1}", mean_and_std(&self.minutes).0) }
    }

    /// The name of its value of an axis.
    fn name(&self, axis: &str) -> &str {
        self.point.names.iter().find(|(name, _)| name == axis).map_or("", |(_, name)| name)
    }

    fn dots(&self) -> (String, Vec<f64>) {
        (self.point.title.clone(), self.done())
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
    let (done, planned) = (rows.iter().map(|r| r.done().len()).sum::<usize>(), rows.iter().map(|r| r.point.trials.len()).sum::<usize>());
    let base = config_of(folder, plan, &[])?;
    let unit = Task::unit(&plan.metric);
    let (table, svg) = match kind {
        Kind::Scale => scale(&mut rows, unit, training_images(&base)? as f64),
        Kind::Ablation => ablation(&rows, unit),
        Kind::Compare => compare(&mut rows, unit),
        Kind::Reproduce => reproduce(&configs(folder, plan)?, &rows, unit),
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

/// The study's base configuration with what a point sets, whatever the environment says now.
fn config_of(folder: &SweepFolder, plan: &Plan, set: &[(String, Value)]) -> Result<Config> {
    Ok(load_with(&[folder.path().join(&plan.config)], set.iter().cloned().collect(), "")?.config)
}

/// Of every point, in their order.
fn configs(folder: &SweepFolder, plan: &Plan) -> Result<Vec<Config>> {
    let firsts: BTreeMap<usize, &[(String, Value)]> = plan.trials.iter().rev().map(|trial| (trial.point, &trial.set[..])).collect();
    firsts.into_values().map(|set| config_of(folder, plan, set)).collect()
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
    for row in rows {
        let on =
            ["phi.diversity", "phi.difficulty", "replay.draw"].map(|key| !["off", "uniform"].contains(&row.point.set.text(key).as_str()));
        let [a, b, c] = on.map(|on| if on { "✓" } else { "–" });
        let against = rows.first().and_then(|all| row.above(all)).map_or("–".into(), |points| format!("{points:+.2}"));
        let _ = writeln!(table, "| {a} | {b} | {c} | {} | {against} | {} |", row.score(), row.time());
    }
    (table, dots(unit, 2, &rows.iter().map(Row::dots).collect::<Vec<_>>()))
}

/// The teacher, then variants below each other, the best first; where there are pairs, a column for each, in the order in which they were
/// given.
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
        let teacher = rows.iter().find_map(|row| row.teacher).map_or(String::new(), |score| format!("| teacher | {score:.2} | |\n"));
        format!("| | {unit} | minutes |\n| --- | ---: | ---: |\n{teacher}{}", rows.iter().map(line).collect::<String>())
    } else {
        let of = |pair: &String| rows.iter().filter(|row| row.name(PAIR) == pair).find_map(|row| row.teacher);
        let teachers: Vec<String> = pairs.iter().map(|pair| of(pair).map_or("–".into(), |score| format!("{score:.2}"))).collect();
        let scores = crossed(rows, &pairs, unit, Some(("teacher", teachers)), Row::score);
        format!("{scores}\nMinutes of a run:\n\n{}", crossed(rows, &pairs, "", None, Row::time))
    };
    (table, dots(unit, 2, &rows.iter().map(Row::dots).collect::<Vec<_>>()))
}

/// Variants × pairs, below a first line if there is one.
fn crossed<'a>(
    rows: &'a [Row],
    pairs: &[String],
    corner: &str,
    first: Option<(&'a str, Vec<String>)>,
    cell: impl Fn(&Row) -> String,
) -> String {
    let mut lines: Vec<(&str, Vec<String>)> = first.into_iter().collect();
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

/// Each pair beside its printed figure, and what was set otherwise than for that.
fn reproduce(configs: &[Config], rows: &[Row], unit: &str) -> (String, String) {
    let mut table = format!(
        "| data set | method | pair | teacher | {unit} | published | difference | hours of all runs |\n\
         | --- | --- | --- | ---: | ---: | ---: | ---: | ---: |\n"
    );
    let (mut notes, mut drawn): (Vec<String>, Vec<(String, Vec<f64>)>) = Default::default();
    for (config, row) in configs.iter().zip(rows) {
        let figure = published(config);
        let (printed, difference) = figure.as_ref().map_or(("not published".into(), "–".into()), |figure| {
            let difference = row.mean().map_or("–".into(), |mean| format!("{:+.2}", mean - figure.top1));
            (format!("{:.2} ({})", figure.top1, figure.row), difference)
        });
        let pair = format!("{} → {}", config.teacher.model.name(), config.student.model.name());
        let _ = writeln!(
            table,
            "| {} | {} | {pair} | {} | {} | {printed} | {difference} | {:.2} |",
            config.dataset.name(),
            config.method.name(),
            row.teacher.map_or("–".into(), |score| format!("{score:.2}")),
            row.score(),
            row.minutes.iter().fold(0.0, |sum, minutes| sum + minutes) / 60.0,
        );
        let name = if rows.len() == 1 { config.method.name().to_owned() } else { pair.clone() };
        drawn.push((name.clone(), row.done()));
        if let Some(figure) = figure {
            drawn.push((if rows.len() == 1 { "published".into() } else { format!("{name}, published") }, vec![figure.top1]));
            let other = figure.deviations(config).into_iter().map(|(key, value, printed)| format!("`{key}` {value} ({printed})"));
            let other = other.collect::<Vec<_>>().join(", ");
            if !other.is_empty() {
                notes.push(format!("**Not the settings of the figure**, {pair}: {other}."));
            }
            notes.push(figure.source.to_owned());
        }
    }
    notes.sort();
    notes.dedup();
    for note in notes {
        let _ = writeln!(table, "\n{note}");
    }
    (table, dots(unit, 2, &drawn))
}

#[cfg(test)]
mod tests {
    use super::super::collect::Cells;
    use super::super::table::Cell;
    use super::*;

    /// A row whose runs have ended with these scores, each after half an hour.
    fn row(title: &str, names: &[(&str, &str)], scores: &[f64]) -> Row {
        let names = names.iter().map(|(axis, name)| ((*axis).to_owned(), (*name).to_owned())).collect();
        let trials = scores.iter().map(|_| Cells::default()).collect();
        let point = Found { title: title.into(), names, set: Cells::default(), trials };
        Row { point, scores: scores.iter().copied().map(Some).collect(), teacher: Some(93.6), minutes: vec![30.0; scores.len()] }
    }

    /// Fast-5 on CIFAR-10, WRN-40-2 → WRN-16-1: 88.90 printed.
    #[test]
    fn a_reproduced_row_says_how_far_it_is_from_print() {
        let file = |name: &str| PathBuf::from(format!("{}/configs/{name}.toml", env!("CARGO_MANIFEST_DIR")));
        let files = ["cifar10/wrn40_2-wrn16_1", "methods/fast_meta"].map(file);
        let sets = [("parallel.logical_ranks".to_owned(), Value::from(1)), ("inversion.batch_size".into(), 256.into())];
        let config = load_with(&files, sets.into(), "the test").unwrap().config;
        let scores = [row("", &[], &[88.0, 89.0, 90.0])];
        let (table, svg) = reproduce(std::slice::from_ref(&config), &scores, "top-1, %");
        let wanted = "| cifar10 | fast_meta | wrn40_2 → wrn16_1 | 93.60 | 89.00 ± 1.00 | 88.90 (Fast-5) | +0.10 | 1.50 |";
        assert!(table.contains(wanted) && !table.contains("Not the settings"), "{table}");
        assert!(svg.contains("published") && svg.contains("88.90"));
        // A second pair, made in another way.
        let mut other =
            load_with(&[file("cifar10/vgg11-resnet18"), file("methods/fast_meta")], BTreeMap::new(), "the test").unwrap().config;
        other.train.rounds = 1;
        let (table, svg) = reproduce(&[config, other], &[row("a", &[], &[89.0]), row("b", &[], &[])], "top-1, %");
        assert!(table.contains("| cifar10 | fast_meta | vgg11 → resnet18 | 93.60 | – | 89.94 (Fast-5) | – | 0.00 |"), "{table}");
        let wanted = "**Not the settings of the figure**, vgg11 → resnet18: `inversion.batch_size` 64 (256), `parallel.logical_ranks` 4 (1), `train.rounds` 1 (220).";
        assert!(table.contains(wanted), "{table}");
        assert!(svg.contains("wrn40_2 → wrn16_1, published"));
    }

    /// Seeds that one row is missing do not move the other's side of a difference.
    #[test]
    fn rows_are_compared_over_the_seeds_that_both_have() {
        let of = |scores: &[Option<f64>]| {
            let trial = |score: &Option<f64>| Cells(vec![("report.student.top1".into(), score.map(Cell::Number))]);
            Row::of(Found { trials: scores.iter().map(trial).collect(), ..row("", &[], &[]).point }, "student.top1")
        };
        let (all, less) = (of(&[Some(0.7), Some(0.9), Some(0.8)]), of(&[None, Some(0.89), None]));
        let (table, _) = ablation(&[all, less], "top-1, %");
        assert!(table.contains("| 89.00* | -1.00 |"), "{table}");
    }

    #[test]
    fn a_cell_that_no_run_fills_stays_open() {
        let of = |variant, pair, scores: &[f64]| row("", &[(VARIANT, variant), (PAIR, pair)], scores);
        let mut rows = [of("a", "one", &[1.0]), of("a", "two", &[2.0, 4.0]), of("b", "one", &[])];
        let (table, _) = compare(&mut rows, "mIoU, %");
        assert!(
            table.starts_with(
                "| mIoU, % | one | two |\n| --- | ---: | ---: |\n| teacher | 93.60 | 93.60 |\n| a | 1.00 | 3.00 ± 1.41 |\n| b | –"
            ),
            "{table}"
        );
    }
}
