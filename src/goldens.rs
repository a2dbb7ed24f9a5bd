//! Networks held against PyTorch: weights and images that a formula fills, and the numbers that come of them, on any device.
//!
//! The same values are what tests hold the networks against, and what `ssdkd doctor --networks` holds a machine against.

use crate::config::{ModelName, Precision, ReduceRule};
use crate::error::Result;
use crate::losses::StatisticsAverage;
use crate::models::{self, Network, Shape};
use crate::nn::{Blueprint, Pass, State, compute_in};
use crate::teacher::Teacher;
use serde_json::Value;
use std::path::Path;
use std::rc::Rc;
use tch::{Device, Kind, Tensor};

/// Made in f64 from the published definitions and held against PyTorch 2.11.0; six digits.
const NUMBERS: &str = include_str!("../tests/golden/networks.json");

/// Largest relative deviation of right ones: six digits were kept, and f32 sums in another order differ by a few 1e-6 of the scale. GPUs
/// choose among more ways to convolve.
pub fn tolerance(device: Device) -> f64 {
    if device == Device::Cpu { 1e-5 } else { 1e-4 }
}

/// v(i, j) in [−1, 1), exact in f32: a SplitMix64 finaliser over `(i << 32) + j`.
pub fn value(i: u64, j: u64) -> f64 {
    let mut z = ((i << 32).wrapping_add(j)).wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^= z >> 31;
    ((z >> 40) as f64 - 8_388_608.0) / 8_388_608.0
}

/// A f64 tensor of `shape` filled with v(i, ·).
pub fn fill_f64(i: u64, shape: &[i64]) -> Tensor {
    let count = shape.iter().product::<i64>() as u64;
    Tensor::from_slice(&(0..count).map(|j| value(i, j)).collect::<Vec<f64>>()).view(shape)
}

/// A f32 tensor of `shape` filled with v(i, ·).
pub fn fill(i: u64, shape: &[i64]) -> Tensor {
    fill_f64(i, shape).to_kind(Kind::Float)
}

/// Images, or latent vectors, of twice that range.
pub fn input(shape: &[i64]) -> Tensor {
    fill(1_000_000, shape) * 2.0
}

/// A state whose entry i comes from v(`first` + i, ·), scaled by what the entry is; and the sum of all its values.
///
/// # Errors
/// None for a network of this crate.
pub fn filled(blueprint: &Rc<Blueprint>, first: u64, device: Device) -> Result<(State, f64)> {
    let mut sum = 0.0;
    let dict: Vec<(String, Tensor)> = blueprint
        .entries()
        .iter()
        .enumerate()
        .map(|(i, entry)| {
            let v = || fill_f64(first + i as u64, &entry.shape);
            let fan_in: i64 = entry.shape.iter().skip(1).product();
            let value = match entry.key.rsplit('.').next().unwrap_or_default() {
                "num_batches_tracked" => return (entry.key.clone(), Tensor::from(0i64)),
                "running_mean" | "bias" => v() * 0.1,
                "running_var" => v() * 0.5 + 1.0,
                "weight" if entry.shape.len() == 1 => v() * 0.2 + 1.0,
                _ => v() * (3.0 / fan_in as f64).sqrt(),
            };
            sum += value.to_kind(Kind::Float).sum(Kind::Double).double_value(&[]);
            (entry.key.clone(), value.to_kind(Kind::Float))
        })
        .collect();
    Ok((State::from_state_dict(blueprint, &dict, Path::new("the fill"), device)?, sum))
}

/// A number of a network beside PyTorch's.
#[derive(Debug, Clone, PartialEq)]
pub struct Deviation {
    /// The network, as [`networks`] names it.
    pub network: String,
    /// What the number is.
    pub number: &'static str,
    /// What came out here.
    pub got: f64,
    /// PyTorch's.
    pub want: f64,
    /// Their difference, over PyTorch's or the scale of such numbers, whichever is larger.
    pub relative: f64,
}

/// Every network that has golden values: its model's name and the number of its classes, `resnet18-10`.
pub fn networks() -> Vec<String> {
    let numbers = numbers();
    ["classifiers", "segmentation"].iter().filter_map(|kind| numbers[*kind].as_object()).flat_map(|of| of.keys().cloned()).collect()
}

/// Logits and features in evaluation, logits and running statistics after a step of training, and the statistics loss: all numbers that a
/// network of [`networks`] has.
///
/// # Errors
/// An operation that libtorch refuses on this device.
pub fn deviations(name: &str, device: Device) -> Result<Vec<Deviation>> {
    let (model, classes) = name.split_once('-').unwrap_or((name, ""));
    let known = ModelName::BUILT_IN.into_iter().find(|m| m.name() == model).zip(classes.parse().ok());
    let Some((model, classes)) = known else { return Ok(Vec::new()) };
    compute_in("device", Precision::F32, device, ReduceRule::Deterministic)?;
    let network = models::build(model, Shape { channels: 3, classes });
    let (state, sum) = filled(network.blueprint(), 0, device)?;
    let all = numbers();
    let is_classifier = all["classifiers"][name].is_array();
    let want = if is_classifier { &all["classifiers"][name] } else { &all["segmentation"][name] };
    let mut found = Found { network: name, want, deviations: Vec::new() };
    found.compare("sum of the fill", sum, &[0], sum);

    let size: [i64; 4] = if is_classifier { [4, 3, 32, 32] } else { [2, 3, 128, 128] };
    let images_bchw = input(&size).to_device(device);
    let out = tch::no_grad(|| network.forward(&state, &images_bchw, &mut Pass::eval()));
    let scale = out.logits.abs().max().double_value(&[]);
    // Of a map, those at its middle and in its last corner.
    let (middle, corner): (&[i64], &[i64]) = if is_classifier { (&[], &[]) } else { (&[64, 64], &[127, 127]) };
    let at = |logits: &Tensor, b: i64, k: i64, place: &[i64]| logits.double_value(&[&[b, k], place].concat());
    for k in 0..3 {
        found.compare("logit", at(&out.logits, 0, k, middle), &[1, k as usize], scale);
    }
    found.compare("last logit", at(&out.logits, size[0] - 1, classes - 1, corner), &[2], scale);
    found.compare("mean of the logits' sizes", out.logits.abs().mean(Kind::Double).double_value(&[]), &[3], 0.0);
    let norm = if is_classifier { out.features_bd.norm() } else { out.logits.norm() };
    found.compare(if is_classifier { "norm of the features" } else { "norm of the logits" }, norm.double_value(&[]), &[4], 0.0);
    if is_classifier {
        trained(&mut found, &*network, &state, &images_bchw, scale);
    }
    let teacher = Teacher::new(network, state);
    let mut pass = Pass::tapped();
    teacher.watch(&images_bchw, &mut pass);
    let gap = teacher.statistics_gap(&pass.into_taps(), &StatisticsAverage::new(0.0, teacher.batch_norm_channels(), device));
    found.compare("statistics loss", gap.double_value(&[]), &[5], 0.0);
    Ok(found.deviations)
}

/// What batch-norm does in training.
fn trained(found: &mut Found<'_>, network: &dyn Network, state: &State, images_bchw: &Tensor, scale: f64) {
    let own = State::empty(network.blueprint(), images_bchw.device());
    own.copy_from(state);
    let logits = tch::no_grad(|| network.forward(&own, images_bchw, &mut Pass::train()).logits);
    for k in 0..3 {
        found.compare("logit in training", logits.double_value(&[0, k]), &[6, k as usize], scale);
    }
    let (mut means, mut variances) = (0.0, 0.0);
    for (mean_f, variance_f) in own.running_statistics() {
        means += mean_f.sum(Kind::Double).double_value(&[]);
        variances += variance_f.sum(Kind::Double).double_value(&[]);
    }
    let channels = network.blueprint().batch_norm_channels().iter().sum::<i64>() as f64;
    found.compare("sum of the running means", means, &[7], channels.sqrt());
    found.compare("sum of the running variances", variances, &[8], 0.0);
}

fn numbers() -> Value {
    serde_json::from_str(NUMBERS).unwrap_or_default()
}

struct Found<'a> {
    network: &'a str,
    want: &'a Value,
    deviations: Vec<Deviation>,
}

impl Found<'_> {
    /// `place`: indices of PyTorch's number. One that is not there is never met.
    fn compare(&mut self, number: &'static str, got: f64, place: &[usize], scale: f64) {
        let want = place.iter().fold(self.want, |value, &i| &value[i]).as_f64().unwrap_or(f64::NAN);
        let relative = (got - want).abs() / scale.abs().max(want.abs());
        self.deviations.push(Deviation { network: self.network.to_owned(), number, got, want, relative });
    }
}
