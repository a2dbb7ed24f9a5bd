//! The training loop: rounds, what is written after each, and how a run ends.

mod guard;
mod keeper;
mod machine;
mod picture;
mod state;
mod step;

pub use guard::{Guard, Of, Verdict};
pub use keeper::{Keeper, Next, same_run};
pub use state::{Cursor, Run};
pub use step::round;

use crate::data::write_grid;
use crate::error::{Error, Result};
use crate::eval;
use crate::files;
use crate::metrics::{
    BufferSummary, NetworkScore, Progress, RoundRecord, Seen, Sinks, Summary, TimingRecord, Timings, Work, read_table, version,
};
use crate::nn::weights;
use crate::parallel::{self, World, end_with, launcher_columns};
use crate::run_folder::{RunFolder, State, Status, new_run_id};
use crate::task::Best;
use std::path::PathBuf;

/// Where a run writes. Files and screen belong to the leading rank.
pub struct Outlet {
    folder: PathBuf,
    run_id: String,
    sinks: Option<Sinks>,
    progress: Option<Progress>,
    timings: Timings,
    best: Best,
    last: Option<RoundRecord>,
}

impl Outlet {
    /// The folder as the run will find it: its state, its configuration as it is now, and tables up to where it goes on, open for
    /// more. A collective.
    ///
    /// Rows written before a resume count for the best and the last score. A run that has no name yet gets one.
    pub fn open(folder: &RunFolder, run: &Run, status: &mut Status, world: &World, timings: Timings) -> Result<Self> {
        if status.id.is_empty() {
            status.id = world.from_leader(|| Ok(new_run_id()))?;
        }
        let open = || -> Result<_> {
            // The state first: it marks the folder as a run's.
            status.write(folder.path())?;
            folder.write_config(&run.config, &run.inputs())?;
            folder.cut_tables(run.cursor.round())?;
            let rows: Vec<RoundRecord> = read_table(&folder.path().join("metrics.csv"))?;
            Ok((Some(Sinks::open(folder.path())?), rows))
        };
        let (sinks, rows) = world.agree(if world.leads() { open() } else { Ok((None, Vec::new())) })?;
        let (folder, run_id) = (folder.path().to_path_buf(), status.id.clone());
        let mut outlet = Self { progress: None, folder, run_id, sinks, timings, best: Best::default(), last: None };
        rows.into_iter().for_each(|row| outlet.remember(row));
        Ok(outlet)
    }

    /// From here on a pace is measured.
    fn start_clock(&mut self, run: &Run) {
        let (rounds, round) = (run.config.train.rounds, run.cursor.round());
        self.progress = Some(Progress::new(rounds, round, run.work_in_all(), run.work_done(), self.timings.seconds(), launcher_columns()));
    }

    fn remember(&mut self, record: RoundRecord) {
        let scores = record.scores();
        if scores.headline().is_some() {
            self.best = self.best.and(&scores);
            self.last = Some(record);
        }
    }

    fn student_score(&self, model: &str) -> NetworkScore {
        let scores = self.last.as_ref().map(RoundRecord::scores).unwrap_or_default();
        NetworkScore { model: model.into(), scores, loss: self.last.as_ref().and_then(|r| r.student_loss), best: self.best }
    }
}

/// Says what is about to run, and what about it is probably not meant.
pub fn announce(run: &Run, world: &World, outlet: &Outlet, resumed: bool) {
    if !world.leads() {
        return;
    }
    if resumed {
        eprintln!("resumed at step {}", run.cursor.student_steps());
    }
    for warning in &run.plan.warnings {
        tracing::warn!("{warning}");
    }
    let gigabytes = |bytes: f64| (bytes / 1e7).round() / 100.0;
    tracing::info!(
        run = outlet.run_id,
        tags = (!run.config.tags.is_empty()).then(|| run.config.tags.join(", ")),
        method = run.method.name,
        ranks = world.layout().ranks(),
        logical_ranks = world.layout().logical_ranks(),
        threads = parallel::thread_count(),
        device = ?world.device(),
        rounds = run.config.train.rounds,
        student_steps = run.plan.total_steps,
        transport = world.comm().name(),
        buffer_gb_a_rank = run.memory.replay().map(|replay| gigabytes(replay.bytes())),
        inversion_gb_a_rank = run.inversion_bytes.map(gigabytes),
        step_gb_a_rank = gigabytes(run.step_bytes),
        "start"
    );
}

/// How a launch ended; a run that is not finished is saved.
#[derive(Debug)]
pub enum End {
    /// All rounds are done.
    Finished(Box<Summary>),
    /// A signal came.
    Stopped,
    /// The round to pause at is reached.
    Paused,
}

/// Runs all rounds, or those before `until`, and writes the results; [`Keeper::finish`] closes the run. A collective.
pub fn train(run: &mut Run, world: &World, keeper: &mut Keeper, outlet: &mut Outlet, until: Option<u64>) -> Result<End> {
    let teacher = run.teacher_score(world, keeper)?;
    if world.leads() {
        outlet.start_clock(run);
    }
    while !run.finished() {
        if until.is_some_and(|until| run.cursor.round() >= until) {
            keeper.save(run, world, State::Paused, true)?;
            return Ok(End::Paused);
        }
        let _span = tracing::debug_span!("round", round = run.cursor.round()).entered();
        let Some(record) = step::round(run, world, keeper)? else { return Ok(End::Stopped) };
        after_round(run, world, outlet, &record)?;
        outlet.remember(record);
    }
    if let Some(progress) = &outlet.progress {
        progress.finish();
    }
    let summary = finish(run, world, outlet, teacher)?;
    keeper.save(run, world, State::Running, true)?;
    Ok(End::Finished(Box::new(summary)))
}

/// Files, picture and screen after a round; a failure on the leading rank ends all of them.
fn after_round(run: &Run, world: &World, outlet: &mut Outlet, record: &RoundRecord) -> Result<()> {
    let every = run.config.train.picture_every_rounds;
    let last = record.round + 1 == run.config.train.rounds;
    let due = every > 0 && (last || record.round.is_multiple_of(every));
    let picture = match run.memory.replay() {
        Some(replay) if due => picture::gather(replay, &run.facts, world)?,
        None if due && world.leads() => picture::made(run, record.round),
        _ => None,
    };
    let seconds = outlet.timings.seconds();
    let written = outlet.sinks.as_mut().map_or(Ok(()), |sinks| {
        let timing = TimingRecord::new(record.round, &seconds, run.sent(world));
        sinks.write(record, &timing)?;
        if let Some(rows) = picture {
            let (png, size) = write_grid(&picture::explained(rows, run))?;
            files::write(&outlet.folder.join(format!("pictures/round-{:05}.png", record.round)), &png)?;
            sinks.picture("synthetic images", &png, size, record.round)?;
        }
        Ok(())
    });
    world.agree(written)?;
    let pace = outlet.progress.as_mut().map(|progress| progress.show(record, run.work_done(), seconds));
    tracing::info!(
        round = record.round,
        student_step = record.student_step,
        loss_statistics = record.loss_statistics,
        loss_task = record.loss_task,
        loss_student = record.loss_student,
        buffer = record.buffer_filled,
        top1 = record.student_top1,
        miou = record.student_miou,
        agreement = record.student_agreement,
        samples_per_s = pace.map(|p| p.samples_per_s.round()),
        seconds_left = pace.filter(|p| !p.is_partial).map(|p| p.left.as_secs()),
        "round"
    );
    Ok(())
}

/// The student, and `report.json`. A collective.
fn finish(run: &Run, world: &World, outlet: &Outlet, teacher: Option<NetworkScore>) -> Result<Summary> {
    let class_counts = run.class_counts(world)?;
    let buffer = match run.memory.replay() {
        Some(replay) => Some(BufferSummary {
            capacity: replay.capacity() as u64,
            seen: Seen { class_counts, confidence_counts: replay.confidence_counts(world)? },
        }),
        None => None,
    };
    let fresh = if buffer.is_none() && world.leads() { picture::seen(run, run.cursor.round().saturating_sub(1)) } else { None };
    let moved = run.moved_by_all(world)?;
    let summary = Summary {
        run_id: outlet.run_id.clone(),
        tags: run.config.tags.clone(),
        method: run.method.name.into(),
        dataset: run.config.dataset.name().into(),
        class_names: run.facts.class_names.clone(),
        ranks: world.layout().ranks(),
        logical_ranks: world.layout().logical_ranks(),
        threads: parallel::thread_count(),
        device: format!("{:?} {}", world.device(), crate::nn::shim::cpu_capability()),
        teacher,
        student: outlet.student_score(run.trained_model()),
        seconds: outlet.timings.seconds(),
        samples_synthesised: run.samples_synthesised(),
        student_steps: run.cursor.student_steps(),
        bytes_sent: run.sent(world).bytes,
        rows_moved: moved.rows,
        bytes_moved_per_draw: moved.bytes as f64 / moved.draws.max(1) as f64,
        buffer,
        fresh,
        config_hash: run.plan.config_hash.clone(),
        seed: run.config.seed,
        version: version(),
    };
    let written = if world.leads() { write_results(run, outlet, &summary) } else { Ok(()) };
    world.agree(written)?;
    Ok(summary)
}

fn write_results(run: &Run, outlet: &Outlet, summary: &Summary) -> Result<()> {
    let metadata = run.facts.metadata(run.trained_model(), &summary.dataset);
    weights::write(&outlet.folder.join(run.trained_file()), &run.student.state().state_dict(), &metadata)?;
    let text = serde_json::to_string_pretty(summary).map_err(|e| Error::refused(e.to_string()))?;
    files::write(&outlet.folder.join("report.json"), text.as_bytes())
}

/// Writes into the folder how the run has ended. An error of this rank alone is printed here, and ends the job.
///
/// # Errors
/// The one given.
pub fn fail<T>(error: Error, world: &World, keeper: &mut Keeper, folder: &RunFolder) -> Result<T> {
    keeper.status_mut().state = State::Failed;
    keeper.status_mut().cause = Some(error.to_string());
    if world.leads() || !error.is_known_to_all() {
        let _ = keeper.status_mut().write(folder.path());
    }
    if error.is_known_to_all() {
        return Err(error);
    }
    end_with(&error, world.rank().0)
}

impl Run {
    /// Work of the whole run.
    fn work_in_all(&self) -> Work {
        let inversions = if self.synthesises() { self.config.train.rounds } else { 0 };
        self.work(inversions, self.plan.total_steps)
    }

    /// Work up to where the run is.
    fn work_done(&self) -> Work {
        let begun = self.cursor.round() + u64::from(!self.cursor.at_inversion());
        self.work(if self.synthesises() { begun } else { 0 }, self.cursor.student_steps())
    }

    fn work(&self, inversions: u64, steps: u64) -> Work {
        let samples = inversions * self.plan.images_per_round as u64 + steps * self.batch_size() as u64;
        Work { inversions, steps, samples }
    }

    /// Measured once in the life of a run. A collective.
    fn teacher_score(&self, world: &World, keeper: &mut Keeper) -> Result<Option<NetworkScore>> {
        let (Some(teacher), None) = (&self.teacher, &keeper.status_mut().teacher) else { return Ok(keeper.status_mut().teacher.clone()) };
        // Without data there is nothing to hold it against.
        let score = eval::evaluate(world, teacher.parts(), &self.normalise, &self.test, None)?;
        let (scores, loss) = score.map(|score| (score.scores, score.loss)).unwrap_or_default();
        let model = self.config.teacher.model.name().into();
        keeper.status_mut().teacher = Some(NetworkScore { model, scores, loss, best: Best::default() });
        Ok(keeper.status_mut().teacher.clone())
    }
}
