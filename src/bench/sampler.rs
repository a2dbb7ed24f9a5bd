//! Cycles of the sampler alone: sample(256) and update(256), indices only, one thread, beside what others do in the same time.

use super::{Peers, median};
use crate::error::{Error, Result};
use crate::layout::LogicalRank;
use crate::replay::{Found, Masses, Priorities, fill_targets};
use crate::rng::{Key, Purpose};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// Sizes N that are measured unless others are asked for.
pub const SIZES: [usize; 4] = [5_000, 50_000, 1_000_000, 10_000_000];

const BATCH: usize = 256;
const EPSILON: f64 = 1e-6;
const ALPHA: f64 = 0.6;
const BETA: f64 = 0.4;
/// Turns that every contender gets at a size, and the seconds of each. A result is the median turn.
const TURNS: usize = 9;
const TURN_SECONDS: f64 = 0.2;

/// Runs inside the Python that `--against` names.
const PEERS: &str = include_str!("../../tests/benches/replay_peers.py");

/// Cycles per second of other samplers, by name; absent where not measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Speeds {
    /// torchrl's `PrioritizedSampler`.
    pub torchrl_sampler: Option<f64>,
    /// cpprb's `PrioritizedReplayBuffer`.
    pub cpprb: Option<f64>,
}

/// Speeds at one size.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measured {
    /// Samples in the buffer.
    pub n: usize,
    /// Ours. Seconds are CPU time of the one thread, here and for the peers: what others do on the machine counts little.
    pub cycles_per_second: f64,
    /// Others', in the same minutes.
    pub peers: Speeds,
}

/// One buffer and all that a cycle needs: nothing is allocated once it runs.
struct Sampler {
    priorities: Priorities,
    filled: u64,
    targets: Vec<u64>,
    found: Found,
    losses: Vec<f64>,
    deltas: Vec<f64>,
    step: u64,
}

impl Sampler {
    fn new(n: usize) -> Result<Self> {
        let key = Key::of(1, Purpose::Draw, 0, LogicalRank(0));
        let mut priorities = Priorities::new(n, EPSILON, ALPHA);
        let slots: Vec<usize> = (0..n).collect();
        let deltas: Vec<f64> = (0..n as u64).map(|i| key.uniform(i)).collect();
        priorities.set(&slots, &deltas, |i| i as u64)?;
        Ok(Self {
            priorities,
            filled: n as u64,
            targets: vec![0; BATCH],
            found: Found::default(),
            losses: (0..BATCH as u64).map(|i| key.uniform(i)).collect(),
            deltas: vec![0.0; BATCH],
            step: 0,
        })
    }

    /// Draws a batch with P and w, and sets δ = w·KL of its slots.
    fn cycle(&mut self) -> Result<()> {
        let masses = Masses::new(&[(self.priorities.total(), self.filled)])?;
        fill_targets(masses.total(), &Key::global(1, Purpose::Draw, self.step), &mut self.targets);
        self.priorities.look_up(&masses, 0, &self.targets, BETA, &mut self.found);
        for ((delta, weight), loss) in self.deltas.iter_mut().zip(&self.found.weights).zip(&self.losses) {
            *delta = weight * loss;
        }
        self.step += 1;
        let slots = &self.found.slots;
        self.priorities.set(slots, &self.deltas, |i| slots[i] as u64)
    }

    /// Cycles per second over one turn.
    fn turn(&mut self) -> Result<f64> {
        let (began, mut cycles) = (thread_seconds(), 0u32);
        loop {
            for _ in 0..20 {
                self.cycle()?;
            }
            cycles += 20;
            let seconds = thread_seconds() - began;
            if seconds >= TURN_SECONDS {
                return Ok(f64::from(cycles) / seconds);
            }
        }
    }
}

/// Seconds of CPU time this thread has had.
fn thread_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// Starts other samplers in `python`; tells what is missing in lines for the reader.
pub fn sampler_peers(python: &Path) -> (Option<Peers>, Vec<String>) {
    let numbers = [BATCH.to_string(), ALPHA.to_string(), BETA.to_string(), EPSILON.to_string(), TURN_SECONDS.to_string()];
    Peers::start(python, PEERS, &numbers, 1)
}

/// Speeds at these sizes, each contender's turns between those of the others.
pub fn sampler(sizes: &[usize], mut peers: Option<&mut Peers>) -> Result<Vec<Measured>> {
    sizes.iter().map(|&n| at_size(n, peers.as_deref_mut())).collect()
}

fn at_size(n: usize, mut peers: Option<&mut Peers>) -> Result<Measured> {
    if n == 0 {
        return Err(Error::refused("a buffer of 0 samples cannot be measured").with_hint("give --n a size of 1 or more"));
    }
    if let Some(peers) = &mut peers {
        peers.tell(&format!("size {n}"));
    }
    let mut ours = Sampler::new(n)?;
    let mut turns = Vec::new();
    let mut others: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    ours.turn()?;
    for _ in 0..TURNS {
        turns.push(ours.turn()?);
        for (name, speed) in peers.iter_mut().flat_map(|peers| peers.turns()) {
            others.entry(name).or_default().push(speed);
        }
    }
    let mut speed_of = |name: &str| others.remove(name).map(median);
    let peers = Speeds { torchrl_sampler: speed_of("torchrl_sampler"), cpprb: speed_of("cpprb") };
    Ok(Measured { n, cycles_per_second: median(turns), peers })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::Mass;

    /// What is timed is a sampler: draws follow the masses, and updates arrive.
    #[test]
    fn a_cycle_draws_and_updates() {
        let mut sampler = Sampler::new(1_000).unwrap();
        let before: Vec<Mass> = (0..1_000).map(|slot| sampler.priorities.mass(slot)).collect();
        sampler.cycle().unwrap();
        let found = &sampler.found;
        assert_eq!((found.slots.len(), found.slots.is_sorted()), (BATCH, true));
        let last_of = |slot: usize| found.slots.iter().rposition(|&s| s == slot).unwrap();
        for (i, &slot) in found.slots.iter().enumerate() {
            assert_eq!(found.masses[i], before[slot]);
            let priority = crate::losses::priority(found.weights[last_of(slot)] * sampler.losses[last_of(slot)], EPSILON, ALPHA);
            assert_eq!(sampler.priorities.mass(slot), Mass::of_priority(priority, 0).unwrap());
        }
    }
}
