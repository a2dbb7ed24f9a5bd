//! Who works on a trial: the file `claim` in its folder, made by whoever was first.
//!
//! A claim whose holder has died is never taken over on a suspicion such as its age: a file system that is slow to show another host's
//! files looks the same, and two runs in one folder would cost more than a trial that waits. What counts is what can be known: the
//! process is gone from this very machine, Slurm no longer knows the job, or it is this same job that Slurm has started again. Everything else is
//! for the user to say, by naming the trial to `ssdkd sweep retry`.

use crate::error::{Error, Result};
use crate::parallel::host_name;
use crate::run_folder::is_held;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

const NAME: &str = "claim";

/// Contents of a claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Host of the runner.
    pub host: String,
    /// Boot and process namespace of that host: only there does `process` mean something.
    pub machine: String,
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlurmJob {
    /// SLURM_JOB_ID.
    pub id: String,
    /// How often Slurm had restarted it.
    pub restart: u64,
}

impl SlurmJob {
    /// The job this process belongs to.
    pub fn own() -> Option<Self> {
        let restart = std::env::var("SLURM_RESTART_COUNT").ok().and_then(|count| count.parse().ok()).unwrap_or(0);
        Some(Self { id: std::env::var("SLURM_JOB_ID").ok()?, restart })
    }
}

/// What became of a claim that was to be given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Freed {
    /// It is gone; why.
    Yes(String),
    /// It stands; why.
    No(String),
}

impl Claim {
    /// Takes a trial. `None`: another has it.
    pub fn take(folder: &Path) -> Result<Option<Self>> {
        let mine = Self::new();
        if let (Some(found), Some(job)) = (Self::read(folder)?, &mine.job)
            && found.job.as_ref().is_some_and(|was| was.id == job.id && was.restart < job.restart)
        {
            // Slurm does not start a job again before its last start is over.
            mine.give_up(folder)?;
        }
        let path = folder.join(NAME);
        match File::create_new(&path) {
            Ok(mut file) => {
                let text = serde_json::to_string_pretty(&mine).map_err(|e| Error::refused(e.to_string()))?;
                file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(|e| Error::io("write", &path, &e))?;
                Ok(Some(mine))
            }
            Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(None),
            Err(e) => Err(Error::io("create", &path, &e)),
        }
    }

    fn new() -> Self {
        let process = std::process::id();
        Self { host: host_name(), machine: machine(), process, process_began: began(process), since: now(), job: SlurmJob::own() }
    }

    /// The claim on a trial, if there is one. One that is empty, or cut by a full disk, is still one.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(NAME);
        match fs::read(&path) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text).unwrap_or_else(|_| Self {
                host: "unknown".into(),
                machine: String::new(),
                process: 0,
                process_began: None,
                since: 0,
                job: None,
            }))),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io("read", &path, &e)),
        }
    }

    /// The holder is done with the trial.
    pub fn give_up(&self, folder: &Path) -> Result<()> {
        let path = folder.join(NAME);
        fs::remove_file(&path).map_err(|e| Error::io("remove", &path, &e))
    }

    /// Whether the runner is known to be dead.
    pub fn is_dead_here(&self) -> bool {
        self.machine == machine() && (began(self.process).is_none() || began(self.process) != self.process_began)
    }

    /// Removes the claim if its holder is known to be gone, or on the user's word. `queued`: whether Slurm knows a job.
    pub fn free(&self, folder: &Path, on_his_word: bool, queued: &dyn Fn(&str) -> Option<bool>) -> Result<Freed> {
        if is_held(folder) {
            return Ok(Freed::No(format!("a process of its run is alive ({self})")));
        }
        let queued = self.job.as_ref().and_then(|job| queued(&job.id));
        let known = match queued {
            _ if self.is_dead_here() => Some("its runner is dead"),
            _ if self.machine == machine() => return Ok(Freed::No(format!("its runner is alive ({self}): end it first"))),
            Some(true) => return Ok(Freed::No(format!("Slurm still has its job ({self}): scancel it first"))),
            Some(false) => Some("its Slurm job has ended"),
            None => on_his_word.then_some("you named it"),
        };
        match known {
            Some(why) => self.give_up(folder).map(|()| Freed::Yes(why.to_owned())),
            None => Ok(Freed::No(format!("taken by {self}: if that is over, name the trial to `ssdkd sweep retry`"))),
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

/// When a process of this host began; none if there is no such process.
fn began(process: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name in brackets may hold anything; the state is the third field, the start the 22nd. A zombie runs no more.
    let mut fields = stat.rsplit_once(") ")?.1.split_whitespace();
    if fields.next()? == "Z" { None } else { fields.nth(18)?.parse().ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        claim.give_up(folder.path()).unwrap();
        assert!(Claim::take(folder.path()).unwrap().is_some());
    }

    #[test]
    fn only_a_holder_that_is_known_to_be_gone_loses_its_claim() {
        let folder = tempfile::tempdir().unwrap();
        let job = |id: &str| Some(SlurmJob { id: id.into(), restart: 0 });
        let mine = Claim::new();
        let free = |claim: &Claim, named| {
            fs::write(folder.path().join(NAME), serde_json::to_string(claim).unwrap()).unwrap();
            let freed = claim.free(folder.path(), named, &|id| (id != "unreachable").then_some(id == "queued")).unwrap();
            assert_eq!(matches!(freed, Freed::Yes(_)), !folder.path().join(NAME).exists());
            matches!(freed, Freed::Yes(_))
        };
        assert!(!free(&mine, false) && !free(&mine, true), "this process lives");
        // The same number, of a process that began at another time.
        assert!(free(&Claim { process_began: Some(1), ..mine.clone() }, false));
        let elsewhere = Claim { machine: "another".into(), job: None, ..mine.clone() };
        assert!(!free(&elsewhere, false) && free(&elsewhere, true));
        assert!(!free(&Claim { job: job("queued"), ..elsewhere.clone() }, true));
        assert!(!free(&Claim { job: job("unreachable"), ..elsewhere.clone() }, false));
        assert!(free(&Claim { job: job("ended"), ..elsewhere }, false));
    }
}
