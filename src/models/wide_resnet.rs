//! Wide residual networks WRN-d-k, pre-activation (Zagoruyko & Komodakis 2016, as in zju-vipa/Fast-Datafree
//! `classifiers/wresnet.py`).

use super::{Network, Output, Shape};
use crate::nn::{Activation, BatchNorm2d, Blueprint, Conv2d, ConvInit, ConvShape, Init, Linear, Pass, Scope, State, pooled};
use std::rc::Rc;
use tch::Tensor;

struct Block {
    bn1: BatchNorm2d,
    conv1: Conv2d,
    bn2: BatchNorm2d,
    conv2: Conv2d,
    shortcut: Option<Conv2d>,
}

impl Block {
    fn declare(scope: Scope, input: i64, output: i64, stride: i64) -> Self {
        let conv = |scope, shape| Conv2d::declare(scope, shape, false, ConvInit::FanOut);
        Self {
            bn1: BatchNorm2d::declare(scope.child("bn1"), input),
            conv1: conv(scope.child("conv1"), ConvShape::three(input, output).stride(stride)),
            bn2: BatchNorm2d::declare(scope.child("bn2"), output),
            conv2: conv(scope.child("conv2"), ConvShape::three(output, output)),
            // Whether there is one depends on the width only, not on the stride.
            shortcut: (input != output).then(|| conv(scope.child("convShortcut"), ConvShape::one(input, output).stride(stride))),
        }
    }

    fn forward(&self, state: &State, x: &Tensor, pass: &mut Pass) -> Tensor {
        let a = self.bn1.forward(state, x, pass, Activation::Relu);
        let h = self.bn2.forward(state, &self.conv1.forward(state, &a), pass, Activation::Relu);
        let h = self.conv2.forward(state, &h);
        match &self.shortcut {
            Some(conv) => h + conv.forward(state, &a),
            None => h + x,
        }
    }
}

pub(super) struct WideResNet {
    blueprint: Rc<Blueprint>,
    conv1: Conv2d,
    blocks: Vec<Block>,
    bn1: BatchNorm2d,
    fc: Linear,
}

impl WideResNet {
    /// WRN-`depth`-`widen`; (depth − 4)/6 blocks in each of three groups.
    pub(super) fn new(depth: i64, widen: i64, shape: Shape) -> Self {
        let root = Scope::default();
        let conv1 = Conv2d::declare(root.child("conv1"), ConvShape::three(shape.channels, 16), false, ConvInit::FanOut);
        let mut blocks = Vec::new();
        let mut width = 16;
        for group in 0..3 {
            let output = (16 << group) * widen;
            for index in 0..(depth - 4) / 6 {
                let stride = if group > 0 && index == 0 { 2 } else { 1 };
                let scope = root.child(format!("block{}", group + 1)).child("layer").child(index);
                blocks.push(Block::declare(scope, width, output, stride));
                width = output;
            }
        }
        let bn1 = BatchNorm2d::declare(root.child("bn1"), width);
        let bound = 1.0 / (width as f64).sqrt();
        let fc = Linear::declare(root.child("fc"), width, shape.classes, Some((Init::Uniform(bound), Init::Constant(0.0))));
        Self { blueprint: root.blueprint(), conv1, blocks, bn1, fc }
    }
}

impl Network for WideResNet {
    fn forward(&self, state: &State, images_bchw: &Tensor, pass: &mut Pass) -> Output {
        let stem = self.conv1.forward(state, images_bchw);
        let x = self.blocks.iter().fold(stem, |x, block| block.forward(state, &x, pass));
        let x = self.bn1.forward(state, &x, pass, Activation::Relu);
        let features_bd = pooled(&x);
        Output::of_images(self.fc.forward(state, &features_bd), features_bd)
    }

    fn blueprint(&self) -> &Rc<Blueprint> {
        &self.blueprint
    }
}
