//! Every formula of the method, once: tensors in, tensors out.
//!
//! Logits are `[b, k]`, or `[b, k, h, w]` for networks that label pixels; losses per sample are then means over pixels.

mod modulation;
mod power;
mod priority;
mod priors;
mod statistics;

pub use modulation::{Modulation, predicted_and_confidence};
pub use priority::{importance_weight, importance_weights, priorities, priority};
pub use priors::{activation, balance, contrast, jensen_shannon, logit_distance, variation};
pub use statistics::{StatisticsAverage, statistics_gap};

use crate::task::per_sample;
use tch::{Kind, Tensor};

/// KL_T(teacher ‖ student) per sample, `[b]`: T²·Σ_c p_c·(ln p_c − ln q_c), p and q the softmax of logits/T.
///
/// Gradients flow into both arguments. Source: SSD-KD Eq. 3; scaling by T² as in zju-vipa/Fast-Datafree `criterions.py`.
pub fn kl_divergence(student_logits: &Tensor, teacher_logits: &Tensor, temperature: f64) -> Tensor {
    let log_q = (student_logits / temperature).log_softmax(1, Kind::Float);
    let log_p = (teacher_logits / temperature).log_softmax(1, Kind::Float);
    let kl = (log_p.exp() * (log_p - log_q)).sum_dim_intlist(1i64, false, Kind::Float);
    per_sample(&(kl * (temperature * temperature)))
}

/// Cross entropy per sample (per pixel for dense logits, `[b, h, w]`) with integer targets `[b]` or `[b, h, w]`.
pub fn cross_entropy(logits: &Tensor, targets: &Tensor) -> Tensor {
    logits.cross_entropy_loss::<Tensor>(targets, None, tch::Reduction::None, -100, 0.0)
}

/// Adversarial term, positive: mean over the batch of 1{argmax f_s = argmax f_t} · KL₁(f_t ‖ f_s).
///
/// The generator maximises it; the mask keeps it from drifting to where the two already disagree. The mask is a constant;
/// gradients flow through both networks. Source: SSD-KD Eq. 1 (L_KD), mask from zju-vipa/Fast-Datafree `fast_meta.py`.
pub fn masked_disagreement(student_logits: &Tensor, teacher_logits: &Tensor) -> Tensor {
    let agree = student_logits.argmax(1, false).eq_tensor(&teacher_logits.argmax(1, false)).to_kind(Kind::Float);
    let log_q = student_logits.log_softmax(1, Kind::Float);
    let log_p = teacher_logits.log_softmax(1, Kind::Float);
    let kl = (log_p.exp() * (log_p - log_q)).sum_dim_intlist(1i64, false, Kind::Float);
    per_sample(&(agree * kl)).mean(Kind::Float)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::goldens::{fill, fill_f64};

    fn close(got: f64, want: f64, tolerance: f64) {
        assert!((got - want).abs() <= tolerance * want.abs().max(1e-3), "{got} instead of {want}");
    }

    fn logits() -> (Tensor, Tensor) {
        (fill_f64(2_000_000, &[8, 3]) * 3.0, fill_f64(3_000_000, &[8, 3]) * 3.0)
    }

    #[test]
    fn kl_matches_the_reference_at_both_temperatures() {
        let (s, t) = logits();
        close(kl_divergence(&s, &t, 1.0).mean(Kind::Float).double_value(&[]), 1.0946861, 1e-6);
        close(kl_divergence(&s, &t, 20.0).mean(Kind::Float).double_value(&[]), 1.8430898, 1e-6);
    }

    /// Losses of maps are those of so many images, averaged over the pixels of each; where nothing is asked for, they are 0.
    #[test]
    fn pixels_count_as_so_many_images() {
        let [s, t] = [1, 2].map(|i| fill_f64(i * 1_000_000, &[2, 3, 4, 5]) * 3.0);
        let as_images = |maps: &Tensor| maps.permute([0, 2, 3, 1]).reshape([-1, 3]);
        let averaged = |losses: Tensor| losses.view([2, -1]).mean_dim(1, false, Kind::Float);
        let targets = Tensor::arange(2 * 4 * 5, (Kind::Int64, tch::Device::Cpu)).remainder(3).view([2, 4, 5]);
        let kl = kl_divergence(&s, &t, 4.0);
        assert!(kl.allclose(&averaged(kl_divergence(&as_images(&s), &as_images(&t), 4.0)), 1e-5, 0.0, false));
        let whole = masked_disagreement(&as_images(&s), &as_images(&t)).double_value(&[]);
        close(masked_disagreement(&s, &t).double_value(&[]), whole, 1e-5);
        let _ = targets.get(1).get(2).fill_(crate::task::IGNORED);
        let (of_pixels, of_images) = (cross_entropy(&s, &targets), cross_entropy(&as_images(&s), &targets.flatten(0, -1)));
        assert!(of_pixels.flatten(0, -1).allclose(&of_images, 1e-6, 0.0, false));
        assert_eq!(of_pixels.get(1).get(2).abs().sum(Kind::Double).double_value(&[]), 0.0);
    }

    #[test]
    fn the_masked_term_and_its_gradients_match_the_reference() {
        let (s, t) = logits();
        let (s, t) = (s.set_requires_grad(true), t.set_requires_grad(true));
        let loss = -masked_disagreement(&s, &t);
        close(loss.double_value(&[]), -0.041784592, 1e-5);
        loss.backward();
        let row = |x: &Tensor| Vec::<f64>::try_from(x.grad().get(6)).unwrap();
        for (got, want) in row(&s).into_iter().zip([0.0022662974, 0.013492013, -0.01575831]) {
            close(got, want, 1e-5);
        }
        for (got, want) in row(&t).into_iter().zip([-0.0022532197, -0.013777447, 0.016030666]) {
            close(got, want, 1e-5);
        }
    }

    #[test]
    fn cross_entropy_matches_the_reference() {
        let (_, t) = logits();
        let labels = Tensor::from_slice(&[0i64, 1, 2, 0, 1, 2, 0, 1]);
        close(cross_entropy(&t, &labels).mean(Kind::Double).double_value(&[]), 0.82618767, 1e-6);
        close(cross_entropy(&t, &t.argmax(1, false)).mean(Kind::Double).double_value(&[]), 0.41693274, 1e-6);
    }

    #[test]
    fn dense_logits_average_over_pixels() {
        let (s, t) = (fill(11, &[2, 3, 4, 5]), fill(12, &[2, 3, 4, 5]));
        let flat = |x: &Tensor| x.permute([0, 2, 3, 1]).reshape([40, 3]);
        let want = kl_divergence(&flat(&s), &flat(&t), 4.0).view([2, 20]).mean_dim(1, false, Kind::Float);
        assert!((kl_divergence(&s, &t, 4.0) - want).abs().max().double_value(&[]) < 1e-6);
    }
}
