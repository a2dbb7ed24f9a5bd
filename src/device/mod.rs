//! CUDA at run time: one binary serves machines with and without it.
//!
//! The binary links libtorch's CPU side only. [`load`] opens the CUDA side and says what became of it, [`mod@driver`] asks the NVIDIA driver
//! which GPUs there are, [`binding`] gives each rank one (pure), [`stream`] holds the few libtorch calls that need a GPU. What ranks
//! have to agree on is done in `parallel`.

pub mod binding;
mod driver;
mod load;
pub mod stream;

pub use binding::{Seat, Sight, launched_local_rank, seats};
pub use driver::{cuda_flavour, driver, driver_verdict, driver_version, model};
pub use load::{CudaLibrary, gpu_count, load_cuda, mapped, open, prepare};
pub use tch::Device;

use tch::Tensor;

/// A tensor of the host on `device`. To a GPU it goes by page-locked memory, so that nothing waits for the kernels before it.
pub fn upload(host: &Tensor, device: Device) -> Tensor {
    // `pin_memory` would warn at every call that it is told which device.
    if device.is_cuda() { host.internal_pin_memory(device).to_device_(device, host.kind(), true, false) } else { host.to_device(device) }
}

/// GPUs this process may use, each by a name that no other GPU has, in CUDA's order.
///
/// `thorough` opens libtorch's CUDA side even where there is no driver, so that the reason can be named; without it a machine that
/// has no driver costs nothing.
///
/// # Errors
/// Why there is none.
pub fn visible(thorough: bool) -> Result<Vec<String>, String> {
    if !thorough && !driver::is_present() {
        return Err("there is no NVIDIA driver".into());
    }
    if let CudaLibrary::Missing(reason) = load_cuda() {
        return Err(format!("libtorch's CUDA side cannot be loaded ({reason})"));
    }
    if !tch::utils::has_cudart() {
        return Err(
            "libtorch does not know of its CUDA side: it was asked about CUDA before that was opened, which is a fault of ssdkd".into()
        );
    }
    match gpu_count() {
        0 => Err(format!("libtorch finds no GPU or no NVIDIA driver ({})", driver::problem())),
        count => Ok(driver::names(count)),
    }
}
