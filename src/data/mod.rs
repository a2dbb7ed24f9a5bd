//! Real data sets: what the teacher was trained on, read for evaluation and for `ssdkd teach`; and views of images.

mod cifar;
mod examples;
mod folder;
mod given;
mod idx;
mod mat;
mod nyuv2;
mod palette;
mod picture;
mod resample;
mod scenes;
mod survey;
mod svhn;
mod tiny_imagenet;
mod view;

pub use examples::{Examples, open};
pub use given::complete;
pub use palette::{colour, coloured, grown, write_labels};
pub use picture::{read_picture, write_grid};
pub use survey::survey;
pub use view::{Crop, View, apply_crops, apply_views, move_labels, roll};

use crate::config::{self, Config, DatasetName};
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

/// Which part of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// For `ssdkd teach`.
    Train,
    /// For accuracy.
    Test,
}

/// What is known of a data set without its files.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    /// Number of classes.
    pub classes: i64,
    /// Image channels.
    pub channels: i64,
    /// Height and width in pixels, after padding.
    pub size: [i64; 2],
    /// Black pixels added on every side of an image as its file has it.
    pub padding: i64,
    /// What becomes of a picture of another size.
    pub fit: Fit,
    /// Mean per channel of values in [0, 1].
    pub mean: Vec<f32>,
    /// Standard deviation per channel.
    pub std: Vec<f32>,
    /// Names of the classes, in the order of their labels; none where only the data set's files say them.
    pub class_names: Vec<String>,
}

/// How pictures come to the size in which a network takes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// Brought to the data set's size.
    Exact,
    /// Brought to this many pixels along the shorter side, as PIL does it.
    ShorterSide(i64),
    /// Brought to this many pixels along the shorter side, as PIL does it; then the data set's size is cut out of the middle.
    Cropped(i64),
    /// Taken as they are.
    AsIs,
}

impl Facts {
    /// What a weights file should say of itself, so that it can be used without the configuration that made it.
    pub fn metadata(&self, model: &str, dataset: &str) -> Vec<(&'static str, String)> {
        let resize = if let Fit::Cropped(side) = self.fit { vec![("resize", side.to_string())] } else { Vec::new() };
        let joined = |values: &[f32]| values.iter().map(f32::to_string).collect::<Vec<_>>().join(" ");
        let all = vec![
            ("format", "pt".into()),
            ("model", model.into()),
            ("dataset", dataset.into()),
            ("classes", self.classes.to_string()),
            ("channels", self.channels.to_string()),
            ("height", self.size[0].to_string()),
            ("width", self.size[1].to_string()),
            ("mean", joined(&self.mean)),
            ("std", joined(&self.std)),
        ];
        [all, resize].concat()
    }

    /// Whether a data set's name alone says all of it: not of folders of pictures, nor where there is no data.
    pub fn is_known(&self) -> bool {
        self.classes > 0
    }
}

/// Images and labels in memory.
pub struct Dataset {
    /// `[n, c, h, w]` uint8.
    pub images_nchw: Tensor,
    /// `[n]` i64; or maps `[n, h, w]` of bytes, 255 where there is no label.
    pub labels_n: Tensor,
}

impl Dataset {
    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels_n.size()[0] as usize
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Files of one data set in one of its distributions.
pub trait DatasetSource {
    /// Reads a split.
    ///
    /// # Errors
    /// Names the file that is missing or damaged, what was expected and what was found.
    fn read(&self, split: Split) -> Result<Dataset>;

    /// Whether the folder holds any file of this data set.
    fn is_here(&self) -> bool;

    /// Names of the classes, in the order of their labels, where its files say them.
    ///
    /// # Errors
    /// As [`DatasetSource::read`].
    fn class_names(&self) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    /// What a split holds, in a line; or everything that is wrong with it.
    fn survey(&self, split: Split) -> std::result::Result<String, Vec<Error>> {
        survey::of_whole(self, split)
    }
}

/// Facts of a data set. Constants of CIFAR and MNIST as in zju-vipa/DataFree `registry.py`; Fashion-MNIST's are those of its
/// 60,000 training images, padded images being normalised after padding (ours).
pub fn facts(name: DatasetName) -> Facts {
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let grey = |mean, std, names: &[&str]| Facts {
        classes: 10,
        channels: 1,
        size: [32, 32],
        padding: idx::PADDING,
        fit: Fit::Exact,
        mean: vec![mean],
        std: vec![std],
        class_names: owned(names),
    };
    let colour = |classes, mean: [f32; 3], std: [f32; 3], names: &[&str]| Facts {
        classes,
        channels: 3,
        size: [32, 32],
        padding: 0,
        fit: Fit::Exact,
        mean: mean.to_vec(),
        std: std.to_vec(),
        class_names: owned(names),
    };
    let digits = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];
    let rooms = |fit| Facts { size: [128, 128], fit, ..colour(13, [0.5; 3], [0.5; 3], &palette::CLASSES) };
    match name {
        DatasetName::Cifar10 => colour(
            10,
            [0.4914, 0.4822, 0.4465],
            [0.2023, 0.1994, 0.2010],
            &["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
        ),
        DatasetName::Cifar100 => colour(100, [0.5071, 0.4867, 0.4408], [0.2675, 0.2565, 0.2761], &CIFAR100),
        DatasetName::Mnist => grey(0.1307, 0.3081, &digits),
        DatasetName::FashionMnist => {
            grey(0.2860, 0.3530, &["T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"])
        }
        DatasetName::Nyuv2 => rooms(Fit::ShorterSide(nyuv2::SHORTER_SIDE)),
        DatasetName::Scenes13 => rooms(Fit::AsIs),
        DatasetName::Svhn => colour(10, [0.5; 3], [0.5; 3], &digits),
        DatasetName::TinyImagenet => Facts { size: [64, 64], ..colour(200, [0.5; 3], [0.5; 3], &[]) },
        DatasetName::Folder | DatasetName::None => Facts {
            classes: 0,
            channels: 0,
            size: [0, 0],
            padding: 0,
            fit: Fit::Cropped(0),
            mean: Vec::new(),
            std: Vec::new(),
            class_names: Vec::new(),
        },
    }
}

/// The same, with what a configuration that is [`complete`] says of it, and names of classes from the data set's files.
pub fn facts_of(config: &Config) -> Facts {
    let names = || source(config.dataset, &config.data).and_then(|source| source.class_names().ok()).unwrap_or_default();
    let facts = described(config.dataset, &config.data);
    if facts.class_names.is_empty() { Facts { class_names: names(), ..facts } } else { facts }
}

fn described(name: DatasetName, data: &config::Data) -> Facts {
    let facts = facts(name);
    let narrow = |values: &[f64]| values.iter().map(|&value| value as f32).collect::<Vec<_>>();
    let (mean, std) = if data.mean.is_empty() { (facts.mean, facts.std) } else { (narrow(&data.mean), narrow(&data.std)) };
    let facts = Facts { mean, std, ..facts };
    match name {
        DatasetName::Scenes13 => {
            let size = if data.scene_crop > 0 { data.scene_crop } else { data.scene_size };
            Facts { size: [size; 2], ..facts }
        }
        DatasetName::Folder | DatasetName::None => {
            let (classes, channels, size, fit) = (data.classes, data.channels, [data.size; 2], Fit::Cropped(data.resize.max(data.size)));
            Facts { classes, channels, size, fit, ..facts }
        }
        _ => facts,
    }
}

/// Fine labels of CIFAR-100, in the order of its `fine_label_names`.
#[rustfmt::skip]
const CIFAR100: [&str; 100] = [
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy", "bridge",
    "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock", "cloud", "cockroach",
    "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish", "forest", "fox", "girl", "hamster",
    "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion", "lizard", "lobster", "man", "maple_tree",
    "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange", "orchid", "otter", "palm_tree", "pear", "pickup_truck",
    "pine_tree", "plain", "plate", "poppy", "porcupine", "possum", "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea",
    "seal", "shark", "shrew", "skunk", "skyscraper", "snail", "snake", "spider", "squirrel", "streetcar", "sunflower",
    "sweet_pepper", "table", "tank", "telephone", "television", "tiger", "tractor", "train", "trout", "tulip", "turtle",
    "wardrobe", "whale", "willow_tree", "wolf", "woman", "worm",
];

/// The data set's files in the configured folder, or where the data set usually lies; `None` for one that has no files.
pub fn source(name: DatasetName, config: &config::Data) -> Option<Box<dyn DatasetSource>> {
    let usual = match name {
        DatasetName::FashionMnist => "/usr/share/datasets/fashion-mnist",
        _ => "data",
    };
    let dir = config.dir.clone().unwrap_or_else(|| PathBuf::from(usual));
    Some(match name {
        DatasetName::Cifar10 => Box::new(cifar::Cifar::ten(dir, config.allow_partial)),
        DatasetName::Cifar100 => Box::new(cifar::Cifar::hundred(dir, config.allow_partial)),
        DatasetName::Mnist | DatasetName::FashionMnist => Box::new(idx::Idx::new(dir)),
        DatasetName::Nyuv2 => Box::new(nyuv2::Nyuv2::new(dir, config.allow_partial)),
        DatasetName::Svhn => Box::new(svhn::Svhn::new(dir, config.allow_partial)),
        DatasetName::TinyImagenet => Box::new(tiny_imagenet::TinyImagenet::new(dir, config.allow_partial, described(name, config))),
        DatasetName::Folder => Box::new(folder::Folder::new(dir, described(name, config))),
        DatasetName::Scenes13 | DatasetName::None => return None,
    })
}

/// (x − mean)/std per channel, and back.
pub struct Normalise {
    mean_1c11: Tensor,
    std_1c11: Tensor,
}

impl Normalise {
    /// With a data set's constants.
    pub fn new(facts: &Facts, device: Device) -> Self {
        let shaped = |values: &[f32]| Tensor::from_slice(values).view([1, -1, 1, 1]).to_device(device);
        Self { mean_1c11: shaped(&facts.mean), std_1c11: shaped(&facts.std) }
    }

    /// f32 images in [0, 1] → normalised.
    pub fn apply(&self, images_bchw: &Tensor) -> Tensor {
        (images_bchw - &self.mean_1c11) / &self.std_1c11
    }

    /// Normalised images → f32 in [0, 1].
    pub fn undo(&self, normalised_bchw: &Tensor) -> Tensor {
        normalised_bchw * &self.std_1c11 + &self.mean_1c11
    }

    /// Where its constants live.
    pub fn device(&self) -> Device {
        self.mean_1c11.device()
    }
}

/// How many images of `[…, h, w]` have so many pixels; one at least.
pub fn images_of(pixels: i64, size: &[i64]) -> i64 {
    (pixels / size.iter().rev().take(2).product::<i64>().max(1)).max(1)
}

/// uint8 images → f32 in [0, 1]; f32 images as they are.
pub fn to_unit(images_bchw: &Tensor) -> Tensor {
    if images_bchw.kind() == Kind::Uint8 { images_bchw.to_kind(Kind::Float) / 255.0 } else { images_bchw.shallow_clone() }
}

/// f32 images in [0, 1] → uint8, rounded to nearest.
pub fn to_bytes(images_bchw: &Tensor) -> Tensor {
    (images_bchw.clamp(0.0, 1.0) * 255.0).round().to_kind(Kind::Uint8)
}

/// Labels checked against the number of classes.
fn labels(raw: &[u8], classes: i64, path: &Path) -> Result<Tensor> {
    if let Some((at, label)) = raw.iter().enumerate().find(|(_, l)| i64::from(**l) >= classes) {
        return Err(Error::file(path, format!("label {label} of image {at} is outside 0..{}", classes - 1)));
    }
    Ok(Tensor::from_slice(&raw.iter().map(|&l| i64::from(l)).collect::<Vec<_>>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CIFAR's lists are alphabetical, and labels are places in them.
    #[test]
    fn every_class_has_its_name() {
        for name in DatasetName::ALL {
            let facts = facts(name);
            // Its files say them.
            let named = if name == DatasetName::TinyImagenet { 0 } else { facts.classes };
            assert_eq!(facts.class_names.len() as i64, named, "{name:?}");
        }
        let hundred = facts(DatasetName::Cifar100).class_names;
        assert!(hundred.is_sorted_by(|a, b| a < b));
        assert_eq!([&hundred[0], &hundred[39], &hundred[77], &hundred[99]], ["apple", "keyboard", "snail", "worm"]);
    }

    #[test]
    fn large_images_come_in_smaller_batches() {
        let counts = [&[1, 3, 32, 32][..], &[3, 256, 341], &[4096, 4096]].map(|size| images_of(250 * 32 * 32, size));
        assert_eq!(counts, [250, 2, 1]);
    }

    /// Networks see crops of scenes where they are told to, else whole scenes.
    #[test]
    fn scenes_are_seen_in_crops() {
        let size = |scene_crop| described(DatasetName::Scenes13, &config::Data { scene_crop, ..config::Data::default() }).size;
        assert_eq!((size(0), size(64)), ([128, 128], [64, 64]));
    }

    /// What a weights file says of itself is what a run without data is told.
    #[test]
    fn a_teachers_file_says_what_the_configuration_leaves_open() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("teacher.safetensors");
        let facts = facts(DatasetName::Cifar100);
        let metadata = facts.metadata("wrn16_1", "cifar100");
        crate::nn::weights::write(&path, &[("w".into(), Tensor::from_slice(&[1f32]))], &metadata).unwrap();
        let mut config = Config { dataset: DatasetName::None, ..Config::default() };
        let text = complete(&mut config.clone()).unwrap_err().to_string();
        assert!(["data.size", "data.mean", "data.classes"].iter().all(|key| text.contains(&format!("{key}: is not set"))), "{text}");
        let nowhere =
            Config { teacher: crate::config::Teacher { weights: Some("/nowhere.pt".into()), ..config.teacher.clone() }, ..config.clone() };
        assert_eq!(complete(&mut nowhere.clone()).unwrap_err().to_string(), "/nowhere.pt: no such file");
        config.teacher.weights = Some(path);
        config.data.classes = 7;
        complete(&mut config).unwrap();
        assert_eq!((config.data.classes, config.data.channels, config.data.size), (7, 3, 32));
        assert_eq!(config.data.mean, [0.5071, 0.4867, 0.4408], "as written, not as the nearest f32");
        let completed = facts_of(&config);
        assert_eq!((completed.mean, completed.std, completed.size), (facts.mean, facts.std, facts.size));
        config.distill.view_shift = 32;
        let text = complete(&mut config.clone()).unwrap_err().to_string();
        assert_eq!(text, "distill.view_shift: 32 pixels shift images of 32 pixels out of sight");
        let mut scenes = Config { dataset: DatasetName::Scenes13, ..Config::default() };
        (scenes.data.scene_size, scenes.inversion.view_shift) = (256, 130);
        complete(&mut scenes).unwrap();
        config.data.mean.pop();
        assert!(complete(&mut config).unwrap_err().to_string().contains("data.mean: 2 values for images of 3 channels"));
    }
}
