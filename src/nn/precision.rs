//! Element type of a network's activations.

use crate::config::{Precision, ReduceRule};
use crate::device::stream;
use crate::error::{Error, Result};
use tch::{Device, Kind};

/// The element type that stands for `precision`.
pub fn kind(precision: Precision) -> Kind {
    match precision {
        Precision::F32 | Precision::Tf32 => Kind::Float,
        Precision::Bf16 => Kind::BFloat16,
    }
}

/// Refuses what `device` does not compute in: TF32 on a CPU, and bf16 on one that has no instructions for it, where a step takes longer
/// than in f32.
///
/// # Errors
/// [`Error::Config`] for `key`.
fn check_precision(key: &str, precision: Precision, device: Device) -> Result<()> {
    match unserved(precision, device, cpu_has_bf16()) {
        None => Ok(()),
        Some(problem) => Err(Error::config(key, problem)),
    }
}

fn unserved(precision: Precision, device: Device, cpu_has_bf16: bool) -> Option<&'static str> {
    match precision {
        _ if device != Device::Cpu => None,
        Precision::F32 => None,
        Precision::Tf32 => Some("tf32 is asked for, but only NVIDIA's tensor cores have it: use f32 on a CPU"),
        Precision::Bf16 if cpu_has_bf16 => None,
        Precision::Bf16 => Some("bf16 is asked for, but this CPU has no bf16 instructions (AVX512-BF16): use f32 here"),
    }
}

/// Checks the precision and makes libtorch compute in it. Where sums between ranks are to repeat their bits, so are a GPU's kernels: cuDNN
/// then takes its deterministic ones, and one that has none is an error.
///
/// # Errors
/// As [`check_precision`].
pub fn compute_in(key: &str, precision: Precision, device: Device, reduce: ReduceRule) -> Result<()> {
    check_precision(key, precision, device)?;
    if device.is_cuda() {
        stream::numerics(reduce == ReduceRule::Deterministic, precision == Precision::Tf32)?;
    }
    Ok(())
}

/// Whether this CPU multiplies bf16.
pub fn cpu_has_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        std::is_x86_feature_detected!("avx512bf16")
    }
    #[cfg(target_arch = "aarch64")]
    {
        std::arch::is_aarch64_feature_detected!("bf16")
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn precisions_are_served_where_hardware_has_them() {
        let served = |precision, device, cpu_has_bf16| unserved(precision, device, cpu_has_bf16).is_none();
        assert!(served(Precision::F32, Device::Cpu, false));
        assert!(!served(Precision::Bf16, Device::Cpu, false));
        assert!(served(Precision::Bf16, Device::Cpu, true));
        assert!(!served(Precision::Tf32, Device::Cpu, true));
        assert!(Precision::ALL.into_iter().all(|precision| served(precision, Device::Cuda(0), false)));
        check_precision("train.precision", Precision::F32, Device::Cpu).unwrap();
    }
}
