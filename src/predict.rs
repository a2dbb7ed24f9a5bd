//! A network applied to files: tensors, or pictures in a folder.

use crate::config::{DatasetName, ModelName};
use crate::data::{self, Normalise, read_picture, to_unit};
use crate::error::{Error, Result};
use crate::files;
use crate::losses::predicted_and_confidence;
use crate::models::Shape;
use crate::nn::weights;
use crate::teacher::Teacher;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

/// Most classes a network may have: no data set has more, and a slip of the pen must not ask for all memory.
pub const MAX_CLASSES: i64 = 1_000_000;

/// Images per forward pass.
const BATCH: i64 = 128;

/// A network as a weights file has it.
pub struct Network<'a> {
    /// Architecture.
    pub model: ModelName,
    /// Weights file.
    pub weights: &'a Path,
    /// Classes; left out, what the weights file says of itself.
    pub classes: Option<i64>,
}

impl Network<'_> {
    fn load(&self, channels: i64) -> Result<Teacher> {
        let classes = self.classes.map_or_else(|| self.own_classes(), Ok)?;
        Teacher::load(self.model, self.weights, Shape { channels, classes }, Device::Cpu)
    }

    fn own_classes(&self) -> Result<i64> {
        let file = weights::read(self.weights)?;
        let Some(text) = file.metadata.get("classes") else {
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
    let network = network.load(images.size()[1])?;
    let least = network.parts().0.least_size();
    if images.size()[2..].iter().any(|&side| side < least) {
        let problem = format!("`images` is {:?}; this network takes images of {least}×{least} pixels or more", images.size());
        return Err(Error::file(input, problem));
    }
    let output = network.evaluate_all(&images.to_kind(Kind::Float), BATCH);
    weights::write(out, &[("logits".into(), output.logits), ("features".into(), output.features_bd)], &[])
}

/// Category and confidence of every PNG and JPEG file of a folder, written to `out` as CSV.
///
/// # Errors
/// A folder without pictures, or a file that is none.
pub fn folder(network: &Network<'_>, input: &Path, dataset: DatasetName, out: &Path) -> Result<()> {
    let facts = data::facts(dataset);
    let teacher = network.load(facts.channels)?;
    let normalise = Normalise::new(&facts, Device::Cpu);
    let mut rows = csv::Writer::from_writer(Vec::new());
    let failed = |e: &dyn std::fmt::Display| Error::refused(format!("cannot form rows: {e}"));
    rows.write_record(["file", "class", "confidence"]).map_err(|e| failed(&e))?;
    for paths in pictures(input)?.chunks(BATCH as usize) {
        let images: Vec<Tensor> = paths.iter().map(|path| read_picture(path, &facts)).collect::<Result<_>>()?;
        let logits = teacher.evaluate(&normalise.apply(&to_unit(&Tensor::stack(&images, 0)))).logits;
        let (predicted, confidence) = predicted_and_confidence(&logits);
        for (i, path) in paths.iter().enumerate() {
            let class = predicted.int64_value(&[i as i64]) as usize;
            let class = facts.class_names.get(class).map_or_else(|| class.to_string(), |name| (*name).to_owned());
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let confidence = format!("{:.4}", confidence.double_value(&[i as i64]));
            rows.write_record([name, class, confidence]).map_err(|e| failed(&e))?;
        }
    }
    files::write(out, &rows.into_inner().map_err(|e| failed(&e))?)
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
