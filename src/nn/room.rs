//! Whether memory has room for what a configuration asks for: asked before, since tch's allocating calls end the process.

use crate::error::{Error, Result};
use tch::{Device, Kind, Tensor};

/// Refuses `key` if `bytes` are not free on `device`; `what` says what they are for.
///
/// # Errors
/// [`Error::Config`] with the memory needed.
pub fn room_for(key: &str, what: &str, bytes: f64, device: Device) -> Result<()> {
    let gigabytes = |bytes: f64| format!("{:.1} GB", bytes / 1e9);
    let free = match (device, free_bytes()) {
        (Device::Cpu, Some(free)) if bytes > free => gigabytes(free),
        (Device::Cpu, _) => return Ok(()),
        _ if Tensor::f_empty([bytes as i64], (Kind::Uint8, device)).is_ok() => return Ok(()),
        _ => "less".into(),
    };
    Err(Error::config(key, format!("{what} need {} of memory, {free} is free", gigabytes(bytes))))
}

/// What the operating system could give to new work; `None` where it does not say.
fn free_bytes() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().trim_end_matches("kB").trim().parse::<f64>().ok().map(|kilobytes| 1024.0 * kilobytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_by_its_key() {
        room_for("a.b", "ten things", 1e6, Device::Cpu).unwrap();
        let text = room_for("a.b", "ten things", 1e18, Device::Cpu).unwrap_err().to_string();
        assert!(text.starts_with("a.b: ten things need 1000000000.0 GB of memory, "), "{text}");
    }
}
