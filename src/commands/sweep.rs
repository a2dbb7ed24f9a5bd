//! `ssdkd sweep`.

use super::Outcome;
use crate::cli::{SweepAction, SweepRunArgs};
use crate::error::{Error, Result};
use crate::sweep::{Launcher, Plan, Queue, Request, Status, SweepFile, SweepFolder, Trials, collect, plan, retry, say, status_table};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Rows of a plan that are shown; the rest is in its file.
const SHOWN: usize = 30;

/// Plans, runs, submits, looks at, collects or repeats trials.
pub fn run(action: &SweepAction) -> Result<Outcome> {
    match action {
        SweepAction::Plan { file, dir } => planned(file, dir.as_deref())?,
        SweepAction::Run(args) => return run_here(args),
        SweepAction::Submit { dir, ranks, dry_run } => {
            let launcher = if *dry_run { Launcher::Print } else { Launcher::Slurm };
            launcher.start(&Request::new(dir, *ranks)?)?;
        }
        SweepAction::Status { dir, json } => {
            let folder = SweepFolder::new(dir)?;
            let status = Status::read(&folder, &Plan::read(&folder)?)?;
            if *json {
                println!("{}", serde_json::to_string_pretty(&status).map_err(|e| Error::refused(e.to_string()))?);
            } else {
                print!("{}", status_table(&status, &folder.name()));
            }
        }
        SweepAction::Collect { dir, metric } => {
            let folder = SweepFolder::new(dir)?;
            let (written, page) = collect(&folder, &Plan::read(&folder)?, metric)?;
            print!("{page}");
            written.iter().for_each(|path| eprintln!("wrote {}", path.display()));
        }
        SweepAction::Retry { dir, trials } => {
            let folder = SweepFolder::new(dir)?;
            let queue = Queue::default();
            let said = retry(&folder, &Plan::read(&folder)?, trials, &|job| queue.has(job))?;
            said.iter().for_each(|(name, line)| println!("{name} {line}"));
            if said.is_empty() {
                println!("nothing failed, and no runner is known to be gone");
            }
        }
    }
    Ok(Outcome::Done)
}

fn planned(file: &Path, dir: Option<&Path>) -> Result<()> {
    let name = file.file_stem().unwrap_or_default();
    let folder = SweepFolder::new(&dir.map_or_else(|| PathBuf::from("runs").join(name), Path::to_path_buf))?;
    let planned = plan(&SweepFile::read(file)?, &folder)?;
    let trials = &planned.plan.trials;
    for trial in trials.iter().take(SHOWN) {
        println!("{}  point {:<4} {}", trial.name(), trial.point, trial.sets().join(" "));
    }
    if trials.len() > SHOWN {
        println!("… and {} more", trials.len() - SHOWN);
    }
    for (warning, count) in &planned.warnings {
        eprintln!("warning, {count} of {} trials: {warning}", trials.len());
    }
    let points = trials.iter().map(|trial| trial.point).collect::<std::collections::BTreeSet<_>>().len();
    println!("{} trials of {points} points, {} of them new: {}", trials.len(), planned.new, folder.plan().display());
    if planned.drawn_again > 0 {
        println!(
            "{} points were drawn again and are left out: lists have few combinations, and strategy = \"grid\" takes each once",
            planned.drawn_again
        );
    }
    if planned.doubles > 0 {
        println!("{} combinations come to the same run as another one and are left out", planned.doubles);
    }
    if planned.left_out > 0 {
        println!("{} folders of trials are in the plan no longer; they stay where they are", planned.left_out);
    }
    Ok(())
}

fn run_here(args: &SweepRunArgs) -> Result<Outcome> {
    let launcher = Launcher::Local { jobs: args.jobs, at_most: args.at_most };
    let request = Request::new(&args.dir, args.ranks)?;
    let tally = launcher.start(&request)?;
    say(std::io::stdout(), &format!("{} done, {} rungs reached, {} failed", tally.done, tally.paused, tally.failed));
    let dir = args.dir.display();
    let taken = Trials::read(&request.folder, &request.plan, &BTreeSet::new())?.taken();
    if taken > 0 {
        say(std::io::stdout(), &format!("{taken} trials are taken by other runners: `ssdkd sweep status {dir}` says by whom"));
    }
    if tally.stopped {
        return Ok(Outcome::Stopped);
    }
    if tally.failed > 0 {
        let error = Error::refused(format!("{} trials failed", tally.failed));
        return Err(error
            .with_hint(format!("`ssdkd sweep status {dir}` says why, `ssdkd sweep retry {dir}` lets them be run again"))
            .after_start());
    }
    Ok(Outcome::Done)
}
