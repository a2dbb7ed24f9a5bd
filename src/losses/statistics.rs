//! The batch-norm statistics loss L_BN, plain and with momentum.

use crate::nn::InputStatistics;
use tch::{Kind, Tensor};

/// Running averages E of the statistics that synthetic batches had so far; one per logical rank, never reduced.
///
/// Source: zju-vipa/Fast-Datafree `fast_meta.py`, `--bn_mmt`.
pub struct StatisticsAverage {
    momentum: f64,
    mean_f: Tensor,
    variance_f: Tensor,
    empty: bool,
}

impl StatisticsAverage {
    /// Empty, for `channels` batch-norm channels in all; `momentum` 0 turns it off.
    pub fn new(momentum: f64, channels: i64, device: tch::Device) -> Self {
        let zeros = || Tensor::zeros([channels], (Kind::Float, device));
        Self { momentum, mean_f: zeros(), variance_f: zeros(), empty: true }
    }

    /// As it is now; updates do not reach it.
    pub fn snapshot(&self) -> Self {
        let (mean_f, variance_f) = (self.mean_f.shallow_clone(), self.variance_f.shallow_clone());
        Self { mean_f, variance_f, ..*self }
    }

    /// Once per synthesis call, from its last forward: E ← batch if empty, else m·E + (1−m)·batch.
    pub fn update(&mut self, taps: &[InputStatistics]) {
        if self.momentum == 0.0 {
            return;
        }
        tch::no_grad(|| {
            let all = |of: fn(&InputStatistics) -> &Tensor| Tensor::cat(&taps.iter().map(of).collect::<Vec<_>>(), 0);
            let (mean, variance) = (all(|t| &t.mean_f), all(|t| &t.variance_f));
            if self.empty {
                (self.mean_f, self.variance_f) = (mean, variance);
            } else {
                self.mean_f = &self.mean_f * self.momentum + mean * (1.0 - self.momentum);
                self.variance_f = &self.variance_f * self.momentum + variance * (1.0 - self.momentum);
            }
        });
        self.empty = false;
    }
}

impl crate::nn::Stateful for StatisticsAverage {
    fn save(&self, into: &mut crate::nn::Entries) {
        into.tensor("mean", &self.mean_f);
        into.tensor("variance", &self.variance_f);
        into.number("empty", u64::from(self.empty));
    }

    fn load(&mut self, from: &crate::nn::Entries) -> crate::error::Result<()> {
        from.copy_tensor("mean", &self.mean_f)?;
        from.copy_tensor("variance", &self.variance_f)?;
        self.empty = from.read_number("empty")? != 0;
        Ok(())
    }
}

/// L_BN: Σ over batch-norm layers of ‖σ²_run − σ²‖₂ + ‖μ_run − μ‖₂, norms over channels, biased variance of the layer's
/// input. Once `average` holds something, the batch's statistics are replaced by (1−m)·batch + m·E.
///
/// Shapes: `taps` in hook order; `running` the teacher's `(running_mean_f, running_var_f)` per layer. Returns a scalar.
/// Source: Yin et al. 2020 (DeepInversion) with variances, as in zju-vipa/Fast-Datafree `hooks.py`.
pub fn statistics_gap(taps: &[InputStatistics], running: &[(Tensor, Tensor)], average: &StatisticsAverage) -> Tensor {
    let keep = if average.empty { 0.0 } else { average.momentum };
    let mut at = 0;
    let mut total: Option<Tensor> = None;
    for (tap, (running_mean, running_var)) in taps.iter().zip(running) {
        let channels = running_mean.numel() as i64;
        let gap = |batch: &Tensor, past: &Tensor, target: &Tensor| {
            let seen = if keep == 0.0 { batch.shallow_clone() } else { batch * (1.0 - keep) + past.narrow(0, at, channels) * keep };
            (target - seen).norm()
        };
        let layer = gap(&tap.variance_f, &average.variance_f, running_var) + gap(&tap.mean_f, &average.mean_f, running_mean);
        total = Some(total.map_or_else(|| layer.shallow_clone(), |sum| sum + &layer));
        at += channels;
    }
    total.unwrap_or_else(|| Tensor::from(0f32))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::goldens::fill;

    /// Values of spec `methods.md`, section 10: one layer of three channels, m = 0.9, three calls.
    #[test]
    fn the_momentum_form_matches_the_reference() {
        let running = [(fill(6_000_000, &[3]) * 0.1, fill(6_000_001, &[3]) * 0.5 + 1.0)];
        let mut average = StatisticsAverage::new(0.9, 3, tch::Device::Cpu);
        let want = [
            (1.9770663, [-0.20843129, -0.40976462, 0.15945002], [1.2026955, 0.83807602, 1.9382625]),
            (1.8674644, [-0.17853636, -0.41971986, 0.16159], [1.1874738, 0.85348284, 1.8285459]),
            (1.7633837, [-0.1894522, -0.42758745, 0.13632041], [1.1818419, 0.91324124, 1.7173158]),
        ];
        for (q, (loss, mean, variance)) in want.into_iter().enumerate() {
            let x = fill(7_000_000 + q as u64, &[4, 3, 2, 2]) * 2.0;
            let (variance_f, mean_f) = x.var_mean_dim([0i64, 2, 3].as_slice(), false, false);
            let taps = [InputStatistics { mean_f, variance_f }];
            let got = statistics_gap(&taps, &running, &average).double_value(&[]);
            assert!((got - loss).abs() < 2e-6, "call {q}: {got} instead of {loss}");
            average.update(&taps);
            for (got, want) in [(&average.mean_f, mean), (&average.variance_f, variance)] {
                assert!((got - Tensor::from_slice(&want)).abs().max().double_value(&[]) < 1e-6, "call {q}");
            }
        }
    }
}
