//! The picture of a round: the newest images of the buffer's first categories, over all shards, or images made for it.

use super::Run;
use crate::data::{Facts, coloured, to_bytes, to_unit};
use crate::error::Result;
use crate::losses::predicted_and_confidence;
use crate::metrics::{PICTURE_ROWS, Seen};
use crate::nn::Pass;
use crate::parallel::{World, comm};
use crate::replay::Replay;
use crate::rng::{Key, Purpose};
use crate::task::{self, Task};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

/// Synthetic images of one category.
const COLUMNS: usize = 12;

/// A picture's rows, a category each; empty places at their ends.
pub(super) type Rows = Vec<Vec<Option<Tensor>>>;

/// The rows, newest first, on the leading rank; the same on any number of ranks. A collective: ids go to all, the images that are
/// shown to the leader alone.
pub(super) fn gather(replay: &Replay, facts: &Facts, world: &World) -> Result<Option<Rows>> {
    let classes = (facts.classes as usize).min(PICTURE_ROWS);
    let shape = [facts.channels, facts.size[0], facts.size[1]];
    let pixels = shape.iter().product::<i64>() as usize;
    let (mut mine, mut places) = (Vec::new(), BTreeMap::new());
    for rank in world.hosted() {
        let shard = replay.shard(rank);
        for (class, slot) in shard.newest(COLUMNS, classes) {
            mine.extend([class as u64, shard.id(slot)].map(u64::to_le_bytes).concat());
            places.insert(shard.id(slot), (rank, slot as i64));
        }
    }
    let rows = shown(&comm::all_gather_varied(world.comm(), &mine)?, classes);
    let of = |host: usize| rows.iter().flatten().filter(move |entry| entry.1 == host).map(|entry| entry.0);

    let mut send = Vec::new();
    for (rank, slot) in of(world.rank().0).filter_map(|id| places.get(&id)) {
        let image = replay.shard(*rank).images(&[*slot]);
        let bytes = if image.kind() == Kind::Uint8 { image } else { to_bytes(&image) };
        send.extend(Vec::<u8>::try_from(bytes.flatten(0, -1)).unwrap_or_default());
    }
    let ranks = world.layout().ranks();
    let (mut send_counts, mut receive_counts) = (vec![0; ranks], vec![0; ranks]);
    send_counts[0] = send.len();
    if world.leads() {
        receive_counts = (0..ranks).map(|host| pixels * of(host).count()).collect();
    }
    let received = Tensor::zeros([receive_counts.iter().sum::<usize>() as i64], (Kind::Uint8, Device::Cpu));
    world.comm().all_to_all(&Tensor::from_slice(&send), &send_counts, &received, &receive_counts)?;
    if !world.leads() {
        return Ok(None);
    }
    // Every host's images lie together, in the order of `rows`.
    let mut starts: Vec<usize> = (0..ranks).map(|host| receive_counts[..host].iter().sum()).collect();
    let mut next = |host: usize| {
        let start = starts[host] as i64;
        starts[host] += pixels;
        received.narrow(0, start, pixels as i64).view(shape)
    };
    let mut filled: Rows = rows.iter().map(|row| row.iter().map(|(_, host)| Some(next(*host))).collect()).collect();
    filled.iter_mut().for_each(|row| row.resize_with(COLUMNS, || None));
    Ok(Some(filled))
}

/// Images that the shared generator makes for the picture of a round, with the teacher's categories and its confidence in them, where a
/// method keeps no images; `None` where it makes none. On one rank: the generator and the images are the same on all.
fn fresh(run: &Run, round: u64) -> Option<[Tensor; 3]> {
    let (generator, teacher) = (run.generator.as_ref()?, run.teacher.as_ref()?);
    let count = 2 * (run.facts.classes as usize).min(PICTURE_ROWS) * COLUMNS;
    // In batches as the generator is trained on: no more at a time has to fit than in a round.
    let batch = run.config.inversion.batch_size;
    let parts = count.div_ceil(batch) as u64;
    let key = |part: u64| Key::global(run.config.seed, Purpose::Picture, round * parts + part);
    let images = Tensor::cat(&(0..parts).map(|part| generator.sample(&key(part), batch)).collect::<Vec<_>>(), 0);
    let output = teacher.evaluate_all(&run.normalise.apply(&images), batch as i64);
    let (predicted, confidence) = predicted_and_confidence(&output.logits);
    Some([images, predicted, confidence])
}

/// The rows of those images.
pub(super) fn made(run: &Run, round: u64) -> Option<Rows> {
    let [images, predicted, _] = fresh(run, round)?;
    let images = to_bytes(&images).to_device(Device::Cpu);
    let mut rows: Rows = (0..(run.facts.classes as usize).min(PICTURE_ROWS)).map(|_| Vec::new()).collect();
    for (i, counts) in task::class_counts(&predicted).iter().enumerate() {
        // An image that shows several classes belongs to the one with most of its pixels.
        let most = counts.iter().max_by_key(|(_, count)| *count).map_or(0, |(class, _)| *class as usize);
        if let Some(row) = rows.get_mut(most).filter(|row| row.len() < COLUMNS) {
            row.push(Some(images.get(i as i64)));
        }
    }
    rows.iter_mut().for_each(|row| row.resize_with(COLUMNS, || None));
    Some(rows)
}

/// All of those images by category and by confidence, as a buffer's are counted.
pub(super) fn seen(run: &Run, round: u64) -> Option<Seen> {
    let [_, predicted, confidence] = fresh(run, round)?;
    let class_counts = task::total_counts(task::class_counts(&predicted).iter().flatten(), run.facts.classes as usize);
    let confidences = Vec::<f32>::try_from(task::per_sample(&confidence)).unwrap_or_default();
    Some(Seen { class_counts, confidence_counts: task::confidence_counts(confidences) })
}

/// The same rows as the run's task shows them, with what teacher and student see in the images. On one rank.
pub(super) fn explained(rows: Rows, run: &Run) -> Rows {
    let look = |image: &Tensor| {
        let seen = run.normalise.apply(&to_unit(&image.unsqueeze(0).to_device(run.student.state().parameters().device())));
        let (student, weights) = run.student.frozen();
        let student = tch::no_grad(|| student.forward(weights, &seen, &mut Pass::eval()).logits);
        let teacher = run.teacher.as_ref().map(|teacher| teacher.evaluate(&seen).logits);
        teacher.iter().chain([&student]).map(|logits| coloured(&logits.argmax(1, false).get(0))).collect()
    };
    Task::of(run.config.dataset).pictured(rows, look)
}

/// What is shown of the (category, id) pairs that every process has: (id, process), a row for each category, newest first.
fn shown(held: &[Vec<u8>], classes: usize) -> Vec<Vec<(u64, usize)>> {
    let mut rows = vec![Vec::new(); classes];
    for (host, pairs) in held.iter().enumerate() {
        let mut words = pairs.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b));
        while let (Some(class), Some(id)) = (words.next(), words.next()) {
            rows[class as usize].push((id, host));
        }
    }
    for row in &mut rows {
        row.sort_by_key(|&(id, _)| Reverse(id));
        row.truncate(COLUMNS);
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, DatasetName, ImageDtype};
    use crate::data;
    use crate::inversion::Samples;
    use crate::parallel::PerRank;
    use crate::parallel::test_ranks::on_each_rank;
    use crate::replay::SampleShape;

    const CLASSES: u64 = 30;

    /// Samples whose one pixel is their id; the category follows from it, and one in ten is of the last.
    fn born(first_id: u64, count: u64) -> Samples {
        let ids: Vec<u8> = (first_id..first_id + count).map(|id| id as u8).collect();
        Samples {
            images_bchw: Tensor::from_slice(&ids).view([-1, 1, 1, 1]),
            view_logits: Tensor::zeros([count as i64, 0, 1], (Kind::Float, Device::Cpu)),
            class_counts: (first_id..first_id + count).map(|id| vec![(class(id) as u32, 1)]).collect(),
            confidence: vec![0.5; count as usize],
            delta: vec![1.0; count as usize],
            first_id,
        }
    }

    fn class(id: u64) -> u64 {
        if id.is_multiple_of(10) { CLASSES - 1 } else { id % 3 }
    }

    /// Shards of different sizes: all but the first get samples in one round only. Every row holds the highest ids there are, wherever
    /// they lie, and categories past the last row are neither shown nor sent.
    #[test]
    fn the_newest_over_all_shards_are_shown_on_any_number_of_ranks() {
        let facts = data::Facts { classes: CLASSES as i64, size: [1, 1], ..data::facts(DatasetName::Mnist) };
        let pictures: Vec<_> = [1, 2, 4]
            .into_iter()
            .map(|ranks| {
                let mut all = on_each_rank(4, ranks, |world| {
                    let shape = SampleShape { image: vec![1, 1, 1], view_logits: vec![0, 1], classes: CLASSES as usize };
                    let rule = config::Replay { capacity: 400, image_dtype: ImageDtype::Uint8, ..config::Replay::default() };
                    let views = config::Distill { teacher_views: 0, ..config::Distill::default() };
                    let mut replay = Replay::new("replay.capacity", &rule, &views, 3, shape, world).unwrap();
                    replay.insert(PerRank::build(world.hosted(), |l| born(40 * l.0 as u64, 8)), 0).unwrap();
                    let newcomers = world.hosted().filter(|l| l.0 == 0);
                    replay.insert(PerRank::build(newcomers, |_| born(160, 15)), 1).unwrap();
                    let rows = gather(&replay, &facts, world).unwrap();
                    rows.map(|rows| {
                        let pixel = |image: &Option<Tensor>| image.as_ref().map(|t| t.int64_value(&[0, 0, 0]) as u64);
                        rows.iter().map(|row| row.iter().map(pixel).collect::<Vec<_>>()).collect::<Vec<_>>()
                    })
                });
                assert!(all[1..].iter().all(Option::is_none));
                all.remove(0).unwrap()
            })
            .collect();
        let held: Vec<u64> = (0..4).flat_map(|l| 40 * l..40 * l + 8).chain(160..175).collect();
        let want = |row: u64| {
            let mut ids: Vec<Option<u64>> = held.iter().rev().copied().filter(|id| class(*id) == row).map(Some).collect();
            ids.resize(COLUMNS, None);
            ids
        };
        for picture in &pictures {
            assert_eq!(*picture, (0..PICTURE_ROWS as u64).map(want).collect::<Vec<_>>());
        }
        let first: Vec<u64> = pictures[0][1].iter().flatten().copied().collect();
        assert!(first.len() == COLUMNS && [160, 120, 80].iter().all(|from| first.iter().any(|id| id >= from && *id < from + 40)));
    }
}
