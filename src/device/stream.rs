//! Rust side of `stream.cpp`. Every call is an error where libtorch's CUDA side is not loaded.

use crate::error::{Result, check_shim as check};
use std::ffi::{c_char, c_int, c_void};

unsafe extern "C" {
    fn ssdkd_use_gpu(index: c_int) -> *mut c_char;
    fn ssdkd_stream(index: c_int, stream: *mut *mut c_void) -> *mut c_char;
    fn ssdkd_stream_is_done(index: c_int, done: *mut bool) -> *mut c_char;
    fn ssdkd_gpu_bytes(index: c_int, bytes: *mut i64) -> *mut c_char;
    fn ssdkd_numerics(deterministic: bool, tf32: bool) -> *mut c_char;
}

/// Makes a GPU the current one of this thread.
pub fn use_gpu(index: usize) -> Result<()> {
    // SAFETY: takes a number.
    check("choosing a GPU", unsafe { ssdkd_use_gpu(index as c_int) })
}

/// The CUDA stream that libtorch's kernels on this GPU go to: what is put there comes after them, and they after it.
pub fn current(index: usize) -> Result<*mut c_void> {
    let mut stream = std::ptr::null_mut();
    // SAFETY: writes one pointer.
    check("asking for the stream", unsafe { ssdkd_stream(index as c_int, &raw mut stream) })?;
    Ok(stream)
}

/// Whether all that was put on that stream is done. Does not wait.
pub fn is_done(index: usize) -> Result<bool> {
    let mut done = false;
    // SAFETY: writes one value.
    check("a computation on the GPU", unsafe { ssdkd_stream_is_done(index as c_int, &raw mut done) })?;
    Ok(done)
}

/// Returns when the device has done all it was given: what a clock has to wait for. A CPU has always.
pub fn finish(device: tch::Device) {
    if let tch::Device::Cuda(index) = device {
        tch::Cuda::synchronize(index as i64);
    }
}

/// Bytes of GPU memory that libtorch holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GpuMemory {
    /// Now.
    pub current: u64,
    /// At most so far.
    pub peak: u64,
}

/// What libtorch holds of a GPU's memory.
pub fn memory(index: usize) -> Result<GpuMemory> {
    let mut bytes = [0i64; 2];
    // SAFETY: writes two numbers.
    check("asking for GPU memory", unsafe { ssdkd_gpu_bytes(index as c_int, bytes.as_mut_ptr()) })?;
    Ok(GpuMemory { current: bytes[0] as u64, peak: bytes[1] as u64 })
}

/// How a GPU computes. `deterministic`: only kernels that repeat their bits, an error where libtorch has none; otherwise cuDNN tries
/// out which is fastest. `tf32`: products of f32 by tensor cores, whose factors have 10 bits of mantissa.
pub fn numerics(deterministic: bool, tf32: bool) -> Result<()> {
    // SAFETY: takes two flags.
    check("setting how the GPU computes", unsafe { ssdkd_numerics(deterministic, tf32) })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A process whose libtorch has no CUDA side gets an error, never a crash. On a machine with a GPU there is nothing to see here.
    #[test]
    fn without_cuda_every_call_is_an_error() {
        if crate::device::gpu_count() > 0 {
            println!("skip: this machine has a GPU");
            return;
        }
        assert!(use_gpu(0).is_err());
        assert!(current(0).is_err());
        assert!(is_done(0).is_err());
        assert!(memory(0).is_err());
    }
}
