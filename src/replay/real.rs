//! Rows of real data instead of synthetic ones: for teachers and reference runs.

use super::{Draw, Rows, Target};
use crate::data::{Dataset, View};
use crate::parallel::{PerRank, World};
use crate::rng::{Key, Purpose};
use tch::{Kind, Tensor};

/// A data set, read in a new order every epoch. Every rank holds all of it.
pub struct RealData {
    data: Dataset,
    seed: u64,
    view_shift: i64,
    flip: bool,
    order: Option<(u64, Vec<u32>)>,
}

impl RealData {
    /// Views shift images by up to `view_shift` pixels and flip them if `flip`.
    pub fn new(data: Dataset, seed: u64, view_shift: i64, flip: bool) -> Self {
        Self { data, seed, view_shift, flip, order: None }
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.data.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// The next `batch` images of the endless sequence of epochs: every image once an epoch, batches run on across its end.
    pub fn draw(&mut self, world: &World, batch: usize, step: u64) -> Draw {
        let n = self.len() as u64;
        let key = Key::global(self.seed, Purpose::DrawView, step);
        let (layout, (shift, flip)) = (*world.layout(), (self.view_shift, self.flip));
        let rows = PerRank::build(world.hosted(), |rank| {
            let rows = layout.rows(rank, batch);
            let views = rows.clone().map(|row| View::draw(&key, row as u64, shift, flip)).collect();
            let index: Vec<i64> = rows.map(|row| i64::from(self.image_at(step * batch as u64 + row as u64, n))).collect();
            let index = Tensor::from_slice(&index);
            Rows {
                images_bchw: self.data.images_nchw.index_select(0, &index).to_device(world.device()),
                weights_b: Tensor::ones([index.numel() as i64], (Kind::Float, world.device())),
                target: Target::Labels(self.data.labels_n.index_select(0, &index).to_device(world.device())),
                views,
                ids_b: index,
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
