//! What pairs of ranks can do: latency and bandwidth of a swap, a pair at a time, so that none disturbs another.

use super::comm::{Communicator, all_gather_varied};
use super::world::World;
use crate::error::{Error, Result};
use crate::layout::Rank;
use serde::{Deserialize, Serialize};
use std::time::Instant;
use tch::{Device, Kind, Tensor};

/// A pair's speed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PairSpeed {
    /// The two ranks.
    pub ranks: [usize; 2],
    /// Their hosts.
    pub hosts: [String; 2],
    /// Median time of a swap of 8 bytes, in microseconds.
    pub latency_us: f64,
    /// GB/s each way, both ways at once: median over swaps of 4 MiB.
    pub gigabytes_per_s: f64,
}

impl PairSpeed {
    fn is_local(&self) -> bool {
        self.hosts[0] == self.hosts[1]
    }
}

/// Launches up to this size measure all pairs.
const ALL_PAIRS: usize = 32;

/// The pairs to measure: all in a small launch. In a larger one the first two ranks of every host, and the first ranks of all pairs of
/// hosts; with more hosts than [`ALL_PAIRS`], of each and the next.
fn pairs(hosts: &[String]) -> Vec<[usize; 2]> {
    let all = |ranks: &[usize]| {
        let pairs = ranks.iter().enumerate().flat_map(|(i, &a)| ranks[i + 1..].iter().map(move |&b| [a, b]));
        pairs.collect::<Vec<_>>()
    };
    if hosts.len() <= ALL_PAIRS {
        return all(&(0..hosts.len()).collect::<Vec<_>>());
    }
    let place = |rank: usize| hosts[..rank].iter().filter(|host| **host == hosts[rank]).count();
    let firsts: Vec<usize> = (0..hosts.len()).filter(|&rank| place(rank) == 0).collect();
    let second = |first: usize| (first + 1..hosts.len()).find(|&rank| hosts[rank] == hosts[first]);
    let mut pairs: Vec<[usize; 2]> = firsts.iter().filter_map(|&first| Some([first, second(first)?])).collect();
    pairs.extend(if firsts.len() <= ALL_PAIRS { all(&firsts) } else { firsts.windows(2).map(|two| [two[0], two[1]]).collect() });
    pairs
}

/// Measures pairs of the ranks of the job with tensors on a device; every swap is checked. A collective.
///
/// # Errors
/// A rank received other bytes than its partner sent.
pub fn pair_speeds(world: &World, device: Device) -> Result<Vec<PairSpeed>> {
    let (comm, me) = (world.comm(), world.rank().0);
    let (mut mine, mut wrong) = (Vec::new(), None);
    for pair in pairs(world.hosts()) {
        let partner = pair.contains(&me).then(|| pair[usize::from(pair[0] == me)]);
        world.barrier()?;
        let (small, small_is_right) = swap(comm, partner, device, 8, 100)?;
        let (large, large_is_right) = swap(comm, partner, device, 4 << 20, 5)?;
        if let (Some(partner), false) = (partner, small_is_right && large_is_right) {
            wrong.get_or_insert(partner);
        }
        if me == pair[0] {
            let hosts = pair.map(|rank| world.hosts()[rank].clone());
            let gigabytes_per_s = f64::from(4 << 20) / large.max(1e-9) / 1e9;
            mine.push(PairSpeed { ranks: pair, hosts, latency_us: small * 1e6, gigabytes_per_s });
        }
    }
    let problem = |partner| Error::Comm { operation: "swap", problem: format!("rank {me} got other bytes than rank {partner} sent") };
    world.agree(wrong.map_or(Ok(()), |partner| Err(problem(partner))))?;
    let texts = all_gather_varied(comm, &serde_json::to_vec(&mine).unwrap_or_default())?;
    let mut all: Vec<PairSpeed> =
        texts.iter().flat_map(|text| serde_json::from_slice::<Vec<PairSpeed>>(text).unwrap_or_default()).collect();
    all.sort_by_key(|pair| pair.ranks);
    Ok(all)
}

/// Median seconds of a swap of so many bytes with the partner, after one that is not counted, and whether the partner's bytes came.
/// Ranks without a partner have nothing to wait for. A collective.
fn swap(comm: &dyn Communicator, partner: Option<usize>, device: Device, bytes: i64, times: usize) -> Result<(f64, bool)> {
    let filled = |rank: usize| Tensor::full([bytes], (rank % 251) as i64 + 1, (Kind::Uint8, device));
    let (send, receive) = (filled(comm.rank().0), Tensor::zeros([bytes], (Kind::Uint8, device)));
    let mut seconds = Vec::with_capacity(times);
    for turn in 0..=times {
        let began = Instant::now();
        comm.exchange(partner.map(Rank), &send, &receive)?;
        if turn > 0 {
            seconds.push(began.elapsed().as_secs_f64());
        }
    }
    seconds.sort_by(f64::total_cmp);
    Ok((seconds[times / 2], partner.is_none_or(|partner| receive.equal(&filled(partner)))))
}

/// Pairs with less than half the bandwidth that the middle one of their kind has, among three or more: within a host, or between hosts.
pub fn slow(all: &[PairSpeed]) -> Vec<&PairSpeed> {
    let of_kind = |local: bool| all.iter().filter(move |pair| pair.is_local() == local);
    let slow_of = |local: bool| {
        let mut speeds: Vec<f64> = of_kind(local).map(|pair| pair.gigabytes_per_s).collect();
        speeds.sort_by(f64::total_cmp);
        let middle = if speeds.len() < 3 { 0.0 } else { speeds[speeds.len() / 2] };
        of_kind(local).filter(move |pair| pair.gigabytes_per_s < middle / 2.0)
    };
    slow_of(true).chain(slow_of(false)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parallel::test_ranks::on_each_rank;

    fn hosts(counts: &[usize]) -> Vec<String> {
        counts.iter().enumerate().flat_map(|(i, &n)| std::iter::repeat_n(format!("n{i}"), n)).collect()
    }

    #[test]
    fn every_rank_has_the_same_speeds_of_all_pairs() {
        assert!(on_each_rank(1, 1, |world| pair_speeds(world, Device::Cpu).unwrap())[0].is_empty());
        let all = on_each_rank(3, 3, |world| pair_speeds(world, Device::Cpu).unwrap());
        assert!(all[1] == all[0] && all[2] == all[0]);
        assert_eq!(all[0].iter().map(|pair| pair.ranks).collect::<Vec<_>>(), [[0, 1], [0, 2], [1, 2]]);
        assert!(all[0].iter().all(|pair| pair.latency_us > 0.0 && pair.gigabytes_per_s > 0.0 && pair.is_local()));
    }

    #[test]
    fn large_launches_measure_hosts_and_not_every_pair() {
        assert_eq!(pairs(&hosts(&[2, 1])), [[0, 1], [0, 2], [1, 2]]);
        assert_eq!(pairs(&hosts(&[20, 20, 1])), [[0, 1], [20, 21], [0, 20], [0, 40], [20, 40]]);
        let many = pairs(&hosts(&[1; 40]));
        assert_eq!((many.len(), many[0], many[38]), (39, [0, 1], [38, 39]));
    }

    #[test]
    fn a_pair_is_slow_beside_pairs_of_its_kind() {
        let pair = |a: usize, b: usize, hosts: [&str; 2], speed: f64| PairSpeed {
            ranks: [a, b],
            hosts: hosts.map(str::to_owned),
            latency_us: 1.0,
            gigabytes_per_s: speed,
        };
        let local = pair(0, 1, ["a", "a"], 9.0);
        let between = |speed| vec![local.clone(), pair(0, 2, ["a", "b"], 1.0), pair(0, 3, ["a", "c"], 1.1), pair(2, 3, ["b", "c"], speed)];
        assert!(slow(&between(0.6)).is_empty());
        assert_eq!(slow(&between(0.4)).iter().map(|p| p.ranks).collect::<Vec<_>>(), [[2, 3]]);
        assert!(slow(&between(0.4)[..2]).is_empty());
    }
}
