//! Rust side of `depthwise.cpp`: depthwise 3×3 convolutions whose gradients do not go through matrix products.

use super::shim::{adopt, check, raw};
use crate::error::Result;
use std::ffi::c_char;
use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

unsafe extern "C" {
    fn ssdkd_depthwise(x: *mut C_tensor, weight: *mut C_tensor, dilation: i64, output: *mut *mut C_tensor) -> *mut c_char;
}

/// Channel counts must be a multiple of this.
const CHANNELS: i64 = 16;

/// Whether [`convolve`] can, and its gradients beat libtorch's, which has kernels for those without holes: a matter of shapes alone, so
/// that it is the same in every run.
pub(super) fn pays(x_bchw: &Tensor, weight_c1hw: &Tensor, stride: i64, dilation: i64) -> bool {
    (stride == 1 && dilation > 1)
        && (x_bchw.device(), x_bchw.kind()) == (Device::Cpu, Kind::Float)
        && x_bchw.size()[1] % CHANNELS == 0
        && weight_c1hw.size() == [x_bchw.size()[1], 1, 3, 3]
}

/// The 3×3 convolution of every channel alone, its taps `dilation` apart, without padding, differentiable once.
///
/// Shapes: `x_bchw` f32 on the CPU, c a multiple of 16, and `weight_c1hw` `[c, 1, 3, 3]`; `[b, c, h', w']`.
pub(super) fn convolve(x_bchw: &Tensor, weight_c1hw: &Tensor, dilation: i64) -> Result<Tensor> {
    let mut out = std::ptr::null_mut();
    // SAFETY: inputs are live; the output is adopted once.
    check("a convolution", unsafe { ssdkd_depthwise(raw(x_bchw), raw(weight_c1hw), dilation, &raw mut out) })?;
    Ok(adopt(out))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::goldens::fill_f64;

    fn leaf(i: u64, shape: &[i64], kind: Kind) -> Tensor {
        fill_f64(i, shape).to_kind(kind).set_requires_grad(true)
    }

    /// Against PyTorch's own operators in f64. One output, several strips, rows of outputs longer than holes and shorter, channels-last.
    #[test]
    fn its_gradients_equal_plain_convolution() {
        for [images, channels, height, width, dilation] in
            [[1, 16, 5, 5, 2], [3, 48, 12, 13, 2], [2, 160, 16, 9, 4], [2, 16, 7, 40, 3], [1, 32, 68, 66, 2]]
        {
            let case = format!("{images} images of {height}x{width}, {channels} channels, dilation {dilation}");
            let of = |kind| (leaf(1, &[images, channels, height, width], kind), leaf(2, &[channels, 1, 3, 3], kind));
            let ((x, weight), (x64, weight64)) = (of(Kind::Float), of(Kind::Double));
            assert!(pays(&x, &weight, 1, dilation), "{case}");
            let y = convolve(&x, &weight, dilation).unwrap();
            let y64 = x64.conv2d(&weight64, None::<&Tensor>, 1, 0, dilation, channels);
            let g = fill_f64(3, &y64.size());
            (&y * g.to_kind(Kind::Float)).sum(Kind::Float).backward();
            (&y64 * &g).sum(Kind::Double).backward();
            for (what, got, want) in [("y", y, y64), ("x", x.grad(), x64.grad()), ("weight", weight.grad(), weight64.grad())] {
                assert_eq!(got.size(), want.size(), "{case}: {what}");
                let off = ((got.to_kind(Kind::Double) - &want).abs().max() / want.abs().max()).double_value(&[]);
                assert!(off < 1e-6, "{case}: {what} is off by {off:e}");
            }
        }
    }

    #[test]
    fn a_frozen_convolution_gives_the_input_its_gradient() {
        let (x, x64) = (leaf(1, &[2, 16, 8, 8], Kind::Float), leaf(1, &[2, 16, 8, 8], Kind::Double));
        let weight = fill_f64(2, &[16, 1, 3, 3]);
        convolve(&x, &weight.to_kind(Kind::Float), 2).unwrap().sum(Kind::Float).backward();
        x64.conv2d(&weight, None::<&Tensor>, 1, 0, 2, 16).sum(Kind::Double).backward();
        assert!((x.grad().to_kind(Kind::Double) - x64.grad()).abs().max().double_value(&[]) < 1e-5);
    }

    #[test]
    fn bits_of_gradients_do_not_depend_on_threads() {
        unsafe extern "C" {
            /// OpenMP's, for the calling thread alone: other tests keep theirs.
            fn omp_set_num_threads(threads: i32);
        }
        let of = |threads| {
            // SAFETY: sets a number of this thread.
            unsafe { omp_set_num_threads(threads) };
            let (x, weight) = (leaf(1, &[3, 80, 13, 14], Kind::Float), leaf(2, &[80, 1, 3, 3], Kind::Float));
            let y = convolve(&x, &weight, 2).unwrap();
            (y * fill_f64(3, &[3, 80, 9, 10]).to_kind(Kind::Float)).sum(Kind::Float).backward();
            (x.grad(), weight.grad())
        };
        // A thread's first parallel pass sets the number itself.
        tch::get_num_threads();
        let alone = of(1);
        assert!([2, 3].into_iter().all(|threads| of(threads) == alone));
    }

    #[test]
    fn shapes_alone_decide() {
        let taken = |channels, weight: [i64; 4], stride, dilation| {
            pays(
                &Tensor::zeros([2, channels, 8, 8], (Kind::Float, Device::Cpu)),
                &Tensor::zeros(weight, (Kind::Float, Device::Cpu)),
                stride,
                dilation,
            )
        };
        assert!(taken(32, [32, 1, 3, 3], 1, 2));
        assert!(!taken(32, [32, 1, 3, 3], 2, 2), "stride");
        assert!(!taken(32, [32, 1, 3, 3], 1, 1), "libtorch has a kernel");
        assert!(!taken(24, [24, 1, 3, 3], 1, 2), "no whole strips");
        assert!(!taken(32, [32, 32, 3, 3], 1, 2), "not depthwise");
        assert!(!taken(32, [32, 1, 5, 5], 1, 2), "another kernel");
        assert!(!taken(1, [32, 1, 3, 3], 2, 1), "every output of the one channel");
        let doubles = Tensor::zeros([2, 32, 8, 8], (Kind::Double, Device::Cpu));
        assert!(!pays(&doubles, &Tensor::zeros([32, 1, 3, 3], (Kind::Double, Device::Cpu)), 1, 2), "not f32");
    }
}
