//! Looks after a run between steps: checkpoints when they are due, and a stop when a signal has come.

use super::machine::{change, machines};
use super::state::Run;
use crate::checkpoint::{Checkpoints, Manifest, Position};
use crate::config::{self, Config, Job, OnFailure, Plan, StopSignal};
use crate::error::{Error, Finding, Result};
use crate::files;
use crate::layout::LogicalRank;
use crate::metrics::{Timings, version};
use crate::nn::weights;
use crate::parallel::{PerRank, World};
use crate::run_folder::{EVIDENCE, State, Status};
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tch::Tensor;

/// Whether a run goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// With the next step.
    GoOn,
    /// All ranks stop here; everything is saved.
    Stop,
}

/// Keeps a run's checkpoints and watches for signals.
pub struct Keeper {
    checkpoints: Checkpoints,
    rule: config::Checkpoint,
    folder: PathBuf,
    status: Status,
    timings: Timings,
    machines: String,
    stop: Arc<AtomicBool>,
    steps_since: u64,
    saved: Instant,
    /// Position of the newest checkpoint, which is known to be whole.
    on_disk: Option<Position>,
    looked: Instant,
    longest: Duration,
    first: bool,
}

impl Keeper {
    /// For a run folder. The signal handlers set a flag and nothing else. A collective.
    pub fn new(folder: &Path, rule: &config::Checkpoint, status: Status, timings: Timings, world: &World) -> Result<Self> {
        let machines = machines(world)?;
        let stop = Arc::new(AtomicBool::new(false));
        for signal in &rule.signals {
            let number = match signal {
                StopSignal::Term => SIGTERM,
                StopSignal::Usr1 => SIGUSR1,
                StopSignal::Usr2 => SIGUSR2,
                StopSignal::Int => SIGINT,
            };
            signal_hook::flag::register(number, stop.clone()).map_err(|e| Error::refused(format!("cannot listen for {signal:?}: {e}")))?;
        }
        Ok(Self {
            checkpoints: Checkpoints::new(folder, rule.keep, rule.pack),
            rule: rule.clone(),
            folder: folder.into(),
            status,
            timings,
            machines,
            stop,
            steps_since: 0,
            saved: Instant::now(),
            on_disk: None,
            looked: Instant::now(),
            longest: Duration::ZERO,
            first: true,
        })
    }

    /// The run's status, as last written.
    pub fn status_mut(&mut self) -> &mut Status {
        &mut self.status
    }

    /// After an inversion or a student step. All ranks agree on what follows. A collective; 1 byte a rank.
    ///
    /// The first call of a launch saves: a folder that cannot take a checkpoint is noticed while little is at stake, and the log
    /// says from the start how long a signal takes to be answered (the longest step and a checkpoint).
    pub fn look(&mut self, run: &Run, world: &World) -> Result<Next> {
        self.steps_since += 1;
        self.longest = self.longest.max(self.looked.elapsed());
        let minutes = self.saved.elapsed().as_secs_f64() / 60.0;
        let old = self.rule.every_minutes > 0.0 && minutes >= self.rule.every_minutes;
        let mine = u8::from(self.stop.load(Ordering::Relaxed)) | u8::from(old && world.leads()) << 1;
        let mut all = vec![0u8; world.layout().ranks()];
        world.comm().all_gather(&[mine], &mut all)?;
        let seen = all.iter().fold(0, |a, b| a | b);
        let stop = seen & 1 != 0;
        let due = self.first || seen & 2 != 0 || (self.rule.every_steps > 0 && self.steps_since >= self.rule.every_steps);
        if stop || due {
            self.save(run, world, if stop { State::Stopped } else { State::Running }, stop)?;
            (self.first, self.longest) = (false, Duration::ZERO);
        }
        self.looked = Instant::now();
        Ok(if stop { Next::Stop } else { Next::GoOn })
    }

    /// Saves the run. A failure is passed on if `must` or configured so; otherwise it is said, and the last checkpoint stands. A
    /// collective.
    pub fn save(&mut self, run: &Run, world: &World, state: State, must: bool) -> Result<()> {
        let _span = tracing::debug_span!("saving").entered();
        let began = Instant::now();
        let outcome = self.write(run, world).and_then(|bytes| self.write_status(run, world, state).map(|()| bytes));
        (self.steps_since, self.saved) = (0, Instant::now());
        match outcome {
            Ok(bytes) => {
                let (step, seconds) = (run.cursor.student_steps(), began.elapsed().as_secs_f64());
                let longest_step_seconds = self.longest.as_secs_f64();
                tracing::info!(step, megabytes = bytes as f64 / 1e6, seconds, longest_step_seconds, "checkpoint");
                Ok(())
            }
            Err(error) if must || self.rule.on_failure == OnFailure::End => Err(error),
            Err(error) => {
                if world.leads() {
                    tracing::warn!("a checkpoint could not be written, the last one stands, the run goes on: {error}");
                }
                Ok(())
            }
        }
    }

    /// Bytes written by all ranks; none where this position is on disk already.
    fn write(&mut self, run: &Run, world: &World) -> Result<u64> {
        let position = run.position();
        if self.on_disk == Some(position) {
            return Ok(0);
        }
        let logical = world.layout().logical_ranks();
        let manifest = Manifest::new(position, logical, run.plan.identity.clone(), version(), self.machines.clone());
        let bytes = self.checkpoints.save(world, run.contents(world), manifest)?;
        self.on_disk = Some(position);
        Ok(bytes)
    }

    /// The run has ended well and all results are written: its state says so, and only the newest checkpoint stays. A collective.
    pub fn finish(&mut self, run: &Run, world: &World) -> Result<()> {
        self.write_status(run, world, State::Finished)?;
        world.agree(if world.leads() { self.checkpoints.clear() } else { Ok(()) })
    }

    /// Leaves each rank's part of the batch that was not finite in the run folder, to be looked at, and passes the error on.
    pub fn keep_evidence<T>(&self, world: &World, error: Error, batch: &PerRank<T>, parts: fn(&T) -> Vec<(&'static str, Tensor)>) -> Error {
        let folder = self.folder.join(EVIDENCE);
        let named = |(rank, part): (LogicalRank, &T)| parts(part).into_iter().map(move |(name, t)| (format!("{}.{name}", rank.0), t));
        let tensors: Vec<(String, Tensor)> = batch.iter().flat_map(named).collect();
        let path = folder.join(format!("rank-{:05}.safetensors", world.rank().0));
        let written = files::create_folder(&folder).and_then(|()| weights::write(&path, &tensors, &[]));
        if let Err(failure) = written {
            tracing::warn!("the batch that was not finite could not be saved: {failure}");
        }
        error
    }

    fn write_status(&mut self, run: &Run, world: &World, state: State) -> Result<()> {
        self.status.state = state;
        self.status.student_steps = run.cursor.student_steps();
        self.status.moved = run.moved_by_all(world)?;
        // What another rank has measured must not stand there when its own error is written.
        (self.status.seconds, self.status.sent) = world.from_leader(|| Ok((self.timings.seconds(), run.sent(world))))?;
        world.agree(if world.leads() { self.status.write(&self.folder) } else { Ok(()) })
    }

    /// Position and state of the newest whole checkpoint go into `run`; says where it goes on. A collective.
    ///
    /// # Errors
    /// No whole checkpoint among those there, or one of a run with other numbers, naming each key that differs.
    pub fn resume(&mut self, run: &mut Run, world: &World) -> Result<bool> {
        let Some(loaded) = self.checkpoints.load_newest(world)? else {
            let steps = self.status.student_steps;
            // Seconds are written with a checkpoint and never without one.
            return if self.status.seconds.total == 0.0 { Ok(false) } else { Err(checkpoints_gone(&self.folder, steps)) };
        };
        same_run(&loaded.manifest.identity, &run.plan, &run.config)?;
        world.agree(run.restore(&loaded))?;
        self.on_disk = Some(loaded.manifest.position);
        let (was, is) = ([&*loaded.manifest.machine, &*loaded.manifest.version], [&*self.machines, &*version()]);
        if let Some(text) = change(was, is).filter(|_| world.leads()) {
            tracing::warn!("{text}");
        }
        Ok(true)
    }
}

/// Known to all: every rank has the leader's status and list.
fn checkpoints_gone(folder: &Path, steps: u64) -> Error {
    let problem = format!("{} says that {steps} student steps are saved, but holds no checkpoint", folder.display());
    Error::refused(problem).with_hint("put its folder `checkpoints` back, or start over with --fresh")
}

/// Whether a folder's run has the values of this one.
///
/// # Errors
/// Every key that differs, with the place that was looked at. All ranks have the same values, and so the same error.
pub fn same_run(then: &BTreeMap<String, String>, plan: &Plan, config: &Config) -> Result<()> {
    let now = &plan.identity;
    let keys: BTreeSet<&String> = then.keys().chain(now.keys()).collect();
    let defaults = config::values(&Config::default());
    let shown = |value: Option<&String>| value.map_or("nothing".to_owned(), String::clone);
    let findings: Vec<_> = keys
        .into_iter()
        // Of a free key, contents count, where both looked at them.
        .filter(|key| !config::is_free(key) || (then.contains_key(*key) && now.contains_key(*key)))
        // A key that is newer than the run: it had what is the default now.
        .filter(|key| then.get(*key).or_else(|| defaults.get(*key)) != now.get(*key))
        .map(|key| {
            let (was, is) = (shown(then.get(key)), shown(now.get(key)));
            let (place, way_out) = place(key, plan.job, config);
            Finding::new(key.as_str(), format!("was {was} when this run began, is {is} now{place}: it would be another run{way_out}"))
        })
        .collect();
    if findings.is_empty() { Ok(()) } else { Err(Error::AnotherRun(findings)) }
}

/// What a key that counts by contents was read from, and how to name another place.
fn place(key: &str, job: Job, config: &Config) -> (String, String) {
    let (path, option) = match key {
        "data.dir" => (&config.data.dir, "--data-dir DIR".to_owned()),
        "teacher.weights" => (&config.teacher.weights, "--set teacher.weights=FILE".to_owned()),
        "student.backbone" => (&config.student.backbone, format!("--set {}=FILE", job.backbone_key())),
        _ => return Default::default(),
    };
    let place = path.as_ref().map_or(String::new(), |path| format!(" in {}", path.display()));
    (place, format!(" ({option} names the run's own)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_that_differ_are_named_with_their_place() {
        let mut config = Config::default();
        (config.teacher.weights, config.data.dir) = (Some("/d/t.pth".into()), Some("/data".into()));
        let plan = |teacher, data: &str| {
            let mut plan = Plan::new(&config, Job::Train, 1, teacher, "").unwrap();
            plan.identity.insert("data.dir".into(), data.into());
            plan
        };
        let text = same_run(&plan("a", "x").identity, &plan("b", "y"), &config).unwrap_err().to_string();
        for part in [
            "data.dir: was x when this run began, is y now in /data: it would be another run (--data-dir DIR names the run's own)",
            "teacher.weights: was sha256:a when this run began, is sha256:b now in /d/t.pth: it would be another run (--set teacher.weights=FILE",
        ] {
            assert!(text.contains(part), "{text}");
        }
        // Runs of before, whose identity held the device.
        let mut then = plan("a", "x").identity;
        then.insert("device".into(), "\"cuda\"".into());
        same_run(&then, &plan("a", "x"), &config).unwrap();
    }
}
