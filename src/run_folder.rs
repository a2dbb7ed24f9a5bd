//! Layout of a run folder.

use crate::config::Config;
use crate::error::{Error, Result};
use crate::files;
use crate::layout::Rank;
use std::path::{Path, PathBuf};

/// A run's folder on (shared) disk.
pub struct RunFolder {
    path: PathBuf,
}

impl RunFolder {
    /// A folder that another rank has made.
    pub fn at(path: &Path) -> Self {
        Self { path: path.into() }
    }

    /// Makes the folder and writes the resolved configuration into it.
    ///
    /// # Errors
    /// A folder that holds a run, unless `fresh`; one that cannot be written.
    pub fn create(path: &Path, fresh: bool, config: &Config) -> Result<Self> {
        if path.join("config.toml").exists() {
            if !fresh {
                return Err(Error::refused(format!("{} holds a run already", path.display()))
                    .with_hint("name another --run-dir, or start over with --fresh, which removes what is there"));
            }
            std::fs::remove_dir_all(path).map_err(|e| Error::io("remove", path, &e))?;
        }
        files::create_folder(&path.join("logs"))?;
        files::create_folder(&path.join("pictures"))?;
        let text = toml::to_string(config).map_err(|e| Error::refused(e.to_string()))?;
        files::write(&path.join("config.toml"), text.as_bytes())?;
        Ok(Self::at(path))
    }

    /// JSON log of a rank.
    pub fn log_of(&self, rank: Rank) -> Result<PathBuf> {
        Ok(self.path.join("logs").join(format!("rank-{:04}.jsonl", rank.0)))
    }
}
