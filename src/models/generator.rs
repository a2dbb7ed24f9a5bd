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
    /// Height and width of the images, divisible by 2 as often as there are stages.
    pub size: [i64; 2],
    /// Image channels.
    pub channels: i64,
    /// `LargeGenerator` of zju-vipa/DataFree: twice the width before the first convolution.
    pub large: bool,
    /// Up-samplings ×2 (two in the published networks).
    pub stages: u32,
}

impl GeneratorShape {
    /// Pixels a side of the first map, at most, where the stages follow from the size.
    const FIRST_MAP: i64 = 8;

    /// Up-samplings of images of a size: as many as leave a first map of [`Self::FIRST_MAP`] pixels or fewer a side, two at least, as
    /// far as the size can be halved.
    pub fn stages_of(size: [i64; 2]) -> u32 {
        let fits = |stages: u32| size.iter().all(|side| side % (1 << stages) == 0);
        let is_enough = |stages: u32| stages >= 2 && size.iter().all(|side| side >> stages <= Self::FIRST_MAP);
        (0..).take_while(|&stages| fits(stages)).find(|&stages| is_enough(stages) || !fits(stages + 1)).unwrap_or(0)
    }
}

/// Linear layer to a small map, then at each stage: up-sampling ×2, convolution, batch-norm, leaky ReLU; convolution, sigmoid. With two
/// stages this is the published generator; more of them have the width of the first.
pub struct Generator {
    blueprint: Rc<Blueprint>,
    shape: GeneratorShape,
    l1: Linear,
    first: BatchNorm2d,
    blocks: Vec<(Conv2d, BatchNorm2d)>,
    last: Conv2d,
}

impl Generator {
    /// A generator of this shape.
    pub fn new(shape: GeneratorShape) -> Self {
        let root = Scope::default();
        let filters = shape.filters;
        let wide = Self::first_width(shape);
        let area = Self::first_map(shape).iter().product::<i64>();
        let l1 = Linear::declare(root.child("l1").child(0), shape.latent, wide * area, None);
        let names = root.child("conv_blocks");
        let plain = |scope, input, output, bias| Conv2d::declare(scope, ConvShape::three(input, output), bias, ConvInit::Default);
        let first = BatchNorm2d::declare(names.child(0), wide);
        let (mut width, mut blocks) = (wide, Vec::new());
        for stage in 0..shape.stages {
            let output = if stage + 1 == shape.stages { filters } else { 2 * filters };
            let conv = plain(names.child(4 * stage + 2), width, output, false);
            blocks.push((conv, BatchNorm2d::declare(names.child(4 * stage + 3), output)));
            width = output;
        }
        let last = plain(names.child(4 * shape.stages + 1), width, shape.channels, true);
        Self { blueprint: root.blueprint(), shape, l1, first, blocks, last }
    }

    /// Height and width of the map that the linear layer makes.
    fn first_map(shape: GeneratorShape) -> [i64; 2] {
        shape.size.map(|side| side >> shape.stages)
    }

    fn first_width(shape: GeneratorShape) -> i64 {
        if shape.large { 4 * shape.filters } else { 2 * shape.filters }
    }

    /// `latent_bz` → images `[b, c, h, w]` in (0, 1), not normalised.
    pub fn forward(&self, state: &State, latent_bz: &Tensor, pass: &mut Pass) -> Tensor {
        let [h, w] = Self::first_map(self.shape);
        let x = self.l1.forward(state, latent_bz).view([-1, Self::first_width(self.shape), h, w]);
        let x = self.first.forward(state, &x, pass, Activation::Identity);
        let grown = |x: Tensor, (conv, norm): &(Conv2d, BatchNorm2d)| {
            norm.forward(state, &conv.forward_upsampled(state, &x), pass, Activation::Leaky(SLOPE))
        };
        let x = self.blocks.iter().fold(x, grown);
        self.last.forward(state, &x).to_kind(Kind::Float).sigmoid()
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
        [self.l1.slots(), self.first.slots()]
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_follow_from_the_size() {
        let stages = [8, 28, 32, 64, 96, 100, 128, 224].map(|side| GeneratorShape::stages_of([side; 2]));
        assert_eq!(stages, [2, 2, 2, 3, 4, 2, 4, 5]);
        assert_eq!(GeneratorShape::stages_of([64, 100]), 2, "both sides are halved");
    }
}
