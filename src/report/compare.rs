//! Several runs on one page: a table, curves, and pictures side by side.

use super::plot::{Series, dots, lines};
use super::{SHARES, buffer_bars, document, escape, figure_of, minutes, picture_rows, pictures_of, section, shares};
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
    times: Vec<TimingRecord>,
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
        Ok(Some(Self {
            summary: Summary::read(folder)?,
            rounds: read_table(&folder.join("metrics.csv"))?,
            times: read_table(&folder.join("timings.csv"))?,
            settings: values.into_iter().map(|(key, value)| (key, value.to_string())).collect(),
            picture: pictures_of(folder).pop(),
        }))
    }

    fn score(&self) -> Option<f64> {
        Some(self.summary.student.scores.headline()?.value)
    }

    /// Minutes and score of every evaluation.
    fn curve(&self) -> BTreeMap<u64, (f64, f64)> {
        let seconds: BTreeMap<u64, f64> = self.times.iter().map(|t| (t.round, t.seconds)).collect();
        let point = |r: &RoundRecord| Some((r.round, (seconds.get(&r.round)? / 60.0, r.scores().headline()?.value)));
        self.rounds.iter().filter_map(point).collect()
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

    fn mean(&self, of: impl Fn(&Run) -> f64) -> f64 {
        mean_and_std(&self.runs.iter().map(of).collect::<Vec<_>>()).0
    }

    /// Mean over runs, where all of them were evaluated.
    fn curve(&self) -> Series {
        let curves: Vec<_> = self.runs.iter().map(Run::curve).collect();
        let rounds = curves.first().map_or_else(Vec::new, |first| first.keys().copied().collect());
        let point = |round: u64| {
            let all: Vec<(f64, f64)> = curves.iter().filter_map(|curve| curve.get(&round).copied()).collect();
            let mean = |of: fn(&(f64, f64)) -> f64| all.iter().map(of).sum::<f64>() / all.len() as f64;
            (all.len() == curves.len()).then(|| (mean(|p| p.0), mean(|p| p.1)))
        };
        Series { name: self.name.to_owned(), points: rounds.into_iter().filter_map(point).collect() }
    }
}

/// One self-contained HTML page about all groups.
///
/// # Errors
/// No group with a finished run; a result file that is missing or damaged, by name.
pub fn compare(title: &str, groups: &[Group]) -> Result<String> {
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
    let best = |column: &Column<'_>| mean_and_std(&column.scores()).0;
    columns.sort_by(|a, b| (a.runs.is_empty().cmp(&b.runs.is_empty())).then(best(b).total_cmp(&best(a))));
    let finished: Vec<&Column<'_>> = columns.iter().filter(|column| !column.runs.is_empty()).collect();
    if finished.is_empty() {
        return Err(Error::refused(format!("{title}: no run is finished yet, there is nothing to show")));
    }
    let shown = &finished[..finished.len().min(SHOWN)];
    let mut body = String::new();
    // One for all, as was checked.
    let (axis, digits) = headlines.first().map_or(("score", 2), |headline| (headline.axis, headline.digits()));
    table(&mut body, &columns, axis, digits);
    let scores: Vec<(String, Vec<f64>)> = finished.iter().map(|column| (column.name.to_owned(), column.scores())).collect();
    section(&mut body, "Scores", &[("Every run, and mean ± sample standard deviation", dots(axis, digits, &scores))]);
    curves(&mut body, shown, finished.len(), axis);
    time(&mut body, shown);
    gallery(&mut body, shown)?;
    histograms(&mut body, shown);
    differences(&mut body, &finished);
    Ok(document(&escape(title), &body))
}

fn table(out: &mut String, columns: &[Column<'_>], axis: &str, digits: usize) {
    let partial = columns.iter().any(|column| column.runs.len() < column.planned);
    let note = if partial { "; rows marked * are missing runs" } else { "" };
    let _ = write!(
        out,
        "<p>Mean ± sample standard deviation over runs; scores are those of the last evaluation{note}.</p><table><tr><th></th>\
         <th>runs</th><th>{axis}</th><th>teacher</th><th>minutes</th><th>images made</th><th>steps</th></tr>"
    );
    for column in columns {
        let (done, planned) = (column.runs.len(), column.planned);
        let mark = if done < planned { "*" } else { "" };
        let _ = write!(out, "<tr><td>{}{mark}</td><td>{done} of {planned}</td>", escape(column.name));
        let Some(first) = column.runs.first() else {
            let _ = write!(out, "<td>–</td><td>–</td><td>–</td><td>–</td><td>–</td></tr>");
            continue;
        };
        let text = spread(&column.scores(), digits);
        let teacher = first.summary.teacher.as_ref().and_then(|teacher| teacher.scores.headline());
        let _ = write!(
            out,
            "<td><strong>{text}</strong></td><td>{}</td><td>{:.1}</td><td>{:.0}</td><td>{:.0}</td></tr>",
            teacher.map_or("–".into(), |headline| format!("{:.digits$}", headline.value)),
            column.mean(|run| run.summary.seconds.total) / 60.0,
            column.mean(|run| run.summary.samples_synthesised as f64),
            column.mean(|run| run.summary.student_steps as f64),
        );
    }
    out.push_str("</table>");
}

fn curves(out: &mut String, shown: &[&Column<'_>], all: usize, axis: &str) {
    let accuracy = lines("minutes", axis, &shown.iter().map(|column| column.curve()).collect::<Vec<_>>());
    let over_rounds = |of: fn(&RoundRecord) -> Option<f64>| {
        let points = |column: &Column<'_>| {
            let rounds = column.runs.first().into_iter().flat_map(|run| &run.rounds);
            rounds.filter_map(|r| Some((r.round as f64, of(r)?))).collect()
        };
        shown.iter().map(|column| Series { name: column.name.to_owned(), points: points(column) }).collect::<Vec<_>>()
    };
    if all > shown.len() {
        let _ = write!(out, "<p>From here on: the best {} of {all}.</p>", shown.len());
    }
    section(
        out,
        "Curves",
        &[
            ("Score over time, mean over runs", accuracy),
            ("Training loss, unweighted (first run)", lines("round", "mean over drawn rows", &over_rounds(|r| r.loss_unweighted))),
            ("Statistics loss L_BN (first run)", lines("round", "L_BN", &over_rounds(|r| r.loss_statistics))),
        ],
    );
}

fn time(out: &mut String, shown: &[&Column<'_>]) {
    let most = shown.iter().map(|c| c.mean(|run| run.summary.seconds.total)).fold(1e-9, f64::max);
    out.push_str("<h2>Where the time went (rank 0, mean over runs)</h2><section class=\"split wide\">");
    for column in shown {
        let total = column.mean(|run| run.summary.seconds.total);
        let _ = write!(out, "<div class=\"bar\"><span>{}</span><div class=\"stack\">", escape(column.name));
        for (i, name) in SHARES.iter().enumerate() {
            let seconds = column.mean(|run| shares(&run.summary.seconds)[i]);
            let _ = write!(out, "<i class=\"c{i}\" style=\"width:{:.2}%\" title=\"{name}: {seconds:.1} s\"></i>", 100.0 * seconds / most);
        }
        let _ = write!(out, "</div><em>{}</em></div>", minutes(total));
    }
    let legend: String =
        SHARES.iter().enumerate().map(|(i, name)| format!("<span class=\"key\"><i class=\"c{i}\"></i>{name}</span>")).collect();
    let _ = write!(out, "<p>{legend}</p></section>");
}

fn gallery(out: &mut String, shown: &[&Column<'_>]) -> Result<()> {
    let mut figures = String::new();
    let rows = shown.iter().find_map(|column| Some(picture_rows(&column.runs.first()?.summary))).unwrap_or_default();
    for column in shown {
        if let Some((round, path)) = column.runs.first().and_then(|run| run.picture.as_ref()) {
            let caption = format!("{}, round {round}", escape(column.name));
            figures.push_str(&figure_of(&caption, &files::read(path)?));
        }
    }
    if !figures.is_empty() {
        let _ = write!(
            out,
            "<h2>Synthetic images side by side</h2><p>The last picture of each first run; {}.</p><section class=\"gallery\">{figures}</section>",
            escape(&rows)
        );
    }
    Ok(())
}

fn histograms(out: &mut String, shown: &[&Column<'_>]) {
    let mut figures = Vec::new();
    for column in shown {
        if let Some([classes, confidences]) = column.runs.first().and_then(|run| buffer_bars(&run.summary)) {
            let name = escape(column.name);
            figures.push((format!("{name}: categories the teacher sees"), classes));
            figures.push((format!("{name}: difficulty, the teacher's confidence (low is hard)"), confidences));
        }
    }
    let figures: Vec<(&str, String)> = figures.iter().map(|(caption, svg)| (caption.as_str(), svg.clone())).collect();
    section(out, "What the buffers hold at the end", &figures);
}

/// Settings in which the first runs differ.
fn differences(out: &mut String, columns: &[&Column<'_>]) {
    let settings: Vec<&BTreeMap<String, String>> = columns.iter().filter_map(|c| Some(&c.runs.first()?.settings)).collect();
    let keys: BTreeSet<&String> = settings.iter().flat_map(|s| s.keys()).collect();
    // A key that an older run does not know is no difference.
    let differs = |key: &&String| settings.iter().filter_map(|s| s.get(*key)).collect::<BTreeSet<_>>().len() > 1;
    let differing: Vec<&String> = keys.into_iter().filter(differs).collect();
    let heads: String = columns.iter().map(|column| format!("<th>{}</th>", escape(column.name))).collect();
    if !differing.is_empty() {
        let _ = write!(out, "<h2>Settings that differ</h2><table><tr><th></th>{heads}</tr>");
    }
    for key in &differing {
        let cells: String = settings.iter().map(|s| format!("<td>{}</td>", s.get(*key).map_or("–".into(), |v| escape(v)))).collect();
        let _ = write!(out, "<tr><td><code>{}</code></td>{cells}</tr>", escape(key));
    }
    let versions: BTreeSet<&str> = columns.iter().flat_map(|c| &c.runs).map(|run| run.summary.version.as_str()).collect();
    out.push_str(if differing.is_empty() { "" } else { "</table>" });
    let _ = write!(out, "<footer>ssdkd {}</footer>", escape(&versions.into_iter().collect::<Vec<_>>().join(", ")));
}
