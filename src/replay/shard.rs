//! One logical rank's part of the buffer.

use super::draw::Masses;
use super::priorities::{Found, Priorities};
use super::sum_tree::Mass;
use crate::config::{DrawRule, ImageDtype, Replace, Replay};
use crate::device::upload;
use crate::error::Result;
use crate::inversion::Samples;
use crate::nn::{Entries, Stateful};
use crate::rng::Key;
use crate::task;
use tch::{Device, Kind, Tensor};

/// What a shard knows of a sample besides its tensors.
#[derive(Debug, Clone, PartialEq)]
struct Slot {
    id: u64,
    delta: f64,
    weight: f64,
    confidence: f32,
    class_counts: Vec<(u32, u32)>,
}

/// A bounded store of samples with their priorities.
pub struct Shard {
    rule: Replay,
    capacity: usize,
    images_nchw: Tensor,
    view_logits: Tensor,
    slots: Vec<Slot>,
    priorities: Priorities,
    next: usize,
}

/// Shapes of what a shard holds.
#[derive(Debug, Clone)]
pub struct SampleShape {
    /// `[c, h, w]`.
    pub image: Vec<i64>,
    /// `[v, k, …]`.
    pub view_logits: Vec<i64>,
    /// Number of classes.
    pub classes: usize,
}

impl SampleShape {
    /// Memory of one sample with its bookkeeping.
    pub(super) fn bytes(&self, image_dtype: ImageDtype) -> f64 {
        let numel = |shape: &[i64]| shape.iter().product::<i64>() as f64;
        let value = match image_dtype {
            ImageDtype::Uint8 => 1.0,
            ImageDtype::Float32 => 4.0,
        };
        value * numel(&self.image) + 4.0 * numel(&self.view_logits) + (size_of::<Slot>() + 4 * size_of::<Mass>()) as f64
    }
}

impl Shard {
    /// An empty shard of `capacity` slots.
    pub fn new(rule: &Replay, capacity: usize, shape: &SampleShape, device: Device) -> Self {
        let kind = match rule.image_dtype {
            ImageDtype::Uint8 => Kind::Uint8,
            ImageDtype::Float32 => Kind::Float,
        };
        let held = |inner: &[i64], kind| {
            let size: Vec<i64> = std::iter::once(capacity as i64).chain(inner.iter().copied()).collect();
            Tensor::zeros(size.as_slice(), (kind, device))
        };
        // With α = 0 every priority is 1, whatever δ and ε.
        let alpha = match rule.draw {
            DrawRule::Priority => rule.alpha,
            DrawRule::Uniform => 0.0,
        };
        Self {
            rule: rule.clone(),
            capacity,
            images_nchw: held(&shape.image, kind),
            view_logits: held(&shape.view_logits, Kind::Float),
            slots: Vec::with_capacity(capacity),
            priorities: Priorities::new(capacity, rule.epsilon, alpha),
            next: 0,
        }
    }

    /// Slots.
    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Filled slots.
    pub fn filled(&self) -> usize {
        self.slots.len()
    }

    /// Sum of all masses.
    pub fn total(&self) -> Mass {
        self.priorities.total()
    }

    /// Smallest mass that can be drawn; 0 where there is none.
    pub fn smallest(&self) -> Mass {
        self.priorities.smallest()
    }

    /// Samples (pixels) per predicted category.
    pub fn class_counts(&self, classes: usize) -> Vec<u64> {
        task::total_counts(self.slots.iter().flat_map(|slot| &slot.class_counts), classes)
    }

    /// Samples by the teacher's confidence.
    pub fn confidence_counts(&self) -> Vec<u64> {
        task::confidence_counts(self.slots.iter().map(|slot| slot.confidence))
    }

    /// Takes new samples in; others leave by the configured rule when there is no room.
    pub fn insert(&mut self, born: &Samples, key: &Key) -> Result<()> {
        let places = self.places(born.delta.len(), key);
        self.priorities.set(&places, &born.delta, |at| born.first_id + at as u64)?;
        for (at, &place) in places.iter().enumerate() {
            let slot = Slot {
                id: born.first_id + at as u64,
                delta: born.delta[at],
                weight: 1.0,
                confidence: born.confidence[at],
                class_counts: born.class_counts[at].clone(),
            };
            if place < self.slots.len() { self.slots[place] = slot } else { self.slots.push(slot) }
        }
        let index = Tensor::from_slice(&places.iter().map(|&p| p as i64).collect::<Vec<_>>());
        let index = upload(&index, self.images_nchw.device());
        tch::no_grad(|| {
            let _ = self.images_nchw.index_copy_(0, &index, &born.images_bchw);
            let _ = self.view_logits.index_copy_(0, &index, &born.view_logits);
        });
        Ok(())
    }

    /// Slots for `count` new samples: empty ones first, then those of samples that leave.
    fn places(&mut self, count: usize, key: &Key) -> Vec<usize> {
        let filled = self.slots.len();
        let empty = (filled..self.capacity).take(count);
        let missing = count - empty.len();
        let leaving: Vec<usize> = match self.rule.replace {
            Replace::Fifo => (0..missing).map(|i| (self.next + i) % self.capacity).collect(),
            Replace::Random => key.permutation(filled).into_iter().take(missing).map(|i| i as usize).collect(),
            Replace::LowestPriority => {
                let mut order: Vec<usize> = (0..filled).collect();
                order.sort_by_key(|&i| (self.priorities.mass(i), self.slots[i].id));
                order.truncate(missing);
                order
            }
        };
        self.next = (self.next + missing) % self.capacity;
        empty.chain(leaving).collect()
    }

    /// The slots that hold `targets`, the part of a global draw that falls on this shard, number `shard`; with P and w.
    pub fn look_up(&self, masses: &Masses, shard: usize, targets: &[u64]) -> Found {
        let mut found = Found::default();
        self.priorities.look_up(masses, shard, targets, self.rule.beta, &mut found);
        found
    }

    /// Mass of a slot.
    #[cfg(test)]
    pub(super) fn mass(&self, slot: usize) -> Mass {
        self.priorities.mass(slot)
    }

    /// Id of the sample in a slot.
    pub fn id(&self, slot: usize) -> u64 {
        self.slots[slot].id
    }

    /// Images of these slots, `[b, c, h, w]`.
    pub fn images(&self, slots: &[i64]) -> Tensor {
        self.images_nchw.index_select(0, &upload(&Tensor::from_slice(slots), self.images_nchw.device()))
    }

    /// The teacher's logits of one stored view of each of these slots, `[b, k, …]`.
    pub fn view_logits(&self, slots: &[i64], views: &[i64]) -> Tensor {
        let stored = self.view_logits.size()[1];
        let flat: Vec<i64> = slots.iter().zip(views).map(|(slot, view)| slot * stored + view).collect();
        let index = upload(&Tensor::from_slice(&flat), self.view_logits.device());
        self.view_logits.flatten(0, 1).index_select(0, &index)
    }

    /// Stores δ = w·KL of drawn slots, in batch order: of several for one slot the last one stands (SSD-KD Eq. 5).
    pub fn write_back(&mut self, found: &Found, kl: &[f64]) -> Result<()> {
        let deltas: Vec<f64> = found.weights.iter().zip(kl).map(|(weight, kl)| weight * kl).collect();
        self.priorities.set(&found.slots, &deltas, |i| self.slots[found.slots[i]].id)?;
        for ((&slot, delta), weight) in found.slots.iter().zip(deltas).zip(&found.weights) {
            self.slots[slot].delta = delta;
            self.slots[slot].weight = *weight;
        }
        Ok(())
    }

    /// Category and slot of the newest samples of the first `classes` categories, at most `count` of each: for pictures.
    pub fn newest(&self, count: usize, classes: usize) -> Vec<(usize, usize)> {
        let mut order: Vec<usize> = (0..self.filled()).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(self.slots[i].id));
        let mut taken = vec![0; classes];
        let mut out = Vec::new();
        for slot in order {
            let Some((class, _)) = self.slots[slot].class_counts.iter().max_by_key(|(_, n)| *n) else { continue };
            let class = *class as usize;
            if taken.get(class).is_some_and(|&n| n < count) {
                taken[class] += 1;
                out.push((class, slot));
            }
        }
        out
    }
}

impl Stateful for Shard {
    fn save(&self, into: &mut Entries) {
        let filled = self.filled() as i64;
        into.tensor("images", &self.images_nchw.narrow(0, 0, filled));
        into.tensor("view_logits", &self.view_logits.narrow(0, 0, filled));
        into.numbers("ids", &self.slots.iter().map(|s| s.id).collect::<Vec<_>>());
        let f64s = |of: fn(&Slot) -> f64| Tensor::from_slice(&self.slots.iter().map(of).collect::<Vec<_>>());
        into.tensor("deltas", &f64s(|s| s.delta));
        into.tensor("weights", &f64s(|s| s.weight));
        into.tensor("confidences", &Tensor::from_slice(&self.slots.iter().map(|s| s.confidence).collect::<Vec<_>>()));
        let counts =
            self.slots.iter().enumerate().flat_map(|(i, s)| s.class_counts.iter().flat_map(move |c| [i as u64, c.0.into(), c.1.into()]));
        into.numbers("class_counts", &counts.collect::<Vec<_>>());
        into.numbers("masses", &(0..self.filled()).map(|i| self.priorities.mass(i).0).collect::<Vec<_>>());
        into.number("next", self.next as u64);
    }

    fn load(&mut self, from: &Entries) -> Result<()> {
        let ids = from.read_numbers("ids")?;
        let filled = ids.len() as i64;
        from.copy_tensor("images", &self.images_nchw.narrow(0, 0, filled))?;
        from.copy_tensor("view_logits", &self.view_logits.narrow(0, 0, filled))?;
        let floats = |name: &str| -> Result<Vec<f64>> { Ok(from.read(name)?.to_kind(Kind::Double).try_into().unwrap_or_default()) };
        let (deltas, weights, confidences) = (floats("deltas")?, floats("weights")?, floats("confidences")?);
        let slot = |(i, id): (usize, u64)| Slot {
            id,
            delta: deltas[i],
            weight: weights[i],
            confidence: confidences[i] as f32,
            class_counts: Vec::new(),
        };
        self.slots = ids.into_iter().enumerate().map(slot).collect();
        for triple in from.read_numbers("class_counts")?.chunks_exact(3) {
            self.slots[triple[0] as usize].class_counts.push((triple[1] as u32, triple[2] as u32));
        }
        self.priorities.restore(&from.read_numbers("masses")?)?;
        self.next = from.read_number("next")? as usize;
        Ok(())
    }
}
