//! The manifest of a checkpoint.

use crate::error::{Error, Result};
use crate::files;
use crate::nn::weights;
use crate::parallel::made_progress;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use tch::Tensor;

const NAME: &str = "manifest.json";
/// Raised when the meaning of an entry changes.
const FORMAT: u32 = 2;

/// What a checkpoint consists of and belongs to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Format of the entries.
    pub format: u32,
    /// ssdkd that wrote it.
    pub version: String,
    /// Device, instruction set, threads and libtorch it was computed with: each kind that its ranks had.
    pub machine: String,
    /// Where in the run it was taken.
    pub position: Position,
    /// M.
    pub logical_ranks: usize,
    /// The configuration values that fix the run's numbers.
    pub identity: BTreeMap<String, String>,
    /// Every file, in rank order.
    pub files: Vec<FileEntry>,
}

/// Position of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Position {
    /// Round, from 0.
    pub round: u64,
    /// Whether its inversion is done.
    pub inverted: bool,
    /// Student steps it still has to do.
    pub steps_left: u64,
    /// Student steps since the start.
    pub student_steps: u64,
    /// Refused updates in a row.
    #[serde(default)]
    pub refused: InARow,
}

/// Refused updates in a row, each kind for itself: a good one of the other kind says nothing about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct InARow {
    /// Of the generator.
    pub generator: u32,
    /// Of the student.
    pub student: u32,
}

impl Position {
    /// Name of the checkpoint's folder; names sort by progress.
    pub fn name(&self) -> String {
        format!("at-{:09}-{}-{:012}", self.round, u8::from(self.inverted), self.student_steps)
    }
}

/// One file of a checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Name within the folder.
    pub name: String,
    /// Length.
    pub bytes: u64,
    /// SHA-256 of its contents.
    pub sha256: String,
    /// Logical ranks whose state it holds; none for the shared state.
    pub logical_ranks: Vec<usize>,
}

impl Manifest {
    /// Of a run at a position, with no files yet.
    pub fn new(position: Position, logical_ranks: usize, identity: BTreeMap<String, String>, version: String, machine: String) -> Self {
        Self { format: FORMAT, version, machine, position, logical_ranks, identity, files: Vec::new() }
    }

    pub(super) fn write(&self, folder: &Path) -> Result<()> {
        let body = serde_json::to_string_pretty(self).map_err(|e| Error::refused(e.to_string()))?;
        // The last line is the checksum of all before it: a manifest that was cut or edited is noticed too.
        files::write(&folder.join(NAME), format!("{body}\n{}\n", files::sha256(body.as_bytes())).as_bytes())
    }

    /// Reads and checks a manifest.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(NAME);
        let manifest = Self::parse(&read_part(&path)?).map_err(|problem| Error::file(&path, problem))?;
        let name = manifest.position.name();
        if folder.file_name().is_some_and(|n| n.to_string_lossy() != name) {
            return Err(Error::file(&path, format!("belongs to checkpoint {name}: folders or manifests were swapped")));
        }
        Ok(manifest)
    }

    /// Parses and checks a manifest's text.
    pub fn parse(bytes: &[u8]) -> std::result::Result<Self, String> {
        let text = std::str::from_utf8(bytes).map_err(|_| "is not text")?;
        let (body, checksum) = text.trim_end().rsplit_once('\n').ok_or("is cut short")?;
        if files::sha256(body.as_bytes()) != checksum {
            return Err("its checksum does not match: it was cut or edited".into());
        }
        let manifest: Self = serde_json::from_str(body).map_err(|e| e.to_string())?;
        if manifest.format != FORMAT {
            return Err(format!("has format {}; this version of ssdkd reads {FORMAT}", manifest.format));
        }
        Ok(manifest)
    }

    /// Entries of the shared state and of some logical ranks, after checking length and checksum of every file that holds them.
    pub(super) fn read_entries(&self, folder: &Path, logical_ranks: &[usize]) -> Result<Vec<(String, Tensor)>> {
        let mut entries = Vec::new();
        let wanted = |file: &&FileEntry| file.logical_ranks.is_empty() || file.logical_ranks.iter().any(|l| logical_ranks.contains(l));
        for file in self.files.iter().filter(wanted) {
            let path = folder.join(&file.name);
            let bytes = read_part(&path)?;
            if bytes.len() as u64 != file.bytes {
                return Err(Error::file(&path, format!("has {} bytes; {} were written", bytes.len(), file.bytes)));
            }
            if files::sha256(&bytes) != file.sha256 {
                return Err(Error::file(&path, "its checksum does not match: it was damaged after it was written"));
            }
            made_progress();
            entries.extend(weights::from_safetensors(&bytes).map_err(|problem| Error::file(&path, problem))?.tensors);
        }
        Ok(entries)
    }
}

/// A file of a checkpoint. One that is gone is damage; one that cannot be read just now says nothing about the checkpoint.
fn read_part(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|e| match e.kind() {
        ErrorKind::NotFound => Error::file(path, "no such file"),
        _ => Error::io("read", path, &e),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        Manifest::new(
            Position { round: 3, ..Position::default() },
            4,
            BTreeMap::from([("seed".into(), "1".into())]),
            "v".into(),
            "m".into(),
        )
    }

    #[test]
    fn an_edited_or_cut_manifest_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        manifest().write(folder.path()).unwrap();
        assert!(Manifest::read(folder.path()).unwrap_err().to_string().contains("swapped"));
        let text = std::fs::read_to_string(folder.path().join(NAME)).unwrap();
        assert_eq!(Manifest::parse(text.as_bytes()).unwrap(), manifest());
        assert!(Manifest::parse(text.replace("\"round\": 3", "\"round\": 4").as_bytes()).unwrap_err().contains("checksum"));
        for cut in 0..text.trim_end().len() {
            assert!(Manifest::parse(&text.as_bytes()[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn names_sort_by_progress() {
        let at = |round, inverted, student_steps| Position { round, inverted, student_steps, ..Position::default() }.name();
        let names =
            [at(0, true, 0), at(1, true, 0), at(9, true, 5), at(9, true, 10), at(10, false, 10), at(10, true, 10), at(100, true, 11)];
        assert!(names.is_sorted(), "{names:?}");
    }
}
