//! Strong and weak scaling of whole runs over ranks.

use super::folder::SweepFolder;
use super::launch::{as_planned, write_scripts};
use super::local::Signals;
use super::plan::said_file;
use super::study::Shown;
use crate::config::{Config, Loaded, steps_per_round};
use crate::error::{Error, Result, STOPPED};
use crate::files;
use crate::layout::Layout;
use crate::metrics::Summary;
use crate::report::{Series, lines};
use std::fmt::Write;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Runs of one configuration on several numbers of ranks.
#[derive(Debug)]
pub struct RanksStudy {
    /// Numbers of ranks, each a divisor of the largest.
    pub ranks: Vec<usize>,
    /// Threads of a rank.
    pub threads: usize,
}

/// How the work grows with the ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Not at all: the same run, cut into more parts.
    Strong,
    /// With them: as many logical ranks as ranks, each with the same images and rows.
    Weak,
}

/// One run.
struct Planned {
    form: Form,
    ranks: usize,
    logical_ranks: usize,
    batch: usize,
    capacity: usize,
    lr: f64,
}

impl Planned {
    fn name(&self) -> String {
        format!("{}-{}", if self.form == Form::Strong { "strong" } else { "weak" }, self.ranks)
    }
}

impl RanksStudy {
    /// Runs what is not done yet, one after the other, and writes `study.md`, `.svg` and `.png`; `tell` gets the table after each run. A signal
    /// makes the run of the moment save and stop: then there are no files to name.
    ///
    /// # Errors
    /// Ranks that do not divide the largest, a run that fails.
    pub fn run(&self, base: &Loaded, folder: &SweepFolder, tell: &mut dyn FnMut(&str)) -> Result<Option<Vec<PathBuf>>> {
        let planned = self.planned(&base.config)?;
        files::create_folder(folder.path())?;
        write_scripts(folder)?;
        let config = folder.path().join("base.toml");
        files::write(&config, said_file(base, 1)?.as_bytes())?;
        let signals = Signals::listen()?;
        let (mut done, mut written) = (Vec::new(), Vec::new());
        for run in &planned {
            let dir = folder.path().join(run.name());
            // A run that is finished says so at once, or that it was another one.
            if !self.launch(run, base, folder, &config, &dir, &signals)? {
                return Ok(None);
            }
            done.push((run, Summary::read(&dir)?));
            let shown = table(&done, planned.len());
            tell(&shown.page);
            written = super::study::write(folder, &shown)?;
        }
        Ok(Some(written))
    }

    fn planned(&self, base: &Config) -> Result<Vec<Planned>> {
        let mut counts = self.ranks.clone();
        counts.sort_unstable();
        counts.dedup();
        let largest = counts.last().copied().unwrap_or(1);
        let logical = base.parallel.logical_ranks.unwrap_or(largest);
        for &ranks in &counts {
            Layout::new(logical, ranks)?;
        }
        let strong = |&ranks: &usize| Planned {
            form: Form::Strong,
            ranks,
            logical_ranks: logical,
            batch: base.distill.batch_size,
            capacity: base.replay.capacity,
            lr: base.student.lr,
        };
        let weak = |&ranks: &usize| Planned {
            form: Form::Weak,
            ranks,
            logical_ranks: ranks,
            batch: base.distill.batch_size / logical * ranks,
            capacity: base.replay.capacity / logical * ranks,
            // The linear rule (Goyal et al., 2017): the rate of a row stays what it was.
            lr: base.student.lr * ranks as f64 / logical as f64,
        };
        Ok(counts.iter().map(strong).chain(counts.iter().map(weak)).collect())
    }

    /// Whether it came to its end.
    fn launch(&self, run: &Planned, base: &Loaded, folder: &SweepFolder, config: &Path, dir: &Path, signals: &Signals) -> Result<bool> {
        let program = std::env::current_exe().map_err(|e| Error::io("find", "this program", &e))?;
        let mut command = if run.ranks > 1 {
            let mut command = Command::new("bash");
            command.arg(folder.launch().join("mpirun.sh")).arg(run.ranks.to_string()).arg(program);
            command
        } else {
            Command::new(program)
        };
        command.arg("train").arg("--config").arg(config).arg("--run-dir").arg(dir);
        for set in [
            format!("parallel.logical_ranks={}", run.logical_ranks),
            format!("distill.batch_size={}", run.batch),
            format!("replay.capacity={}", run.capacity),
            format!("student.lr={:?}", run.lr),
            // What is derived from the capacity would not be the same work.
            format!("distill.steps_per_round={}", steps_per_round(&base.config)),
        ] {
            command.args(["--set", &set]);
        }
        let log = folder.path().join(format!("{}.log", run.name()));
        let open = || File::options().create(true).append(true).open(&log).map_err(|e| Error::io("write", &log, &e));
        command.stdin(Stdio::null()).stdout(open()?).stderr(open()?);
        as_planned(&mut command, self.threads);
        // Signals of a terminal come to us alone.
        let mut child = command.process_group(0).spawn().map_err(|e| Error::io("start", Path::new("mpirun"), &e))?;
        let (status, asked) = signals.wait(&mut child)?;
        if status.success() {
            return Ok(true);
        }
        if asked || status.code() == Some(STOPPED) {
            return Ok(false);
        }
        Err(Error::refused(format!("{} ended with {status}", run.name()))
            .with_hint(format!("{} says why; the same command goes on from there", log.display()))
            .after_start())
    }
}

fn table(done: &[(&Planned, Summary)], planned: usize) -> Shown {
    let seconds = |summary: &Summary| summary.seconds.total - summary.seconds.evaluation;
    let first = |form: Form| done.iter().filter(|(run, _)| run.form == form).min_by_key(|(run, _)| run.ranks);
    let efficiency = |(run, summary): &(&Planned, Summary)| {
        let (fewest, base) = first(run.form)?;
        let ratio = seconds(base) / seconds(summary);
        Some(if run.form == Form::Strong { ratio * fewest.ranks as f64 / run.ranks as f64 } else { ratio })
    };
    let mut page = format!(
        "# Scaling over ranks\n\n{} of {planned} runs done. Seconds of whole runs, evaluation left out; efficiency against the fewest ranks.\n\n\
         | scaling | ranks | M | batch | student.lr | seconds | efficiency | communication, % | MB sent by rank 0 | score |\n\
         | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n",
        done.len()
    );
    for entry in done {
        let (run, summary) = entry;
        let _ = writeln!(
            page,
            "| {} | {} | {} | {} | {} | {:.1} | {} | {:.2} | {:.1} | {} |",
            if run.form == Form::Strong { "strong" } else { "weak" },
            run.ranks,
            run.logical_ranks,
            run.batch,
            run.lr,
            seconds(summary),
            efficiency(entry).map_or("–".into(), |e| format!("{e:.3}")),
            100.0 * summary.seconds.communication / seconds(summary),
            summary.bytes_sent as f64 / 1e6,
            summary.student.scores.headline().map_or("–".into(), |headline| headline.text()),
        );
    }
    page.push_str(
        "\nStrong: the same run on more ranks (bit for bit, unless `parallel.reduce` is native). Weak: M = ranks, each with the same images and rows; `student.lr` grows with the\n\
         batch (the linear rule of Goyal et al., 2017), which holds as long as the rate stays below where training breaks down: look at the score.\n",
    );
    let series = [Form::Strong, Form::Weak].map(|form| Series {
        name: if form == Form::Strong { "strong" } else { "weak" }.into(),
        points: done.iter().filter(|(run, _)| run.form == form).filter_map(|e| Some((e.0.ranks as f64, efficiency(e)?))).collect(),
    });
    Shown { page, svg: lines("ranks", "efficiency", &series), done: done.len(), open: planned - done.len() }
}
