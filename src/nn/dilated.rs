//! Convolutions with holes, of single channels, or with a padding of their own.

use super::count::computed;
use super::depthwise;
use super::layers::ConvInit;
use super::state::{Role, Scope, Slot, State};
use tch::Tensor;

/// Shape of a [`DilatedConv2d`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DilatedShape {
    /// Input channels.
    pub input: i64,
    /// Output channels.
    pub output: i64,
    /// Kernel size.
    pub kernel: i64,
    /// Stride.
    pub stride: i64,
    /// Zeros added on every side.
    pub padding: i64,
    /// Distance of neighbouring taps.
    pub dilation: i64,
    /// Groups that channels are convolved in: 1, or as many as there are channels (depthwise).
    pub groups: i64,
}

impl DilatedShape {
    /// 3×3 with taps `dilation` apart, and padding that keeps the size.
    pub fn atrous(input: i64, output: i64, dilation: i64) -> Self {
        Self { input, output, kernel: 3, stride: 1, padding: dilation, dilation, groups: 1 }
    }

    /// 3×3 on every channel alone, without padding.
    pub fn depthwise(channels: i64, stride: i64, dilation: i64) -> Self {
        Self { input: channels, output: channels, kernel: 3, stride, padding: 0, dilation, groups: channels }
    }

    /// Whether taps beside the middle one can only meet padding in a map of `size`.
    fn is_one_tap(&self, size: &[i64]) -> bool {
        self.kernel == 3 && self.stride == 1 && self.padding == self.dilation && size.iter().all(|side| *side <= self.dilation)
    }
}

/// 2-d convolution without bias whose taps, groups and padding are free.
#[derive(Debug)]
pub struct DilatedConv2d {
    weight: Slot,
    shape: DilatedShape,
}

impl DilatedConv2d {
    /// Declares `weight`.
    pub fn declare(scope: Scope, shape: DilatedShape, init: ConvInit) -> Self {
        let DilatedShape { input, output, kernel, groups, .. } = shape;
        // Groups do not lower the fan-out: so are the published start values of depthwise convolutions.
        let (init, _) = init.of(input / groups * kernel * kernel, output * kernel * kernel);
        Self { weight: scope.declare("weight", &[output, input / groups, kernel, kernel], Role::Parameter(init)), shape }
    }

    /// `x_bchw` → `[b, output, h', w']`.
    ///
    /// In a map no larger than the dilation only the middle tap meets anything but padding: it alone is computed.
    pub fn forward(&self, state: &State, x_bchw: &Tensor) -> Tensor {
        let DilatedShape { stride, padding, dilation, groups, .. } = self.shape;
        let [x_bchw, weight] = [x_bchw, state.at(self.weight)].map(|t| state.operand(t));
        let y = if !state.is_plain() && self.shape.is_one_tap(&x_bchw.size()[2..]) {
            let middle = weight.narrow(2, 1, 1).narrow(3, 1, 1);
            x_bchw.conv2d(&middle, None::<&Tensor>, 1, 0, 1, groups)
        } else if !state.is_plain() && padding == 0 && depthwise::pays(&x_bchw, &weight, stride, dilation) {
            depthwise::convolve(&x_bchw, &weight, dilation).expect("shapes were checked when the network was declared")
        } else {
            x_bchw.conv2d(&weight, None::<&Tensor>, stride, padding, dilation, groups)
        };
        computed(&y, &weight);
        y
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::goldens::fill;
    use tch::{Device, Kind};

    /// Depthwise layers with holes take the gradients that are not libtorch's, unless all is to be libtorch's; values are the same.
    #[test]
    fn holes_of_single_channels_go_the_fast_way() {
        let root = Scope::default();
        let conv = DilatedConv2d::declare(root.child("conv"), DilatedShape::depthwise(32, 1, 2), ConvInit::FanOut);
        let state = State::empty(&root.blueprint(), Device::Cpu).trainable().unwrap();
        tch::no_grad(|| state.at(conv.weight).shallow_clone().copy_(&fill(1, &[32, 1, 3, 3])));
        let x = fill(2, &[2, 32, 9, 8]).set_requires_grad(true);
        let (fast, plain) = (conv.forward(&state, &x), conv.forward(&state.plain(), &x));
        assert!(depthwise::pays(&x, state.at(conv.weight), 1, 2));
        assert_eq!((fast.stride()[1], plain.stride()[1]), (1, 20), "libtorch keeps the layout of what it is given, ours is channels-last");
        assert!((fast - plain).abs().max().double_value(&[]) < 1e-6);
    }

    /// Values and both gradients, in maps as large as the dilation and one pixel larger.
    #[test]
    fn taps_that_meet_only_padding_change_nothing() {
        for (h, w) in [(4, 4), (2, 3), (5, 4)] {
            let root = Scope::default();
            let conv = DilatedConv2d::declare(root.child("conv"), DilatedShape::atrous(3, 2, 4), ConvInit::FanIn);
            let state = State::empty(&root.blueprint(), Device::Cpu).trainable().unwrap();
            let weight = state.at(conv.weight);
            tch::no_grad(|| weight.shallow_clone().copy_(&fill(1, &[2, 3, 3, 3])));
            let (x, g) = (fill(2, &[2, 3, h, w]).set_requires_grad(true), fill(3, &[2, 2, h, w]));
            let y = conv.forward(&state, &x);
            (&y * &g).sum(Kind::Float).backward();
            let (plain_x, plain_w) = (x.detach().set_requires_grad(true), weight.detach().copy().set_requires_grad(true));
            let want = plain_x.conv2d(&plain_w, None::<&Tensor>, 1, 4, 4, 1);
            (&want * &g).sum(Kind::Float).backward();
            for (got, want) in [(y.detach(), want.detach()), (x.grad(), plain_x.grad()), (weight.grad(), plain_w.grad())] {
                assert!((got - want).abs().max().double_value(&[]) < 1e-5, "{h}×{w}");
            }
        }
    }
}
