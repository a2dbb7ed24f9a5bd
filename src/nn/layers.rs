//! Layers as PyTorch defines them. A layer declares its entries once and is then a pure function of (state, input).

use super::count::computed;
use super::shim;
use super::state::{Init, Role, Scope, Slot, State};
use super::winograd;
use crate::device::upload;
use crate::rng::Key;
use tch::{Device, Kind, Tensor};

/// PyTorch's batch-norm constants, the same in every network here.
const EPS: f64 = 1e-5;
const MOMENTUM: f64 = 0.1;

/// What one forward pass does with batch-norm, and what it records there.
#[derive(Debug, Default)]
pub struct Pass {
    train: bool,
    taps: Option<Vec<Option<InputStatistics>>>,
    dropout: Option<Key>,
    embedding: Option<(Embedding, Vec<Tensor>)>,
}

/// Where an image's embedding is taken: the mean over (h, w) of what goes into some layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Embedding {
    /// Every batch-norm.
    BatchNorms,
    /// The stages of a network, where it says so.
    Stages,
}

/// Mean and biased variance per channel of a batch-norm layer's input over (b, h, w).
#[derive(Debug)]
pub struct InputStatistics {
    /// `[f]`.
    pub mean_f: Tensor,
    /// `[f]`, biased.
    pub variance_f: Tensor,
}

impl Pass {
    /// Batch-norm uses the batch's statistics and moves the running ones.
    pub fn train() -> Self {
        Self { train: true, ..Self::default() }
    }

    /// The same with dropout, which a training pass has only when it knows where its random numbers come from.
    pub fn with_dropout(self, key: Key) -> Self {
        Self { dropout: Some(key), ..self }
    }

    /// Batch-norm uses the running statistics.
    pub fn eval() -> Self {
        Self::default()
    }

    /// Evaluation that also records the input statistics of every batch-norm layer, differentiably.
    pub fn tapped() -> Self {
        Self { taps: Some(Vec::new()), ..Self::default() }
    }

    /// The same pass, which also records an embedding of every image.
    pub fn embedding(self, of: Embedding) -> Self {
        Self { embedding: Some((of, Vec::new())), ..self }
    }

    /// Called with what goes into a layer: `[b, f, h, w]`.
    pub fn embed(&mut self, at: Embedding, x_bchw: &Tensor) {
        if let Some((wanted, parts)) = &mut self.embedding
            && *wanted == at
        {
            parts.push(x_bchw.mean_dim([2i64, 3].as_slice(), false, Kind::Float));
        }
    }

    /// Whether embeddings are taken there.
    pub fn embeds(&self, at: Embedding) -> bool {
        self.embedding.as_ref().is_some_and(|(wanted, _)| *wanted == at)
    }

    /// The next part of the embedding, `[b, f]`, from a network that takes it itself.
    pub fn push_embedding(&mut self, part_bf: Tensor) {
        if let Some((_, parts)) = &mut self.embedding {
            parts.push(part_bf);
        }
    }

    /// Whether statistics are recorded.
    pub fn is_tapped(&self) -> bool {
        self.taps.is_some()
    }

    /// The embedding of every image, `[b, d]`, if it was asked for.
    pub fn take_embedding(&mut self) -> Option<Tensor> {
        self.embedding.take().map(|(_, parts)| Tensor::cat(&parts, 1))
    }

    /// The recorded statistics in hook order.
    pub fn into_taps(self) -> Vec<InputStatistics> {
        self.taps.into_iter().flatten().flatten().collect()
    }

    /// Dropout: values are zeroed with probability `share`, the others divided by 1 − `share`. Networks here have one such layer.
    pub fn drop(&self, x: Tensor, share: f64) -> Tensor {
        let Some(key) = self.dropout.filter(|_| self.train) else { return x };
        let mut numbers = vec![0; x.numel().div_ceil(2)];
        key.fill_bits(&mut numbers);
        let (dropped, kept) = ((share * 2f64.powi(32)) as u32, (1.0 / (1.0 - share)) as f32);
        let factor = |half: u64| if (half as u32) < dropped { 0.0 } else { kept };
        let mask: Vec<f32> = numbers.iter().flat_map(|n| [*n, n >> 32]).map(factor).take(x.numel()).collect();
        &x * upload(&Tensor::from_slice(&mask).view(x.size().as_slice()), x.device())
    }

    /// Records what goes into batch-norm layer `index`, counted in hook order.
    pub fn record(&mut self, index: usize, statistics: InputStatistics) {
        if let Some(taps) = &mut self.taps {
            if taps.len() <= index {
                taps.resize_with(index + 1, || None);
            }
            taps[index] = Some(statistics);
        }
    }
}

/// Activation that follows a batch-norm, as max(v, slope·v).
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Activation {
    /// None.
    Identity,
    /// max(v, 0).
    Relu,
    /// min(max(v, 0), 6).
    Relu6,
    /// Leaky ReLU with this negative slope.
    Leaky(f64),
}

impl Activation {
    fn slope(self) -> f64 {
        match self {
            Self::Identity => 1.0,
            Self::Relu | Self::Relu6 => 0.0,
            Self::Leaky(slope) => slope,
        }
    }

    fn apply(self, x: Tensor) -> Tensor {
        match self {
            Self::Identity => x,
            Self::Relu | Self::Relu6 => self.cut(x.relu()),
            Self::Leaky(slope) => x.maximum(&(&x * slope)),
        }
    }

    /// What max(v, slope·v) leaves to be done.
    fn cut(self, x: Tensor) -> Tensor {
        if self == Self::Relu6 { x.clamp_max(6.0) } else { x }
    }
}

/// How a convolution starts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ConvInit {
    /// PyTorch's default: U(±1/√fan_in) for weight and bias.
    Default,
    /// N(0, √(2/(k²·out))), bias 0 (He, by fan-out).
    FanOut,
    /// N(0, √(2/fan_in)) (He, by fan-in); a bias by PyTorch's default.
    FanIn,
}

impl ConvInit {
    /// Start values of weight and bias.
    pub(super) fn of(self, fan_in: i64, fan_out: i64) -> (Init, Init) {
        let (bound, he) = (1.0 / (fan_in as f64).sqrt(), |fan: i64| (2.0 / fan as f64).sqrt());
        match self {
            Self::Default => (Init::Uniform(bound), Init::Uniform(bound)),
            Self::FanOut => (Init::Normal(he(fan_out)), Init::Constant(0.0)),
            Self::FanIn => (Init::Normal(he(fan_in)), Init::Uniform(bound)),
        }
    }
}

/// 2-d convolution with a square kernel.
#[derive(Debug)]
pub struct Conv2d {
    weight: Slot,
    bias: Option<Slot>,
    stride: i64,
    padding: i64,
}

/// Shape of a [`Conv2d`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ConvShape {
    /// Input channels.
    pub input: i64,
    /// Output channels.
    pub output: i64,
    /// Kernel size.
    pub kernel: i64,
    /// Stride.
    pub stride: i64,
}

impl ConvShape {
    /// 3×3, stride 1.
    pub fn three(input: i64, output: i64) -> Self {
        Self { input, output, kernel: 3, stride: 1 }
    }

    /// 1×1, stride 1.
    pub fn one(input: i64, output: i64) -> Self {
        Self { input, output, kernel: 1, stride: 1 }
    }

    /// The same with another stride.
    pub fn stride(self, stride: i64) -> Self {
        Self { stride, ..self }
    }
}

impl Conv2d {
    /// Declares `weight` and, if asked for, `bias`. Padding keeps the size at stride 1.
    pub fn declare(scope: Scope, shape: ConvShape, bias: bool, init: ConvInit) -> Self {
        let ConvShape { input, output, kernel, stride } = shape;
        let (weight_init, bias_init) = init.of(input * kernel * kernel, output * kernel * kernel);
        let weight = scope.declare("weight", &[output, input, kernel, kernel], Role::Parameter(weight_init));
        let bias = bias.then(|| scope.declare("bias", &[output], Role::Parameter(bias_init)));
        Self { weight, bias, stride, padding: kernel / 2 }
    }

    /// `x_bchw` → `[b, output, h/stride, w/stride]`.
    pub fn forward(&self, state: &State, x_bchw: &Tensor) -> Tensor {
        let [x_bchw, weight] = [x_bchw, state.at(self.weight)].map(|t| state.operand(t));
        let bias = self.bias(state);
        let y = if !state.is_plain() && winograd::pays(&x_bchw, &weight, self.stride) {
            winograd::convolve(&x_bchw, &weight, bias.as_ref()).expect("shapes were checked when the network was declared")
        } else {
            x_bchw.conv2d(&weight, bias, self.stride, self.padding, 1i64, 1)
        };
        computed(&y, &weight);
        y
    }

    /// The convolution (3×3, stride 1) of the nearest-neighbour ×2 up-sampling of `x_bchw`, without making that.
    ///
    /// Up-sampling is a transposed convolution with a 2×2 kernel of ones and stride 2, so the two together are one
    /// transposed convolution with a 4×4 kernel, stride 2, padding 1: four taps per output value instead of nine.
    pub fn forward_upsampled(&self, state: &State, x_bchw: &Tensor) -> Tensor {
        let weight = state.at(self.weight);
        let spread = Tensor::from_slice(&[0f32, 0., 1., 0., 1., 1., 1., 1., 0., 1., 0., 0.]).view([4, 3]);
        let spread = upload(&spread, weight.device());
        let kernel = spread.matmul(weight).matmul(&spread.transpose(0, 1)).transpose(0, 1);
        let [x_bchw, kernel] = [x_bchw, &kernel].map(|t| state.operand(t));
        let y = x_bchw.conv_transpose2d(&kernel, self.bias(state), 2i64, 1i64, 0i64, 1, 1i64);
        computed(&y, weight);
        y
    }

    fn bias(&self, state: &State) -> Option<Tensor> {
        self.bias.map(|slot| as_kind(state.at(slot), state.activations()))
    }
}

/// A conversion where there is something to convert: a graph holds no others.
pub fn as_kind(x: &Tensor, kind: Kind) -> Tensor {
    if x.kind() == kind { x.shallow_clone() } else { x.to_kind(kind) }
}

/// Fully connected layer.
#[derive(Debug)]
pub struct Linear {
    weight: Slot,
    bias: Slot,
}

impl Linear {
    /// Declares `weight [output, input]` and `bias [output]`; PyTorch's default start values unless given.
    pub fn declare(scope: Scope, input: i64, output: i64, init: Option<(Init, Init)>) -> Self {
        let bound = 1.0 / (input as f64).sqrt();
        let (weight, bias) = init.unwrap_or((Init::Uniform(bound), Init::Uniform(bound)));
        Self {
            weight: scope.declare("weight", &[output, input], Role::Parameter(weight)),
            bias: scope.declare("bias", &[output], Role::Parameter(bias)),
        }
    }

    /// `[b, input]` → `[b, output]`, f32 whatever the activations are.
    pub fn forward(&self, state: &State, x: &Tensor) -> Tensor {
        let y = as_kind(x, Kind::Float).linear(state.at(self.weight), Some(state.at(self.bias)));
        computed(&y, state.at(self.weight));
        y
    }

    /// Where weight and bias lie.
    pub fn slots(&self) -> (Slot, Slot) {
        (self.weight, self.bias)
    }
}

/// The largest value of every square window. libtorch's gradient on GPUs adds in any order, so there it is taken by windows as rows.
pub fn max_pool(x_bchw: &Tensor, kernel: i64, stride: i64, padding: i64) -> Tensor {
    if x_bchw.device() != Device::Cpu && x_bchw.requires_grad() {
        return max_of_windows(x_bchw, kernel, stride, padding);
    }
    x_bchw.max_pool2d([kernel; 2], [stride; 2], [padding; 2], [1i64, 1], false)
}

fn max_of_windows(x_bchw: &Tensor, kernel: i64, stride: i64, padding: i64) -> Tensor {
    let padded = if padding > 0 { x_bchw.pad([padding; 4].as_slice(), "constant", f64::NEG_INFINITY) } else { x_bchw.shallow_clone() };
    padded.unfold(2, kernel, stride).unfold(3, kernel, stride).flatten(4, 5).max_dim(-1, false).0
}

/// Mean over the map: `[b, c, h, w]` → `[b, c]`, f32.
pub fn pooled(x_bchw: &Tensor) -> Tensor {
    as_kind(x_bchw, Kind::Float).adaptive_avg_pool2d([1, 1]).flatten(1, -1)
}

/// Batch normalisation over (b, h, w), with the activation that follows it.
#[derive(Debug)]
pub struct BatchNorm2d {
    weight: Slot,
    bias: Slot,
    running_mean: Slot,
    running_var: Slot,
    index: usize,
}

impl BatchNorm2d {
    /// Declares the five entries of PyTorch's `BatchNorm2d`.
    pub fn declare(scope: Scope, channels: i64) -> Self {
        let index = scope.batch_norms_so_far();
        let shape = [channels];
        let layer = Self {
            weight: scope.declare("weight", &shape, Role::Parameter(Init::Constant(1.0))),
            bias: scope.declare("bias", &shape, Role::Parameter(Init::Constant(0.0))),
            running_mean: scope.declare("running_mean", &shape, Role::Statistic(0.0)),
            running_var: scope.declare("running_var", &shape, Role::Statistic(1.0)),
            index,
        };
        scope.declare("num_batches_tracked", &[], Role::Counter);
        layer
    }

    /// `activation(batch_norm(x_bchw))`, recording the statistics of `x_bchw` when the pass asks for them.
    pub fn forward(&self, state: &State, x_bchw: &Tensor, pass: &mut Pass, activation: Activation) -> Tensor {
        pass.embed(Embedding::BatchNorms, x_bchw);
        let fused = !state.is_plain() && x_bchw.device() == Device::Cpu && matches!(x_bchw.kind(), Kind::Float | Kind::BFloat16);
        if pass.train { self.by_batch(state, x_bchw, activation, fused) } else { self.by_running(state, x_bchw, pass, activation, fused) }
    }

    fn by_batch(&self, state: &State, x_bchw: &Tensor, activation: Activation, fused: bool) -> Tensor {
        let [weight, bias, mean, var] = self.tensors(state);
        if fused {
            let y = shim::trained_batch_norm(x_bchw, weight, bias, mean, var, MOMENTUM, EPS, activation.slope());
            return activation.cut(y.expect("shapes were checked when the network was declared"));
        }
        activation.apply(x_bchw.batch_norm(Some(weight), Some(bias), Some(mean), Some(var), true, MOMENTUM, EPS, true))
    }

    fn by_running(&self, state: &State, x_bchw: &Tensor, pass: &mut Pass, activation: Activation, fused: bool) -> Tensor {
        let [weight, bias, mean, var] = self.tensors(state);
        let tapped = pass.taps.is_some();
        if fused && !weight.requires_grad() {
            let scale = weight * (var + EPS).rsqrt();
            let shift = bias - mean * &scale;
            let (y, statistics) = shim::frozen_batch_norm(x_bchw, &scale, &shift, mean, activation.slope(), tapped)
                .expect("shapes were checked when the network was declared");
            if let Some((mean_f, variance_f)) = statistics {
                pass.record(self.index, InputStatistics { mean_f, variance_f });
            }
            return activation.cut(y);
        }
        if tapped {
            let (variance_f, mean_f) = x_bchw.to_kind(Kind::Float).var_mean_dim([0i64, 2, 3].as_slice(), false, false);
            pass.record(self.index, InputStatistics { mean_f, variance_f });
        }
        activation.apply(x_bchw.batch_norm(Some(weight), Some(bias), Some(mean), Some(var), false, MOMENTUM, EPS, true))
    }

    fn tensors<'a>(&self, state: &'a State) -> [&'a Tensor; 4] {
        [self.weight, self.bias, self.running_mean, self.running_var].map(|slot| state.at(slot))
    }

    /// Where weight and bias lie.
    pub fn slots(&self) -> (Slot, Slot) {
        (self.weight, self.bias)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::goldens::{fill, fill_f64};

    #[test]
    fn the_convolution_of_an_upsampling_and_its_gradients_equal_the_two_steps() {
        let root = Scope::default();
        let conv = Conv2d::declare(root.child("conv"), ConvShape::three(5, 3), true, ConvInit::Default);
        let state = State::empty(&root.blueprint(), Device::Cpu).trainable().unwrap();
        let (Some(bias), weight) = (conv.bias.map(|slot| state.at(slot)), state.at(conv.weight)) else { unreachable!() };
        tch::no_grad(|| {
            weight.shallow_clone().copy_(&fill_f64(1, &[3, 5, 3, 3]));
            bias.shallow_clone().copy_(&fill_f64(2, &[3]));
        });
        let double = |t: &Tensor| t.detach().to_kind(Kind::Double).set_requires_grad(true);
        let x = fill_f64(3, &[2, 5, 4, 6]).to_kind(Kind::Float).set_requires_grad(true);
        let (x64, weight64, bias64) = (double(&x), double(weight), double(bias));
        let y = conv.forward_upsampled(&state, &x);
        let y64 = x64.upsample_nearest2d([8i64, 12], None, None).conv2d(&weight64, Some(&bias64), 1, 1, 1, 1);
        let g = fill_f64(4, &[2, 3, 8, 12]);
        (&y * g.to_kind(Kind::Float)).sum(Kind::Float).backward();
        (&y64 * &g).sum(Kind::Double).backward();
        let cases = [
            ("y", y.detach(), y64.detach()),
            ("gradient of x", x.grad(), x64.grad()),
            ("gradient of weight", weight.grad(), weight64.grad()),
            ("gradient of bias", bias.grad(), bias64.grad()),
        ];
        for (what, got, want) in cases {
            assert_eq!(got.size(), want.size(), "{what}");
            let share = ((got.to_kind(Kind::Double) - &want).abs().max() / want.abs().max()).double_value(&[]);
            assert!(share < 1e-6, "{what} is off by {share:e}");
        }
    }

    /// The way a GPU takes, on the CPU: the same values and gradients, overlapping windows and edges included.
    #[test]
    fn windows_have_the_largest_values_and_their_gradients() {
        for (kernel, stride, padding) in [(2, 2, 0), (3, 2, 1)] {
            let of = |pool: fn(&Tensor, i64, i64, i64) -> Tensor| {
                let x = fill(5, &[2, 3, 8, 8]).set_requires_grad(true);
                let y = pool(&x, kernel, stride, padding);
                (&y * fill(6, &y.size())).sum(Kind::Float).backward();
                (y.detach(), x.grad())
            };
            let (want, got) = (of(max_pool), of(max_of_windows));
            assert!(got.0.equal(&want.0) && got.1.allclose(&want.1, 1e-6, 1e-6, false), "{kernel} {stride} {padding}");
        }
    }
}
