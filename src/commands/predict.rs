//! `ssdkd predict`.

use crate::cli::PredictArgs;
use crate::config::{DatasetName, load};
use crate::data::{self, Facts, Normalise, to_unit};
use crate::error::{Error, Result};
use crate::files;
use crate::losses::predicted_and_confidence;
use crate::models::{self, Output, Shape};
use crate::nn::weights::{self, WeightsFile};
use crate::teacher::Teacher;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

/// Images per forward pass.
const BATCH: i64 = 128;

/// Applies a network to a file of tensors or to a folder of pictures.
pub fn run(args: &PredictArgs) -> Result<()> {
    let file = weights::read(&args.weights)?;
    if args.input.is_dir() { folder(args, &file) } else { tensors(args, &file) }
}

fn network(args: &PredictArgs, file: &WeightsFile, channels: i64) -> Result<Teacher> {
    let own = |name: &str| file.metadata.get(name).and_then(|text| text.parse().ok());
    let Some(classes) = args.classes.or_else(|| own("classes")) else {
        return Err(Error::refused("--classes is needed: the weights file does not say how many it has"));
    };
    // Refuses an unknown name before the file is looked at.
    models::build(&args.model, Shape { channels, classes }, "--model")?;
    Teacher::load(&args.model, &args.weights, Shape { channels, classes }, Device::Cpu)
}

fn apply(network: &Teacher, images_bchw: &Tensor) -> Output {
    let (mut logits, mut features) = (Vec::new(), Vec::new());
    for part in images_bchw.split(BATCH, 0) {
        let out = network.evaluate(&part);
        logits.push(out.logits);
        features.push(out.features_bd);
    }
    Output { logits: Tensor::cat(&logits, 0), features_bd: Tensor::cat(&features, 0) }
}

fn tensors(args: &PredictArgs, file: &WeightsFile) -> Result<()> {
    let input = weights::read(&args.input)?;
    let images = input.tensors.iter().find(|(key, _)| key == "images").map(|(_, t)| t);
    let Some(images) = images else { return Err(Error::file(&args.input, "holds no tensor `images`")) };
    if images.dim() != 4 || !matches!(images.kind(), Kind::Float | Kind::Double | Kind::Half | Kind::BFloat16) {
        let (size, kind) = (images.size(), images.kind());
        return Err(Error::file(&args.input, format!("`images` is {kind:?} {size:?}; float b×c×h×w is needed")));
    }
    let images = images.to_kind(Kind::Float);
    let out = apply(&network(args, file, images.size()[1])?, &images);
    weights::write(&args.out, &[("logits".into(), out.logits), ("features".into(), out.features_bd)], &[])
}

fn folder(args: &PredictArgs, file: &WeightsFile) -> Result<()> {
    let dataset = args.dataset.clone().or_else(|| file.metadata.get("dataset").cloned());
    let Some(dataset) = dataset else {
        return Err(Error::refused("--dataset is needed for a folder of pictures: it gives their size and normalisation"));
    };
    let name: DatasetName = load(&[], &[format!("dataset={dataset}")])?.config.dataset;
    let facts = data::facts(name);
    let network = network(args, file, facts.channels)?;
    let normalise = Normalise::new(&facts, Device::Cpu);
    let mut rows = csv::Writer::from_writer(Vec::new());
    let failed = |e: csv::Error| Error::refused(format!("cannot write rows: {e}"));
    rows.write_record(["file", "class", "confidence"]).map_err(failed)?;
    for paths in pictures(&args.input)?.chunks(BATCH as usize) {
        let images: Vec<Tensor> = paths.iter().map(|path| picture(path, &facts)).collect::<Result<_>>()?;
        let logits = apply(&network, &normalise.apply(&to_unit(&Tensor::stack(&images, 0)))).logits;
        let (predicted, confidence) = predicted_and_confidence(&logits);
        for (i, path) in paths.iter().enumerate() {
            let class = predicted.int64_value(&[i as i64]) as usize;
            let class = facts.class_names.get(class).map_or_else(|| class.to_string(), |name| (*name).to_owned());
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            rows.write_record([name, class, format!("{:.4}", confidence.double_value(&[i as i64]))]).map_err(failed)?;
        }
    }
    let text = rows.into_inner().map_err(|e| Error::refused(format!("cannot write rows: {e}")))?;
    files::write(&args.out, &text)
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

/// One picture as uint8 `[c, h, w]` of the data set's size.
fn picture(path: &Path, facts: &Facts) -> Result<Tensor> {
    let image = image::open(path).map_err(|e| Error::file(path, format!("not a readable picture ({e})")))?;
    let [h, w] = facts.size;
    let image = image.resize_exact(w as u32, h as u32, image::imageops::FilterType::Triangle);
    let (raw, channels) = if facts.channels == 1 { (image.to_luma8().into_raw(), 1) } else { (image.to_rgb8().into_raw(), 3) };
    Ok(Tensor::from_slice(&raw).view([h, w, channels]).permute([2, 0, 1]).contiguous())
}
