//! One error type for the whole crate. Each variant carries what it is about (key, file, tensor, rank), a way out
//! ([`Error::hint`]) and the exit code the process ends with ([`Error::exit_code`]).

use std::ffi::{CStr, c_char};
use std::path::{Path, PathBuf};

/// Result with the crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Exit code of a run that a signal has stopped behind a whole checkpoint (docs/exit-codes.md).
pub const STOPPED: i32 = 75;

unsafe extern "C" {
    /// Frees what the C++ shim has allocated for its caller.
    pub(crate) fn ssdkd_free(text: *mut c_char);
}

/// What a call of the C++ shim has returned: null, or its error's text, which is freed here.
pub(crate) fn check_shim(during: &'static str, error: *mut c_char) -> Result<()> {
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: the shim returns a NUL-terminated string from strdup, owned by us.
    let text = unsafe {
        let text = CStr::from_ptr(error).to_string_lossy().into_owned();
        ssdkd_free(error);
        text
    };
    Err(Error::torch(during, &text))
}

/// One refused configuration value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Dotted key, for example `replay.capacity`.
    pub key: String,
    /// What is wrong with it and, where there is one, the nearest legal value.
    pub problem: String,
}

impl Finding {
    /// A finding on `key`.
    pub fn new(key: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { key: key.into(), problem: problem.into() }
    }
}

/// Everything that ends a command early.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// Configuration refused; all findings at once.
    #[error("{}", list(.0))]
    Config(Vec<Finding>),

    /// The folder holds a run with other values than this one.
    #[error("{}", list(.0))]
    AnotherRun(Vec<Finding>),

    /// An input file that is missing, damaged or not what it should be.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was expected and what was found.
        problem: String,
        /// The way out.
        hint: Option<String>,
    },

    /// A tensor of a weights file that does not fit the network it is meant for.
    #[error("{}: tensor `{tensor}`: {problem}", path.display())]
    Tensor {
        /// The weights file.
        path: PathBuf,
        /// Key of the tensor.
        tensor: String,
        /// Expected and found.
        problem: String,
        /// The way out.
        hint: Option<String>,
    },

    /// A request this machine, launch or command line cannot serve.
    #[error("{problem}")]
    Refused {
        /// What cannot be done.
        problem: String,
        /// The way out.
        hint: Option<String>,
    },

    /// Reading or writing failed below us (disk full, permission, network file system).
    #[error("cannot {action} {}: {cause}", path.display())]
    Io {
        /// `read`, `write`, `create` …
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's words.
        cause: String,
    },

    /// libtorch refused an operation whose inputs were checked; usually out of memory.
    #[error("libtorch failed in {during}: {cause}")]
    Torch {
        /// What was being done.
        during: &'static str,
        /// First line of libtorch's message.
        cause: String,
    },

    /// A collective could not be completed.
    #[error("{operation} between ranks failed: {problem}")]
    Comm {
        /// The collective.
        operation: &'static str,
        /// What was seen.
        problem: String,
    },

    /// A loss or gradient stayed NaN or infinite for too long.
    #[error("{what} was not finite {times} times in a row, last at step {step}")]
    NonFinite {
        /// The quantity.
        what: &'static str,
        /// How often in a row.
        times: u32,
        /// Student step of the last occurrence.
        step: u64,
    },

    /// A value that must not enter the replay buffer.
    #[error("replay: sample {sample}: {problem}")]
    Replay {
        /// Sample id.
        sample: u64,
        /// What is wrong with its priority.
        problem: String,
    },

    /// An error that arose on another rank, as that rank words it.
    #[error("rank {rank} on {host}: {message}")]
    Remote {
        /// Where it arose.
        rank: usize,
        /// Its host.
        host: String,
        /// Its message.
        message: String,
        /// Its hint.
        hint: Option<String>,
        /// Its exit code.
        code: i32,
    },

    /// What is a refusal before anything was computed, and came later.
    #[error("{0}")]
    Late(Box<Error>),
}

fn list(findings: &[Finding]) -> String {
    let mut lines: Vec<String> = findings.iter().map(|f| format!("{}: {}", f.key, f.problem)).collect();
    if lines.len() > 1 {
        lines.insert(0, format!("{} settings are refused:", lines.len()));
    }
    lines.join("\n  ")
}

/// Whether a program's last words are that there was no memory left, a host's or a GPU's.
pub fn is_of_memory(said: &str) -> bool {
    ["out of memory", "not enough memory", "can't allocate memory", "ALLOC_FAILED"].iter().any(|words| said.contains(words))
}

impl Error {
    /// A single refused configuration value.
    pub fn config(key: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Config(vec![Finding::new(key, problem)])
    }

    /// A damaged, missing or foreign input file.
    pub fn file(path: impl AsRef<Path>, problem: impl Into<String>) -> Self {
        Self::File { path: path.as_ref().into(), problem: problem.into(), hint: None }
    }

    /// A request that cannot be served.
    pub fn refused(problem: impl Into<String>) -> Self {
        Self::Refused { problem: problem.into(), hint: None }
    }

    /// An operating-system error on `path`.
    pub fn io(action: &'static str, path: impl AsRef<Path>, cause: &std::io::Error) -> Self {
        Self::Io { action, path: path.as_ref().into(), cause: cause.to_string() }
    }

    /// An operating-system error met while opening an input file: refused before compute when the file is not there.
    pub fn open(path: impl AsRef<Path>, cause: &std::io::Error) -> Self {
        match cause.kind() {
            std::io::ErrorKind::NotFound => Self::file(path, "no such file"),
            std::io::ErrorKind::PermissionDenied => Self::file(path, "may not be read (permission denied)"),
            std::io::ErrorKind::IsADirectory => Self::file(path, "is a folder, a file is needed"),
            std::io::ErrorKind::InvalidData => Self::file(path, "is no text file (UTF-8)"),
            _ => Self::io("read", path, cause),
        }
    }

    /// A libtorch error, cut to its first line: the rest is libtorch's own stack.
    pub fn torch(during: &'static str, cause: &dyn std::fmt::Display) -> Self {
        let text = cause.to_string();
        Self::Torch { during, cause: text.lines().next().unwrap_or_default().trim().to_owned() }
    }

    /// The same error with a way out.
    pub fn with_hint(mut self, text: impl Into<String>) -> Self {
        match &mut self {
            Self::File { hint, .. } | Self::Tensor { hint, .. } | Self::Refused { hint, .. } | Self::Remote { hint, .. } => {
                *hint = Some(text.into());
            }
            _ => {}
        }
        self
    }

    /// The same error, met after computing had begun: no refusal any more.
    pub fn after_start(self) -> Self {
        if self.exit_code() == 2 { Self::Late(Box::new(self)) } else { self }
    }

    /// What the reader can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Late(error) => error.hint(),
            Self::AnotherRun(_) => Some("name another --run-dir, go back to those settings, or start over with --fresh".into()),
            Self::Config(_) => Some("docs/config.md has every key with its type, default and meaning".into()),
            Self::File { hint, .. } | Self::Tensor { hint, .. } | Self::Refused { hint, .. } | Self::Remote { hint, .. } => hint.clone(),
            Self::Io { action: "write" | "create", .. } => {
                Some("check free space and permissions of that folder (df -h, ls -ld), then start the same command again".into())
            }
            Self::Io { .. } => None,
            Self::Torch { .. } => Some("if memory ran out, lower inversion.batch_size or distill.batch_size".into()),
            Self::Comm { .. } => Some("look for the first rank that ended: its log in the run folder says why".into()),
            Self::NonFinite { .. } => Some("lower student.lr or inversion.lr_generator; the offending batch is in the run folder".into()),
            Self::Replay { .. } => None,
        }
    }

    /// Exit code of the process (docs/exit-codes.md): 2 refused before compute, 1 anything else.
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Config(_) | Self::AnotherRun(_) | Self::File { .. } | Self::Tensor { .. } | Self::Refused { .. } => 2,
            Self::Remote { code, .. } => *code,
            _ => 1,
        }
    }

    /// Whether every rank has this error: it was agreed on, or follows from values all ranks share. The leading rank then prints
    /// it once; any other error is printed where it arose, and ends the job.
    pub fn is_known_to_all(&self) -> bool {
        match self {
            Self::Late(error) => error.is_known_to_all(),
            _ => matches!(self, Self::Config(_) | Self::AnotherRun(_) | Self::Remote { .. } | Self::NonFinite { .. }),
        }
    }

    /// Message and hint as printed for a person.
    pub fn render(&self) -> String {
        self.with_way_out(format!("error: {self}"))
    }

    /// The same of an error that one rank alone knows of.
    pub fn render_of(&self, rank: usize, host: &str) -> String {
        self.with_way_out(format!("error: rank {rank} on {host}: {self}"))
    }

    fn with_way_out(&self, line: String) -> String {
        match self.hint() {
            Some(hint) => format!("{line}\nhint: {hint}"),
            None => line,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_findings_are_listed_one_a_line() {
        let error = Error::Config(vec![Finding::new("a.b", "must be positive"), Finding::new("c", "unknown")]);
        assert_eq!(error.to_string(), "2 settings are refused:\n  a.b: must be positive\n  c: unknown");
        assert_eq!(error.exit_code(), 2);
    }

    #[test]
    fn nothing_is_refused_after_the_start() {
        let remote = Error::Remote { rank: 1, host: "h".into(), message: "m".into(), hint: None, code: 2 };
        for error in [Error::refused("r"), Error::file("f", "p").with_hint("h"), Error::config("k", "p"), remote] {
            let (text, hint, known) = (error.to_string(), error.hint(), error.is_known_to_all());
            let late = error.after_start();
            assert_eq!((late.exit_code(), late.to_string(), late.hint(), late.is_known_to_all()), (1, text, hint, known));
        }
    }

    #[test]
    fn a_missing_file_is_refused_before_compute() {
        let error = Error::open("/nowhere", &std::io::Error::from(std::io::ErrorKind::NotFound));
        assert_eq!((error.exit_code(), error.to_string().as_str()), (2, "/nowhere: no such file"));
    }
}
