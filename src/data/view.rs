//! Augmented views: a shift with zero padding and a flip, per image. Differentiable, so that the inversion loop can use them.

use crate::rng::{Key, Purpose};
use tch::Tensor;

/// One view of an image. Padding by `shift` pixels, cropping at an offset and flipping is a move by (`down`, `right`)
/// pixels, then a flip.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct View {
    /// Row of the original that becomes row 0; negative rows are padding.
    pub down: i64,
    /// Column of the original that becomes column 0.
    pub right: i64,
    /// Left to right.
    pub flip: bool,
}

impl View {
    /// Stored view `view` of sample `id`: drawn from the sample's own stream, so that nothing but the id need be kept. View 0 is
    /// the image as it is.
    pub fn stored(seed: u64, id: u64, view: u64, shift: i64) -> Self {
        if view == 0 { Self::default() } else { Self::draw(&Key::global(seed, Purpose::StoredView, id), view, shift, true) }
    }

    /// Down, right, flip of each view: i64 `[n, 3]`.
    pub fn table(views: &[Self]) -> Tensor {
        let numbers: Vec<i64> = views.iter().flat_map(|v| [v.down, v.right, i64::from(v.flip)]).collect();
        Tensor::from_slice(&numbers).view([-1, 3])
    }

    /// View number `index` of a stream: every offset in ±`shift` equally likely, flips (if `flip`) one half.
    ///
    /// With `shift` = 4 these are the 81 crops of a 32×32 image padded by 4 (torchvision's RandomCrop with padding 4).
    pub fn draw(key: &Key, index: u64, shift: i64, flip: bool) -> Self {
        let offset = |part: u64| key.below(4 * index + part, 2 * shift as u64 + 1) as i64 - shift;
        Self { down: offset(0), right: offset(1), flip: flip && key.bits(4 * index + 2) & 1 == 1 }
    }
}

/// Each image of `images_bchw` seen through its view; values outside are 0.
///
/// Shapes: f32 `[b, c, h, w]` in [0, 1] (before normalisation, so that padding is black); one view per image.
///
/// # Panics
/// If there are not as many views as images.
pub fn apply_views(images_bchw: &Tensor, views: &[View]) -> Tensor {
    gathered(images_bchw, views, 0.0)
}

/// Maps of labels, i64 `[b, h, w]`, seen through the views of their images; `outside` where there is nothing.
pub fn move_labels(labels_bhw: &Tensor, views: &[View], outside: i64) -> Tensor {
    gathered(&labels_bhw.unsqueeze(1), views, outside as f64).squeeze_dim(1)
}

fn gathered(images_bchw: &Tensor, views: &[View], outside: f64) -> Tensor {
    let (b, c, h, w) = images_bchw.size4().expect("images have four dimensions");
    assert_eq!(b as usize, views.len(), "one view per image");
    let reach = views.iter().map(|v| v.down.abs().max(v.right.abs())).max().unwrap_or(0);
    let padded_width = w + 2 * reach;
    let mut index = Vec::with_capacity((b * h * w) as usize);
    for view in views {
        for y in 0..h {
            let row = (y + view.down + reach) * padded_width + view.right + reach;
            if view.flip {
                index.extend((0..w).rev().map(|x| row + x));
            } else {
                index.extend((0..w).map(|x| row + x));
            }
        }
    }
    let index = Tensor::from_slice(&index).view([b, 1, h * w]).to_device(images_bchw.device()).expand([b, c, h * w], false);
    let padded = images_bchw.pad([reach; 4].as_slice(), "constant", outside).reshape([b, c, -1]);
    padded.gather(2, &index, false).view([b, c, h, w])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_fill::fill;
    use tch::{Device, Kind};

    /// Brute force, pixel by pixel.
    fn reference(image: &Tensor, view: View) -> Tensor {
        let (c, h, w) = image.size3().unwrap();
        let out = Tensor::zeros([c, h, w], (Kind::Float, Device::Cpu));
        for ch in 0..c {
            for y in 0..h {
                for x in 0..w {
                    let from_x = if view.flip { w - 1 - x } else { x } + view.right;
                    let from_y = y + view.down;
                    if (0..h).contains(&from_y) && (0..w).contains(&from_x) {
                        let _ = out.get(ch).get(y).get(x).fill_(image.double_value(&[ch, from_y, from_x]));
                    }
                }
            }
        }
        out
    }

    /// Labels stay on their pixels.
    #[test]
    fn maps_of_labels_move_with_their_images() {
        let views = [View { down: 2, right: -1, flip: false }, View { down: -1, right: 0, flip: true }];
        let images = fill(2, &[2, 1, 5, 6]);
        let labels = (&images * 1e6).to_kind(Kind::Int64).squeeze_dim(1);
        let seen = apply_views(&images, &views).squeeze_dim(1);
        let moved = move_labels(&labels, &views, -100);
        let outside = seen.eq(0.0);
        assert_eq!(outside.to_kind(Kind::Int64).sum(Kind::Int64).int64_value(&[]), 2 * 6 + 3 + 6);
        assert!(moved.equal(&(seen * 1e6).to_kind(Kind::Int64).masked_fill(&outside, -100)));
    }

    #[test]
    fn views_match_the_definition_and_pass_gradients_once() {
        let views = [
            View::default(),
            View { down: 2, right: -1, flip: false },
            View { down: -2, right: 2, flip: true },
            View { down: 0, right: 0, flip: true },
        ];
        let images = fill(1, &[4, 2, 5, 6]).set_requires_grad(true);
        let seen = apply_views(&images, &views);
        for (i, view) in views.iter().enumerate() {
            assert!(seen.get(i as i64).equal(&reference(&images.detach().get(i as i64), *view)), "{view:?}");
        }
        seen.sum(Kind::Float).backward();
        // Every pixel that is seen at all is seen once.
        assert_eq!(images.grad().max().double_value(&[]), 1.0);
        assert_eq!(images.grad().sum(Kind::Float).double_value(&[]), 2.0 * (30.0 + 3.0 * 5.0 + 3.0 * 4.0 + 30.0));
    }

    /// 81 crops × 2 flips over 20,000 draws: χ² with 161 degrees of freedom stays below 260 but for 1 seed in 10⁶.
    #[test]
    fn all_views_are_equally_likely() {
        let key = Key::global(1, Purpose::StoredView, 0);
        let mut counts = std::collections::BTreeMap::new();
        let draws = 20_000;
        for i in 0..draws {
            let v = View::draw(&key, i, 4, true);
            *counts.entry((v.down, v.right, v.flip)).or_insert(0u64) += 1;
        }
        assert_eq!(counts.len(), 162);
        let expected = draws as f64 / 162.0;
        let chi2: f64 = counts.values().map(|&n| (n as f64 - expected).powi(2) / expected).sum();
        assert!(chi2 < 260.0, "{chi2}");
    }
}
