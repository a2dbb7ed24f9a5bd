//! What a study has written of itself: the head of a page about its runs.

use super::{escape, figures, table};
use crate::error::Result;
use crate::files;
use std::fmt::Write;
use std::path::Path;

const TABLE: &str = "study.md";

/// Whether a study has written of itself there.
pub(super) fn is_one(folder: &Path) -> bool {
    folder.join(TABLE).is_file()
}

/// A study's own table, laid out by its kind, and its plot. A heading that is the page's title is not said again.
pub(super) fn head(out: &mut String, folder: &Path, title: &str) -> Result<()> {
    let text = String::from_utf8_lossy(&files::read(&folder.join(TABLE))?).into_owned();
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
    fn a_head_does_not_repeat_the_title() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!is_one(folder.path()));
        std::fs::write(folder.path().join("study.md"), "# a\n\nsaid\n").unwrap();
        let head = |title: &str| {
            let mut out = String::new();
            head(&mut out, folder.path(), title).unwrap();
            out
        };
        assert!(is_one(folder.path()));
        assert_eq!((head("a"), head("b")), ("<p>said</p>".into(), "<h2>a</h2><p>said</p>".into()));
        std::fs::write(folder.path().join("study.svg"), "<svg>dots</svg>").unwrap();
        assert!(head("a").contains("<svg>dots</svg>"));
    }
}
