//! MobileNetV2 as a backbone (Sandler et al. 2018, as in zju-vipa/Fast-Datafree `deeplab/backbone/mobilenetv2.py`): torchvision's
//! weights fit, but padding is done by hand, before the expansion instead of at the depthwise convolution.

use super::deeplab::Backbone;
use crate::nn::{Activation, BatchNorm2d, Conv2d, ConvInit, ConvShape, DilatedConv2d, DilatedShape, Pass, Scope, State};
use tch::Tensor;

/// Features 1 to 17: (expansion, output channels, stride, dilation).
const BLOCKS: [(i64, i64, i64, i64); 17] = [
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 24, 1, 1),
    (6, 32, 2, 1),
    (6, 32, 1, 1),
    (6, 32, 1, 1),
    (6, 64, 1, 1),
    (6, 64, 1, 2),
    (6, 64, 1, 2),
    (6, 64, 1, 2),
    (6, 96, 1, 2),
    (6, 96, 1, 2),
    (6, 96, 1, 2),
    (6, 160, 1, 2),
    (6, 160, 1, 4),
    (6, 160, 1, 4),
    (6, 320, 1, 4),
];
/// Features 0 to 3 are the low-level ones.
const LOW_LEVEL: usize = 4;

struct InvertedResidual {
    expand: Option<(Conv2d, BatchNorm2d)>,
    depthwise: DilatedConv2d,
    bn: BatchNorm2d,
    project: Conv2d,
    last_bn: BatchNorm2d,
    dilation: i64,
    residual: bool,
}

impl InvertedResidual {
    fn declare(scope: &Scope, input: i64, (expansion, output, stride, dilation): (i64, i64, i64, i64)) -> Self {
        let (layers, hidden) = (scope.child("conv"), expansion * input);
        let plain = |scope, shape| Conv2d::declare(scope, shape, false, ConvInit::FanOut);
        let expand = (expansion != 1).then(|| {
            let scope = layers.child(0);
            (plain(scope.child(0), ConvShape::one(input, hidden)), BatchNorm2d::declare(scope.child(1), hidden))
        });
        let at = usize::from(expand.is_some());
        let middle = layers.child(at);
        let shape = DilatedShape::depthwise(hidden, stride, dilation);
        Self {
            expand,
            depthwise: DilatedConv2d::declare(middle.child(0), shape, ConvInit::FanOut),
            bn: BatchNorm2d::declare(middle.child(1), hidden),
            project: plain(layers.child(at + 1), ConvShape::one(hidden, output)),
            last_bn: BatchNorm2d::declare(layers.child(at + 2), output),
            dilation,
            residual: stride == 1 && input == output,
        }
    }

    fn forward(&self, state: &State, x: &Tensor, pass: &mut Pass) -> Tensor {
        let mut h = x.constant_pad_nd([self.dilation; 4]);
        // The ring of zeros passes through the expansion and is not zero any more when the depthwise convolution meets it.
        if let Some((conv, bn)) = &self.expand {
            h = bn.forward(state, &conv.forward(state, &h), pass, Activation::Relu6);
        }
        let h = self.bn.forward(state, &self.depthwise.forward(state, &h), pass, Activation::Relu6);
        let h = self.last_bn.forward(state, &self.project.forward(state, &h), pass, Activation::Identity);
        if self.residual { h + x } else { h }
    }
}

pub(super) struct MobileNetV2 {
    stem: DilatedConv2d,
    bn: BatchNorm2d,
    blocks: Vec<InvertedResidual>,
}

/// Place of a feature: indices go on where the low-level ones end.
fn group(feature: usize) -> &'static str {
    if feature < LOW_LEVEL { "low_level_features" } else { "high_level_features" }
}

impl Backbone for MobileNetV2 {
    const OUTPUT: i64 = 320;

    fn declare(scope: Scope, channels: i64) -> Self {
        let place = |feature: usize| scope.child(group(feature)).child(feature);
        let shape = DilatedShape { input: channels, output: 32, kernel: 3, stride: 2, padding: 0, dilation: 1, groups: 1 };
        let stem = DilatedConv2d::declare(place(0).child(0), shape, ConvInit::FanOut);
        let bn = BatchNorm2d::declare(place(0).child(1), 32);
        let mut width = 32;
        let block = |(i, shape): (usize, &(i64, i64, i64, i64))| {
            let input = std::mem::replace(&mut width, shape.1);
            InvertedResidual::declare(&place(i + 1), input, *shape)
        };
        let blocks = BLOCKS.iter().enumerate().map(block).collect();
        Self { stem, bn, blocks }
    }

    fn forward(&self, state: &State, images_bchw: &Tensor, pass: &mut Pass) -> Tensor {
        let x = self.bn.forward(state, &self.stem.forward(state, images_bchw), pass, Activation::Relu6);
        self.blocks.iter().fold(x, |x, block| block.forward(state, &x, pass))
    }

    fn key_of(torchvision: &str) -> Option<String> {
        let (feature, rest) = torchvision.strip_prefix("features.")?.split_once('.')?;
        let feature: usize = feature.parse().ok()?;
        (feature <= BLOCKS.len()).then(|| format!("{}.{feature}.{rest}", group(feature)))
    }
}
