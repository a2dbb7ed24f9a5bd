//! `ssdkd report`.

use crate::cli::ReportArgs;
use crate::error::{Error, Result};
use crate::files;
use crate::report::{self, Group, compare};
use crate::run_folder::Status;
use crate::sweep::{Plan, SweepFolder, groups};
use std::path::{Path, PathBuf};

/// Writes a page about one run, or about all that several folders hold.
pub fn run(args: &ReportArgs) -> Result<()> {
    if let Some(missing) = args.dirs.iter().find(|dir| !dir.is_dir()) {
        return Err(Error::file(missing, "no such folder"));
    }
    let of_one = |dir: &PathBuf| dir.join("report.html");
    let out = match (&args.out, args.dirs.as_slice()) {
        (Some(out), _) => out.clone(),
        (None, [dir]) => of_one(dir),
        (None, _) => "comparison.html".into(),
    };
    files::check_target(&out)?;
    let page = match args.dirs.as_slice() {
        [dir] if !is_sweep(dir) && runs_below(dir)?.is_empty() => {
            is_finished(dir)?;
            report::of_run(dir)?
        }
        dirs => {
            let mut all = Vec::new();
            for dir in dirs {
                all.extend(in_folder(dir)?);
            }
            compare(&title(dirs), &dirs.iter().map(PathBuf::as_path).collect::<Vec<_>>(), &all)?
        }
    };
    files::write(&out, page.as_bytes())?;
    println!("{}", out.display());
    Ok(())
}

fn is_finished(dir: &Path) -> Result<()> {
    match Status::known(dir)? {
        Some(status) if !dir.join("report.json").exists() => {
            let problem = format!("{} holds a run that is not finished: {} student steps are saved", dir.display(), status.student_steps);
            Err(Error::refused(problem).with_hint("start it again and it goes on; its metrics.csv shows how far it is"))
        }
        _ => Ok(()),
    }
}

fn is_sweep(dir: &Path) -> bool {
    dir.join("plan.toml").exists()
}

/// Finished runs right below a folder, by name: what `study ranks` leaves, or what somebody has put together.
fn runs_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir).map_err(|e| Error::io("read", dir, &e))?;
    let mut runs: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(|path| path.join("report.json").exists()).collect();
    runs.sort();
    Ok(runs)
}

fn in_folder(dir: &Path) -> Result<Vec<Group>> {
    if !is_sweep(dir) {
        let mut runs = runs_below(dir)?;
        if runs.is_empty() {
            runs.push(dir.to_path_buf());
        }
        return Ok(runs.into_iter().map(|run| Group { name: name(&run), runs: vec![run] }).collect());
    }
    let folder = SweepFolder::new(dir)?;
    Ok(groups(&folder, &Plan::read(&folder)?))
}

fn name(dir: &Path) -> String {
    dir.file_name().map_or_else(|| dir.display().to_string(), |name| name.to_string_lossy().into_owned())
}

fn title(dirs: &[PathBuf]) -> String {
    dirs.iter().map(|dir| name(dir)).collect::<Vec<_>>().join(", ")
}
