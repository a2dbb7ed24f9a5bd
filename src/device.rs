//! CUDA at run time: one binary serves machines with and without it.
//!
//! The binary links libtorch's CPU side only. `libtorch_cuda.so` is opened here, before anything asks libtorch about CUDA: one
//! earlier question makes libtorch keep its "no CUDA library" stub for the life of the process.

use crate::config::DeviceName;
use crate::error::{Error, Result};
use crate::parallel::Local;
use std::ffi::{CStr, CString};
use std::sync::OnceLock;

pub use tch::Device;

/// What became of opening the CUDA side of libtorch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CudaLibrary {
    /// Loaded.
    Loaded,
    /// Not loaded, with the dynamic linker's reason.
    Missing(String),
}

/// Opens libtorch's CUDA side once. Must come before any question about CUDA.
pub fn load_cuda() -> &'static CudaLibrary {
    static OUTCOME: OnceLock<CudaLibrary> = OnceLock::new();
    OUTCOME.get_or_init(|| match open("libtorch_cuda.so") {
        Ok(()) => CudaLibrary::Loaded,
        Err(reason) => CudaLibrary::Missing(reason),
    })
}

/// Opens a shared library for the whole process.
pub fn open(library: &str) -> std::result::Result<(), String> {
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

/// The device of a rank in a launch of `ranks`.
///
/// `auto` is the CPU as long as ranks cannot exchange tensors of GPUs: what one command gives must not depend on a GPU being seen.
///
/// # Errors
/// CUDA asked for where there is none, saying what is missing; on several ranks; more ranks than GPUs.
pub fn choose(wanted: DeviceName, ranks: usize, local: Local) -> Result<Device> {
    if wanted != DeviceName::Cuda {
        return Ok(Device::Cpu);
    }
    let problem = match load_cuda() {
        CudaLibrary::Missing(reason) => format!("libtorch's CUDA side cannot be loaded ({reason})"),
        CudaLibrary::Loaded if gpu_count() == 0 => "libtorch finds no GPU or no NVIDIA driver".to_owned(),
        CudaLibrary::Loaded if ranks > 1 => format!("{ranks} ranks cannot exchange tensors of GPUs yet: launch one"),
        CudaLibrary::Loaded => return gpu_of(local, gpu_count()),
    };
    Err(Error::config("device", format!("cuda is asked for, but {problem}; set device = \"cpu\" or see `ssdkd doctor`")))
}

/// Number of GPUs libtorch can use, after [`load_cuda`]; none without a driver.
pub fn gpu_count() -> usize {
    if tch::Cuda::is_available() { tch::Cuda::device_count() as usize } else { 0 }
}

/// GPU of a rank: the only visible one, else the one of its place on the host.
fn gpu_of(local: Local, visible: usize) -> Result<Device> {
    match visible {
        1 if local.ranks == 1 => Ok(Device::Cuda(0)),
        n if local.rank < n => Ok(Device::Cuda(local.rank)),
        n => {
            Err(Error::config("device", format!("{} ranks on this host, but {n} GPUs are visible: launch {n} ranks per host", local.ranks)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_take_the_gpu_of_their_place() {
        let at = |rank, ranks| Local { rank, ranks, cores: 8 };
        assert_eq!(gpu_of(at(2, 4), 4).unwrap(), Device::Cuda(2));
        assert_eq!(gpu_of(at(0, 1), 1).unwrap(), Device::Cuda(0));
        let text = gpu_of(at(2, 3), 2).unwrap_err().to_string();
        assert!(text.contains("3 ranks on this host, but 2 GPUs"), "{text}");
    }

    #[test]
    fn a_library_that_is_not_there_is_named() {
        assert!(open("libnosuch.so.7").unwrap_err().contains("libnosuch.so.7"));
    }
}
