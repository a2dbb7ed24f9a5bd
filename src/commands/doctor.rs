//! `ssdkd doctor`: what was found, which versions, what is missing and how to get it.

mod comm;

use super::join;
use crate::cli::DoctorArgs;
use crate::config;
use crate::config::ReduceRule;
use crate::device::{CudaLibrary, Device, gpu_count, load_cuda, open};
use crate::error::Result;
use crate::layout::Layout;
use crate::nn::shim;
use crate::parallel::{MpiComm, check_sum, comm::conformance, cuda_flavour, driver, driver_verdict, host_name};
use std::process::Command;

/// Prints one line a subject.
pub fn run(args: &DoctorArgs) -> Result<()> {
    let launch = join()?;
    // Ranks that do not answer are named, and the job ends: no check waits for ever.
    let _watchdog = launch.agree(launch.watch(config::Parallel::default().timeout_s))?;
    let local = launch.local();
    let conformance = conformance::run(launch.comm());
    let layout = Layout::new(launch.ranks(), launch.ranks())?;
    let world = launch.into_world(layout, ReduceRule::Deterministic, Device::Cpu);
    let sum = check_sum(&world, 1000 * world.layout().ranks());
    let well = conformance.clone().and(sum.clone().map(|_| ()));
    // What gives wrong answers is not measured.
    let well = world.agree(well);
    let hosts = if args.comm && well.is_ok() { Some(comm::look(&world)?) } else { None };
    if !world.leads() {
        return well;
    }
    let cores = local.cores;
    line("ssdkd", &crate::metrics::version());
    line("host", &format!("{}, {cores} cores, libtorch kernels for {}", host_name(), shim::cpu_capability()));
    line("libtorch", &format!("{} ({})", shim::torch_version(), env!("SSDKD_LIBTORCH_LIB")));
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
    line("driver", &driver_verdict(driver().as_deref(), cuda_flavour()));
    line("CUDA", &cuda());
    line("NCCL", &nccl());
    line("Slurm", &slurm());
    hosts.iter().flatten().for_each(|text| println!("{text}"));
    well
}

fn line(subject: &str, text: &str) {
    println!("{subject:9} {text}");
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or("unknown").trim().to_owned()
}

fn cuda() -> String {
    match load_cuda() {
        CudaLibrary::Missing(reason) => {
            format!("not here: {reason}. On a machine with a GPU, launch/setup.sh installs the CUDA side of libtorch")
        }
        CudaLibrary::Loaded if gpu_count() > 0 => format!("{} GPUs", gpu_count()),
        CudaLibrary::Loaded => "libtorch's CUDA side is loaded, but there is no GPU or no NVIDIA driver (CUDA 13 needs driver 580)".into(),
    }
}

fn nccl() -> String {
    match (open("libnccl.so"), open("libnccl.so.2")) {
        (Ok(()), _) => "libnccl.so found".into(),
        (Err(_), Ok(())) => "only libnccl.so.2 is on the search path: link libnccl.so to it beside libtorch (launch/setup.sh does)".into(),
        (Err(_), Err(_)) => "not here; ranks on CPUs use MPI. With a GPU, launch/setup.sh installs it".into(),
    }
}

fn slurm() -> String {
    match Command::new("sbatch").arg("--version").output() {
        Ok(out) if out.status.success() => first_line(&String::from_utf8_lossy(&out.stdout)),
        _ => "sbatch is not on PATH; only needed on clusters".into(),
    }
}
