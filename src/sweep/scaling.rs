//! Strong and weak scaling of whole runs over ranks.

use super::folder::SweepFolder;
use super::launch::{planned_run, starting, write_scripts};
use super::local::Signals;
use super::plan::said_file;
use super::shown::{Shown, write};
use super::table::{Cell, Table};
use crate::config::{Config, Loaded, steps_per_round};
use crate::error::{Error, Result, STOPPED};
use crate::files;
use crate::layout::Layout;
use crate::metrics::{Summary, mean_and_std, spread};
use crate::report::{Series, lines};
use crate::task::Headline;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// The base configuration, in the study's folder.
const BASE: &str = "base.toml";

/// Runs of one configuration on several numbers of ranks.
#[derive(Debug)]
pub struct RanksStudy {
    /// Numbers of ranks, each a divisor of the largest.
    pub ranks: Vec<usize>,
    /// Threads of a rank.
    pub threads: usize,
    /// Runs of each row, with seeds of their own.
    pub seeds: u64,
}

/// How the work grows with the ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Not at all: the same run, cut into more parts.
    Strong,
    /// With them: as many logical ranks as ranks, each with the same images and rows.
    Weak,
}

impl Form {
    fn name(self) -> &'static str {
        if self == Self::Strong { "strong" } else { "weak" }
    }
}

/// One row of the table.
struct Planned {
    form: Form,
    ranks: usize,
    logical_ranks: usize,
    batch: usize,
    capacity: usize,
    lr: f64,
}

/// A row, and its runs that are done.
type Row = (Planned, Vec<Summary>);

impl RanksStudy {
    /// Runs what is not done yet, one after the other, and writes `study.md`, `.svg`, `.png` and `results.csv`; `tell` gets the table
    /// after each run. A signal makes the run of the moment save and stop: then there are no files to name.
    ///
    /// # Errors
    /// Ranks that do not divide the largest, a run that fails.
    pub fn run(&self, base: &Loaded, folder: &SweepFolder, tell: &mut dyn FnMut(&str)) -> Result<Option<Vec<PathBuf>>> {
        let mut rows: Vec<Row> = self.planned(&base.config)?.into_iter().map(|row| (row, Vec::new())).collect();
        files::create_folder(folder.path())?;
        write_scripts(folder)?;
        files::write(&folder.path().join(BASE), said_file(base, 1)?.as_bytes())?;
        let signals = Signals::listen()?;
        let mut written = Vec::new();
        for seed in base.config.seed..base.config.seed + self.seeds {
            for index in 0..rows.len() {
                let Some(summary) = self.launch(&rows[index].0, seed, base, folder, &signals)? else { return Ok(None) };
                rows[index].1.push(summary);
                let shown = table(&rows, self.seeds);
                tell(&shown.page);
                written = write(folder, &shown)?;
                let csv = folder.path().join("results.csv");
                files::write(&csv, &results(&rows, base.config.seed).csv()?)?;
                written.push(csv);
            }
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

    /// What a run came to; none if it was stopped. One that is finished says so at once, or that it was another one.
    fn launch(&self, run: &Planned, seed: u64, base: &Loaded, folder: &SweepFolder, signals: &Signals) -> Result<Option<Summary>> {
        let program = std::env::current_exe().map_err(|e| Error::io("find", "this program", &e))?;
        let dir = folder.path().join(format!("{}-{}-seed-{seed}", run.form.name(), run.ranks));
        let mut words = starting(folder, run.ranks, &program);
        words.extend(["train", "--config"].map(str::to_owned));
        words.push(folder.path().join(BASE).display().to_string());
        words.extend(["--run-dir".into(), dir.display().to_string()]);
        for set in [
            format!("parallel.logical_ranks={}", run.logical_ranks),
            format!("distill.batch_size={}", run.batch),
            format!("replay.capacity={}", run.capacity),
            format!("student.lr={:?}", run.lr),
            format!("seed={seed}"),
            // What is derived from the capacity would not be the same work.
            format!("distill.steps_per_round={}", steps_per_round(&base.config)),
        ] {
            words.extend(["--set".into(), set]);
        }
        let log = dir.with_extension("log");
        let mut child = planned_run(&words, &log, self.threads)?.spawn().map_err(|e| Error::io("start", Path::new(&words[0]), &e))?;
        let (status, asked) = signals.wait(&mut child)?;
        if status.success() {
            return Summary::read(&dir).map(Some);
        }
        if asked || status.code() == Some(STOPPED) {
            return Ok(None);
        }
        Err(Error::refused(format!("{} ended with {status}", dir.display()))
            .with_hint(format!("{} says why; the same command goes on from there", log.display()))
            .after_start())
    }
}

fn seconds(summary: &Summary) -> f64 {
    summary.seconds.total - summary.seconds.evaluation
}

/// Mean over a row's runs.
fn mean(row: &Row, of: impl Fn(&Summary) -> f64) -> f64 {
    mean_and_std(&row.1.iter().map(of).collect::<Vec<_>>()).0
}

/// Every run, a line each.
fn results(rows: &[Row], first_seed: u64) -> Table {
    let mut table = Table::default();
    for (run, summaries) in rows {
        for (seed, summary) in (first_seed..).zip(summaries) {
            let whole = |n: usize| Some(Cell::Whole(n as i64));
            let score = summary.student.scores.headline().map(|headline| Cell::Number(headline.value));
            table.push([
                ("scaling".to_owned(), Some(Cell::Text(run.form.name().into()))),
                ("ranks".into(), whole(run.ranks)),
                ("logical_ranks".into(), whole(run.logical_ranks)),
                ("batch".into(), whole(run.batch)),
                ("student.lr".into(), Some(Cell::Number(run.lr))),
                ("seed".into(), whole(seed as usize)),
                ("seconds".into(), Some(Cell::Number(seconds(summary)))),
                ("seconds.communication".into(), Some(Cell::Number(summary.seconds.communication))),
                ("bytes_sent".into(), whole(summary.bytes_sent as usize)),
                ("score".into(), score),
            ]);
        }
    }
    table
}

fn table(rows: &[Row], seeds: u64) -> Shown {
    let (done, planned) = (rows.iter().map(|(_, runs)| runs.len()).sum::<usize>(), rows.len() * seeds as usize);
    let rows: Vec<&Row> = rows.iter().filter(|(_, runs)| !runs.is_empty()).collect();
    let efficiency = |row: &Row| {
        let fewest = rows.iter().filter(|(run, _)| run.form == row.0.form).min_by_key(|(run, _)| run.ranks)?;
        let ratio = mean(fewest, seconds) / mean(row, seconds);
        Some(if row.0.form == Form::Strong { ratio * fewest.0.ranks as f64 / row.0.ranks as f64 } else { ratio })
    };
    let note = if done < planned { " Rows marked * are missing runs." } else { "" };
    let mut page = format!(
        "# Scaling over ranks\n\n{done} of {planned} runs done.{note} Seconds of whole runs, evaluation left out, mean ± sample standard deviation over seeds; \
         efficiency of the means against the fewest ranks.\n\n\
         | scaling | ranks | M | batch | student.lr | seconds | efficiency | communication, % | MB sent by rank 0 | score |\n\
         | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
    );
    for row in &rows {
        let (run, summaries) = row;
        let headlines: Vec<_> = summaries.iter().filter_map(|summary| summary.student.scores.headline()).collect();
        let digits = headlines.first().map_or(2, Headline::digits);
        let _ = writeln!(
            page,
            "| {}{} | {} | {} | {} | {} | {} | {} | {:.2} | {:.1} | {} |",
            run.form.name(),
            if (summaries.len() as u64) < seeds { "*" } else { "" },
            run.ranks,
            run.logical_ranks,
            run.batch,
            run.lr,
            spread(&summaries.iter().map(seconds).collect::<Vec<_>>(), 1),
            efficiency(row).map_or("–".into(), |e| format!("{e:.3}")),
            100.0 * mean(row, |summary| summary.seconds.communication) / mean(row, seconds),
            mean(row, |summary| summary.bytes_sent as f64) / 1e6,
            spread(&headlines.iter().map(|headline| headline.value).collect::<Vec<_>>(), digits),
        );
    }
    page.push_str(
        "\nStrong: the same run on more ranks (bit for bit, unless `parallel.reduce` is native). Weak: M = ranks, each with the same images and rows; `student.lr` grows with the\n\
         batch (the linear rule of Goyal et al., 2017), which holds as long as the rate stays below where training breaks down: look at the score.\n",
    );
    let series = [Form::Strong, Form::Weak].map(|form| Series {
        name: form.name().into(),
        points: rows.iter().filter(|row| row.0.form == form).filter_map(|row| Some((row.0.ranks as f64, efficiency(row)?))).collect(),
    });
    Shown { page, svg: lines("ranks", "efficiency", &series), done, open: planned - done }
}
