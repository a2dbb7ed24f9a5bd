//! ResNet-50 as a backbone (He et al. 2016, torchvision's form with the stride on the 3×3 convolution): from its third stage on,
//! strides are replaced by dilation.

use super::deeplab::Backbone;
use crate::nn::{Activation, BatchNorm2d, Conv2d, ConvInit, ConvShape, DilatedConv2d, DilatedShape, Pass, Scope, State, max_pool};
use tch::Tensor;

/// Blocks of a stage, and its stride and dilations.
struct Stage {
    blocks: i64,
    stride: i64,
    /// Of the first block, and of the others.
    dilations: [i64; 2],
}

const STAGES: [Stage; 4] = [
    Stage { blocks: 3, stride: 1, dilations: [1, 1] },
    Stage { blocks: 4, stride: 2, dilations: [1, 1] },
    Stage { blocks: 6, stride: 1, dilations: [1, 2] },
    Stage { blocks: 3, stride: 1, dilations: [2, 4] },
];
const EXPANSION: i64 = 4;

struct Bottleneck {
    conv1: Conv2d,
    bn1: BatchNorm2d,
    conv2: DilatedConv2d,
    bn2: BatchNorm2d,
    conv3: Conv2d,
    bn3: BatchNorm2d,
    downsample: Option<(Conv2d, BatchNorm2d)>,
}

impl Bottleneck {
    fn declare(scope: &Scope, input: i64, planes: i64, stride: i64, dilation: i64, first: bool) -> Self {
        let output = EXPANSION * planes;
        let plain = |scope, shape| Conv2d::declare(scope, shape, false, ConvInit::FanOut);
        let middle = DilatedShape { stride, ..DilatedShape::atrous(planes, planes, dilation) };
        Self {
            conv1: plain(scope.child("conv1"), ConvShape::one(input, planes)),
            bn1: BatchNorm2d::declare(scope.child("bn1"), planes),
            conv2: DilatedConv2d::declare(scope.child("conv2"), middle, ConvInit::FanOut),
            bn2: BatchNorm2d::declare(scope.child("bn2"), planes),
            conv3: plain(scope.child("conv3"), ConvShape::one(planes, output)),
            bn3: BatchNorm2d::declare(scope.child("bn3"), output),
            downsample: first.then(|| {
                let scope = scope.child("downsample");
                let conv = plain(scope.child(0), ConvShape::one(input, output).stride(stride));
                (conv, BatchNorm2d::declare(scope.child(1), output))
            }),
        }
    }

    fn forward(&self, state: &State, x: &Tensor, pass: &mut Pass) -> Tensor {
        let h = self.bn1.forward(state, &self.conv1.forward(state, x), pass, Activation::Relu);
        let h = self.bn2.forward(state, &self.conv2.forward(state, &h), pass, Activation::Relu);
        let h = self.bn3.forward(state, &self.conv3.forward(state, &h), pass, Activation::Identity);
        match &self.downsample {
            Some((conv, bn)) => (h + bn.forward(state, &conv.forward(state, x), pass, Activation::Identity)).relu(),
            None => (h + x).relu(),
        }
    }
}

pub(super) struct ResNet50 {
    conv1: Conv2d,
    bn1: BatchNorm2d,
    blocks: Vec<Bottleneck>,
}

impl Backbone for ResNet50 {
    const OUTPUT: i64 = 2048;

    fn declare(scope: Scope, channels: i64) -> Self {
        let stem = ConvShape { input: channels, output: 64, kernel: 7, stride: 2 };
        let conv1 = Conv2d::declare(scope.child("conv1"), stem, false, ConvInit::FanOut);
        let bn1 = BatchNorm2d::declare(scope.child("bn1"), 64);
        let (mut blocks, mut width) = (Vec::new(), 64);
        for (stage, Stage { blocks: count, stride, dilations: [first, others] }) in STAGES.into_iter().enumerate() {
            let planes = 64 << stage;
            for index in 0..count {
                let scope = scope.child(format!("layer{}", stage + 1)).child(index);
                let (stride, dilation) = if index == 0 { (stride, first) } else { (1, others) };
                blocks.push(Bottleneck::declare(&scope, width, planes, stride, dilation, index == 0));
                width = EXPANSION * planes;
            }
        }
        Self { conv1, bn1, blocks }
    }

    fn forward(&self, state: &State, images_bchw: &Tensor, pass: &mut Pass) -> Tensor {
        let x = self.bn1.forward(state, &self.conv1.forward(state, images_bchw), pass, Activation::Relu);
        let x = max_pool(&x, 3, 2, 1);
        self.blocks.iter().fold(x, |x, block| block.forward(state, &x, pass))
    }

    fn key_of(torchvision: &str) -> Option<String> {
        (!torchvision.starts_with("fc.")).then(|| torchvision.to_owned())
    }
}
