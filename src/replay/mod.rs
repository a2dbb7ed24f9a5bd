//! The global prioritised replay buffer: sharded over logical ranks, never gathered, drawn from the *global* P(x).
//!
//! Read in order: [`SumTree`] (exact sums of one shard), [`Priorities`] (from losses to probabilities), [`draw`] (who supplies which
//! row), [`Shard`] (what is held), [`Route`] (how rows travel), [`Replay`] (a draw, top to bottom). The first three know neither tensors
//! nor ranks, and are a sampler by themselves:
//!
//! ```
//! use ssdkd::replay::{Found, Masses, Priorities, targets};
//! use ssdkd::rng::{Key, Purpose};
//!
//! // Two shards of four slots: ε = 1e-6, α = 0.6. Priorities are set by slot; the last argument names samples in errors.
//! let mut shards = [Priorities::new(4, 1e-6, 0.6), Priorities::new(4, 1e-6, 0.6)];
//! shards[0].set(&[0, 1, 2], &[0.5, 2.0, 0.1], |i| i as u64)?;
//! shards[1].set(&[0, 1], &[1.0, 0.0], |i| 4 + i as u64)?;
//! // A draw of eight rows from the P(x) of both: what all must know is each shard's mass and number of filled slots.
//! let masses = Masses::new(&[(shards[0].total(), 3), (shards[1].total(), 2)])?;
//! let rows = targets(masses.total(), 8, &Key::global(7, Purpose::Draw, 0));
//! for (number, shard) in shards.iter_mut().enumerate() {
//!     let mut found = Found::default();
//!     shard.look_up(&masses, number, &rows[masses.supplied(&rows, number)], 0.4, &mut found);
//!     // Slots, P and w, to train on; then δ = w · loss goes back.
//!     let deltas: Vec<f64> = found.weights.iter().map(|w| w * 0.3).collect();
//!     shard.set(&found.slots, &deltas, |i| found.slots[i] as u64)?;
//! }
//! # Ok::<(), ssdkd::error::Error>(())
//! ```
//!
//! docs/replay.md has the argument and the figures.

pub mod draw;
mod exchange;
mod priorities;
mod real;
mod shard;
mod sum_tree;

pub use draw::{Masses, fill_targets, targets};
pub use exchange::{Cost, Route};
pub use priorities::{Found, Priorities};
pub use real::{Augmentation, RealData};
pub use shard::{SampleShape, Shard};
pub use sum_tree::{Mass, SumTree};

use crate::config::{self, WeightNorm};
use crate::data::View;
use crate::device::upload;
use crate::error::Result;
use crate::inversion::Samples;
use crate::layout::{Layout, LogicalRank, Rank};
use crate::losses::importance_weight;
use crate::nn::room_for;
use crate::parallel::{PerRank, World};
use crate::rng::{Key, Purpose};
use exchange::{pack, unpack};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use tch::{Kind, Tensor};

/// Rows one logical rank trains on.
pub struct Rows {
    /// As stored: uint8 or f32 in [0, 1], unaugmented.
    pub images_bchw: Tensor,
    /// Sample ids, or places in the training split: i64.
    pub ids_b: Tensor,
    /// How each is seen.
    pub views: Vec<View>,
    /// Importance weights, f32.
    pub weights_b: Tensor,
    /// What the student is to learn.
    pub target: Target,
}

impl Rows {
    /// New images as they are, all alike important; their ids are rows of the step's batch, from `first`.
    fn unseen(images_bchw: Tensor, first: usize) -> Self {
        let (b, device) = (images_bchw.size()[0], images_bchw.device());
        Self {
            ids_b: Tensor::arange(b, (Kind::Int64, device)) + first as i64,
            views: vec![View::default(); b as usize],
            weights_b: Tensor::ones([b], (Kind::Float, device)),
            target: Target::AskTeacher,
            images_bchw,
        }
    }

    /// By name, for a look at them from outside. `views` are down, right, flip.
    pub fn tensors(&self) -> Vec<(&'static str, Tensor)> {
        let mut tensors = vec![
            ("images", self.images_bchw.shallow_clone()),
            ("ids", self.ids_b.shallow_clone()),
            ("weights", self.weights_b.shallow_clone()),
            ("views", View::table(&self.views)),
        ];
        if let Target::Logits(target) | Target::Labels(target) = &self.target {
            tensors.push(("targets", target.shallow_clone()));
        }
        tensors
    }
}

/// What the student is to learn from a row.
pub enum Target {
    /// The teacher's logits on this very view, `[b, k, …]`.
    Logits(Tensor),
    /// The teacher has to be asked.
    AskTeacher,
    /// Labels of real data, i64 `[b]`, or `[b, h, w]` of pixels.
    Labels(Tensor),
}

/// One global draw, as this process sees it.
pub struct Draw {
    /// Rows by consuming logical rank.
    pub rows: PerRank<Rows>,
    /// What this process sent to others for it, so far.
    pub moved: Moved,
    /// What this process supplied, by shard.
    supplied: Vec<(LogicalRank, Found)>,
    route: Option<Route>,
}

/// What draws have sent between processes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    /// Number of draws.
    pub draws: u64,
    /// Rows.
    pub rows: u64,
    /// Bytes of masses, rows and losses on their way home.
    pub bytes: u64,
}

impl std::ops::AddAssign for Moved {
    fn add_assign(&mut self, other: Self) {
        self.draws += other.draws;
        self.rows += other.rows;
        self.bytes += other.bytes;
    }
}

impl Draw {
    /// Rows that nobody wants to hear of again.
    fn local(rows: PerRank<Rows>) -> Self {
        Self { rows, moved: Moved { draws: 1, ..Moved::default() }, supplied: Vec::new(), route: None }
    }
}

/// Where a step's rows come from, and what hears of their losses.
pub enum Memory {
    /// Synthetic images that are kept.
    Replay(Replay),
    /// Synthetic images made for one step.
    Fresh,
    /// Real ones.
    Real(RealData),
}

impl Memory {
    /// Rows of a global batch; `make` gives so many new images in [0, 1] for a logical rank, where none are kept. A collective.
    pub fn draw(&mut self, world: &World, batch: usize, step: u64, mut make: impl FnMut(LogicalRank, usize) -> Tensor) -> Result<Draw> {
        let _span = tracing::debug_span!("sampling", what = "draw").entered();
        match self {
            Self::Replay(replay) => replay.draw(world, batch, step),
            Self::Fresh => Ok(Draw::local(PerRank::build(world.hosted(), |rank| {
                let rows = world.layout().rows(rank, batch);
                Rows::unseen(make(rank, rows.len()), rows.start)
            }))),
            Self::Real(data) => Ok(data.draw(world, batch, step)),
        }
    }

    /// Tells the memory the new loss of every row. A collective.
    pub fn write_back(&mut self, world: &World, draw: &mut Draw, loss: &PerRank<Tensor>) -> Result<()> {
        let _span = tracing::debug_span!("sampling", what = "write-back").entered();
        match self {
            Self::Replay(replay) => replay.write_back(world, draw, loss),
            Self::Fresh | Self::Real(_) => Ok(()),
        }
    }

    /// The replay buffer, where there is one.
    pub fn replay(&self) -> Option<&Replay> {
        match self {
            Self::Replay(replay) => Some(replay),
            Self::Fresh | Self::Real(_) => None,
        }
    }

    /// The data set, where rows come from one.
    pub fn real(&self) -> Option<&RealData> {
        match self {
            Self::Real(data) => Some(data),
            Self::Fresh | Self::Replay(_) => None,
        }
    }

    /// The replay buffer, for changing.
    pub fn replay_mut(&mut self) -> Option<&mut Replay> {
        match self {
            Self::Replay(replay) => Some(replay),
            Self::Fresh | Self::Real(_) => None,
        }
    }
}

/// One process's part in supplying a batch.
pub(crate) struct Supply {
    found: Vec<(LogicalRank, Found)>,
    pub(crate) packed: Tensor,
    pub(crate) route: Route,
    /// Rows of the batch that each rank supplies and trains on.
    pub(crate) supplied: Vec<Range<usize>>,
    pub(crate) consumed: Vec<Range<usize>>,
}

impl Supply {
    /// The draw whose rows have arrived.
    pub(crate) fn into_draw(self, rows: PerRank<Rows>) -> Draw {
        Draw { rows, moved: Moved { draws: 1, ..Moved::default() }, supplied: self.found, route: Some(self.route) }
    }
}

/// Contiguous ranges of logical ranks, joined for each rank.
fn by_host(layout: &Layout, of: impl Fn(LogicalRank) -> Range<usize>) -> Vec<Range<usize>> {
    let join = |rank| layout.hosted(Rank(rank)).map(&of).reduce(|all, next| all.start..next.end).unwrap_or_default();
    (0..layout.ranks()).map(join).collect()
}

/// The buffer: this process's shards and the rules.
pub struct Replay {
    rule: config::Replay,
    views: config::Distill,
    shape: SampleShape,
    seed: u64,
    shards: PerRank<Shard>,
}

impl Replay {
    /// Empty shards of this process; `key` is the one that their capacity comes from.
    ///
    /// # Errors
    /// A capacity for which the host has no memory: refuses `key`.
    pub fn new(key: &str, rule: &config::Replay, views: &config::Distill, seed: u64, shape: SampleShape, world: &World) -> Result<Self> {
        let layout = *world.layout();
        let slots = world.hosted().map(|rank| layout.capacity(rank, rule.capacity)).sum::<usize>() * world.ranks_in_memory();
        let what = format!("{slots} samples on this {}", if world.device().is_cuda() { "GPU" } else { "host" });
        room_for(key, &what, slots as f64 * shape.bytes(rule.image_dtype), world.device())?;
        let shard = |rank| Shard::new(rule, layout.capacity(rank, rule.capacity), &shape, world.device());
        let shards = PerRank::build(world.hosted(), shard);
        Ok(Self { rule: rule.clone(), views: views.clone(), shape, seed, shards })
    }

    /// Samples that fit, over all ranks.
    pub fn capacity(&self) -> usize {
        self.rule.capacity
    }

    /// Memory of this process's shards when they are full.
    pub fn bytes(&self) -> f64 {
        let slots: usize = self.shards.iter().map(|(_, shard)| shard.capacity()).sum();
        slots as f64 * self.shape.bytes(self.rule.image_dtype)
    }

    /// A hosted shard.
    pub fn shard(&self, rank: LogicalRank) -> &Shard {
        self.shards.get(rank)
    }

    /// A hosted shard, for saving and loading.
    pub fn shard_mut(&mut self, rank: LogicalRank) -> &mut Shard {
        self.shards.get_mut(rank)
    }

    /// Samples (pixels) per predicted category over all shards. A collective; 8·k bytes per logical rank.
    pub fn class_counts(&self, world: &World) -> Result<Vec<u64>> {
        self.total(world, |shard| shard.class_counts(self.shape.classes))
    }

    /// Samples by the teacher's confidence, over all shards. A collective.
    pub fn confidence_counts(&self, world: &World) -> Result<Vec<u64>> {
        self.total(world, Shard::confidence_counts)
    }

    fn total(&self, world: &World, counts: impl Fn(&Shard) -> Vec<u64>) -> Result<Vec<u64>> {
        let all = world.gather_vectors(&PerRank::build(world.hosted(), |rank| counts(self.shards.get(rank))))?;
        let add = |sum: Vec<u64>, more: Vec<u64>| sum.iter().zip(more).map(|(a, b)| a + b).collect();
        Ok(all.into_iter().reduce(add).unwrap_or_default())
    }

    /// Takes new samples into this process's shards. Local.
    pub fn insert(&mut self, born: PerRank<Samples>, round: u64) -> Result<()> {
        for (rank, born) in born.into_iter_ordered() {
            let key = Key::of(self.seed, Purpose::Replace, round, rank);
            self.shards.get_mut(rank).insert(&born, &key)?;
        }
        Ok(())
    }

    /// Draws a global batch with P(x) ∝ (|δ(x)| + ε)^α over *all* shards and hands each row to the logical rank that trains on
    /// it (SSD-KD Eq. 6 and 7). A collective: 24 bytes per logical rank all-gathered, then one message to each rank.
    pub fn draw(&self, world: &World, batch: usize, step: u64) -> Result<Draw> {
        let before = world.meter().total_bytes();
        let masses = self.masses(world)?;
        let supply = self.look_up(world, &masses, batch, step);
        let received = supply.route.out(world, &supply.packed)?;
        let mut draw = supply.into_draw(self.hand_out(world, &received, batch, step));
        draw.moved.rows = draw.route.as_ref().map_or(0, |route| route.rows_sent_away(world.rank())) as u64;
        draw.moved.bytes = world.meter().total_bytes() - before;
        Ok(draw)
    }

    /// What this process supplies of a batch, and the way it goes. Local: every rank computes all targets.
    pub(crate) fn look_up(&self, world: &World, masses: &(Masses, f64), batch: usize, step: u64) -> Supply {
        let targets = targets(masses.0.total(), batch, &Key::global(self.seed, Purpose::Draw, step));
        let view_key = Key::global(self.seed, Purpose::DrawView, step);
        let (mut found, mut parts) = (Vec::new(), Vec::new());
        for rank in world.hosted() {
            let rows = masses.0.supplied(&targets, rank.0);
            let (slots, part) = self.supply(rank, masses, &targets[rows.clone()], rows.start, &view_key);
            found.push((rank, slots));
            parts.extend(part);
        }
        let layout = world.layout();
        let supplied = by_host(layout, |l| masses.0.supplied(&targets, l.0));
        let consumed = by_host(layout, |l| layout.rows(l, batch));
        let packed = if parts.is_empty() { self.no_rows(world) } else { Tensor::cat(&parts, 0) };
        Supply { found, packed, route: Route::new(world.rank(), &supplied, &consumed), supplied, consumed }
    }

    /// Received rows by the logical rank that trains on them.
    pub(crate) fn hand_out(&self, world: &World, received: &Tensor, batch: usize, step: u64) -> PerRank<Rows> {
        let (layout, view_key) = (*world.layout(), Key::global(self.seed, Purpose::DrawView, step));
        let first = by_host(&layout, |l| layout.rows(l, batch))[world.rank().0].start;
        PerRank::build(world.hosted(), |rank| {
            let rows = layout.rows(rank, batch);
            self.rows(&received.narrow(0, (rows.start - first) as i64, rows.len() as i64), rows.start, &view_key)
        })
    }

    /// Global masses, and the largest importance weight when weights are divided by it. A collective.
    pub(crate) fn masses(&self, world: &World) -> Result<(Masses, f64)> {
        let _span = tracing::debug_span!("communication", what = "masses").entered();
        let mine = PerRank::build(world.hosted(), |rank| {
            let shard = self.shards.get(rank);
            let smallest = if self.rule.weight_norm == WeightNorm::Max { shard.smallest().0 } else { 0 };
            [shard.total().0, shard.filled() as u64, smallest]
        });
        let all = world.gather(&mine)?;
        let masses = Masses::new(&all.iter().map(|s| (Mass(s[0]), s[1])).collect::<Vec<_>>())?;
        let largest = match self.rule.weight_norm {
            WeightNorm::None => 1.0,
            WeightNorm::Max => {
                // The largest weight belongs to the smallest mass that can be drawn.
                let smallest = all.iter().map(|s| s[2]).filter(|mass| *mass > 0).min().unwrap_or_default();
                importance_weight(masses.relative_probability(Mass(smallest)), self.rule.beta)
            }
        };
        Ok((masses, largest))
    }

    /// Rows of one shard: what was found, and the packed rows.
    fn supply(
        &self,
        rank: LogicalRank,
        (masses, largest_weight): &(Masses, f64),
        targets: &[u64],
        first_row: usize,
        view_key: &Key,
    ) -> (Found, Option<Tensor>) {
        let shard = self.shards.get(rank);
        let mut found = shard.look_up(masses, rank.0, targets);
        if targets.is_empty() {
            return (found, None);
        }
        found.weights.iter_mut().for_each(|weight| *weight /= largest_weight);
        let (slots, weights) = (&found.slots, &found.weights);
        let index: Vec<i64> = slots.iter().map(|&s| s as i64).collect();
        let views: Vec<i64> = (0..slots.len()).map(|i| self.view_of_row(view_key, first_row + i)).collect();
        let about: Vec<i64> = slots.iter().zip(weights).flat_map(|(&slot, w)| [shard.id(slot) as i64, w.to_bits() as i64]).collect();
        let images = shard.images(&index);
        let about = upload(&Tensor::from_slice(&about).view([-1, 2]), images.device());
        let packed = match self.views.teacher_views {
            0 => pack(&[&images, &about]),
            _ => pack(&[&images, &shard.view_logits(&index, &views), &about]),
        };
        (found, Some(packed))
    }

    /// Which stored view row `row` of a batch uses.
    fn view_of_row(&self, view_key: &Key, row: usize) -> i64 {
        view_key.below(8 * row as u64, self.views.teacher_views.max(1) as u64) as i64
    }

    /// Shape and kind of each part of a packed row.
    fn parts(&self) -> [(Vec<i64>, Kind); 3] {
        let image_kind = match self.rule.image_dtype {
            config::ImageDtype::Uint8 => Kind::Uint8,
            config::ImageDtype::Float32 => Kind::Float,
        };
        let logits = if self.views.teacher_views == 0 { vec![0] } else { self.shape.view_logits[1..].to_vec() };
        [(self.shape.image.clone(), image_kind), (logits, Kind::Float), (vec![2], Kind::Int64)]
    }

    /// Bytes of a packed row.
    pub(crate) fn row_bytes(&self) -> usize {
        self.parts().iter().map(|(shape, kind)| shape.iter().product::<i64>() as usize * kind.elt_size_in_bytes()).sum()
    }

    fn no_rows(&self, world: &World) -> Tensor {
        Tensor::zeros([0, self.row_bytes() as i64], (Kind::Uint8, world.device()))
    }

    /// Received rows as the student takes them.
    fn rows(&self, packed: &Tensor, first_row: usize, view_key: &Key) -> Rows {
        let parts = self.parts();
        let mut taken = unpack(packed, &parts.each_ref().map(|(shape, kind)| (shape.as_slice(), *kind))).into_iter();
        let (images, logits, about) = (taken.next(), taken.next(), taken.next());
        let about: Vec<i64> = about.map(|t| t.view([-1]).try_into().unwrap_or_default()).unwrap_or_default();
        let ids: Vec<i64> = about.chunks_exact(2).map(|row| row[0]).collect();
        let weights: Vec<f32> = about.chunks_exact(2).map(|row| f64::from_bits(row[1] as u64) as f32).collect();
        let (shift, flip) = (self.views.view_shift, self.views.view_flip);
        let view = |(i, row): (usize, &[i64])| match self.views.teacher_views {
            0 => View::draw(view_key, 2 * (first_row + i) as u64 + 1, shift, flip),
            _ => View::stored(self.seed, row[0] as u64, self.view_of_row(view_key, first_row + i) as u64, shift, flip),
        };
        let views = about.chunks_exact(2).enumerate().map(view).collect();
        let images_bchw = images.unwrap_or_default();
        let target = match (self.views.teacher_views, logits) {
            (0, _) | (_, None) => Target::AskTeacher,
            (_, Some(logits)) => Target::Logits(logits),
        };
        let weights_b = upload(&Tensor::from_slice(&weights), images_bchw.device());
        Rows { ids_b: Tensor::from_slice(&ids), weights_b, images_bchw, views, target }
    }

    /// Sends the new KL of every row home and stores δ = w·KL there (SSD-KD Eq. 5). A collective; 4 bytes a row that moved.
    pub fn write_back(&mut self, world: &World, draw: &mut Draw, kl: &PerRank<Tensor>) -> Result<()> {
        let all: Vec<Tensor> = kl.iter().map(|(_, kl_b)| kl_b.shallow_clone()).collect();
        let Some(route) = &draw.route else { return Ok(()) };
        let before = world.meter().total_bytes();
        let home = route.home(world, &Tensor::cat(&all, 0))?;
        draw.moved.bytes += world.meter().total_bytes() - before;
        let home: Vec<f64> = Vec::<f32>::try_from(home).unwrap_or_default().into_iter().map(f64::from).collect();
        let mut at = 0;
        for (rank, found) in &draw.supplied {
            let rows = at..at + found.slots.len();
            at = rows.end;
            self.shards.get_mut(*rank).write_back(found, &home[rows])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{DrawRule, Replace};
    use crate::losses::priority;
    use crate::parallel::test_ranks::{on_each_rank, on_ranks};
    use tch::Device;

    const LOGICAL: usize = 6;
    const CAPACITY: usize = 50;
    /// More than the buffer holds, and no multiple of M.
    const BATCH: usize = 64;

    fn rule() -> config::Replay {
        config::Replay { capacity: CAPACITY, image_dtype: config::ImageDtype::Float32, ..config::Replay::default() }
    }

    /// 16,000 images of 3×128×128 with four views of a 13×16×16 head: 0.8 GB of images and as much of heads.
    #[test]
    fn a_dense_buffer_is_estimated_by_its_images_and_heads() {
        let shape = SampleShape { image: vec![3, 128, 128], view_logits: vec![4, 13, 16, 16], classes: 13 };
        let [bytes, floats] = [config::ImageDtype::Uint8, config::ImageDtype::Float32].map(|dtype| 16_000.0 * shape.bytes(dtype));
        let (images, heads) = (16_000.0 * 49_152.0, 16_000.0 * 53_248.0);
        assert!((bytes - floats + 3.0 * images).abs() < 1.0 && (1.0..1.01).contains(&(bytes / (images + heads))), "{bytes}");
    }

    fn empty(world: &World) -> Replay {
        empty_by(&rule(), world)
    }

    fn empty_by(rule: &config::Replay, world: &World) -> Replay {
        let shape = SampleShape { image: vec![1, 1, 1], view_logits: vec![1, 2], classes: 2 };
        let views = config::Distill { teacher_views: 1, ..config::Distill::default() };
        Replay::new("replay.capacity", rule, &views, 3, shape, world).unwrap()
    }

    fn uniform(step: u64, index: u64) -> f64 {
        Key::global(8, Purpose::Labels, step).uniform(index)
    }

    /// Samples whose one pixel, and whose logits, are their id.
    fn born(first_id: u64, count: usize) -> Samples {
        let ids: Vec<f32> = (first_id..first_id + count as u64).map(|id| id as f32).collect();
        let ids = Tensor::from_slice(&ids);
        Samples {
            images_bchw: ids.view([-1, 1, 1, 1]),
            view_logits: ids.view([-1, 1, 1]).expand([-1, 1, 2], false).contiguous(),
            class_counts: vec![vec![(0, 1)]; count],
            confidence: vec![0.5; count],
            delta: (0..count as u64).map(|i| 3.0 * uniform(first_id, i)).collect(),
            first_id,
        }
    }

    /// The buffer as one array: (id, δ) of every slot of every shard, in order.
    struct Array {
        rule: config::Replay,
        shards: Vec<Vec<(u64, f64)>>,
        next: Vec<usize>,
        capacities: Vec<usize>,
    }

    impl Array {
        fn mass(&self, delta: f64) -> u64 {
            match self.rule.draw {
                DrawRule::Priority => Mass::of_priority(priority(delta, 1e-6, 0.6), 0).unwrap().0,
                DrawRule::Uniform => 1 << 32,
            }
        }

        fn insert(&mut self, shard: usize, samples: &Samples, step: u64) {
            let newcomers: Vec<(u64, f64)> = samples.delta.iter().enumerate().map(|(i, &d)| (samples.first_id + i as u64, d)).collect();
            let (held, capacity) = (self.shards[shard].len(), self.capacities[shard]);
            let (into_room, others) = newcomers.split_at(newcomers.len().min(capacity - held));
            let leaving: Vec<usize> = match self.rule.replace {
                Replace::Fifo => (0..others.len()).map(|i| (self.next[shard] + i) % capacity).collect(),
                Replace::Random => {
                    let order = Key::of(3, Purpose::Replace, step, LogicalRank(shard)).permutation(held);
                    order.into_iter().map(|slot| slot as usize).collect()
                }
                Replace::LowestPriority => {
                    let mut order: Vec<usize> = (0..held).collect();
                    order.sort_by_key(|&slot| (self.mass(self.shards[shard][slot].1), self.shards[shard][slot].0));
                    order
                }
            };
            self.next[shard] = (self.next[shard] + others.len()) % capacity;
            others.iter().zip(leaving).for_each(|(sample, slot)| self.shards[shard][slot] = *sample);
            self.shards[shard].extend(into_room);
        }

        /// (Position, w) of every row.
        fn draw(&self, step: u64) -> Vec<(usize, f64)> {
            let masses: Vec<u64> = self.shards.iter().flatten().map(|(_, delta)| self.mass(*delta)).collect();
            let total: u64 = masses.iter().sum();
            let weight = |mass: u64| importance_weight(mass as f64 * masses.len() as f64 / total as f64, 0.4);
            let largest = match self.rule.weight_norm {
                WeightNorm::None => 1.0,
                WeightNorm::Max => weight(*masses.iter().min().unwrap()),
            };
            let key = Key::global(3, Purpose::Draw, step);
            let row = |k: usize| {
                let mut rest = (k as u128 * u128::from(total) + u128::from(key.below(k as u64, total))) / BATCH as u128;
                let mut at = 0;
                while rest >= u128::from(masses[at]) {
                    rest -= u128::from(masses[at]);
                    at += 1;
                }
                (at, weight(masses[at]) / largest)
            };
            (0..BATCH).map(row).collect()
        }
    }

    /// From shards that fill up, through evictions while full, with losses written back: every row that any rank trains on is the one
    /// that one array gives, on any number of ranks; by every rule of drawing, weighing and leaving.
    #[test]
    fn rows_on_any_number_of_ranks_are_those_of_one_array() {
        for replace in [Replace::Fifo, Replace::Random, Replace::LowestPriority] {
            for weight_norm in [WeightNorm::None, WeightNorm::Max] {
                rows_are_those_of_one_array(&config::Replay { replace, weight_norm, ..rule() });
            }
        }
        rows_are_those_of_one_array(&config::Replay { draw: DrawRule::Uniform, ..rule() });
    }

    fn rows_are_those_of_one_array(rule: &config::Replay) {
        let ids = on_ranks(LOGICAL, &[1, 2, 3, 6], |world| {
            let layout = *world.layout();
            let mut replay = empty_by(rule, world);
            let capacities: Vec<usize> = (0..LOGICAL).map(|l| layout.capacity(LogicalRank(l), CAPACITY)).collect();
            let mut array = Array { rule: rule.clone(), shards: vec![Vec::new(); LOGICAL], next: vec![0; LOGICAL], capacities };
            let mut drawn = Vec::new();
            for step in 0..12u64 {
                // Not all shards get samples in every round: some are empty at first, and masses differ.
                let newcomers = |l: usize| 1 + (l + step as usize) % 4;
                let receives = |l: usize| !(l as u64 + step).is_multiple_of(3);
                for l in (0..LOGICAL).filter(|&l| receives(l)) {
                    let samples = born(1000 * step + 100 * l as u64, newcomers(l));
                    array.insert(l, &samples, step);
                    if layout.host(LogicalRank(l)) == world.rank() {
                        replay
                            .insert(PerRank::build([LogicalRank(l)].into_iter(), |_| born(samples.first_id, newcomers(l))), step)
                            .unwrap();
                    }
                }
                let want = array.draw(step);
                let mut draw = replay.draw(world, BATCH, step).unwrap();
                let held: Vec<(u64, f64)> = array.shards.iter().flatten().copied().collect();
                for (rank, rows) in draw.rows.iter() {
                    let ids: Vec<f32> = rows.images_bchw.view([-1]).try_into().unwrap();
                    let weights: Vec<f32> = rows.weights_b.shallow_clone().try_into().unwrap();
                    let Target::Logits(logits) = &rows.target else { panic!("logits are stored") };
                    assert!(logits.select(1, 0).equal(&Tensor::from_slice(&ids)));
                    for ((row, id), weight) in layout.rows(rank, BATCH).zip(ids).zip(weights) {
                        assert_eq!((id, weight), (held[want[row].0].0 as f32, want[row].1 as f32), "step {step}, row {row}, {rule:?}");
                    }
                }
                let loss = |row: usize| uniform(100 + step, row as u64) as f32;
                let losses =
                    PerRank::build(world.hosted(), |rank| Tensor::from_slice(&layout.rows(rank, BATCH).map(loss).collect::<Vec<_>>()));
                replay.write_back(world, &mut draw, &losses).unwrap();
                let mut places: Vec<&mut (u64, f64)> = array.shards.iter_mut().flatten().collect();
                for (row, (at, weight)) in want.iter().enumerate() {
                    places[*at].1 = weight * f64::from(loss(row));
                }
                drawn.extend(want.iter().map(|(at, _)| held[*at].0));
            }
            assert!(array.shards.iter().map(Vec::len).sum::<usize>() == CAPACITY, "the buffer never was full");
            drawn
        });
        assert!(ids.iter().any(|id| *id < 1000) && ids.iter().any(|id| *id >= 11_000));
    }

    /// The worst case: all mass in one shard. Every other rank's rows travel, and every loss finds its way home.
    #[test]
    fn a_shard_with_all_the_mass_feeds_every_rank() {
        let moved = on_each_rank(4, 4, |world| {
            let mut replay = empty(world);
            if world.rank() == Rank(2) {
                replay.insert(PerRank::build(world.hosted(), |_| born(500, 5)), 0).unwrap();
            }
            let mut draw = replay.draw(world, BATCH, 0).unwrap();
            let rows = draw.rows.iter().next().unwrap().1;
            let ids: Vec<f32> = rows.images_bchw.view([-1]).try_into().unwrap();
            assert!(ids.len() == BATCH / 4 && ids.iter().all(|id| (500.0..505.0).contains(id)));
            let losses = PerRank::build(world.hosted(), |_| Tensor::full([BATCH as i64 / 4], 0.25, (Kind::Float, Device::Cpu)));
            replay.write_back(world, &mut draw, &losses).unwrap();
            if world.rank() == Rank(2) {
                let shard = replay.shard(LogicalRank(2));
                for (slot, weight) in draw.supplied[0].1.slots.iter().zip(&draw.supplied[0].1.weights) {
                    assert_eq!(shard.mass(*slot), Mass::of_priority(priority(weight * 0.25, 1e-6, 0.6), 0).unwrap());
                }
            }
            (draw.moved.rows, draw.moved.bytes)
        });
        // Masses, 24 bytes to each of three; 48 rows of 4 + 8 + 16 bytes from rank 2; 16 losses of 4 bytes from each of the others.
        let others = (0, 72 + 16 * 4);
        assert_eq!(moved, [others, others, (48, 72 + 48 * 28), others]);
    }
}
