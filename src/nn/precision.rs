//! Element type of a network's activations.

use crate::config::Precision;
use crate::error::{Error, Result};
use tch::{Device, Kind};

/// The element type that stands for `precision`.
pub fn kind(precision: Precision) -> Kind {
    match precision {
        Precision::F32 => Kind::Float,
        Precision::Bf16 => Kind::BFloat16,
    }
}

/// Refuses bf16 on a CPU that has no instructions for it: emulated, a step takes longer than in f32.
///
/// # Errors
/// [`Error::Config`] for `key`.
pub fn check_precision(key: &str, precision: Precision, device: Device) -> Result<()> {
    if served(precision, device, cpu_has_bf16()) {
        return Ok(());
    }
    Err(Error::config(key, "bf16 is asked for, but this CPU has no bf16 instructions (AVX512-BF16): use f32 here"))
}

fn served(precision: Precision, device: Device, cpu_has_bf16: bool) -> bool {
    precision == Precision::F32 || device != Device::Cpu || cpu_has_bf16
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
    fn bf16_is_served_where_hardware_has_it() {
        assert!(served(Precision::F32, Device::Cpu, false));
        assert!(!served(Precision::Bf16, Device::Cpu, false));
        assert!(served(Precision::Bf16, Device::Cpu, true));
        assert!(served(Precision::Bf16, Device::Cuda(0), false));
        check_precision("train.precision", Precision::F32, Device::Cpu).unwrap();
    }
}
