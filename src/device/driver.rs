//! The NVIDIA driver's word on GPUs. Beside the NCCL transport the only module that names the crate `cudarc`.

use cudarc::driver::{result, sys};

/// CUDA 13's own number, as the driver counts.
const NEEDED: i32 = 13_000;

/// Whether there is a driver. Asked before any other question to it: cudarc panics where there is none.
pub(super) fn is_present() -> bool {
    // SAFETY: opens a library whose initialisers have no preconditions.
    unsafe { sys::is_culib_present() }
}

/// The newest CUDA that the driver serves, 1000·major + 10·minor; `None` without a driver.
pub fn driver_version() -> Option<i32> {
    let mut version = 0;
    // SAFETY: writes one number.
    (is_present() && unsafe { sys::cuDriverGetVersion(&raw mut version) } == sys::cudaError_enum::CUDA_SUCCESS).then_some(version)
}

/// Why libtorch sees no GPU.
pub(super) fn problem() -> String {
    diagnose(driver_version(), std::env::var("CUDA_VISIBLE_DEVICES").ok().as_deref())
}

fn diagnose(version: Option<i32>, visible: Option<&str>) -> String {
    match (version, visible) {
        (None, _) => "libcuda.so.1, which the driver brings, is not on the search path".into(),
        (Some(version), _) if version < NEEDED => {
            format!("the driver serves CUDA {}.{}, 13.0 is needed: driver 580 or newer", version / 1000, version % 1000 / 10)
        }
        (Some(_), Some(visible)) => format!("CUDA_VISIBLE_DEVICES = `{visible}` names none that is here"),
        (Some(_), None) => "the driver is there and lists none: does nvidia-smi?".into(),
    }
}

/// A name for each of `count` GPUs: their UUIDs, so that the same GPU is known again however a rank sees it.
pub(super) fn names(count: usize) -> Vec<String> {
    let uuid = |index: usize| {
        let bytes = result::init().and_then(|()| result::device::get(index as i32)).and_then(result::device::get_uuid).ok()?;
        Some(bytes.bytes.iter().map(|b| format!("{:02x}", *b as u8)).collect::<String>())
    };
    (0..count).map(|index| uuid(index).unwrap_or_else(|| format!("GPU {index}"))).collect()
}

/// What a GPU is sold as; `None` without a driver.
pub fn model(gpu: usize) -> Option<String> {
    is_present().then(|| result::init().and_then(|()| result::device::get(gpu as i32)).and_then(result::device::get_name).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_told_apart() {
        assert!(diagnose(None, Some("0")).contains("libcuda.so.1"));
        assert_eq!(diagnose(Some(12_080), None), "the driver serves CUDA 12.8, 13.0 is needed: driver 580 or newer");
        assert_eq!(diagnose(Some(13_000), Some("7")), "CUDA_VISIBLE_DEVICES = `7` names none that is here");
        assert!(diagnose(Some(13_010), None).contains("nvidia-smi"));
    }

    #[test]
    fn without_a_driver_nothing_is_asked() {
        assert_eq!(driver_version().is_some(), is_present());
    }
}
