//! What the bits of a run depend on besides its configuration and the version of ssdkd.

use crate::files;
use crate::nn::shim;
use crate::parallel::{World, thread_count};
use std::ffi::{CStr, c_char, c_int};
use tch::Device;

/// Kind of device, instruction set, threads, and libtorch with a mark of its build: bits are promised where all of these are equal.
pub(super) fn machine(world: &World) -> String {
    let device = match world.device() {
        Device::Cuda(gpu) => format!("CUDA {}", gpu_name(gpu).unwrap_or_else(|| "of unknown kind".into())),
        _ => "CPU".into(),
    };
    let (set, threads, version) = (shim::cpu_capability(), thread_count(), shim::torch_version());
    format!("{device}, {set}, {threads} threads, libtorch {version} ({})", build_mark(&shim::torch_build()))
}

/// A few digits that differ between builds of libtorch, and not between machines: what it says of itself without the instruction set.
fn build_mark(said: &str) -> String {
    let of_the_build: String = said.lines().filter(|line| !line.contains("CPU capability")).collect();
    files::sha256(of_the_build.as_bytes())[..8].into()
}

/// A GPU's name, as its driver has it; none without one.
fn gpu_name(gpu: usize) -> Option<String> {
    type Get = unsafe extern "C" fn(*mut c_int, c_int) -> c_int;
    type Name = unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int;
    let mut text: [c_char; 256] = [0; 256];
    // SAFETY: the driver's two functions as cuda.h declares them; libtorch has initialised it, or they give an error.
    unsafe {
        let driver = libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW);
        if driver.is_null() {
            return None;
        }
        let (get, name) = (libc::dlsym(driver, c"cuDeviceGet".as_ptr()), libc::dlsym(driver, c"cuDeviceGetName".as_ptr()));
        if get.is_null() || name.is_null() {
            return None;
        }
        let (get, name) = (std::mem::transmute::<*mut libc::c_void, Get>(get), std::mem::transmute::<*mut libc::c_void, Name>(name));
        let mut device = 0;
        let failed = get(&raw mut device, gpu as c_int) != 0 || name(text.as_mut_ptr(), text.len() as c_int - 1, device) != 0;
        (!failed).then(|| CStr::from_ptr(text.as_ptr()).to_string_lossy().into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_is_the_builds_and_not_the_machines() {
        let said = "PyTorch built with:\n  - GCC 13.3\n  - CPU capability usage: AVX2\n  - Build settings: USE_CUDA=1\n";
        assert_eq!(build_mark(said), build_mark(&said.replace("AVX2", "AVX512")));
        assert_ne!(build_mark(said), build_mark(&said.replace("GCC 13.3", "GCC 11.2")));
        let own = shim::torch_build();
        assert!(own.contains("CPU capability") && own.contains("Build settings"), "{own}");
    }
}
