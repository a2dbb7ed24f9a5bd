//! A real Slurm on this machine: its daemons with files and ports of their own, and jobs as the tests follow them.

use crate::launch::{Outcome, root, run};
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Far beyond what anything here takes on a machine that has other things to do.
const DEADLINE: Duration = Duration::from_secs(240);

/// Runs the daemons until its standard input ends, which it does however the tests end; then ends the jobs and the daemons.
const SUPERVISOR: &str = r#"
munged --foreground --force --num-threads=2 --key-file="$1/munge.key" --socket="$1/munge.socket" --pid-file="$1/munge.pid" \
    --seed-file="$1/munge.seed" --log-file="$1/munge.log" >"$1/munged.out" 2>&1 & munged=$!
slurmctld -D >"$1/slurmctld.out" 2>&1 & slurmctld=$!
slurmd -D >"$1/slurmd.out" 2>&1 & slurmd=$!
cat >/dev/null
scancel --quiet --user="$(id -un)" 2>/dev/null
for _ in 1 2 3 4 5 6 7 8 9 10; do
    [ -n "$(squeue --noheader 2>/dev/null)" ] || break
    sleep 1
done
kill $slurmd $slurmctld $munged
wait
rm -rf "$1"
"#;

/// The daemons; stopped when this is dropped.
pub struct Slurm {
    folder: TempDir,
    supervisor: Child,
}

impl Slurm {
    /// Starts them and waits until the node takes jobs; daemons that are here and do not start fail the test.
    ///
    /// # Errors
    /// A program that is not installed.
    pub fn start() -> Result<Self, String> {
        for program in ["munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "mpirun"] {
            let found = path().split(':').any(|folder| Path::new(folder).join(program).is_file());
            found.then_some(()).ok_or(format!("{program} is not on PATH (launch/setup.sh --tests installs it)"))?;
        }
        let folder = tempfile::tempdir().unwrap();
        configure(folder.path()).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", SUPERVISOR, "sh"]).arg(folder.path()).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let supervisor = surroundings(&mut command, folder.path()).process_group(0).spawn().unwrap();
        let slurm = Self { folder, supervisor };
        let began = Instant::now();
        while slurm.call("sinfo", &["--noheader", "--format=%t"]).stdout.trim() != "idle" {
            if began.elapsed() > Duration::from_secs(60) {
                let read = |name: &str| fs::read_to_string(slurm.folder.path().join(name)).unwrap_or_default();
                let said: Vec<String> = ["munged.out", "munge.log", "slurmctld.out", "slurmd.out"].map(read).into();
                panic!("Slurm's daemons do not start on this machine:\n{}", said.concat());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(slurm)
    }

    /// A folder that lives as long as the daemons.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Runs a program in the repository's top folder with this Slurm in its environment.
    pub fn call(&self, program: &str, arguments: &[&str]) -> Outcome {
        let mut command = Command::new(program);
        surroundings(&mut command, self.folder.path()).args(arguments);
        run(command, DEADLINE)
    }

    /// Submits a launch file for two ranks; `log` may hold sbatch's patterns.
    pub fn submit(&self, options: &[&str], file: &str, log: &Path, arguments: &[String]) -> Job<'_> {
        let output = format!("--output={}", log.display());
        let file = format!("launch/slurm/{file}");
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let fixed = ["--parsable", "--ntasks=2", &output];
        let out = self.call("sbatch", &[&fixed, options, &[&file], &arguments[..]].concat()).expect(0);
        self.job(out.stdout.trim(), log)
    }

    /// A job that is there, by its number.
    pub fn job(&self, id: &str, log: &Path) -> Job<'_> {
        Job { slurm: self, id: id.to_owned(), log: log.into() }
    }
}

impl Drop for Slurm {
    fn drop(&mut self) {
        drop(self.supervisor.stdin.take());
        let _ = self.supervisor.wait();
    }
}

/// A submitted job, cancelled when this is dropped.
pub struct Job<'a> {
    slurm: &'a Slurm,
    pub id: String,
    log: PathBuf,
}

impl Job<'_> {
    /// What the job has printed.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// A field of `scontrol show job`, for example JobState.
    pub fn field(&self, name: &str) -> String {
        let text = self.slurm.call("scontrol", &["--oneliner", "show", "job", &self.id]).expect(0).stdout;
        let value = text.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        value.unwrap_or_else(|| panic!("no {name} in {text}")).to_owned()
    }

    /// Sends a signal with these further options of scancel.
    pub fn signal(&self, options: &[&str]) {
        self.slurm.call("scancel", &[options, &[&self.id]].concat()).expect(0);
    }

    /// Waits until its log says this.
    #[track_caller]
    pub fn says(&self, text: &str) {
        until(|| format!("`{text}` in the log:\n{}", self.log()), || self.log().contains(text));
    }

    /// Waits until it has been requeued and is pending.
    #[track_caller]
    pub fn is_requeued(&self) {
        let what = || format!("requeue of job {} ({}):\n{}", self.id, self.field("JobState"), self.log());
        until(what, || self.field("Restarts") != "0" && self.field("JobState") == "PENDING");
    }

    /// Waits for its end, however often it is requeued, and returns its last state. A job that waits to be started again is given
    /// time enough to end.
    #[track_caller]
    pub fn ends(&self) -> String {
        until(
            || format!("end of job {}:\n{}", self.id, self.log()),
            || match self.field("JobState").as_str() {
                "PENDING" if self.field("Reason") == "BeginTime" && self.field("TimeLimit") != "00:10:00" => {
                    self.slurm.call("scontrol", &["update", &format!("JobId={}", self.id), "TimeLimit=10"]).expect(0);
                    false
                }
                "PENDING" | "RUNNING" | "COMPLETING" | "CONFIGURING" => false,
                _ => true,
            },
        );
        self.field("JobState")
    }
}

impl Drop for Job<'_> {
    fn drop(&mut self) {
        self.slurm.call("scancel", &["--quiet", &self.id]);
    }
}

/// The processes of a run, held by SIGSTOP: however fast the machine is, the run is in the middle until this is dropped.
pub struct Frozen(Vec<i32>);

impl Frozen {
    /// Waits for the first checkpoint of the run, then freezes it.
    #[track_caller]
    pub fn at_first_checkpoint(run: &Path) -> Self {
        has_checkpoint(run);
        let frozen = Self(processes(run));
        for &process in &frozen.0 {
            // SAFETY: a signal to a process that this test has started.
            assert_eq!(unsafe { libc::kill(process, libc::SIGSTOP) }, 0);
        }
        frozen
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        for &process in &self.0 {
            // SAFETY: as above; one that was killed meanwhile needs no thaw.
            let _ = unsafe { libc::kill(process, libc::SIGCONT) };
        }
    }
}

/// Waits for the first checkpoint of a run.
#[track_caller]
pub fn has_checkpoint(run: &Path) {
    let whole = |name: String| name.starts_with("at-");
    let names = || fs::read_dir(run.join("checkpoints")).into_iter().flatten().map(|e| e.unwrap().file_name().into_string().unwrap());
    until(|| format!("a checkpoint in {}", run.display()), || names().any(whole));
}

/// Waits, and fails the test at the deadline.
#[track_caller]
fn until(what: impl Fn() -> String, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < DEADLINE, "waited in vain for {}", what());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Ranks of a run.
fn processes(run: &Path) -> Vec<i32> {
    let run = run.display().to_string();
    let is_rank = |line: &[u8]| {
        let words: Vec<_> = line.split(|&byte| byte == 0).collect();
        words[0] == env!("CARGO_BIN_EXE_ssdkd").as_bytes() && words.contains(&run.as_bytes())
    };
    command_lines().filter(|(_, line)| is_rank(line)).map(|(process, _)| process).collect()
}

/// Every process of this machine with its command line, words ending in a zero byte.
fn command_lines() -> impl Iterator<Item = (i32, Vec<u8>)> {
    let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    processes.map(|process: i32| (process, fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default()))
}

/// Slurm's programs lie where a user's PATH may not lead.
fn path() -> String {
    format!("{}:/usr/local/sbin:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}

/// Environment of everything that belongs to this Slurm. Nothing of another one that the tests may themselves run under.
fn surroundings<'a>(command: &'a mut Command, folder: &Path) -> &'a mut Command {
    let foreign = std::env::vars().map(|(name, _)| name);
    for name in foreign.filter(|n| ["SLURM", "SBATCH", "SRUN", "PMI", "OMPI", "SSDKD"].iter().any(|prefix| n.starts_with(prefix))) {
        command.env_remove(name);
    }
    let settings = [("PATH", path()), ("SLURM_CONF", folder.join("slurm.conf").display().to_string())];
    command.envs(settings).env("SSDKD", env!("CARGO_BIN_EXE_ssdkd")).current_dir(root())
}

fn configure(folder: &Path) -> std::io::Result<()> {
    for name in ["state", "spool"] {
        fs::create_dir(folder.join(name))?;
    }
    let mut key = [0u8; 1024];
    std::io::Read::read_exact(&mut fs::File::open("/dev/urandom")?, &mut key)?;
    let mut file = fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(folder.join("munge.key"))?;
    std::io::Write::write_all(&mut file, &key)?;
    let listeners = [TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?];
    let [ctld, slurmd] = [listeners[0].local_addr()?.port(), listeners[1].local_addr()?.port()];
    let host = fs::read_to_string("/proc/sys/kernel/hostname")?;
    let host = host.trim().split('.').next().unwrap_or_default();
    let user = String::from_utf8_lossy(&Command::new("id").arg("-un").output()?.stdout).trim().to_owned();
    let folder = folder.display();
    // More CPUs than there are, so that jobs of several tests run at a time. A requeued job waits for as long as a credential lives,
    // two minutes unless said otherwise: were it started sooner, the end of its last start could be taken for that of the new one.
    let text = format!(
        "ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld}
SlurmdPort={slurmd}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=15
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1
SlurmdParameters=config_overrides
ReturnToService=2
MaxArraySize=3
NodeName={host} NodeAddr=127.0.0.1 CPUs=16 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"
    );
    fs::write(folder.to_string() + "/slurm.conf", text)
}
