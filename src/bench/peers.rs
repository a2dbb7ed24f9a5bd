//! Others' work, measured in turn with ours.

use serde::Deserialize;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// A Python process that measures others' work in turns. What it cannot do is a note, never an error.
///
/// It reads a request a line and answers in a line; `hello` is answered with what it can measure and why something is missing.
pub struct Peers {
    process: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    /// What answers.
    names: Vec<String>,
    /// Of the library that it measures, where it says so.
    pub version: Option<String>,
}

/// What the process says of itself: what it measures, and why something is missing.
#[derive(Deserialize)]
struct Greeting {
    ready: Vec<String>,
    missing: BTreeMap<String, String>,
    #[serde(default)]
    version: Option<String>,
}

impl Peers {
    /// Starts `script` in `python` with `threads` threads; tells what is missing in lines for the reader.
    pub fn start(python: &Path, script: &str, arguments: &[String], threads: usize) -> (Option<Self>, Vec<String>) {
        let spawned = Command::new(python)
            .args(["-c", script])
            .args(arguments)
            .env("OMP_NUM_THREADS", threads.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Its reason, should it end early, is for the reader.
            .stderr(Stdio::inherit())
            .spawn();
        let mut process = match spawned {
            Ok(process) => process,
            Err(error) => return (None, vec![format!("{} cannot be started ({error}): nothing else is measured", python.display())]),
        };
        let (Some(to), Some(from)) = (process.stdin.take(), process.stdout.take()) else { return (None, Vec::new()) };
        let mut peers = Self { process, to, from: BufReader::new(from), names: Vec::new(), version: None };
        let Some(greeting) = peers.ask("hello").and_then(|line| serde_json::from_str::<Greeting>(&line).ok()) else {
            return (None, vec![format!("{} does not run the program that it is given: nothing else is measured", python.display())]);
        };
        (peers.names, peers.version) = (greeting.ready, greeting.version);
        let notes = greeting.missing.iter().map(|(name, why)| format!("{name} is not measured: {why}")).collect();
        (Some(peers), notes)
    }

    /// A line for a line; none when the process has ended.
    fn ask(&mut self, line: &str) -> Option<String> {
        writeln!(self.to, "{line}").and_then(|()| self.to.flush()).ok()?;
        let mut answer = String::new();
        (self.from.read_line(&mut answer).ok()? > 0).then(|| answer.trim().to_owned())
    }

    /// A request that is no turn. A process that does not answer measures nothing any more.
    pub fn tell(&mut self, line: &str) -> Option<String> {
        let answer = self.ask(line);
        if answer.is_none() {
            self.names.clear();
        }
        answer
    }

    /// One turn of each.
    pub fn turns(&mut self) -> Vec<(String, f64)> {
        let names = self.names.clone();
        names.into_iter().filter_map(|name| Some((name.clone(), self.ask(&name)?.parse().ok()?))).collect()
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_python_that_is_not_there_is_a_note() {
        let start = |python: &str| Peers::start(Path::new(python), "", &[], 1);
        let (peers, notes) = start("/nowhere/python3");
        assert!(peers.is_none() && notes.len() == 1 && notes[0].contains("/nowhere/python3"), "{notes:?}");
        let (peers, notes) = start("/bin/true");
        assert!(peers.is_none() && notes[0].contains("does not run the program"), "{notes:?}");
    }
}
