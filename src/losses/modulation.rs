//! The modulating function φ(x) = (diversity of the buffer) · (difficulty for the teacher).

use tch::{Kind, Tensor};

use crate::config::{Confidence, Difficulty, Diversity, Normalise, Phi};
use crate::device::upload;

/// Predicted category `[b]` (or `[b, h, w]`) and its softmax probability.
pub fn predicted_and_confidence(teacher_logits: &Tensor) -> (Tensor, Tensor) {
    let (confidence, predicted) = teacher_logits.softmax(1, Kind::Float).max_dim(1, false);
    (predicted, confidence)
}

/// φ for one synthesis call: the class histogram of the buffer is fixed during it.
pub struct Modulation<'a> {
    phi: &'a Phi,
    diversity_k: Tensor,
}

impl<'a> Modulation<'a> {
    /// From the number of buffered samples (pixels, for dense logits) per predicted category, over all ranks.
    ///
    /// Linear: 1 − n_c/|B| (SSD-KD Eq. 4, believed form). Inverse: min(cap, |B|/(C·max(n_c, 1))) (ours). An empty buffer
    /// gives 1 everywhere.
    pub fn new(phi: &'a Phi, class_counts_k: &[u64], device: tch::Device) -> Self {
        let total: u64 = class_counts_k.iter().sum();
        let factor = |&n: &u64| match phi.diversity {
            _ if total == 0 => 1.0,
            Diversity::Off => 1.0,
            Diversity::Linear => 1.0 - n as f64 / total as f64,
            Diversity::Inverse => (total as f64 / (class_counts_k.len() as f64 * n.max(1) as f64)).min(phi.inverse_cap),
        };
        let diversity: Vec<f32> = class_counts_k.iter().map(|n| factor(n) as f32).collect();
        Self { phi, diversity_k: upload(&Tensor::from_slice(&diversity), device) }
    }

    /// φ per sample (per pixel): `(1 − n_c/|B|)·(1 − p)^γ` with c the teacher's predicted category.
    ///
    /// Shapes: `teacher_logits [b, k, …]`, `targets [b, …]` i64; returns `[b, …]`.
    pub fn weights(&self, teacher_logits: &Tensor, targets: &Tensor) -> Tensor {
        let logits = if self.phi.detach { teacher_logits.detach() } else { teacher_logits.shallow_clone() };
        let probabilities = logits.softmax(1, Kind::Float);
        let (top, predicted) = probabilities.max_dim(1, false);
        let diversity = self.diversity_k.take(&predicted);
        let weights = match self.phi.difficulty {
            Difficulty::Off => diversity,
            Difficulty::Focal => {
                let p = match self.phi.confidence {
                    Confidence::Predicted => top,
                    // Where nothing is asked for, the loss is 0 whatever its weight.
                    Confidence::Target => probabilities.gather(1, &targets.clamp_min(0).unsqueeze(1), false).squeeze_dim(1),
                };
                // p may round to a little above 1: its power must stay real.
                diversity * (-p + 1.0).clamp_min(0.0).pow_tensor_scalar(self.phi.gamma)
            }
        };
        match self.phi.normalise {
            Normalise::None => weights,
            Normalise::Mean => &weights / weights.mean(Kind::Float).clamp_min(1e-12),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::goldens::fill;

    fn logits() -> Tensor {
        Tensor::from_slice(&[2.0f32, 0.0, 0.0, 0.0, 1.0, 0.0]).view([2, 3])
    }

    fn weights(phi: &Phi, counts: &[u64]) -> Vec<f32> {
        let targets = Tensor::from_slice(&[1i64, 1]);
        Vec::try_from(Modulation::new(phi, counts, tch::Device::Cpu).weights(&logits(), &targets)).unwrap()
    }

    /// Equation 4 written out by hand for two samples.
    #[test]
    fn both_factors_follow_equation_4() {
        let p0 = 2f64.exp() / (2f64.exp() + 2.0);
        let p1 = 1f64.exp() / (1f64.exp() + 2.0);
        let got = weights(&Phi::default(), &[6, 3, 1]);
        for (got, want) in got.iter().zip([0.4 * (1.0 - p0).powi(2), 0.7 * (1.0 - p1).powi(2)]) {
            assert!((f64::from(*got) - want).abs() < 1e-6, "{got} {want}");
        }
    }

    #[test]
    fn each_factor_can_be_switched_off() {
        let off = Phi { diversity: Diversity::Off, difficulty: Difficulty::Off, ..Phi::default() };
        assert_eq!(weights(&off, &[6, 3, 1]), [1.0, 1.0]);
        let diversity = Phi { difficulty: Difficulty::Off, ..Phi::default() };
        assert_eq!(weights(&diversity, &[6, 3, 1]), [0.4, 0.7]);
        assert_eq!(weights(&diversity, &[0, 0, 0]), [1.0, 1.0], "an empty buffer weighs nothing");
    }

    /// Where nothing is asked for, too.
    #[test]
    fn pixels_are_weighted_as_so_many_images_are() {
        let logits_bkhw = fill(7, &[2, 3, 4, 5]) * 3.0;
        let targets_bhw = Tensor::arange(2 * 4 * 5, (Kind::Int64, tch::Device::Cpu)).remainder(3).view([2, 4, 5]);
        let _ = targets_bhw.get(1).get(2).fill_(crate::task::IGNORED);
        for confidence in [Confidence::Predicted, Confidence::Target] {
            for normalise in [Normalise::None, Normalise::Mean] {
                let phi = Phi { confidence, normalise, ..Phi::default() };
                let modulation = Modulation::new(&phi, &[6, 3, 1], tch::Device::Cpu);
                let of_pixels = modulation.weights(&logits_bkhw, &targets_bhw);
                let images = logits_bkhw.permute([0, 2, 3, 1]).reshape([-1, 3]);
                let of_images = modulation.weights(&images, &targets_bhw.flatten(0, -1));
                assert_eq!(of_pixels.size(), [2, 4, 5]);
                assert!(of_pixels.flatten(0, -1).allclose(&of_images, 1e-6, 0.0, false), "{confidence:?}, {normalise:?}");
            }
        }
    }

    #[test]
    fn the_inverse_form_is_capped() {
        let phi = Phi { diversity: Diversity::Inverse, inverse_cap: 3.0, difficulty: Difficulty::Off, ..Phi::default() };
        assert_eq!(weights(&phi, &[30, 0, 0]), [1.0 / 3.0, 3.0]);
    }
}
