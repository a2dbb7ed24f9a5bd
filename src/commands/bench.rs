//! `ssdkd bench`.

mod ranks;
mod step;

use super::{join, join_traces, together};
use crate::bench::{Balance, DrawTimes, Measured, SIZES, StepSettings, balance, draw_times, sampler, sampler_peers};
use crate::cli::{BenchAction, BenchReplayArgs, PairArgs};
use crate::config::{Parallel, Precision, ReduceRule};
use crate::data::facts;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::logs;
use crate::parallel::{Watchdog, World, set_threads};
use crate::task::Task;
use serde::Serialize;

/// Measures what was asked for.
pub fn run(action: &BenchAction) -> Result<()> {
    match action {
        BenchAction::Replay(args) if args.ranks => draws(args),
        BenchAction::Replay(args) if args.balance => shards(args),
        BenchAction::Replay(args) => samplers(args),
        BenchAction::Step(args) => step::measure(args),
        BenchAction::Ranks(args) if args.project => ranks::project(args),
        BenchAction::Ranks(args) => ranks::measure(args),
    }
}

fn json(value: &impl Serialize) -> Result<()> {
    println!("{}", serde_json::to_string_pretty(value).map_err(|e| Error::refused(e.to_string()))?);
    Ok(())
}

fn samplers(args: &BenchReplayArgs) -> Result<()> {
    logs::trace_is_open()?;
    let sizes = if args.n.is_empty() { &SIZES[..] } else { &args.n };
    let (mut peers, notes) = args.against.as_deref().map_or((None, Vec::new()), sampler_peers);
    notes.iter().for_each(|note| eprintln!("{note}"));
    let measured = sampler(sizes, peers.as_mut())?;
    if args.json {
        return json(&measured);
    }
    println!("{:>10} {:>12} {:>18} {:>18}", "N", "cycles/s", "torchrl sampler", "cpprb");
    for Measured { n, cycles_per_second, peers } in measured {
        let beside = |speed: Option<f64>| speed.map_or("–".into(), |speed| format!("{speed:.0} ({:.1} ×)", cycles_per_second / speed));
        println!("{n:>10} {cycles_per_second:>12.0} {:>18} {:>18}", beside(peers.torchrl_sampler), beside(peers.cpprb));
    }
    Ok(())
}

fn shards(args: &BenchReplayArgs) -> Result<()> {
    const SPREAD: f64 = 0.01;
    logs::trace_is_open()?;
    let found = [2, 4, 8].into_iter().map(|m| balance(m, SPREAD)).collect::<Result<Vec<_>>>()?;
    if args.json {
        return json(&found);
    }
    println!("{:>3} {:>8} {:>8} {:>10} {:>20}", "M", "spread", "moved", "expected", "all mass in one");
    for Balance { shards, spread, moved, expected, worst } in found {
        let [spread, moved, expected, worst] = [spread, moved, expected, worst].map(|share| format!("{:.2} %", 100.0 * share));
        println!("{shards:>3} {spread:>8} {moved:>8} {expected:>10} {worst:>20}");
    }
    Ok(())
}

fn draws(args: &BenchReplayArgs) -> Result<()> {
    const BATCH: usize = 256;
    const DRAWS: u64 = 300;
    let launch = join()?;
    // At least four logical ranks, so that one, two and four ranks do the same work.
    let logical = launch.ranks() * 4usize.div_ceil(launch.ranks());
    let layout = launch.agree(Layout::new(logical, launch.ranks()))?;
    let _watchdog = launch.agree(launch.watch(Parallel::default().timeout_s))?;
    let world = launch.into_world(layout, ReduceRule::Deterministic, Device::Cpu);
    let times = together(layout.ranks(), draw_times(&world, args.n.first().copied().unwrap_or(SIZES[0]), BATCH, DRAWS))?;
    join_traces(&world)?;
    if !world.leads() {
        return Ok(());
    }
    if args.json {
        return json(&times);
    }
    let DrawTimes { ranks, logical_ranks, batch, row_bytes, rows_moved, .. } = times;
    println!("R = {ranks}, M = {logical_ranks}, B = {batch}, {row_bytes} bytes a row; {rows_moved:.2} rows move");
    for (part, us) in [
        ("all-gather of masses", times.masses_us),
        ("look-ups", times.look_up_us),
        ("exchange of rows", times.exchange_us),
        ("losses home", times.home_us),
    ] {
        println!("{part:21} {us:8.1} µs");
    }
    println!("{:21} {:8.1} counted, {:.1} by the formula", "bytes a draw", times.bytes, times.bytes_expected);
    println!("{:21} {:8.2} counted, {:.2} by the formula", "messages a draw", times.messages, times.messages_expected);
    Ok(())
}

/// Ranks with a device, threads and one logical rank each, and what they are to measure.
struct Ready {
    _watchdog: Option<Watchdog>,
    settings: StepSettings,
    world: World,
}

impl Ready {
    /// `settings` is given the number of ranks and the device, and may refuse them. A collective.
    fn new(
        pair: &PairArgs,
        threads: Option<usize>,
        reduce: ReduceRule,
        settings: impl FnOnce(usize, Device) -> Result<StepSettings>,
    ) -> Result<Self> {
        let (mut launch, timeout_s) = (join()?, Parallel::default().timeout_s);
        let _watchdog = launch.agree(launch.watch(timeout_s))?;
        let device = launch.take_device(pair.device, pair.share_gpu, timeout_s)?;
        let settings = launch.agree(settings(launch.ranks(), device))?;
        launch.agree(set_threads(threads, launch.local()))?;
        let layout = Layout::new(launch.ranks(), launch.ranks())?;
        Ok(Self { _watchdog, settings, world: launch.into_world(layout, reduce, device) })
    }
}

fn settings(pair: &PairArgs, dtype: Precision, device: Device) -> Result<StepSettings> {
    let PairArgs { teacher, student, dataset, batch, turns, .. } = *pair;
    if batch < 2 {
        return Err(Error::refused(format!("--batch {batch} is too small for batch statistics")).with_hint("give 2 or more"));
    }
    if !facts(dataset).is_known() {
        let problem = format!("--dataset {}: its name says nothing of its images", dataset.name());
        return Err(Error::refused(problem).with_hint("name a data set with images of a known size"));
    }
    for (option, model) in [("--teacher", teacher), ("--student", student)] {
        Task::check(dataset, option, model)?;
    }
    Ok(StepSettings { teacher, student, dataset, batch, dtype, device, turns })
}
