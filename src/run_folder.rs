//! A run's folder on (shared) disk: what lies where, who holds it, how the run stands.

use crate::config::Config;
use crate::error::{Error, Result};
use crate::files;
use crate::layout::Rank;
use crate::metrics::{NetworkScore, RoundRecord, Seconds, Sent, TimingRecord, header};
use crate::parallel::{HEARTBEATS, host_name};
use crate::replay::Moved;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How a run stands. Launch scripts decide on it whether to start the run again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Started. If no process holds the folder any more, it died: [`State::seen`].
    Running,
    /// Stopped by a signal with a whole checkpoint, or dead: start it again and it goes on.
    Stopped,
    /// At the round that `--until-round` named, with a whole checkpoint: start it again and it goes on.
    Paused,
    /// Done.
    Finished,
    /// Ended by an error.
    Failed,
}

impl State {
    /// What the state in a folder means, given whether a process holds the folder. A run that was killed could not write how it
    /// ended; for whoever decides what to do next it is a stopped one.
    pub fn seen(self, held: bool) -> Self {
        if self == Self::Running && !held { Self::Stopped } else { self }
    }

    /// As `ssdkd inspect --status` prints it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Paused => "paused",
            Self::Finished => "finished",
            Self::Failed => "failed",
        }
    }
}

/// Contents of `state.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The run's name among all runs, from its first start to its last: no other has it. Empty until then.
    #[serde(default)]
    pub id: String,
    /// How the run stands.
    pub state: State,
    /// Student steps at the last checkpoint.
    pub student_steps: u64,
    /// Seconds up to the last checkpoint, over all launches.
    pub seconds: Seconds,
    /// The teacher's score, so that it is measured once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher: Option<NetworkScore>,
    /// What draws have sent between ranks up to the last checkpoint, over all launches.
    #[serde(default)]
    pub moved: Moved,
    /// What rank 0 has sent in all, up to the last checkpoint, over all launches.
    #[serde(default)]
    pub sent: Sent,
    /// The values that fix the run's numbers.
    #[serde(default)]
    pub identity: BTreeMap<String, String>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
}

impl Status {
    /// Of a run that has just begun.
    pub fn new() -> Self {
        let (seconds, moved, sent, identity) = (Seconds::default(), Moved::default(), Sent::default(), BTreeMap::new());
        Self { id: String::new(), state: State::Running, student_steps: 0, seconds, moved, sent, identity, teacher: None, cause: None }
    }

    /// Reads a run folder's status.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("state.json");
        let way_out = "remove it: the run goes on from its checkpoints, under another name and with its seconds counted anew; or start \
                       over with --fresh";
        serde_json::from_slice(&files::read(&path)?).map_err(|e| Error::file(&path, e.to_string()).with_hint(way_out))
    }

    /// The same, where there is one.
    pub fn known(folder: &Path) -> Result<Option<Self>> {
        if folder.join("state.json").exists() { Self::read(folder).map(Some) } else { Ok(None) }
    }

    /// Replaces it.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).map_err(|e| Error::refused(e.to_string()))?;
        files::write(&folder.join("state.json"), text.as_bytes())
    }
}

impl Default for Status {
    fn default() -> Self {
        Self::new()
    }
}

/// A name for a run that begins now: the second in UTC, and letters that tell runs of one second apart.
pub fn new_run_id() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let apart = Sha256::digest(format!("{} {} {}", host_name(), std::process::id(), since.as_nanos()));
    format!("{}-{}", utc(since.as_secs()), apart.iter().take(4).map(|b| format!("{b:02x}")).collect::<String>())
}

/// Seconds since 1970 as year, month, day, `-`, hour, minute, second.
fn utc(seconds: u64) -> String {
    let (mut days, second) = (seconds / 86_400, seconds % 86_400);
    let is_leap = |year: u64| (year.is_multiple_of(4) && !year.is_multiple_of(100)) || year.is_multiple_of(400);
    let mut year = 1970;
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let mut month = 0;
    let lengths = [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    while days >= lengths[month] {
        days -= lengths[month];
        month += 1;
    }
    format!("{year:04}{:02}{:02}-{:02}{:02}{:02}", month + 1, days + 1, second / 3600, second / 60 % 60, second % 60)
}

/// Folder of a batch that was not finite.
pub const EVIDENCE: &str = "nonfinite";

/// Folder of the weights that a run starts from.
const INPUTS: &str = "inputs";

/// The weights that a run's numbers come from: where they lie.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Inputs {
    /// Of the teacher.
    pub teacher: Option<PathBuf>,
    /// What the network in training starts from.
    pub backbone: Option<PathBuf>,
}

/// The file that a key names; instead of one that is not there any more, the one that an old run's folder has kept in this role.
pub fn found(old_run: Option<&Path>, role: &str, key: &str, named: Option<PathBuf>) -> Option<PathBuf> {
    let named = named?;
    let own = old_run.filter(|_| !named.exists()).and_then(|folder| kept(folder, role).pop());
    let Some(own) = own else { return Some(named) };
    tracing::warn!("{key}: {}: no such file: the run goes on with its own copy, {}", named.display(), own.display());
    Some(own)
}

/// What the run in a folder keeps for a role.
fn kept(folder: &Path, role: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder.join(INPUTS)) else { return Vec::new() };
    let is_it = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&format!("{role}-")));
    entries.flatten().map(|entry| entry.path()).filter(is_it).collect()
}

/// What a run writes into its folder besides [`INPUTS`]; `--fresh` removes these and nothing else.
const OWN: [&str; 13] = [
    "config.toml",
    "state.json",
    "metrics.csv",
    "timings.csv",
    "report.json",
    "report.html",
    "student.safetensors",
    "teacher.safetensors",
    "pictures",
    "logs",
    "checkpoints",
    HEARTBEATS,
    EVIDENCE,
];

/// A run's folder, held by this process as long as this value lives.
pub struct RunFolder {
    path: PathBuf,
    _lock: Option<File>,
}

impl RunFolder {
    /// Makes or takes over a folder. For the leading rank.
    ///
    /// # Errors
    /// A folder that another living process holds, one that cannot be written, and one with files of a run's names that no run
    /// wrote: nothing of somebody else's is written over.
    pub fn hold(path: &Path, fresh: bool) -> Result<Self> {
        files::create_folder(path).map_err(unusable)?;
        // Before the lock, which is a file too.
        if let Some(name) = foreign(path).filter(|_| !fresh) {
            return Err(Error::refused(format!("{} holds {name}, but no run of ssdkd: it would be written over", path.display()))
                .with_hint("name another --run-dir, or remove what a run would write there with --fresh"));
        }
        let lock = lock(&path.join("lock"), GRACE)?;
        if fresh {
            remove_own(path)?;
        }
        let beats = path.join(HEARTBEATS);
        if beats.exists() {
            // Of a launch that died: they must not be taken for those of this one.
            files::remove_folder(&beats)?;
        }
        for name in ["logs", "pictures"] {
            files::create_folder(&path.join(name)).map_err(unusable)?;
        }
        for folder in [path.to_path_buf(), path.join("pictures"), path.join(EVIDENCE)] {
            files::remove_parts(&folder)?;
        }
        Ok(Self { path: path.into(), _lock: Some(lock) })
    }

    /// A folder that the leading rank holds.
    pub fn at(path: &Path) -> Self {
        Self { path: path.into(), _lock: None }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Keeps a file that the run starts from, under a name with its contents' hash and in place of another of this role; gives its place
    /// below the folder. A copy, since whoever writes over the original in place would change a second name of it too.
    fn keep(&self, role: &str, path: &Path) -> Result<PathBuf> {
        let contents = files::read(path)?;
        let kind = path.extension().map_or(String::new(), |extension| format!(".{}", extension.to_string_lossy()));
        let wanted = files::sha256(&contents);
        let place = Path::new(INPUTS).join(format!("{role}-{}{kind}", &wanted[..12]));
        let target = self.path.join(&place);
        if files::hash(Some(&target)).ok() != Some(wanted) {
            files::create_folder(&self.path.join(INPUTS))?;
            files::write(&target, &contents)?;
        }
        for other in kept(&self.path, role).into_iter().filter(|other| *other != target) {
            fs::remove_file(&other).map_err(|e| Error::io("remove", &other, &e))?;
        }
        Ok(place)
    }

    /// Writes the resolved configuration, and keeps the weights that the run starts from, so that the folder may be moved. What lies
    /// elsewhere has an absolute path: the file means the same wherever it is read.
    pub fn write_config(&self, config: &Config, inputs: &Inputs) -> Result<()> {
        let absolute = |path: Option<PathBuf>| path.map(|p| std::path::absolute(&p).unwrap_or(p));
        let place = |role, kept: &Option<PathBuf>, named: Option<PathBuf>| match kept {
            Some(path) => self.keep(role, path).map(Some),
            None => Ok(absolute(named)),
        };
        let mut config = config.clone();
        let is_teachers = config.teach.backbone == config.student.backbone;
        config.data.dir = absolute(config.data.dir);
        config.teacher.weights = place("teacher", &inputs.teacher, config.teacher.weights)?;
        config.student.backbone = place("backbone", &inputs.backbone, config.student.backbone)?;
        config.teach.backbone = if is_teachers { config.student.backbone.clone() } else { absolute(config.teach.backbone) };
        let text = toml::to_string(&config).map_err(|e| Error::refused(e.to_string()))?;
        files::write(&self.path.join("config.toml"), text.as_bytes())
    }

    /// JSON log of a rank.
    pub fn log_of(&self, rank: Rank) -> PathBuf {
        self.path.join("logs").join(format!("rank-{:05}.jsonl", rank.0))
    }

    /// Cuts tables to the rounds before `round`: rows past a checkpoint belong to work that is done again. Rows that should be
    /// there and are not are warned of. Rows of a version with other columns are written anew by their names; so is a header that a full
    /// disk has cut, and a row with it goes.
    pub fn cut_tables(&self, round: u64) -> Result<()> {
        for (name, header) in [("metrics.csv", header::<RoundRecord>()), ("timings.csv", header::<TimingRecord>())] {
            let path = self.path.join(name);
            let text = match fs::read(&path) {
                Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
                text => text.map_err(|e| Error::io("read", &path, &e))?,
            };
            let (text, columns) = (String::from_utf8_lossy(&text), header.split(',').collect::<Vec<_>>());
            let first = text.lines().next().unwrap_or_default();
            let (old, is_ours) = (first.split(',').collect::<Vec<_>>(), header.starts_with(first));
            let kept = |line: &str| {
                let cells: Vec<&str> = line.split(',').collect();
                cells[0].parse::<u64>().ok().filter(|r| *r < round)?;
                let cell = |name: &&str| old.iter().position(|other| other == name).map_or("", |at| cells[at]);
                match cells.len() {
                    n if n == columns.len() && is_ours => Some(line.to_owned()),
                    n if n == old.len() && !is_ours && old[0] == columns[0] => Some(columns.iter().map(cell).collect::<Vec<_>>().join(",")),
                    _ => None,
                }
            };
            let kept: Vec<String> = text.lines().filter_map(kept).collect();
            if (kept.len() as u64) < round {
                tracing::warn!("{} has {} of the {round} rounds before the checkpoint: the others were lost", path.display(), kept.len());
            }
            let lines: Vec<String> = std::iter::once(header).chain(kept).map(|line| line + "\n").collect();
            files::write(&path, lines.concat().as_bytes())?;
        }
        Ok(())
    }
}

/// Whether a living process holds a run folder. True as well where the file system cannot say.
pub fn is_held(folder: &Path) -> bool {
    // The lock is taken for the moment of the question, which is shorter than the grace that whoever wants it gives.
    match File::open(folder.join("lock")) {
        Ok(file) => file.try_lock_shared().is_err(),
        Err(error) => error.kind() != ErrorKind::NotFound,
    }
}

/// How long a holder may take to die: a launcher returns before the last of its processes is gone.
const GRACE: Duration = Duration::from_secs(2);

/// Nothing has been computed when a folder turns out not to be writable: that is a refusal.
fn unusable(error: Error) -> Error {
    Error::refused(error.to_string()).with_hint("name another --run-dir, or mend this one (ls -ld, df -h)")
}

/// Takes the lock. The operating system gives it up when its holder dies, so that a dead run's folder can be taken over.
fn lock(path: &Path, grace: Duration) -> Result<File> {
    let open = || File::options().create(true).truncate(false).read(true).write(true).open(path);
    let mut file = open().map_err(|e| unusable(Error::io("write", path, &e)))?;
    let began = Instant::now();
    while let Err(problem) = file.try_lock() {
        match problem {
            fs::TryLockError::WouldBlock if began.elapsed() < grace => std::thread::sleep(grace / 20),
            fs::TryLockError::WouldBlock => {
                let holder = fs::read_to_string(path).unwrap_or_default();
                let folder = path.parent().unwrap_or(path).display();
                return Err(Error::refused(format!("{folder} is held by another run ({})", holder.trim()))
                    .with_hint("wait for it, end it, or name another --run-dir"));
            }
            fs::TryLockError::Error(e) => return Err(unusable(Error::io("lock", path, &e))),
        }
    }
    let job = std::env::var("SLURM_JOB_ID").map(|id| format!(", Slurm job {id}")).unwrap_or_default();
    let text = format!("process {} on {}{job}\n", std::process::id(), host_name());
    file.set_len(0).and_then(|()| file.write_all(text.as_bytes())).map_err(|e| Error::io("write", path, &e))?;
    Ok(file)
}

/// A file with a name that a run writes, where there is neither a run's state nor a checkpoint.
fn foreign(path: &Path) -> Option<&'static str> {
    let is_run = path.join("state.json").exists() || path.join("checkpoints").exists();
    OWN.into_iter().find(|name| !is_run && path.join(name).is_file())
}

fn remove_own(path: &Path) -> Result<()> {
    let entries = fs::read_dir(path).map_err(|e| Error::io("read", path, &e))?;
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if OWN.contains(&name.as_str()) || name.starts_with("events.out.tfevents.") {
            let target = entry.path();
            let removed = if target.is_dir() { fs::remove_dir_all(&target) } else { fs::remove_file(&target) };
            removed.map_err(|e| Error::io("remove", &target, &e))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_folder_names_its_holder_and_a_dead_holders_is_taken_over() {
        let folder = tempfile::tempdir().unwrap();
        let held = RunFolder::hold(folder.path(), false).unwrap();
        let text = RunFolder::hold(folder.path(), false).err().unwrap().to_string();
        assert!(text.contains("is held by another run") && text.contains(&format!("process {}", std::process::id())), "{text}");
        assert!(is_held(folder.path()));
        drop(held);
        assert!(!is_held(folder.path()));
        RunFolder::hold(folder.path(), false).unwrap();
    }

    #[test]
    fn files_that_no_run_wrote_are_not_written_over() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("config.toml"), "mine").unwrap();
        let text = RunFolder::hold(folder.path(), false).err().unwrap().to_string();
        assert!(text.contains("holds config.toml, but no run of ssdkd"), "{text}");
        let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["config.toml"], "nothing is added to it either");
        fs::write(folder.path().join("state.json"), "{}").unwrap();
        RunFolder::hold(folder.path(), false).unwrap();
    }

    #[test]
    fn what_a_run_keeps_is_its_own_copy() {
        let folder = tempfile::tempdir().unwrap();
        let (run, original) = (RunFolder::hold(&folder.path().join("run"), false).unwrap(), folder.path().join("t.safetensors"));
        fs::write(&original, "weights").unwrap();
        let place = run.path().join(run.keep("teacher", &original).unwrap());
        let kept = || fs::read_to_string(&place).unwrap();
        fs::write(&original, "another").unwrap();
        assert_eq!(kept(), "weights");
        // A copy that is damaged is made anew.
        fs::write(&original, "weights").unwrap();
        fs::write(&place, "damaged").unwrap();
        run.keep("teacher", &original).unwrap();
        assert_eq!(kept(), "weights");
    }

    /// `date -u -d @N +%Y%m%d-%H%M%S`.
    #[test]
    fn a_run_is_named_by_when_it_began() {
        for (seconds, text) in
            [(0, "19700101-000000"), (951_782_399, "20000228-235959"), (951_782_400, "20000229-000000"), (4_107_542_400, "21000301-000000")]
        {
            assert_eq!(utc(seconds), text);
        }
        let ids = [(); 3].map(|()| new_run_id());
        assert!(ids.iter().all(|id| id.len() == 24) && ids[0] != ids[1] && ids[1] != ids[2], "{ids:?}");
    }

    #[test]
    fn a_damaged_state_says_the_way_out() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Status::known(folder.path()).unwrap(), None);
        fs::write(folder.path().join("state.json"), "{").unwrap();
        let error = Status::known(folder.path()).unwrap_err();
        assert!(error.to_string().contains("state.json: EOF") && error.hint().unwrap().starts_with("remove it: "), "{error}");
    }

    #[test]
    fn heartbeats_of_a_dead_launch_are_gone() {
        let folder = tempfile::tempdir().unwrap();
        let old = folder.path().join(HEARTBEATS).join("rank-00001");
        fs::create_dir(folder.path().join(HEARTBEATS)).unwrap();
        fs::write(&old, "1 1").unwrap();
        RunFolder::hold(folder.path(), false).unwrap();
        assert!(!old.exists());
    }

    #[test]
    fn only_a_dead_run_is_seen_otherwise_than_it_wrote() {
        for state in [State::Running, State::Stopped, State::Paused, State::Finished, State::Failed] {
            assert_eq!(state.seen(true), state);
            assert_eq!(state.seen(false), if state == State::Running { State::Stopped } else { state });
        }
    }

    #[test]
    fn starting_over_removes_what_a_run_wrote_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["metrics.csv", "notes.txt", "events.out.tfevents.1"] {
            fs::write(folder.path().join(name), "x").unwrap();
        }
        RunFolder::hold(folder.path(), true).unwrap();
        assert!(folder.path().join("notes.txt").exists());
        assert!(!folder.path().join("metrics.csv").exists() && !folder.path().join("events.out.tfevents.1").exists());
    }

    #[test]
    fn rows_past_a_checkpoint_are_cut() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunFolder::hold(folder.path(), false).unwrap();
        let (path, header) = (folder.path().join("metrics.csv"), header::<RoundRecord>());
        let row = |round: usize| format!("{round}{}", ",".repeat(header.split(',').count() - 1));
        let whole = format!("{header}\n{}\n{}\n", row(0), row(1));
        // Past the checkpoint, and torn.
        fs::write(&path, format!("{whole}{}\n3,", row(2))).unwrap();
        run.cut_tables(2).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), whole);
        // A header that a full disk has cut, alone or with a row after it; and no file at all.
        for torn in ["round,stud".to_owned(), format!("round,stud{}\n", row(0))] {
            fs::write(&path, torn).unwrap();
            run.cut_tables(1).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), format!("{header}\n"));
        }
        // Rows of a version that had its columns in another order, or one less.
        let names: Vec<&str> = header.split(',').collect();
        let cells: Vec<String> = (0..names.len()).map(|i| format!("{i}.5")).collect();
        for (left_out, between) in [(1, vec![""]), (0, vec!["3.5"])] {
            let older = [&names[..1], &[names[2], names[1]], &names[3 + left_out..]].concat();
            fs::write(&path, format!("{}\n0,{}\n", older.join(","), cells[1..older.len()].join(","))).unwrap();
            run.cut_tables(1).unwrap();
            let behind = cells[4 - left_out..older.len()].iter().map(String::as_str);
            let now = ["0", "2.5", "1.5"].into_iter().chain(between).chain(behind).collect::<Vec<_>>().join(",");
            assert_eq!(fs::read_to_string(&path).unwrap(), format!("{header}\n{now}\n"), "{left_out}");
        }
        fs::remove_file(&path).unwrap();
        run.cut_tables(1).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{header}\n"));
    }

    #[test]
    fn halves_of_files_that_a_killed_run_left_are_gone() {
        let folder = tempfile::tempdir().unwrap();
        drop(RunFolder::hold(folder.path(), false).unwrap());
        let (left, kept) = ([".state.json.123.part", "pictures/.round-00000.png.4.part"], [".mine.part", "state.json.1.part"]);
        left.iter().chain(&kept).for_each(|name| fs::write(folder.path().join(name), "x").unwrap());
        RunFolder::hold(folder.path(), false).unwrap();
        assert!(left.iter().all(|name| !folder.path().join(name).exists()));
        assert!(kept.iter().all(|name| folder.path().join(name).exists()));
    }
}
