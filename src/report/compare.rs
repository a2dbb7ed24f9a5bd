//! Several runs on one page: a table, curves, and pictures side by side.

use super::plot::{Series, dots, lines};
use super::{NOTHING, SHARES, cut_short, document, escape, histograms, minutes, picture, pictures_of, section, shares, study, table};
use crate::config::flat;
use crate::error::{Error, Result};
use crate::files;
use crate::metrics::{RoundRecord, Summary, TimingRecord, mean_and_std, read_table, spread};
use crate::task::Headline;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Groups whose curves, pictures and histograms are shown: more lines than there are colours cannot be told apart.
const SHOWN: usize = 6;

/// Runs that differ in nothing but the seed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// What sets it apart from the others.
    pub name: String,
    /// Run folders; one without a `report.json` is a run that is not finished.
    pub runs: Vec<PathBuf>,
}

/// The files of a finished run.
struct Run {
    summary: Summary,
    rounds: Vec<RoundRecord>,
    /// Minutes from the start to the end of each round.
    minutes: BTreeMap<u64, f64>,
    settings: BTreeMap<String, String>,
    picture: Option<(u64, PathBuf)>,
}

impl Run {
    fn read(folder: &Path) -> Result<Option<Self>> {
        if !folder.join("report.json").exists() {
            return Ok(None);
        }
        let config = folder.join("config.toml");
        let text = String::from_utf8_lossy(&files::read(&config)?).into_owned();
        let table = text.parse().map_err(|e: toml::de::Error| Error::file(&config, e.message().to_owned()))?;
        let mut values: BTreeMap<String, toml::Value> = BTreeMap::new();
        flat("", &table, &mut values);
        let times: Vec<TimingRecord> = read_table(&folder.join("timings.csv"))?;
        Ok(Some(Self {
            summary: Summary::read(folder)?,
            rounds: read_table(&folder.join("metrics.csv"))?,
            minutes: times.iter().map(|time| (time.round, time.seconds / 60.0)).collect(),
            settings: values.into_iter().map(|(key, value)| (key, value.to_string())).collect(),
            picture: pictures_of(folder).pop(),
        }))
    }

    fn score(&self) -> Option<f64> {
        Some(self.summary.student.scores.headline()?.value)
    }
}

struct Column<'a> {
    name: &'a str,
    planned: usize,
    runs: Vec<Run>,
}

impl Column<'_> {
    fn scores(&self) -> Vec<f64> {
        self.runs.iter().filter_map(Run::score).collect()
    }

    /// Their mean; without any it is the worst.
    fn rating(&self) -> f64 {
        let scores = self.scores();
        if scores.is_empty() { f64::NEG_INFINITY } else { mean_and_std(&scores).0 }
    }

    fn mean(&self, of: impl Fn(&Run) -> f64) -> f64 {
        mean_and_std(&self.runs.iter().map(of).collect::<Vec<_>>()).0
    }

    /// Mean over runs of a point a round, in the rounds in which all of them have one.
    fn curve(&self, of: impl Fn(&Run, &RoundRecord) -> Option<(f64, f64)>) -> Series {
        let points = |run: &Run| run.rounds.iter().filter_map(|r| Some((r.round, of(run, r)?))).collect::<BTreeMap<_, _>>();
        let curves: Vec<_> = self.runs.iter().map(points).collect();
        let rounds = curves.first().map_or_else(Vec::new, |first| first.keys().copied().collect());
        let point = |round: u64| {
            let all: Vec<(f64, f64)> = curves.iter().filter_map(|curve| curve.get(&round).copied()).collect();
            let mean = |of: fn(&(f64, f64)) -> f64| all.iter().map(of).sum::<f64>() / all.len() as f64;
            (all.len() == curves.len()).then(|| (mean(|p| p.0), mean(|p| p.1)))
        };
        Series { name: self.name.to_owned(), points: rounds.into_iter().filter_map(point).collect() }
    }
}

/// One self-contained HTML page about all groups, the best first. Where folders among `of` are studies, groups keep their order, below the
/// studies' own tables and plots.
///
/// # Errors
/// No group with a finished run; a result file that is missing or damaged, by name.
pub fn compare(title: &str, of: &[&Path], groups: &[Group]) -> Result<String> {
    let mut columns = Vec::new();
    for group in groups {
        let runs: Vec<Run> = group.runs.iter().map(|folder| Run::read(folder)).collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
        columns.push(Column { name: &group.name, planned: group.runs.len(), runs });
    }
    let headlines: Vec<Headline> = columns.iter().flat_map(|c| &c.runs).filter_map(|run| run.summary.student.scores.headline()).collect();
    let axes: BTreeSet<&str> = headlines.iter().map(|headline| headline.axis).collect();
    if axes.len() > 1 {
        let kinds = axes.into_iter().collect::<Vec<_>>().join(" and ");
        return Err(Error::refused(format!("{title}: {kinds} cannot be compared")).with_hint("make a page for each task"));
    }
    let studies: Vec<&Path> = of.iter().copied().filter(|folder| study::is_one(folder)).collect();
    if studies.is_empty() {
        columns.sort_by(|a, b| b.rating().total_cmp(&a.rating()));
    }
    let finished: Vec<&Column<'_>> = columns.iter().filter(|column| !column.runs.is_empty()).collect();
    if finished.is_empty() {
        return Err(Error::refused(format!("{title}: no run is finished yet, there is nothing to show")));
    }
    let shown = best(&finished);
    let mut body = String::new();
    studies.iter().try_for_each(|folder| study::head(&mut body, folder, title))?;
    // One for all, as was checked.
    let (axis, digits) = headlines.first().map_or(("score", 2), |headline| (headline.axis, headline.digits()));
    overview(&mut body, &columns, axis, digits);
    let scores: Vec<(String, Vec<f64>)> = finished.iter().map(|column| (column.name.to_owned(), column.scores())).collect();
    section(&mut body, "Scores", &[("Every run, and mean ± sample standard deviation", dots(axis, digits, &scores))]);
    curves(&mut body, &shown, finished.len(), axis);
    time(&mut body, &shown);
    gallery(&mut body, &shown)?;
    let first: Vec<(&str, &Summary)> = shown.iter().filter_map(|column| Some((column.name, &column.runs.first()?.summary))).collect();
    section(&mut body, "What the teacher sees in the images at the end, first run of each", &histograms(&first));
    differences(&mut body, &finished);
    Ok(document(&escape(title), &body))
}

/// The best of many, in the page's order.
fn best<'a>(columns: &[&'a Column<'a>]) -> Vec<&'a Column<'a>> {
    let mut order: Vec<usize> = (0..columns.len()).collect();
    order.sort_by(|&a, &b| columns[b].rating().total_cmp(&columns[a].rating()));
    order.truncate(SHOWN);
    order.sort_unstable();
    order.into_iter().map(|at| columns[at]).collect()
}

fn overview(out: &mut String, columns: &[Column<'_>], axis: &str, digits: usize) {
    let partial = columns.iter().any(|column| column.runs.len() < column.planned);
    let note = if partial { "; rows marked * are missing runs" } else { "" };
    let heads = ["", "runs", axis, "teacher", "minutes", "images made", "steps"].map(str::to_owned).to_vec();
    let line = |column: &Column<'_>| {
        let (done, planned) = (column.runs.len(), column.planned);
        let mark = if done < planned { "*" } else { "" };
        let mut cells = vec![format!("{}{mark}", escape(column.name)), format!("{done} of {planned}")];
        let Some(first) = column.runs.first() else {
            cells.resize(heads.len(), "–".into());
            return cells;
        };
        let teacher = first.summary.teacher.as_ref().and_then(|teacher| teacher.scores.headline());
        cells.extend([
            format!("<strong>{}</strong>", spread(&column.scores(), digits)),
            teacher.map_or("–".into(), |headline| format!("{:.digits$}", headline.value)),
            format!("{:.1}", column.mean(|run| run.summary.seconds.total) / 60.0),
            format!("{:.0}", column.mean(|run| run.summary.samples_synthesised as f64)),
            format!("{:.0}", column.mean(|run| run.summary.student_steps as f64)),
        ]);
        cells
    };
    let lines: Vec<Vec<String>> = std::iter::once(heads.clone()).chain(columns.iter().map(line)).collect();
    let _ = write!(
        out,
        "<h2>Runs</h2><p>Mean ± sample standard deviation over runs; scores are those of the last evaluation{note}.</p>{}",
        table(&lines)
    );
}

fn curves(out: &mut String, shown: &[&Column<'_>], all: usize, axis: &str) {
    let score = |run: &Run, r: &RoundRecord| Some((*run.minutes.get(&r.round)?, r.scores().headline()?.value));
    let accuracy = lines("minutes", axis, &shown.iter().map(|column| column.curve(score)).collect::<Vec<_>>());
    let over_rounds = |y_label: &str, of: fn(&RoundRecord) -> Option<f64>| {
        let curve = |column: &&Column<'_>| column.curve(|_, r| Some((r.round as f64, of(r)?)));
        lines("round", y_label, &shown.iter().map(curve).collect::<Vec<_>>())
    };
    if all > shown.len() {
        let _ = write!(out, "<p>From here on: the best {} of {all}.</p>", shown.len());
    }
    section(
        out,
        "Curves",
        &[
            ("Score over time, mean over runs", accuracy),
            ("Training loss, unweighted, mean over runs", over_rounds("mean over drawn rows", |r| r.loss_unweighted)),
            ("Statistics loss L_BN, mean over runs", over_rounds("L_BN", |r| r.loss_statistics)),
        ],
    );
}

fn time(out: &mut String, shown: &[&Column<'_>]) {
    let most = shown.iter().map(|c| c.mean(|run| run.summary.seconds.total)).fold(1e-9, f64::max);
    out.push_str("<h2>Where the time went (rank 0, mean over runs)</h2><section class=\"split wide\">");
    let mut keys = BTreeSet::new();
    for column in shown {
        let total = column.mean(|run| run.summary.seconds.total);
        let _ = write!(out, "<div class=\"bar\"><span>{}</span><div class=\"stack\">", escape(column.name));
        for (i, name) in SHARES.iter().enumerate() {
            let seconds = column.mean(|run| shares(&run.summary.seconds)[i]);
            if seconds >= NOTHING {
                keys.insert(i);
                let width = 100.0 * seconds / most;
                let _ = write!(out, "<i class=\"c{i}\" style=\"width:{width:.2}%\" title=\"{name}: {seconds:.1} s\"></i>");
            }
        }
        let _ = write!(out, "</div><em>{}</em></div>", minutes(total));
    }
    let legend: String = keys.iter().map(|&i| format!("<span class=\"key\"><i class=\"c{i}\"></i>{}</span>", SHARES[i])).collect();
    let _ = write!(out, "<p>{legend}</p></section>");
}

fn gallery(out: &mut String, shown: &[&Column<'_>]) -> Result<()> {
    let mut figures = String::new();
    for column in shown {
        if let Some((run, (round, path))) = column.runs.first().and_then(|run| Some((run, run.picture.as_ref()?))) {
            let caption = format!("{}, round {round}{}", escape(column.name), cut_short(&run.summary));
            figures.push_str(&picture(&caption, &run.summary, &files::read(path)?));
        }
    }
    if !figures.is_empty() {
        let _ = write!(
            out,
            "<h2>Synthetic images side by side</h2><p>The last picture of each first run; a row for each category its teacher sees.</p>\
             <section class=\"gallery\">{figures}</section>"
        );
    }
    Ok(())
}

/// Settings in which the first runs differ.
fn differences(out: &mut String, columns: &[&Column<'_>]) {
    let settings: Vec<&BTreeMap<String, String>> = columns.iter().filter_map(|c| Some(&c.runs.first()?.settings)).collect();
    let keys: BTreeSet<&String> = settings.iter().flat_map(|s| s.keys()).collect();
    // A key that an older run does not know is no difference.
    let differs = |key: &&String| settings.iter().filter_map(|s| s.get(*key)).collect::<BTreeSet<_>>().len() > 1;
    let differing: Vec<&String> = keys.into_iter().filter(differs).collect();
    if !differing.is_empty() {
        let heads: Vec<String> = std::iter::once(String::new()).chain(columns.iter().map(|column| escape(column.name))).collect();
        let line = |key: &&String| -> Vec<String> {
            let values = settings.iter().map(|s| s.get(*key).map_or("–".into(), |value| escape(value)));
            std::iter::once(format!("<code>{}</code>", escape(key))).chain(values).collect()
        };
        let lines: Vec<Vec<String>> = std::iter::once(heads).chain(differing.iter().map(line)).collect();
        let _ = write!(out, "<h2>Settings that differ</h2><p>Of each first run.</p>{}", table(&lines));
    }
    let versions: BTreeSet<&str> = columns.iter().flat_map(|c| &c.runs).map(|run| run.summary.version.as_str()).collect();
    let _ = write!(out, "<footer>ssdkd {}</footer>", escape(&versions.into_iter().collect::<Vec<_>>().join(", ")));
}
