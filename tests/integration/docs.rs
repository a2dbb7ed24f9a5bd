//! Documents agree with the code: generated pages are current, links lead somewhere, named files exist.

use crate::launch::{root, ssdkd};
use clap::{CommandFactory, Parser};
use std::path::{Path, PathBuf};

/// Compares a generated page, or writes it when UPDATE_DOCS is set.
pub fn check(path: &str, current: &str) {
    let path = root().join(path);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, current).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == current, "{} is stale; refresh it with: UPDATE_DOCS=1 cargo test --release --test integration", path.display());
}

#[test]
fn the_configuration_reference_is_current() {
    let printed = ssdkd(&["config", "reference"]).expect(0).stdout;
    check("docs/config.md", &printed);
}

/// Commands below one, in the order of the code, each before its own.
fn commands(of: &clap::Command, name: &str) -> Vec<String> {
    let below = of.get_subcommands().flat_map(|command| commands(command, &format!("{name} {}", command.get_name())));
    std::iter::once(name.to_owned()).chain(below).collect()
}

#[test]
fn the_command_reference_is_current() {
    // As wide as where there is no terminal.
    let cli = || ssdkd::cli::Cli::command().term_width(100);
    let mut page = String::from("# Commands\n\nGenerated from `src/cli.rs`; a test fails when this page is stale.\n");
    for command in commands(&cli(), "ssdkd") {
        let help = cli().try_get_matches_from(command.split(' ').chain(["--help"])).unwrap_err().to_string();
        let help: String = help.lines().map(|line| format!("{}\n", line.trim_end())).collect();
        page.push_str(&format!("\n## `{command}`\n\n```text\n{}\n```\n", help.trim_end()));
    }
    check("docs/commands.md", &page);
    // What the program itself prints.
    let printed = ssdkd(&["bench", "ranks", "--help"]).expect(0).stdout;
    let printed: Vec<&str> = printed.trim_end().lines().map(str::trim_end).collect();
    assert!(page.contains(&format!("```text\n{}\n```", printed.join("\n"))), "{printed:?}");
}

/// The projected table is the one that the command above it prints.
#[test]
fn the_projection_is_current() {
    let page = std::fs::read_to_string(root().join("docs/scaling.md")).unwrap();
    for pair in [&["wrn40_2", "wrn16_1"], &["resnet34", "resnet18"]] {
        let printed = ssdkd(&["bench", "ranks", "--project", "--teacher", pair[0], "--student", pair[1]]).expect(0).stdout;
        assert!(page.contains(&printed), "docs/scaling.md does not show:\n{printed}");
    }
}

fn pages() -> Vec<PathBuf> {
    let mut pages = vec![root().join("README.md")];
    let mut open = vec![root().join("docs")];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.extension() {
                _ if path.is_dir() => open.push(path),
                Some(e) if e == "md" => pages.push(path),
                _ => {}
            }
        }
    }
    pages
}

#[test]
fn links_lead_somewhere() {
    for page in pages() {
        let text = std::fs::read_to_string(&page).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().unwrap();
            if target.is_empty() || target.starts_with("http") {
                continue;
            }
            assert!(page.parent().unwrap().join(target).exists(), "{}: link to {link}", page.display());
        }
    }
}

/// Every shipped configuration, with the command that its head shows.
fn heads() -> Vec<(PathBuf, String)> {
    let mut heads = Vec::new();
    for folder in ["cifar10", "cifar100", "fashion_mnist", "folder", "methods", "none", "nyuv2", "scenes13", "svhn", "tiny_imagenet"] {
        for entry in std::fs::read_dir(root().join("configs").join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|e| e == "toml") {
                let text = std::fs::read_to_string(&path).unwrap();
                let command: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("#   ")).collect();
                heads.push((path, command.join("\n").replace("\\\n", " ")));
            }
        }
    }
    heads
}

/// Every file of the repository that a command block of a page, or the head of a configuration, names is there.
#[test]
fn commands_name_files_that_exist() {
    let mut blocks = heads();
    for page in pages() {
        let text = std::fs::read_to_string(&page).unwrap();
        blocks.extend(text.split("```").skip(1).step_by(2).map(|block| (page.clone(), block.to_owned())));
    }
    for (page, block) in blocks {
        for word in block.split_whitespace() {
            let word = word.trim_matches(|c| "\"'`,;".contains(c));
            if ["configs/", "launch/", "docs/", "tests/", "src/"].iter().any(|p| word.starts_with(p)) && !word.contains(['*', '<', '{']) {
                assert!(Path::new(&root().join(word)).exists(), "{}: {word}", page.display());
            }
        }
    }
}

/// The command at the head of a configuration starts that configuration as it stands: launcher, binary, options.
#[test]
fn heads_of_configurations_are_commands_that_parse() {
    let heads = heads();
    assert!(heads.len() >= 26);
    for (path, command) in heads {
        let words: Vec<&str> = command.split_whitespace().collect();
        let place = path.display();
        assert!(words[0] == "launch/mpirun.sh" && words[1].parse::<usize>().is_ok(), "{place}: {command}");
        assert_eq!(words[2], "target/release/ssdkd", "{place}");
        ssdkd::cli::Cli::try_parse_from(&words[2..]).unwrap_or_else(|e| panic!("{place}: {e}"));
        let own = path.strip_prefix(root()).unwrap().to_str().unwrap();
        assert!(words.contains(&own), "{place} shows a command for another file: {command}");
    }
}

/// Equations that comments cite are numbered so in docs/method.md, each once.
#[test]
fn cited_equations_have_their_number_on_the_page() {
    let page = std::fs::read_to_string(root().join("docs/method.md")).unwrap();
    let mut cited = std::collections::BTreeSet::new();
    for (path, text) in crate::architecture::texts() {
        for after in text.split("Eq. ").skip(1) {
            let number: String = after.chars().take_while(char::is_ascii_digit).collect();
            assert_eq!(page.matches(&format!("| ({number}) ")).count(), 1, "{}: Eq. {number}", path.display());
            cited.insert(number);
        }
    }
    assert!(cited.len() >= 6, "{cited:?}");
}

/// The table of exit codes says what the code does.
#[test]
fn exit_codes_are_as_documented() {
    let text = std::fs::read_to_string(root().join("docs/exit-codes.md")).unwrap();
    for code in ["| 0 |", "| 2 |", "| 75 |", "| 1 |"] {
        assert!(text.contains(code), "{code}");
    }
    assert_eq!(ssdkd::error::Error::refused("x").exit_code(), 2);
    assert_eq!(ssdkd::error::Error::NonFinite { what: "x", times: 1, step: 1 }.exit_code(), 1);
}
