//! ResNet for small images: 3×3 stem without pooling, post-activation basic blocks (He et al. 2016, CIFAR form as in
//! zju-vipa/Fast-Datafree `classifiers/resnet.py`).

use super::{Network, Output, Shape};
use crate::nn::{Activation, BatchNorm2d, Blueprint, Conv2d, ConvInit, ConvShape, Embedding, Linear, Pass, Scope, State, pooled};
use std::rc::Rc;
use tch::Tensor;

struct Block {
    conv1: Conv2d,
    bn1: BatchNorm2d,
    conv2: Conv2d,
    bn2: BatchNorm2d,
    shortcut: Option<(Conv2d, BatchNorm2d)>,
}

impl Block {
    fn declare(scope: Scope, input: i64, output: i64, stride: i64) -> Self {
        let conv = |scope, shape| Conv2d::declare(scope, shape, false, ConvInit::Default);
        Self {
            conv1: conv(scope.child("conv1"), ConvShape::three(input, output).stride(stride)),
            bn1: BatchNorm2d::declare(scope.child("bn1"), output),
            conv2: conv(scope.child("conv2"), ConvShape::three(output, output)),
            bn2: BatchNorm2d::declare(scope.child("bn2"), output),
            shortcut: (stride != 1 || input != output).then(|| {
                let shape = ConvShape::one(input, output).stride(stride);
                (conv(scope.child("shortcut").child(0), shape), BatchNorm2d::declare(scope.child("shortcut").child(1), output))
            }),
        }
    }

    fn forward(&self, state: &State, x: &Tensor, pass: &mut Pass) -> Tensor {
        let h = self.bn1.forward(state, &self.conv1.forward(state, x), pass, Activation::Relu);
        let h = self.bn2.forward(state, &self.conv2.forward(state, &h), pass, Activation::Identity);
        match &self.shortcut {
            Some((conv, bn)) => (h + bn.forward(state, &conv.forward(state, x), pass, Activation::Identity)).relu(),
            None => (h + x).relu(),
        }
    }
}

pub(super) struct ResNet {
    blueprint: Rc<Blueprint>,
    conv1: Conv2d,
    bn1: BatchNorm2d,
    blocks: Vec<Block>,
    /// First block of every stage, and the channels that go into it.
    stages: Vec<(usize, i64)>,
    linear: Linear,
}

impl ResNet {
    /// `depths`: blocks in each of the four stages.
    pub(super) fn new(depths: &[usize; 4], shape: Shape) -> Self {
        let root = Scope::default();
        let conv1 = Conv2d::declare(root.child("conv1"), ConvShape::three(shape.channels, 64), false, ConvInit::Default);
        let bn1 = BatchNorm2d::declare(root.child("bn1"), 64);
        let mut blocks = Vec::new();
        let (mut width, mut stages) = (64, Vec::new());
        for (stage, &depth) in depths.iter().enumerate() {
            let output = 64 << stage;
            stages.push((blocks.len(), width));
            for index in 0..depth {
                let stride = if stage > 0 && index == 0 { 2 } else { 1 };
                let name = format!("layer{}", stage + 1);
                blocks.push(Block::declare(root.child(name).child(index), width, output, stride));
                width = output;
            }
        }
        let linear = Linear::declare(root.child("linear"), width, shape.classes, None);
        Self { blueprint: root.blueprint(), conv1, bn1, blocks, stages, linear }
    }
}

impl Network for ResNet {
    fn forward(&self, state: &State, images_bchw: &Tensor, pass: &mut Pass) -> Output {
        let stem = self.bn1.forward(state, &self.conv1.forward(state, images_bchw), pass, Activation::Relu);
        let x = self.blocks.iter().enumerate().fold(stem, |x, (index, block)| {
            if self.stages.iter().any(|(first, _)| *first == index) {
                pass.embed(Embedding::Stages, &x);
            }
            block.forward(state, &x, pass)
        });
        let features_bd = pooled(&x);
        Output::of_images(self.linear.forward(state, &features_bd), features_bd)
    }

    fn blueprint(&self) -> &Rc<Blueprint> {
        &self.blueprint
    }

    fn stage_channels(&self) -> Option<i64> {
        // Of a ResNet-34 the batch-norms have 8,512 channels.
        const SHALLOW: usize = 8;
        (self.blocks.len() > SHALLOW).then(|| self.stages.iter().map(|(_, channels)| channels).sum())
    }
}
