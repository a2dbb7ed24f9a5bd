//! The source tree keeps its shape: modules use only modules above them, foreign crates stay where they belong, and the
//! training step stays one screenful.

use crate::launch::root;
use std::path::{Path, PathBuf};

/// Module · may name `tch` · may take a `&World` or `&dyn Communicator`. A module may `use crate::` only those above it.
const MODULES: [(&str, bool, bool); 34] = [
    ("error", false, false),
    ("files", false, false),
    ("layout", false, false),
    ("vector", false, false),
    ("rng", false, false),
    ("memory", false, false),
    ("config", false, false),
    ("device", true, false),
    ("task", true, false),
    ("parallel", true, true),
    ("nn", true, false),
    ("models", true, false),
    ("data", true, false),
    ("losses", true, false),
    ("teacher", true, false),
    ("goldens", true, false),
    ("inversion", true, false),
    ("replay", true, true),
    ("distill", true, false),
    ("methods", false, false),
    ("eval", true, true),
    ("checkpoint", true, true),
    ("metrics", false, false),
    ("run_folder", false, false),
    ("train", true, true),
    ("bench", true, true),
    ("predict", true, false),
    ("export", true, false),
    ("report", false, false),
    ("sweep", false, false),
    ("logs", false, false),
    ("cli", false, false),
    ("commands", false, true),
    ("main", false, false),
];

fn sources(of: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(of).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found
}

/// Every source file, its path below `src`, and its text.
pub fn texts() -> Vec<(PathBuf, String)> {
    let src = root().join("src");
    let read = |path: PathBuf| (path.strip_prefix(&src).unwrap().to_path_buf(), std::fs::read_to_string(&path).unwrap());
    sources(&src).into_iter().map(read).collect()
}

/// Every source file with its module and its text before the unit tests.
fn files() -> Vec<(String, PathBuf, String)> {
    texts()
        .into_iter()
        .map(|(relative, text)| {
            let module = relative.iter().next().unwrap().to_string_lossy().trim_end_matches(".rs").to_owned();
            let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
            let code: String = code.lines().filter(|l| !l.trim_start().starts_with("//")).map(|l| format!("{l}\n")).collect();
            (module, relative, code)
        })
        .filter(|(module, _, _)| module != "lib")
        .collect()
}

/// `tch::` as a path of its own, not at the end of another word.
fn names_tch(code: &str) -> bool {
    code.match_indices("tch::").any(|(at, _)| !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_'))
}

#[test]
fn every_module_is_listed() {
    for (module, path, _) in files() {
        assert!(MODULES.iter().any(|(name, ..)| *name == module), "{} belongs to no module of the list", path.display());
    }
}

/// docs/architecture.md shows the list: the same modules in the same order, with the same dots.
#[test]
fn the_page_shows_the_list() {
    let page = std::fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    let table = page.split("| module | charter | tensors | ranks |").nth(1).unwrap().split("\n\n").next().unwrap();
    let mut shown = Vec::new();
    for row in table.lines().skip(2) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let names = cells[1].split('`').skip(1).step_by(2).map(|name| name.trim_end_matches('/').to_owned());
        shown.extend(names.map(|name| (name, cells[3] == "●", cells[4] == "●")));
    }
    assert_eq!(shown, MODULES.map(|(name, tensors, ranks)| (name.to_owned(), tensors, ranks)));
}

#[test]
fn modules_use_only_modules_above_them() {
    let place = |name: &str| MODULES.iter().position(|(m, ..)| *m == name);
    for (module, path, code) in files() {
        for used in code.split("crate::").skip(1) {
            let name: String = used.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
            let (Some(used), Some(user)) = (place(&name), place(&module)) else { continue };
            assert!(used <= user, "{} uses crate::{name}, which lies below it", path.display());
        }
    }
}

#[test]
fn tensors_and_ranks_stay_in_their_columns() {
    for (module, path, code) in files() {
        let (_, tensors, ranks) = MODULES.iter().find(|(m, ..)| *m == module).unwrap();
        assert!(*tensors || !names_tch(&code), "{} names tch", path.display());
        let communicates = code.contains("&World") || code.contains("&dyn Communicator") || code.contains("&Launch");
        assert!(*ranks || !communicates, "{} takes part in communication", path.display());
    }
}

#[test]
fn foreign_crates_stay_in_quarantine() {
    for (crate_name, place) in [
        ("use mpi::traits", "parallel/comm/mpi.rs"),
        ("use mpi::environment", "parallel/comm/mpi.rs"),
        ("use cudarc::nccl", "parallel/comm/nccl.rs"),
        ("use cudarc::driver", "device/driver.rs"),
        ("use clap", "cli.rs"),
        ("use plotters", "report/plot.rs"),
        ("config::Config::builder", "config/load.rs"),
    ] {
        for (module, path, code) in files() {
            let allowed = path == Path::new(place) || (crate_name == "use clap" && module == "main");
            assert!(allowed || !code.contains(crate_name), "{} names {crate_name}", path.display());
        }
    }
}

#[test]
fn the_training_step_is_one_screenful() {
    let lines = |path: &str| std::fs::read_to_string(root().join("src").join(path)).unwrap().lines().count();
    assert!(lines("train/step.rs") <= 250);
    assert!(lines("main.rs") <= 60);
    for (module, path, code) in files() {
        assert!(module != "commands" || code.lines().count() <= 150, "{} is more than glue", path.display());
    }
}

/// A physical rank in a seed, or a hash map on the way to a file, would make results depend on the launch.
#[test]
fn known_ways_to_lose_exactness_are_absent() {
    for (module, path, code) in files() {
        let hash_maps_are_fine = ["nn/weights.rs", "nn/pickle", "metrics/timings.rs"].iter().any(|p| path.starts_with(p));
        assert!(hash_maps_are_fine || !code.contains("HashMap"), "{} iterates a hash map?", path.display());
        assert!(module == "rng" || !code.contains("manual_seed"), "{} uses torch's generator", path.display());
    }
}
