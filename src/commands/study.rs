//! `ssdkd study`.

use super::{Outcome, configured, merged};
use crate::cli::{RanksStudyArgs, StudyAction, StudyArgs};
use crate::config::Job;
use crate::error::{Error, Result};
use crate::files;
use crate::report::compare;
use crate::sweep::{
    Kind, Launcher, Plan, RanksStudy, Request, Study, SweepFile, SweepFolder, Trials, folder_of, groups, plan, say, show, write_study,
};
use std::collections::BTreeSet;
use std::io::{stderr, stdout};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How often a study that runs looks whether another run is done.
const LOOK: Duration = Duration::from_secs(5);

/// Runs a study, or shows how it stands.
pub fn run(action: &StudyAction) -> Result<Outcome> {
    match action {
        StudyAction::Scale { study, sizes } => run_study(study, Study { sizes: sizes.clone(), ..asked(Kind::Scale, study) }),
        StudyAction::Ablation(args) => run_study(args, asked(Kind::Ablation, args)),
        StudyAction::Compare { study, variant, pair } => {
            run_study(study, Study { variants: variant.clone(), pairs: pair.clone(), ..asked(Kind::Compare, study) })
        }
        StudyAction::Reproduce { study, pair } => run_study(study, Study { pairs: pair.clone(), ..asked(Kind::Reproduce, study) }),
        StudyAction::Ranks(args) => ranks(args),
        StudyAction::Show { dir } => {
            let folder = SweepFolder::new(dir)?;
            // A study of ranks has no plan: its table is as new as its last run.
            let table = dir.join("study.md");
            if !folder.plan().exists() && table.exists() {
                print!("{}", String::from_utf8_lossy(&files::read(&table)?));
                return Ok(Outcome::Done);
            }
            finish(&folder, &Plan::read(&folder)?).map(|_| Outcome::Done)
        }
    }
}

fn asked(kind: Kind, args: &StudyArgs) -> Study {
    let (seeds, ranks, threads) = (args.seeds, args.ranks, args.threads);
    Study { kind, seeds, sizes: Vec::new(), variants: Vec::new(), pairs: Vec::new(), ranks, threads }
}

fn run_study(args: &StudyArgs, study: Study) -> Result<Outcome> {
    let folder = folder_of(study.kind, args.dir.as_deref())?;
    let base = merged(&args.config)?;
    let planned = plan(&SweepFile::read(&study.write(&base, &folder)?)?, &folder)?;
    for (warning, count) in &planned.warnings {
        eprintln!("warning, {count} of {} runs: {warning}", planned.plan.trials.len());
    }
    if planned.left_out > 0 {
        eprintln!("{} folders of runs are in the plan no longer; they stay where they are", planned.left_out);
    }
    if args.plan_only {
        println!("{} runs planned: {}", planned.plan.trials.len(), folder.plan().display());
        return Ok(Outcome::Done);
    }
    let launcher = Launcher::Local { jobs: args.jobs, at_most: None };
    let request = Request::new(folder.path(), Some(args.ranks))?;
    let over = AtomicBool::new(false);
    let tally = std::thread::scope(|scope| {
        scope.spawn(|| tell(&folder, &request.plan, &over));
        let tally = launcher.start(&request);
        over.store(true, Ordering::Relaxed);
        tally
    })?;
    let open = finish(&folder, &request.plan)?;
    if tally.stopped {
        return Ok(Outcome::Stopped);
    }
    if open == 0 {
        return Ok(Outcome::Done);
    }
    let dir = folder.path().display();
    let elsewhere = Trials::read(&folder, &request.plan, &BTreeSet::new())?.with_others();
    if open > elsewhere {
        let hint = format!(
            "`ssdkd sweep status {dir}` says why, `ssdkd sweep retry {dir}` lets those that failed, or whose runner is gone, run again"
        );
        return Err(Error::refused(format!("{} runs are not done", open - elsewhere)).with_hint(hint).after_start());
    }
    say(stdout(), &format!("{open} runs have other runners: `ssdkd study show {dir}` shows what came of them"));
    Ok(Outcome::Done)
}

/// Writes and prints the table whenever a run is done, or has failed.
fn tell(folder: &SweepFolder, plan: &Plan, over: &AtomicBool) {
    let mut told = String::new();
    while !over.load(Ordering::Relaxed) {
        if let Ok(shown) = show(folder, plan)
            && shown.page != told
            && write_study(folder, &shown).is_ok()
        {
            say(stdout(), &shown.page);
            told = shown.page;
        }
        let wait = std::time::Instant::now();
        while wait.elapsed() < LOOK && !over.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Writes all that a study leaves; how many runs are not done.
fn finish(folder: &SweepFolder, plan: &Plan) -> Result<usize> {
    let shown = show(folder, plan)?;
    let mut written = write_study(folder, &shown)?;
    written.extend(crate::sweep::collect(folder, plan, &[])?.0);
    if shown.done > 0 {
        let page = folder.path().join("report.html");
        files::write(&page, compare(&folder.name(), &[folder.path()], &groups(folder, plan))?.as_bytes())?;
        written.push(page);
    }
    say(stdout(), &shown.page);
    written.iter().for_each(|path| say(stderr(), &format!("wrote {}", path.display())));
    Ok(shown.open)
}

fn ranks(args: &RanksStudyArgs) -> Result<Outcome> {
    let base = configured(&args.config, Job::Train)?;
    let folder = SweepFolder::new(&args.dir)?;
    let study = RanksStudy { ranks: args.ranks.clone(), threads: args.threads, seeds: args.seeds };
    let Some(written) = study.run(&base, &folder, &mut |table| say(stdout(), table))? else { return Ok(Outcome::Stopped) };
    written.iter().for_each(|path| say(stderr(), &format!("wrote {}", path.display())));
    Ok(Outcome::Done)
}
