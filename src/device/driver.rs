//! The NVIDIA driver's word on GPUs, and whether it serves this libtorch. Beside the NCCL transport the only module that names the
//! crate `cudarc`.

use cudarc::driver::{result, sys};
use std::fs;

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
    diagnose(driver_version(), cuda_flavour(), std::env::var("CUDA_VISIBLE_DEVICES").ok().as_deref())
}

fn diagnose(version: Option<i32>, cuda: Option<u32>, visible: Option<&str>) -> String {
    let Some(version) = version else { return "libcuda.so.1, which the driver brings, is not on the search path".into() };
    let needs = cuda.and_then(|cuda| Some((cuda, oldest_driver(cuda)?)));
    match (needs, visible) {
        // A driver serves all of a major version if it serves its first.
        (Some((cuda, oldest)), _) if version < cuda as i32 * 1000 => {
            format!("the driver serves CUDA {}.{}, {cuda}.0 is needed: driver {oldest} or newer", version / 1000, version % 1000 / 10)
        }
        (_, Some(visible)) => format!("CUDA_VISIBLE_DEVICES = `{visible}` names none that is here"),
        (_, None) => "the driver is there and lists none: does nvidia-smi?".into(),
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

/// Version of this host's NVIDIA driver, where there is one.
pub fn driver() -> Option<String> {
    driver_of(&fs::read_to_string("/proc/driver/nvidia/version").unwrap_or_default())
}

fn driver_of(text: &str) -> Option<String> {
    let is_version =
        |word: &&str| word.contains('.') && word.split('.').all(|part| !part.is_empty() && part.chars().all(|c| c.is_ascii_digit()));
    text.lines().find(|line| line.starts_with("NVRM"))?.split_whitespace().find(is_version).map(str::to_owned)
}

/// CUDA's major version that the libtorch of this process was built for; none for a libtorch without CUDA. Its CPU side, too, is
/// linked against the CUDA runtime of its flavour.
pub fn cuda_flavour() -> Option<u32> {
    cuda_of(&fs::read_to_string("/proc/self/maps").unwrap_or_default())
}

fn cuda_of(maps: &str) -> Option<u32> {
    let after = maps.split("/libcudart.so.").nth(1)?;
    after.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Oldest major version of the driver that a major version of CUDA runs with (NVIDIA's table of CUDA compatibility).
fn oldest_driver(cuda: u32) -> Option<u32> {
    match cuda {
        12 => Some(525),
        13 => Some(580),
        _ => None,
    }
}

/// What a driver and a flavour of libtorch are to each other, and the way out where they do not fit.
pub fn driver_verdict(driver: Option<&str>, cuda: Option<u32>) -> String {
    let (Some(driver), Some(cuda)) = (driver, cuda) else {
        return match (driver, cuda.and_then(|cuda| Some((cuda, oldest_driver(cuda)?)))) {
            (Some(driver), _) => format!("{driver}; this libtorch has no CUDA side to need it"),
            (None, Some((cuda, oldest))) => format!("none on this host; libtorch's CUDA {cuda} would need {oldest} or newer"),
            (None, None) => "none on this host".into(),
        };
    };
    let major = driver.split('.').next().and_then(|major| major.parse::<u32>().ok());
    match (major, oldest_driver(cuda)) {
        (Some(major), Some(oldest)) if major >= oldest => format!("{driver}: serves libtorch's CUDA {cuda}, which needs {oldest} or newer"),
        (Some(major), Some(oldest)) if oldest_driver(12).is_some_and(|twelve| cuda > 12 && major >= twelve) => format!(
            "{driver} is too old: libtorch's CUDA {cuda} needs {oldest} or newer. Update it, or take the flavour it serves: \
             launch/setup.sh --cuda 12.6"
        ),
        (Some(_), Some(oldest)) => format!("{driver} is too old: libtorch's CUDA {cuda} needs {oldest} or newer. Update it"),
        _ => format!("{driver}; what CUDA {cuda} needs is not known here"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_told_apart() {
        assert!(diagnose(None, Some(13), Some("0")).contains("libcuda.so.1"));
        assert_eq!(diagnose(Some(12_080), Some(13), None), "the driver serves CUDA 12.8, 13.0 is needed: driver 580 or newer");
        assert_eq!(diagnose(Some(11_080), Some(12), None), "the driver serves CUDA 11.8, 12.0 is needed: driver 525 or newer");
        assert_eq!(diagnose(Some(13_000), Some(13), Some("7")), "CUDA_VISIBLE_DEVICES = `7` names none that is here");
        for (version, cuda) in [(13_010, Some(13)), (12_000, Some(12)), (11_080, None)] {
            assert!(diagnose(Some(version), cuda, None).contains("nvidia-smi"));
        }
    }

    #[test]
    fn without_a_driver_nothing_is_asked() {
        assert_eq!(driver_version().is_some(), is_present());
    }

    /// The two forms of the kernel module's line, proprietary and open.
    #[test]
    fn a_drivers_version_is_read_from_the_kernel_modules_line() {
        let closed =
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.124.06  Wed Feb 26 02:26:09 UTC 2025\nGCC version:  gcc version 12.2.0\n";
        let open = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs-builder@U22)\n";
        assert_eq!(
            (driver_of(closed).as_deref(), driver_of(open).as_deref(), driver_of("")),
            (Some("570.124.06"), Some("580.65.06"), None)
        );
    }

    #[test]
    fn a_flavour_is_read_from_the_runtime_that_is_loaded() {
        assert_eq!(cuda_of("7f0 r-xp 00000000 fd:00 1  /x/nvidia/cu13/lib/libcudart.so.13\n7f1 /x/libc10.so"), Some(13));
        assert_eq!(cuda_of("7f0 /x/cuda_runtime/lib/libcudart.so.12"), Some(12));
        assert_eq!(cuda_of("7f1 /x/libc10.so"), None);
    }

    #[test]
    fn a_driver_is_compared_with_the_flavour() {
        for (driver, cuda, says) in [
            (Some("580.65.06"), Some(13), "580.65.06: serves libtorch's CUDA 13, which needs 580 or newer"),
            (
                Some("579.99"),
                Some(13),
                "579.99 is too old: libtorch's CUDA 13 needs 580 or newer. Update it, or take the flavour it serves: launch/setup.sh --cuda 12.6",
            ),
            (Some("470.10"), Some(13), "470.10 is too old: libtorch's CUDA 13 needs 580 or newer. Update it"),
            (Some("560.28.03"), Some(12), "560.28.03: serves libtorch's CUDA 12, which needs 525 or newer"),
            (Some("470.10"), Some(12), "470.10 is too old: libtorch's CUDA 12 needs 525 or newer. Update it"),
            (Some("600.1"), Some(14), "600.1; what CUDA 14 needs is not known here"),
            (Some("600.1"), None, "600.1; this libtorch has no CUDA side to need it"),
            (None, Some(13), "none on this host; libtorch's CUDA 13 would need 580 or newer"),
            (None, None, "none on this host"),
        ] {
            assert_eq!(driver_verdict(driver, cuda), says);
        }
    }
}
