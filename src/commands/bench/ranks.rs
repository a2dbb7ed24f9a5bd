//! `ssdkd bench ranks`.

use super::{Ready, json, settings};
use crate::bench::{self, GPUS, Machine};
use crate::cli::BenchRanksArgs;
use crate::commands::{join_traces, together};
use crate::config::{Precision, ReduceRule};
use crate::device::Device;
use crate::error::Result;
use crate::logs;

/// A pair on the ranks of this launch.
pub(super) fn measure(args: &BenchRanksArgs) -> Result<()> {
    let reduce = if args.native { ReduceRule::Native } else { ReduceRule::Deterministic };
    let settings = |_, device| settings(&args.pair, Precision::F32, device);
    let Ready { _watchdog, settings, world } = Ready::new(&args.pair, None, reduce, settings)?;
    let report = together(world.layout().ranks(), bench::scaling(settings, &world))?;
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
