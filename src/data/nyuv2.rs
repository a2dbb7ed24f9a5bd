//! NYUv2 with 13 classes, as VainF/nyuv2-python-toolkit lays it out: `image/{train,test}/00003.png` (RGB, 640×480) and
//! `seg13/{train,test}/` with the same names (one byte a pixel, 0 to 12, 255 unlabelled). Scores are at 341×256, as published readers
//! have them.

use super::resample::{bilinear, nearest, shorter_side};
use super::{Dataset, DatasetSource, Split, palette::CLASSES};
use crate::error::{Error, Result};
use crate::nn::room_for;
use crate::task::UNLABELLED;
use image::{ColorType, DynamicImage};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use tch::{Device, Tensor};

/// Pixels of the shorter side after resizing.
pub(super) const SHORTER_SIDE: i64 = 256;
/// Width and height of all images.
const SIZE: (usize, usize) = (640, 480);

pub(super) struct Nyuv2 {
    dir: PathBuf,
    /// Whether there may be another number of images than the published one.
    partial: bool,
}

fn folder_of(split: Split) -> (&'static str, usize) {
    match split {
        Split::Train => ("train", 795),
        Split::Test => ("test", 654),
    }
}

impl Nyuv2 {
    pub(super) fn new(dir: PathBuf, partial: bool) -> Self {
        Self { dir, partial }
    }

    /// `dir` itself, or `NYUv2` below it.
    fn root(&self) -> PathBuf {
        let below = self.dir.join("NYUv2");
        if ["image", "seg13"].iter().any(|folder| below.join(folder).is_dir()) { below } else { self.dir.clone() }
    }

    /// The folders of a split: images and labels.
    fn folders(&self, split: Split) -> [PathBuf; 2] {
        ["image", "seg13"].map(|folder| self.root().join(folder).join(folder_of(split).0))
    }

    /// Names of the files in a folder of a split.
    fn names(folder: &Path) -> Result<BTreeSet<OsString>> {
        let hint = "name the folder that VainF/nyuv2-python-toolkit has filled (image/, seg13/) with --data-dir DIR";
        let mut names = BTreeSet::new();
        for entry in std::fs::read_dir(folder).map_err(|e| Error::open(folder, &e).with_hint(hint))? {
            let name = entry.map_err(|e| Error::io("read", folder, &e))?.file_name();
            if Path::new(&name).extension().is_some_and(|e| e == "png") {
                names.insert(name);
            }
        }
        Ok(names)
    }

    /// Refuses another number of images than the published one, unless a part is meant.
    fn check_count(&self, split: Split, found: usize) -> Result<()> {
        let (_, expected) = folder_of(split);
        if found == expected || (self.partial && found > 0) {
            return Ok(());
        }
        let [images, _] = self.folders(split);
        Err(Error::file(images, format!("{found} images; {expected} expected"))
            .with_hint("unpack the data set again; if a part of it is meant, set data.allow_partial = true"))
    }
}

/// A picture of the size and kind that all files have.
fn decoded(path: &Path, kind: ColorType, what: &str) -> Result<Vec<u8>> {
    if !path.is_file() {
        return Err(Error::file(path, "no such file"));
    }
    let image: DynamicImage = image::open(path).map_err(|e| Error::file(path, format!("not a readable picture ({e})")))?;
    let (w, h) = (image.width() as usize, image.height() as usize);
    if (w, h) != SIZE {
        return Err(Error::file(path, format!("{w}×{h} pixels; {}×{} expected", SIZE.0, SIZE.1)));
    }
    if image.color() != kind {
        return Err(Error::file(path, format!("pixels are {:?}; {what} expected", image.color())));
    }
    Ok(image.into_bytes())
}

fn image_of(path: &Path) -> Result<Vec<u8>> {
    decoded(path, ColorType::Rgb8, "8-bit RGB")
}

fn labels_of(path: &Path) -> Result<Vec<u8>> {
    let labels = decoded(path, ColorType::L8, "8-bit grey")?;
    let is_wrong = |label: &u8| usize::from(*label) >= CLASSES.len() && *label != UNLABELLED;
    match labels.iter().position(is_wrong) {
        None => Ok(labels),
        Some(at) => {
            let (x, y, last) = (at % SIZE.0, at / SIZE.0, CLASSES.len() - 1);
            Err(Error::file(path, format!("label {} at ({x}, {y}) is neither 0 to {last} nor {UNLABELLED}", labels[at])))
        }
    }
}

impl DatasetSource for Nyuv2 {
    fn read(&self, split: Split) -> Result<Dataset> {
        let to = shorter_side(SIZE, SHORTER_SIDE as usize);
        let [image_folder, label_folder] = self.folders(split);
        let names = Self::names(&image_folder)?;
        self.check_count(split, names.len())?;
        // Three bytes of a pixel and its label, there twice while they are put together.
        let what = format!("{} pictures of {}×{} with their labels", names.len(), to.0, to.1);
        room_for("data.dir", &what, (2 * 4 * names.len() * to.0 * to.1) as f64, Device::Cpu)?;
        let (mut images, mut maps) = (Vec::new(), Vec::new());
        for (image, labels) in names.iter().map(|name| (image_folder.join(name), label_folder.join(name))) {
            let (w, h) = (to.0 as i64, to.1 as i64);
            images.push(Tensor::from_slice(&bilinear(&image_of(&image)?, 3, SIZE, to)).view([h, w, 3]).permute([2, 0, 1]).contiguous());
            maps.push(Tensor::from_slice(&nearest(&labels_of(&labels)?, SIZE, to)).view([h, w]));
        }
        Ok(Dataset { images_nchw: Tensor::stack(&images, 0), labels_n: Tensor::stack(&maps, 0) })
    }

    fn is_here(&self) -> bool {
        [Split::Train, Split::Test].into_iter().flat_map(|split| self.folders(split)).any(|folder| folder.is_dir())
    }

    /// Looks at every file, images without labels and labels without images too, and resizes none.
    fn survey(&self, split: Split) -> std::result::Result<String, Vec<Error>> {
        let folders = self.folders(split);
        let [images, labels] = folders.each_ref().map(|folder| Self::names(folder));
        let mut wrong: Vec<Error> = images.as_ref().ok().and_then(|names| self.check_count(split, names.len()).err()).into_iter().collect();
        let mut counts = [0u64; 256];
        // Of a folder that is missing no file is missed.
        let is_there = [images.is_ok(), labels.is_ok()];
        let mut names = BTreeSet::new();
        for found in [images, labels] {
            match found {
                Ok(more) => names.extend(more),
                Err(error) => wrong.push(error),
            }
        }
        for name in &names {
            if is_there[0] {
                wrong.extend(image_of(&folders[0].join(name)).err());
            }
            match is_there[1].then(|| labels_of(&folders[1].join(name))) {
                Some(Ok(labels)) => labels.into_iter().for_each(|label| counts[usize::from(label)] += 1),
                Some(Err(error)) => wrong.push(error),
                None => {}
            }
        }
        if !wrong.is_empty() {
            return Err(wrong);
        }
        let all = counts.iter().sum::<u64>() as f64;
        let share = |label: usize| 100.0 * counts[label] as f64 / all;
        let classes: Vec<String> = CLASSES.iter().enumerate().map(|(c, name)| format!("{name} {:.1} %", share(c))).collect();
        let unlabelled = share(usize::from(UNLABELLED));
        Ok(format!("{} images of 640×480 in 3 channels; {}; unlabelled {unlabelled:.1} % of the pixels", names.len(), classes.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{GrayImage, Luma, Rgb, RgbImage};

    /// Files in the true format: image `n` and its labels.
    fn write(root: &Path, split: &str, n: u32) {
        for folder in ["image", "seg13"] {
            std::fs::create_dir_all(root.join(folder).join(split)).unwrap();
        }
        let name = format!("{n:05}.png");
        let pixel = |x: u32, y: u32| Rgb([(x * n % 256) as u8, (y % 256) as u8, ((x + y) % 256) as u8]);
        RgbImage::from_fn(640, 480, pixel).save(root.join("image").join(split).join(&name)).unwrap();
        let label = |x: u32, y: u32| Luma([if y < 40 { 255 } else { ((x / 50) % 13) as u8 }]);
        GrayImage::from_fn(640, 480, label).save(root.join("seg13").join(split).join(&name)).unwrap();
    }

    #[test]
    fn images_and_labels_are_matched_by_name_and_resized_together() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("NYUv2");
        write(&root, "test", 7);
        write(&root, "test", 3);
        let source = Nyuv2::new(dir.path().into(), true);
        let data = source.read(Split::Test).unwrap();
        assert_eq!((data.images_nchw.size(), data.labels_n.size()), (vec![2, 3, 256, 341], vec![2, 256, 341]));
        // Output row 128 looks at rows 239 and 242 of the file around 240.94; columns in between of label (x / 50) % 13.
        let label = |y: i64, x: i64| data.labels_n.int64_value(&[0, y, x]);
        assert_eq!([label(0, 0), label(20, 5), label(22, 5), label(255, 27), label(255, 340)], [255, 255, 0, 1, 12]);
        // The first of the sorted names is image 3, whose red rises by 3 a pixel: 3·(640/341·(10 + ½) − ½) = 57.6.
        assert!((data.images_nchw.int64_value(&[0, 0, 100, 10]) - 58).abs() <= 1);
        assert!(source.survey(Split::Test).unwrap().starts_with("2 images of 640×480"));
        assert!(source.survey(Split::Test).unwrap().ends_with("unlabelled 8.3 % of the pixels"));
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let said = |partial| {
            let source = Nyuv2::new(root.into(), partial);
            let read = source.read(Split::Train).err().unwrap().to_string();
            let surveyed = source.survey(Split::Train).unwrap_err();
            assert_eq!(surveyed[0].to_string(), read);
            (read, surveyed.len())
        };
        assert!(said(true).0.contains("image/train"));
        for n in [1, 2, 5] {
            write(root, "train", n);
        }
        assert!(said(false).0.ends_with("image/train: 3 images; 795 expected"));
        let seg = |n: u32| root.join(format!("seg13/train/{n:05}.png"));
        std::fs::remove_file(seg(2)).unwrap();
        assert!(said(true).0.ends_with("seg13/train/00002.png: no such file"));
        GrayImage::from_pixel(320, 240, Luma([1])).save(seg(2)).unwrap();
        assert!(said(true).0.ends_with("00002.png: 320×240 pixels; 640×480 expected"));
        let mut wrong = GrayImage::from_pixel(640, 480, Luma([1]));
        wrong.put_pixel(17, 4, Luma([13]));
        wrong.save(seg(2)).unwrap();
        assert!(said(true).0.ends_with("00002.png: label 13 at (17, 4) is neither 0 to 12 nor 255"));
        RgbImage::from_pixel(640, 480, Rgb([1; 3])).save(seg(2)).unwrap();
        assert!(said(true).0.ends_with("00002.png: pixels are Rgb8; 8-bit grey expected"));
        let whole = std::fs::read(seg(1)).unwrap();
        std::fs::write(seg(1), &whole[..whole.len() / 2]).unwrap();
        let (first, count) = said(true);
        assert!(first.contains("00001.png: not a readable picture") && count == 2, "{first}");
        // A wrong number of files hides nothing of them, nor a missing folder what the other holds.
        assert_eq!(said(false).1, 3);
        std::fs::rename(root.join("image"), root.join("elsewhere")).unwrap();
        let (first, count) = said(true);
        assert!(first.ends_with("image/train: no such file") && count == 3, "{first}, {count} findings");
        let here = |folder: &str| {
            let dir = tempfile::tempdir().unwrap();
            std::fs::create_dir_all(dir.path().join(folder)).unwrap();
            Nyuv2::new(dir.path().into(), false).is_here()
        };
        assert_eq!(["image", "image/train", "seg13/test", "NYUv2/seg13/test"].map(here), [false, true, true, true]);
    }
}
