//! `ssdkd predict`.

use crate::cli::PredictArgs;
use crate::config::load;
use crate::error::{Error, Result};
use crate::nn::weights;
use crate::predict::{self, Network};

/// Applies a network to a file of tensors or to a folder of pictures.
pub fn run(args: &PredictArgs) -> Result<()> {
    let config = load(&[], &[format!("student.model={}", args.model)])?.config;
    let network = Network { model: config.student.model, weights: &args.weights, classes: args.classes };
    if !args.input.is_dir() {
        return predict::tensors(&network, &args.input, &args.out);
    }
    let own = || Ok::<_, Error>(weights::read(&args.weights)?.metadata.get("dataset").cloned());
    let dataset = args.dataset.clone().map_or_else(own, |name| Ok(Some(name)))?;
    let Some(dataset) = dataset else {
        return Err(Error::refused("--dataset is needed for a folder of pictures: it gives their size and normalisation"));
    };
    let config = load(&[], &[format!("dataset={dataset}")])?.config;
    predict::folder(&network, &args.input, config.dataset, &args.out)
}
