//! Generators: latent values in, images in (0, 1) out (DCGAN-like, as in zju-vipa/Fast-Datafree `generator.py`).

use crate::nn::{Activation, BatchNorm2d, Blueprint, Conv2d, ConvInit, ConvShape, Linear, Pass, Scope, Slot, State};
use std::rc::Rc;
use tch::{Kind, Tensor};

/// Negative slope of the leaky ReLUs.
const SLOPE: f64 = 0.2;

/// Size of a [`Generator`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GeneratorShape {
    /// Values in z.
    pub latent: i64,
    /// Base filters (64 in the published networks).
    pub filters: i64,
    /// Height and width of the images, divisible by 4.
    pub size: [i64; 2],
    /// Image channels.
    pub channels: i64,
    /// `LargeGenerator` of zju-vipa/DataFree: twice the width before the first convolution.
    pub large: bool,
}

/// Linear layer to a quarter-size map, then twice: up-sampling ×2, convolution, batch-norm, leaky ReLU; convolution, sigmoid.
pub struct Generator {
    blueprint: Rc<Blueprint>,
    shape: GeneratorShape,
    l1: Linear,
    bn0: BatchNorm2d,
    conv2: Conv2d,
    bn3: BatchNorm2d,
    conv6: Conv2d,
    bn7: BatchNorm2d,
    conv9: Conv2d,
}

impl Generator {
    /// A generator of this shape.
    pub fn new(shape: GeneratorShape) -> Self {
        let root = Scope::default();
        let filters = shape.filters;
        let wide = Self::first_width(shape);
        let area = shape.size[0] / 4 * (shape.size[1] / 4);
        let l1 = Linear::declare(root.child("l1").child(0), shape.latent, wide * area, None);
        let blocks = root.child("conv_blocks");
        let plain = |scope, input, output, bias| Conv2d::declare(scope, ConvShape::three(input, output), bias, ConvInit::Default);
        let bn0 = BatchNorm2d::declare(blocks.child(0), wide);
        let conv2 = plain(blocks.child(2), wide, 2 * filters, false);
        let bn3 = BatchNorm2d::declare(blocks.child(3), 2 * filters);
        let conv6 = plain(blocks.child(6), 2 * filters, filters, false);
        let bn7 = BatchNorm2d::declare(blocks.child(7), filters);
        let conv9 = plain(blocks.child(9), filters, shape.channels, true);
        Self { blueprint: root.blueprint(), shape, l1, bn0, conv2, bn3, conv6, bn7, conv9 }
    }

    fn first_width(shape: GeneratorShape) -> i64 {
        if shape.large { 4 * shape.filters } else { 2 * shape.filters }
    }

    /// `latent_bz` → images `[b, c, h, w]` in (0, 1), not normalised.
    pub fn forward(&self, state: &State, latent_bz: &Tensor, pass: &mut Pass) -> Tensor {
        let [h, w] = self.shape.size.map(|s| s / 4);
        let x = self.l1.forward(state, latent_bz).view([-1, Self::first_width(self.shape), h, w]);
        let x = self.bn0.forward(state, &x, pass, Activation::Identity);
        let x = self.conv2.forward_upsampled(state, &x);
        let x = self.bn3.forward(state, &x, pass, Activation::Leaky(SLOPE));
        let x = self.conv6.forward_upsampled(state, &x);
        let x = self.bn7.forward(state, &x, pass, Activation::Leaky(SLOPE));
        self.conv9.forward(state, &x).to_kind(Kind::Float).sigmoid()
    }

    /// Its state_dict.
    pub fn blueprint(&self) -> &Rc<Blueprint> {
        &self.blueprint
    }

    /// Its size.
    pub fn shape(&self) -> GeneratorShape {
        self.shape
    }

    /// Weight and bias of the first linear layer and of the first batch-norm: what a reset draws anew.
    pub fn first_layers(&self) -> [(Slot, Slot); 2] {
        [self.l1.slots(), self.bn0.slots()]
    }
}

/// `DeepGenerator` of the published code, for large images: latent maps in, and four up-samplings.
pub struct DeepGenerator {
    blueprint: Rc<Blueprint>,
    blocks: [(Conv2d, BatchNorm2d); 5],
    last: Conv2d,
}

impl DeepGenerator {
    /// For `shape.size` (divisible by 32) and `shape.latent` channels of z; `shape.large` has no meaning here.
    pub fn new(shape: GeneratorShape) -> Self {
        let GeneratorShape { latent, filters, size: [h, w], channels, .. } = shape;
        let root = Scope::default();
        // Part of the published state_dict, though no forward pass uses it.
        Linear::declare(root.child("l1").child(0), latent, filters * (h / 32) * (w / 32), None);
        let names = root.child("conv_blocks");
        let widths = [latent, 2 * filters, 2 * filters, filters, filters, filters];
        let blocks = std::array::from_fn(|i| {
            let conv = Conv2d::declare(names.child(4 * i), ConvShape::three(widths[i], widths[i + 1]), false, ConvInit::Default);
            (conv, BatchNorm2d::declare(names.child(4 * i + 1), widths[i + 1]))
        });
        let last = Conv2d::declare(names.child(19), ConvShape::three(filters, channels), true, ConvInit::Default);
        Self { blueprint: root.blueprint(), blocks, last }
    }

    /// `latent_bchw`, `[b, z, h/16, w/16]` → images `[b, c, h, w]` in (0, 1), not normalised.
    pub fn forward(&self, state: &State, latent_bchw: &Tensor, pass: &mut Pass) -> Tensor {
        let mut x = latent_bchw.shallow_clone();
        for (i, (conv, norm)) in self.blocks.iter().enumerate() {
            let y = if i == 0 { conv.forward(state, &x) } else { conv.forward_upsampled(state, &x) };
            x = norm.forward(state, &y, pass, Activation::Leaky(SLOPE));
        }
        self.last.forward(state, &x).to_kind(Kind::Float).sigmoid()
    }

    /// Its state_dict.
    pub fn blueprint(&self) -> &Rc<Blueprint> {
        &self.blueprint
    }
}
