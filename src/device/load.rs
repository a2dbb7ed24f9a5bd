//! Opening libtorch's CUDA side, in the only order that works.
//!
//! `libtorch_cuda.so` must be open before anything asks libtorch about CUDA: one earlier question makes libtorch keep its "no CUDA
//! library" stub for the life of the process. So [`gpu_count`], the only question in this crate, loads it first.

use std::ffi::{CStr, CString};
use std::path::PathBuf;
use std::sync::OnceLock;

/// What became of opening the CUDA side of libtorch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CudaLibrary {
    /// Loaded.
    Loaded,
    /// Not loaded, with the dynamic linker's reason.
    Missing(String),
}

/// Sets what CUDA's libraries read when they start, unless it is set: the first thing a process does, as long as it has one thread.
/// cuBLAS repeats its bits only with a workspace of fixed size.
pub fn prepare() {
    if std::env::var_os("CUBLAS_WORKSPACE_CONFIG").is_none() {
        // SAFETY: the caller has started no thread yet.
        unsafe { std::env::set_var("CUBLAS_WORKSPACE_CONFIG", ":4096:8") };
    }
}

/// Opens libtorch's CUDA side once.
pub fn load_cuda() -> &'static CudaLibrary {
    static OUTCOME: OnceLock<CudaLibrary> = OnceLock::new();
    OUTCOME.get_or_init(|| match open("libtorch_cuda.so") {
        Ok(()) => CudaLibrary::Loaded,
        Err(reason) => CudaLibrary::Missing(reason),
    })
}

/// Opens a shared library for the whole process.
pub fn open(library: &str) -> Result<(), String> {
    let name = CString::new(library).map_err(|e| e.to_string())?;
    // SAFETY: a NUL-terminated name; libtorch's and NCCL's initialisers have no preconditions.
    unsafe {
        if libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL).is_null() {
            let reason = libc::dlerror();
            let text = if reason.is_null() { "unknown reason".into() } else { CStr::from_ptr(reason).to_string_lossy() };
            return Err(text.into_owned());
        }
    }
    Ok(())
}

/// Number of GPUs libtorch can use; none without a driver.
pub fn gpu_count() -> usize {
    match load_cuda() {
        CudaLibrary::Loaded if tch::Cuda::is_available() => tch::Cuda::device_count() as usize,
        _ => 0,
    }
}

/// Files whose name begins with `name` that this process has mapped.
pub fn mapped(name: &str) -> Vec<PathBuf> {
    mapped_in(&std::fs::read_to_string("/proc/self/maps").unwrap_or_default(), name)
}

fn mapped_in(maps: &str, name: &str) -> Vec<PathBuf> {
    let paths = maps.lines().filter_map(|line| line.split_whitespace().nth(5)).map(PathBuf::from);
    let mut found: Vec<PathBuf> = paths.filter(|p| p.file_name().is_some_and(|f| f.to_string_lossy().starts_with(name))).collect();
    found.sort();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_is_not_there_is_named() {
        assert!(open("libnosuch.so.7").unwrap_err().contains("libnosuch.so.7"));
    }

    #[test]
    fn copies_of_a_library_are_told_apart() {
        let line = |path: &str| format!("7f00-7f01 r-xp 00000000 08:01 42   {path}\n");
        let maps = line("/a/libnccl.so.2") + &line("/a/libnccl.so.2") + &line("/b/libnccl.so.2") + "7f00-7f01 rw-p 00000000 00:00 0\n";
        assert_eq!(mapped_in(&maps, "libnccl"), [PathBuf::from("/a/libnccl.so.2"), PathBuf::from("/b/libnccl.so.2")]);
        assert!(mapped_in(&maps, "libtorch_cuda").is_empty());
        assert_eq!(mapped("libtorch_cpu").len(), 1);
    }
}
