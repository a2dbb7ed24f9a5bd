//! `ssdkd doctor --comm`: pairs of ranks, networks, versions, and which host is unlike the others.

use super::first_line;
use crate::error::{Error, Result};
use crate::metrics::version;
use crate::nn::shim;
use crate::parallel::comm::all_gather_varied;
use crate::parallel::{Host, MpiComm, PairSpeed, World, merged, pair_speeds, slow, unlike};

/// The lines to print. A collective.
pub fn look(world: &World) -> Result<Vec<String>> {
    let pairs = pair_speeds(world)?;
    // After the measurement: connections are made when they are first used.
    let here = Host::here(&[
        ("ssdkd", version()),
        ("MPI", first_line(&MpiComm::library_version())),
        ("libtorch", shim::torch_version()),
        ("kernels", shim::cpu_capability()),
    ]);
    let mine = serde_json::to_vec(&here).map_err(|e| Error::refused(e.to_string()));
    let texts = all_gather_varied(world.comm(), &world.agree(mine)?)?;
    let ranks = texts.iter().filter_map(|text| serde_json::from_slice(text).ok()).collect();
    Ok(lines(&pairs, &merged(ranks)))
}

fn lines(pairs: &[PairSpeed], hosts: &[Host]) -> Vec<String> {
    let mut out = vec![String::new()];
    if pairs.is_empty() {
        out.push("pairs     none: this is one rank; start it as `launch/mpirun.sh N ssdkd doctor --comm`".into());
    } else {
        out.push(format!("{:>13} {:>12} {:>12}  hosts (a pair of ranks at a time, over MPI)", "pair", "latency", "bandwidth"));
    }
    for PairSpeed { ranks: [a, b], hosts: [on_a, on_b], latency_us, gigabytes_per_s } in pairs {
        let between = if on_a == on_b { on_a.clone() } else { format!("{on_a}, {on_b}") };
        out.push(format!("{:>13} {latency_us:>9.1} µs {gigabytes_per_s:>7.2} GB/s  {between}", format!("{a}–{b}")));
    }
    for PairSpeed { ranks: [a, b], gigabytes_per_s, .. } in slow(pairs) {
        out.push(format!("slow      pair {a}–{b}: {gigabytes_per_s:.2} GB/s is less than half of what like pairs have"));
    }
    out.push("NCCL      no pairs: it is not there, ranks exchange over MPI".into());
    for host in hosts {
        let versions: Vec<String> = host.versions.iter().map(|(subject, version)| format!("{subject} {version}")).collect();
        let networks: Vec<&str> = host.networks.iter().map(String::as_str).collect();
        out.push(format!("host      {}: {}", host.name, versions.join(" · ")));
        out.push(format!(
            "network   {}: {}",
            host.name,
            if networks.is_empty() { "nothing to be seen".into() } else { networks.join(" · ") }
        ));
    }
    let odd = unlike(hosts);
    match (odd.is_empty(), hosts.len()) {
        (true, 1) => out.push("differs   one host: nothing to compare".into()),
        (true, n) => out.push(format!("differs   nothing: {n} hosts are alike")),
        _ => out.extend(odd.iter().map(|text| format!("differs   {text}"))),
    }
    out
}
