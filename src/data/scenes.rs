//! `scenes13`: rooms drawn by ssdkd itself, for trials of segmentation without a download.
//!
//! A wall, a floor and a ceiling, things on the wall, furniture on the floor, small things on top; nearer ones hide others. Colours are
//! shared, as in real rooms: floors, tables, chairs, cupboards and beds may all be of wood. Most things have a pattern of their class,
//! which books, frames and pillows, walls, windows and screens have not: what is around a pixel decides.
//! Integer arithmetic on keyed random numbers: a scene is a function of (seed, split, number) and size, with the same bytes everywhere.

mod canvas;
mod furniture;

use super::Split;
use crate::config;
use crate::rng::{Key, Purpose};
use canvas::{Canvas, Dice};
use tch::Tensor;

/// A split of made scenes.
#[derive(Debug, Clone)]
pub struct Scenes {
    seed: u64,
    size: usize,
    split: Split,
    count: usize,
}

impl Scenes {
    /// As configured.
    pub fn new(config: &config::Data, split: Split) -> Self {
        let count = match split {
            Split::Train => config.train_scenes,
            Split::Test => config.test_scenes,
        };
        Self { seed: config.scene_seed, size: config.scene_size as usize, split, count }
    }

    /// Number of scenes.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Images uint8 `[b, 3, s, s]` and labels uint8 `[b, s, s]`.
    pub(super) fn draw(&self, places: &[u64]) -> (Tensor, Tensor) {
        let (mut pixels, mut labels) = (Vec::new(), Vec::new());
        for &place in places {
            // Even keys for training, odd ones for the test: no scene is in both.
            let key = Key::global(self.seed, Purpose::Scene, 2 * place + u64::from(self.split == Split::Test));
            let canvas = furniture::room(Canvas::new(self.size), &mut Dice::new(key));
            let (of_pixels, of_labels) = canvas.finished();
            pixels.extend(of_pixels);
            labels.extend(of_labels);
        }
        let (b, s) = (places.len() as i64, self.size as i64);
        (Tensor::from_slice(&pixels).view([b, 3, s, s]), Tensor::from_slice(&labels).view([b, s, s]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::sha256;
    use tch::Kind;

    fn scenes(split: Split, size: i64) -> Scenes {
        Scenes::new(&config::Data { scene_size: size, ..config::Data::default() }, split)
    }

    fn bytes(t: &Tensor) -> Vec<u8> {
        Vec::try_from(t.flatten(0, -1)).unwrap()
    }

    /// The same bytes on every machine: whoever changes a scene changes a data set that results name.
    #[test]
    fn scenes_are_what_they_have_always_been() {
        let (images, labels) = scenes(Split::Train, 128).draw(&[0, 1, 99_999]);
        assert_eq!(sha256(&[bytes(&images), bytes(&labels)].concat()), GOLDEN);
    }

    const GOLDEN: &str = "b034896359c2cb76a45fb522b7c5b3cd30374ec7e0503d70952a7594472763e0";

    #[test]
    fn a_scene_depends_on_its_number_and_its_split_alone() {
        let train = scenes(Split::Train, 64);
        let (several, _) = train.draw(&[5, 6]);
        assert!(several.get(1).equal(&train.draw(&[6]).0.get(0)));
        let all: std::collections::BTreeSet<String> = [Split::Train, Split::Test]
            .iter()
            .flat_map(|split| (0..20).map(|i| sha256(&bytes(&scenes(*split, 64).draw(&[i]).0))))
            .collect();
        assert_eq!(all.len(), 40);
    }

    /// 200 scenes: every class is there often enough to be scored, and some pixels bear no label.
    #[test]
    fn every_class_occurs() {
        let (_, labels) = scenes(Split::Test, 128).draw(&(0..200).collect::<Vec<_>>());
        let counts = Vec::<i64>::try_from(labels.to_kind(Kind::Int64).flatten(0, -1).bincount(None::<&Tensor>, 256)).unwrap();
        let all = labels.numel() as i64;
        for (class, count) in counts.iter().enumerate().take(13) {
            assert!(count * 200 > all, "class {class} has {count} of {all} pixels");
        }
        assert!(counts[13..255].iter().all(|&n| n == 0) && counts[255] > 0);
    }

    /// What a pixel and its surroundings look like as one of few kinds, i64 `[b, h, w]`, of images uint8 `[b, 3, h, w]`.
    struct Kinds {
        count: i64,
        of: fn(&Tensor) -> Tensor,
    }

    /// Colours in cells of 32 levels.
    const COLOUR: Kinds = Kinds {
        count: 512,
        of: |images| {
            let cell = (images.to_kind(Kind::Int64) / 32).to_kind(Kind::Int64);
            cell.select(1, 0) * 64 + cell.select(1, 1) * 8 + cell.select(1, 2)
        },
    };

    /// Mean colour of 7×7 pixels in cells of 64 levels, and whether brightness changes there along rows, columns and both diagonals.
    const PATCH: Kinds = Kinds {
        count: 1024,
        of: |images| {
            let mean_of = |x: &Tensor| x.avg_pool2d([7, 7], [1, 1], [3, 3], false, true, None::<i64>);
            let images = images.to_kind(Kind::Float);
            let cell = (mean_of(&images) / 64.0).floor().clamp(0.0, 3.0).to_kind(Kind::Int64);
            let grey = images.mean_dim([1i64].as_slice(), true, Kind::Float);
            let changes =
                [[0, 1], [1, 0], [1, 1], [1, -1]].map(|by| mean_of(&(&grey - grey.roll(by, [2i64, 3])).abs()).gt(8.0).squeeze_dim(1));
            let colour = cell.select(1, 0) * 16 + cell.select(1, 1) * 4 + cell.select(1, 2);
            changes.iter().fold(colour, |kind, change| kind * 2 + change.to_kind(Kind::Int64))
        },
    };

    /// mIoU and accuracy of the best guess from kinds, learned on other scenes, and the share of the most frequent class.
    fn best_guess(kinds: &Kinds) -> (f64, f64, f64) {
        let seen = |split| {
            let (images, labels) = scenes(split, 96).draw(&(0..300).collect::<Vec<_>>());
            let known = labels.ne(255);
            ((kinds.of)(&images).masked_select(&known), labels.to_kind(Kind::Int64).masked_select(&known))
        };
        let ((kind, label), (new_kind, new_label)) = (seen(Split::Train), seen(Split::Test));
        let table = (kind * 13 + label).bincount(None::<&Tensor>, kinds.count * 13).view([kinds.count, 13]);
        let guess = table.argmax(1, false).index_select(0, &new_kind);
        let confusion = (guess * 13 + &new_label).bincount(None::<&Tensor>, 169).view([13, 13]).to_kind(Kind::Double);
        let (guessed, true_ones) = (confusion.sum_dim_intlist(1, false, Kind::Double), confusion.sum_dim_intlist(0, false, Kind::Double));
        let right = confusion.diagonal(0, 0, 1);
        let miou = (&right / (guessed + &true_ones - &right)).mean(Kind::Double).double_value(&[]);
        let share = |part: &Tensor| part.double_value(&[]) / new_label.numel() as f64;
        (miou, share(&right.sum(Kind::Double)), share(&true_ones.max()))
    }

    /// The best guesses from a pixel's colour and from a small patch are far from what is asked of a network (0.6 mIoU), though they are
    /// better than none: what is further away decides.
    #[test]
    fn neither_colour_nor_a_patch_gives_the_class() {
        for (name, kinds, most) in [("colour", COLOUR, 0.2), ("patch", PATCH, 0.25)] {
            let (miou, accuracy, most_frequent) = best_guess(&kinds);
            println!("by {name}: mIoU {miou:.3}, {accuracy:.3} of the pixels, of which the most frequent class has {most_frequent:.3}");
            assert!(miou < most, "mIoU {miou} by {name}");
            assert!(accuracy < 0.6 && accuracy > most_frequent + 0.1, "{accuracy} by {name}, {most_frequent} without");
        }
    }
}
