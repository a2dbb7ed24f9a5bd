//! What a host has that a job depends on: versions, network; and which host of a job is unlike the others.
//!
//! What is asked of the operating system is read here, what it means is decided by functions of text.

use super::comm::all_gather_varied;
use super::world::{World, host_name};
use crate::device;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::Ipv4Addr;

/// A host as some of a job's ranks see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// Subject and version, in one order on all hosts; none of a host whose answer cannot be read.
    pub versions: Vec<(String, String)>,
    /// What its ranks exchange messages through, as far as it can be seen.
    pub networks: BTreeSet<String>,
}

impl Host {
    /// This one, with the versions that only the caller knows. Networks are those in use at this moment.
    pub fn here(known: &[(&str, String)]) -> Self {
        let kernel = read("/proc/sys/kernel/osrelease").trim().to_owned();
        let driver = device::driver().unwrap_or_else(|| "none".into());
        let mut versions: Vec<(String, String)> = known.iter().map(|(subject, version)| ((*subject).to_owned(), version.clone())).collect();
        versions.extend([("kernel".into(), kernel), ("NVIDIA driver".into(), driver)]);
        Self { name: host_name(), versions, networks: networks() }
    }
}

/// The hosts of a job, each as its own ranks see it. A collective.
pub fn hosts(world: &World, here: &Host) -> Result<Vec<Host>> {
    let mine = serde_json::to_vec(here).map_err(|e| Error::refused(e.to_string()));
    let texts = all_gather_varied(world.comm(), &world.agree(mine)?)?;
    Ok(merged(texts.iter().zip(world.hosts()).map(|(text, name)| answer(text, name)).collect()))
}

/// What a rank of another ssdkd says may not be understood; its host is then there without versions.
fn answer(text: &[u8], name: &str) -> Host {
    serde_json::from_slice(text).unwrap_or_else(|_| Host { name: name.into(), versions: Vec::new(), networks: BTreeSet::new() })
}

/// Hosts with what all their ranks see; ranks of one host that see other versions make it appear twice.
fn merged(ranks: Vec<Host>) -> Vec<Host> {
    let mut hosts: Vec<Host> = Vec::new();
    for rank in ranks {
        match hosts.iter_mut().find(|host| host.name == rank.name && host.versions == rank.versions) {
            Some(host) => host.networks.extend(rank.networks),
            None => hosts.push(rank),
        }
    }
    hosts
}

/// A line for every host and subject whose version is not the one that most hosts have. Where no version is most hosts', a line for the
/// subject says who has which.
pub fn unlike(hosts: &[Host]) -> Vec<String> {
    let (readable, silent): (Vec<&Host>, Vec<&Host>) = hosts.iter().partition(|host| !host.versions.is_empty());
    let mut lines: Vec<String> = silent.iter().map(|host| format!("{}: its answer cannot be read", host.name)).collect();
    for (subject, _) in readable.first().map_or(&[][..], |host| &host.versions) {
        let mut having: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for host in &readable {
            let version = host.versions.iter().find(|(s, _)| s == subject).map_or("unknown", |(_, v)| v);
            having.entry(version).or_default().push(&host.name);
        }
        match having.iter().find(|(_, names)| 2 * names.len() > readable.len()) {
            Some((usual, _)) => {
                let odd = having.iter().filter(|(version, _)| *version != usual);
                let all = odd.flat_map(|(version, names)| names.iter().map(move |name| (name, version)));
                lines.extend(all.map(|(name, version)| format!("{name}: {subject} is {version}, {usual} on most hosts")));
            }
            None => {
                let all: Vec<String> = having.iter().map(|(version, names)| format!("{version} on {}", names.join(", "))).collect();
                lines.push(format!("{subject} is {}", all.join("; ")));
            }
        }
    }
    lines
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Variables that choose a network for MPI, its libraries, or NCCL.
const CHOOSING: [&str; 16] = [
    "OMPI_MCA_pml",
    "OMPI_MCA_btl",
    "OMPI_MCA_btl_tcp_if_include",
    "OMPI_MCA_btl_tcp_if_exclude",
    "OMPI_MCA_mtl",
    "UCX_TLS",
    "UCX_NET_DEVICES",
    "FI_PROVIDER",
    "FI_TCP_IFACE",
    "I_MPI_FABRICS",
    "I_MPI_OFI_PROVIDER",
    "MPICH_OFI_IFNAME",
    "MPIR_CVAR_CH4_NETMOD",
    "NCCL_SOCKET_IFNAME",
    "NCCL_IB_HCA",
    "NCCL_IB_DISABLE",
];

fn networks() -> BTreeSet<String> {
    let targets = fs::read_dir("/proc/self/fd").map(|all| all.flatten().filter_map(|fd| fs::read_link(fd.path()).ok()).collect::<Vec<_>>());
    let open: Vec<String> = targets.unwrap_or_default().iter().map(|path| path.to_string_lossy().into_owned()).collect();
    let sockets = open.iter().filter_map(|path| path.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()).collect();
    let mut all = transports(&read("/proc/self/maps"));
    all.extend(interfaces(&read("/proc/self/net/tcp"), &read("/proc/self/net/route"), &sockets).into_iter().map(|i| format!("TCP on {i}")));
    let device = |path: &String| ["/dev/infiniband/", "/dev/hfi1", "/dev/cxi"].iter().any(|d| path.starts_with(d));
    all.extend(open.iter().filter(|path| device(path)).cloned());
    all.extend(CHOOSING.iter().filter_map(|name| Some(format!("{name}={}", std::env::var(name).ok()?))));
    all
}

/// Transports of MPI that are loaded: components of Open MPI, where they are files of their own, and the libraries below any MPI.
fn transports(maps: &str) -> BTreeSet<String> {
    let libraries = [("libucp.so", "UCX"), ("libfabric.so", "libfabric"), ("libpsm2.so", "PSM2"), ("libnccl.so", "NCCL")];
    let files = maps.lines().filter_map(|line| line.rsplit('/').next());
    let named = |file: &str| {
        let component = file.strip_prefix("mca_").and_then(|name| name.split_once(".so")).and_then(|(name, _)| name.split_once('_'));
        match component {
            Some((kind @ ("pml" | "btl" | "mtl"), name)) => Some(format!("{kind} {name}")),
            _ => libraries.iter().find(|(library, _)| file.starts_with(library)).map(|(_, name)| (*name).to_owned()),
        }
    };
    files.filter_map(named).collect()
}

/// Interfaces that the connected ones of these sockets (IPv4) go through, from the kernel's tables: the most specific route to the
/// socket's own address.
fn interfaces(tcp: &str, routes: &str, sockets: &BTreeSet<u64>) -> BTreeSet<String> {
    const CONNECTED: &str = "01";
    // Both tables have addresses as numbers of the machine's byte order, in hexadecimal.
    let address = |text: &str| u32::from_str_radix(text, 16).ok().map(|raw| u32::from_be_bytes(raw.to_ne_bytes()));
    let routes: Vec<(String, u32, u32)> = routes
        .lines()
        .filter_map(|line| {
            let cells: Vec<&str> = line.split_whitespace().collect();
            Some(((*cells.first()?).to_owned(), address(cells.get(1)?)?, address(cells.get(7)?)?))
        })
        .collect();
    let interface = |ip: u32| {
        if Ipv4Addr::from(ip).is_loopback() {
            return Some("lo".to_owned());
        }
        let serving = routes.iter().filter(|(_, network, mask)| ip & mask == *network);
        serving.max_by_key(|(_, _, mask)| *mask).map(|(name, ..)| name.clone())
    };
    let rows = tcp.lines().filter_map(|line| {
        let cells: Vec<&str> = line.split_whitespace().collect();
        let is_ours = *cells.get(3)? == CONNECTED && sockets.contains(&cells.get(9)?.parse().ok()?);
        interface(address(cells.get(1)?.split(':').next()?)?).filter(|_| is_ours)
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str, kernel: &str, driver: &str) -> Host {
        let versions = vec![("kernel".into(), kernel.into()), ("NVIDIA driver".into(), driver.into())];
        Host { name: name.into(), versions, networks: BTreeSet::from([format!("TCP on {name}")]) }
    }

    #[test]
    fn the_odd_host_is_named_with_what_the_others_have() {
        let alike = [host("a", "6.1", "580.65"), host("b", "6.1", "580.65")];
        assert!(unlike(&alike).is_empty() && unlike(&[]).is_empty());
        let three = [host("a", "6.8", "580.65"), host("b", "6.1", "580.65"), host("c", "6.1", "570.12")];
        assert_eq!(unlike(&three), ["a: kernel is 6.8, 6.1 on most hosts", "c: NVIDIA driver is 570.12, 580.65 on most hosts"]);
        // As many with the one as with the other.
        assert_eq!(unlike(&[host("a", "6.8", "x"), host("b", "6.1", "x")]), ["kernel is 6.1 on b; 6.8 on a"]);
        let silent = answer(b"another ssdkd's", "d");
        assert_eq!(unlike(&[silent, host("a", "6.8", "x")]), ["d: its answer cannot be read"]);
    }

    #[test]
    fn ranks_of_a_host_are_one_unless_they_see_other_versions() {
        let mut second = host("a", "6.1", "x");
        second.networks = BTreeSet::from(["pml ob1".into()]);
        let hosts = merged(vec![host("a", "6.1", "x"), second, host("b", "6.1", "x"), host("a", "6.2", "x")]);
        assert_eq!(hosts.iter().map(|h| h.name.as_str()).collect::<Vec<_>>(), ["a", "b", "a"]);
        assert_eq!(hosts[0].networks.iter().map(String::as_str).collect::<Vec<_>>(), ["TCP on a", "pml ob1"]);
    }

    #[test]
    fn transports_are_those_that_are_loaded() {
        let maps = "7f /usr/lib/openmpi3/mca_pml_ob1.so\n7f /usr/lib/openmpi3/mca_btl_vader.so\n7f /usr/lib/openmpi3/mca_btl_vader.so\n\
                    7f /usr/lib/openmpi3/mca_coll_tuned.so\n7f /usr/lib/libucp.so.0.0.0\n7f /usr/lib/libc.so.6\n7f [heap]";
        assert_eq!(transports(maps).into_iter().collect::<Vec<_>>(), ["UCX", "btl vader", "pml ob1"]);
    }

    /// Tables of Linux on a little-endian machine: 192.0.2.5 over eth0, 10.1.0.7 over ib0, one on loopback, one that only listens, and
    /// one of another process.
    #[test]
    #[cfg(target_endian = "little")]
    fn a_socket_goes_through_the_interface_of_its_most_specific_route() {
        let routes = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                      eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                      eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
                      ib0\t0000010A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n";
        let row = |local: &str, state: &str, inode: u64| format!(" 0: {local}:D15B 0100007F:9428 {state} 0:0 0:0 0 0 0 {inode} 3 0\n");
        let tcp = |rows: &[String]| format!("  sl  local_address rem_address st …\n{}", rows.concat());
        let table = tcp(&[row("050200C0", "01", 1), row("0700010A", "01", 2), row("0100007F", "01", 3), row("0700010A", "0A", 4)]);
        let on = |sockets: &[u64]| interfaces(&table, routes, &sockets.iter().copied().collect()).into_iter().collect::<Vec<_>>();
        assert_eq!(on(&[1]), ["eth0"]);
        assert_eq!(on(&[2, 3]), ["ib0", "lo"]);
        assert_eq!(on(&[4, 5]), Vec::<String>::new());
    }
}
