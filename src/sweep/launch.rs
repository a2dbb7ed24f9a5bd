//! How a trial is started, and what each gets of a machine.

use super::folder::{LOG, SweepFolder};
use super::local::{self, Tally};
use super::plan::{Plan, Trial};
use super::{gpu, slurm};
use crate::config::{DeviceName, PREFIX, load_with};
use crate::error::{Error, Result};
use crate::files;
use crate::parallel::allowed_cores;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use toml::Value;

/// What runs a sweep's trials.
pub enum Launcher {
    /// This process, on this machine or inside a Slurm job.
    Local {
        /// Trials side by side; left out, as the plan or the machine has it.
        jobs: Option<usize>,
        /// Trials, or rungs of trials, after which no other is begun.
        at_most: Option<usize>,
    },
    /// A job array.
    Slurm,
    /// Nothing: the job array is printed.
    Print,
}

impl Launcher {
    /// Runs or submits what is open, or prints what would be submitted.
    ///
    /// # Errors
    /// Ranks that do not divide a trial's logical ranks; fewer GPUs than a trial wants; what Slurm refuses; files of a trial that cannot be
    /// read or written. A trial that fails is none.
    pub fn start(&self, request: &Request) -> Result<Tally> {
        request.plan.fits(request.ranks)?;
        match self {
            Self::Local { jobs, at_most } => {
                let slots = slots(&Machine::seen(), *jobs, request)?;
                local::run(request, slots, *at_most)
            }
            Self::Slurm => slurm::submit(request, true).map(|()| Tally::default()),
            Self::Print => slurm::submit(request, false).map(|()| Tally::default()),
        }
    }
}

/// A sweep that is to be run.
pub struct Request {
    /// Its folder.
    pub folder: SweepFolder,
    /// Its plan.
    pub plan: Plan,
    /// Ranks of a trial.
    pub ranks: usize,
    /// What its trials compute on: CUDA where one of them asks for it, the CPU where all do.
    pub device: DeviceName,
    /// GPUs of a trial on each of its nodes, where it computes on GPUs: one for every rank, or for all where `parallel.share_gpu` says so.
    pub gpus: usize,
    /// This program.
    pub program: PathBuf,
}

impl Request {
    /// Of a sweep's folder; `ranks` instead of the plan's.
    ///
    /// # Errors
    /// A folder without a whole plan, or without the configuration that it names.
    pub fn new(folder: &Path, ranks: Option<usize>) -> Result<Self> {
        let folder = SweepFolder::new(folder)?;
        let plan = Plan::read(&folder)?;
        let program = std::env::current_exe().map_err(|e| Error::io("find", "this program", &e))?;
        let ranks = ranks.unwrap_or(plan.resources.ranks);
        let base = load_with(&[folder.path().join(&plan.config)], BTreeMap::new(), "")?.config;
        let devices = plan.values(&base, "device")?;
        let asked = |device: &DeviceName| devices.iter().any(|value| value.as_str() == Some(device.name()));
        let device = [DeviceName::Cuda, DeviceName::Auto].into_iter().find(asked).unwrap_or(DeviceName::Cpu);
        let share = plan.values(&base, "parallel.share_gpu")?.iter().all(|value| *value == Value::Boolean(true));
        let gpus = if share { 1 } else { ranks.div_ceil(plan.resources.nodes) };
        Ok(Self { folder, plan, ranks, device, gpus, program })
    }

    /// The words that start a trial, up to round `until` or to its end.
    pub fn words(&self, trial: &Trial, until: Option<u64>) -> Vec<String> {
        let path = |path: PathBuf| path.display().to_string();
        let mut words = starting(&self.folder, self.ranks, &self.program);
        words.extend([self.plan.command.command().into(), "--config".into()]);
        words.push(path(self.folder.path().join(&self.plan.config)));
        words.extend(trial.sets().into_iter().flat_map(|set| ["--set".to_owned(), set]));
        words.extend(["--run-dir".into(), path(self.folder.trial(trial))]);
        words.extend(until.into_iter().flat_map(|round| ["--until-round".into(), round.to_string()]));
        words
    }

    /// Starts a trial on a slot; what it says goes to its log.
    pub(super) fn command(&self, trial: &Trial, until: Option<u64>, slot: &Slot) -> Result<Command> {
        let mut command = planned_run(&self.words(trial, until), &self.folder.trial(trial).join(LOG), slot.threads)?;
        if !slot.gpus.is_empty() {
            command.env("CUDA_VISIBLE_DEVICES", slot.gpus.join(","));
        }
        if !slot.cores.is_empty() {
            let cores = slot.cores.clone();
            // SAFETY: between fork and exec, only a system call on memory that is there already.
            unsafe { command.pre_exec(move || bind(&cores)) };
        }
        Ok(command)
    }
}

/// The words that start a program on some ranks: through the folder's own launch script where there are several.
pub(super) fn starting(folder: &SweepFolder, ranks: usize, program: &Path) -> Vec<String> {
    let path = |path: &Path| path.display().to_string();
    let mut words = Vec::new();
    if ranks > 1 {
        words.extend(["bash".into(), path(&folder.launch().join("mpirun.sh")), ranks.to_string()]);
    }
    words.push(path(program));
    words
}

/// A run by its words, in a process group of its own; what it says is added to a log.
pub(super) fn planned_run(words: &[String], log: &Path, threads: usize) -> Result<Command> {
    let open = || File::options().create(true).append(true).open(log).map_err(|e| Error::io("write", log, &e));
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).stdin(Stdio::null()).stdout(open()?).stderr(open()?);
    // Signals of a terminal come to us alone; we pass on what lets a run save.
    command.process_group(0);
    // A plan is a function of its files; what runs it must be, too: no configuration from the environment, and the threads that were planned.
    std::env::vars_os().map(|(name, _)| name).filter(|name| name.to_string_lossy().starts_with(PREFIX)).for_each(|name| {
        command.env_remove(name);
    });
    command.env("OMP_NUM_THREADS", threads.to_string()).env_remove("SSDKD_COLUMNS");
    Ok(command)
}

/// Binds this process to cores. Allocates nothing.
fn bind(cores: &[usize]) -> std::io::Result<()> {
    // SAFETY: an all-zero set is valid, and numbers beyond it are ignored by CPU_SET.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        cores.iter().filter(|&&core| core < libc::CPU_SETSIZE as usize).for_each(|&core| libc::CPU_SET(core, &mut set));
        if libc::sched_setaffinity(0, std::mem::size_of::<libc::cpu_set_t>(), &set) != 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    Ok(())
}

/// What a machine has to share out.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Cores this process may run on.
    pub cores: Vec<usize>,
    /// Cores that Slurm has given the job on this node; where it does not bind jobs to them, other jobs use some of `cores`.
    pub granted: Option<usize>,
    /// GPUs.
    pub gpus: Vec<String>,
}

impl Machine {
    fn seen() -> Self {
        let bits = allowed_cores();
        let cores = (0..bits.len() * 8).filter(|core| bits[core / 8] >> (core % 8) & 1 == 1).collect();
        let granted = std::env::var("SLURM_CPUS_ON_NODE").ok().and_then(|count| count.parse().ok());
        Self { cores, granted, gpus: gpu::visible() }
    }
}

/// One trial's share of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Cores it is bound to; none: it is not bound.
    pub cores: Vec<usize>,
    /// Threads of a rank.
    pub threads: usize,
    /// The GPUs it sees; none: those that this process sees.
    pub gpus: Vec<String>,
}

/// Shares a machine out to `jobs` trials at a time. Each gets cores of its own; GPUs are dealt out in turn, one for every rank.
///
/// Left out, the number is the plan's `trials_per_node`, else `trials_per_gpu` on every trial's share of the GPUs, else as many as there are
/// cores for; where trials compute on GPUs, no more than `trials_per_gpu` (1) allows.
///
/// # Errors
/// Fewer GPUs than a trial has ranks.
pub fn slots(machine: &Machine, jobs: Option<usize>, request: &Request) -> Result<Vec<Slot>> {
    let (resources, ranks) = (&request.plan.resources, request.ranks);
    let groups = gpu_groups(machine, request)?;
    let cores = machine.granted.map_or(machine.cores.len(), |granted| granted.min(machine.cores.len())).max(1);
    let by_gpu = (!groups.is_empty()).then(|| groups.len() * resources.trials_per_gpu.unwrap_or(1));
    let by_cores = (cores / (ranks * resources.threads.unwrap_or(1))).max(1);
    let planned = resources.trials_per_node.or(resources.trials_per_gpu.and(by_gpu)).unwrap_or(by_cores);
    let jobs = jobs.unwrap_or(by_gpu.map_or(planned, |most| planned.min(most)));
    if jobs == 0 {
        return Err(Error::refused("0 jobs at a time do nothing"));
    }
    // Where cores are not ours alone, or fewer than jobs, binding would put trials on each other's.
    let each = if machine.cores.len() == cores && resources.nodes == 1 { cores / jobs } else { 0 };
    let threads = resources.threads.unwrap_or((cores / jobs / ranks).max(1));
    let slot = |i: usize| Slot {
        cores: machine.cores[i * each..(i + 1) * each].to_vec(),
        threads,
        gpus: if groups.is_empty() { Vec::new() } else { groups[i % groups.len()].to_vec() },
    };
    Ok((0..jobs).map(slot).collect())
}

/// A machine's GPUs, cut into what a trial gets; none where trials compute on the CPU.
fn gpu_groups<'a>(machine: &'a Machine, request: &Request) -> Result<Vec<&'a [String]>> {
    let (seen, wanted) = (&machine.gpus, request.gpus);
    match request.device {
        DeviceName::Cpu => Ok(Vec::new()),
        DeviceName::Auto if seen.is_empty() => Ok(Vec::new()),
        _ if seen.len() < wanted => Err(Error::config(
            "device",
            format!(
                "a trial wants {wanted} of the GPUs that CUDA_VISIBLE_DEVICES, or else nvidia-smi, shows here, and there are {}: launch fewer \
                 --ranks, or set parallel.share_gpu = true (ranks then take turns) or device = \"cpu\" in the sweep file's [set] and plan again",
                seen.len()
            ),
        )),
        // Other nodes may count theirs differently.
        _ if request.plan.resources.nodes > 1 => Ok(vec![&seen[..0]]),
        _ => Ok(seen.chunks_exact(wanted).collect()),
    }
}

/// Launch scripts of the sweep's folder, which then needs nothing from the repository. `site.sh` is the one of the working folder, if
/// that is a repository's, else the one that is there.
pub(super) fn write_scripts(folder: &SweepFolder) -> Result<()> {
    let launch = folder.launch();
    files::create_folder(&launch.join("slurm"))?;
    let known = [PathBuf::from("launch/slurm/site.sh"), launch.join("slurm/site.sh")].into_iter().find(|path| path.is_file());
    let site = known.map_or_else(|| Ok(include_bytes!("../../launch/slurm/site.sh").to_vec()), |path| files::read(&path))?;
    for (name, text) in [
        ("common.sh", &include_bytes!("../../launch/common.sh")[..]),
        ("mpirun.sh", include_bytes!("../../launch/mpirun.sh")),
        ("slurm/job.sh", include_bytes!("../../launch/slurm/job.sh")),
        ("slurm/site.sh", &site),
    ] {
        files::write(&launch.join(name), text)?;
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::file::Resources;
    use super::super::halving::Goal;
    use super::*;
    use crate::config::Job;

    /// A sweep without trials.
    pub fn request(resources: Resources) -> Request {
        let plan = Plan {
            file: "f".into(),
            config: "config-0.toml".into(),
            command: Job::Train,
            metric: "student.top1".into(),
            goal: Goal::Max,
            resources,
            halving: None,
            trials: Vec::new(),
        };
        Request {
            folder: SweepFolder::new(Path::new("/s/my sweep")).unwrap(),
            ranks: plan.resources.ranks,
            device: DeviceName::Auto,
            gpus: plan.resources.ranks.div_ceil(plan.resources.nodes),
            plan,
            program: "/bin/ssdkd".into(),
        }
    }

    fn machine(cores: usize, granted: Option<usize>, gpus: usize) -> Machine {
        Machine { cores: (4..4 + cores).collect(), granted, gpus: (0..gpus).map(|i| format!("g{i}")).collect() }
    }

    fn shared_out((cores, granted, gpus): (usize, Option<usize>, usize), jobs: Option<usize>, resources: Resources) -> Vec<Slot> {
        slots(&machine(cores, granted, gpus), jobs, &request(resources)).unwrap()
    }

    #[test]
    fn every_slot_has_cores_of_its_own() {
        let two = shared_out((8, None, 0), Some(2), Resources { ranks: 2, ..Resources::default() });
        assert_eq!(two[0], Slot { cores: vec![4, 5, 6, 7], threads: 2, gpus: vec![] });
        assert_eq!(two[1].cores, [8, 9, 10, 11]);
        // As many as there are cores for, unless the plan says otherwise.
        let threads = Resources { threads: Some(3), ..Resources::default() };
        assert_eq!(shared_out((8, None, 0), None, threads.clone()).len(), 2);
        assert_eq!(shared_out((8, None, 0), None, Resources { trials_per_node: Some(5), ..threads }).len(), 5);
        // More jobs than cores, and cores that Slurm has given to others as well: nobody is bound.
        assert!(shared_out((2, None, 0), Some(4), Resources::default()).iter().all(|slot| slot.cores.is_empty() && slot.threads == 1));
        assert_eq!(shared_out((16, Some(4), 0), Some(2), Resources::default())[1], Slot { cores: vec![], threads: 2, gpus: vec![] });
    }

    /// A trial's ranks have a GPU each; trials share those of a whole trial, and only where the plan or the user says so.
    #[test]
    fn gpus_are_dealt_out_in_turn() {
        let seen = |gpus, jobs, ranks, trials_per_gpu, trials_per_node| {
            let resources = Resources { ranks, trials_per_gpu, trials_per_node, ..Resources::default() };
            shared_out((16, None, gpus), jobs, resources).iter().map(|slot| slot.gpus.join(",")).collect::<Vec<_>>()
        };
        assert_eq!(seen(2, None, 1, Some(2), None), ["g0", "g1", "g0", "g1"]);
        assert_eq!(seen(3, None, 1, None, None), ["g0", "g1", "g2"], "not as many as there are cores for");
        assert_eq!(seen(5, None, 2, None, None), ["g0,g1", "g2,g3"]);
        assert_eq!(seen(4, None, 2, Some(2), None), ["g0,g1", "g2,g3", "g0,g1", "g2,g3"]);
        assert_eq!(seen(4, None, 2, None, Some(3)), ["g0,g1", "g2,g3"]);
        assert_eq!(seen(2, Some(2), 2, None, None), ["g0,g1", "g0,g1"], "on the user's word");
        assert_eq!(seen(0, None, 8, None, None), ["", ""], "no GPU, and none asked for");
        // Fewer cores than GPUs.
        assert_eq!(shared_out((2, None, 4), None, Resources::default()).len(), 2);
    }

    #[test]
    fn gpus_are_those_that_trials_compute_on() {
        let of = |device, gpus, resources, seen| {
            let request = Request { device, ..request(resources) };
            slots(&machine(8, None, seen), None, &Request { gpus, ..request })
        };
        let two = Resources { ranks: 2, ..Resources::default() };
        let cpu = of(DeviceName::Cpu, 2, two.clone(), 1).unwrap();
        assert!(cpu.len() == 4 && cpu.iter().all(|slot| slot.gpus.is_empty()), "{cpu:?}");
        for (device, seen) in [(DeviceName::Auto, 1), (DeviceName::Cuda, 1), (DeviceName::Cuda, 0)] {
            let said = of(device, 2, two.clone(), seen).unwrap_err().to_string();
            assert!(said.contains("device: a trial wants 2 of the GPUs") && said.contains(&format!("there are {seen}:")), "{said}");
        }
        // Ranks that share a GPU, and ranks that lie on two nodes, all of whose GPUs are the trial's.
        assert_eq!(of(DeviceName::Auto, 1, two, 1).unwrap()[0].gpus, ["g0"]);
        let nodes = of(DeviceName::Cuda, 2, Resources { ranks: 4, nodes: 2, ..Resources::default() }, 2).unwrap();
        assert!(nodes.len() == 1 && nodes[0].gpus.is_empty(), "{nodes:?}");
    }
}
