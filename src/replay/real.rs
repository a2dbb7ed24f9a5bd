//! Rows of real data instead of synthetic ones: for teachers and reference runs.

use super::{Draw, Rows, Target};
use crate::config;
use crate::data::{Examples, View, move_labels};
use crate::device::upload;
use crate::parallel::{PerRank, World};
use crate::rng::{Key, Purpose};
use crate::task::{self, IGNORED};
use tch::{Kind, Tensor};

/// How images are seen: first cut, then shifted and flipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Augmentation {
    /// Views shift images by up to this many pixels.
    pub view_shift: i64,
    /// Whether they flip half of them.
    pub flip: bool,
    /// Height and width to which larger images are cut, anywhere.
    pub size: [i64; 2],
}

impl Augmentation {
    /// For a student of real data, which sees images of `size`.
    pub fn of_distillation(rule: &config::Distill, size: [i64; 2]) -> Self {
        Self { view_shift: rule.view_shift, flip: rule.view_flip, size }
    }

    /// For a teacher of images of `size`, or of `teach.crop`.
    pub fn of_teaching(rule: &config::Teach, size: [i64; 2]) -> Self {
        Self { view_shift: rule.view_shift, flip: rule.flip, size: rule.seen(size) }
    }
}

/// A data set, read in a new order every epoch. Every rank has all of it.
pub struct RealData {
    data: Examples,
    seed: u64,
    seen: Augmentation,
    order: Option<(u64, Vec<u32>)>,
}

impl RealData {
    /// Images seen in a new way every time.
    pub fn new(data: Examples, seed: u64, seen: Augmentation) -> Self {
        Self { data, seed, seen, order: None }
    }

    /// The split itself.
    pub fn examples(&self) -> &Examples {
        &self.data
    }

    /// Height and width of images as the network in training sees them: cut where they are larger.
    pub fn size(&self) -> [i64; 2] {
        if self.is_empty() {
            return self.seen.size;
        }
        let whole = self.data.rows(&[0]).0.size();
        [self.seen.size[0].min(whole[2]), self.seen.size[1].min(whole[3])]
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.data.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The next `batch` images of the endless sequence of epochs: every image once an epoch, batches run on across its end.
    pub fn draw(&mut self, world: &World, batch: usize, step: u64) -> Draw {
        let n = self.len() as u64;
        let key = |purpose| Key::global(self.seed, purpose, step);
        let (view_key, crop_key) = (key(Purpose::DrawView), key(Purpose::Crop));
        let layout = *world.layout();
        let rows = PerRank::build(world.hosted(), |rank| {
            let rows = layout.rows(rank, batch);
            let views: Vec<View> =
                rows.clone().map(|row| View::draw(&view_key, row as u64, self.seen.view_shift, self.seen.flip)).collect();
            let places: Vec<u64> = rows.clone().map(|row| u64::from(self.image_at(step * batch as u64 + row as u64, n))).collect();
            let (images, labels) = self.data.rows(&places);
            let (images, labels) = cut(images, labels, self.seen.size, &crop_key, rows.start as u64);
            let labels = task::moved(labels, |maps| move_labels(maps, &views, IGNORED));
            Rows {
                images_bchw: upload(&images, world.device()),
                weights_b: Tensor::ones([places.len() as i64], (Kind::Float, world.device())),
                target: Target::Labels(upload(&labels, world.device())),
                ids_b: Tensor::from_slice(&places.iter().map(|&place| place as i64).collect::<Vec<_>>()),
                views,
            }
        });
        Draw::local(rows)
    }

    fn image_at(&mut self, position: u64, n: u64) -> u32 {
        let (epoch, within) = (position / n, (position % n) as usize);
        if self.order.as_ref().is_none_or(|(of, _)| *of != epoch) {
            self.order = Some((epoch, Key::global(self.seed, Purpose::Shuffle, epoch).permutation(n as usize)));
        }
        self.order.as_ref().map_or(0, |(_, order)| order[within])
    }
}

/// Images, and maps of labels with them, cut to `size` where they are larger: every place equally likely.
fn cut(images_bchw: Tensor, labels: Tensor, size: [i64; 2], key: &Key, first_row: u64) -> (Tensor, Tensor) {
    let from = images_bchw.size();
    let (room_h, room_w) = ((from[2] - size[0]).max(0), (from[3] - size[1]).max(0));
    if (room_h, room_w) == (0, 0) {
        return (images_bchw, labels);
    }
    let corner = |i: i64, axis: u64, room: i64| key.below(2 * (first_row + i as u64) + axis, room as u64 + 1) as i64;
    let [h, w] = [size[0].min(from[2]), size[1].min(from[3])];
    let window = |t: &Tensor| {
        let one = |i: i64| t.get(i).narrow(-2, corner(i, 0, room_h), h).narrow(-1, corner(i, 1, room_w), w);
        Tensor::stack(&(0..from[0]).map(one).collect::<Vec<_>>(), 0)
    };
    (window(&images_bchw), task::moved(labels, window))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Images whose pixels say where they were: every window is whole, its labels are those of its pixels, and over many rows each of
    /// the 3·2 places occurs. (A place that occurs with probability 1/6 is missed by 200 rows once in 10¹⁵.)
    #[test]
    fn windows_of_images_and_labels_lie_together_and_anywhere() {
        let map = Tensor::arange(5 * 4, (Kind::Int64, tch::Device::Cpu)).view([1, 5, 4]);
        let labels = map.expand([200, 5, 4], false);
        let images = labels.unsqueeze(1).expand([200, 3, 5, 4], false).to_kind(Kind::Uint8);
        let (images, labels) = cut(images, labels, [3, 3], &Key::global(1, Purpose::Crop, 0), 0);
        assert_eq!((images.size(), labels.size()), (vec![200, 3, 3, 3], vec![200, 3, 3]));
        assert!(images.select(1, 2).to_kind(Kind::Int64).equal(&labels));
        let corners: std::collections::BTreeSet<i64> = (0..200).map(|i| labels.int64_value(&[i, 0, 0])).collect();
        assert_eq!(corners.into_iter().collect::<Vec<_>>(), [0, 1, 4, 5, 8, 9]);
        assert!((&labels.get(7) - labels.int64_value(&[7, 0, 0])).equal(&map.get(0).narrow(0, 0, 3).narrow(1, 0, 3)));
        // What is no larger is left alone.
        let (small, _) = cut(images.shallow_clone(), labels, [3, 8], &Key::global(1, Purpose::Crop, 0), 0);
        assert!(small.equal(&images));
    }
}
