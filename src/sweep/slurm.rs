//! Job arrays: their text (pure), and what is asked of Slurm, each once and when the user says so.

use super::claim::{SlurmJob, user};
use super::file::Resources;
use super::launch::Request;
use super::stand::{Stand, Trials};
use crate::config::DeviceName;
use crate::error::{Error, Result, STOPPED};
use crate::files;
use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// One job array.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    /// Its tasks.
    pub tasks: usize,
    /// Of those, how many may run at a time.
    pub throttle: Option<usize>,
    /// Trials that a task takes, all at a time.
    pub packed: usize,
    /// Trials that a task takes before it ends; none: it goes on as long as there are any.
    pub at_most: Option<usize>,
    /// Ranks of a trial.
    pub ranks: usize,
    /// GPUs of each node; none: none are asked for.
    pub gpus: Option<usize>,
    /// What else a trial is given.
    pub resources: Resources,
    /// Name of the job: tells the arrays of this sweep from all others.
    pub name: String,
    /// The sweep's folder.
    pub folder: PathBuf,
    /// This program.
    pub program: PathBuf,
}

impl Array {
    /// The batch file. Requeue, signals and exit codes are those of `launch/slurm/job.sh`, of which the sweep's folder has a copy.
    pub fn text(&self) -> String {
        let r = &self.resources;
        let last = self.tasks.saturating_sub(1);
        let throttle = self.throttle.map(|most| format!("%{most}")).unwrap_or_default();
        let mut options = vec![
            format!("--job-name={}", self.name),
            format!("--array=0-{last}{throttle}"),
            format!("--chdir={}", shell(&self.folder)),
            "--output=jobs/%A_%a.log".into(),
            "--open-mode=append".into(),
            "--requeue".into(),
            format!("--signal=B:USR1@{}", r.signal_s),
            format!("--nodes={}", r.nodes),
            format!("--ntasks={}", self.packed * self.ranks),
            format!("--cpus-per-task={}", r.threads.unwrap_or(1)),
        ];
        // Else a node may get more of them than of the GPUs that are asked for by node.
        options.extend((r.nodes > 1).then(|| format!("--ntasks-per-node={}", self.ranks.div_ceil(r.nodes))));
        options.extend(r.time.as_ref().map(|time| format!("--time={time}")));
        options.extend(r.partition.as_ref().map(|partition| format!("--partition={partition}")));
        options.extend(r.account.as_ref().map(|account| format!("--account={account}")));
        options.extend(r.memory_mb.map(|each| format!("--mem={}M", (each * self.packed as u64).div_ceil(r.nodes as u64))));
        options.extend(self.gpus.map(|gpus| format!("--gpus-per-node={gpus}")));
        options.extend(r.sbatch.iter().cloned());
        let options: String = options.into_iter().map(|option| format!("#SBATCH {option}\n")).collect();
        let takes = match self.at_most {
            Some(most) => format!("{most} of this sweep's trials"),
            None => "trials of this sweep until none is left".into(),
        };
        let at_most = self.at_most.map(|most| format!(" --at-most {most}")).unwrap_or_default();
        format!(
            "#!/usr/bin/env bash
# Written by `ssdkd sweep submit`. Each task takes {takes}, {packed} at a time, whichever nobody has taken yet;
# told to stop before its time limit, it is requeued and goes on with what is open then.
{options}SSDKD={program}
# shellcheck source=launch/slurm/job.sh
. launch/slurm/job.sh
run_dir=$PWD
# How the task stands follows from its own runner alone: trials that others have are not its affair.
status() {{ case $code in 0) echo finished ;; {STOPPED}) echo stopped ;; *) echo failed ;; esac; }}
site_modules
launch \"$SSDKD\" sweep run . --jobs {packed}{at_most} --ranks {ranks}
finish
",
            packed = self.packed,
            ranks = self.ranks,
            program = shell(&self.program),
        )
    }
}

/// Cuts what is open into arrays. `largest`: the site's `MaxArraySize`, which is the number of tasks an array can have when they are
/// counted from 0. `queued`: trials that tasks in the queue will take.
///
/// A throttle holds for each array by itself, so that the arrays of a throttled sweep have to follow each other
/// ([`submit`] makes each wait for the one before).
pub fn arrays(request: &Request, open: usize, queued: usize, largest: usize, name: &str) -> Vec<Array> {
    let resources = &request.plan.resources;
    let packed = resources.packed();
    let mut tasks = open.saturating_sub(queued).div_ceil(packed);
    let halving = request.plan.halving.is_some();
    if halving {
        // A task goes on as long as there is anything to do: no more are needed than run at a time.
        tasks = tasks.min(resources.throttle.unwrap_or(tasks));
    }
    let at = |tasks| Array {
        tasks,
        throttle: resources.throttle,
        packed,
        at_most: (!halving).then_some(packed),
        ranks: request.ranks,
        gpus: gpus(request),
        resources: resources.clone(),
        name: format!("{name}-x{packed}"),
        folder: request.folder.path().into(),
        program: request.program.clone(),
    };
    let largest = largest.max(1);
    (0..tasks.div_ceil(largest)).map(|i| at(largest.min(tasks - i * largest))).collect()
}

/// GPUs to ask for on each node: a trial's, for every trial that a task takes or for those that share them. None where trials only might
/// compute on GPUs, or where the plan's own options ask: not every site has this one.
fn gpus(request: &Request) -> Option<usize> {
    let r = &request.plan.resources;
    let wants = match request.device {
        DeviceName::Cuda => true,
        DeviceName::Auto => r.trials_per_gpu.is_some(),
        DeviceName::Cpu => false,
    };
    let asks = |option: &String| ["--gpus", "--gres", "-G"].iter().any(|start| option.starts_with(start));
    (wants && !r.sbatch.iter().any(asks)).then(|| request.gpus * r.packed().div_ceil(r.trials_per_gpu.unwrap_or(1)))
}

/// Submits what is open and not in the queue yet, or prints it. Slurm is asked three things, once each: its MaxArraySize, what of this
/// sweep it has, and to take the arrays.
pub fn submit(request: &Request, really: bool) -> Result<()> {
    let name = job_name(request);
    let plan = &request.plan;
    let lock = if really { Some(Lock::take(&request.folder.jobs().join("submitting"))?) } else { None };
    let trials = Trials::read(&request.folder, plan, &BTreeSet::new())?;
    let (next, taken) = (trials.next(plan).len(), trials.taken());
    let open = match &plan.halving {
        // As long as anything moves, what waits at a rung may get its turn: worth a task as well.
        Some(_) if next > 0 || taken > 0 => {
            trials.0.iter().filter(|t| !matches!(t.stand, Stand::Done | Stand::Failed(_) | Stand::Running(_))).count()
        }
        _ => next,
    };
    let largest = ask("scontrol", &["show", "config"]).ok().and_then(|text| max_array_size(&text));
    let jobs = ask("squeue", &["--noheader", "--array", "--me", "--format=%t %F %j"]);
    if really {
        jobs.clone()?;
    }
    let Queued { trials: queued, last } = jobs.map_or(Queued::default(), |text| Queued::read(&text, &name));
    let arrays = arrays(request, open, queued, largest.unwrap_or(1001), &name);
    if arrays.is_empty() {
        println!("nothing to submit: {open} trials are open, tasks for {queued} are in the queue, {taken} are taken by a runner");
    }
    let mut before = last.map(|job| job.to_string());
    for array in &arrays {
        if !really {
            print!("{}", array.text());
            continue;
        }
        let file = write_new(&request.folder.jobs(), &array.text())?;
        let wait = before.as_ref().filter(|_| array.throttle.is_some()).map(|job| format!("--dependency=afterany:{job}"));
        let mut words = vec!["--parsable".to_owned()];
        words.extend(wait);
        words.push(file.display().to_string());
        let said = ask("sbatch", &words.iter().map(String::as_str).collect::<Vec<_>>())?;
        let job = said.trim().split(';').next().unwrap_or_default().to_owned();
        println!("job {job}: {} tasks of {} trials each ({})", array.tasks, array.packed, file.display());
        before = Some(job);
    }
    drop(lock);
    Ok(())
}

/// The cluster that Slurm's commands speak to here, and its jobs that are not over, asked for once and only if somebody wants to know.
#[derive(Default)]
pub struct Queue(OnceCell<Option<(String, BTreeSet<String>)>>);

impl Queue {
    /// Whether a job is among them; `None` where there is no Slurm to ask, or where a job that is not shown may still be there.
    pub fn has(&self, job: &SlurmJob) -> Option<bool> {
        let all = || {
            // Of all users and hidden partitions: a colleague may have submitted the sweep.
            let jobs = ask("squeue", &["--noheader", "--all", "--array", "--format=%A"]).ok()?;
            let cluster = setting(&ask("scontrol", &["show", "config"]).ok()?, "ClusterName")?;
            Some((cluster, jobs.lines().map(|line| line.trim().to_owned()).collect()))
        };
        let (cluster, jobs) = self.0.get_or_init(all).as_ref()?;
        known(job, cluster, jobs, user())
    }
}

/// Whether a job is among a cluster's, as a user sees them.
fn known(job: &SlurmJob, cluster: &str, jobs: &BTreeSet<String>, user: u32) -> Option<bool> {
    match (job.cluster == cluster, jobs.contains(&job.id)) {
        (true, true) => Some(true),
        (true, false) if job.user == user => Some(false),
        _ => None,
    }
}

/// A path as one word of a shell, and of a line of options.
fn shell(path: &Path) -> String {
    let path = path.display().to_string();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:@%".contains(c);
    if path.chars().all(is_plain) { path } else { format!("'{}'", path.replace('\'', "'\\''")) }
}

/// The folder's name for people, and its path's hash for Slurm's list of jobs.
fn job_name(request: &Request) -> String {
    let path = request.folder.path().display().to_string();
    // As one word, in batch files and in what squeue prints.
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    format!("sweep-{}-{}", request.folder.name().chars().map(plain).collect::<String>(), &files::sha256(path.as_bytes())[..8])
}

/// What Slurm has of a sweep.
#[derive(Debug, Default, PartialEq)]
struct Queued {
    /// Trials that its pending tasks will take.
    trials: usize,
    /// The last array of those that are not over.
    last: Option<u64>,
}

impl Queued {
    /// From a line for each task: its state, its array, its name.
    fn read(tasks: &str, name: &str) -> Self {
        let mut queued = Self::default();
        for task in tasks.lines() {
            let mut words = task.split_whitespace();
            let (Some(state), Some(array), Some(job)) = (words.next(), words.next(), words.next()) else { continue };
            let Some(packed) = job.strip_prefix(name).and_then(|rest| rest.strip_prefix("-x")?.parse::<usize>().ok()) else { continue };
            queued.last = queued.last.max(array.parse().ok());
            if state == "PD" {
                queued.trials += packed;
            }
        }
        queued
    }
}

fn max_array_size(config: &str) -> Option<usize> {
    setting(config, "MaxArraySize")?.parse().ok()
}

/// A value of `scontrol show config`.
fn setting(config: &str, name: &str) -> Option<String> {
    let value = |line: &str| line.trim().strip_prefix(name)?.trim_start().strip_prefix('=').map(|value| value.trim().to_owned());
    config.lines().find_map(value)
}

fn ask(program: &str, words: &[&str]) -> Result<String> {
    let hint = "submit on a host of the cluster, print the batch file with --dry-run, or use `ssdkd sweep run`";
    let out = Command::new(program).args(words).stdin(Stdio::null()).output();
    let out = out.map_err(|e| Error::refused(format!("{program} cannot be started: {e}")).with_hint(hint))?;
    if out.status.success() {
        return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&out.stderr).trim().replace('\n', "; ");
    Err(Error::refused(format!("{program} {}: {said}", words.join(" "))).with_hint("what was submitted stays so: mend it and submit again"))
}

/// The next free name in a folder.
fn write_new(folder: &Path, text: &str) -> Result<PathBuf> {
    let path = (1..).map(|i| folder.join(format!("array-{i}.sbatch"))).find(|path| !path.exists()).unwrap_or_default();
    files::write(&path, text.as_bytes())?;
    Ok(path)
}

/// Two submissions at a time would each submit everything.
struct Lock(PathBuf);

impl Lock {
    fn take(path: &Path) -> Result<Self> {
        match std::fs::File::create_new(path) {
            Ok(_) => Ok(Self(path.into())),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                Err(Error::refused(format!("{} is there: somebody is submitting this sweep", path.display()))
                    .with_hint("wait for it; if nobody is, remove that file"))
            }
            Err(e) => Err(Error::io("create", path, &e)),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::super::file::Halving;
    use super::super::halving::Goal;
    use super::super::launch::tests::request;
    use super::*;

    fn cut(resources: Resources, open: usize, queued: usize, largest: usize) -> Vec<usize> {
        arrays(&request(resources), open, queued, largest, "s").iter().map(|array| array.tasks).collect()
    }

    #[test]
    fn arrays_hold_every_open_trial_once_and_no_more_than_the_site_allows() {
        let packed = |n| Resources { trials_per_node: Some(n), ..Resources::default() };
        assert_eq!(cut(packed(1), 2500, 0, 1001), [1001, 1001, 498]);
        assert_eq!(cut(packed(1), 1001, 0, 1001), [1001]);
        assert_eq!(cut(packed(4), 10, 0, 1001), [3]);
        assert_eq!(cut(packed(4), 10, 8, 1001), [1]);
        assert_eq!(cut(packed(4), 10, 12, 1001), [] as [usize; 0]);
        for (open, queued, pack, largest) in [(1000, 17, 3, 7), (1, 0, 8, 1), (999, 998, 1, 2)] {
            let tasks = cut(packed(pack), open, queued, largest);
            assert!(tasks.iter().all(|&n| n <= largest && n > 0));
            let places = tasks.iter().sum::<usize>() * pack;
            assert!(places >= open - queued && places < open - queued + pack, "{open} {queued} {pack} {largest}: {tasks:?}");
        }
    }

    /// Tasks of a halving go on as long as there is anything to do.
    #[test]
    fn a_halving_asks_for_as_many_tasks_as_run_at_a_time() {
        let mut request = request(Resources { throttle: Some(5), ..Resources::default() });
        request.plan.halving = Some(Halving { metric: "m".into(), goal: Goal::Max, rungs: vec![1.0], factor: 3 });
        let arrays = arrays(&request, 100, 0, 1001, "s");
        assert_eq!((arrays.len(), arrays[0].tasks, arrays[0].at_most), (1, 5, None));
        assert!(arrays[0].text().contains("sweep run . --jobs 1 --ranks 1\n"));
    }

    #[test]
    fn the_batch_file_asks_for_what_the_plan_says() {
        let resources = Resources {
            ranks: 2,
            threads: Some(3),
            memory_mb: Some(1000),
            trials_per_node: Some(4),
            trials_per_gpu: Some(3),
            throttle: Some(8),
            partition: Some("gpu".into()),
            sbatch: vec!["--qos=low".into()],
            ..Resources::default()
        };
        let text = arrays(&request(resources), 40, 0, 1001, "s")[0].text();
        for line in [
            "#SBATCH --job-name=s-x4",
            "#SBATCH --array=0-9%8",
            "#SBATCH --chdir='/s/my sweep'",
            "#SBATCH --ntasks=8",
            "#SBATCH --cpus-per-task=3",
            "#SBATCH --mem=4000M",
            "#SBATCH --gpus-per-node=4",
            "#SBATCH --partition=gpu",
            "#SBATCH --qos=low",
            "launch \"$SSDKD\" sweep run . --jobs 4 --at-most 4 --ranks 2",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("--time") && !text.contains("--account"));
    }

    /// A GPU for every rank of the trials that do not share, on each of a trial's nodes.
    #[test]
    fn gpus_are_asked_for_where_trials_want_them() {
        let asked = |device, resources: Resources| {
            let request = Request { device, ..request(resources) };
            let text = arrays(&request, 1, 0, 1001, "s")[0].text();
            text.lines().find_map(|line| line.strip_prefix("#SBATCH --gpus-per-node=")).map(|count| count.parse::<usize>().unwrap())
        };
        let of = |ranks, trials_per_node, trials_per_gpu| Resources { ranks, trials_per_node, trials_per_gpu, ..Resources::default() };
        for (device, resources, wanted) in [
            (DeviceName::Auto, of(2, Some(2), None), None),
            (DeviceName::Cuda, of(2, None, None), Some(2)),
            (DeviceName::Cuda, of(2, Some(3), None), Some(6)),
            (DeviceName::Auto, of(2, Some(3), Some(2)), Some(4)),
            (DeviceName::Auto, of(1, None, Some(4)), Some(1)),
            (DeviceName::Auto, of(4, None, Some(1)), Some(4)),
            (DeviceName::Cpu, of(4, None, Some(1)), None),
            (DeviceName::Cuda, Resources { nodes: 2, ..of(8, None, None) }, Some(4)),
            (DeviceName::Cuda, Resources { sbatch: vec!["--gres=gpu:a100:2".into()], ..of(2, None, None) }, None),
        ] {
            assert_eq!(asked(device, resources.clone()), wanted, "{device:?} {resources:?}");
        }
        let nodes = arrays(&request(Resources { nodes: 2, ..of(6, None, None) }), 1, 0, 1001, "s")[0].text();
        assert!(nodes.contains("#SBATCH --ntasks=6\n#SBATCH --cpus-per-task=1\n#SBATCH --ntasks-per-node=3\n"), "{nodes}");
    }

    #[test]
    fn answers_of_slurm_are_read() {
        let config = "Foo = 1\nMaxArraySize            = 1001\nClusterName             = one\nBar = 2";
        assert_eq!((max_array_size(config), setting(config, "ClusterName")), (Some(1001), Some("one".into())));
        let (jobs, job) = (BTreeSet::from(["7".to_owned()]), |id: &str, cluster: &str, user| SlurmJob {
            id: id.into(),
            cluster: cluster.into(),
            user,
            ..SlurmJob::default()
        });
        assert_eq!(known(&job("7", "one", 5), "one", &jobs, 4), Some(true));
        assert_eq!(known(&job("8", "one", 4), "one", &jobs, 4), Some(false));
        for hidden in [job("8", "one", 5), job("7", "two", 4), job("8", "", 4)] {
            assert_eq!(known(&hidden, "one", &jobs, 4), None, "{hidden:?}");
        }
        // The folder's name has a space.
        let name = job_name(&request(Resources::default()));
        assert!(name.starts_with("sweep-my-sweep-"), "{name}");
        assert_eq!(Queued::read(&format!("PD 7 {name}-x4\n"), &name).trials, 4);
        let tasks = "PD 7 s-x4\nPD 7 s-x4 \nR 9 ssdkd\nPD 8 s-x1\nPD 12 other-x9\nR 6 s-x4\n";
        assert_eq!(Queued::read(tasks, "s"), Queued { trials: 9, last: Some(8) });
        assert_eq!(Queued::read("R 6 s-x4\n", "s"), Queued { trials: 0, last: Some(6) });
        assert_eq!(Queued::read("PD 12 other-x9\n", "s"), Queued::default());
        assert_eq!(shell(Path::new("/it's here")), "'/it'\\''s here'");
    }
}
