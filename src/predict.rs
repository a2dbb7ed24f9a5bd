//! A network applied to files: tensors, or pictures in a folder.

use crate::config::{DatasetName, MAX_CLASSES, ModelName};
use crate::data::{self, Facts, Normalise, images_of, read_picture, to_unit, write_labels};
use crate::error::{Error, Result};
use crate::files;
use crate::losses::predicted_and_confidence;
use crate::models::Shape;
use crate::nn::{room_for, weights};
use crate::task::{self, Prediction, Task};
use crate::teacher::Teacher;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

/// Images per forward pass, at most.
const BATCH: i64 = 128;
/// Pixels per forward pass, as long as it is one image or more: a few hundred megabytes in the widest network.
const PIXELS: i64 = 1 << 17;

/// The least that layers hold of a picture's pixel at once, in bytes: measured with DeepLabV3 on MobileNetV2, the narrowest that takes
/// pictures of any size.
const PIXEL_BYTES: f64 = 300.0;

/// Images of `[…, h, w]` per forward pass.
fn batch_of(size: &[i64]) -> i64 {
    images_of(PIXELS, size).min(BATCH)
}

/// A network as a weights file has it.
pub struct Network<'a> {
    /// Architecture.
    pub model: ModelName,
    /// Weights file.
    pub weights: &'a Path,
    /// Classes; left out, what the weights file says of itself.
    pub classes: Option<i64>,
    /// Where it computes.
    pub device: Device,
}

impl Network<'_> {
    fn load(&self, channels: i64, size: [i64; 2]) -> Result<Teacher> {
        let classes = self.classes.map_or_else(|| self.own_classes(), Ok)?;
        Teacher::load(self.model, self.weights, Shape { channels, classes }, size, self.device)
    }

    /// How it takes pictures: as the data set has them, or as the weights file says where a data set's name says nothing.
    fn facts(&self, dataset: DatasetName) -> Result<Facts> {
        let facts = data::facts(dataset);
        if facts.is_known() {
            return Ok(facts);
        }
        Facts::of_file(self.weights)?.ok_or_else(|| {
            let problem = format!("does not say of what size and normalisation its images are, nor does `{}`", dataset.name());
            Error::file(self.weights, problem).with_hint("name a data set of that size and normalisation with --dataset")
        })
    }

    fn own_classes(&self) -> Result<i64> {
        let Some(text) = weights::says(self.weights)?.remove("classes") else {
            return Err(Error::refused("--classes is needed: the weights file does not say how many it has"));
        };
        let classes = text.parse().ok().filter(|k| (1..=MAX_CLASSES).contains(k));
        classes.ok_or_else(|| {
            Error::file(self.weights, format!("says of itself that it has `{text}` classes; 1 to {MAX_CLASSES} are possible"))
                .with_hint("give their number with --classes")
        })
    }
}

/// Logits and features of the normalised images in `input`'s tensor `images`, written to `out` as safetensors.
///
/// # Errors
/// No such tensor, or one that is not float b×c×h×w, empty, or smaller than the network takes.
pub fn tensors(network: &Network<'_>, input: &Path, out: &Path) -> Result<()> {
    let file = weights::read(input)?;
    let Some((_, images)) = file.tensors.iter().find(|(key, _)| key == "images") else {
        return Err(Error::file(input, "holds no tensor `images`"));
    };
    if images.dim() != 4 || !matches!(images.kind(), Kind::Float | Kind::Double | Kind::Half | Kind::BFloat16) {
        return Err(Error::file(input, format!("`images` is {:?} {:?}; float b×c×h×w is needed", images.kind(), images.size())));
    }
    if images.numel() == 0 {
        return Err(Error::file(input, format!("`images` is {:?}: it holds no values", images.size())));
    }
    let device = network.device;
    let network = network.load(images.size()[1], [images.size()[2], images.size()[3]])?;
    let least = network.parts().0.least_size();
    if images.size()[2..].iter().any(|&side| side < least) {
        let problem = format!("`images` is {:?}; this network takes images of {least}×{least} pixels or more", images.size());
        return Err(Error::file(input, problem));
    }
    let output = network.evaluate_all(&images.to_kind(Kind::Float).to_device(device), batch_of(&images.size()));
    weights::write(out, &[("logits".into(), output.logits), ("features".into(), output.features_bd)], &[])
}

/// What the network says of every PNG and JPEG file of a folder: categories and confidences in a CSV file `out`, or a map of labels
/// for each picture, as PNG of its size, in a folder `out`.
///
/// # Errors
/// A folder without pictures, or a file that is none, or is smaller than the network takes or larger than memory holds; maps that would
/// be written over the pictures or over each other.
pub fn folder(network: &Network<'_>, input: &Path, dataset: DatasetName, out: &Path) -> Result<()> {
    Task::check(dataset, "--model", network.model)?;
    let pictures = pictures(input)?;
    if Task::of_model(network.model).gives_maps() {
        check_maps(&pictures, input, out)?;
    }
    let facts = network.facts(dataset)?;
    let teacher = network.load(facts.channels, facts.size)?;
    teacher.normalised_as(&facts.mean, &facts.std, network.weights)?;
    let least = teacher.parts().0.least_size();
    let normalise = Normalise::new(&facts, network.device);
    let mut rows = Vec::new();
    for paths in pictures.chunks(BATCH as usize) {
        let read = |path: &PathBuf| {
            let (image, own) = read_picture(path, &facts)?;
            let [_, h, w] = <[i64; 3]>::try_from(image.size()).unwrap_or_default();
            let small = Error::file(path, format!("{w}×{h} pixels; this network takes {least}×{least} or more"));
            if h.min(w) < least {
                return Err(small);
            }
            fits(path, (w, h), network.device).map(|()| (image, own))
        };
        let images = paths.iter().map(|path| read(path).map(|(image, own)| (path, image, own))).collect::<Result<Vec<_>>>()?;
        let alike = images.chunk_by(|a, b| a.1.size() == b.1.size());
        for alike in alike.flat_map(|group| group.chunks(batch_of(&group[0].1.size()) as usize)) {
            let stacked = Tensor::stack(&alike.iter().map(|(_, image, _)| image).collect::<Vec<_>>(), 0).to_device(network.device);
            let (predicted, confidence) = predicted_and_confidence(&teacher.evaluate(&normalise.apply(&to_unit(&stacked))).logits);
            for ((path, _, own), said) in alike.iter().zip(task::predictions(&predicted, &confidence)) {
                match said {
                    Prediction::Category(class, confidence) => {
                        let class = facts.class_names.get(class as usize).map_or_else(|| class.to_string(), String::clone);
                        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                        rows.push([name, class, format!("{confidence:.4}")]);
                    }
                    Prediction::Map(labels_hw) => {
                        files::create_folder(out)?;
                        write_labels(&map_of(path, out), &data::grown(&labels_hw, *own))?;
                    }
                }
            }
        }
    }
    if rows.is_empty() { Ok(()) } else { files::write(out, &table(&rows)?) }
}

/// Refuses a picture for whose layers there is no memory; `size` is width and height as the network sees it.
fn fits(path: &Path, (w, h): (i64, i64), device: Device) -> Result<()> {
    if w * h <= PIXELS {
        return Ok(());
    }
    let what = format!("{}: the layers for {w}×{h} pixels", path.display());
    room_for("--input", &what, PIXEL_BYTES * (w * h) as f64, device)
        .map_err(|error| Error::refused(error.to_string()).with_hint("make the picture smaller"))
}

/// Where a picture's map of labels is written.
fn map_of(picture: &Path, out: &Path) -> PathBuf {
    out.join(picture.file_name().unwrap_or_default()).with_extension("png")
}

/// Every picture has a map of its own, and none is written over a picture.
fn check_maps(pictures: &[PathBuf], input: &Path, out: &Path) -> Result<()> {
    let hint = "name another folder with --out";
    if out.is_file() {
        return Err(Error::file(out, "is a file; a map for each picture is written to a folder").with_hint(hint));
    }
    if let (Ok(input), Ok(out)) = (input.canonicalize(), out.canonicalize())
        && input == out
    {
        return Err(Error::file(out, "holds the pictures, over which maps would be written").with_hint(hint));
    }
    let mut maps = BTreeMap::new();
    for picture in pictures {
        let map = map_of(picture, out);
        if let Some(other) = maps.insert(map.clone(), picture) {
            let problem = format!("its map would be {}, as that of {}", map.display(), other.display());
            return Err(Error::file(picture, problem).with_hint("rename one of the two"));
        }
    }
    Ok(())
}

fn table(rows: &[[String; 3]]) -> Result<Vec<u8>> {
    let failed = |e: &dyn std::fmt::Display| Error::refused(format!("cannot form rows: {e}"));
    let mut table = csv::Writer::from_writer(Vec::new());
    table.write_record(["file", "class", "confidence"]).map_err(|e| failed(&e))?;
    rows.iter().try_for_each(|row| table.write_record(row)).map_err(|e| failed(&e))?;
    table.into_inner().map_err(|e| failed(&e))
}

/// PNG and JPEG files of a folder, by name.
fn pictures(folder: &Path) -> Result<Vec<PathBuf>> {
    let wanted =
        |path: &PathBuf| path.extension().is_some_and(|e| ["png", "jpg", "jpeg"].contains(&e.to_string_lossy().to_lowercase().as_str()));
    let entries = std::fs::read_dir(folder).map_err(|e| Error::open(folder, &e))?;
    let mut paths: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).filter(wanted).collect();
    paths.sort();
    if paths.is_empty() {
        return Err(Error::file(folder, "holds no .png, .jpg or .jpeg file"));
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_that_no_memory_holds_the_layers_for_are_refused() {
        fits("a.png".as_ref(), (640, 480), Device::Cpu).unwrap();
        let error = fits("a.png".as_ref(), (1 << 20, 1 << 20), Device::Cpu).unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("--input: a.png: the layers for 1048576×1048576 pixels need 329853.5 GB of memory, "), "{text}");
        assert_eq!((error.exit_code(), error.hint().as_deref()), (2, Some("make the picture smaller")));
    }
}
