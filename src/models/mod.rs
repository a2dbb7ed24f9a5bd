//! Networks by name, with the state_dict keys and shapes of the published PyTorch ones.
//!
//! A [`Network`] is a pure function of (state, images): the same one serves the trained student, its frozen twin inside
//! the inversion loop, and every copy of a generator.

mod backbone;
mod deeplab;
mod generator;
mod mobilenet;
mod resnet;
mod resnet50;
mod torchscript;
mod vgg;
mod wide_resnet;

pub use backbone::load_backbone;
pub use generator::{DeepGenerator, Generator, GeneratorShape};

use crate::config::ModelName;
use crate::error::{Error, Result};
use crate::nn::{Blueprint, Embedding, Pass, State, weights};
use std::path::Path;
use std::rc::Rc;
use tch::{Device, Tensor};

/// What a classifier or segmenter returns.
pub struct Output {
    /// `[b, k]`, or `[b, k, h, w]` for networks that label pixels.
    pub logits: Tensor,
    /// What the logits are a fixed function of: the same, or a smaller map `[b, k, h', w']` that [`crate::task::at_size`] brings to the
    /// images' size. Whoever keeps logits keeps these.
    pub head: Tensor,
    /// Pooled values before the last layer, `[b, d]`.
    pub features_bd: Tensor,
}

impl Output {
    /// Of a network that classifies images.
    pub fn of_images(logits_bk: Tensor, features_bd: Tensor) -> Self {
        Self { head: logits_bk.shallow_clone(), logits: logits_bk, features_bd }
    }
}

/// A network that maps images to logits.
pub trait Network {
    /// Shapes: `images_bchw` f32, normalised. Batch-norm behaves, and is recorded, as `pass` says.
    fn forward(&self, state: &State, images_bchw: &Tensor, pass: &mut Pass) -> Output;

    /// Its state_dict.
    fn blueprint(&self) -> &Rc<Blueprint>;

    /// Where an image's embedding is taken, and how many values it has.
    ///
    /// Source: zju-vipa/DataFree `datafree_kd.py`: all batch-norm layers, but the stages of a ResNet-34.
    fn embedding(&self) -> (Embedding, i64) {
        let of_batch_norms = || (Embedding::BatchNorms, self.blueprint().batch_norm_channels().iter().sum());
        self.stage_channels().map_or_else(of_batch_norms, |channels| (Embedding::Stages, channels))
    }

    /// `(running_mean_f, running_var_f)` of every batch-norm layer, in hook order.
    fn running_statistics(&self, state: &State) -> Vec<(Tensor, Tensor)> {
        state.running_statistics()
    }

    /// Whether its output has features; without, they are `[b, 0]`.
    fn has_features(&self) -> bool {
        true
    }

    /// Why no gradient of its logits reaches the images, where none does.
    fn gradient_fails(&self) -> Option<&str> {
        None
    }

    /// Mean and standard deviation per channel that its images are normalised by, where it says so itself.
    fn normalisation(&self) -> Option<(&[f32], &[f32])> {
        None
    }

    /// Channels that go into all stages together, where the embedding is taken there.
    fn stage_channels(&self) -> Option<i64> {
        None
    }

    /// Least height and width of its images.
    fn least_size(&self) -> i64 {
        1
    }

    /// Key in this network of an entry of an ImageNet classifier as torchvision stores it; `None` for what belongs to that
    /// classifier alone, and for networks that have no backbone of ImageNet's.
    fn backbone_key(&self, _torchvision: &str) -> Option<String> {
        None
    }
}

/// Size of a network's input and output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Image channels.
    pub channels: i64,
    /// Classes k.
    pub classes: i64,
}

/// A frozen network with its weights from a file, for images of `size` (height, width).
///
/// # Errors
/// A file that is not there or damaged; a tensor that is missing, unknown, of another shape, or not finite; a program that is no
/// classifier of such images.
pub fn load(name: ModelName, path: &Path, shape: Shape, size: [i64; 2], device: Device) -> Result<(Box<dyn Network>, State)> {
    if name == ModelName::Torchscript {
        let network = torchscript::TorchScript::load(path, shape, size, device)?;
        let state = State::empty(network.blueprint(), device);
        return Ok((Box::new(network), state));
    }
    let network = build(name, shape);
    let file = weights::read(path)?;
    // Said before a single one of their tensors is missed.
    let layers = network.blueprint().batch_norm_channels().len();
    if layers > 0 && !file.tensors.iter().any(|(key, _)| key.ends_with("running_mean")) {
        return Err(Error::file(path, format!("no batch-norm layers; {} has {layers}", name.name())).with_hint(
            "is this file of another architecture, or was batch-norm folded into its convolutions? `ssdkd inspect FILE` lists what it holds",
        ));
    }
    let state = State::from_state_dict(network.blueprint(), &file.tensors, path, device)?;
    Ok((network, state))
}

/// Refuses images of which the first layers of a network would leave nothing; `key` is what makes them as small as `size` (height,
/// width).
///
/// # Errors
/// [`Error::Config`] with the least size.
pub fn check_size(network: &dyn Network, name: ModelName, key: &str, size: [i64; 2]) -> Result<()> {
    let (least, [h, w]) = (network.least_size(), size);
    if h.min(w) >= least {
        return Ok(());
    }
    Err(Error::config(key, format!("images of {w}×{h}: {} takes {least}×{least} pixels or more", name.name())))
}

/// Builds a network of this crate by name.
///
/// # Panics
/// For [`ModelName::Torchscript`], which only a file can be: configurations and command lines that would build one are refused.
pub fn build(name: ModelName, shape: Shape) -> Box<dyn Network> {
    match name {
        ModelName::Resnet18 => Box::new(resnet::ResNet::new(&[2, 2, 2, 2], shape)),
        ModelName::Resnet34 => Box::new(resnet::ResNet::new(&[3, 4, 6, 3], shape)),
        ModelName::Vgg11 => Box::new(vgg::Vgg11::new(shape)),
        ModelName::Wrn16x1 => Box::new(wide_resnet::WideResNet::new(16, 1, shape)),
        ModelName::Wrn16x2 => Box::new(wide_resnet::WideResNet::new(16, 2, shape)),
        ModelName::Wrn40x1 => Box::new(wide_resnet::WideResNet::new(40, 1, shape)),
        ModelName::Wrn40x2 => Box::new(wide_resnet::WideResNet::new(40, 2, shape)),
        ModelName::Deeplabv3Resnet50 => Box::new(deeplab::DeepLab::<resnet50::ResNet50>::new(shape)),
        ModelName::Deeplabv3Mobilenet => Box::new(deeplab::DeepLab::<mobilenet::MobileNetV2>::new(shape)),
        ModelName::Torchscript => unreachable!("a TorchScript program is loaded, not built"),
    }
}
