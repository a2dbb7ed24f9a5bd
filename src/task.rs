//! What differs between classifying images and labelling pixels, in one place: nothing outside this file asks which it is.
//!
//! Logits are `[b, k]` or `[b, k, h, w]`; targets, predictions and confidences are `[b]` or `[b, h, w]`.

use tch::{Kind, Tensor};

/// Mean over everything but the batch: `[b, …]` → `[b]`.
pub fn per_sample(values: &Tensor) -> Tensor {
    if values.dim() == 1 { values.shallow_clone() } else { values.flatten(1, -1).mean_dim(1, false, Kind::Float) }
}

/// A map `[b, k, h', w']` brought to the images' size, bilinearly with corners not aligned, as DeepLab's head is; logits of images, and
/// a map of that size, as they are.
pub fn at_size(logits: &Tensor, images_bchw: &Tensor) -> Tensor {
    match (&logits.size()[..], &images_bchw.size()[..]) {
        ([_, _, from @ ..], [_, _, to @ ..]) if !from.is_empty() && from != to => logits.upsample_bilinear2d(to, false, None, None),
        _ => logits.shallow_clone(),
    }
}

/// One target per image, given to every pixel where logits are dense.
pub fn spread(targets_b: &Tensor, logits: &Tensor) -> Tensor {
    match logits.size()[..] {
        [b, _, h, w] => targets_b.view([b, 1, 1]).expand([b, h, w], false),
        _ => targets_b.shallow_clone(),
    }
}

/// How many samples (pixels) of each image were given to each category that occurs in it: (category, count), ascending.
pub fn class_counts(predicted: &Tensor) -> Vec<Vec<(u32, u32)>> {
    let per_image = predicted.flatten(0, -1).numel() / predicted.size()[0].max(1) as usize;
    let all = Vec::<i64>::try_from(predicted.flatten(0, -1)).unwrap_or_default();
    all.chunks(per_image.max(1))
        .map(|image| {
            let mut counts = std::collections::BTreeMap::new();
            image.iter().for_each(|&class| *counts.entry(class as u32).or_insert(0) += 1);
            counts.into_iter().collect()
        })
        .collect()
}

/// Exact counts from which scores are computed. Counts of several batches add up in any order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Labelled images.
    pub total: u64,
    /// Images whose label has the largest logit.
    pub first: u64,
    /// Images whose label is among the five largest logits.
    pub fifth: u64,
}

impl Counts {
    /// Of one batch.
    pub fn of(logits: &Tensor, labels: &Tensor) -> Self {
        let k = logits.size()[1].min(5);
        let (_, best) = logits.topk(k, 1, true, true);
        let hit = best.eq_tensor(&labels.unsqueeze(1));
        let count = |t: Tensor| t.to_kind(Kind::Int64).sum(Kind::Int64).int64_value(&[]) as u64;
        Self { total: labels.numel() as u64, first: count(hit.narrow(1, 0, 1)), fifth: count(hit) }
    }

    /// Share of images classified rightly, in [0, 1].
    pub fn top1(&self) -> f64 {
        self.first as f64 / self.total.max(1) as f64
    }

    /// Share of images whose label is among the five largest logits, in [0, 1].
    pub fn top5(&self) -> f64 {
        self.fifth as f64 / self.total.max(1) as f64
    }
}

impl std::ops::Add for Counts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { total: self.total + other.total, first: self.first + other.first, fifth: self.fifth + other.fifth }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn top1_and_top5_count_images() {
        let logits = Tensor::from_slice(&[9f32, 1., 2., 3., 4., 5., 0., 9., 8., 7., 6., 5.]).view([2, 6]);
        let labels = Tensor::from_slice(&[0i64, 0]);
        assert_eq!(Counts::of(&logits, &labels), Counts { total: 2, first: 1, fifth: 1 });
    }

    #[test]
    fn pixels_are_counted_per_image() {
        let predicted = Tensor::from_slice(&[2i64, 0, 2, 2, 1, 1, 1, 1]).view([2, 2, 2]);
        assert_eq!(class_counts(&predicted), [vec![(0, 1), (2, 3)], vec![(1, 4)]]);
        assert_eq!(class_counts(&Tensor::from_slice(&[3i64, 0])), [vec![(3, 1)], vec![(0, 1)]]);
    }
}
