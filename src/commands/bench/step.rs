//! `ssdkd bench step`.

use super::{Ready, json, settings};
use crate::bench::{self, StepReport, StepSettings, Work};
use crate::cli::BenchStepArgs;
use crate::commands::{join_traces, together};
use crate::config::ReduceRule;
use crate::device::Device;
use crate::error::{Error, Result};

/// A pair's steps on every rank of this launch, and what of them is communication.
pub(super) fn measure(args: &BenchStepArgs) -> Result<()> {
    let checked = |ranks, device| checked(args, ranks, device);
    let Ready { _watchdog, settings, world } = Ready::new(&args.pair, args.threads, ReduceRule::Deterministic, checked)?;
    let (report, notes) = together(world.layout().ranks(), bench::steps(settings, &world, args.against.as_deref()))?;
    join_traces(&world)?;
    if !world.leads() {
        return Ok(());
    }
    notes.iter().for_each(|note| eprintln!("{note}"));
    if args.json {
        return json(&report);
    }
    print(&report);
    Ok(())
}

fn checked(args: &BenchStepArgs, ranks: usize, device: Device) -> Result<StepSettings> {
    if args.against.is_some() && (device.is_cuda() || ranks > 1) {
        let problem = "--against: plain PyTorch is measured on the CPUs of one rank only";
        return Err(Error::refused(problem).with_hint("leave --against out, or measure one rank with --device cpu"));
    }
    settings(&args.pair, args.dtype, device)
}

fn print(report: &StepReport) {
    let StepReport { teacher, student, batch, ranks, threads, dtype, device, .. } = report;
    let ranks = if *ranks == 1 { String::new() } else { format!("{ranks} ranks at once, each with ") };
    println!("{teacher} -> {student}, {ranks}batch {batch}, {threads} threads, {dtype}, {device}");
    println!("{:38} {:>9} {:>9} {:>9} {:>8} {:>8} {:>16}", "step", "ms", "images/s", "GFLOP/s", "MB", "comm.", "PyTorch, ms");
    for s in &report.steps {
        let name = match s.work {
            Work::Inversion => "inversion",
            Work::Distillation => "distillation",
            Work::DistillationStored => "distillation with stored teacher views",
        };
        let peer = s.peer_ms.zip(s.ratio).map_or("–".into(), |(ms, ratio)| format!("{ms:.0} ({ratio:.2} ×)"));
        let share = s.communication_share.map_or("–".into(), |share| format!("{:.2} %", 100.0 * share));
        let [images, gflop, mb] = [s.images_per_second, s.gflop_per_second, s.allocated_mb];
        println!("{name:38} {:>9.1} {images:>9.0} {gflop:>9.0} {mb:>8.0} {share:>8} {peer:>16}", s.ms);
    }
    if report.ranks > 1 {
        println!("comm. of an inversion: with one inner step to a sum; of more its share is as much smaller (inversion.steps)");
    }
    println!(
        "best rates here: {:.0} GFLOP/s in a matrix product, {:.0} in a 3×3 convolution",
        report.peaks.matrix_product, report.peaks.convolution
    );
    if let Some(held) = report.gpu_mb {
        println!("GPU memory held at most: {held:.0} MB");
    }
    if let Some(difference) = report.loss_difference {
        let version = report.peer_version.as_deref().unwrap_or("of an unknown version");
        println!("largest relative difference of a loss term from PyTorch {version}: {difference:.1e}");
    }
}
