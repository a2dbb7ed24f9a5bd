//! DeepLabV3 (Chen et al. 2017, *Rethinking Atrous Convolution*), as in zju-vipa/Fast-Datafree `deeplab/`: output stride 8, atrous
//! rates 12, 24, 36. The V3+ variants there are not registered, and are not here.

use super::{Network, Output, Shape};
use crate::nn::{
    Activation, BatchNorm2d, Blueprint, Conv2d, ConvInit, ConvShape, DilatedConv2d, DilatedShape, Pass, Scope, State, as_kind, pooled,
};
use crate::task;
use std::rc::Rc;
use tch::{Kind, Tensor};

const RATES: [i64; 3] = [12, 24, 36];
/// Channels of every map of the head.
const WIDTH: i64 = 256;
const DROPOUT: f64 = 0.1;

/// A classifier's layers up to its last map, at an eighth of the images' size.
pub(super) trait Backbone {
    /// Channels of the last map.
    const OUTPUT: i64;

    /// Declares the layers for images of so many channels.
    fn declare(scope: Scope, channels: i64) -> Self;

    /// `images_bchw` → `[b, OUTPUT, h/8, w/8]`.
    fn forward(&self, state: &State, images_bchw: &Tensor, pass: &mut Pass) -> Tensor;

    /// Key below `backbone.` of an entry of torchvision's classifier; `None` for its last layers.
    fn key_of(torchvision: &str) -> Option<String>;
}

/// One convolution, batch-norm and ReLU of the head.
struct Branch {
    conv: Conv2d,
    bn: BatchNorm2d,
}

impl Branch {
    fn declare(conv: Scope, bn: Scope, shape: ConvShape) -> Self {
        Self { conv: Conv2d::declare(conv, shape, false, ConvInit::FanIn), bn: BatchNorm2d::declare(bn, WIDTH) }
    }

    /// Conv at index 0 and batch-norm at index 1 of a PyTorch `Sequential`.
    fn of(scope: Scope, shape: ConvShape) -> Self {
        Self::declare(scope.child(0), scope.child(1), shape)
    }

    fn forward(&self, state: &State, x: &Tensor, pass: &mut Pass) -> Tensor {
        self.bn.forward(state, &self.conv.forward(state, x), pass, Activation::Relu)
    }
}

/// Backbone, atrous spatial pyramid pooling, two convolutions.
pub(super) struct DeepLab<B> {
    blueprint: Rc<Blueprint>,
    backbone: B,
    point: Branch,
    atrous: [(DilatedConv2d, BatchNorm2d); 3],
    pooled: Branch,
    project: Branch,
    smooth: Branch,
    last: Conv2d,
}

impl<B: Backbone> DeepLab<B> {
    pub(super) fn new(shape: Shape) -> Self {
        let root = Scope::default();
        let backbone = B::declare(root.child("backbone"), shape.channels);
        let head = root.child("classifier").child("classifier");
        let convs = head.child(0).child("convs");
        let point = Branch::of(convs.child(0), ConvShape::one(B::OUTPUT, WIDTH));
        let atrous = std::array::from_fn(|i| {
            let scope = convs.child(i + 1);
            let conv = DilatedConv2d::declare(scope.child(0), DilatedShape::atrous(B::OUTPUT, WIDTH, RATES[i]), ConvInit::FanIn);
            (conv, BatchNorm2d::declare(scope.child(1), WIDTH))
        });
        let pooled = Branch::declare(convs.child(4).child(1), convs.child(4).child(2), ConvShape::one(B::OUTPUT, WIDTH));
        let project = Branch::of(head.child(0).child("project"), ConvShape::one(5 * WIDTH, WIDTH));
        let smooth = Branch::declare(head.child(1), head.child(2), ConvShape::three(WIDTH, WIDTH));
        let last = Conv2d::declare(head.child(4), ConvShape::one(WIDTH, shape.classes), true, ConvInit::FanIn);
        Self { blueprint: root.blueprint(), backbone, point, atrous, pooled, project, smooth, last }
    }

    /// The five looks at the backbone's map, side by side.
    fn pyramid(&self, state: &State, x: &Tensor, pass: &mut Pass) -> Tensor {
        let mut looks = vec![self.point.forward(state, x, pass)];
        for (conv, bn) in &self.atrous {
            looks.push(bn.forward(state, &conv.forward(state, x), pass, Activation::Relu));
        }
        let whole = self.pooled.forward(state, &x.adaptive_avg_pool2d([1, 1]), pass);
        looks.push(whole.expand_as(&looks[0]));
        Tensor::cat(&looks, 1)
    }
}

impl<B: Backbone> Network for DeepLab<B> {
    fn forward(&self, state: &State, images_bchw: &Tensor, pass: &mut Pass) -> Output {
        let x = self.backbone.forward(state, images_bchw, pass);
        let x = self.pyramid(state, &x, pass);
        let x = self.project.forward(state, &x, pass);
        let x = self.smooth.forward(state, &pass.drop(x, DROPOUT), pass);
        // f32 whatever convolutions give, as other networks' last layer is.
        let head = as_kind(&self.last.forward(state, &x), Kind::Float);
        Output { logits: task::at_size(&head, images_bchw), head, features_bd: pooled(&x) }
    }

    fn blueprint(&self) -> &Rc<Blueprint> {
        &self.blueprint
    }

    /// Below this the first layers have nothing left.
    fn least_size(&self) -> i64 {
        8
    }

    fn backbone_key(&self, torchvision: &str) -> Option<String> {
        B::key_of(torchvision).map(|key| format!("backbone.{key}"))
    }
}
