//! Rust side of `winograd.cpp`: 3×3 convolutions with a quarter of the multiplications.

use super::shim::{adopt, check, raw};
use crate::error::Result;
use std::ffi::c_char;
use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

unsafe extern "C" {
    fn ssdkd_winograd(x: *mut C_tensor, weight: *mut C_tensor, bias: *const C_tensor, output: *mut *mut C_tensor) -> *mut c_char;
}

/// The side of the square of outputs that one tile gives.
const TILE: i64 = 4;
/// Channel counts must be multiples of this.
const CHANNELS: i64 = 16;

/// Whether [`convolve`] can, and beats libtorch's convolution: a matter of shapes alone, so that it is the same in every run.
///
/// Maps that fill less than 5/8 of their tiles waste what is won, and below 16 tiles it goes into transforming the weights.
pub(super) fn pays(x_bchw: &Tensor, weight_oihw: &Tensor, stride: i64) -> bool {
    let (Ok((images, inputs, height, width)), Ok((outputs, _, 3, 3))) = (x_bchw.size4(), weight_oihw.size4()) else { return false };
    let tiles = images * ((height + TILE - 1) / TILE) * ((width + TILE - 1) / TILE);
    stride == 1
        && (x_bchw.device(), x_bchw.kind()) == (Device::Cpu, Kind::Float)
        && inputs % CHANNELS == 0
        && outputs % CHANNELS == 0
        && tiles >= 16
        && 8 * images * height * width >= 5 * TILE * TILE * tiles
}

/// The 3×3 convolution of stride 1 and padding 1, differentiable, by minimal filtering F(4×4, 3×3) (Lavin & Gray 2016, arXiv:1509.09308).
///
/// Its rounding error is about four times that of direct sums: 10⁻⁶ of the largest value. Shapes: `x_bchw` and `weight_oihw` f32 on
/// the CPU, i and o multiples of 16; `[b, o, h, w]`, channels-last.
pub(super) fn convolve(x_bchw: &Tensor, weight_oihw: &Tensor, bias_o: Option<&Tensor>) -> Result<Tensor> {
    let mut out = std::ptr::null_mut();
    let bias = bias_o.map_or(std::ptr::null(), |bias| raw(bias).cast_const());
    // SAFETY: inputs are live; the output is adopted once.
    check("a convolution", unsafe { ssdkd_winograd(raw(x_bchw), raw(weight_oihw), bias, &mut out) })?;
    Ok(adopt(out))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::goldens::fill_f64;

    unsafe extern "C" {
        /// OpenMP's, for the calling thread alone: other tests keep theirs.
        fn omp_set_num_threads(threads: i32);
    }

    /// An f32 leaf, and the same values as an f64 leaf for PyTorch's own operators.
    fn leaves(i: u64, shape: &[i64]) -> (Tensor, Tensor) {
        let single = fill_f64(i, shape).to_kind(Kind::Float);
        let double = single.to_kind(Kind::Double);
        (single.set_requires_grad(true), double.set_requires_grad(true))
    }

    #[track_caller]
    fn close(what: &str, got: &Tensor, want: &Tensor) {
        assert_eq!(got.size(), want.size(), "{what}");
        let share = ((got.to_kind(Kind::Double) - want).abs().max() / want.abs().max()).double_value(&[]);
        assert!(share < 6e-6, "{what} is off by {share:e}");
    }

    /// One tile, maps that cut tiles off on either side, one panel of columns and several, one block of tiles and several, all tiles
    /// of a wide layer at once.
    #[test]
    fn it_and_its_gradients_equal_plain_convolution() {
        for [images, inputs, outputs, height, width] in
            [[1, 16, 16, 4, 4], [1, 16, 48, 1, 5], [3, 48, 32, 7, 10], [2, 32, 80, 33, 31], [20, 64, 64, 13, 16], [2, 512, 528, 9, 8]]
        {
            let (x, x64) = leaves(1, &[images, inputs, height, width]);
            let (weight, weight64) = leaves(2, &[outputs, inputs, 3, 3]);
            let (bias, bias64) = leaves(3, &[outputs]);
            let y = convolve(&x, &weight, Some(&bias)).unwrap();
            let y64 = x64.conv2d(&weight64, Some(&bias64), 1, 1, 1, 1);
            let case = format!("{images} images of {height}x{width}, {inputs} to {outputs} channels");
            close(&format!("{case}: y"), &y, &y64);
            let g = fill_f64(4, &y.size());
            (&y * g.to_kind(Kind::Float)).sum(Kind::Float).backward();
            (&y64 * &g).sum(Kind::Double).backward();
            for (what, got, want) in [("x", &x, &x64), ("weight", &weight, &weight64), ("bias", &bias, &bias64)] {
                close(&format!("{case}: gradient of {what}"), &got.grad(), &want.grad());
            }
        }
    }

    #[test]
    fn a_frozen_convolution_gives_the_input_its_gradient() {
        let (x, x64) = leaves(1, &[2, 16, 8, 8]);
        let weight = fill_f64(2, &[16, 16, 3, 3]);
        convolve(&x, &weight.to_kind(Kind::Float), None).unwrap().sum(Kind::Float).backward();
        x64.conv2d(&weight, None::<&Tensor>, 1, 1, 1, 1).sum(Kind::Double).backward();
        close("gradient of x", &x.grad(), &x64.grad());
    }

    /// An image's bits depend neither on the images beside it, and so on how tiles fall into blocks, nor on the number of threads.
    #[test]
    fn its_bits_depend_on_no_cut() {
        for channels in [32, 512] {
            let x = fill_f64(1, &[24, channels, 12, 12]).to_kind(Kind::Float);
            let weight = fill_f64(2, &[channels, channels, 3, 3]).to_kind(Kind::Float);
            let whole = convolve(&x, &weight, None).unwrap();
            for threads in [1, 2, 3] {
                // SAFETY: sets a number of this thread.
                unsafe { omp_set_num_threads(threads) };
                assert_eq!(convolve(&x, &weight, None).unwrap(), whole, "{threads} threads");
            }
            let alone = convolve(&x.narrow(0, 17, 1), &weight, None).unwrap();
            assert_eq!(alone, whole.narrow(0, 17, 1), "{channels} channels");
        }
    }

    #[test]
    fn shapes_alone_decide() {
        let taken = |x: [i64; 4], weight: [i64; 4], stride| {
            pays(&Tensor::zeros(x, (Kind::Float, Device::Cpu)), &Tensor::zeros(weight, (Kind::Float, Device::Cpu)), stride)
        };
        assert!(taken([2, 16, 32, 32], [32, 16, 3, 3], 1));
        assert!(taken([16, 512, 4, 4], [512, 512, 3, 3], 1));
        assert!(!taken([2, 16, 32, 32], [32, 16, 3, 3], 2), "stride");
        assert!(!taken([2, 16, 32, 32], [32, 16, 1, 1], 1), "kernel");
        assert!(!taken([2, 3, 32, 32], [16, 3, 3, 3], 1), "input channels");
        assert!(!taken([2, 64, 32, 32], [3, 64, 3, 3], 1), "output channels");
        assert!(!taken([99, 16, 2, 2], [16, 16, 3, 3], 1), "a quarter of a tile");
        assert!(!taken([15, 512, 4, 4], [512, 512, 3, 3], 1), "few tiles");
    }
}
