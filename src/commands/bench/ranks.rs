//! `ssdkd bench ranks`.

use super::{json, settings};
use crate::bench::{self, GPUS, Machine};
use crate::cli::BenchRanksArgs;
use crate::commands::{join, join_traces, together};
use crate::config::{Parallel, Precision, ReduceRule};
use crate::device::Device;
use crate::error::Result;
use crate::layout::Layout;
use crate::logs;
use crate::parallel::set_threads;

/// A pair on the ranks of this launch.
pub(super) fn measure(args: &BenchRanksArgs) -> Result<()> {
    let mut launch = join()?;
    let timeout_s = Parallel::default().timeout_s;
    let _watchdog = launch.agree(launch.watch(timeout_s))?;
    let device = launch.take_device(args.pair.device, args.pair.share_gpu, timeout_s)?;
    let settings = launch.agree(settings(&args.pair, Precision::F32, device))?;
    launch.agree(set_threads(None, launch.local()))?;
    let layout = Layout::new(launch.ranks(), launch.ranks())?;
    let reduce = if args.native { ReduceRule::Native } else { ReduceRule::Deterministic };
    let world = launch.into_world(layout, reduce, device);
    let report = together(layout.ranks(), bench::scaling(settings, &world))?;
    join_traces(&world)?;
    match (world.leads(), args.json) {
        (false, _) => {}
        (true, true) => json(&report)?,
        (true, false) => print!("{}", report.table()),
    }
    Ok(())
}

/// A pair on many GPUs, by arithmetic.
pub(super) fn project(args: &BenchRanksArgs) -> Result<()> {
    logs::trace_is_open()?;
    let (pair, machine) = (bench::counts(settings(&args.pair, Precision::F32, Device::Cpu)?)?, Machine::default());
    if args.json {
        let steps: Vec<_> = GPUS.into_iter().flat_map(|gpus| bench::project(&pair, &machine, gpus)).collect();
        return json(&serde_json::json!({"pair": pair, "machine": machine, "steps": steps}));
    }
    print!("{}", bench::projection(&pair, &machine));
    Ok(())
}
