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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Purpose;
    use tch::{Device, Kind};

    /// Inputs of `layer1` to `layer4`, of 64, 64, 128 and 256 channels; the shallower one is embedded at its batch-norms.
    #[test]
    fn a_resnet34_is_embedded_at_its_stages() {
        let shape = Shape { channels: 1, classes: 2 };
        let network = ResNet::new(&[3, 4, 6, 3], shape);
        assert_eq!(network.embedding(), (Embedding::Stages, 512));
        let state = State::initialised(&network.blueprint, 1, Purpose::StudentInit, Device::Cpu);
        let images_bchw = Tensor::arange(128, (Kind::Float, Device::Cpu)).view([2, 1, 8, 8]) / 128;
        let mut pass = Pass::eval().embedding(Embedding::Stages);
        network.forward(&state, &images_bchw, &mut pass);

        let mut x = network.bn1.forward(&state, &network.conv1.forward(&state, &images_bchw), &mut Pass::eval(), Activation::Relu);
        let mut parts = Vec::new();
        for (index, block) in network.blocks.iter().enumerate() {
            if [0, 3, 3 + 4, 3 + 4 + 6].contains(&index) {
                parts.push(x.mean_dim([2i64, 3].as_slice(), false, Kind::Float));
            }
            x = block.forward(&state, &x, &mut Pass::eval());
        }
        assert_eq!(parts.iter().map(|part| part.size()[1]).collect::<Vec<_>>(), [64, 64, 128, 256]);
        assert!(pass.take_embedding().unwrap().equal(&Tensor::cat(&parts, 1)));
        assert_eq!(ResNet::new(&[2, 2, 2, 2], shape).embedding().0, Embedding::BatchNorms);
    }
}
