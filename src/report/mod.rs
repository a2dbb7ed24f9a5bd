//! Reports on runs: one self-contained HTML page, about one or about several. Reads result files only, so that it works on any old run.

mod compare;
mod plot;
mod png;
mod study;

pub use compare::{Group, compare};
use plot::bars;
pub use plot::{Series, dots, lines};
pub use png::to_png;

use crate::data::colour;
use crate::error::Result;
use crate::files;
use crate::metrics::{PICTURE_ROWS, RoundRecord, Seconds, Seen, Summary, TimingRecord, read_table};
use base64::Engine;
use std::fmt::{Display, Write};
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
    without_data(&mut body, summary);
    section(&mut body, "What the teacher sees in the images at the end", &histograms(&[(summary.method.as_str(), summary)]));
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
    let task = if rounds.iter().any(|r| r.phi.is_some()) { "φ-weighted task" } else { "task" };
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
            lines("round", "last inner step", &[over_rounds(task, &|r| r.loss_task), over_rounds("disagreement", &|r| r.loss_adversarial)]),
        ),
        (
            "Balance, activation, smoothness, contrast: those the method has, weighted and added",
            lines("round", "last inner step", &[over_rounds("other terms", &|r| r.loss_prior)]),
        ),
        (
            "Class balance of the buffer (1 = all categories equal)",
            lines("round", "entropy / max", &[over_rounds("class balance", &|r| r.buffer_class_balance)]),
        ),
        ("Mean φ", lines("round", "φ", &[over_rounds("φ", &|r| r.phi)])),
    ];
    section(out, "Curves", &figures);
}

/// Plots in frames, those there are; captions are HTML.
fn figures<C: Display>(figures: &[(C, String)]) -> String {
    let drawn = figures.iter().filter(|(_, svg)| !svg.is_empty());
    let all: String = drawn.map(|(caption, svg)| format!("<figure><figcaption>{caption}</figcaption>{svg}</figure>")).collect();
    if all.is_empty() { all } else { format!("<section class=\"figures\">{all}</section>") }
}

fn section<C: Display>(out: &mut String, title: &str, plots: &[(C, String)]) {
    let figures = figures(plots);
    if !figures.is_empty() {
        let _ = write!(out, "<h2>{title}</h2>{figures}");
    }
}

/// A table whose first row is its head, in a box that scrolls where the page is narrower; cells are HTML.
fn table(rows: &[Vec<String>]) -> String {
    let row = |(i, cells): (usize, &Vec<String>)| {
        let tag = if i == 0 { "th" } else { "td" };
        format!("<tr>{}</tr>", cells.iter().map(|cell| format!("<{tag}>{cell}</{tag}>")).collect::<String>())
    };
    format!("<div class=\"scroll\"><table>{}</table></div>", rows.iter().enumerate().map(row).collect::<String>())
}

/// What the time of a run is divided into.
const SHARES: [&str; 6] = ["inversion", "sampling", "distillation", "communication", "evaluation", "other"];

/// Parts that took less read as 0.0 s, and are left out.
const NOTHING: f64 = 0.05;

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
    for (i, (name, seconds)) in SHARES.into_iter().zip(shares(s)).enumerate().filter(|(_, (_, seconds))| *seconds >= NOTHING) {
        let share = 100.0 * seconds / total;
        let _ = write!(
            out,
            "<div class=\"bar\"><span>{name}</span><i class=\"c{i}\" style=\"width:{share:.2}%\"></i><em>{seconds:.1} s · {share:.1} %</em></div>"
        );
    }
    let _ = write!(
        out,
        "</section><p>Rank 0 sent {:.1} MB to other ranks. A draw from the buffer moved {:.2} kB between ranks.</p>",
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
    let line = |name: &str, cells: Vec<String>| [vec![name.to_owned()], cells].concat();
    let head = |(label, name): (usize, &String)| {
        let [r, g, b] = colour(label as u8);
        format!("<span class=\"key\"><i style=\"background:rgb({r},{g},{b})\"></i>{}</span>", escape(name))
    };
    let heads = summary.class_names.iter().enumerate().map(head);
    let mut lines = vec![line("", heads.collect())];
    lines.extend(rows.into_iter().map(|(role, iou)| line(role, iou.iter().map(|value| format!("{value:.3}")).collect())));
    let _ = write!(out, "<h2>Intersection over union of each class</h2><p>Colours are those of maps of labels.</p>{}", table(&lines));
}

fn without_data(out: &mut String, summary: &Summary) {
    if let Some(counts) = &summary.student.scores.confidence_counts {
        let (images, divergence) = (counts.iter().sum::<u64>(), summary.student.scores.divergence.unwrap_or(f64::NAN));
        let caption = format!("The teacher's confidence in them; mean KL(teacher ‖ student) {divergence:.4}");
        let most = per_cent(counts).into_iter().fold(0.0, f64::max);
        section(out, &format!("Without data: {images} fresh synthetic images"), &[(caption, confidence_bars(counts, most))]);
    }
}

/// What the teacher sees in a run's images: in the buffer, or, where a method has none, in some that its generator makes; and which these are.
fn seen(summary: &Summary) -> Option<(String, &Seen)> {
    let made = |seen: &Seen| format!("{} images of the generator", seen.confidence_counts.iter().sum::<u64>());
    let buffer = summary.buffer.as_ref().map(|buffer| ("the buffer".to_owned(), &buffer.seen));
    buffer.or_else(|| summary.fresh.as_ref().map(|seen| (made(seen), seen)))
}

/// By category and by difficulty, for each run under its name: shares, all on the same two scales. Captions are HTML.
fn histograms(runs: &[(&str, &Summary)]) -> Vec<(String, String)> {
    let all: Vec<_> = runs.iter().filter_map(|&(name, summary)| Some((escape(name), summary, seen(summary)?))).collect();
    let most = |of: fn(&Seen) -> &[u64]| all.iter().flat_map(|(.., (_, seen))| per_cent(of(seen))).fold(0.0, f64::max);
    let (most_of_class, most_of_confidence) = (most(|seen| &seen.class_counts), most(|seen| &seen.confidence_counts));
    let both = |(name, summary, (images, seen)): &(String, &Summary, (String, &Seen))| {
        let classes = bars("share, %", &categories(summary), &per_cent(&seen.class_counts), most_of_class);
        let difficulty = format!("{name}: difficulty of {images}, the teacher's confidence (low is hard)");
        [(format!("{name}: categories in {images}"), classes), (difficulty, confidence_bars(&seen.confidence_counts, most_of_confidence))]
    };
    all.iter().flat_map(both).collect()
}

/// Shares of samples by confidence, each bar named by where it begins.
fn confidence_bars(counts: &[u64], most: f64) -> String {
    let names: Vec<String> = (0..counts.len()).map(|i| format!("{:.2}", i as f64 / counts.len() as f64)).collect();
    bars("share, %", &names, &per_cent(counts), most)
}

fn per_cent(counts: &[u64]) -> Vec<f64> {
    let all = counts.iter().sum::<u64>().max(1);
    counts.iter().map(|&n| 100.0 * n as f64 / all as f64).collect()
}

/// Names of the categories, numbers where they have none; none where nothing says how many there are.
fn categories(summary: &Summary) -> Vec<String> {
    let names = &summary.class_names;
    let counted = seen(summary).map_or(0, |(_, seen)| seen.class_counts.len());
    (0..counted.max(names.len())).map(|i| names.get(i).cloned().unwrap_or_else(|| i.to_string())).collect()
}

/// Said of a picture that has no row for some categories.
fn cut_short(summary: &Summary) -> String {
    match categories(summary).len() {
        all if all > PICTURE_ROWS => format!(" (the first {PICTURE_ROWS} of {all} categories)"),
        _ => String::new(),
    }
}

fn gallery(out: &mut String, summary: &Summary, pictures: &[(u64, Vec<u8>)]) {
    if pictures.is_empty() {
        return;
    }
    let maps = summary.student.scores.beside_images();
    let source = if summary.buffer.is_some() { "Newest images in the buffer" } else { "Images that the generator makes at that moment" };
    let rows = format!("a row for each category the teacher sees{}", cut_short(summary));
    let _ = write!(out, "<h2>Synthetic images over time</h2><p>{source}; {rows}{maps}.</p><section class=\"gallery\">");
    for (round, png) in pictures {
        out.push_str(&picture(&format!("round {round}"), summary, png));
    }
    out.push_str("</section>");
}

/// A picture in the page itself, the names of its categories beside their rows; the caption is HTML.
fn picture(caption: &str, summary: &Summary, png: &[u8]) -> String {
    let data = base64::engine::general_purpose::STANDARD.encode(png);
    let rows: String = categories(summary).iter().take(PICTURE_ROWS).map(|name| format!("<li>{}</li>", escape(name))).collect();
    format!(
        "<figure><figcaption>{caption}</figcaption><div class=\"picture\"><ol>{rows}</ol>\
         <img alt=\"synthetic images, {caption}\" src=\"data:image/png;base64,{data}\"></div></figure>"
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

/// For text and for attributes in double quotes.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// A teacher's summary with some values of its own.
    fn summary(own: Value) -> Summary {
        let mut value = json!({
            "method": "m", "dataset": "d", "class_names": [], "ranks": 1, "logical_ranks": 1, "threads": 1, "device": "cpu",
            "student": score(), "seconds": Seconds::default(), "samples_synthesised": 0, "student_steps": 9, "bytes_sent": 0,
            "rows_moved": 0, "config_hash": "", "seed": 0, "version": "",
        });
        value.as_object_mut().unwrap().extend(own.as_object().unwrap().clone());
        serde_json::from_value(value).unwrap()
    }

    fn score() -> Value {
        json!({"model": "wrn16_1", "top1": 0.5, "top5": 0.9, "loss": 1.0})
    }

    /// A student's, whose buffer holds so many categories.
    fn buffered(classes: usize) -> Summary {
        summary(json!({"teacher": score(), "buffer": {"capacity": 9, "class_counts": vec![1; classes], "confidence_counts": [1]}}))
    }

    /// A student's without a buffer.
    fn fresh(classes: usize, class_counts: &[u64]) -> Summary {
        let names: Vec<String> = (0..classes).map(|i| format!("c{i}")).collect();
        summary(json!({"teacher": score(), "class_names": names, "fresh": {"class_counts": class_counts, "confidence_counts": [1, 7]}}))
    }

    fn shown(summary: &Summary, rounds: &[RoundRecord]) -> String {
        page(summary, rounds, &[], "", &[(0, vec![])])
    }

    #[test]
    fn a_taught_teacher_is_not_called_a_student() {
        let taught = shown(&summary(json!({})), &[]);
        assert!(taught.contains("<span>teacher top-1</span>") && taught.contains("<span>teacher steps</span>"), "{taught}");
        assert!(!taught.contains("student top-1") && !taught.contains("student steps"), "{taught}");
        assert!(shown(&buffered(10), &[]).contains("<span>student top-1</span>"));
    }

    #[test]
    fn rows_of_a_picture_are_named_and_no_others() {
        let said = "a row for each category the teacher sees (the first 20 of 100 categories).";
        for summary in [buffered(100), fresh(100, &[1; 100])] {
            let page = shown(&summary, &[]);
            assert!(page.contains(said) && page.matches("<li>").count() == 20 && !page.contains("c20<"), "{page}");
        }
        let page = shown(&buffered(20), &[]);
        assert!(page.contains("a row for each category the teacher sees.") && page.contains("<li>19</li>"), "{page}");
        assert!(shown(&fresh(2, &[3, 5]), &[]).contains("<ol><li>c0</li><li>c1</li></ol><img"));
    }

    #[test]
    fn images_that_are_not_kept_have_histograms_too() {
        let page = shown(&fresh(2, &[3, 5]), &[]);
        for part in ["m: categories in 8 images of the generator", "m: difficulty of 8 images", "share, %", ">\nc1\n<"] {
            assert!(page.contains(part), "{part}: {page}");
        }
        assert!(shown(&buffered(2), &[]).contains("m: categories in the buffer"));
        assert!(!shown(&summary(json!({})), &[]).contains("categories in"));
    }

    /// A share of 50 % is half as high as the one of 100 % beside it, whatever they are of.
    #[test]
    fn histograms_side_by_side_have_one_scale() {
        let highest = |svg: &str| {
            let bars = svg.split("<rect").skip(1).map(|rect| rect.split(" height=\"").nth(1).unwrap());
            bars.map(|rest| rest.split('"').next().unwrap().parse::<f64>().unwrap()).fold(0.0, f64::max)
        };
        let (even, all) = (fresh(2, &[500, 500]), fresh(2, &[0, 8]));
        let drawn = histograms(&[("a \"b\"", &even), ("c", &all)]);
        assert!(drawn.len() == 4 && drawn[0].0.starts_with("a &quot;b&quot;: categories"), "{}", drawn[0].0);
        let (half, whole) = (highest(&drawn[0].1), highest(&drawn[2].1));
        assert!((whole / half - 2.0).abs() < 0.02, "{half} and {whole}");
    }

    #[test]
    fn terms_are_called_what_they_are_and_shown_where_a_run_has_them() {
        let line = |name: &str| format!(">\n{name}\n<");
        let round = RoundRecord { loss_task: Some(1.0), ..RoundRecord::default() };
        let plain = shown(&buffered(2), &[round.clone(), RoundRecord { round: 1, loss_prior: Some(2.0), ..round.clone() }]);
        assert!(plain.contains(&line("task")) && plain.contains(&line("other terms")) && !plain.contains("φ-weighted"), "{plain}");
        let weighted = shown(&buffered(2), &[RoundRecord { phi: Some(0.5), ..round }]);
        assert!(weighted.contains(&line("φ-weighted task")) && !weighted.contains("other terms"), "{weighted}");
    }

    #[test]
    fn time_that_reads_as_nothing_has_no_bar() {
        let seconds = Seconds { total: 3.0, inversion: 1.0, communication: 0.04, ..Seconds::default() };
        let page = shown(&Summary { seconds, ..buffered(2) }, &[]);
        assert!(page.contains("<span>inversion</span>") && page.contains("<span>other</span>"), "{page}");
        assert!(!page.contains("<span>communication</span>") && !page.contains("<span>sampling</span>"), "{page}");
    }
}
