//! What launch/pytorch/trace_teacher.py says of a TorchScript program that it wrote: a JSON file inside the program's own.

use super::pickle;
use crate::error::{Error, Result};
use serde::Deserialize;
use std::path::Path;

/// The file in the archive.
const NAME: &str = "ssdkd.json";
/// The manifests this reads.
const FORMAT: u32 = 1;
/// The way out of most that can be wrong with a program.
pub const SCRIPT: &str = "write it with launch/pytorch/trace_teacher.py (docs/teachers.md)";

/// What trace_teacher.py says of its program.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Manifest {
    format: u32,
    /// Classes k.
    pub classes: i64,
    /// Channels, height and width of an image.
    pub input: [i64; 3],
    /// Mean per channel by which images are normalised.
    pub mean: Vec<f32>,
    /// Standard deviation per channel.
    pub std: Vec<f32>,
    /// Pixels to which pictures' shorter side is brought before the middle is cut out.
    pub resize: Option<i64>,
    /// Values of an image's features; 0 without.
    pub features: i64,
    /// Its batch-norms, in the order in which they are called.
    pub batch_norms: Vec<TracedBatchNorm>,
}

/// A batch-norm of a traced module.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct TracedBatchNorm {
    /// Its name in the module.
    pub name: String,
    /// Channels f.
    pub channels: i64,
}

impl Manifest {
    /// Whether the file is, or should have been, a TorchScript program, and none of tensors.
    pub fn is_asked_of(bytes: &[u8]) -> bool {
        pickle::is_onnx(bytes) || pickle::read_extra(bytes, NAME).is_ok()
    }

    /// The manifest inside a TorchScript file, if it has one.
    ///
    /// # Errors
    /// Another kind of file, a damaged one, a manifest of another format, or one that contradicts itself.
    pub fn of(bytes: &[u8], path: &Path) -> Result<Option<Self>> {
        if pickle::is_onnx(bytes) {
            let why =
                "is an ONNX model: its exporters fold batch-norm into convolutions, so that the statistics which methods invert are gone";
            return Err(Error::file(path, why).with_hint(format!("take the PyTorch module that it was exported from: {SCRIPT}")));
        }
        let foreign = |e: pickle::PickleError| Error::file(path, e.to_string());
        let hint = format!("a state_dict needs the name of its network as teacher.model; any other module: {SCRIPT}");
        let Some(text) = pickle::read_extra(bytes, NAME).map_err(|e| foreign(e).with_hint(hint))? else { return Ok(None) };
        let refuse = |why: String| Error::file(path, format!("its {NAME} {why}")).with_hint(format!("{SCRIPT} of this version"));
        let manifest: Self = serde_json::from_slice(&text).map_err(|e| refuse(format!("cannot be read: {e}")))?;
        match manifest.problem() {
            Some(why) => Err(refuse(why)),
            None => Ok(Some(manifest)),
        }
    }

    fn problem(&self) -> Option<String> {
        let [channels, height, width] = self.input;
        if self.format != FORMAT {
            return Some(format!("is of format {}; {FORMAT} is needed", self.format));
        }
        if height != width {
            return Some(format!("is for images of {height}×{width} pixels: only squares are possible"));
        }
        let per_channel = |values: &[f32]| values.len() as i64 == channels && values.iter().all(|value| value.is_finite());
        if !per_channel(&self.mean) || !per_channel(&self.std) || self.std.iter().any(|&std| std <= 0.0) {
            let Self { mean, std, .. } = self;
            return Some(format!(
                "says mean {mean:?} and std {std:?} of images of {channels} channels: one finite value each, and no std of 0"
            ));
        }
        None
    }

    /// The same under the names that a safetensors file has them under.
    pub fn says(&self) -> Vec<(String, String)> {
        let words = |values: &[f32]| values.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        let [channels, height, width] = self.input;
        let numbers = [("classes", self.classes), ("channels", channels), ("height", height), ("width", width)];
        let numbers = numbers.into_iter().chain(self.resize.map(|side| ("resize", side))).map(|(name, n)| (name, n.to_string()));
        let texts = [("mean", words(&self.mean)), ("std", words(&self.std))];
        numbers.chain(texts).map(|(name, text)| (name.to_owned(), text)).collect()
    }
}
