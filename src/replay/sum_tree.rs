//! Fixed-point masses and the tree of their sums.
//!
//! A mass is a whole number of 2⁻³² units. Integer sums are exact and associative, so that no cut of the buffer into shards,
//! no order of updates and no history can change a total, a probability or a draw. A node is always recomputed from its
//! children, never adjusted by a difference.

use crate::error::{Error, Result};

/// Children of a node. 16 sums are two cache lines: a level costs one or two misses.
const WIDTH: usize = 16;

/// Units in a mass of 1.
const UNIT: f64 = 4_294_967_296.0;

/// A sampling mass in units of 2⁻³².
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Mass(pub u64);

impl Mass {
    /// A priority (|δ| + ε)^α, rounded once to the nearest unit.
    ///
    /// # Errors
    /// [`Error::Replay`] names the sample whose priority is NaN, infinite, or so large that one alone reaches 2³².
    pub fn of_priority(priority: f64, sample: u64) -> Result<Self> {
        let refuse = |problem: String| Err(Error::Replay { sample, problem });
        if !priority.is_finite() {
            return refuse(format!("priority {priority} is not a finite number"));
        }
        if priority < 0.0 {
            return refuse(format!("priority {priority} is negative"));
        }
        if priority >= UNIT {
            return refuse(format!("priority {priority:e} is 2³² or more: lower replay.alpha"));
        }
        Ok(Self((priority * UNIT).round_ties_even() as u64))
    }

    /// As a number.
    pub fn value(self) -> f64 {
        self.0 as f64 / UNIT
    }
}

/// Masses of the slots of one shard, with sums of 16, 256, … of them. An empty slot has mass 0 and is never found.
///
/// Finding a slot and changing one are O(log₁₆ n); memory is 8·16/15 bytes a slot.
#[derive(Debug, Clone)]
pub struct SumTree {
    /// `levels[0]` are the slots; each level is padded with zeros to a multiple of 16; the last has 16 nodes or fewer used.
    levels: Vec<Vec<u64>>,
    slots: usize,
    total: u128,
    touched: Vec<usize>,
}

impl SumTree {
    /// All masses 0.
    pub fn new(slots: usize) -> Self {
        let mut levels = vec![vec![0; slots.max(1).next_multiple_of(WIDTH)]];
        while levels[levels.len() - 1].len() > WIDTH {
            let nodes = levels[levels.len() - 1].len() / WIDTH;
            levels.push(vec![0; nodes.next_multiple_of(WIDTH)]);
        }
        Self { levels, slots, total: 0, touched: Vec::new() }
    }

    /// Number of slots.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Sum of all masses.
    pub fn total(&self) -> Mass {
        Mass(self.total as u64)
    }

    /// Mass of a slot.
    pub fn mass(&self, slot: usize) -> Mass {
        Mass(self.levels[0][slot])
    }

    /// Sets several masses; of several for one slot the last one stands.
    ///
    /// # Errors
    /// A total of 2³² or more is refused, and nothing is changed.
    pub fn set(&mut self, changes: &[(usize, Mass)]) -> Result<()> {
        // The running total only guards against overflow; what draws use is recomputed from the leaves.
        let before = self.total;
        for (at, &(slot, mass)) in changes.iter().enumerate() {
            self.total = self.total - u128::from(self.levels[0][slot]) + u128::from(mass.0);
            let old = std::mem::replace(&mut self.levels[0][slot], mass.0);
            if self.total > u128::from(u64::MAX) {
                self.levels[0][slot] = old;
                self.total = before;
                return Err(Error::Replay {
                    sample: at as u64,
                    problem: "the total of all priorities would be 2³² or more: lower replay.alpha or replay.capacity".into(),
                });
            }
        }
        self.touched.clear();
        self.touched.extend(changes.iter().map(|(slot, _)| slot / WIDTH));
        for level in 1..self.levels.len() {
            if !self.touched.is_sorted() {
                self.touched.sort_unstable();
            }
            self.touched.dedup();
            let (below, above) = self.levels.split_at_mut(level);
            for node in &mut self.touched {
                above[0][*node] = below[level - 1][*node * WIDTH..][..WIDTH].iter().sum();
                *node /= WIDTH;
            }
        }
        Ok(())
    }

    /// For each target, ascending, each below the total: the slot whose range of the cumulated masses holds it.
    pub fn find(&self, targets: &[u64], slots: &mut Vec<usize>) {
        for &target in targets {
            debug_assert!(u128::from(target) < self.total);
            let mut rest = target;
            let mut node = 0;
            for level in self.levels.iter().rev() {
                let children = &level[node * WIDTH..][..WIDTH];
                let mut child = 0;
                while child + 1 < WIDTH && rest >= children[child] {
                    rest -= children[child];
                    child += 1;
                }
                node = node * WIDTH + child;
            }
            slots.push(node);
        }
    }

    /// Smallest mass of the first `filled` slots.
    pub fn smallest(&self, filled: usize) -> Mass {
        Mass(self.levels[0][..filled].iter().copied().min().unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Slot by a plain scan of cumulated masses.
    fn brute_force(masses: &[u64], target: u64) -> usize {
        let mut sum = 0u128;
        masses
            .iter()
            .position(|&m| {
                sum += u128::from(m);
                u128::from(target) < sum
            })
            .unwrap()
    }

    fn tree_of(masses: &[u64]) -> SumTree {
        let mut tree = SumTree::new(masses.len());
        tree.set(&masses.iter().enumerate().map(|(i, &m)| (i, Mass(m))).collect::<Vec<_>>()).unwrap();
        tree
    }

    proptest! {
        #[test]
        fn every_target_is_found_where_a_scan_finds_it(masses in prop::collection::vec(prop_oneof![Just(0u64), 1u64..1 << 40], 1..700), picks in prop::collection::vec(0f64..1.0, 1..50)) {
            let total: u64 = masses.iter().sum();
            prop_assume!(total > 0);
            let mut targets: Vec<u64> = picks.iter().map(|p| (p * total as f64) as u64).map(|t| t.min(total - 1)).collect();
            targets.extend([0, total - 1]);
            targets.sort_unstable();
            let tree = tree_of(&masses);
            let mut found = Vec::new();
            tree.find(&targets, &mut found);
            for (target, slot) in targets.iter().zip(found) {
                prop_assert_eq!(slot, brute_force(&masses, *target));
                prop_assert!(masses[slot] > 0, "an empty slot was found");
            }
        }

        #[test]
        fn after_any_updates_every_node_equals_a_fresh_trees(slots in 1usize..600, updates in prop::collection::vec((any::<prop::sample::Index>(), 0u64..1 << 50), 0..400)) {
            let mut masses = vec![0; slots];
            let mut tree = SumTree::new(slots);
            for batch in updates.chunks(7) {
                let changes: Vec<(usize, Mass)> = batch.iter().map(|(i, m)| (i.index(slots), Mass(*m))).collect();
                changes.iter().for_each(|(slot, mass)| masses[*slot] = mass.0);
                tree.set(&changes).unwrap();
            }
            let fresh = tree_of(&masses);
            prop_assert_eq!(tree.levels, fresh.levels);
            prop_assert_eq!(tree.total, fresh.total);
        }
    }

    #[test]
    fn what_is_no_mass_is_refused_by_name() {
        for (priority, want) in [(f64::NAN, "NaN"), (f64::INFINITY, "inf"), (-1.0, "negative"), (4.3e9, "2³² or more")] {
            let text = Mass::of_priority(priority, 17).unwrap_err().to_string();
            assert!(text.contains("sample 17") || text.contains("replay: sample 17"), "{text}");
            assert!(text.contains(want), "{text}");
        }
        assert_eq!(Mass::of_priority(1.5, 0).unwrap(), Mass(3 << 31));
    }

    #[test]
    fn a_total_that_overflows_is_refused_and_changes_nothing() {
        let mut tree = tree_of(&[u64::MAX - 5, 3]);
        let before = tree.clone();
        assert!(tree.set(&[(1, Mass(9))]).unwrap_err().to_string().contains("2³² or more"));
        assert_eq!((tree.levels, tree.total), (before.levels, before.total));
    }
}
