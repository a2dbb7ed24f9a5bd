//! What a host has that a job depends on: versions, network, driver; and which host of a job is unlike the others.
//!
//! What is asked of the operating system is read here, what it means is decided by functions of text.

use super::world::host_name;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::Ipv4Addr;

/// A host as some of a job's ranks see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// Subject and version, in one order on all hosts.
    pub versions: Vec<(String, String)>,
    /// What its ranks exchange messages through, as far as it can be seen.
    pub networks: BTreeSet<String>,
}

impl Host {
    /// This one, with the versions that only the caller knows. Networks are those in use at this moment.
    pub fn here(known: &[(&str, String)]) -> Self {
        let kernel = read("/proc/sys/kernel/osrelease").trim().to_owned();
        let driver = driver().unwrap_or_else(|| "none".into());
        let mut versions: Vec<(String, String)> = known.iter().map(|(subject, version)| ((*subject).to_owned(), version.clone())).collect();
        versions.extend([("kernel".into(), kernel), ("NVIDIA driver".into(), driver)]);
        Self { name: host_name(), versions, networks: networks() }
    }
}

/// Hosts with what all their ranks see; ranks of one host that see other versions make it appear twice.
pub fn merged(ranks: Vec<Host>) -> Vec<Host> {
    let mut hosts: Vec<Host> = Vec::new();
    for rank in ranks {
        match hosts.iter_mut().find(|host| host.name == rank.name && host.versions == rank.versions) {
            Some(host) => host.networks.extend(rank.networks),
            None => hosts.push(rank),
        }
    }
    hosts
}

/// A line for every host and subject whose version is not the one that most hosts have (of equally many: the first host's).
pub fn unlike(hosts: &[Host]) -> Vec<String> {
    let mut lines = Vec::new();
    let Some(first) = hosts.first() else { return lines };
    for (subject, firsts) in &first.versions {
        let version = |host: &Host| host.versions.iter().find(|(s, _)| s == subject).map_or_else(String::new, |(_, v)| v.clone());
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        hosts.iter().for_each(|host| *counts.entry(version(host)).or_default() += 1);
        let most = counts.values().max().copied().unwrap_or(0);
        let usual = if counts[firsts] == most { firsts } else { counts.iter().find(|(_, n)| **n == most).map_or(firsts, |(v, _)| v) };
        let odd = hosts.iter().filter(|host| version(host) != *usual);
        lines.extend(odd.map(|host| format!("{}: {subject} is {}, {usual} on most hosts", host.name, version(host))));
    }
    lines
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Version of this host's NVIDIA driver, where there is one.
pub fn driver() -> Option<String> {
    driver_of(&read("/proc/driver/nvidia/version"))
}

fn driver_of(text: &str) -> Option<String> {
    let is_version =
        |word: &&str| word.contains('.') && word.split('.').all(|part| !part.is_empty() && part.chars().all(|c| c.is_ascii_digit()));
    text.lines().find(|line| line.starts_with("NVRM"))?.split_whitespace().find(is_version).map(str::to_owned)
}

/// CUDA's major version that the libtorch of this process was built for; none for a libtorch without CUDA. Its CPU side, too, is
/// linked against the CUDA runtime of its flavour.
pub fn cuda_flavour() -> Option<u32> {
    cuda_of(&read("/proc/self/maps"))
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
        // As many with the one as with the other: the first host's counts.
        assert_eq!(unlike(&[host("a", "6.8", "x"), host("b", "6.1", "x")]), ["b: kernel is 6.1, 6.8 on most hosts"]);
    }

    #[test]
    fn ranks_of_a_host_are_one_unless_they_see_other_versions() {
        let mut second = host("a", "6.1", "x");
        second.networks = BTreeSet::from(["pml ob1".into()]);
        let hosts = merged(vec![host("a", "6.1", "x"), second, host("b", "6.1", "x"), host("a", "6.2", "x")]);
        assert_eq!(hosts.iter().map(|h| h.name.as_str()).collect::<Vec<_>>(), ["a", "b", "a"]);
        assert_eq!(hosts[0].networks.iter().map(String::as_str).collect::<Vec<_>>(), ["TCP on a", "pml ob1"]);
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
