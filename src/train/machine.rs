//! What the bits of a run depend on besides its configuration and the version of ssdkd.

use crate::device::{Device, model};
use crate::error::Result;
use crate::nn::shim;
use crate::parallel::comm::all_gather_varied;
use crate::parallel::{World, thread_count};
use std::collections::BTreeSet;
use std::fmt;

/// What bits are promised for, where all of it is equal.
#[derive(Debug, Clone)]
struct Machine {
    device: String,
    instruction_set: String,
    threads: usize,
    torch: String,
}

impl Machine {
    fn here(device: Device) -> Self {
        let device = match device {
            Device::Cuda(gpu) => format!("CUDA {}", model(gpu).unwrap_or_else(|| "of unknown kind".into())),
            _ => "CPU".into(),
        };
        let torch = format!("{} ({})", shim::torch_version(), shim::torch_build_mark());
        Self { device, instruction_set: shim::cpu_capability(), threads: thread_count(), torch }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}, {} threads, libtorch {}", self.device, self.instruction_set, self.threads, self.torch)
    }
}

/// The machines of all ranks: a text that is the same however many ranks are on each kind, and a warning where there are several
/// kinds. A collective.
pub(super) fn machines(world: &World) -> Result<String> {
    let texts = all_gather_varied(world.comm(), Machine::here(world.device()).to_string().as_bytes())?;
    let kinds: BTreeSet<String> = texts.iter().map(|text| String::from_utf8_lossy(text).into_owned()).collect();
    if kinds.len() > 1 && world.leads() {
        tracing::warn!("{}", unlike(&kinds));
    }
    Ok(joined(&kinds))
}

fn joined(kinds: &BTreeSet<String>) -> String {
    kinds.iter().map(String::as_str).collect::<Vec<_>>().join("; ")
}

fn unlike(kinds: &BTreeSet<String>) -> String {
    format!("the ranks of this launch are on unlike machines [{}]: its last bits may differ from those of another launch", joined(kinds))
}

/// What is to be said of a run that goes on on other machines, or with another ssdkd, than it was computed on.
pub(super) fn change(was: [&str; 2], is: [&str; 2]) -> Option<String> {
    let text = |[machines, version]: [&str; 2]| format!("{machines}, ssdkd {version}");
    (was != is).then(|| {
        let (was, is) = (text(was), text(is));
        format!("this run was computed on [{was}], it goes on on [{is}]: its last bits may differ from those of an undisturbed run")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parallel::test_ranks::on_ranks;

    #[test]
    fn every_part_counts_and_each_kind_once() {
        let base = Machine::here(Device::Cpu);
        let text = base.to_string();
        for other in [
            Machine { device: "CUDA NVIDIA H100".into(), ..base.clone() },
            Machine { instruction_set: "AVX9".into(), ..base.clone() },
            Machine { threads: base.threads + 1, ..base.clone() },
            Machine { torch: "2.11.0 (00000000)".into(), ..base.clone() },
        ] {
            let other = other.to_string();
            let said = change([&text, "1"], [&other, "1"]).unwrap();
            assert!(said.contains(&format!("computed on [{text}, ssdkd 1], it goes on on [{other}, ssdkd 1]")), "{said}");
            let kinds = BTreeSet::from([text.clone(), other.clone()]);
            assert!(unlike(&kinds).contains(&text) && unlike(&kinds).contains(&other));
        }
        assert!(change([&text, "1"], [&text, "2"]).is_some());
        assert_eq!(change([&text, "1"], [&text, "1"]), None);
        assert_eq!(on_ranks(4, &[1, 2, 4], |world| machines(world).unwrap()), text);
    }
}
