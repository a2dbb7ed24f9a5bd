//! Rust side of `shim.cpp`: libtorch calls that tch does not bind, and the fused batch-norm passes.

use crate::error::Result;
pub(super) use crate::error::{check_shim as check, ssdkd_free};
use crate::files;
use std::ffi::{CStr, c_char};
use tch::Tensor;
use torch_sys::C_tensor;

unsafe extern "C" {
    fn ssdkd_bind_gradient(parameter: *mut C_tensor, grad: *mut C_tensor) -> *mut c_char;
    fn ssdkd_channels_last(x: *mut C_tensor, output: *mut *mut C_tensor) -> *mut c_char;
    fn ssdkd_allocated_bytes(bytes: *mut u64) -> *mut c_char;
    fn ssdkd_frozen_batch_norm(
        x: *mut C_tensor,
        a: *mut C_tensor,
        b: *mut C_tensor,
        centre: *mut C_tensor,
        slope: f64,
        statistics: bool,
        outputs: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn ssdkd_trained_batch_norm(
        x: *mut C_tensor,
        weight: *mut C_tensor,
        bias: *mut C_tensor,
        running_mean: *mut C_tensor,
        running_var: *mut C_tensor,
        momentum: f64,
        eps: f64,
        slope: f64,
        output: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn ssdkd_adam(
        parameter: *mut C_tensor,
        grad: *mut C_tensor,
        first: *mut C_tensor,
        second: *mut C_tensor,
        step: f64,
        lr: f64,
        beta1: f64,
        beta2: f64,
        eps: f64,
    ) -> *mut c_char;
    fn ssdkd_sgd(
        parameter: *mut C_tensor,
        grad: *mut C_tensor,
        momentum_buffer: *mut C_tensor,
        lr: f64,
        momentum: f64,
        weight_decay: f64,
        first: bool,
    ) -> *mut c_char;
    fn ssdkd_cpu_capability(output: *mut *mut c_char) -> *mut c_char;
    fn ssdkd_torch_version(output: *mut *mut c_char) -> *mut c_char;
    fn ssdkd_torch_build(output: *mut *mut c_char) -> *mut c_char;
}

/// A tensor the shim made with `new at::Tensor`.
pub(super) fn adopt(pointer: *mut C_tensor) -> Tensor {
    // SAFETY: the pointer is a fresh at::Tensor that nobody else owns; tch frees it with `delete`.
    unsafe { Tensor::from_ptr(pointer) }
}

/// Pointer for reading; the shim copies the at::Tensor handle and never frees it.
pub(super) fn raw(tensor: &Tensor) -> *mut C_tensor {
    tensor.as_ptr() as *mut C_tensor
}

/// Makes `grad` the gradient buffer of the leaf `parameter`: every backward pass adds into it.
pub(super) fn bind_gradient(parameter: &Tensor, grad: &Tensor) -> Result<()> {
    // SAFETY: both pointers are live for the call.
    check("binding gradients", unsafe { ssdkd_bind_gradient(raw(parameter), raw(grad)) })
}

/// `x`, of four dimensions, with its channels side by side in memory: itself where they are. Differentiable.
pub(super) fn channels_last(x: &Tensor) -> Tensor {
    let mut out = std::ptr::null_mut();
    // SAFETY: the input is live; the output is adopted once.
    check("changing a layout", unsafe { ssdkd_channels_last(raw(x), &raw mut out) }).expect("only tensors of four dimensions come here");
    adopt(out)
}

/// Bytes that libtorch has asked for on the CPU since the first call; asking makes it count from then on.
pub fn allocated_bytes() -> Result<u64> {
    let mut bytes = 0;
    // SAFETY: writes one number.
    check("counting allocations", unsafe { ssdkd_allocated_bytes(&raw mut bytes) })?;
    Ok(bytes)
}

/// `activation(a·x + b)` with constant `a_f`, `b_f`, in one pass, differentiable in `x`.
///
/// activation(v) = max(v, slope·v): identity for slope 1, ReLU for 0. With `statistics` the mean and the biased variance
/// of `x` per channel come from the same pass, and gradients flow through them too; sums are taken around `centre_f`.
///
/// Shapes: `x_bchw` f32 or bf16 on the CPU, as `y_bchw` then is; vectors `[f]` f32. Returns `(y_bchw, Some((mean_f, variance_f)))`.
pub fn frozen_batch_norm(
    x_bchw: &Tensor,
    a_f: &Tensor,
    b_f: &Tensor,
    centre_f: &Tensor,
    slope: f64,
    statistics: bool,
) -> Result<(Tensor, Option<(Tensor, Tensor)>)> {
    let mut out = [std::ptr::null_mut(); 3];
    // SAFETY: inputs are live; the shim fills one or three outputs, each adopted once.
    check("batch-norm", unsafe {
        ssdkd_frozen_batch_norm(raw(x_bchw), raw(a_f), raw(b_f), raw(centre_f), slope, statistics, out.as_mut_ptr())
    })?;
    Ok((adopt(out[0]), statistics.then(|| (adopt(out[1]), adopt(out[2])))))
}

/// `activation(batch_norm(x))` with the batch's own statistics; moves `running_mean_f` and `running_var_f` in place.
///
/// Same formulas as `torch.nn.BatchNorm2d` in train mode (biased variance to normalise, unbiased into the running value).
/// Shapes: `x_bchw` f32 or bf16 on the CPU, as the result then is; vectors `[f]` f32.
#[allow(clippy::too_many_arguments)]
pub fn trained_batch_norm(
    x_bchw: &Tensor,
    weight_f: &Tensor,
    bias_f: &Tensor,
    running_mean_f: &Tensor,
    running_var_f: &Tensor,
    momentum: f64,
    eps: f64,
    slope: f64,
) -> Result<Tensor> {
    let mut out = std::ptr::null_mut();
    // SAFETY: inputs are live; the output is adopted once.
    check("batch-norm", unsafe {
        ssdkd_trained_batch_norm(
            raw(x_bchw),
            raw(weight_f),
            raw(bias_f),
            raw(running_mean_f),
            raw(running_var_f),
            momentum,
            eps,
            slope,
            &mut out,
        )
    })?;
    Ok(adopt(out))
}

/// Constants of an Adam update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamConstants {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the denominator.
    pub eps: f64,
}

pub(super) fn adam(p: &Tensor, g: &Tensor, first: &Tensor, second: &Tensor, step: u64, lr: f64, k: AdamConstants) -> Result<()> {
    // SAFETY: all tensors are live and of equal shape.
    check("an Adam step", unsafe { ssdkd_adam(raw(p), raw(g), raw(first), raw(second), step as f64, lr, k.beta1, k.beta2, k.eps) })
}

pub(super) fn sgd(p: &Tensor, g: &Tensor, buffer: &Tensor, lr: f64, momentum: f64, weight_decay: f64, first: bool) -> Result<()> {
    // SAFETY: all tensors are live and of equal shape.
    check("an SGD step", unsafe { ssdkd_sgd(raw(p), raw(g), raw(buffer), lr, momentum, weight_decay, first) })
}

/// The instruction set libtorch's kernels use here, for example `AVX2`: bits are promised within one.
pub fn cpu_capability() -> String {
    text_of(ssdkd_cpu_capability)
}

/// Version of the libtorch this binary was built with.
pub fn torch_version() -> String {
    text_of(ssdkd_torch_version)
}

/// A few digits that differ between builds of libtorch, and not between machines: what it says of itself without the instruction set.
pub fn torch_build_mark() -> String {
    build_mark(&text_of(ssdkd_torch_build))
}

fn build_mark(said: &str) -> String {
    let of_the_build: String = said.lines().filter(|line| !line.contains("CPU capability")).collect();
    files::sha256(of_the_build.as_bytes())[..8].into()
}

fn text_of(ask: unsafe extern "C" fn(*mut *mut c_char) -> *mut c_char) -> String {
    let mut out = std::ptr::null_mut();
    // SAFETY: the output is a strdup'ed string that we free.
    unsafe {
        if check("asking for a version", ask(&mut out)).is_err() {
            return "unknown".into();
        }
        let text = CStr::from_ptr(out).to_string_lossy().into_owned();
        ssdkd_free(out);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::goldens::{fill, fill_f64};
    use tch::Kind;

    /// 616 rows of 11 channels: several blocks, the last one short, and lanes that are not full.
    const SHAPE: [i64; 4] = [7, 11, 8, 11];
    const SLOPES: [f64; 3] = [1.0, 0.0, 0.2];

    /// An f32 leaf, and the same values as an f64 leaf for PyTorch's own operators.
    fn leaves(i: u64, shape: &[i64], scale: f64, shift: f64) -> (Tensor, Tensor) {
        let single = (fill_f64(i, shape) * scale + shift).to_kind(Kind::Float);
        let double = single.to_kind(Kind::Double);
        (single.set_requires_grad(true), double.set_requires_grad(true))
    }

    fn activated(x: &Tensor, slope: f64) -> Tensor {
        x.maximum(&(x * slope))
    }

    #[track_caller]
    fn close(what: &str, got: &Tensor, want: &Tensor) {
        let share = ((got.to_kind(Kind::Double) - want).abs().max() / want.abs().max()).double_value(&[]);
        assert!(share < 3e-6, "{what} is off by {share:e}");
    }

    /// With and without statistics; with them, `known` are the outputs the loss knows of: gradients of others are absent, not zero.
    #[test]
    fn the_frozen_pass_and_its_gradient_equal_plain_operators() {
        for slope in SLOPES {
            frozen_equals_plain(slope, true, &[0, 1, 2]);
            frozen_equals_plain(slope, true, &[0]);
            frozen_equals_plain(slope, true, &[1, 2]);
            frozen_equals_plain(slope, true, &[2]);
            frozen_equals_plain(slope, false, &[0]);
        }
    }

    fn frozen_equals_plain(slope: f64, statistics: bool, known: &[usize]) {
        let (x, x64) = leaves(1, &SHAPE, 2.0, 0.3);
        let [weight, bias, mean, var] =
            [(2, 0.5, 1.0), (3, 0.5, 0.0), (4, 0.5, 0.2), (5, 0.5, 1.0)].map(|(i, scale, shift)| fill(i, &[11]) * scale + shift);
        let scale = &weight * (&var + 1e-5).rsqrt();
        let shift = &bias - &mean * &scale;
        let (y, of_input) = frozen_batch_norm(&x, &scale, &shift, &mean, slope, statistics).unwrap();
        let outputs: Vec<Tensor> = std::iter::once(y).chain(of_input.into_iter().flat_map(|(mean, variance)| [mean, variance])).collect();
        let [weight, bias, mean, var] = [weight, bias, mean, var].map(|t| t.to_kind(Kind::Double));
        let y64 = activated(&x64.batch_norm(Some(&weight), Some(&bias), Some(&mean), Some(&var), false, 0.1, 1e-5, false), slope);
        let (variance64, mean64) = x64.var_mean_dim([0i64, 2, 3].as_slice(), false, false);
        let wanted = [y64, mean64, variance64];
        assert_eq!(outputs.len(), if statistics { 3 } else { 1 });
        for (i, (got, want)) in outputs.iter().zip(&wanted).enumerate() {
            close(&format!("output {i}"), got, want);
        }
        let loss = |outputs: &[Tensor]| {
            let term = |&i: &usize| (&outputs[i] * fill(6 + i as u64, &outputs[i].size()).to_kind(outputs[i].kind())).sum(None);
            known.iter().map(term).reduce(|a, b| a + b).unwrap()
        };
        loss(&outputs).backward();
        loss(&wanted).backward();
        close(&format!("gradient through {known:?} at slope {slope}"), &x.grad(), &x64.grad());
    }

    /// Half a unit in the last place of bf16, relative to the largest value.
    const BF16_ROUNDING: f64 = 0.5 / 128.0;

    #[track_caller]
    fn close_in_bf16(what: &str, got: &Tensor, want: &Tensor) {
        let share = ((got.to_kind(Kind::Double) - want).abs().max() / want.abs().max()).double_value(&[]);
        assert!(share <= BF16_ROUNDING, "{what} is off by {share:e}");
    }

    /// In bf16 only what is stored is rounded: statistics and sums are those of the same numbers in f32.
    #[test]
    fn passes_over_bf16_round_results_alone() {
        for slope in SLOPES {
            let half = (fill_f64(1, &SHAPE) * 2.0 + 0.3).to_kind(Kind::BFloat16);
            let leaf = |kind| half.to_kind(kind).copy().set_requires_grad(true);
            let vector = |i: u64, scale: f64, shift: f64| fill(i, &[11]) * scale + shift;
            let g = fill_f64(6, &SHAPE).to_kind(Kind::BFloat16);

            let (x, x32) = (leaf(Kind::BFloat16), leaf(Kind::Float));
            let run =
                |x: &Tensor| frozen_batch_norm(x, &vector(2, 0.5, 1.0), &vector(3, 0.5, 0.0), &vector(4, 0.5, 0.2), slope, true).unwrap();
            let ((y, of_input), (y32, of_input32)) = (run(&x), run(&x32));
            assert_eq!(y.kind(), Kind::BFloat16);
            assert_eq!(y, y32.to_kind(Kind::BFloat16), "slope {slope}");
            assert_eq!(of_input.as_ref().map(|(mean, _)| mean), of_input32.as_ref().map(|(mean, _)| mean));
            assert_eq!(of_input.map(|(_, variance)| variance), of_input32.map(|(_, variance)| variance));
            (y.to_kind(Kind::Float) * g.to_kind(Kind::Float)).sum(Kind::Float).backward();
            (y32 * g.to_kind(Kind::Float)).sum(Kind::Float).backward();
            assert_eq!(x.grad(), x32.grad().to_kind(Kind::BFloat16), "gradient at slope {slope}");

            let (x, x64) = (leaf(Kind::BFloat16), leaf(Kind::Double));
            let ((weight, weight64), (bias, bias64)) = (leaves(2, &[11], 0.5, 1.0), leaves(3, &[11], 0.5, 0.0));
            let (mean, var) = (fill(4, &[11]), fill(5, &[11]) * 0.5 + 1.0);
            let (mean64, var64) = (mean.to_kind(Kind::Double), var.to_kind(Kind::Double));
            let y = trained_batch_norm(&x, &weight, &bias, &mean, &var, 0.1, 1e-5, slope).unwrap();
            let y64 = x64.batch_norm(Some(&weight64), Some(&bias64), Some(&mean64), Some(&var64), true, 0.1, 1e-5, false);
            let y64 = activated(&y64, slope);
            close_in_bf16("y", &y, &y64);
            close("running mean", &mean, &mean64);
            close("running variance", &var, &var64);
            (y.to_kind(Kind::Float) * g.to_kind(Kind::Float)).sum(Kind::Float).backward();
            (&y64 * g.to_kind(Kind::Double)).sum(Kind::Double).backward();
            close_in_bf16("gradient of x", &x.grad(), &x64.grad());
            close("gradient of weight", &weight.grad(), &weight64.grad());
            close("gradient of bias", &bias.grad(), &bias64.grad());
        }
    }

    #[test]
    fn the_trained_pass_and_its_gradients_equal_plain_operators() {
        for slope in SLOPES {
            let (x, x64) = leaves(1, &SHAPE, 2.0, 0.3);
            let (weight, weight64) = leaves(2, &[11], 0.5, 1.0);
            let (bias, bias64) = leaves(3, &[11], 0.5, 0.0);
            let (mean, var) = (fill(4, &[11]), fill(5, &[11]) * 0.5 + 1.0);
            let (mean64, var64) = (mean.to_kind(Kind::Double), var.to_kind(Kind::Double));
            let y = trained_batch_norm(&x, &weight, &bias, &mean, &var, 0.1, 1e-5, slope).unwrap();
            let y64 = x64.batch_norm(Some(&weight64), Some(&bias64), Some(&mean64), Some(&var64), true, 0.1, 1e-5, false);
            let y64 = activated(&y64, slope);
            for (what, got, want) in [("y", &y, &y64), ("running mean", &mean, &mean64), ("running variance", &var, &var64)] {
                close(what, got, want);
            }
            (&y * fill(6, &SHAPE)).sum(Kind::Float).backward();
            (&y64 * fill_f64(6, &SHAPE)).sum(Kind::Double).backward();
            for (what, got, want) in [("x", &x, &x64), ("weight", &weight, &weight64), ("bias", &bias, &bias64)] {
                close(&format!("gradient of {what} at slope {slope}"), &got.grad(), &want.grad());
            }
        }
    }

    #[test]
    fn the_mark_is_the_builds_and_not_the_machines() {
        let said = "PyTorch built with:\n  - GCC 13.3\n  - CPU capability usage: AVX2\n  - Build settings: USE_CUDA=1\n";
        assert_eq!(build_mark(said), build_mark(&said.replace("AVX2", "AVX512")));
        assert_ne!(build_mark(said), build_mark(&said.replace("GCC 13.3", "GCC 11.2")));
        let own = text_of(ssdkd_torch_build);
        assert!(own.contains("CPU capability") && own.contains("Build settings"), "{own}");
    }
}
