//! What trackers read: names of metrics, the run's id, its tags (docs/tracking.md).

use crate::launch::{root, small_fashion_mnist, ssdkd, tiny};
use prost::Message;
use std::collections::BTreeSet;
use std::path::Path;

/// The fields of TensorBoard's messages that hold names and steps.
#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

/// Step, name and value of everything in a run's event files; pictures have no value.
fn events(run: &Path) -> Vec<(i64, String, Option<f32>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(run).unwrap().map(|e| e.unwrap().path()) {
        if !entry.file_name().unwrap().to_string_lossy().starts_with("events.out.tfevents.") {
            continue;
        }
        let raw = std::fs::read(entry).unwrap();
        let mut rest = &raw[..];
        while !rest.is_empty() {
            // Length, its checksum, message, its checksum.
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            let event = Event::decode(&rest[12..12 + length]).unwrap();
            found.extend(event.summary.into_iter().flat_map(|s| s.value).map(|v| (event.step, v.tag, v.simple_value)));
            rest = &rest[16 + length..];
        }
    }
    found
}

/// Names in the first column of the page's table under a heading, with whether TensorBoard has them.
fn documented(heading: &str) -> Vec<(String, bool)> {
    let page = std::fs::read_to_string(root().join("docs/tracking.md")).unwrap();
    let part = page.split(&format!("## {heading}\n")).nth(1).unwrap().split("\n## ").next().unwrap().to_owned();
    let rows = part.lines().filter(|line| line.starts_with("| `"));
    rows.map(|line| (line.split('`').nth(1).unwrap().to_owned(), line.split('|').nth(2).unwrap().contains("TensorBoard"))).collect()
}

fn header(run: &Path, table: &str) -> Vec<String> {
    let text = std::fs::read_to_string(run.join(table)).unwrap();
    text.lines().next().unwrap().split(',').map(str::to_owned).collect()
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The page's tables name what a run writes: every column in its order, and every name in TensorBoard, with the table's values.
#[test]
fn names_are_those_of_the_page() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    ssdkd(&tiny(&small_fashion_mnist(folder.path(), 50), &run)).expect(0);
    let metrics = documented("Metrics");
    assert_eq!(metrics.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>(), header(&run, "metrics.csv"));
    assert_eq!(documented("Timings").into_iter().map(|(name, _)| name).collect::<Vec<_>>(), header(&run, "timings.csv"));

    let events = events(&run);
    let shown: BTreeSet<&str> = metrics.iter().filter(|(_, there)| *there).map(|(name, _)| name.as_str()).collect();
    let written: BTreeSet<&str> = events.iter().filter(|(.., value)| value.is_some()).map(|(_, name, _)| name.as_str()).collect();
    assert!(written.is_subset(&shown), "not on the page: {:?}", written.difference(&shown).collect::<Vec<_>>());
    // What only labelling of pixels, runs without data or other methods have is on the page and not in this run.
    let rare = BTreeSet::from(["loss_prior", "student_miou", "student_pixel_accuracy", "student_agreement", "student_divergence"]);
    let missing: BTreeSet<&str> = shown.difference(&written).copied().collect();
    assert!(missing.is_subset(&rare), "on the page, not written: {missing:?}");
    assert!(events.iter().any(|(_, name, value)| name == "synthetic images" && value.is_none()));

    // Each of the table's numbers is in TensorBoard under its column and round.
    let mut table = csv::Reader::from_path(run.join("metrics.csv")).unwrap();
    let columns = table.headers().unwrap().clone();
    let mut compared = 0;
    for row in table.records().map(Result::unwrap) {
        let round: i64 = row[0].parse().unwrap();
        for (name, cell) in columns.iter().zip(&row).skip(1).filter(|(name, cell)| shown.contains(name) && !cell.is_empty()) {
            let value = events.iter().find(|(step, tag, _)| *step == round && tag == name).and_then(|(.., value)| *value);
            assert_eq!(value, Some(cell.parse::<f64>().unwrap() as f32), "{name} in round {round}");
            compared += 1;
        }
    }
    assert!(compared > 20, "{compared}");
}

/// A run has one id from its first start to its end, in its state, its log and its report; `--fresh` begins another. Tags may change on
/// the way, and a sweep's table would have them.
#[test]
fn a_run_keeps_its_id_and_has_its_tags() {
    let folder = tempfile::tempdir().unwrap();
    let data = small_fashion_mnist(folder.path(), 50);
    let run = folder.path().join("run");
    let start = |more: &[&str]| ssdkd(&[tiny(&data, &run), more.iter().map(|word| (*word).to_owned()).collect()].concat()).expect(0);
    let id = || json(&run.join("state.json"))["id"].as_str().unwrap().to_owned();
    let log = || std::fs::read_to_string(run.join("logs/rank-00000.jsonl")).unwrap();
    let starts = || {
        let lines = log();
        let lines = lines.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()).collect::<Vec<_>>();
        lines.into_iter().map(|line| line["fields"].clone()).filter(|fields| fields["message"] == "start").collect::<Vec<_>>()
    };
    start(&["--until-round", "1", "--set", "tags=[\"first\"]"]);
    let first = id();
    let [day, time, apart] = [0..8, 9..15, 16..24].map(|part| first[part].to_owned());
    assert!(day.parse::<u32>().is_ok_and(|day| day > 20_250_000) && time.parse::<u32>().is_ok(), "{first}");
    assert!(first.len() == 24 && u32::from_str_radix(&apart, 16).is_ok(), "{first}");
    start(&["--set", "tags=[\"baseline\", \"two words\"]"]);
    let report = json(&run.join("report.json"));
    assert_eq!((id(), report["run_id"].as_str()), (first.clone(), Some(first.as_str())));
    assert_eq!(report["tags"], serde_json::json!(["baseline", "two words"]));
    let starts = starts();
    assert_eq!(starts.len(), 2);
    assert!(starts.iter().all(|start| start["run"] == first.as_str()), "{starts:?}");
    assert_eq!((&starts[0]["tags"], &starts[1]["tags"]), (&"first".into(), &"baseline, two words".into()));
    start(&["--until-round", "1", "--fresh"]);
    assert_ne!(id(), first);
    let refused = |tags: &str| ssdkd(&["config", "check", "--config", "configs/fashion_mnist/demo.toml", "--set", tags]).expect(2);
    refused("tags=word").says(&["tags: invalid type: string \"word\", expected a list in brackets, such as"]);
    for tag in [" ", &"x".repeat(65)] {
        refused(&format!("tags=[\"{tag}\"]")).says(&["tags: \"", "use 1 to 64 a tag, as in tags=[\"a\", \"b\"]"]);
    }
}
