//! `ssdkd doctor --comm`: pairs of ranks, networks, versions, and which host is unlike the others.

use super::first_line;
use crate::device::Device;
use crate::error::Result;
use crate::metrics::version;
use crate::nn::shim;
use crate::parallel::comm::nccl::{Found, found, version_text};
use crate::parallel::{Host, MpiComm, PairSpeed, World, hosts, pair_speeds, slow, unlike};

/// The lines to print. A collective.
pub fn look(world: &World) -> Result<Vec<String>> {
    let over_mpi = pair_speeds(world, Device::Cpu)?;
    let over_nccl = match why_not_nccl(world) {
        None => Ok(pair_speeds(world, world.device())?),
        Some(reason) => Err(reason),
    };
    // After the measurement: connections are made when they are first used.
    let mut here = Host::here(&[
        ("cores", world.local().cores.to_string()),
        ("ssdkd", version()),
        ("MPI", first_line(&MpiComm::library_version())),
        ("libtorch", format!("{} ({})", shim::torch_version(), shim::torch_build_mark())),
        ("kernels", shim::cpu_capability()),
    ]);
    // Last: looking for it loads it, and what is loaded is taken for a network in use.
    here.versions.push(("NCCL".into(), nccl_version()));
    Ok(lines(&over_mpi, &over_nccl, &hosts(world, &here)?))
}

/// Why no tensors go over NCCL; the same on every rank.
fn why_not_nccl(world: &World) -> Option<String> {
    match world.device() {
        Device::Cuda(_) if world.layout().ranks() == 1 => Some("this is one rank".into()),
        Device::Cuda(_) if world.comm().name().starts_with("NCCL") => None,
        // A rank that lacks it was warned of when devices were given out.
        Device::Cuda(_) => Some(format!("tensors of GPUs go by {}: NCCL is not usable on every rank", world.comm().name())),
        _ => Some("ranks are on the CPU".into()),
    }
}

fn nccl_version() -> String {
    match found() {
        Found::Ready(version) => version_text(version),
        Found::Missing => "none".into(),
        Found::Misnamed | Found::Unfit(_) => "unusable".into(),
    }
}

fn lines(over_mpi: &[PairSpeed], over_nccl: &Result<Vec<PairSpeed>, String>, hosts: &[Host]) -> Vec<String> {
    let mut out = vec![String::new()];
    if over_mpi.is_empty() {
        out.push("pairs     none: this is one rank; start it as `launch/mpirun.sh N ssdkd doctor --comm`".into());
    } else {
        out.extend(table(over_mpi, "MPI"));
    }
    match over_nccl {
        Ok(pairs) => out.extend(table(pairs, "NCCL")),
        Err(reason) => out.push(format!("NCCL      no pairs: {reason}")),
    }
    for host in hosts {
        let versions: Vec<String> = host.versions.iter().map(|(subject, version)| format!("{subject} {version}")).collect();
        let networks: Vec<&str> = host.networks.iter().map(String::as_str).collect();
        let shown = |parts: String, none: &str| if parts.is_empty() { none.to_owned() } else { parts };
        out.push(format!("host      {}: {}", host.name, shown(versions.join(" · "), "its answer cannot be read")));
        out.push(format!("network   {}: {}", host.name, shown(networks.join(" · "), "nothing to be seen")));
    }
    let odd = unlike(hosts);
    match (odd.is_empty(), hosts.len()) {
        (true, 1) => out.push("differs   one host: nothing to compare".into()),
        (true, n) => out.push(format!("differs   nothing: {n} hosts are alike")),
        _ => out.extend(odd.iter().map(|text| format!("differs   {text}"))),
    }
    out
}

fn table(pairs: &[PairSpeed], over: &str) -> Vec<String> {
    let head = format!("{:>13} {:>12} {:>12}  hosts (a pair of ranks at a time, over {over})", "pair", "latency", "bandwidth");
    let rows = pairs.iter().map(|PairSpeed { ranks: [a, b], hosts: [on_a, on_b], latency_us, gigabytes_per_s }| {
        let between = if on_a == on_b { on_a.clone() } else { format!("{on_a}, {on_b}") };
        format!("{:>13} {latency_us:>9.1} µs {gigabytes_per_s:>7.2} GB/s  {between}", format!("{a}–{b}"))
    });
    let slow = slow(pairs).into_iter().map(|PairSpeed { ranks: [a, b], gigabytes_per_s, .. }| {
        format!("slow      pair {a}–{b}: {gigabytes_per_s:.2} GB/s over {over} is less than half of what like pairs have")
    });
    std::iter::once(head).chain(rows).chain(slow).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn host(name: &str, kernel: &str) -> Host {
        let versions = [("kernel", kernel), ("NCCL", "2.28.9")].map(|(subject, version)| (subject.to_owned(), version.to_owned()));
        Host { name: name.into(), versions: versions.into(), networks: BTreeSet::from(["TCP on eth0".into()]) }
    }

    fn pair(ranks: [usize; 2], hosts: [&str; 2], gigabytes_per_s: f64) -> PairSpeed {
        PairSpeed { ranks, hosts: hosts.map(str::to_owned), latency_us: 2.5, gigabytes_per_s }
    }

    #[test]
    fn two_hosts_that_differ_and_a_slow_pair() {
        let pairs = [([0, 1], 3.0), ([0, 2], 1.0), ([1, 2], 3.1)].map(|(ranks, speed)| pair(ranks, ["a", "a"], speed));
        let between = [pair([0, 3], ["a", "b"], 1.25)];
        let silent = Host { name: "c".into(), versions: Vec::new(), networks: BTreeSet::new() };
        let text = lines(&pairs, &Ok(between.to_vec()), &[host("a", "6.1"), host("b", "6.8"), silent]);
        let expected = "
         pair      latency    bandwidth  hosts (a pair of ranks at a time, over MPI)
          0–1       2.5 µs    3.00 GB/s  a
          0–2       2.5 µs    1.00 GB/s  a
          1–2       2.5 µs    3.10 GB/s  a
slow      pair 0–2: 1.00 GB/s over MPI is less than half of what like pairs have
         pair      latency    bandwidth  hosts (a pair of ranks at a time, over NCCL)
          0–3       2.5 µs    1.25 GB/s  a, b
host      a: kernel 6.1 · NCCL 2.28.9
network   a: TCP on eth0
host      b: kernel 6.8 · NCCL 2.28.9
network   b: TCP on eth0
host      c: its answer cannot be read
network   c: nothing to be seen
differs   c: its answer cannot be read
differs   kernel is 6.1 on a; 6.8 on b";
        assert_eq!(text.join("\n"), expected);
    }

    #[test]
    fn without_nccl_the_reason_is_said() {
        let text = lines(&[], &Err("ranks are on the CPU".into()), &[host("a", "6.1")]).join("\n");
        assert!(text.contains("pairs     none: this is one rank") && text.contains("NCCL      no pairs: ranks are on the CPU"), "{text}");
        assert!(text.ends_with("differs   one host: nothing to compare"), "{text}");
    }
}
