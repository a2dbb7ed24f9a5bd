//! The frozen teacher: what is left of a data set.

use crate::config::{ModelName, Precision};
use crate::error::{Error, Result};
use crate::losses::{StatisticsAverage, statistics_gap};
use crate::models::{self, Network, Output, Shape};
use crate::nn::{InputStatistics, Pass, State};
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// Constants are published with three or four digits.
const NORMALISATION_TOLERANCE: f32 = 1e-3;

/// A network with fixed weights, always in evaluation mode.
pub struct Teacher {
    network: Box<dyn Network>,
    state: State,
    running: Vec<(Tensor, Tensor)>,
}

impl Teacher {
    /// Reads `model` from `path`, for images of `size` (height, width).
    ///
    /// # Errors
    /// As [`models::load`].
    pub fn load(model: ModelName, path: &Path, shape: Shape, size: [i64; 2], device: Device) -> Result<Self> {
        let (network, state) = models::load(model, path, shape, size, device)?;
        Ok(Self::new(network, state))
    }

    /// From a network and its state.
    pub fn new(network: Box<dyn Network>, state: State) -> Self {
        let running = network.running_statistics(&state);
        Self { network, state, running }
    }

    /// Refused by methods that compare batch-norm statistics, if there are none.
    pub fn needs_batch_norm(&self, path: &Path) -> Result<()> {
        if !self.running.is_empty() {
            return Ok(());
        }
        Err(Error::file(path, "no batch-norm layers; the method inverts their statistics").with_hint(
            "torch.jit.freeze and exporters fold batch-norm into convolutions: trace before them; the methods dafl, zskt and dfad need none",
        ))
    }

    /// Refused by methods that change images so that it sees something else in them, if no gradient reaches them.
    pub fn needs_gradient(&self, path: &Path) -> Result<()> {
        let Some(why) = self.network.gradient_fails() else { return Ok(()) };
        Err(Error::file(path, format!("no gradient of its logits reaches the images: {why}")).with_hint(
            "torch.no_grad and detach must not be in its forward pass; attention must not take its fast path when it is traced, as \
             launch/pytorch/trace_teacher.py sees to (docs/teachers.md); on GPUs an operation without deterministic kernels, such as \
             max-pooling, needs parallel.reduce = \"native\"",
        ))
    }

    /// Refused by methods that look at features, if there are none.
    pub fn needs_features(&self, path: &Path) -> Result<()> {
        if self.network.has_features() {
            return Ok(());
        }
        let refused = Error::file(path, "says nothing of its features; the method's activation term looks at them");
        Err(refused.with_hint("write it with launch/pytorch/trace_teacher.py, naming a layer by --features where none is linear (docs/teachers.md), or set inversion.activation_weight = 0"))
    }

    /// Refused for images that are normalised otherwise than the file says.
    pub fn normalised_as(&self, mean: &[f32], std: &[f32], path: &Path) -> Result<()> {
        let differs = |a: &[f32], b: &[f32]| a.len() != b.len() || a.iter().zip(b).any(|(a, b)| (a - b).abs() > NORMALISATION_TOLERANCE);
        match self.network.normalisation() {
            Some((own_mean, own_std)) if differs(own_mean, mean) || differs(own_std, std) => {
                let why = format!(
                    "was made for images normalised by mean {own_mean:?} and std {own_std:?}; the data set's are {mean:?} and {std:?}"
                );
                let way_out = "write it again with trace_teacher.py: the data set's constants as --mean and --std, its own as --own-mean and --own-std";
                Err(Error::file(path, why).with_hint(way_out))
            }
            _ => Ok(()),
        }
    }

    /// Activations are `precision` from now on; those of a TorchScript program stay as its file has them.
    pub fn compute_in(&mut self, precision: Precision) {
        self.state.compute_in(precision);
    }

    /// Network and weights.
    pub fn parts(&self) -> (&dyn Network, &State) {
        (&*self.network, &self.state)
    }

    /// Logits and features, no gradient. Shapes: `images_bchw` normalised.
    pub fn evaluate(&self, images_bchw: &Tensor) -> Output {
        tch::no_grad(|| self.network.forward(&self.state, images_bchw, &mut Pass::eval()))
    }

    /// Logits `[b, k, …]` and features of any number of images, a part at a time.
    pub fn evaluate_all(&self, images_bchw: &Tensor, batch: i64) -> Output {
        let parts: Vec<Output> = images_bchw.split(batch, 0).iter().map(|part| self.evaluate(part)).collect();
        let all = |of: fn(&Output) -> &Tensor| Tensor::cat(&parts.iter().map(of).collect::<Vec<_>>(), 0);
        Output { logits: all(|out| &out.logits), head: all(|out| &out.head), features_bd: all(|out| &out.features_bd) }
    }

    /// Shape `[k, …]` of the logits that are kept of an image of `size` (height, width).
    pub fn head_shape(&self, channels: i64, size: [i64; 2]) -> Vec<i64> {
        let device = self.state.parameters().device();
        let head = self.evaluate(&Tensor::zeros([1, channels, size[0], size[1]], (Kind::Float, device))).head;
        head.size()[1..].to_vec()
    }

    /// Output, and what `pass` records, with a gradient to the images.
    pub fn watch(&self, images_bchw: &Tensor, pass: &mut Pass) -> Output {
        self.network.forward(&self.state, images_bchw, pass)
    }

    /// L_BN of tapped statistics.
    pub fn statistics_gap(&self, taps: &[InputStatistics], average: &StatisticsAverage) -> Tensor {
        statistics_gap(taps, &self.running, average)
    }

    /// Batch-norm channels over all layers.
    pub fn batch_norm_channels(&self) -> i64 {
        self.running.iter().map(|(mean, _)| mean.numel() as i64).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{Blueprint, Linear, Scope};
    use std::rc::Rc;

    /// One linear layer.
    struct Plain {
        blueprint: Rc<Blueprint>,
        layer: Linear,
    }

    impl Network for Plain {
        fn forward(&self, state: &State, images_bchw: &Tensor, _: &mut Pass) -> Output {
            let features_bd = images_bchw.flatten(1, -1);
            Output::of_images(self.layer.forward(state, &features_bd), features_bd)
        }

        fn blueprint(&self) -> &Rc<Blueprint> {
            &self.blueprint
        }
    }

    #[test]
    fn a_network_without_batch_norm_teaches_no_method_that_inverts_its_statistics() {
        let path = Path::new("teacher.pth");
        let root = Scope::default();
        let layer = Linear::declare(root.child("layer"), 4, 2, None);
        let plain = Plain { blueprint: root.blueprint(), layer };
        let state = State::empty(plain.blueprint(), Device::Cpu);
        let error = Teacher::new(Box::new(plain), state).needs_batch_norm(path).unwrap_err();
        let want = "teacher.pth: no batch-norm layers; the method inverts their statistics";
        assert_eq!((error.to_string().as_str(), error.exit_code()), (want, 2));

        let network = models::build(ModelName::Vgg11, Shape { channels: 1, classes: 2 });
        let state = State::empty(network.blueprint(), Device::Cpu);
        Teacher::new(network, state).needs_batch_norm(path).unwrap();
    }
}
