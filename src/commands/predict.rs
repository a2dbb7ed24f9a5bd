//! `ssdkd predict`.

use crate::cli::PredictArgs;
use crate::config::{DatasetName, Precision, ReduceRule};
use crate::data::Facts;
use crate::error::{Error, Result};
use crate::files;
use crate::nn::{compute_in, weights};
use crate::parallel::Launch;
use crate::predict::{self, Network};
use std::path::Path;

/// Applies a network to a file of tensors or to a folder of pictures.
pub fn run(args: &PredictArgs) -> Result<()> {
    files::check_target(&args.out)?;
    let device = Launch::alone()?.take_device(args.device, false, 0)?;
    compute_in("--device", Precision::F32, device, ReduceRule::Deterministic)?;
    let network = Network { model: args.model, weights: &args.weights, classes: args.classes, device };
    if !args.input.is_dir() {
        return predict::tensors(&network, &args.input, &args.out);
    }
    let dataset = args.dataset.map_or_else(|| own_dataset(&args.weights), Ok)?;
    predict::folder(&network, &args.input, dataset, &args.out)
}

/// The data set that a weights file says it is for.
fn own_dataset(file: &Path) -> Result<DatasetName> {
    let metadata = weights::says(file)?;
    let Some(text) = metadata.get("dataset") else {
        if Facts::of_metadata(|key| metadata.get(key).map(String::as_str)).is_some() {
            // The program of somebody else's module says of what size and normalisation pictures are, and needs no data set for it.
            return Ok(DatasetName::Folder);
        }
        return Err(Error::refused("--dataset is needed for a folder of pictures: it gives their size and normalisation"));
    };
    DatasetName::ALL.into_iter().find(|name| name.name() == text).ok_or_else(|| {
        let known = DatasetName::ALL.map(DatasetName::name).join(", ");
        Error::file(file, format!("says of itself that it is for the data set `{text}`, which is none of {known}"))
            .with_hint("give one with --dataset")
    })
}
