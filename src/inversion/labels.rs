//! Which image of a synthesis call is pushed to which label.

use crate::task;
use tch::{Kind, Tensor};

/// Below this gain in cross entropy (nats) two labels stay where they are, so that rounding cannot make a search go round in circles.
const GAIN: f32 = 1e-5;

/// The same labels, given to the images that are nearest to them: two images exchange labels as long as that lowers the sum of
/// their cross entropies (ours). How often each label occurs does not change.
///
/// A latent vector moves little in a few inner steps, so a label drawn blindly mostly asks an image to become another; a matched
/// one asks it to become a better one of its kind, and the shared generator learns the same for a region of z in every round.
///
/// Shapes: `labels` one per image; `teacher_logits [b, k, …]`, of the images as they are before the first step.
pub fn matched(labels: &[i64], teacher_logits: &Tensor) -> Vec<i64> {
    let mut labels = labels.to_vec();
    let log_p = teacher_logits.detach().log_softmax(1, Kind::Float);
    let classes = log_p.size()[1] as usize;
    let cost: Vec<f32> = task::pooled(&-log_p).flatten(0, -1).try_into().unwrap_or_default();
    let of = |image: usize, label: i64| cost[image * classes + label as usize];
    loop {
        let mut moved = false;
        for i in 0..labels.len() {
            for j in i + 1..labels.len() {
                let now = of(i, labels[i]) + of(j, labels[j]);
                let then = of(i, labels[j]) + of(j, labels[i]);
                if then + GAIN < now {
                    labels.swap(i, j);
                    moved = true;
                }
            }
        }
        if !moved {
            return labels;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against every way of giving six labels to six images.
    #[test]
    fn no_other_assignment_of_a_small_batch_is_better_by_much() {
        for case in 0..20 {
            let logits = crate::test_fill::fill(case, &[6, 3]) * 4.0;
            let labels = vec![0i64, 0, 1, 1, 2, 2];
            let cost = |labels: &[i64]| crate::losses::cross_entropy(&logits, &Tensor::from_slice(labels)).sum(Kind::Double).double_value(&[]);
            let mut least = f64::INFINITY;
            for code in 0..3i64.pow(6) {
                let other: Vec<i64> = (0..6).map(|i| code / 3i64.pow(i) % 3).collect();
                if (0..3).all(|c| other.iter().filter(|&&o| o == c).count() == 2) {
                    least = least.min(cost(&other));
                }
            }
            let got = matched(&labels, &logits);
            let mut sorted = got.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, labels, "the labels are the same, in another order");
            // Exchanges of two cannot undo a ring of three; that is rare and costs little.
            assert!(cost(&got) <= least + 0.5, "case {case}: {} instead of {least}", cost(&got));
            assert!(cost(&got) <= cost(&labels) + 1e-6);
        }
    }

    #[test]
    fn images_that_are_sure_keep_their_class_and_nan_moves_nothing() {
        let logits = Tensor::from_slice(&[0f32, 9., 0., 9., 0., 0., 0., 0., 9.]).view([3, 3]);
        assert_eq!(matched(&[0, 1, 2], &logits), [1, 0, 2]);
        assert_eq!(matched(&[0, 1, 2], &(logits * f64::NAN)), [0, 1, 2]);
    }
}
