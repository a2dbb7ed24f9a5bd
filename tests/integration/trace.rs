//! `--trace`: a file that browsers show, of all ranks, which agrees with the run's own report.

use crate::launch::{has_mpirun, mpirun, run, small_fashion_mnist, ssdkd, ssdkd_on, tiny};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// A span of one rank, with the names of those around it, outermost first.
struct Span {
    rank: u64,
    name: String,
    around: Vec<String>,
    seconds: f64,
    arguments: Value,
}

impl Span {
    fn number(&self, argument: &str) -> u64 {
        self.arguments[argument].as_u64().unwrap_or_else(|| panic!("{} has no number {argument}: {}", self.name, self.arguments))
    }
}

/// Begin, length, and the event itself.
type Timed<'a> = (u64, u64, &'a Value);

/// Spans of a trace, held against the rules of the format: an array of objects; every one has a phase, a process and a thread; complete
/// events have a name, a time and a duration, and those of one thread nest.
fn spans(events: &[Value]) -> Vec<Span> {
    let number = |event: &Value, key: &str| event[key].as_u64().unwrap_or_else(|| panic!("no {key} in {event}"));
    let mut threads: BTreeMap<(u64, u64), Vec<Timed>> = BTreeMap::new();
    for event in events {
        let thread = (number(event, "pid"), number(event, "tid"));
        assert!(event["name"].is_string() && event["args"].is_object(), "{event}");
        match event["ph"].as_str() {
            Some("X") => threads.entry(thread).or_default().push((number(event, "ts"), number(event, "dur"), event)),
            Some("M") => assert!(event["name"].as_str().unwrap().starts_with("process_"), "{event}"),
            _ => panic!("no phase that is known: {event}"),
        }
    }
    let mut found = Vec::new();
    for ((rank, _), mut events) in threads {
        // Written when they end: a span comes after those inside it. Of equal ones the later is the outer.
        events.reverse();
        events.sort_by_key(|(begin, length, _)| (*begin, std::cmp::Reverse(*length)));
        let mut open: Vec<(u64, String)> = Vec::new();
        for (begin, length, event) in events {
            while open.last().is_some_and(|(end, _)| *end <= begin) {
                open.pop();
            }
            let end = begin + length;
            assert!(open.last().is_none_or(|(outer, _)| end <= *outer), "{event} ends after what it lies in: {open:?}");
            let name = event["name"].as_str().unwrap().to_owned();
            let around = open.iter().map(|(_, name)| name.clone()).collect();
            found.push(Span { rank, name: name.clone(), around, seconds: length as f64 / 1e6, arguments: event["args"].clone() });
            open.push((end, name));
        }
    }
    found
}

fn read(trace: &Path) -> Vec<Value> {
    serde_json::from_slice(&std::fs::read(trace).unwrap()).unwrap()
}

fn traced(mut arguments: Vec<String>, trace: &Path) -> Vec<String> {
    arguments.extend(["--trace".into(), trace.display().to_string()]);
    arguments
}

#[test]
fn a_trace_shows_rounds_of_all_ranks_and_agrees_with_the_report() {
    if !has_mpirun() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let data = small_fashion_mnist(folder.path(), 50);
    let (run_dir, trace) = (folder.path().join("run"), folder.path().join("trace.json"));
    ssdkd_on(2, &traced(tiny(&data, &run_dir), &trace)).expect(0);
    let files: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert!(!files.iter().any(|name| name.starts_with("trace.json.")), "one file is to be opened: {files:?}");
    let events = read(&trace);
    let named: BTreeSet<_> = events.iter().filter(|e| e["name"] == "process_name").map(|e| e["pid"].as_u64().unwrap()).collect();
    assert_eq!(named, BTreeSet::from([0, 1]));

    let spans = spans(&events);
    let report: Value = serde_json::from_slice(&std::fs::read(run_dir.join("report.json")).unwrap()).unwrap();
    for rank in [0, 1] {
        let of = |name: &str| spans.iter().filter(|s| s.rank == rank && s.name == name).collect::<Vec<_>>();
        let numbers = |name: &str, argument: &str| of(name).iter().map(|s| s.number(argument)).collect::<Vec<_>>();
        assert_eq!(numbers("round", "round"), [0, 1, 2, 3]);
        assert_eq!(numbers("step", "step"), [0, 1, 2, 3, 4, 5]);
        // Two logical ranks live here.
        assert_eq!(numbers("inversion", "logical_rank"), [2 * rank, 2 * rank + 1].repeat(4));
        assert_eq!(numbers("distillation", "logical_rank"), [2 * rank, 2 * rank + 1].repeat(6));
        assert_eq!(of("inner step").len(), 4 * 2 * 2);
        for (name, around) in [
            ("inversion", &["round"][..]),
            ("inner step", &["round", "inversion"]),
            ("assessment", &["round", "inversion"]),
            ("step", &["round"]),
            ("sampling", &["round", "step"]),
            ("distillation", &["round", "step"]),
        ] {
            assert!(of(name).iter().all(|s| s.around == around), "{name} does not always lie in {around:?}");
        }
        for (name, outer) in [("update", "step"), ("communication", "sampling"), ("evaluation", "round"), ("writing", "saving")] {
            assert!(of(name).iter().any(|s| s.around.last().is_some_and(|last| last == outer)), "no {name} in {outer}");
        }
        let sums: Vec<_> = of("communication").into_iter().filter(|s| s.arguments["what"] == "reduce").collect();
        assert_eq!(sums.len(), 4 + 6);
        // A sum is an all-to-all and an all-gather.
        for name in ["all-to-all", "all-gather"] {
            assert!(of(name).iter().filter(|s| s.around.last().is_some_and(|last| last == "communication")).count() >= 4 + 6, "{name}");
        }
    }
    let leading = || spans.iter().filter(|s| s.rank == 0);
    let collectives = leading().filter(|s| ["all-gather", "all-to-all", "all-reduce"].contains(&s.name.as_str()));
    let (mut of_rounds, mut of_all) = (0, 0);
    for span in collectives {
        of_all += span.number("bytes");
        of_rounds += if span.around.first().is_some_and(|outer| outer == "round") { span.number("bytes") } else { 0 };
    }
    let sent = report["bytes_sent"].as_u64().unwrap();
    assert!(of_rounds > 0 && of_rounds <= sent && sent <= of_all, "{of_rounds} ≤ {sent} ≤ {of_all}");
    // The same spans, timed by another layer.
    let seconds = report["seconds"]["inversion"].as_f64().unwrap();
    let drawn: f64 = leading().filter(|s| s.name == "inversion").map(|s| s.seconds).sum();
    assert!((drawn - seconds).abs() <= 0.02 * seconds + 0.05, "{drawn} s in the trace, {seconds} s in the report");
}

#[test]
fn a_run_that_is_killed_leaves_the_rounds_it_has_ended() {
    let folder = tempfile::tempdir().unwrap();
    let data = small_fashion_mnist(folder.path(), 50);
    let trace = folder.path().join("trace.json");
    let mut command = Command::new(env!("CARGO_BIN_EXE_ssdkd"));
    // Four logical ranks: the tenth inversion is in the third round.
    command.args(traced(tiny(&data, &folder.path().join("run")), &trace)).env("SSDKD_FAULT_FOR_TESTS", "kill 0 inversion 10");
    assert_ne!(run(command, Duration::from_secs(300)).code, 0);
    // The format lets the closing bracket be left out.
    let text = std::fs::read_to_string(&trace).unwrap() + "]";
    let events: Vec<Value> = serde_json::from_str(&text).unwrap();
    assert_eq!(spans(&events).iter().filter(|s| s.name == "round").count(), 2);
}

#[test]
fn a_trace_that_cannot_be_written_is_refused_before_anything_else() {
    let folder = tempfile::tempdir().unwrap();
    let (run_dir, trace) = (folder.path().join("run"), folder.path().join("nowhere/trace.json"));
    let arguments = traced(tiny(folder.path(), &run_dir), &trace);
    let parts = [&format!("the trace {}", trace.display())[..], "cannot be created", "hint: give --trace"];
    ssdkd(&arguments).expect(2).says(&parts);
    ssdkd(&["bench", "ranks", "--project", "--trace", trace.to_str().unwrap()]).expect(2).says(&parts);
    if has_mpirun() {
        let out = run(mpirun(2, &arguments), Duration::from_secs(60)).expect(2).says(&parts);
        assert_eq!(out.stderr.matches("cannot be created").count(), 1, "{}", out.stderr);
    }
    assert!(!run_dir.exists());
}
