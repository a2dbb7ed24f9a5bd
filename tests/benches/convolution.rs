//! `cargo bench --bench convolution`: 3×3 convolutions of stride 1 as the networks compute them, beside libtorch's own, in turns.

use ssdkd::bench::median;
use ssdkd::nn::{Conv2d, ConvInit, ConvShape, Scope, State};
use ssdkd::rng::Purpose;
use std::time::Instant;
use tch::{Device, Kind, Tensor};

/// Channels, and side of the map.
const SHAPES: [(i64, i64); 8] = [(16, 32), (32, 32), (64, 32), (64, 16), (128, 16), (128, 8), (256, 8), (512, 4)];
const IMAGES: i64 = 128;
const TURNS: usize = 15;

fn milliseconds(body: impl Fn() -> Tensor) -> f64 {
    let began = Instant::now();
    let _ = std::hint::black_box(body());
    1e3 * began.elapsed().as_secs_f64()
}

/// In the networks' memory layout.
fn channels_last(x_bchw: &Tensor) -> Tensor {
    x_bchw.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
}

fn main() {
    let _no_gradients = tch::no_grad_guard();
    for (channels, side) in SHAPES {
        let scope = Scope::default();
        let layer = Conv2d::declare(scope.child("conv"), ConvShape::three(channels, channels), false, ConvInit::Default);
        let state = State::initialised(&scope.blueprint(), 1, Purpose::StudentInit, Device::Cpu);
        let weight_oihw = channels_last(&state.parameters().view([channels, channels, 3, 3]));
        let x_bchw = channels_last(&Tensor::randn([IMAGES, channels, side, side], (Kind::Float, Device::Cpu)));
        let ours = || layer.forward(&state, &x_bchw);
        let libtorchs = || x_bchw.conv2d::<&Tensor>(&weight_oihw, None, 1, 1, 1, 1);
        let apart = f64::try_from((ours() - libtorchs()).abs().max()).expect("a number");
        let (a, b): (Vec<f64>, Vec<f64>) = (0..TURNS).map(|_| (milliseconds(ours), milliseconds(libtorchs))).unzip();
        let (ours, libtorchs) = (median(a), median(b));
        println!(
            "{channels:3} channels, {side:2}²: {ours:6.2} ms, libtorch {libtorchs:6.2} ms, {:.2} ×, at most {apart:.0e} apart",
            libtorchs / ours
        );
    }
}
