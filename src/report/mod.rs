//! Reports on runs: one self-contained HTML page, about one or about several. Reads result files only, so that it works on any old run.

mod compare;
mod plot;
mod png;

pub use compare::{Group, compare};
use plot::bars;
pub use plot::{Series, dots, lines};
pub use png::to_png;

use crate::error::Result;
use crate::files;
use crate::metrics::{PICTURE_ROWS, RoundRecord, Seconds, Summary, TimingRecord, read_table};
use base64::Engine;
use std::fmt::Write;
use std::path::{Path, PathBuf};

const STYLE: &str = include_str!("style.css");

/// Pictures shown: the first, the last, and some in between.
const PICTURES: usize = 6;

/// Writes `report.html` into a run folder.
///
/// # Errors
/// A result file that is missing or damaged, by name.
pub fn write(folder: &Path) -> Result<()> {
    files::write(&folder.join("report.html"), of_run(folder)?.as_bytes())
}

/// The page about one finished run.
///
/// # Errors
/// A result file that is missing or damaged, by name.
pub fn of_run(folder: &Path) -> Result<String> {
    let summary = Summary::read(folder)?;
    let rounds: Vec<RoundRecord> = read_table(&folder.join("metrics.csv"))?;
    let times: Vec<TimingRecord> = read_table(&folder.join("timings.csv"))?;
    let config = String::from_utf8_lossy(&files::read(&folder.join("config.toml"))?).into_owned();
    Ok(page(&summary, &rounds, &times, &config, &pictures(folder)?))
}

/// Round and file of every picture of a run, in order.
fn pictures_of(folder: &Path) -> Vec<(u64, PathBuf)> {
    let round_of = |path: &PathBuf| path.file_stem()?.to_str()?.strip_prefix("round-")?.parse::<u64>().ok();
    let entries = std::fs::read_dir(folder.join("pictures")).map(|all| all.filter_map(|e| Some(e.ok()?.path())).collect::<Vec<_>>());
    let mut all: Vec<(u64, PathBuf)> = entries.unwrap_or_default().into_iter().filter_map(|p| Some((round_of(&p)?, p))).collect();
    all.sort();
    all
}

/// (Round, PNG data) of the pictures to show.
fn pictures(folder: &Path) -> Result<Vec<(u64, Vec<u8>)>> {
    let all = pictures_of(folder);
    let count = all.len().min(PICTURES);
    let chosen = (0..count).map(|i| if count == 1 { 0 } else { i * (all.len() - 1) / (count - 1) });
    chosen.map(|i| Ok((all[i].0, files::read(&all[i].1)?))).collect()
}

fn page(summary: &Summary, rounds: &[RoundRecord], times: &[TimingRecord], config: &str, pictures: &[(u64, Vec<u8>)]) -> String {
    let mut body = String::new();
    headline(&mut body, summary);
    curves(&mut body, summary.trained(), rounds, times);
    time_split(&mut body, summary);
    classes(&mut body, summary);
    histograms(&mut body, summary);
    gallery(&mut body, summary, pictures);
    details(&mut body, summary, config);
    document(&format!("{} on {}", escape(&summary.method), escape(&summary.dataset)), &body)
}

/// The page around a body; the title is HTML.
fn document(title: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{title}</title><style>{STYLE}</style></head><body><main><h1>{title}</h1>{body}</main></body></html>\n"
    )
}

fn headline(out: &mut String, summary: &Summary) {
    let mut tile = |name: &str, value: String, note: String| {
        let _ = write!(out, "<div class=\"tile\"><span>{name}</span><strong>{value}</strong><em>{}</em></div>", escape(&note));
    };
    let scored = [(summary.trained(), Some(&summary.student)), ("teacher", summary.teacher.as_ref())];
    for (role, network) in scored {
        if let Some((network, score)) = network.and_then(|n| Some((n, n.scores.headline()?))) {
            tile(&format!("{role} {}", score.name), score.text(), network.model.clone());
        }
    }
    tile("time", minutes(summary.seconds.total), format!("ranks: {}, threads each: {}", summary.ranks, summary.threads));
    if summary.samples_synthesised > 0 {
        tile("synthetic images", summary.samples_synthesised.to_string(), "made from noise".into());
    }
    tile(&format!("{} steps", summary.trained()), summary.student_steps.to_string(), format!("seed {}", summary.seed));
    *out = format!("<section class=\"tiles\">{out}</section>");
}

fn curves(out: &mut String, trained: &str, rounds: &[RoundRecord], times: &[TimingRecord]) {
    let over_rounds = |name: &str, of: &dyn Fn(&RoundRecord) -> Option<f64>| Series {
        name: name.into(),
        points: rounds.iter().filter_map(|r| Some((r.round as f64, of(r)?))).collect(),
    };
    let seconds_of = |round: u64| times.iter().find(|t| t.round == round).map(|t| t.seconds);
    let scores: Vec<_> = rounds.iter().filter_map(|r| Some((seconds_of(r.round)? / 60.0, r.scores().headline()?))).collect();
    let axis = scores.first().map_or("", |(_, score)| score.axis);
    let score = Series { name: trained.into(), points: scores.iter().map(|(at, score)| (*at, score.value)).collect() };
    let name = scores.first().map_or("Score", |(_, score)| score.name);
    let accuracy = format!("{name} of the {trained} over time");
    let figures = [
        (accuracy.as_str(), lines("minutes", axis, &[score])),
        (
            "Training loss",
            lines(
                "round",
                "mean over drawn rows",
                &[over_rounds("weighted", &|r| r.loss_student), over_rounds("unweighted", &|r| r.loss_unweighted)],
            ),
        ),
        ("Statistics loss L_BN", lines("round", "L_BN", &[over_rounds("L_BN", &|r| r.loss_statistics)])),
        (
            "Task and adversarial loss",
            lines(
                "round",
                "last inner step",
                &[over_rounds("φ-weighted task", &|r| r.loss_task), over_rounds("disagreement", &|r| r.loss_adversarial)],
            ),
        ),
        (
            "Class balance of the buffer (1 = all categories equal)",
            lines("round", "entropy / max", &[over_rounds("", &|r| r.buffer_class_balance)]),
        ),
        ("Mean φ", lines("round", "φ", &[over_rounds("φ", &|r| r.phi)])),
    ];
    section(out, "Curves", &figures);
}

fn section(out: &mut String, title: &str, figures: &[(&str, String)]) {
    let drawn: Vec<_> = figures.iter().filter(|(_, svg)| !svg.is_empty()).collect();
    if drawn.is_empty() {
        return;
    }
    let _ = write!(out, "<h2>{title}</h2><section class=\"figures\">");
    for (caption, svg) in drawn {
        let _ = write!(out, "<figure><figcaption>{caption}</figcaption>{svg}</figure>");
    }
    out.push_str("</section>");
}

/// What the time of a run is divided into.
const SHARES: [&str; 6] = ["inversion", "sampling", "distillation", "communication", "evaluation", "other"];

/// Seconds of each.
fn shares(s: &Seconds) -> [f64; 6] {
    let known = [s.inversion, s.sampling, s.distillation, s.communication, s.evaluation];
    let other = (s.total - known.iter().sum::<f64>()).max(0.0);
    [known[0], known[1], known[2], known[3], known[4], other]
}

fn time_split(out: &mut String, summary: &Summary) {
    let s = &summary.seconds;
    let total = s.total.max(1e-9);
    let _ = write!(out, "<h2>Where the time went (rank 0)</h2><section class=\"split\">");
    for (i, (name, seconds)) in SHARES.into_iter().zip(shares(s)).enumerate() {
        let share = 100.0 * seconds / total;
        let _ = write!(
            out,
            "<div class=\"bar\"><span>{name}</span><i class=\"c{i}\" style=\"width:{share:.2}%\"></i><em>{seconds:.1} s · {share:.1} %</em></div>"
        );
    }
    let _ = write!(
        out,
        "</section><p>Rank 0 sent {:.1} MB to other ranks since the last start. A draw from the buffer moved {:.2} kB between ranks.</p>",
        summary.bytes_sent as f64 / 1e6,
        summary.bytes_moved_per_draw / 1e3,
    );
}

/// Intersection over union of each class, where there is one.
fn classes(out: &mut String, summary: &Summary) {
    let student = (summary.trained(), Some(&summary.student));
    let rows: Vec<(&str, &Vec<f64>)> = [student, ("teacher", summary.teacher.as_ref())]
        .into_iter()
        .filter_map(|(role, network)| Some((role, network?.scores.class_iou.as_ref()?)))
        .collect();
    if rows.is_empty() {
        return;
    }
    let cells = |tag: &str, cells: &mut dyn Iterator<Item = String>| cells.map(|c| format!("<{tag}>{c}</{tag}>")).collect::<String>();
    let names = cells("th", &mut std::iter::once(String::new()).chain(summary.class_names.iter().map(|name| escape(name))));
    let _ = write!(out, "<h2>Intersection over union of each class</h2><table><tr>{names}</tr>");
    for (role, iou) in rows {
        let row = cells("td", &mut std::iter::once(role.to_owned()).chain(iou.iter().map(|value| format!("{value:.3}"))));
        let _ = write!(out, "<tr>{row}</tr>");
    }
    out.push_str("</table>");
}

fn histograms(out: &mut String, summary: &Summary) {
    if let Some(counts) = &summary.student.scores.confidence_counts {
        let (images, divergence) = (counts.iter().sum::<u64>(), summary.student.scores.divergence.unwrap_or(f64::NAN));
        let caption = format!("The teacher's confidence in them; mean KL(teacher ‖ student) {divergence:.4}");
        section(out, &format!("Without data: {images} fresh synthetic images"), &[(caption.as_str(), confidence_bars(counts))]);
    }
    let Some([classes, confidences]) = buffer_bars(summary) else { return };
    let figures = [
        ("Categories the teacher sees in the buffer", classes),
        ("Difficulty: the teacher's confidence in them (low is hard)", confidences),
    ];
    section(out, "The buffer at the end", &figures);
}

/// What the buffer holds, by category and by the teacher's confidence, where the method has one.
fn buffer_bars(summary: &Summary) -> Option<[String; 2]> {
    let buffer = summary.buffer.as_ref()?;
    let class_name = |i: usize| summary.class_names.get(i).cloned().unwrap_or_else(|| i.to_string());
    let classes: Vec<String> = (0..buffer.class_counts.len()).map(class_name).collect();
    Some([bars("samples", &classes, &values(&buffer.class_counts)), confidence_bars(&buffer.confidence_counts)])
}

/// Samples by confidence, each bar named by where it begins.
fn confidence_bars(counts: &[u64]) -> String {
    let names: Vec<String> = (0..counts.len()).map(|i| format!("{:.2}", i as f64 / counts.len() as f64)).collect();
    bars("samples", &names, &values(counts))
}

fn values(counts: &[u64]) -> Vec<f64> {
    counts.iter().map(|&n| n as f64).collect()
}

/// What the rows of a picture of synthetic images are.
fn picture_rows(summary: &Summary) -> String {
    match summary.buffer.as_ref().map_or(0, |buffer| buffer.class_counts.len()) {
        more if more > PICTURE_ROWS => format!("a row for each of the first {PICTURE_ROWS} of the {more} categories the teacher sees"),
        _ if summary.class_names.is_empty() => "a row for each category the teacher sees".to_owned(),
        _ => format!("rows: {}", summary.class_names.join(", ")),
    }
}

fn gallery(out: &mut String, summary: &Summary, pictures: &[(u64, Vec<u8>)]) {
    if pictures.is_empty() {
        return;
    }
    let rows = picture_rows(summary);
    // Pixels have classes: the pictures show them.
    let maps = summary.student.scores.class_iou.as_ref().map_or("", |_| "; beside each image the labels that teacher and student give it");
    let source = if summary.buffer.is_some() { "Newest images in the buffer" } else { "Images that the generator makes at that moment" };
    let _ = write!(out, "<h2>Synthetic images over time</h2><p>{source}; {}{maps}.</p><section class=\"gallery\">", escape(&rows));
    for (round, png) in pictures {
        out.push_str(&figure_of(&format!("round {round}"), png));
    }
    out.push_str("</section>");
}

/// A picture in the page itself; the caption is HTML.
fn figure_of(caption: &str, png: &[u8]) -> String {
    let data = base64::engine::general_purpose::STANDARD.encode(png);
    format!(
        "<figure><figcaption>{caption}</figcaption><img alt=\"synthetic images, {caption}\" src=\"data:image/png;base64,{data}\"></figure>"
    )
}

fn details(out: &mut String, summary: &Summary, config: &str) {
    let best = summary.student.best.headline().map_or(String::new(), |best| {
        format!("<p>Best {} of any evaluation: {} (chosen among all; quote the last one).</p>", best.name, best.text())
    });
    let json = serde_json::to_string_pretty(summary).unwrap_or_default();
    let _ = write!(
        out,
        "<h2>Details</h2>{best}<details><summary>report.json</summary><pre>{}</pre></details>\
         <details><summary>configuration</summary><pre>{}</pre></details><footer>ssdkd {} · config {}</footer>",
        escape(&json),
        escape(config),
        escape(&summary.version),
        escape(&summary.config_hash),
    );
}

fn minutes(seconds: f64) -> String {
    format!("{}:{:02} min", seconds as u64 / 60, seconds as u64 % 60)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Seconds;

    /// A teacher's summary, and a student's whose buffer holds `classes` categories.
    fn summary(classes: Option<usize>) -> Summary {
        let score = serde_json::json!({"model": "wrn16_1", "top1": 0.5, "top5": 0.9, "loss": 1.0});
        let mut value = serde_json::json!({
            "method": "m", "dataset": "d", "class_names": [], "ranks": 1, "logical_ranks": 1, "threads": 1, "device": "cpu",
            "student": score, "seconds": Seconds::default(), "samples_synthesised": 0, "student_steps": 9, "bytes_sent": 0,
            "rows_moved": 0, "config_hash": "", "seed": 0, "version": "",
        });
        if let Some(classes) = classes {
            value["teacher"] = score;
            value["buffer"] = serde_json::json!({"capacity": 9, "class_counts": vec![1; classes], "confidence_counts": [1]});
        }
        serde_json::from_value(value).unwrap()
    }

    fn shown(summary: &Summary) -> String {
        page(summary, &[], &[], "", &[(0, vec![])])
    }

    #[test]
    fn a_taught_teacher_is_not_called_a_student() {
        let taught = shown(&summary(None));
        assert!(taught.contains("<span>teacher top-1</span>") && taught.contains("<span>teacher steps</span>"), "{taught}");
        assert!(!taught.contains("student top-1") && !taught.contains("student steps"), "{taught}");
        assert!(shown(&summary(Some(10))).contains("<span>student top-1</span>"));
    }

    #[test]
    fn a_gallery_says_when_it_shows_some_categories_only() {
        assert!(shown(&summary(Some(100))).contains("a row for each of the first 20 of the 100 categories the teacher sees"));
        assert!(shown(&summary(Some(20))).contains("a row for each category the teacher sees"));
    }
}
