//! Checkpoints: folders of safetensors files and one manifest that names every file with its checksum.
//!
//! State belongs to logical ranks, not to processes: a run stopped on 8 ranks goes on on 4 by looking up other files. A
//! checkpoint is written under a temporary name, synced and renamed, so that one with its final name is whole unless the
//! disk lied; a damaged one is noticed by its checksums, named, and stepped over.

mod manifest;

pub use manifest::{FileEntry, InARow, Manifest, Position};

use crate::config::Pack;
use crate::error::{Error, Result};
use crate::files;
use crate::nn::{Entries, weights};
use crate::parallel::{PerRank, World, comm, made_progress};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use tch::Tensor;

/// Folder of checkpoints in a run folder.
const FOLDER: &str = "checkpoints";
/// Prefix of a whole checkpoint.
const FINISHED: &str = "at-";
/// Prefix of a checkpoint in the making.
const UNFINISHED: &str = ".unfinished-";
/// Prefix of one that was stepped over.
const DAMAGED: &str = "damaged-";

/// The checkpoints of one run.
pub struct Checkpoints {
    folder: PathBuf,
    keep: usize,
    pack: Pack,
}

/// State of a run, by owner.
pub struct Contents {
    /// The same on every rank: student, generator, optimisers.
    pub shared: Entries,
    /// Of each logical rank hosted here.
    pub ranks: PerRank<Entries>,
}

/// A checkpoint read back.
pub struct Loaded {
    /// Its manifest.
    pub manifest: Manifest,
    /// Its state, for the logical ranks hosted here.
    pub contents: Contents,
}

impl Checkpoints {
    /// Of a run folder, keeping the newest `keep`.
    pub fn new(run_folder: &Path, keep: usize, pack: Pack) -> Self {
        Self { folder: run_folder.join(FOLDER), keep, pack }
    }

    /// Finished checkpoints, newest first.
    pub fn list(&self) -> Result<Vec<PathBuf>> {
        let mut found = self.named(FINISHED)?;
        found.sort();
        found.reverse();
        Ok(found)
    }

    /// What the folder holds under a prefix; nothing where there is no folder.
    fn named(&self, prefix: &str) -> Result<Vec<PathBuf>> {
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.and_then(Iterator::collect::<std::io::Result<Vec<_>>>),
        };
        let entries = entries.map_err(|e| Error::io("read", &self.folder, &e))?;
        let wanted = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with(prefix);
        Ok(entries.into_iter().filter(wanted).map(|entry| entry.path()).collect())
    }

    /// Writes a checkpoint. A collective: every rank writes the files of its logical ranks, then the leader the manifest.
    /// Returns the bytes written by all ranks.
    ///
    /// # Errors
    /// A full disk or another failure on any rank, on all ranks; what was saved before stays as it is.
    pub fn save(&self, world: &World, contents: Contents, mut manifest: Manifest) -> Result<u64> {
        let name = manifest.position.name();
        let unfinished = self.folder.join(format!("{UNFINISHED}{name}"));
        world.agree(if world.leads() { self.start_over(&unfinished) } else { Ok(()) })?;
        let written = world.agree(self.write_files(world, contents, &unfinished));
        let mine = written.inspect_err(|_| self.give_back(world, &unfinished))?;
        let text = serde_json::to_vec(&mine).map_err(|e| Error::refused(e.to_string()))?;
        for part in comm::all_gather_varied(world.comm(), &text)? {
            let files: Vec<FileEntry> = serde_json::from_slice(&part).map_err(|e| Error::refused(e.to_string()))?;
            manifest.files.extend(files);
        }
        let bytes = manifest.files.iter().map(|f| f.bytes).sum();
        let outcome = if world.leads() { self.complete(&unfinished, &name, &manifest) } else { Ok(()) };
        world.agree(outcome).inspect_err(|_| self.give_back(world, &unfinished))?;
        Ok(bytes)
    }

    /// Room that a checkpoint which came to nothing took. If this fails too, the next save or the end of the run does it.
    fn give_back(&self, world: &World, unfinished: &Path) {
        if world.leads() {
            let _ = files::remove_folder(unfinished);
        }
    }

    fn start_over(&self, unfinished: &Path) -> Result<()> {
        files::create_folder(&self.folder)?;
        // Left by a run that died while writing.
        self.remove_all(UNFINISHED)?;
        files::create_folder(unfinished)
    }

    fn write_files(&self, world: &World, contents: Contents, folder: &Path) -> Result<Vec<FileEntry>> {
        let mut written = Vec::new();
        let mut write = |name: String, holds: Vec<usize>, tensors: Vec<(String, Tensor)>| -> Result<()> {
            let _span = tracing::debug_span!("writing").entered();
            let bytes = weights::to_safetensors(&tensors, &[])?;
            made_progress();
            files::write(&folder.join(&name), &bytes)?;
            written.push(FileEntry { name, bytes: bytes.len() as u64, sha256: files::sha256(&bytes), logical_ranks: holds });
            Ok(())
        };
        let prefixed = |owner: &dyn std::fmt::Display, entries: Entries| -> Vec<(String, Tensor)> {
            entries.into_tensors().into_iter().map(|(key, t)| (format!("{owner}.{key}"), t)).collect()
        };
        if world.leads() {
            write("shared.safetensors".into(), Vec::new(), prefixed(&"shared", contents.shared))?;
        }
        match self.pack {
            Pack::LogicalRank => {
                for (rank, entries) in contents.ranks.into_iter_ordered() {
                    write(format!("logical-rank-{:05}.safetensors", rank.0), vec![rank.0], prefixed(&rank.0, entries))?;
                }
            }
            Pack::Rank => {
                let holds = world.hosted().map(|l| l.0).collect();
                let all = contents.ranks.into_iter_ordered().flat_map(|(rank, entries)| prefixed(&rank.0, entries)).collect();
                write(format!("rank-{:05}.safetensors", world.rank().0), holds, all)?;
            }
        }
        Ok(written)
    }

    fn complete(&self, unfinished: &Path, name: &str, manifest: &Manifest) -> Result<()> {
        let _span = tracing::debug_span!("writing").entered();
        manifest.write(unfinished)?;
        let last = self.folder.join(name);
        if last.exists() {
            // The whole one of this position is never written again (`Keeper::save`): this one was not loaded because of damage.
            files::set_aside(&last, DAMAGED)?;
        }
        fs::rename(unfinished, &last).map_err(|e| Error::io("write", &last, &e))?;
        files::sync_folder(&self.folder).map_err(|e| Error::io("write", &self.folder, &e))?;
        self.prune(self.keep)
    }

    /// Removes all but the newest `keep`.
    pub fn prune(&self, keep: usize) -> Result<()> {
        self.list()?.iter().skip(keep.max(1)).try_for_each(|old| files::remove_folder(old))
    }

    /// Removes all but the newest, and what faults left behind: the run has ended well.
    pub fn clear(&self) -> Result<()> {
        self.remove_all(UNFINISHED)?;
        self.remove_all(DAMAGED)?;
        self.prune(1)
    }

    fn remove_all(&self, prefix: &str) -> Result<()> {
        self.named(prefix)?.iter().try_for_each(|path| files::remove_folder(path))
    }

    /// The newest whole checkpoint, or none if there is not one folder. A collective.
    ///
    /// # Errors
    /// There are checkpoints, but none is whole; or one that cannot be read just now, which may be whole.
    pub fn load_newest(&self, world: &World) -> Result<Option<Loaded>> {
        let names: Vec<String> = world.from_leader(|| Ok(self.list()?.iter().map(|path| name_of(path)).collect()))?;
        let mut damage = Vec::new();
        for name in &names {
            let outcome = self.load(world, &self.folder.join(name));
            world.agree(outcome.as_ref().err().filter(|error| !is_damage(error)).map_or(Ok(()), |trouble| Err(trouble.clone())))?;
            match world.agree(outcome) {
                Ok(loaded) => {
                    if world.leads() {
                        self.set_damaged_aside(&names[..damage.len()]);
                    }
                    return Ok(Some(loaded));
                }
                Err(error) => {
                    if world.leads() {
                        tracing::warn!("checkpoint {name} is damaged and stepped over: {error}");
                    }
                    damage.push(format!("{name}: {error}"));
                }
            }
        }
        if damage.is_empty() {
            return Ok(None);
        }
        Err(Error::file(&self.folder, format!("no checkpoint is whole:\n  {}", damage.join("\n  ")))
            .with_hint("start over with --fresh, or put back a copy of the named files"))
    }

    /// Checkpoints that were stepped over are neither counted nor tried again; they stay to be looked at until the run ends well.
    fn set_damaged_aside(&self, names: &[String]) {
        for name in names {
            if let Err(error) = files::set_aside(&self.folder.join(name), DAMAGED) {
                tracing::warn!("the damaged checkpoint {name} stays under its name: {error}");
            }
        }
    }

    fn load(&self, world: &World, folder: &Path) -> Result<Loaded> {
        let manifest = Manifest::read(folder)?;
        let hosted: Vec<usize> = world.hosted().map(|l| l.0).collect();
        let entries = manifest.read_entries(folder, &hosted)?;
        let owned_by = |prefix: String| -> Entries {
            let of = |(key, t): &(String, Tensor)| Some((key.strip_prefix(&prefix)?.to_owned(), t.shallow_clone()));
            Entries::from_tensors(entries.iter().filter_map(of))
        };
        let ranks = PerRank::build(world.hosted(), |rank| owned_by(format!("{}.", rank.0)));
        Ok(Loaded { contents: Contents { shared: owned_by("shared.".into()), ranks }, manifest })
    }
}

fn name_of(folder: &Path) -> String {
    folder.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Whether an error is about what a checkpoint holds. Any other (a disk that does not answer, too many open files) says nothing
/// against the checkpoint.
fn is_damage(error: &Error) -> bool {
    matches!(error, Error::File { .. } | Error::Tensor { .. })
}

/// M of the run in a folder, by its newest checkpoint that says so.
pub fn logical_ranks(run_folder: &Path) -> Result<Option<usize>> {
    for folder in Checkpoints::new(run_folder, 1, Pack::LogicalRank).list()? {
        match Manifest::read(&folder) {
            Err(error) if is_damage(&error) => {}
            manifest => return Ok(Some(manifest?.logical_ranks)),
        }
    }
    Ok(None)
}

/// Every entry of the newest whole checkpoint of a run folder, under `shared.` or the number of its logical rank: for
/// inspection. Damaged ones that are newer are warned of.
///
/// # Errors
/// No checkpoint, none that is whole, or one that cannot be read just now.
pub fn read_all(run_folder: &Path) -> Result<(Manifest, Vec<(String, Tensor)>)> {
    let mut damaged = Vec::new();
    for folder in Checkpoints::new(run_folder, 1, Pack::LogicalRank).list()? {
        let outcome = Manifest::read(&folder).and_then(|manifest| {
            let all: Vec<usize> = (0..manifest.logical_ranks).collect();
            Ok((manifest.read_entries(&folder, &all)?, manifest)).map(|(entries, manifest)| (manifest, entries))
        });
        match outcome {
            Err(error) if is_damage(&error) => damaged.push((name_of(&folder), error)),
            Ok(found) => {
                for (name, error) in damaged {
                    tracing::warn!("checkpoint {name} is damaged and stepped over, {} is read: {error}", name_of(&folder));
                }
                return Ok(found);
            }
            trouble => return trouble,
        }
    }
    Err(damaged.pop().map_or_else(|| Error::file(run_folder, "holds no checkpoint"), |(_, error)| error))
}

/// Checksums of a run's student, generator, replay buffer and metrics, from its newest whole checkpoint and `metrics.csv`: 16
/// bytes of SHA-256 each, in hexadecimal. They do not depend on how files are packed.
pub fn checksums(run_folder: &Path) -> Result<[(&'static str, String); 4]> {
    let (manifest, entries) = read_all(run_folder)?;
    let of = |wanted: &[String]| {
        let mut text = String::new();
        let mut mine: Vec<&(String, Tensor)> = entries.iter().filter(|(key, _)| wanted.iter().any(|w| key.starts_with(w))).collect();
        mine.sort_by(|a, b| a.0.cmp(&b.0));
        for (key, tensor) in mine {
            let bytes = weights::bytes_of(tensor);
            text.push_str(&format!("{key} {:?} {:?} {}\n", tensor.kind(), tensor.size(), files::sha256(&bytes)));
        }
        files::sha256(text.as_bytes())[..32].to_owned()
    };
    let shards: Vec<String> = (0..manifest.logical_ranks).map(|rank| format!("{rank}.replay.")).collect();
    let metrics = files::read(&run_folder.join("metrics.csv"))?;
    Ok([
        ("student", of(&["shared.student.".into()])),
        ("generator", of(&["shared.generator.".into()])),
        ("replay", of(&shards)),
        ("metrics", files::sha256(&metrics)[..32].to_owned()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parallel::test_ranks::on_each_rank;
    use std::collections::BTreeMap;
    use std::os::unix::fs::symlink;

    /// A checkpoint of two logical ranks after so many student steps.
    fn save(world: &World, checkpoints: &Checkpoints, student_steps: u64) {
        let entries = || Entries::from_tensors([("x".to_owned(), Tensor::from_slice(&[student_steps as i64]))]);
        let contents = Contents { shared: entries(), ranks: PerRank::build(world.hosted(), |_| entries()) };
        let position = Position { student_steps, ..Position::default() };
        checkpoints.save(world, contents, Manifest::new(position, 2, BTreeMap::new(), "v".into(), "m".into())).unwrap();
    }

    /// A file that leads back to itself cannot be opened, which is neither its absence nor its content.
    #[test]
    fn a_checkpoint_that_cannot_be_read_is_not_taken_for_a_damaged_one() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = || Checkpoints::new(folder.path(), 2, Pack::LogicalRank);
        let errors = on_each_rank(2, 2, |world| {
            (1..=2).for_each(|steps| save(world, &checkpoints(), steps));
            let newest = checkpoints().list().unwrap().remove(0);
            world.barrier().unwrap();
            if world.leads() {
                let file = newest.join("logical-rank-00001.safetensors");
                fs::remove_file(&file).unwrap();
                symlink(&file, &file).unwrap();
            }
            world.barrier().unwrap();
            let error = checkpoints().load_newest(world).err().unwrap();
            (error.exit_code(), error.to_string())
        });
        for (code, text) in errors {
            assert!(code == 1 && text.contains("cannot read") && text.contains("logical-rank-00001"), "{code}: {text}");
        }
        let names: Vec<PathBuf> = checkpoints().list().unwrap();
        assert_eq!(names.len(), 2, "both stay under their names: {names:?}");
    }

    #[test]
    fn a_folder_that_cannot_be_listed_is_no_empty_one() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Checkpoints::new(folder.path(), 1, Pack::Rank).list().unwrap().is_empty());
        fs::write(folder.path().join(FOLDER), "no folder").unwrap();
        assert!(Checkpoints::new(folder.path(), 1, Pack::Rank).list().is_err());
        assert!(logical_ranks(folder.path()).is_err());
    }
}
