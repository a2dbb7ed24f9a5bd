//! The one way to write a file, and to read one.

use crate::error::{Error, Result};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// Writes a file so that a crash at any moment leaves either the old one or the new one, whole: a temporary file in the
/// same folder, synced, renamed over, and the folder synced.
pub fn write(path: &Path, contents: &[u8]) -> Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = folder.join(format!(".{name}.{}.part", apart()));
    let attempt = || -> std::io::Result<()> {
        let mut file = File::create(&temporary)?;
        file.write_all(contents)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        sync_folder(folder)
    };
    attempt().map_err(|e| {
        let _ = fs::remove_file(&temporary);
        Error::io("write", path, &e)
    })
}

/// A number that no other writer has at this moment: hosts that share a disk share numbers of processes.
fn apart() -> u32 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    std::process::id().wrapping_mul(0x9e37_79b1) ^ (now.as_nanos() as u32)
}

/// Whether there is a folder for a file (or folder) that is to be written.
///
/// # Errors
/// There is none: refused, so that nothing is computed for nothing.
pub fn check_target(path: &Path) -> Result<()> {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() && !folder.is_dir() => {
            Err(Error::file(path, "cannot be written: there is no such folder").with_hint(format!("mkdir -p {}", folder.display())))
        }
        _ => Ok(()),
    }
}

/// Removes what a process that was killed in [`write`] has left in a folder.
pub fn remove_parts(folder: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
    let is_part = |name: &str| {
        let process = name.strip_prefix('.').and_then(|n| n.strip_suffix(".part")?.rsplit_once('.'));
        process.is_some_and(|(_, id)| id.parse::<u32>().is_ok())
    };
    for entry in entries.flatten().filter(|entry| is_part(&entry.file_name().to_string_lossy())) {
        fs::remove_file(entry.path()).map_err(|e| Error::io("remove", entry.path(), &e))?;
    }
    Ok(())
}

/// Makes renames and new names in a folder durable.
pub fn sync_folder(folder: &Path) -> std::io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Whole contents of an input file; one that is not there is refused.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|e| Error::open(path, &e))
}

/// Creates a folder and its parents.
pub fn create_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(|e| Error::io("create", path, &e))
}

/// Renames a folder to its name with a prefix, in place of an older one of that name.
pub fn set_aside(path: &Path, prefix: &str) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let aside = path.with_file_name(format!("{prefix}{name}"));
    if aside.exists() {
        remove_folder(&aside)?;
    }
    fs::rename(path, &aside).map_err(|e| Error::io("rename", path, &e))
}

/// Removes a folder with all it holds.
pub fn remove_folder(path: &Path) -> Result<()> {
    fs::remove_dir_all(path).map_err(|e| Error::io("remove", path, &e))
}

/// SHA-256 in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// Of a file's contents; nothing where there is none.
pub fn hash(file: Option<&Path>) -> Result<String> {
    file.map_or_else(|| Ok(String::new()), |path| Ok(sha256(&read(path)?)))
}

/// The same of a file that a configuration key names, which a refusal then says.
pub fn hash_named(key: &str, file: Option<&Path>) -> Result<String> {
    hash(file).map_err(|e| e.with_hint(format!("{key} names it: name another with --set {key}=FILE")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_leaves_nothing_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        write(&path, b"old").unwrap();
        write(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_folder_that_is_not_there_is_named() {
        let text = write(Path::new("/nowhere/a.txt"), b"x").unwrap_err().to_string();
        assert!(text.starts_with("cannot write /nowhere/a.txt"), "{text}");
    }

    #[test]
    fn sha256_is_the_standard_one() {
        assert_eq!(&sha256(b"abc")[..16], "ba7816bf8f01cfea");
    }
}
