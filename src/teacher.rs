//! The frozen teacher: what is left of a data set.

use crate::config::ModelName;
use crate::error::{Error, Result};
use crate::losses::{StatisticsAverage, statistics_gap};
use crate::models::{self, Network, Output, Shape};
use crate::nn::{InputStatistics, Pass, State, weights};
use std::path::Path;
use tch::{Device, Tensor};

/// A network with fixed weights, always in evaluation mode.
pub struct Teacher {
    network: Box<dyn Network>,
    state: State,
    running: Vec<(Tensor, Tensor)>,
}

impl Teacher {
    /// Builds `model` and fills it from `path`.
    ///
    /// # Errors
    /// A file that is not there or damaged; a tensor that is missing, unknown, of another shape, or not finite.
    pub fn load(model: ModelName, path: &Path, shape: Shape, device: Device) -> Result<Self> {
        let network = models::build(model, shape);
        let file = weights::read(path)?;
        let state = State::from_state_dict(network.blueprint(), &file.tensors, path, device)?;
        Ok(Self::new(network, state))
    }

    /// From a network and its state.
    pub fn new(network: Box<dyn Network>, state: State) -> Self {
        let running = state.running_statistics();
        Self { network, state, running }
    }

    /// Refused by methods that compare batch-norm statistics, if there are none.
    pub fn needs_batch_norm(&self, path: &Path) -> Result<()> {
        if self.running.is_empty() {
            return Err(Error::file(path, "this teacher has no batch-norm layers, whose statistics the method inverts"));
        }
        Ok(())
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
        let (logits, features): (Vec<Tensor>, Vec<Tensor>) =
            images_bchw.split(batch, 0).iter().map(|part| self.evaluate(part)).map(|out| (out.logits, out.features_bd)).unzip();
        Output { logits: Tensor::cat(&logits, 0), features_bd: Tensor::cat(&features, 0) }
    }

    /// Logits and the input statistics of every batch-norm layer, both with a gradient to the images.
    pub fn tapped(&self, images_bchw: &Tensor) -> (Tensor, Vec<InputStatistics>) {
        let mut pass = Pass::tapped();
        let output = self.network.forward(&self.state, images_bchw, &mut pass);
        (output.logits, pass.into_taps())
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
