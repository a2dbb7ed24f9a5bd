//! Fixed-point masses and the tree of their sums.
//!
//! A mass is a whole number of 2⁻³² units. Integer sums are exact and associative, so that no cut of the buffer into shards,
//! no order of updates and no history can change a total, a probability or a draw. That is also why a change may be added to the sums
//! that contain it: the bits are those of a tree built anew (tested over 10⁸ updates), which floating point would not give.
//!
//! The tree serves batches. Look-ups go down level by level, all of them through one level before the next: they are
//! independent there, so the CPU overlaps their cache misses. A node holds where each child starts, so that a child is found by
//! counting, and a change shifts the starts after it: neither needs a branch.

use crate::error::{Error, Result};
use crate::vector::{in_large_pages, prefetch, vectorised};
use std::collections::BTreeMap;

/// Slots of a leaf: one cache line.
const LEAF: usize = 8;
/// Children of a node.
const WIDTH: usize = 16;
/// Most children of the root, which ascending targets pass in one walk.
const ROOT: usize = 64;

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

    /// [`Mass::of_priority`] of many, into `masses`; sample i is named by `name(i)`.
    ///
    /// # Errors
    /// As there, for the first that is refused.
    pub fn of_priorities(priorities: &[f64], name: impl Fn(usize) -> u64, masses: &mut [Self]) -> Result<()> {
        if priorities.iter().fold(true, |all, p| all & (0.0..UNIT).contains(p)) {
            round(priorities, masses);
            return Ok(());
        }
        priorities.iter().enumerate().try_for_each(|(i, &p)| Self::of_priority(p, name(i)).map(drop))
    }

    /// As a number.
    pub fn value(self) -> f64 {
        self.0 as f64 / UNIT
    }
}

vectorised! {
    /// Numbers in 0..2³² to the nearest unit, ties to even, in operations that vectors have.
    fn round(priorities: &[f64], masses: &mut [Mass]) {
        /// 2⁵² and 1.5·2⁵²: what is added to one of them is rounded to an integer, found in the low bits of the sum.
        const WHOLE: f64 = 4_503_599_627_370_496.0;
        const SIGNED: f64 = 1.5 * WHOLE;
        for (priority, mass) in priorities.iter().zip(masses) {
            // The nearest whole number, then the units that are missing, −2³¹ to 2³¹ of them; both steps are exact but the last.
            let whole = priority + WHOLE;
            let units = (priority - (whole - WHOLE)) * UNIT + SIGNED;
            *mass = Mass((whole.to_bits() << 32).wrapping_add(units.to_bits().wrapping_sub(SIGNED.to_bits())));
        }
    }
}

/// Masses of neighbouring slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(align(64))]
struct Leaf([u64; LEAF]);

/// The sum of all children before each of 16: two cache lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(align(64))]
struct Node([u64; WIDTH]);

/// Masses of the slots of one shard, with the sums of 8, 128, 2,048, … of them. An empty slot has mass 0 and is never found.
///
/// A look-up and a change are O(log₁₆ n); memory is about 10 bytes a slot.
#[derive(Debug, Clone)]
pub struct SumTree {
    slots: usize,
    leaves: Vec<Leaf>,
    /// Nodes over leaves, nodes over those, and so on.
    levels: Vec<Vec<Node>>,
    /// Sums of the last of them, and where each starts; then a start that no target reaches.
    root: Vec<u64>,
    root_starts: Vec<u64>,
    total: u64,
}

impl SumTree {
    /// All masses 0.
    pub fn new(slots: usize) -> Self {
        let leaves: Vec<Leaf> = in_large_pages(slots.max(1).div_ceil(LEAF));
        let (mut levels, mut children) = (Vec::new(), leaves.len());
        while children > ROOT {
            children = children.div_ceil(WIDTH);
            levels.push(in_large_pages(children));
        }
        let (root, mut root_starts) = (vec![0; children], vec![0; children]);
        root_starts.push(u64::MAX);
        Self { slots, leaves, levels, root, root_starts, total: 0 }
    }

    /// Number of slots.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Sum of all masses.
    pub fn total(&self) -> Mass {
        Mass(self.total)
    }

    /// Mass of a slot.
    #[inline]
    pub fn mass(&self, slot: usize) -> Mass {
        Mass(self.leaves[slot / LEAF].0[slot % LEAF])
    }

    /// Smallest mass that can be drawn; 0 where there is none.
    pub fn smallest(&self) -> Mass {
        (0..self.slots).map(|slot| self.mass(slot)).filter(|mass| mass.0 > 0).min().unwrap_or_default()
    }

    /// For each target, ascending, each below the total: the slot whose range of the cumulated masses holds it. Uses the targets up.
    pub fn find(&self, targets: &mut [u64], slots: &mut [usize]) {
        debug_assert!(targets.is_sorted() && targets.last().is_none_or(|&last| last < self.total));
        descend(self, targets, slots);
    }

    /// Sets several masses; of several for one slot the last one stands.
    ///
    /// # Errors
    /// A total of 2³² or more is refused, and nothing is changed.
    pub fn set(&mut self, changes: &[(usize, Mass)]) -> Result<()> {
        let most = changes.iter().fold(u128::from(self.total), |sum, (_, mass)| sum + u128::from(mass.0));
        if most > u128::from(u64::MAX) {
            self.check_total(changes)?;
        }
        change(self, changes);
        let root = self.root_starts.iter_mut().zip(&self.root);
        self.total = root.fold(0, |before, (start, sum)| {
            *start = before;
            before + sum
        });
        Ok(())
    }

    /// The total there would be, exactly: only needed near the limit.
    fn check_total(&self, changes: &[(usize, Mass)]) -> Result<()> {
        let last: BTreeMap<usize, Mass> = changes.iter().copied().collect();
        let total = last.iter().fold(u128::from(self.total), |sum, (slot, mass)| sum + u128::from(mass.0) - u128::from(self.mass(*slot).0));
        if total > u128::from(u64::MAX) { Err(too_large()) } else { Ok(()) }
    }
}

vectorised! {
    /// Each change, and what it adds to every sum that contains it, modulo 2⁶⁴.
    fn change(tree: &mut SumTree, changes: &[(usize, Mass)]) {
        for (slot, mass) in changes {
            let mut child = slot / LEAF;
            let before = std::mem::replace(&mut tree.leaves[child].0[slot % LEAF], mass.0);
            let difference = mass.0.wrapping_sub(before);
            for nodes in &mut tree.levels {
                let (node, place) = (&mut nodes[child / WIDTH], (child % WIDTH) as u64);
                for (start, i) in node.0.iter_mut().zip(0u64..) {
                    *start = start.wrapping_add(if i > place { difference } else { 0 });
                }
                child /= WIDTH;
            }
            tree.root[child] = tree.root[child].wrapping_add(difference);
        }
    }
}

vectorised! {
    /// All targets through one level, then through the next.
    fn descend(tree: &SumTree, targets: &mut [u64], slots: &mut [usize]) {
        // A step goes on by a child or by a row. No branch: which of the two cannot be predicted.
        let mut child = 0;
        for step in 0.. {
            let row = step - child;
            let (Some(target), Some(slot)) = (targets.get(row), slots.get_mut(row)) else { break };
            *slot = child;
            child += usize::from(tree.root_starts[child + 1] <= *target);
        }
        for (target, slot) in targets.iter_mut().zip(&*slots) {
            *target -= tree.root_starts[*slot];
            prefetch_below(tree, tree.levels.len(), *slot);
        }
        for (level, nodes) in tree.levels.iter().enumerate().rev() {
            for (target, slot) in targets.iter_mut().zip(&mut *slots) {
                *slot = *slot * WIDTH + step(&nodes[*slot], target);
                prefetch_below(tree, level, *slot);
            }
        }
        for (target, slot) in targets.iter().zip(&mut *slots) {
            let Leaf(masses) = &tree.leaves[*slot];
            let (mut passed, mut end) = (0, 0u64);
            for mass in &masses[..LEAF - 1] {
                end = end.wrapping_add(*mass);
                passed += usize::from(end <= *target);
            }
            *slot = *slot * LEAF + passed;
        }
    }
}

/// The child that holds `target`, which becomes what is left of it within the child.
#[inline(always)]
fn step(node: &Node, target: &mut u64) -> usize {
    // Counted in lanes, as vectors do.
    let mut not_after = [0; 4];
    for starts in node.0.as_chunks::<4>().0 {
        for (count, start) in not_after.iter_mut().zip(starts) {
            *count += u64::from(*start <= *target);
        }
    }
    // The first child starts at 0, so that at least one is counted; one of mass 0 starts where the next one does.
    let child = (not_after.iter().sum::<u64>() as usize - 1) % WIDTH;
    *target -= node.0[child];
    child
}

#[inline(always)]
fn prefetch_below(tree: &SumTree, level: usize, child: usize) {
    match level {
        0 => prefetch(&tree.leaves[child]),
        _ => prefetch(&tree.levels[level - 1][child]),
    }
}

/// A total that does not fit.
pub(super) fn too_large() -> Error {
    Error::refused("the total of all priorities is 2³² or more").with_hint("lower replay.alpha or replay.capacity")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Key, Purpose};
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

    fn same(a: &SumTree, b: &SumTree) -> bool {
        a.leaves == b.leaves && a.levels == b.levels && a.root == b.root && a.root_starts == b.root_starts && a.total == b.total
    }

    proptest! {
        #[test]
        fn every_target_is_found_where_a_scan_finds_it(masses in prop::collection::vec(prop_oneof![Just(0u64), 1u64..1 << 40], 1..3000), picks in prop::collection::vec(0f64..1.0, 1..50)) {
            let total: u64 = masses.iter().sum();
            prop_assume!(total > 0);
            let mut targets: Vec<u64> = picks.iter().map(|p| (p * total as f64) as u64).map(|t| t.min(total - 1)).collect();
            targets.extend([0, total - 1]);
            targets.sort_unstable();
            let tree = tree_of(&masses);
            let mut found = vec![0; targets.len()];
            tree.find(&mut targets.clone(), &mut found);
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
            prop_assert!(same(&tree, &fresh));
        }

        #[test]
        fn masses_of_many_are_those_of_one(priorities in prop::collection::vec(prop_oneof![0f64..1.0, 0f64..4_294_967_295.0, 0f64..1e-8, Just(0.5 / UNIT), Just(1.5 / UNIT), Just(2.5 / UNIT), Just(0.0), Just(4_294_967_295.9)], 1..40)) {
            let mut masses = vec![Mass(0); priorities.len()];
            Mass::of_priorities(&priorities, |i| i as u64, &mut masses).unwrap();
            for (priority, mass) in priorities.iter().zip(masses) {
                prop_assert_eq!(mass, Mass::of_priority(*priority, 0).unwrap());
            }
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
    fn the_refused_one_of_many_is_named() {
        let error = Mass::of_priorities(&[1.0, 2.0, f64::NAN, f64::INFINITY], |i| 100 + i as u64, &mut [Mass(0); 4]).unwrap_err();
        assert!(error.to_string().contains("sample 102: priority NaN"), "{error}");
    }

    #[test]
    fn a_total_that_overflows_is_refused_and_changes_nothing() {
        let mut tree = tree_of(&[u64::MAX - 5, 3]);
        let before = tree.clone();
        assert!(
            tree.set(&[(1, Mass(4)), (0, Mass(u64::MAX - 4)), (1, Mass(7)), (1, Mass(5))]).unwrap_err().to_string().contains("2³² or more")
        );
        assert!(same(&tree, &before));
        // Only what stands at the end counts.
        tree.set(&[(1, Mass(u64::MAX)), (1, Mass(5))]).unwrap();
        assert_eq!(tree.total(), Mass(u64::MAX));
    }

    /// 10⁸ updates in batches as a run makes them: repeated slots, ascending or not, masses over all magnitudes.
    #[test]
    fn after_a_hundred_million_updates_every_node_equals_a_fresh_trees() {
        const SLOTS: usize = 5_003;
        let mut tree = SumTree::new(SLOTS);
        let (mut bits, mut changes) = (vec![0; 512], Vec::new());
        let mut updates = 0;
        for step in 0.. {
            if updates >= 100_000_000 {
                break;
            }
            Key::global(4, Purpose::Draw, step).fill_bits(&mut bits);
            let size = if step % 16 == 0 { 1 + step as usize % 256 } else { 256 };
            changes.clear();
            changes
                .extend(bits[..2 * size].chunks_exact(2).map(|b| (((b[0] >> 32) as usize * SLOTS) >> 32, Mass(b[1] >> (14 + b[0] % 50)))));
            if step % 4 != 0 {
                // Slots of a draw ascend; here they are spread over the tree from a random place on.
                let first = changes[0].0;
                changes.iter_mut().enumerate().for_each(|(i, change)| change.0 = (first + i * 19) % SLOTS);
            }
            tree.set(&changes).unwrap();
            updates += size;
        }
        let masses: Vec<u64> = (0..SLOTS).map(|slot| tree.mass(slot).0).collect();
        assert!(same(&tree, &tree_of(&masses)));
    }
}
