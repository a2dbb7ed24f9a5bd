//! From masses to who supplies which row of a global batch. Pure: every rank computes the same.

use super::sum_tree::Mass;
use crate::error::{Error, Result};
use crate::rng::Key;
use std::ops::Range;

/// What every rank knows of all shards at a draw.
#[derive(Debug, Clone, PartialEq)]
pub struct Masses {
    /// Mass before each shard; one more entry for the total.
    prefix: Vec<u64>,
    /// Filled slots of all shards.
    filled: u64,
    /// Whether every mass is 0, so that filled slots count instead.
    uniform: bool,
}

impl Masses {
    /// From each shard's total mass and number of filled slots, in shard order.
    ///
    /// # Errors
    /// An empty buffer, or a total of 2³² or more.
    pub fn new(shards: &[(Mass, u64)]) -> Result<Self> {
        let filled = shards.iter().map(|s| s.1).sum();
        if filled == 0 {
            return Err(Error::refused("the replay buffer is empty: nothing can be drawn"));
        }
        let uniform = shards.iter().all(|s| s.0.0 == 0);
        let mut prefix = vec![0u64];
        let mut sum = 0u64;
        for (mass, slots) in shards {
            sum = sum.checked_add(if uniform { *slots } else { mass.0 }).ok_or_else(|| {
                Error::refused("the total of all priorities is 2³² or more").with_hint("lower replay.alpha or replay.capacity")
            })?;
            prefix.push(sum);
        }
        Ok(Self { prefix, filled, uniform })
    }

    /// Sum over all shards, in units.
    pub fn total(&self) -> u64 {
        self.prefix[self.prefix.len() - 1]
    }

    /// Filled slots of all shards, N of the importance weights.
    pub fn filled(&self) -> u64 {
        self.filled
    }

    /// Whether all masses are 0: every filled slot is then equally likely, and a target counts slots.
    pub fn uniform(&self) -> bool {
        self.uniform
    }

    /// Rows of a batch that shard `shard` supplies, among ascending `targets`.
    pub fn supplied(&self, targets: &[u64], shard: usize) -> Range<usize> {
        let at = |bound: u64| targets.partition_point(|&t| t < bound);
        at(self.prefix[shard])..at(self.prefix[shard + 1])
    }

    /// Where the masses of a shard begin.
    pub fn before(&self, shard: usize) -> u64 {
        self.prefix[shard]
    }

    /// N·P of a slot with this mass: 1 for every slot when all masses are equal.
    pub fn relative_probability(&self, mass: Mass) -> f64 {
        if self.uniform { 1.0 } else { mass.0 as f64 * self.filled as f64 / self.total() as f64 }
    }
}

/// Stratified targets u_k = ⌊(k·total + v_k)/B⌋, v_k uniform in 0..total, for k = 0..B: ascending, each below the total.
///
/// All in integers. The strata tile 0..total evenly, so a slot of mass m gets exactly B·m/total copies in expectation.
pub fn targets(total: u64, batch: usize, key: &Key) -> Vec<u64> {
    let b = batch as u64;
    let (whole, part) = (total / b, total % b);
    (0..b)
        .map(|k| {
            let v = key.below(k, total);
            // (k·total + v)/B without 128-bit division: k·total = B·k·whole + k·part.
            let rest = k * part;
            let (low, carry) = (rest % b, rest / b);
            k * whole + carry + v / b + (v % b + low) / b
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Purpose;
    use proptest::prelude::*;

    fn key(step: u64) -> Key {
        Key::global(9, Purpose::Draw, step)
    }

    proptest! {
        #[test]
        fn targets_are_the_formula_and_ascend(total in prop_oneof![1u64..100, 1u64..u64::MAX], batch in 1usize..600, step in 0u64..1000) {
            let got = targets(total, batch, &key(step));
            let want = |k: usize| {
                let v = key(step).below(k as u64, total);
                ((k as u128 * u128::from(total) + u128::from(v)) / batch as u128) as u64
            };
            for (k, &t) in got.iter().enumerate() {
                prop_assert_eq!(t, want(k));
                prop_assert!(t < total);
            }
            prop_assert!(got.is_sorted());
        }

        #[test]
        fn every_row_has_one_supplier(masses in prop::collection::vec(prop_oneof![Just(0u64), 1u64..1 << 50], 1..20), batch in 1usize..300) {
            let shards: Vec<(Mass, u64)> = masses.iter().map(|&m| (Mass(m), 3)).collect();
            let all = Masses::new(&shards).unwrap();
            let targets = targets(all.total(), batch, &key(1));
            let rows: Vec<usize> = (0..shards.len()).flat_map(|s| all.supplied(&targets, s)).collect();
            prop_assert_eq!(rows, (0..batch).collect::<Vec<_>>());
        }
    }

    #[test]
    fn an_empty_buffer_is_refused_and_zero_masses_draw_uniformly() {
        assert!(Masses::new(&[(Mass(0), 0), (Mass(0), 0)]).unwrap_err().to_string().contains("empty"));
        let all = Masses::new(&[(Mass(0), 2), (Mass(0), 0), (Mass(0), 3)]).unwrap();
        assert!(all.uniform() && all.total() == 5);
        assert_eq!(all.supplied(&[0, 1, 2, 3, 4], 1), 2..2, "an empty shard supplies nothing");
    }
}
