//! What it costs that draws are global: one draw on the ranks of this launch, taken apart, with bytes and messages counted.

use super::median;
use crate::config::{DatasetName, Distill, ImageDtype, Replay as Rule};
use crate::data;
use crate::error::Result;
use crate::inversion::Samples;
use crate::parallel::{PerRank, World};
use crate::replay::{Replay, Route, SampleShape};
use crate::rng::{Key, Purpose};
use serde::Serialize;
use std::time::Instant;
use tch::{Kind, Tensor};

/// Microseconds of a draw's parts: medians over draws, of the slowest rank. Bytes and messages of all ranks together, per draw.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DrawTimes {
    /// R.
    pub ranks: usize,
    /// M.
    pub logical_ranks: usize,
    /// B.
    pub batch: usize,
    /// Bytes of a row as it travels: image, logits of one view, id, weight.
    pub row_bytes: usize,
    /// All-gather of masses.
    pub masses_us: f64,
    /// Targets, slots, P, w, and gathering the rows.
    pub look_up_us: f64,
    /// Rows to where they are trained on.
    pub exchange_us: f64,
    /// Losses home, new masses.
    pub home_us: f64,
    /// Counted.
    pub bytes: f64,
    /// By the formula of docs/replay.md.
    pub bytes_expected: f64,
    /// Counted.
    pub messages: f64,
    /// By the formula.
    pub messages_expected: f64,
    /// Rows that moved.
    pub rows_moved: f64,
}

const SEED: u64 = 5;

/// Adds the microseconds that `work` takes.
fn clock<T>(times: &mut Vec<f64>, work: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let done = work();
    times.push(began.elapsed().as_secs_f64() * 1e6);
    done
}

/// Draws `batch` rows `draws` times from a full buffer of `capacity` CIFAR-sized images. A collective.
pub fn draw_times(world: &World, capacity: usize, batch: usize, draws: u64) -> Result<DrawTimes> {
    let mut replay = filled(world, DatasetName::Cifar10, capacity)?;
    let layout = *world.layout();
    let mut parts: [Vec<f64>; 4] = Default::default();
    let (mut rows, mut bytes_expected, mut messages_expected) = (0, 0, 0);
    let (mut bytes, mut messages) = (0, 0);
    for step in 0..draws {
        let key = Key::global(SEED, Purpose::Labels, step);
        let losses = PerRank::build(world.hosted(), |rank| {
            let losses: Vec<f32> = layout.rows(rank, batch).map(|row| key.uniform(row as u64) as f32).collect();
            Tensor::from_slice(&losses)
        });
        // All ranks begin a collective together: waiting for others is not its cost.
        world.barrier()?;
        let counted = (world.meter().total_bytes(), world.meter().total_messages());
        let masses = clock(&mut parts[0], || replay.masses(world))?;
        let supply = clock(&mut parts[1], || replay.look_up(world, &masses, batch, step));
        let cost = Route::cost(layout.logical_ranks(), &supply.supplied, &supply.consumed, replay.row_bytes());
        world.barrier()?;
        let received = clock(&mut parts[2], || supply.route.out(world, &supply.packed))?;
        let mut draw = supply.into_draw(replay.hand_out(world, &received, batch, step));
        world.barrier()?;
        clock(&mut parts[3], || replay.write_back(world, &mut draw, &losses))?;
        bytes += world.meter().total_bytes() - counted.0;
        messages += world.meter().total_messages() - counted.1;
        rows += cost.rows;
        bytes_expected += cost.bytes;
        messages_expected += cost.messages;
    }
    let nanoseconds = parts.map(|part| (median(part) * 1e3) as u64);
    let all = world.gather(&PerRank::build(world.hosted(), |_| nanoseconds))?;
    let [bytes, messages] = world.sum([bytes, messages])?;
    let slowest = |part: usize| all.iter().map(|each| each[part]).max().unwrap_or_default() as f64 / 1e3;
    let per_draw = |sum: u64| sum as f64 / draws.max(1) as f64;
    Ok(DrawTimes {
        ranks: layout.ranks(),
        logical_ranks: layout.logical_ranks(),
        batch,
        row_bytes: replay.row_bytes(),
        masses_us: slowest(0),
        look_up_us: slowest(1),
        exchange_us: slowest(2),
        home_us: slowest(3),
        bytes: per_draw(bytes),
        bytes_expected: per_draw(bytes_expected as u64),
        messages: per_draw(messages),
        messages_expected: per_draw(messages_expected as u64),
        rows_moved: per_draw(rows as u64),
    })
}

/// A buffer full of images of a data set's size, losses between 0 and 1.
pub(super) fn filled(world: &World, dataset: DatasetName, capacity: usize) -> Result<Replay> {
    let facts = data::facts(dataset);
    let (classes, [h, w]) = (facts.classes, facts.size);
    let rule = Rule { capacity, image_dtype: ImageDtype::Uint8, ..Rule::default() };
    let views = Distill::default();
    let stored = views.teacher_views as i64;
    let shape = SampleShape { image: vec![facts.channels, h, w], view_logits: vec![stored, classes], classes: classes as usize };
    let mut replay = Replay::new("replay.capacity", &rule, &views, SEED, shape, world)?;
    let layout = *world.layout();
    let noise: Vec<u8> = (0..facts.channels * h * w).map(|i| Key::global(SEED, Purpose::Latent, 0).below(i as u64, 256) as u8).collect();
    let image = Tensor::from_slice(&noise).view([1, facts.channels, h, w]).to_device(world.device());
    let born = PerRank::build(world.hosted(), |rank| {
        let count = layout.capacity(rank, capacity);
        let key = Key::of(SEED, Purpose::Latent, 0, rank);
        Samples {
            images_bchw: image.repeat([count as i64, 1, 1, 1]),
            view_logits: Tensor::zeros([count as i64, stored, classes], (Kind::Float, world.device())),
            class_counts: vec![vec![(0, 1)]; count],
            confidence: vec![1.0; count],
            delta: (0..count as u64).map(|i| key.uniform(i)).collect(),
            first_id: (rank.0 * capacity) as u64,
        }
    });
    replay.insert(born, 0)?;
    Ok(replay)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parallel::test_ranks::on_each_rank;

    #[test]
    fn bytes_and_messages_are_those_of_the_formula() {
        for (logical, ranks) in [(1, 1), (4, 1), (4, 2), (4, 4), (6, 3), (8, 8)] {
            for times in on_each_rank(logical, ranks, |world| draw_times(world, 403, 250, 3).unwrap()) {
                assert_eq!((times.bytes, times.messages), (times.bytes_expected, times.messages_expected), "{times:?}");
                assert_eq!(times.bytes == 0.0, ranks == 1);
                // Two cuts of a batch into R ranges meet in at most 2R − 1 pieces.
                assert!(times.messages <= (ranks * (ranks - 1) + 2 * (2 * ranks - 1)) as f64, "{times:?}");
            }
        }
    }
}
