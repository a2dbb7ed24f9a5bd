//! Start values from an ImageNet classifier, as torchvision stores it.

use super::Network;
use crate::error::{Error, Result};
use crate::nn::{State, weights};
use std::path::Path;
use tch::Tensor;

/// Where a segmentation network keeps its backbone.
const PREFIX: &str = "backbone.";

/// Fills the backbone of `network` from `path`: all of it, from torchvision's keys or from those of the network itself. What the
/// file has besides (the classifier of its 1,000 categories, the head of a segmentation network) is left.
///
/// # Errors
/// A network without a backbone; a file that is missing or damaged, or a tensor of the backbone that is missing, not finite or of
/// another shape.
pub fn load_backbone(network: &dyn Network, state: &State, path: &Path) -> Result<()> {
    let backbone = network.blueprint().part(PREFIX);
    if backbone.entries().is_empty() {
        return Err(Error::file(path, "the network has no ImageNet backbone that this file could fill")
            .with_hint("leave the key out, or choose deeplabv3_resnet50 or deeplabv3_mobilenet"));
    }
    let tensors = weights::read(path)?.tensors;
    // A file with keys of its own is no classifier's: what it has besides is a head, whatever its keys look like.
    let has_own = tensors.iter().any(|(key, _)| key.starts_with(PREFIX));
    let renamed = |key: String| if has_own { Some(key).filter(|key| key.starts_with(PREFIX)) } else { network.backbone_key(&key) };
    let dict: Vec<(String, Tensor)> = tensors.into_iter().filter_map(|(key, tensor)| Some((renamed(key)?, tensor))).collect();
    backbone.check(&dict, path)?;
    state.fill(&dict);
    Ok(())
}
