//! Which slots of a shard are likely, and how likely: the buffer without what it holds.

use super::draw::Masses;
use super::sum_tree::{Mass, SumTree};
use crate::error::Result;
use crate::losses;

/// Priorities of one shard's slots. A slot is empty, with mass 0, until its first δ is set.
#[derive(Debug, Clone)]
pub struct Priorities {
    tree: SumTree,
    epsilon: f64,
    alpha: f64,
    /// Memory of [`Priorities::set`].
    values: Vec<f64>,
    masses: Vec<Mass>,
    changes: Vec<(usize, Mass)>,
}

/// What a shard supplies of a batch, in batch order. Vectors side by side, since each is worked on as a whole; memory is kept from
/// draw to draw.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Found {
    /// Slot of each row.
    pub slots: Vec<usize>,
    /// Its mass.
    pub masses: Vec<Mass>,
    /// Its probability P (SSD-KD Eq. 6).
    pub probabilities: Vec<f64>,
    /// Its importance weight w = (N·P)^−β (SSD-KD Eq. 7).
    pub weights: Vec<f64>,
    targets: Vec<u64>,
}

impl Priorities {
    /// Of `slots` empty slots; priorities will be (|δ| + `epsilon`)^`alpha`.
    pub fn new(slots: usize, epsilon: f64, alpha: f64) -> Self {
        Self { tree: SumTree::new(slots), epsilon, alpha, values: Vec::new(), masses: Vec::new(), changes: Vec::new() }
    }

    /// Sum of all masses.
    pub fn total(&self) -> Mass {
        self.tree.total()
    }

    /// Mass of a slot.
    pub fn mass(&self, slot: usize) -> Mass {
        self.tree.mass(slot)
    }

    /// Smallest mass that can be drawn; 0 where there is none.
    pub fn smallest(&self) -> Mass {
        self.tree.smallest()
    }

    /// Sets δ of several slots; of several for one slot the last one stands. `name(i)` is the id of the i-th sample, for errors.
    ///
    /// # Errors
    /// A δ that is NaN or infinite, or whose priority reaches 2³², by the sample's id; a total of 2³² or more. Nothing is changed then.
    pub fn set(&mut self, slots: &[usize], deltas: &[f64], name: impl Fn(usize) -> u64) -> Result<()> {
        self.values.clear();
        self.values.extend_from_slice(deltas);
        losses::priorities(&mut self.values, self.epsilon, self.alpha);
        self.masses.resize(deltas.len(), Mass::default());
        Mass::of_priorities(&self.values, name, &mut self.masses)?;
        self.changes.clear();
        self.changes.extend(slots.iter().copied().zip(self.masses.iter().copied()));
        self.tree.set(&self.changes)
    }

    /// Sets the masses of the first slots, as they were saved.
    ///
    /// # Errors
    /// A total of 2³² or more.
    pub fn restore(&mut self, masses: &[u64]) -> Result<()> {
        self.tree = SumTree::new(self.tree.slots());
        self.tree.set(&masses.iter().copied().map(Mass).enumerate().collect::<Vec<_>>())
    }

    /// The slots that hold these targets, ascending ones of a global draw that lie in the part of `shard`, with P and w by the masses
    /// of all shards.
    pub fn look_up(&self, masses: &Masses, shard: usize, targets: &[u64], beta: f64, found: &mut Found) {
        let before = masses.before(shard);
        found.targets.clear();
        found.targets.extend(targets.iter().map(|target| target - before));
        found.slots.clear();
        if masses.uniform() {
            found.slots.extend(found.targets.iter().map(|&target| target as usize));
        } else {
            found.slots.resize(targets.len(), 0);
            self.tree.find(&mut found.targets, &mut found.slots);
        }
        found.masses.clear();
        found.masses.extend(found.slots.iter().map(|&slot| self.tree.mass(slot)));
        found.probabilities.resize(targets.len(), 0.0);
        found.weights.resize(targets.len(), 0.0);
        masses.weigh(&found.masses, beta, &mut found.probabilities, &mut found.weights);
    }
}
