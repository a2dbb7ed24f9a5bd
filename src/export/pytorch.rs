//! A network's class as a Python file that needs PyTorch alone. The classes lie in `pytorch/`, one file a family.

use crate::config::ModelName;
use crate::error::{Error, Result};
use crate::models::Shape;

const LOAD: &str = include_str!("pytorch/load.py");
const DEEPLAB: &str = include_str!("pytorch/deeplab.py");

/// The class `Network`, and arguments of its own besides channels and classes.
fn class(model: ModelName) -> Result<(Vec<&'static str>, &'static str)> {
    let resnet = |arguments| (vec![include_str!("pytorch/resnet.py")], arguments);
    let wide_resnet = |arguments| (vec![include_str!("pytorch/wide_resnet.py")], arguments);
    Ok(match model {
        ModelName::Resnet18 => resnet("depths=(2, 2, 2, 2), "),
        ModelName::Resnet34 => resnet("depths=(3, 4, 6, 3), "),
        ModelName::Vgg11 => (vec![include_str!("pytorch/vgg.py")], ""),
        ModelName::Wrn16x1 => wide_resnet("depth=16, widen=1, "),
        ModelName::Wrn16x2 => wide_resnet("depth=16, widen=2, "),
        ModelName::Wrn40x1 => wide_resnet("depth=40, widen=1, "),
        ModelName::Wrn40x2 => wide_resnet("depth=40, widen=2, "),
        ModelName::Deeplabv3Resnet50 => (vec![include_str!("pytorch/resnet50.py"), DEEPLAB], ""),
        ModelName::Deeplabv3Mobilenet => (vec![include_str!("pytorch/mobilenet.py"), DEEPLAB], ""),
        ModelName::Torchscript => {
            return Err(Error::refused("a TorchScript program has no class of its own").with_hint("torch.jit.load opens it as it is"));
        }
    })
}

/// The file's text; `mean` and `std` as weights files say them, numbers with spaces between.
///
/// # Errors
/// Constants that are no numbers: text of a file must not become code.
pub(super) fn source(model: ModelName, shape: Shape, mean: &str, std: &str) -> Result<String> {
    let numbers = |text: &str| {
        let numbers: Result<Vec<f32>, _> = text.split_whitespace().map(str::parse).collect();
        let numbers = numbers.map_err(|_| Error::refused(format!("the weights file's mean or std is `{text}`, not a list of numbers")))?;
        Ok::<_, Error>(format!("{numbers:?}"))
    };
    let (parts, arguments) = class(model)?;
    let (name, Shape { channels, classes }) = (model.name(), shape);
    let head = format!(
        "\"\"\"A {name} trained by ssdkd, in plain PyTorch: `from FILE import load; network = load()`.\"\"\"\n\n\
         import json\nfrom pathlib import Path\n\nimport torch\nfrom torch import nn\n\n\
         ARGUMENTS = dict({arguments}channels={channels}, classes={classes})\nMEAN, STD = {}, {}\n",
        numbers(mean)?,
        numbers(std)?,
    );
    Ok(std::iter::once(head.as_str()).chain(parts).chain([LOAD]).collect::<Vec<_>>().join("\n\n"))
}
