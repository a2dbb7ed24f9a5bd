//! What lies where in a sweep's folder.

use super::plan::Trial;
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};

/// A sweep's folder, by its absolute path.
#[derive(Debug, Clone)]
pub struct SweepFolder(PathBuf);

impl SweepFolder {
    /// A folder that is there, or will be made.
    pub fn new(path: &Path) -> Result<Self> {
        // By one name, whichever way leads there: Slurm's jobs are told apart by it.
        path.canonicalize().or_else(|_| std::path::absolute(path)).map(Self).map_err(|e| Error::io("find", path, &e))
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Its name.
    pub fn name(&self) -> String {
        self.0.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The plan.
    pub fn plan(&self) -> PathBuf {
        self.0.join("plan.toml")
    }

    /// Folder of all trials.
    pub fn trials(&self) -> PathBuf {
        self.0.join("trials")
    }

    /// Run folder of a trial.
    pub fn trial(&self, trial: &Trial) -> PathBuf {
        self.trials().join(trial.name())
    }

    /// Batch files and logs of Slurm jobs.
    pub fn jobs(&self) -> PathBuf {
        self.0.join("jobs")
    }

    /// Launch scripts, as this version of ssdkd ships them.
    pub fn launch(&self) -> PathBuf {
        self.0.join("launch")
    }
}

/// What a trial has said on stdout and stderr, in its folder.
pub(super) const LOG: &str = "trial.log";
