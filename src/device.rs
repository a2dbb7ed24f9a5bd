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
    let visible = match load_cuda() {
        CudaLibrary::Missing(reason) => Err(reason.as_str()),
        CudaLibrary::Loaded => Ok(gpu_count()),
    };
    gpu_of(visible, ranks, local)
}

/// The GPU of a rank, by its place on the host; `visible` of them, or the reason why CUDA cannot be loaded.
fn gpu_of(visible: std::result::Result<usize, &str>, ranks: usize, local: Local) -> Result<Device> {
    let problem = match visible {
        Err(reason) => format!("libtorch's CUDA side cannot be loaded ({reason})"),
        Ok(0) => "libtorch finds no GPU or no NVIDIA driver".to_owned(),
        Ok(gpus) if local.ranks > gpus => format!("{} ranks on this host are more than its {gpus} visible GPUs", local.ranks),
        Ok(_) if ranks > 1 => format!("{ranks} ranks cannot exchange tensors of GPUs yet: launch one"),
        Ok(_) => return Ok(Device::Cuda(local.rank)),
    };
    Err(Error::config("device", format!("cuda is asked for, but {problem}; set device = \"cpu\" or see `ssdkd doctor`")))
}

/// Number of GPUs libtorch can use, after [`load_cuda`]; none without a driver.
pub fn gpu_count() -> usize {
    if tch::Cuda::is_available() { tch::Cuda::device_count() as usize } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_rank_takes_a_gpu_and_what_cannot_work_is_refused_with_the_reason() {
        let on_one_host = |visible, ranks| gpu_of(visible, ranks, Local { rank: ranks - 1, ranks, cores: 8 });
        assert_eq!(on_one_host(Ok(1), 1).unwrap(), Device::Cuda(0));
        assert_eq!(on_one_host(Ok(4), 1).unwrap(), Device::Cuda(0));
        for (visible, ranks, problem) in [
            (Ok(2), 3, "3 ranks on this host are more than its 2 visible GPUs"),
            (Ok(4), 4, "4 ranks cannot exchange tensors of GPUs yet: launch one"),
            (Ok(0), 1, "libtorch finds no GPU or no NVIDIA driver"),
            (Err("no such file"), 1, "libtorch's CUDA side cannot be loaded (no such file)"),
        ] {
            let error = on_one_host(visible, ranks).unwrap_err();
            let want = format!("device: cuda is asked for, but {problem}; set device = \"cpu\" or see `ssdkd doctor`");
            assert_eq!((error.to_string(), error.exit_code()), (want, 2));
        }
        // A rank on each of two hosts.
        let text = gpu_of(Ok(1), 2, Local { rank: 0, ranks: 1, cores: 8 }).unwrap_err().to_string();
        assert!(text.contains("2 ranks cannot exchange tensors of GPUs yet"), "{text}");
    }

    #[test]
    fn a_library_that_is_not_there_is_named() {
        assert!(open("libnosuch.so.7").unwrap_err().contains("libnosuch.so.7"));
    }
}
