//! What a study has written of itself: the head of a page about its runs.

use super::{Group, escape, figures, table};
use crate::error::Result;
use crate::files;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Folders of the studies that runs are of, as they are met: a run lies in its study's folder, or below that in `trials`.
pub(super) fn folders(groups: &[Group]) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = Vec::new();
    for run in groups.iter().flat_map(|group| &group.runs) {
        let study = run.ancestors().skip(1).take(2).find(|folder| folder.join("study.md").is_file());
        found.extend(study.filter(|folder| !found.iter().any(|other| other == folder)).map(Path::to_path_buf));
    }
    found
}

/// A study's own table, laid out by its kind, and its plot. A heading that is the page's title is not said again.
pub(super) fn head(out: &mut String, folder: &Path, title: &str) -> Result<()> {
    let text = String::from_utf8_lossy(&files::read(&folder.join("study.md"))?).into_owned();
    out.push_str(&html(text.strip_prefix(&format!("# {title}\n")).unwrap_or(&text)));
    let plot = folder.join("study.svg");
    if plot.is_file() {
        out.push_str(&figures(&[("The same as a plot", String::from_utf8_lossy(&files::read(&plot)?).into_owned())]));
    }
    Ok(())
}

/// As much of Markdown as a study writes: headings, paragraphs, tables, lists, `code` and **weight**.
fn html(text: &str) -> String {
    let mut out = String::new();
    for block in text.split("\n\n").map(str::trim).filter(|block| !block.is_empty()) {
        if block.starts_with('|') {
            // Below its head a table has a rule.
            let rows = block.lines().enumerate().filter(|(i, _)| *i != 1).map(|(_, line)| cells(line));
            out.push_str(&table(&rows.collect::<Vec<_>>()));
        } else if let Some(heading) = block.strip_prefix("# ") {
            let _ = write!(out, "<h2>{}</h2>", inline(heading));
        } else if block.starts_with("* ") {
            let items: String = block.lines().map(|line| format!("<li>{}</li>", inline(line.trim_start_matches("* ")))).collect();
            let _ = write!(out, "<ul>{items}</ul>");
        } else {
            let _ = write!(out, "<p>{}</p>", inline(block));
        }
    }
    out
}

/// Cells of a table's line; `\|` is a bar in a cell.
fn cells(line: &str) -> Vec<String> {
    let line = line.trim().replace("\\|", "\0");
    let inner = line.strip_prefix('|').unwrap_or(&line);
    let inner = inner.strip_suffix('|').unwrap_or(inner);
    inner.split('|').map(|cell| inline(&cell.trim().replace('\0', "|"))).collect()
}

fn inline(text: &str) -> String {
    marked(text, "`", "code", |plain| marked(plain, "**", "strong", escape))
}

/// Text in which marks stand around what is to be in an element.
fn marked(text: &str, mark: &str, tag: &str, plain: impl Fn(&str) -> String) -> String {
    let part = |(i, part): (usize, &str)| if i % 2 == 1 { format!("<{tag}>{}</{tag}>", escape(part)) } else { plain(part) };
    text.split(mark).enumerate().map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_study_writes_becomes_html() {
        let text = "# name\n\n1 of 2 runs done.\n\n| | top-1, % |\n| --- | ---: |\n| a\\|b \"c\" | 1.00* |\n\n**Failed** (`retry`):\n\n* x: y <z>\n* w\n";
        let want = "<h2>name</h2><p>1 of 2 runs done.</p><div class=\"scroll\"><table><tr><th></th><th>top-1, %</th></tr>\
                    <tr><td>a|b &quot;c&quot;</td><td>1.00*</td></tr></table></div><p><strong>Failed</strong> (<code>retry</code>):</p>\
                    <ul><li>x: y &lt;z&gt;</li><li>w</li></ul>";
        assert_eq!(html(text), want);
    }

    #[test]
    fn runs_know_the_studies_they_are_of() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for (name, text) in [("a", "# a\n\nsaid\n"), ("b", "# Scaling\n")] {
            std::fs::create_dir_all(at(name).join("trials")).unwrap();
            std::fs::write(at(name).join("study.md"), text).unwrap();
        }
        std::fs::write(at("a/study.svg"), "<svg>dots</svg>").unwrap();
        let runs = ["a/trials/1", "b/strong-1", "a/trials/2", "c/trials/1"].map(at).to_vec();
        assert_eq!(folders(&[Group { name: "g".into(), runs }]), [at("a"), at("b")]);
        let head = |name: &str| {
            let mut out = String::new();
            head(&mut out, &at(name), "a").unwrap();
            out
        };
        assert!(head("a").starts_with("<p>said</p>") && head("a").contains("<svg>dots</svg>"), "{}", head("a"));
        assert_eq!(head("b"), "<h2>Scaling</h2>");
    }
}
