//! `ssdkd train` and `ssdkd teach`.

use super::{Outcome, configured, join, join_traces};
use crate::checkpoint;
use crate::cli::RunArgs;
use crate::config::{self, Config, Job, Loaded, Plan};
use crate::data::{self, Examples, Split};
use crate::error::{Error, Result};
use crate::files;
use crate::logs;
use crate::methods::{Memory, Method};
use crate::metrics::Timings;
use crate::models::Shape;
use crate::nn::compute_in;
use crate::parallel::{World, set_threads};
use crate::replay::{Augmentation, RealData};
use crate::report;
use crate::run_folder::{RunFolder, State, Status, found};
use crate::teacher::Teacher;
use crate::train::{End, Keeper, Outlet, Run, announce, fail, same_run, train as run_all};
use std::path::PathBuf;

/// Trains a student.
pub fn train(args: &RunArgs, timings: Timings) -> Result<Outcome> {
    start(args, timings, Job::Train, |config| {
        let method = Method::of(config);
        if method.memory != Memory::RealData {
            return Ok((method, None));
        }
        let split = data::open(config.dataset, &config.data, Split::Train)?;
        if config.distill.steps_per_round == 0 {
            config.distill.steps_per_round = steps_of_an_epoch(&split, config.distill.batch_size);
        }
        let seen = Augmentation::of_distillation(&config.distill, data::facts_of(config).size);
        Ok((method, Some(RealData::new(split, config.seed, seen))))
    })
}

/// Trains a teacher: the same loop, with real data as the memory and labels as the target.
pub fn teach(args: &RunArgs, timings: Timings) -> Result<Outcome> {
    start(args, timings, Job::Teach, |config| {
        let split = data::open(config.dataset, &config.data, Split::Train)?;
        config.student.model = config.teacher.model;
        config.student.backbone.clone_from(&config.teach.backbone);
        (config.student.lr, config.student.weight_decay) = (config.teach.lr, config.teach.weight_decay);
        config.distill.batch_size = config.teach.batch_size;
        config.distill.steps_per_round = steps_of_an_epoch(&split, config.teach.batch_size);
        (config.train.rounds, config.train.warmup_rounds) = (config.teach.epochs, 0);
        let seen = Augmentation::of_teaching(&config.teach, data::facts_of(config).size);
        Ok((Method::teach(), Some(RealData::new(split, config.seed, seen))))
    })
}

fn steps_of_an_epoch(split: &Examples, batch: usize) -> u64 {
    (split.len() / batch).max(1) as u64
}

/// Everything up to the first round can be refused; from there on an error of one rank ends the job.
fn start(
    args: &RunArgs,
    mut timings: Timings,
    job: Job,
    method: impl Fn(&mut Config) -> Result<(Method, Option<RealData>)>,
) -> Result<Outcome> {
    let mut launch = join()?;
    let loaded = configured(&args.config, job);
    let timeout_s = loaded.as_ref().map_or_else(|_| config::Parallel::default().timeout_s, |l| l.config.parallel.timeout_s);
    let watchdog = launch.watch(timeout_s);
    let Loaded { mut config, .. } = launch.agree(loaded)?;
    let watchdog = launch.agree(watchdog)?;
    let known = launch.from_leader(|| if args.fresh { Ok(None) } else { checkpoint::logical_ranks(&args.run_dir) })?;
    config.parallel.logical_ranks.get_or_insert(known.unwrap_or(launch.ranks()));
    let device = launch.take_device(config.device, config.parallel.share_gpu, timeout_s)?;
    launch.agree(set_threads(config.parallel.threads, launch.local()))?;
    let old_run = (!args.fresh).then_some(&*args.run_dir);
    let found = |role, key, named: &Option<PathBuf>| launch.from_leader(|| Ok(found(old_run, role, key, named.clone())));
    // The teacher's file first: it may say what the images are.
    config.teacher.weights = found("teacher", "teacher.weights", &config.teacher.weights)?;
    let (method, real) = launch.agree(data::complete(&mut config).and_then(|()| method(&mut config)))?;
    config.student.backbone = found("backbone", job.backbone_key(), &config.student.backbone)?;
    if job == Job::Teach {
        config.teach.backbone.clone_from(&config.student.backbone);
    }
    let teacher_hash = launch.agree(method.teacher_weights(&config).and_then(|file| files::hash_named("teacher.weights", file)))?;
    let backbone_hash = launch.agree(files::hash_named(job.backbone_key(), config.student.backbone.as_deref()))?;
    let plan = launch.agree(Plan::new(&config, job, launch.ranks(), &teacher_hash, &backbone_hash))?;
    let world = launch.into_world(plan.layout, config.parallel.reduce, device);
    // Which kernels are allowed comes first: a teacher that is a program may have gradients by others only.
    let kernels = compute_in("train.precision", config.train.precision, device, config.parallel.reduce);
    let teacher = world.agree(kernels.and_then(|()| teacher(&config, method, &world)))?;
    let mut run = world.agree(Run::new(config, plan, method, teacher, real, &world))?;

    let folder = world.agree(if world.leads() { RunFolder::hold(&args.run_dir, args.fresh) } else { Ok(RunFolder::at(&args.run_dir)) })?;
    drop(watchdog);
    let _watchdog = world.agree(world.watch(folder.path(), timeout_s))?;
    // What the folder holds is read by one rank: a shared disk may show it to the others at another moment.
    let status = world.from_leader(|| Status::known(folder.path()))?;
    if let Some(status) = status.as_ref().filter(|status| !status.identity.is_empty()) {
        same_run(&status.identity, &run.plan, &run.config)?;
    }
    if status.as_ref().is_some_and(|s| s.state == State::Finished) {
        if world.leads() {
            println!("{} holds a finished run: nothing to do (start over with --fresh)", args.run_dir.display());
        }
        return Ok(Outcome::Done);
    }
    let status = Status { state: State::Running, cause: None, identity: run.plan.identity.clone(), ..status.unwrap_or_default() };
    (run.moved_before, run.sent_before) = (status.moved, status.sent);
    timings.resume(status.seconds);
    let mut keeper = world.agree(Keeper::new(folder.path(), &run.config.checkpoint, status, timings.clone(), &world))?;
    let resumed = keeper.resume(&mut run, &world)?;
    let outcome = to_the_end(&mut run, &world, &mut keeper, &folder, timings, resumed, args.until_round);
    let end = outcome.or_else(|error| fail(error, &world, &mut keeper, &folder))?;
    if let (End::Finished(summary), true) = (&end, world.leads()) {
        print!("{}", summary.table());
        println!("report: {}", args.run_dir.join("report.html").display());
    }
    join_traces(&world)?;
    Ok(if matches!(end, End::Stopped) { Outcome::Stopped } else { Outcome::Done })
}

/// From the first write into the folder to the last. A collective.
fn to_the_end(
    run: &mut Run,
    world: &World,
    keeper: &mut Keeper,
    folder: &RunFolder,
    timings: Timings,
    resumed: bool,
    until: Option<u64>,
) -> Result<End> {
    let mut outlet = Outlet::open(folder, run, keeper.status_mut(), world, timings)?;
    let log = folder.log_of(world.rank());
    world.agree(logs::write_json_to(&log).map_err(|e| Error::io("write", &log, &e)))?;
    announce(run, world, &outlet, resumed);
    let mut compute = || {
        let end = run_all(run, world, keeper, &mut outlet, until)?;
        if matches!(end, End::Finished(_)) {
            world.agree(if world.leads() { report::write(folder.path()) } else { Ok(()) })?;
            keeper.finish(run, world)?;
        } else {
            // All ranks are past their last write before the first one ends: its exit code makes mpirun kill the others.
            world.barrier()?;
        }
        Ok(end)
    };
    compute().map_err(Error::after_start)
}

fn teacher(config: &Config, method: Method, world: &World) -> Result<Option<Teacher>> {
    let Some(path) = method.teacher_weights(config)? else { return Ok(None) };
    let _span = tracing::debug_span!("loading").entered();
    let facts = data::facts_of(config);
    let shape = Shape { channels: facts.channels, classes: facts.classes };
    let teacher = Teacher::load(config.teacher.model, path, shape, facts.size, world.device())?;
    teacher.normalised_as(&facts.mean, &facts.std, path)?;
    method.check_teacher(config, &teacher, path)?;
    Ok(Some(teacher))
}
