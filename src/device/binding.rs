//! Which rank computes on which GPU: a function of what every rank sees, the same on all of them.

use crate::config::DeviceName;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What one rank sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sight {
    /// Its host.
    pub host: String,
    /// Its place there, by the launcher's word.
    pub local_rank: Option<usize>,
    /// GPUs it may use, in CUDA's order, by names that no two GPUs share; or why there is none. CUDA_VISIBLE_DEVICES, which Slurm
    /// sets too, has left out the others already.
    pub gpus: std::result::Result<Vec<String>, String>,
}

/// Where a rank computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seat {
    /// On the CPU.
    Cpu,
    /// On a GPU, by its number among those the rank sees.
    Gpu {
        /// For CUDA.
        index: usize,
        /// Ranks that compute there, this one among them.
        ranks: usize,
    },
}

/// Variables in which launchers tell a rank its place on its host: Open MPI, MPICH and Intel MPI (Hydra), MVAPICH, HPE Cray's PALS and
/// other PMIs, Slurm. Slurm's is last, since an mpirun inside a Slurm job leaves Slurm's variable at that of its own daemon.
const LOCAL_RANKS: [&str; 6] =
    ["OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "MV2_COMM_WORLD_LOCAL_RANK", "PALS_LOCAL_RANKID", "PMI_LOCAL_RANK", "SLURM_LOCALID"];

/// A rank's place on its host, as its launcher has it.
pub fn launched_local_rank(variable: impl Fn(&str) -> Option<String>) -> Option<usize> {
    LOCAL_RANKS.iter().find_map(|name| variable(name)?.parse().ok())
}

/// The seat of every rank.
///
/// Ranks choose in the order of their hosts and local ranks, each the first GPU it sees that nobody has taken. So with all GPUs of a
/// host visible a rank takes the one of its local rank, and with one visible (Slurm's `--gpus-per-task=1`) that one.
/// `share` lets ranks beyond that take the GPU with the fewest ranks on it.
///
/// # Errors
/// CUDA asked for where a rank has no GPU, saying why; a GPU seen by some ranks only; more ranks than GPUs without `share`.
pub fn seats(wanted: DeviceName, share: bool, sights: &[Sight]) -> Result<Vec<Seat>> {
    let nobody_sees = sights.iter().all(|sight| sight.gpus.is_err());
    if wanted == DeviceName::Cpu || (wanted == DeviceName::Auto && nobody_sees) {
        return Ok(vec![Seat::Cpu; sights.len()]);
    }
    let says = if wanted == DeviceName::Auto { "auto finds GPUs" } else { "cuda is asked for" };
    let refused = |problem: String| Err(Error::config("device", format!("{says}, but {problem} or see `ssdkd doctor`")));
    if let Some((rank, sight, reason)) = sights.iter().enumerate().find_map(|(rank, s)| Some((rank, s, s.gpus.as_ref().err()?))) {
        let who = if nobody_sees { String::new() } else { format!("rank {rank} on {} has none: ", sight.host) };
        return refused(format!("{who}{reason}; set device = \"cpu\""));
    }
    let first_of_host = |host: &str| sights.iter().position(|s| s.host == host);
    let mut order: Vec<usize> = (0..sights.len()).collect();
    order.sort_by_key(|&rank| (first_of_host(&sights[rank].host), sights[rank].local_rank.unwrap_or(rank), rank));

    let mut taken: BTreeMap<&str, usize> = BTreeMap::new();
    let mut chosen = vec![0; sights.len()];
    for rank in order {
        let sight = &sights[rank];
        let gpus = sight.gpus.as_deref().unwrap_or_default();
        let users = |name: &String| taken.get(name.as_str()).copied().unwrap_or(0);
        // The first of those with the fewest.
        let Some(index) = (0..gpus.len()).min_by_key(|&i| users(&gpus[i])) else {
            return refused(format!("rank {rank} on {} sees none; set device = \"cpu\"", sight.host));
        };
        if users(&gpus[index]) > 0 && !share {
            let ranks = sights.iter().filter(|s| s.host == sight.host).count();
            let of_host = sights.iter().filter(|s| s.host == sight.host).flat_map(|s| s.gpus.as_deref().unwrap_or_default());
            let count = of_host.collect::<std::collections::BTreeSet<_>>().len();
            return refused(format!(
                "{ranks} ranks on {} are more than its {count} visible GPUs; start one rank a GPU, set parallel.share_gpu = true for a trial, \
                 set device = \"cpu\"",
                sight.host
            ));
        }
        *taken.entry(gpus[index].as_str()).or_default() += 1;
        chosen[rank] = index;
    }
    let ranks = |sight: &Sight, index: usize| sight.gpus.as_ref().map_or(1, |gpus| taken[gpus[index].as_str()]);
    Ok(sights.iter().zip(chosen).map(|(sight, index)| Seat::Gpu { index, ranks: ranks(sight, index) }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A rank on host `h`, with the GPUs it sees.
    fn sees(host: &str, local_rank: Option<usize>, gpus: &[&str]) -> Sight {
        Sight { host: host.into(), local_rank, gpus: Ok(gpus.iter().map(|&g| g.into()).collect()) }
    }

    fn blind(host: &str, why: &str) -> Sight {
        Sight { host: host.into(), local_rank: None, gpus: Err(why.into()) }
    }

    fn gpus(indices: &[usize]) -> Vec<Seat> {
        indices.iter().map(|&index| Seat::Gpu { index, ranks: 1 }).collect()
    }

    #[test]
    fn each_rank_has_a_gpu_of_its_own() {
        let all = ["a", "b", "c", "d"];
        let table: [(&str, Vec<Sight>, &[usize]); 7] = [
            ("one rank", vec![sees("h", None, &all)], &[0]),
            ("all GPUs visible", (0..4).map(|_| sees("h", None, &all)).collect(), &[0, 1, 2, 3]),
            ("the launcher numbers the other way", (0..4).map(|r| sees("h", Some(3 - r), &all)).collect(), &[3, 2, 1, 0]),
            ("--gpus-per-task=1: each rank sees its own", all.iter().map(|g| sees("h", None, &[g])).collect(), &[0, 0, 0, 0]),
            ("--gpus-per-task=2", vec![sees("h", None, &["a", "b"]), sees("h", None, &["c", "d"])], &[0, 0]),
            ("CUDA_VISIBLE_DEVICES=2,3", vec![sees("h", None, &["c", "d"]), sees("h", None, &["c", "d"])], &[0, 1]),
            (
                "two hosts, ranks dealt in turn",
                vec![
                    sees("h", Some(0), &["a", "b"]),
                    sees("i", Some(0), &["x", "y"]),
                    sees("h", Some(1), &["a", "b"]),
                    sees("i", Some(1), &["x", "y"]),
                ],
                &[0, 0, 1, 1],
            ),
        ];
        for (what, sights, want) in table {
            for wanted in [DeviceName::Auto, DeviceName::Cuda] {
                assert_eq!(seats(wanted, false, &sights).unwrap(), gpus(want), "{what}");
            }
            assert_eq!(seats(DeviceName::Cpu, false, &sights).unwrap(), vec![Seat::Cpu; sights.len()]);
        }
    }

    #[test]
    fn ranks_share_only_when_told_to_and_evenly() {
        let sights: Vec<Sight> = (0..5).map(|_| sees("h", None, &["a", "b"])).collect();
        let taken = |sights: &[Sight]| {
            let seats = seats(DeviceName::Cuda, true, sights).unwrap().into_iter();
            seats.map(|seat| if let Seat::Gpu { index, ranks } = seat { (index, ranks) } else { panic!("{seat:?}") }).collect::<Vec<_>>()
        };
        assert_eq!(taken(&sights), [(0, 3), (1, 2), (0, 3), (1, 2), (0, 3)]);
        assert_eq!(taken(&sights[..3]), [(0, 2), (1, 1), (0, 2)]);
    }

    #[test]
    fn what_cannot_work_is_refused_with_the_reason() {
        let three: Vec<Sight> = (0..3).map(|_| sees("h", None, &["a", "b"])).collect();
        let same = vec![sees("h", None, &["a"]), sees("h", None, &["a"])];
        for (wanted, sights, want) in [
            (DeviceName::Cuda, three.clone(), "device: cuda is asked for, but 3 ranks on h are more than its 2 visible GPUs"),
            (DeviceName::Auto, three, "device: auto finds GPUs, but 3 ranks on h are more than its 2 visible GPUs"),
            (DeviceName::Cuda, same, "device: cuda is asked for, but 2 ranks on h are more than its 1 visible GPUs"),
            (DeviceName::Cuda, vec![blind("h", "no driver")], "device: cuda is asked for, but no driver; set device = \"cpu\""),
            (DeviceName::Cuda, vec![sees("h", None, &[])], "device: cuda is asked for, but rank 0 on h sees none"),
            (
                DeviceName::Auto,
                vec![sees("h", None, &["a"]), blind("i", "no driver")],
                "device: auto finds GPUs, but rank 1 on i has none: no driver",
            ),
        ] {
            let error = seats(wanted, false, &sights).unwrap_err();
            assert!(error.to_string().starts_with(want), "{error}");
            assert_eq!(error.exit_code(), 2);
        }
    }

    #[test]
    fn auto_is_the_cpu_where_nobody_sees_a_gpu() {
        let sights = [blind("h", "no driver"), blind("h", "no driver")];
        assert_eq!(seats(DeviceName::Auto, false, &sights).unwrap(), [Seat::Cpu; 2]);
    }

    #[test]
    fn local_ranks_are_the_launchers() {
        let local = |variables: &[(&str, &str)]| {
            launched_local_rank(|name| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned()))
        };
        for name in ["OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "MV2_COMM_WORLD_LOCAL_RANK", "PALS_LOCAL_RANKID", "PMI_LOCAL_RANK"] {
            assert_eq!(local(&[("SLURM_LOCALID", "0"), (name, "3")]), Some(3));
        }
        assert_eq!(local(&[("SLURM_LOCALID", "2")]), Some(2));
        assert_eq!(local(&[("SLURM_LOCALID", "two")]), None);
        assert_eq!(local(&[]), None);
    }
}
