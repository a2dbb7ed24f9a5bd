//! The global prioritised replay buffer: sharded over logical ranks, never gathered, drawn from the *global* P(x).
//!
//! Read in order: [`SumTree`] (exact sums of one shard), [`draw`] (who supplies which row), [`Shard`] (what is held),
//! [`Route`] (how rows travel), [`Replay`] (a draw, top to bottom).

pub mod draw;
mod exchange;
mod real;
mod shard;
mod sum_tree;

pub use draw::{Masses, targets};
pub use exchange::Route;
pub use real::RealData;
pub use shard::{SampleShape, Shard};
pub use sum_tree::{Mass, SumTree};

use crate::config::{self, WeightNorm};
use crate::data::View;
use crate::error::Result;
use crate::inversion::Samples;
use crate::layout::{LogicalRank, Rank};
use crate::losses::importance_weight;
use crate::parallel::{PerRank, World};
use crate::rng::{Key, Purpose};
use exchange::{pack, unpack};
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
    /// By name, for a look at them from outside. `views` are down, right, flip.
    pub fn tensors(&self) -> Vec<(&'static str, Tensor)> {
        let views: Vec<i64> = self.views.iter().flat_map(|v| [v.down, v.right, i64::from(v.flip)]).collect();
        let mut tensors = vec![
            ("images", self.images_bchw.shallow_clone()),
            ("ids", self.ids_b.shallow_clone()),
            ("weights", self.weights_b.shallow_clone()),
            ("views", Tensor::from_slice(&views).view([-1, 3])),
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
    /// Labels of real data, `[b]` i64.
    Labels(Tensor),
}

/// One global draw, as this process sees it.
pub struct Draw {
    /// Rows by consuming logical rank.
    pub rows: PerRank<Rows>,
    /// Rows this process sent to other processes.
    pub rows_sent_away: usize,
    /// Slot and weight of every row this process supplied, by shard.
    supplied: Vec<(LogicalRank, Vec<(usize, f64)>)>,
    route: Option<Route>,
}

impl Draw {
    /// Rows that nobody wants to hear of again.
    fn local(rows: PerRank<Rows>) -> Self {
        Self { rows, rows_sent_away: 0, supplied: Vec::new(), route: None }
    }
}

/// Where a step's rows come from, and what hears of their losses.
pub enum Memory {
    /// Synthetic images.
    Replay(Replay),
    /// Real ones.
    Real(RealData),
}

impl Memory {
    /// Rows of a global batch. A collective.
    pub fn draw(&mut self, world: &World, batch: usize, step: u64) -> Result<Draw> {
        let _span = tracing::debug_span!("sampling").entered();
        match self {
            Self::Replay(replay) => replay.draw(world, batch, step),
            Self::Real(data) => Ok(data.draw(world, batch, step)),
        }
    }

    /// Tells the memory the new loss of every row. A collective.
    pub fn write_back(&mut self, world: &World, draw: &Draw, loss: &PerRank<Tensor>) -> Result<()> {
        let _span = tracing::debug_span!("sampling").entered();
        match self {
            Self::Replay(replay) => replay.write_back(world, draw, loss),
            Self::Real(_) => Ok(()),
        }
    }

    /// The replay buffer, where there is one.
    pub fn replay(&self) -> Option<&Replay> {
        match self {
            Self::Replay(replay) => Some(replay),
            Self::Real(_) => None,
        }
    }

    /// The replay buffer, for changing.
    pub fn replay_mut(&mut self) -> Option<&mut Replay> {
        match self {
            Self::Replay(replay) => Some(replay),
            Self::Real(_) => None,
        }
    }
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
    /// Empty shards of this process.
    pub fn new(rule: &config::Replay, views: &config::Distill, seed: u64, shape: SampleShape, world: &World) -> Self {
        let layout = *world.layout();
        let shard = |rank| Shard::new(rule, layout.capacity(rank, rule.capacity), &shape, world.device());
        let shards = PerRank::build(world.hosted(), shard);
        Self { rule: rule.clone(), views: views.clone(), shape, seed, shards }
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
        self.histogram(world, self.shape.classes, Shard::count_classes)
    }

    /// Samples by the teacher's confidence in `bins` equal parts of [0, 1], over all shards. A collective.
    pub fn confidence_counts(&self, world: &World, bins: usize) -> Result<Vec<u64>> {
        self.histogram(world, bins, Shard::count_confidence)
    }

    fn histogram(&self, world: &World, bins: usize, count: fn(&Shard, &mut [u64])) -> Result<Vec<u64>> {
        let mine = PerRank::build(world.hosted(), |rank| {
            let mut counts = vec![0; bins];
            count(self.shards.get(rank), &mut counts);
            counts
        });
        let mut total = vec![0u64; bins];
        for counts in world.gather_vectors(&mine)? {
            total.iter_mut().zip(counts).for_each(|(sum, n)| *sum += n);
        }
        Ok(total)
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
        let masses = self.masses(world)?;
        let targets = targets(masses.0.total(), batch, &Key::global(self.seed, Purpose::Draw, step));
        let view_key = Key::global(self.seed, Purpose::DrawView, step);

        let mut supplied = Vec::new();
        let mut parts = Vec::new();
        for rank in world.hosted() {
            let rows = masses.0.supplied(&targets, rank.0);
            let (slots, part) = self.supply(rank, &masses, &targets[rows.clone()], rows.start, &view_key);
            supplied.push((rank, slots));
            parts.extend(part);
        }
        let layout = *world.layout();
        let hosted_rows = |of: &dyn Fn(LogicalRank) -> Range<usize>| -> Vec<Range<usize>> {
            let ends = |r| (layout.hosted(Rank(r)).next(), layout.hosted(Rank(r)).next_back());
            (0..layout.ranks()).map(|r| if let (Some(a), Some(b)) = ends(r) { of(a).start..of(b).end } else { 0..0 }).collect()
        };
        let consumed = hosted_rows(&|l| layout.rows(l, batch));
        let route = Route::new(world.rank(), &hosted_rows(&|l| masses.0.supplied(&targets, l.0)), &consumed);
        let packed = if parts.is_empty() { self.no_rows(world) } else { Tensor::cat(&parts, 0) };
        let received = route.out(world, &packed)?;
        let first = consumed[world.rank().0].start;
        let rows = PerRank::build(world.hosted(), |rank| {
            let rows = layout.rows(rank, batch);
            self.rows(&received.narrow(0, (rows.start - first) as i64, rows.len() as i64), rows.start, &view_key)
        });
        Ok(Draw { rows, rows_sent_away: route.rows_sent_away(world.rank()), supplied, route: Some(route) })
    }

    /// Global masses, and the largest importance weight when weights are divided by it.
    fn masses(&self, world: &World) -> Result<(Masses, f64)> {
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
                // A slot of mass 0 is never drawn; the largest weight belongs to the smallest mass that can be.
                let smallest = all.iter().filter(|s| s[1] > 0).map(|s| s[2].max(1)).min().unwrap_or(1);
                importance_weight(masses.relative_probability(Mass(smallest)), self.rule.beta)
            }
        };
        Ok((masses, largest))
    }

    /// Rows of one shard: slots and weights for the way home, and the packed rows.
    fn supply(
        &self,
        rank: LogicalRank,
        (masses, largest_weight): &(Masses, f64),
        targets: &[u64],
        first_row: usize,
        view_key: &Key,
    ) -> (Vec<(usize, f64)>, Option<Tensor>) {
        let shard = self.shards.get(rank);
        let local: Vec<u64> = targets.iter().map(|t| t - masses.before(rank.0)).collect();
        let slots = shard.find(&local, masses.uniform());
        if slots.is_empty() {
            return (Vec::new(), None);
        }
        let weight = |&slot: &usize| importance_weight(masses.relative_probability(shard.mass(slot)), self.rule.beta) / largest_weight;
        let weights: Vec<f64> = slots.iter().map(weight).collect();
        let index: Vec<i64> = slots.iter().map(|&s| s as i64).collect();
        let views: Vec<i64> = (0..slots.len()).map(|i| self.view_of_row(view_key, first_row + i)).collect();
        let about: Vec<i64> = slots.iter().zip(&weights).flat_map(|(&slot, w)| [shard.id(slot) as i64, w.to_bits() as i64]).collect();
        let images = shard.images(&index);
        let about = Tensor::from_slice(&about).view([-1, 2]).to_device(images.device());
        let packed = match self.views.teacher_views {
            0 => pack(&[&images, &about]),
            _ => pack(&[&images, &shard.view_logits(&index, &views), &about]),
        };
        (slots.into_iter().zip(weights).collect(), Some(packed))
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

    fn no_rows(&self, world: &World) -> Tensor {
        let width: i64 = self.parts().iter().map(|(shape, kind)| shape.iter().product::<i64>() * kind.elt_size_in_bytes() as i64).sum();
        Tensor::zeros([0, width], (Kind::Uint8, world.device()))
    }

    /// Received rows as the student takes them.
    fn rows(&self, packed: &Tensor, first_row: usize, view_key: &Key) -> Rows {
        let parts = self.parts();
        let mut taken = unpack(packed, &parts.each_ref().map(|(shape, kind)| (shape.as_slice(), *kind))).into_iter();
        let (images, logits, about) = (taken.next(), taken.next(), taken.next());
        let about: Vec<i64> = about.map(|t| t.view([-1]).try_into().unwrap_or_default()).unwrap_or_default();
        let ids: Vec<i64> = about.chunks_exact(2).map(|row| row[0]).collect();
        let weights: Vec<f32> = about.chunks_exact(2).map(|row| f64::from_bits(row[1] as u64) as f32).collect();
        let view = |(i, row): (usize, &[i64])| match self.views.teacher_views {
            0 => View::draw(view_key, 2 * (first_row + i) as u64 + 1, self.views.view_shift, true),
            _ => View::stored(self.seed, row[0] as u64, self.view_of_row(view_key, first_row + i) as u64, self.views.view_shift),
        };
        let views = about.chunks_exact(2).enumerate().map(view).collect();
        let images_bchw = images.unwrap_or_default();
        let target = match (self.views.teacher_views, logits) {
            (0, _) | (_, None) => Target::AskTeacher,
            (_, Some(logits)) => Target::Logits(logits),
        };
        let weights_b = Tensor::from_slice(&weights).to_device(images_bchw.device());
        Rows { ids_b: Tensor::from_slice(&ids), weights_b, images_bchw, views, target }
    }

    /// Sends the new KL of every row home and stores δ = w·KL there (SSD-KD Eq. 5). A collective; 4 bytes a row.
    pub fn write_back(&mut self, world: &World, draw: &Draw, kl: &PerRank<Tensor>) -> Result<()> {
        let all: Vec<Tensor> = kl.iter().map(|(_, kl_b)| kl_b.shallow_clone()).collect();
        let Some(route) = &draw.route else { return Ok(()) };
        let home = route.home(world, &Tensor::cat(&all, 0))?;
        let home: Vec<f64> = Vec::<f32>::try_from(home).unwrap_or_default().into_iter().map(f64::from).collect();
        let mut at = 0;
        for (rank, drawn) in &draw.supplied {
            self.shards.get_mut(*rank).write_back(drawn, &home[at..at + drawn.len()])?;
            at += drawn.len();
        }
        Ok(())
    }
}
