//! Checkpoints: folders of safetensors files and one manifest that names every file with its checksum.
//!
//! State belongs to logical ranks, not to processes: a run stopped on 8 ranks goes on on 4 by looking up other files. A
//! checkpoint is written under a temporary name, synced and renamed, so that one with its final name is whole unless the
//! disk lied; a damaged one is noticed by its checksums, named, and stepped over.

mod manifest;

pub use manifest::{FileEntry, Manifest, Position};

use crate::config::Pack;
use crate::error::{Error, Result};
use crate::files;
use crate::nn::{Entries, weights};
use crate::parallel::{PerRank, World, comm, made_progress};
use std::fs;
use std::path::{Path, PathBuf};
use tch::Tensor;

/// Folder of checkpoints in a run folder.
const FOLDER: &str = "checkpoints";
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
    pub fn list(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.folder).map(|all| all.filter_map(|e| Some(e.ok()?.path())).collect::<Vec<_>>());
        let mut found = entries.unwrap_or_default();
        found.retain(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("at-")));
        found.sort();
        found.reverse();
        found
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
        self.list().iter().skip(keep.max(1)).try_for_each(|old| files::remove_folder(old))
    }

    /// Removes all but the newest, and what faults left behind: the run has ended well.
    pub fn clear(&self) -> Result<()> {
        self.remove_all(UNFINISHED)?;
        self.remove_all(DAMAGED)?;
        self.prune(1)
    }

    fn remove_all(&self, prefix: &str) -> Result<()> {
        let entries = fs::read_dir(&self.folder).map_err(|e| Error::io("read", &self.folder, &e))?;
        let found = entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
        found.map(|entry| entry.path()).try_for_each(|path| files::remove_folder(&path))
    }

    /// The newest whole checkpoint, or none if there is not one folder. A collective.
    ///
    /// # Errors
    /// There are checkpoints, but none is whole.
    pub fn load_newest(&self, world: &World) -> Result<Option<Loaded>> {
        // One list for all, as the leader sees it.
        let names: Vec<String> = self.list().iter().filter_map(|p| Some(p.file_name()?.to_string_lossy().into_owned())).collect();
        let text = if world.leads() { names.join("\n").into_bytes() } else { Vec::new() };
        let listed = comm::all_gather_varied(world.comm(), &text)?.swap_remove(0);
        let listed = String::from_utf8_lossy(&listed).into_owned();
        let mut damage = Vec::new();
        for name in listed.lines() {
            match world.agree(self.load(world, &self.folder.join(name))) {
                Ok(loaded) => {
                    if world.leads() {
                        self.set_damaged_aside(listed.lines().take(damage.len()));
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
    fn set_damaged_aside<'a>(&self, names: impl Iterator<Item = &'a str>) {
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

/// M of the run in a folder, by its newest checkpoint that says so.
pub fn logical_ranks(run_folder: &Path) -> Option<usize> {
    let all = Checkpoints::new(run_folder, 1, Pack::LogicalRank).list();
    all.iter().find_map(|folder| Some(Manifest::read(folder).ok()?.logical_ranks))
}

/// Every entry of the newest whole checkpoint of a run folder, under `shared.` or the number of its logical rank: for
/// inspection.
pub fn read_all(run_folder: &Path) -> Result<(Manifest, Vec<(String, Tensor)>)> {
    let mut outcome = Err(Error::file(run_folder, "holds no checkpoint"));
    for folder in Checkpoints::new(run_folder, 1, Pack::LogicalRank).list() {
        outcome = Manifest::read(&folder).and_then(|manifest| {
            let all: Vec<usize> = (0..manifest.logical_ranks).collect();
            Ok((manifest.read_entries(&folder, &all)?, manifest)).map(|(entries, manifest)| (manifest, entries))
        });
        if outcome.is_ok() {
            break;
        }
    }
    outcome
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
