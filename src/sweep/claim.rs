//! Who works on a trial: the file `claim` in its folder, made by whoever was first.
//!
//! A claim whose holder has died is never taken over on a suspicion such as its age: a file system that is slow to show another host's
//! files looks the same, and two runs in one folder would cost more than a trial that waits. What counts is what can be known: the
//! process is gone from this very machine, or that machine was started anew since; Slurm has the user's job no longer; or it is this same job
//! that Slurm has started again. Everything else is for the user to say, by naming the trial to `ssdkd sweep retry`.
//!
//! A claim that is taken over is never away: the new one is made beside it, under a name that only one can create, and renamed.

use crate::error::{Error, Result};
use crate::files;
use crate::parallel::host_name;
use crate::run_folder::is_held;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

const NAME: &str = "claim";
/// A claim that is about to take the place of one whose holder is gone.
pub(super) const NEXT: &str = "claim.next";

/// Contents of a claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Host of the runner.
    pub host: String,
    /// Boot and process namespace of that host: only there does `process` mean something.
    pub machine: String,
    /// What that host is known by from one boot to the next, hashed; host names may occur twice. Empty where it has nothing.
    #[serde(default)]
    pub installation: String,
    /// The runner.
    pub process: u32,
    /// When that process began, in clock ticks of its host: numbers of processes are used again.
    pub process_began: Option<u64>,
    /// Seconds since 1970 at which the trial was taken.
    pub since: u64,
    /// Slurm's job.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<SlurmJob>,
}

/// A job of Slurm, one for every task of an array.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlurmJob {
    /// SLURM_JOB_ID.
    pub id: String,
    /// How often Slurm had restarted it.
    pub restart: u64,
    /// SLURM_CLUSTER_NAME: several clusters on one file system number their jobs each for itself.
    #[serde(default)]
    pub cluster: String,
    /// Whose it is: sites may hide the jobs of others.
    #[serde(default)]
    pub user: u32,
}

impl SlurmJob {
    /// The job this process belongs to.
    pub fn own() -> Option<Self> {
        let restart = std::env::var("SLURM_RESTART_COUNT").ok().and_then(|count| count.parse().ok()).unwrap_or(0);
        let cluster = std::env::var("SLURM_CLUSTER_NAME").unwrap_or_default();
        Some(Self { id: std::env::var("SLURM_JOB_ID").ok()?, restart, cluster, user: user() })
    }

    /// Whether it is an earlier start of that job.
    fn was_before(&self, now: &Self) -> bool {
        self.restart < now.restart && Self { restart: now.restart, ..self.clone() } == *now
    }
}

/// The user this process runs for.
pub(super) fn user() -> u32 {
    // SAFETY: reads a number of this process.
    unsafe { libc::getuid() }
}

impl Claim {
    /// Takes a trial that is free, or was its own job's before Slurm started that again. `None`: another has it.
    pub fn take(folder: &Path) -> Result<Option<Self>> {
        Self::new().lay(folder)
    }

    /// Takes the trial over from this claim, whose holder is gone. `None`: another does, or has.
    pub fn take_over(&self, folder: &Path) -> Result<Option<Self>> {
        Self::new().replace(self, folder)
    }

    fn lay(self, folder: &Path) -> Result<Option<Self>> {
        match Self::read(folder)? {
            Some(before) if before.is_outlived_by(self.job.as_ref(), folder) => self.replace(&before, folder),
            _ => self.create(&folder.join(NAME)),
        }
    }

    fn replace(self, gone: &Self, folder: &Path) -> Result<Option<Self>> {
        let next = folder.join(NEXT);
        let Some(mine) = self.create(&next)? else { return Ok(None) };
        // From here on nobody else takes it over; somebody may have, since we looked.
        let is_laid = Self::read(folder).and_then(|now| match now.as_ref() == Some(gone) {
            true => fs::rename(&next, folder.join(NAME)).map(|()| true).map_err(|e| Error::io("rename", &next, &e)),
            false => Ok(false),
        });
        if matches!(is_laid, Ok(true)) {
            return Ok(Some(mine));
        }
        // Left there, it would keep everybody from taking the trial over.
        let removed = fs::remove_file(&next).map_err(|e| Error::io("remove", &next, &e));
        is_laid.and(removed).map(|()| None)
    }

    /// Writes it where nothing lies. `None`: something does.
    fn create(self, path: &Path) -> Result<Option<Self>> {
        let text = serde_json::to_string_pretty(&self).map_err(|e| Error::refused(e.to_string()))?;
        let mut file = match File::create_new(path) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::AlreadyExists => return Ok(None),
            Err(e) => return Err(Error::io("create", path, &e)),
        };
        if let Err(e) = file.write_all(text.as_bytes()).and_then(|()| file.sync_all()) {
            // Nobody would know whose it is.
            let _ = fs::remove_file(path);
            return Err(Error::io("write", path, &e));
        }
        Ok(Some(self))
    }

    fn new() -> Self {
        let process = std::process::id();
        let (host, machine, installation) = (host_name(), machine(), installation());
        Self { host, machine, installation, process, process_began: began(process), since: now(), job: SlurmJob::own() }
    }

    /// The claim on a trial, if there is one. One that is empty, or cut by a crash, is still one.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(NAME);
        match fs::read(&path) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text).unwrap_or_else(|_| Self {
                host: "unknown".into(),
                machine: String::new(),
                installation: String::new(),
                process: 0,
                process_began: None,
                since: 0,
                job: None,
            }))),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io("read", &path, &e)),
        }
    }

    /// The holder is done with the trial. If it was taken over meanwhile, on the user's word, the claim that lies there is another's.
    pub fn give_up(&self, folder: &Path) -> Result<()> {
        if !self.stands(folder)? {
            return Ok(());
        }
        let path = folder.join(NAME);
        fs::remove_file(&path).map_err(|e| Error::io("remove", &path, &e))
    }

    /// Whether the trial is still its holder's.
    pub(super) fn stands(&self, folder: &Path) -> Result<bool> {
        Ok(Self::read(folder)?.as_ref() == Some(self))
    }

    /// Whether the runner is known to be dead: its process is gone, or was before this host was started anew.
    pub fn is_dead_here(&self) -> bool {
        if self.machine == machine() {
            return began(self.process).is_none() || began(self.process) != self.process_began;
        }
        let is_this_host = self.host == host_name() && !self.installation.is_empty() && self.installation == installation();
        let boot = |machine: &str| machine.split(' ').nth(1).map(str::to_owned);
        is_this_host && boot(&self.machine).zip(boot(&machine())).is_some_and(|(then, now)| then != now)
    }

    /// Whether it is of an earlier start of a job, and its run is over: Slurm does not start a job again before its last start is.
    pub(super) fn is_outlived_by(&self, job: Option<&SlurmJob>, folder: &Path) -> bool {
        let was = self.job.as_ref().zip(job).is_some_and(|(was, now)| was.was_before(now));
        was && !is_held(folder)
    }

    /// Why its holder is known to be gone, if by the user's word; or why the trial is left alone. `queued`: whether Slurm has a job.
    pub fn gone(
        &self,
        folder: &Path,
        on_his_word: bool,
        queued: &dyn Fn(&SlurmJob) -> Option<bool>,
    ) -> std::result::Result<&'static str, String> {
        if is_held(folder) {
            return Err(format!("a process of its run is alive ({self})"));
        }
        match self.job.as_ref().and_then(queued) {
            _ if self.is_dead_here() => Ok("its runner is dead"),
            _ if self.machine == machine() => Err(format!("its runner is alive ({self}): end it first")),
            Some(true) => Err(format!("Slurm still has its job ({self}): scancel it first")),
            Some(false) => Ok("its Slurm job has ended"),
            None if on_his_word => Ok("you named it"),
            None => Err(format!("taken by {self}: if that is over, name the trial to `ssdkd sweep retry`")),
        }
    }
}

impl std::fmt::Display for Claim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "process {} on {}", self.process, self.host)?;
        self.job.as_ref().map_or(Ok(()), |job| write!(f, ", Slurm job {}", job.id))
    }
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// This boot of this host, and its process namespace.
fn machine() -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let namespace = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    format!("{} {} {}", host_name(), boot.trim(), namespace.display())
}

/// What this host is known by from one boot to the next. Hashed: it is nobody's business.
fn installation() -> String {
    let id = fs::read_to_string("/etc/machine-id").unwrap_or_default();
    if id.trim().is_empty() { String::new() } else { files::sha256(id.trim().as_bytes())[..12].to_owned() }
}

/// When a process of this host began; none if there is no such process.
fn began(process: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name in brackets may hold anything; the state is the third field, the start the 22nd. A zombie runs no more.
    let mut fields = stat.rsplit_once(") ")?.1.split_whitespace();
    if fields.next()? == "Z" { None } else { fields.nth(18)?.parse().ok() }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A claim of this process, as of a job's start.
    pub fn of_job(id: &str, restart: u64) -> Claim {
        Claim { job: Some(SlurmJob { id: id.into(), restart, ..SlurmJob::default() }), ..Claim::new() }
    }

    #[test]
    fn a_trial_is_taken_by_one() {
        let folder = tempfile::tempdir().unwrap();
        let taken: Vec<Option<Claim>> = std::thread::scope(|scope| {
            let takers: Vec<_> = (0..8).map(|_| scope.spawn(|| Claim::take(folder.path()).unwrap())).collect();
            takers.into_iter().map(|taker| taker.join().unwrap()).collect()
        });
        assert_eq!(taken.iter().flatten().count(), 1);
        let claim = taken.into_iter().flatten().next().unwrap();
        assert_eq!(Claim::read(folder.path()).unwrap(), Some(claim.clone()));
        assert!(!claim.is_dead_here());
        Claim { since: 0, ..claim.clone() }.give_up(folder.path()).unwrap();
        assert_eq!(Claim::read(folder.path()).unwrap(), Some(claim.clone()), "only its own is given up");
        claim.give_up(folder.path()).unwrap();
        assert!(Claim::take(folder.path()).unwrap().is_some());
    }

    #[test]
    fn only_a_holder_that_is_known_to_be_gone_loses_its_claim() {
        let folder = tempfile::tempdir().unwrap();
        let job = |id: &str| Some(SlurmJob { id: id.into(), ..SlurmJob::default() });
        let mine = Claim::new();
        let gone =
            |claim: &Claim, named| claim.gone(folder.path(), named, &|job| (job.id != "unreachable").then_some(job.id == "queued")).is_ok();
        assert!(!gone(&mine, false) && !gone(&mine, true), "this process lives");
        // The same number, of a process that began at another time.
        assert!(gone(&Claim { process_began: Some(1), ..mine.clone() }, false));
        let elsewhere = Claim { machine: "another".into(), installation: String::new(), job: None, ..mine.clone() };
        assert!(!gone(&elsewhere, false) && gone(&elsewhere, true));
        assert!(!gone(&Claim { job: job("queued"), ..elsewhere.clone() }, true));
        assert!(!gone(&Claim { job: job("unreachable"), ..elsewhere.clone() }, false));
        assert!(gone(&Claim { job: job("ended"), ..elsewhere }, false));
        // Before this host was started anew; of another host with its name; of this boot in another container.
        let (here, known) = (machine(), "a host".to_owned());
        let (host, boot) = (host_name(), here.split(' ').nth(1).unwrap());
        let of = |boot: &str, installation: &str| Claim {
            machine: format!("{host} {boot} ns"),
            installation: installation.into(),
            ..mine.clone()
        };
        if !installation().is_empty() {
            assert!(of("earlier", &installation()).is_dead_here());
        }
        assert!(!of("earlier", &known).is_dead_here() && !of("earlier", "").is_dead_here() && !of(boot, &installation()).is_dead_here());
    }

    /// Of those who find the same dead runner one gets the trial, and it is never free.
    #[test]
    fn a_trial_is_taken_over_by_one() {
        let folder = tempfile::tempdir().unwrap();
        let dead = Claim { process_began: Some(1), ..Claim::new() };
        dead.clone().create(&folder.path().join(NAME)).unwrap();
        let taken: Vec<Option<Claim>> = std::thread::scope(|scope| {
            let takers: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        assert!(Claim::take(folder.path()).unwrap().is_none());
                        dead.take_over(folder.path()).unwrap()
                    })
                })
                .collect();
            takers.into_iter().map(|taker| taker.join().unwrap()).collect()
        });
        assert_eq!(taken.iter().flatten().count(), 1);
        assert_eq!(Claim::read(folder.path()).unwrap().as_ref(), taken.iter().flatten().next());
        assert!(!folder.path().join(NEXT).exists());
    }

    /// Slurm gives a job that it starts again the number it had.
    #[test]
    fn a_job_that_was_started_again_takes_its_own_claims() {
        let folder = tempfile::tempdir().unwrap();
        let lay = |claim: Claim| claim.lay(folder.path()).unwrap();
        assert!(lay(of_job("7", 1)).is_some());
        for other in [of_job("7", 1), of_job("7", 0), of_job("8", 2), Claim { job: None, ..Claim::new() }] {
            assert_eq!(lay(other), None);
        }
        let elsewhere = |job: SlurmJob| Claim { job: Some(SlurmJob { id: "7".into(), restart: 2, ..job }), ..Claim::new() };
        assert_eq!(lay(elsewhere(SlurmJob { cluster: "other".into(), ..SlurmJob::default() })), None);
        assert_eq!(lay(of_job("7", 2)), Claim::read(folder.path()).unwrap());
        assert_eq!(Claim::read(folder.path()).unwrap().and_then(|claim| claim.job), of_job("7", 2).job);
        // As long as a process of the run holds its folder, it is not over.
        let lock = File::create(folder.path().join("lock")).unwrap();
        lock.try_lock().unwrap();
        assert_eq!(lay(of_job("7", 3)), None);
        drop(lock);
        assert!(lay(of_job("7", 3)).is_some());
    }
}
