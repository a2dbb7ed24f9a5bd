//! A run's network in the formats of other programs (docs/export.md): one traversal of what libtorch records of a forward pass serves
//! TorchScript and ONNX, and so every network.

pub mod onnx;
mod pytorch;

use crate::config::{MAX_CLASSES, MAX_SIDE, ModelName};
use crate::error::{Error, Result};
use crate::files;
use crate::models::{self, Network, Shape};
use crate::nn::graph::Traced;
use crate::nn::weights::{self, WeightsFile};
use crate::nn::{Pass, State};
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

/// A network as its weights file describes it.
pub struct Subject {
    path: PathBuf,
    file: WeightsFile,
}

/// The same, built.
struct Built {
    model: ModelName,
    shape: Shape,
    /// Height and width.
    size: [i64; 2],
    network: Box<dyn Network>,
    state: State,
}

/// Images of a recorded pass: more than one, so that nothing is taken for a constant that is not.
const TRACED: i64 = 2;

impl Subject {
    /// What a finished run has made: its student, or the teacher that `teach` trained.
    ///
    /// # Errors
    /// A folder that holds neither, or a damaged file.
    pub fn of_run(folder: &Path) -> Result<Self> {
        if !folder.is_dir() {
            return Err(Error::file(folder, "there is no such folder of a run"));
        }
        let made = ["student.safetensors", "teacher.safetensors"].map(|name| folder.join(name)).into_iter().find(|path| path.is_file());
        let Some(path) = made else {
            return Err(Error::file(folder, "holds neither student.safetensors nor teacher.safetensors")
                .with_hint("a run writes its network at its end: `ssdkd inspect DIR --status` says how it stands"));
        };
        Self::read(&path)
    }

    /// A weights file that says what it is of, as every run writes it.
    pub fn read(path: &Path) -> Result<Self> {
        Ok(Self { file: weights::read(path)?, path: path.into() })
    }

    /// Refuses to write over the file that is exported.
    fn spared_by(&self, out: &Path) -> Result<()> {
        match (out.canonicalize(), self.path.canonicalize()) {
            (Ok(out), Ok(own)) if out == own => {
                Err(Error::file(&self.path, "is the run's own result, which is exported: name another file with --out"))
            }
            _ => Ok(()),
        }
    }

    /// One file of tensors.
    pub fn safetensors(&self, out: &Path) -> Result<()> {
        self.spared_by(out)?;
        weights::write(out, &self.file.tensors, &self.metadata())
    }

    /// A TorchScript module: any number of images in, logits out.
    pub fn torchscript(&self, out: &Path) -> Result<()> {
        self.spared_by(out)?;
        files::write(out, &self.built()?.traced()?.0.bytes()?)
    }

    /// An ONNX model: any number of images in, logits out.
    pub fn onnx(&self, out: &Path) -> Result<()> {
        self.spared_by(out)?;
        let built = self.built()?;
        let (traced, logits) = built.traced()?;
        let image = [built.shape.channels, built.size[0], built.size[1]];
        let interface = onnx::Interface { image: &image, logits: &logits.size()[1..], metadata: &self.metadata() };
        let model = onnx::model(&traced.graph()?, &built.state.state_dict(), &interface)?;
        files::write(out, &onnx::encode(&model))
    }

    /// A Python file with the network's class, and its weights beside it.
    ///
    /// # Errors
    /// A name that Python does not take for its own, or for which weights would replace it.
    pub fn pytorch(&self, out: &Path) -> Result<()> {
        if out.extension().is_none_or(|extension| extension != "py") {
            return Err(Error::refused(format!("--out {}: a Python file is written, its name must end in .py", out.display()))
                .with_hint("the weights go beside it, to a file of the same name that ends in .safetensors"));
        }
        let built = self.built()?;
        let text = pytorch::source(built.model, built.shape, self.text("mean")?, self.text("std")?)?;
        self.safetensors(&out.with_extension("safetensors"))?;
        files::write(out, text.as_bytes())
    }

    fn metadata(&self) -> Vec<(&str, String)> {
        let mut metadata: Vec<_> = self.file.metadata.iter().map(|(key, text)| (key.as_str(), text.clone())).collect();
        metadata.sort();
        metadata
    }

    fn text(&self, name: &str) -> Result<&str> {
        self.file.metadata.get(name).map(String::as_str).ok_or_else(|| {
            Error::file(&self.path, format!("does not say its `{name}`")).with_hint("files that runs of ssdkd write say what they are of")
        })
    }

    fn number(&self, name: &str, most: i64) -> Result<i64> {
        let text = self.text(name)?;
        let number = text.parse().ok().filter(|n| (1..=most).contains(n));
        number.ok_or_else(|| Error::file(&self.path, format!("says `{text}` of its {name}; 1 to {most} is possible")))
    }

    fn built(&self) -> Result<Built> {
        let name = self.text("model")?;
        let Some(model) = ModelName::ALL.into_iter().find(|model| model.name() == name) else {
            return Err(Error::file(&self.path, format!("says that it is of a `{name}`, which is no network of ssdkd")));
        };
        let shape = Shape { channels: self.number("channels", MAX_SIDE)?, classes: self.number("classes", MAX_CLASSES)? };
        let size = [self.number("height", MAX_SIDE)?, self.number("width", MAX_SIDE)?];
        let network = models::build(model, shape);
        let state = State::from_state_dict(network.blueprint(), &self.file.tensors, &self.path, Device::Cpu)?.plain();
        Ok(Built { model, shape, size, network, state })
    }
}

impl Built {
    /// The recorded pass, and the logits that it gave.
    fn traced(&self) -> Result<(Traced, Tensor)> {
        let images_bchw = Tensor::zeros([TRACED, self.shape.channels, self.size[0], self.size[1]], (Kind::Float, Device::Cpu));
        let mut logits = Tensor::new();
        let traced = Traced::new(&self.state, &images_bchw, |images_bchw| {
            logits = self.network.forward(&self.state, images_bchw, &mut Pass::eval()).logits;
            logits.shallow_clone()
        })?;
        Ok((traced, logits))
    }
}
