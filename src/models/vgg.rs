//! VGG-11 with batch-norm for small images (Simonyan & Zisserman 2015, CIFAR form as in zju-vipa/Fast-Datafree
//! `classifiers/vgg.py`).

use super::{Network, Output, Shape};
use crate::nn::{Activation, BatchNorm2d, Blueprint, Conv2d, ConvInit, ConvShape, Init, Linear, Pass, Scope, State, max_pool, pooled};
use std::rc::Rc;
use tch::Tensor;

/// Output channels of the convolutions of each block.
const BLOCKS: [&[i64]; 5] = [&[64], &[128], &[256, 256], &[512, 512], &[512, 512]];

pub(super) struct Vgg11 {
    blueprint: Rc<Blueprint>,
    blocks: Vec<Vec<(Conv2d, BatchNorm2d)>>,
    classifier: Linear,
}

impl Vgg11 {
    pub(super) fn new(shape: Shape) -> Self {
        let root = Scope::default();
        let mut width = shape.channels;
        let mut blocks = Vec::new();
        for (b, outputs) in BLOCKS.iter().enumerate() {
            let scope = root.child(format!("block{b}"));
            let mut layers = Vec::new();
            for (i, &output) in outputs.iter().enumerate() {
                // In PyTorch's Sequential the indices run conv, BN, ReLU, conv, BN.
                let conv = Conv2d::declare(scope.child(3 * i), ConvShape::three(width, output), true, ConvInit::FanOut);
                layers.push((conv, BatchNorm2d::declare(scope.child(3 * i + 1), output)));
                width = output;
            }
            blocks.push(layers);
        }
        let default_bias = Init::Constant(0.0);
        let classifier = Linear::declare(root.child("classifier"), width, shape.classes, Some((Init::Normal(0.01), default_bias)));
        Self { blueprint: root.blueprint(), blocks, classifier }
    }
}

impl Network for Vgg11 {
    fn forward(&self, state: &State, images_bchw: &Tensor, pass: &mut Pass) -> Output {
        let height = images_bchw.size()[2];
        let mut x = images_bchw.shallow_clone();
        for (b, layers) in self.blocks.iter().enumerate() {
            for (conv, bn) in layers {
                x = bn.forward(state, &conv.forward(state, &x), pass, Activation::Relu);
            }
            // The published network has the fourth pooling for 64-pixel images and not for 32; narrow ones have nothing left for it.
            if b < 3 || (b == 3 && height >= 64 && x.size()[3] > 1) {
                x = max_pool(&x, 2, 2, 0);
            }
        }
        let features_bd = pooled(&x);
        Output::of_images(self.classifier.forward(state, &features_bd), features_bd)
    }

    fn blueprint(&self) -> &Rc<Blueprint> {
        &self.blueprint
    }

    fn least_size(&self) -> i64 {
        8
    }
}
