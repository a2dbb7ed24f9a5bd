//! Launch files on a real Slurm: what happens at a time limit, at scancel, in arrays and chains, and to what no restart mends.

use crate::cluster::{Frozen, Slurm, has_checkpoint};
use crate::launch::{Outcome, has_mpirun, is_open_mpi, root, run, small_fashion_mnist, ssdkd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

/// One Slurm for the tests that run at a time; the last one stops it.
struct Cluster {
    slurm: Slurm,
    undisturbed: OnceLock<String>,
}

fn cluster() -> Option<Arc<Cluster>> {
    static SHARED: Mutex<Weak<Cluster>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(cluster) = shared.upgrade() {
        return Some(cluster);
    }
    match Slurm::start() {
        Ok(slurm) => {
            small_fashion_mnist(slurm.folder(), 32);
            let cluster = Arc::new(Cluster { slurm, undisturbed: OnceLock::new() });
            *shared = Arc::downgrade(&cluster);
            Some(cluster)
        }
        Err(reason) => {
            println!("skip: {reason}");
            None
        }
    }
}

impl Cluster {
    fn path(&self, name: &str) -> PathBuf {
        self.slurm.folder().join(name)
    }

    /// Arguments of a run of a few seconds.
    fn arguments(&self, run: &Path) -> Vec<String> {
        small_run(self.slurm.folder(), run)
    }

    /// Checksums of the run, undisturbed, with a seed.
    fn undisturbed(&self, seed: u64) -> String {
        let alone = || {
            let run = self.path(&format!("undisturbed-{seed}"));
            ssdkd(&[self.arguments(&run), vec!["--set".into(), format!("seed={seed}")]].concat()).expect(0);
            checksums(&run)
        };
        if seed == 0 { self.undisturbed.get_or_init(alone).clone() } else { alone() }
    }
}

fn small_run(data: &Path, run: &Path) -> Vec<String> {
    let mut arguments: Vec<String> = ["train", "--config", "configs/fashion_mnist/demo.toml"].map(str::to_owned).to_vec();
    for set in [
        "train.rounds=4",
        "train.warmup_rounds=1",
        "train.eval_every_rounds=4",
        "inversion.steps=1",
        "inversion.batch_size=16",
        "generator.filters=8",
        "replay.capacity=100",
        "distill.batch_size=32",
        "distill.steps_per_round=3",
        "distill.teacher_views=2",
    ] {
        arguments.extend(["--set".into(), set.into()]);
    }
    arguments.extend(["--data-dir".into(), data.display().to_string(), "--run-dir".into(), run.display().to_string()]);
    arguments
}

fn inspect(option: &str, run: &Path) -> String {
    ssdkd(&["inspect", option, run.to_str().unwrap()]).expect(0).stdout.trim().to_owned()
}

fn checksums(run: &Path) -> String {
    inspect("--checksum", run)
}

fn status(run: &Path) -> String {
    inspect("--status", run)
}

#[test]
fn a_job_at_its_time_limit_is_requeued_and_ends_with_the_same_numbers() {
    let Some(cluster) = cluster() else { return };
    let run = cluster.path("limit");
    let options = ["--time=1", "--signal=B:USR1@30"];
    let job = cluster.slurm.submit(&options, "mpirun.sbatch", &cluster.path("limit.log"), &cluster.arguments(&run));
    let frozen = Frozen::at_first_checkpoint(&run);
    job.says("USR1: the run is asked to save and stop");
    drop(frozen);
    job.is_requeued();
    assert_eq!(status(&run), "stopped");
    assert_eq!(job.ends(), "COMPLETED", "{}", job.log());
    assert!(job.log().contains("resumed at step"), "{}", job.log());
    assert_eq!(status(&run), "finished");
    assert_eq!(checksums(&run), cluster.undisturbed(0));
}

/// scancel ends mpirun as well, which gives the ranks a second or two: what is asserted is that the newest checkpoint is whole and that
/// the job is left ended. Also that a refusal is not requeued, although the folder's run could go on.
#[test]
fn scancel_leaves_a_whole_checkpoint_and_ends_the_job() {
    let Some(cluster) = cluster() else { return };
    let (run, log) = (cluster.path("cancelled"), cluster.path("cancelled.log"));
    let arguments = cluster.arguments(&run);
    let job = cluster.slurm.submit(&[], "mpirun.sbatch", &log, &arguments);
    let frozen = Frozen::at_first_checkpoint(&run);
    assert_eq!(status(&run), "running");
    // The same command line as a user's, CONT included; whichever comes first finds the ranks in the middle.
    job.signal(&[]);
    drop(frozen);
    assert_eq!(job.ends(), "CANCELLED");
    job.says("the run is stopped");
    assert!(job.log().contains("it is not for this script to start it again"), "{}", job.log());
    assert_eq!((job.field("Restarts").as_str(), status(&run).as_str()), ("0", "stopped"));

    let log = cluster.path("refused.log");
    let refused = cluster.slurm.submit(&[], "mpirun.sbatch", &log, &[&arguments[..], &["--set".into(), "seed=5".into()]].concat());
    assert_eq!(refused.ends(), "FAILED");
    assert_eq!((refused.field("Restarts").as_str(), refused.field("ExitCode").as_str()), ("0", "2:0"), "{}", refused.log());
    assert!(refused.log().contains("seed: was 0 when this run began, is 5 now"), "{}", refused.log());

    ssdkd(&arguments).expect(0).says(&["resumed at step"]);
    assert_eq!(checksums(&run), cluster.undisturbed(0));
}

/// The second task bears the number of the whole array: requeueing it must not requeue the first.
#[test]
fn the_tasks_of_an_array_do_not_disturb_each_other() {
    let Some(cluster) = cluster() else { return };
    let arguments = [cluster.arguments(&cluster.path("task-%a")), vec!["--set".into(), "seed=%a".into()]].concat();
    let array = cluster.slurm.submit(&["--array=0-1"], "mpirun.sbatch", &cluster.path("task-%a.log"), &arguments);
    let runs = [cluster.path("task-0"), cluster.path("task-1")];
    let tasks = [0, 1].map(|task| cluster.slurm.job(&format!("{}_{task}", array.id), &cluster.path(&format!("task-{task}.log"))));
    let frozen = [0, 1].map(|task| Frozen::at_first_checkpoint(&runs[task]));
    assert_eq!(tasks[1].field("JobId"), array.id);
    tasks[1].signal(&["--batch", "--signal=USR1"]);
    tasks[1].says("USR1: the run is asked to save and stop");
    let [first, second] = frozen;
    drop(second);
    tasks[1].is_requeued();
    assert_eq!((tasks[0].field("JobState").as_str(), tasks[0].field("Restarts").as_str()), ("RUNNING", "0"));
    assert_eq!((status(&runs[0]).as_str(), status(&runs[1]).as_str()), ("running", "stopped"));
    drop(first);
    for task in [0, 1] {
        assert_eq!(tasks[task].ends(), "COMPLETED", "{}", tasks[task].log());
        assert_eq!(checksums(&runs[task]), cluster.undisturbed(task as u64), "task {task}");
    }
    assert!(!tasks[0].log().contains("USR1"), "{}", tasks[0].log());
}

/// One restart is allowed, and a run that needs more is left stopped.
#[test]
fn a_job_is_requeued_as_often_as_the_site_allows() {
    let Some(cluster) = cluster() else { return };
    let run = cluster.path("capped");
    let arguments = [cluster.arguments(&run), ["--set", "train.rounds=40"].map(str::to_owned).to_vec()].concat();
    let job = cluster.slurm.submit(&["--export=ALL,MAX_RESTARTS=1"], "mpirun.sbatch", &cluster.path("capped.log"), &arguments);
    let frozen = Frozen::at_first_checkpoint(&run);
    job.signal(&["--batch", "--signal=USR1"]);
    job.says("USR1: the run is asked to save and stop");
    drop(frozen);
    job.is_requeued();
    job.says("resumed at step");
    job.signal(&["--batch", "--signal=USR1"]);
    assert_eq!(job.ends(), "FAILED", "{}", job.log());
    assert_eq!((job.field("Restarts").as_str(), job.field("ExitCode").as_str()), ("1", "75:0"), "{}", job.log());
    assert!(job.log().contains("not requeued: 1 restarts are allowed (MAX_RESTARTS)"), "{}", job.log());
    assert_eq!(status(&run), "stopped");
}

/// What job.sh does around a launcher, with a stand-in for Slurm's command.
fn around(launcher: &str) -> (tempfile::TempDir, Outcome) {
    let folder = tempfile::tempdir().unwrap();
    let scontrol = folder.path().join("scontrol");
    std::fs::write(&scontrol, "#!/bin/sh\necho scontrol \"$@\"\n").unwrap();
    std::fs::set_permissions(&scontrol, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut command = Command::new("bash");
    command.arg("-c").arg(format!(". launch/slurm/job.sh; arguments train --run-dir \"$FOLDER/run\"; {launcher}; finish"));
    for name in ["SLURM_ARRAY_JOB_ID", "SLURM_RESTART_COUNT", "SSDKD_LINK", "MAX_RESTARTS"] {
        command.env_remove(name);
    }
    let job = [("SLURM_JOB_ID", "7"), ("SLURM_JOB_NUM_NODES", "1"), ("SLURM_NTASKS", "1"), ("SLURM_JOB_NODELIST", "here")];
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
    command.envs(job).env("PATH", path).env("SSDKD", env!("CARGO_BIN_EXE_ssdkd")).env("FOLDER", folder.path()).current_dir(root());
    let out = run(command, Duration::from_secs(60));
    (folder, out)
}

/// A run that was told to stop before it had a state has lost nothing: it is started again. One that ended by itself is not.
#[test]
fn a_signal_before_the_first_state_is_not_lost() {
    let (folder, out) = around("kill -USR1 $$; launch touch \"$FOLDER/launched\"");
    assert!(out.expect(75).stdout.contains("scontrol requeue 7"));
    assert!(!folder.path().join("launched").exists(), "a launcher that begins dies of the signal");
    // Killed by the signal that is passed on while it loads.
    let out = around("launch sh -c \"kill -USR1 $$; exec sleep 40\"").1;
    assert!(out.seconds < 30.0 && out.expect(75).stdout.contains("scontrol requeue 7"));
    // Under srun the ranks get the signal, and the batch script sees only what became of them.
    let out = around("launch sh -c 'kill -USR1 $$'").1.expect(75);
    assert!(out.stdout.contains("scontrol requeue 7"), "{}", out.stdout);
    for (launcher, code) in [("launch sh -c 'exit 9'", 9), ("kill -TERM $$; launch sleep 40", 75)] {
        let out = around(launcher).1.expect(code);
        assert!(!out.stdout.contains("scontrol"), "{launcher}: {}", out.stdout);
    }
}

/// srun may end with 0 after ranks that ended with 75.
#[test]
fn under_srun_the_state_decides_not_the_exit_code() {
    let Some(cluster) = cluster() else { return };
    let run = cluster.path("srun");
    let job = cluster.slurm.submit(&[], "srun.sbatch", &cluster.path("srun.log"), &cluster.arguments(&run));
    let frozen = Frozen::at_first_checkpoint(&run);
    job.signal(&["--signal=USR1"]);
    drop(frozen);
    job.is_requeued();
    assert_eq!(job.ends(), "COMPLETED", "{}", job.log());
    assert_eq!(job.log().matches(" ranks=2 ").count(), 2, "{}", job.log());
    assert!(job.log().contains("resumed at step"), "{}", job.log());
    assert_eq!(checksums(&run), cluster.undisturbed(0));
}

#[test]
fn a_chain_goes_on_without_requeueing() {
    let Some(cluster) = cluster() else { return };
    let run = cluster.path("chain");
    let output = format!("--output={}", cluster.path("chain-%j.log").display());
    let arguments = cluster.arguments(&run);
    let arguments: Vec<&str> =
        ["2", "--ntasks=2", &output, "launch/slurm/mpirun.sbatch"].into_iter().chain(arguments.iter().map(String::as_str)).collect();
    let printed = cluster.slurm.call("launch/slurm/chain.sh", &arguments).expect(0).stdout;
    let ids: Vec<&str> = printed.lines().filter_map(|line| line.split("job ").nth(1)).collect();
    let links: Vec<_> = ids.iter().map(|id| cluster.slurm.job(id, &cluster.path(&format!("chain-{id}.log")))).collect();
    assert_eq!(links.len(), 2, "{printed}");
    let frozen = Frozen::at_first_checkpoint(&run);
    assert_eq!(links[1].field("Dependency").split('(').next().unwrap(), format!("afterany:{}", ids[0]));
    links[0].signal(&["--batch", "--signal=USR1"]);
    links[0].says("USR1: the run is asked to save and stop");
    drop(frozen);
    assert_eq!(links[0].ends(), "FAILED");
    assert_eq!(links[0].field("ExitCode"), "75:0");
    assert_eq!(links[1].ends(), "COMPLETED", "{}", links[1].log());
    assert!(links[1].log().contains("resumed at step"), "{}", links[1].log());
    assert_eq!(checksums(&run), cluster.undisturbed(0));
}

/// Tasks that are each alone in a world of their own would all write into one folder.
#[test]
fn tasks_without_mpi_are_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("run");
    let arguments = small_run(folder.path(), &target);
    let mut command = Command::new(env!("CARGO_BIN_EXE_ssdkd"));
    command.args(&arguments).env("SLURM_STEP_NUM_TASKS", "2").current_dir(root());
    let says = ["2 tasks were started without MPI support", "hint: use `srun --mpi=pmix …`"];
    run(command, Duration::from_secs(60)).expect(2).says(&says);
    assert!(!target.exists());
    let Some(cluster) = cluster() else { return };
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    // MPICH joins by pmi2.
    let without: &[&str] = if is_open_mpi() { &["--mpi=none", "--mpi=pmi2"] } else { &["--mpi=none"] };
    for plugin in without {
        let out = cluster.slurm.call("srun", &[&["--ntasks=2", plugin, env!("CARGO_BIN_EXE_ssdkd")], &arguments[..]].concat());
        let out = out.expect(2).says(&says);
        assert_eq!(out.stderr.matches(says[0]).count(), 1, "{}", out.stderr);
        assert!(!target.exists(), "{plugin}");
    }
}

/// A killed run cannot write how it ended; launch files start it again as they do a stopped one.
#[test]
fn a_run_that_was_killed_reads_as_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("run");
    let arguments = small_run(&small_fashion_mnist(folder.path(), 32), &target);
    let mut command = Command::new(env!("CARGO_BIN_EXE_ssdkd"));
    command.args(&arguments).current_dir(root()).env("OMP_NUM_THREADS", "1").stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    has_checkpoint(&target);
    let seen = status(&target);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!((seen.as_str(), status(&target).as_str()), ("running", "stopped"));
}

#[test]
fn a_hostfile_names_where_ranks_start() {
    if !has_mpirun() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let hostfile = folder.path().join("hosts");
    std::fs::write(&hostfile, if is_open_mpi() { "localhost slots=2\n" } else { "localhost:2\n" }).unwrap();
    let mut command = Command::new(root().join("launch/mpirun-hosts.sh"));
    command.arg(&hostfile).args(["2", env!("CARGO_BIN_EXE_ssdkd"), "doctor"]);
    let out = run(command, Duration::from_secs(120)).expect(0);
    assert!(out.stdout.contains("2 (MPI): every operation gives the right answer"), "{}", out.stdout);
}
