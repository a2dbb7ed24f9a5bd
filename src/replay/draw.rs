//! From masses to who supplies which row of a global batch. Pure: every rank computes the same.

use super::sum_tree::{Mass, too_large};
use crate::error::{Error, Result};
use crate::losses::importance_weights;
use crate::rng::Key;
use crate::vector::vectorised;
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
            sum = sum.checked_add(if uniform { *slots } else { mass.0 }).ok_or_else(too_large)?;
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

    /// P and w = (N·P)^−β of drawn slots (SSD-KD Eq. 6 and 7), from their masses.
    pub fn weigh(&self, masses: &[Mass], beta: f64, probabilities: &mut [f64], weights: &mut [f64]) {
        if self.uniform {
            probabilities.fill(1.0 / self.filled as f64);
            weights.fill(1.0);
            return;
        }
        shares(masses, self.filled as f64, self.total() as f64, probabilities, weights);
        importance_weights(weights, beta);
    }

    /// N·P of a slot with this mass: 1 for every slot when all masses are equal.
    pub fn relative_probability(&self, mass: Mass) -> f64 {
        if self.uniform { 1.0 } else { mass.0 as f64 * self.filled as f64 / self.total() as f64 }
    }
}

vectorised! {
    /// P and N·P of slots with these masses.
    fn shares(masses: &[Mass], filled: f64, total: f64, probabilities: &mut [f64], relative: &mut [f64]) {
        for ((mass, probability), relative) in masses.iter().zip(probabilities).zip(relative) {
            *probability = mass.0 as f64 / total;
            *relative = mass.0 as f64 * filled / total;
        }
    }
}

/// Stratified targets u_k = ⌊(k·total + v_k)/B⌋, v_k uniform in 0..total, for k = 0..B: ascending, each below the total.
///
/// All in integers. The strata tile 0..total evenly, so a slot of mass m gets exactly B·m/total copies in expectation.
pub fn targets(total: u64, batch: usize, key: &Key) -> Vec<u64> {
    let mut targets = vec![0; batch];
    fill_targets(total, key, &mut targets);
    targets
}

/// [`targets`] of a batch as large as `targets`, into memory that is there.
pub fn fill_targets(total: u64, key: &Key, targets: &mut [u64]) {
    if targets.is_empty() {
        return;
    }
    key.fill_bits(targets);
    let b = targets.len() as u64;
    let high = |x: u64, y: u64| ((u128::from(x) * u128::from(y)) >> 64) as u64;
    // k·total/B is `start` and `left`/B over, kept up without dividing; ⌊v·inverse/2⁶⁴⌋ is ⌊v/B⌋ or one less.
    let (whole, part, inverse) = (total / b, total % b, u64::MAX / b);
    let (mut start, mut left) = (0, 0);
    for target in targets {
        let v = high(*target, total);
        let quotient = high(v, inverse);
        let over = left + (v - quotient * b);
        *target = start + quotient + u64::from(over >= b) + u64::from(over >= 2 * b);
        let carry = u64::from(left + part >= b);
        start += whole + carry;
        left = left + part - carry * b;
    }
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
