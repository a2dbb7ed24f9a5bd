//! What the bits of a run depend on besides its configuration and the version of ssdkd.

use crate::device::{Device, model};
use crate::files;
use crate::nn::shim;
use crate::parallel::{World, thread_count};

/// Kind of device, instruction set, threads, and libtorch with a mark of its build: bits are promised where all of these are equal.
pub(super) fn machine(world: &World) -> String {
    let device = match world.device() {
        Device::Cuda(gpu) => format!("CUDA {}", model(gpu).unwrap_or_else(|| "of unknown kind".into())),
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
