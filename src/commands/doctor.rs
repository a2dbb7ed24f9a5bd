//! `ssdkd doctor`: what was found, which versions, what is missing and how to get it.

mod comm;

use super::{join, together};
use crate::cli::DoctorArgs;
use crate::config::{ReduceRule, load};
use crate::device::{self, CudaLibrary, Device};
use crate::error::{Error, Result};
use crate::goldens;
use crate::layout::Layout;
use crate::nn::shim;
use crate::parallel::comm::{MpiComm, Staged, conformance, nccl};
use crate::parallel::{check_sum, host_name};
use std::process::Command;

/// Prints one line a subject.
pub fn run(args: &DoctorArgs) -> Result<()> {
    let mut launch = join()?;
    let config = launch.agree(load(&[], &[]))?.config;
    // Ranks that do not answer are named, and the job ends: no check waits for ever.
    let _watchdog = launch.agree(launch.watch(config.parallel.timeout_s))?;
    let (ranks, local) = (launch.ranks(), launch.local());
    let mut conformance = answered(ranks, conformance::run(launch.comm(), Device::Cpu));
    // Known to all ranks: then it is reported, and the CPU is looked at.
    let taken = launch.take_device(config.device, config.parallel.share_gpu, config.parallel.timeout_s);
    let device = *taken.as_ref().unwrap_or(&Device::Cpu);
    if device.is_cuda() {
        conformance = conformance.and(answered(ranks, conformance::run(launch.comm(), device)));
    }
    // The way without NCCL, which a CPU's tensors can go as well.
    let conformance = conformance.and(answered(ranks, conformance::run(&Staged::over(launch.comm(), device), device)));
    let layout = Layout::new(ranks, ranks)?;
    let world = launch.into_world(layout, ReduceRule::Deterministic, device);
    let sum = answered(ranks, check_sum(&world, 1000 * ranks));
    let well = conformance.clone().and(sum.clone().map(|_| ()));
    // What gives wrong answers is not measured.
    let well = world.agree(well);
    let networks = if args.networks && well.is_ok() { Some(world.agree(networks(device))) } else { None };
    let hosts = if args.comm && well.is_ok() { Some(together(ranks, comm::look(&world))?) } else { None };
    let well = well.and(networks.clone().map_or(Ok(()), |found| found.map(drop))).and(taken.clone().map(drop));
    if !world.leads() {
        return well;
    }
    let cores = local.cores;
    line("ssdkd", &crate::metrics::version());
    line("host", &format!("{}, {cores} cores, libtorch kernels for {}", host_name(), shim::cpu_capability()));
    let loaded = device::mapped("libtorch_cpu").first().map_or_else(|| "linked in".into(), |path| path.display().to_string());
    line("libtorch", &format!("{} ({loaded})", shim::torch_version()));
    line("MPI", &first_line(&MpiComm::library_version()));
    let ranks = format!("{} ({})", world.layout().ranks(), world.comm().name());
    match &conformance {
        Ok(()) => line("ranks", &format!("{ranks}: every operation gives the right answer")),
        Err(error) => line("ranks", &format!("{ranks}: {error}")),
    }
    match &sum {
        Ok((sent, ring)) => line("sums", &format!("every bit as defined; {sent} bytes sent a rank, a ring all-reduce sends {ring}")),
        Err(error) => line("sums", &error.to_string()),
    }
    line("driver", &device::driver_verdict(device::driver().as_deref(), device::cuda_flavour()));
    line("CUDA", &cuda());
    line("NCCL", &nccl());
    match &taken {
        Ok(Device::Cpu) => line("device", "the CPU"),
        Ok(_) => line("device", &format!("{device:?} on this rank, tensors between ranks by {}", world.comm().name())),
        Err(error) => line("device", &error.to_string()),
    }
    if let Some(found) = networks {
        line("networks", &found.unwrap_or_else(|error| error.to_string()));
    }
    line("Slurm", &slurm());
    hosts.iter().flatten().for_each(|text| println!("{text}"));
    well
}

/// A check's verdict. A rank whose transport fails ends the job: the others would wait for it.
fn answered<T>(ranks: usize, verdict: Result<Result<T>>) -> Result<T> {
    together(ranks, verdict)?
}

/// What networks compute here, held against PyTorch.
fn networks(device: Device) -> Result<String> {
    let (names, mut found) = (goldens::networks(), Vec::new());
    for name in &names {
        found.extend(goldens::deviations(name, device)?);
    }
    // NaN is no deviation that may be.
    let is_right = |number: &goldens::Deviation| number.relative <= goldens::tolerance(device);
    if let Some(wrong) = found.iter().find(|number| !is_right(number)) {
        let goldens::Deviation { network, number, got, want, .. } = wrong;
        return Err(Error::refused(format!("{network} on {device:?}: {number} is {got}, PyTorch's is {want}"))
            .with_hint("this libtorch, or this device, computes something else: ssdkd wants libtorch 2.11.0"));
    }
    let largest = found.iter().map(|number| number.relative).fold(0.0, f64::max);
    Ok(format!("{} give PyTorch's numbers on {device:?}, to {largest:.1e} of their scale", names.len()))
}

fn line(subject: &str, text: &str) {
    println!("{subject:9} {text}");
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or("unknown").trim().to_owned()
}

fn cuda() -> String {
    match device::visible(true) {
        Ok(gpus) => {
            let version = device::driver_version().unwrap_or_default();
            format!("{} GPUs visible, the driver serves CUDA {}.{}", gpus.len(), version / 1000, version % 1000 / 10)
        }
        Err(reason) => match device::load_cuda() {
            CudaLibrary::Loaded => format!("not here: {reason}"),
            CudaLibrary::Missing(_) => format!(
                "not here: {reason}. For a GPU launch/setup.sh installs it; a libtorch or a Python of your own has to be one with CUDA"
            ),
        },
    }
}

fn nccl() -> String {
    let nccl::Found::Ready(version) = nccl::found() else {
        return nccl::found().problem().unwrap_or_default();
    };
    let version = nccl::version_text(version);
    let copies: Vec<String> = device::mapped("libnccl").iter().map(|path| path.display().to_string()).collect();
    match (nccl::unique_id(), &copies[..]) {
        (Err(error), _) => format!("{version}, but {error}"),
        (Ok(_), [one]) => format!("{version} ({one}): makes a unique id"),
        (Ok(_), _) => format!("{version}, in more than one copy, which cannot work together: {}", copies.join(", ")),
    }
}

fn slurm() -> String {
    match Command::new("sbatch").arg("--version").output() {
        Ok(out) if out.status.success() => first_line(&String::from_utf8_lossy(&out.stdout)),
        Ok(out) => {
            let said = String::from_utf8_lossy(&out.stderr);
            format!("sbatch fails: {}", said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("without a word"))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => "sbatch is not on PATH; only needed on clusters".into(),
        Err(error) => format!("sbatch cannot be run: {error}"),
    }
}
