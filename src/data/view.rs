//! Augmented views: a shift with zero padding and a flip, per image. Differentiable, so that the inversion loop can use them.

use crate::device::upload;
use crate::rng::{Key, Purpose};
use crate::task::linear_weights;
use tch::{Device, Tensor};

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
    pub fn stored(seed: u64, id: u64, view: u64, shift: i64, flip: bool) -> Self {
        if view == 0 { Self::default() } else { Self::draw(&Key::global(seed, Purpose::StoredView, id), view, shift, flip) }
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
    let index = upload(&Tensor::from_slice(&index).view([b, 1, h * w]), images_bchw.device()).expand([b, c, h * w], false);
    let padded = images_bchw.pad([reach; 4].as_slice(), "constant", outside).reshape([b, c, -1]);
    padded.gather(2, &index, false).view([b, c, h, w])
}

/// All images of `images_bchw` rolled round by one offset, and all flipped or none: what leaves one side comes in at the other.
///
/// Source: zju-vipa/DataFree `deepinversion.py`, `jitter_and_flip`.
pub fn roll(images_bchw: &Tensor, view: View) -> Tensor {
    let rolled = images_bchw.roll([-view.down, -view.right], [2i64, 3]);
    if view.flip { rolled.flip([3i64]) } else { rolled }
}

/// A part of an image, blown up to its size, perhaps flipped.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Crop {
    /// First row and column.
    pub at: [i64; 2],
    /// Height and width in pixels.
    pub size: [i64; 2],
    /// Left to right.
    pub flip: bool,
}

impl Crop {
    /// Attempts at a box before the whole image is taken.
    const ATTEMPTS: u64 = 10;

    /// Crop number `index` of a stream: an area share uniform in [0.25, 1), a log-uniform aspect ratio in [3/4, 4/3), a box of whole
    /// pixels anywhere inside; flips (if `flip`) one half. Source: kornia's `RandomResizedCrop`, as zju-vipa/DataFree `contrastive.py`
    /// uses it.
    pub fn draw(key: &Key, index: u64, size: [i64; 2], flip: bool) -> Self {
        let [h, w] = size.map(|s| s as f64);
        let number = |part: u64| index * (4 * Self::ATTEMPTS) + part;
        let flip = flip && key.bits(number(3)) & 1 == 1;
        for attempt in 0..Self::ATTEMPTS {
            let part = |part: u64| number(4 * attempt + part);
            let area = h * w * (0.25 + 0.75 * key.uniform(part(0)));
            let log_ratio = (0.75f64.ln()) + (2.0 * (4.0f64 / 3.0).ln()) * key.uniform(part(1));
            let box_size = [(area / log_ratio.exp()).sqrt().round() as i64, (area * log_ratio.exp()).sqrt().round() as i64];
            if box_size.iter().zip(size).all(|(&part, whole)| (1..=whole).contains(&part)) {
                // One number is enough for both corners: 32 bits each.
                let places = [0, 1].map(|d| (size[d] - box_size[d] + 1) as u64);
                let bits = key.bits(part(2));
                let at = [(bits >> 32, places[0]), (bits & 0xffff_ffff, places[1])].map(|(half, n)| ((half * n) >> 32) as i64);
                return Self { at, size: box_size, flip };
            }
        }
        Self { at: [0, 0], size, flip }
    }
}

/// Each image of `images_bchw` seen through its crop, bilinear, corners on corners. Differentiable.
///
/// Shapes: f32 `[b, c, h, w]`; one crop per image.
pub fn apply_crops(images_bchw: &Tensor, crops: &[Crop]) -> Tensor {
    // libtorch's gradient on GPUs adds in any order.
    if images_bchw.device() != Device::Cpu && images_bchw.requires_grad() {
        crops_by_products(images_bchw, crops)
    } else {
        crops_by_grid(images_bchw, crops)
    }
}

/// Where row (column) i of a crop of `part` from `from` lies in the image.
fn places(from: i64, part: i64, whole: i64) -> impl Iterator<Item = f64> {
    let step = (part - 1) as f64 / (whole - 1).max(1) as f64;
    (0..whole).map(move |i| from as f64 + i as f64 * step)
}

fn crops_by_products(images_bchw: &Tensor, crops: &[Crop]) -> Tensor {
    let (b, h, w) = (crops.len() as i64, images_bchw.size()[2], images_bchw.size()[3]);
    let weights = |values: Vec<f32>, whole: i64| upload(&Tensor::from_slice(&values).view([b, 1, whole, whole]), images_bchw.device());
    let rows = crops.iter().flat_map(|crop| linear_weights(places(crop.at[0], crop.size[0], h), h)).collect();
    let columns = crops.iter().flat_map(|crop| {
        let mut xs: Vec<f64> = places(crop.at[1], crop.size[1], w).collect();
        if crop.flip {
            xs.reverse();
        }
        linear_weights(xs.into_iter(), w)
    });
    weights(rows, h).matmul(images_bchw).matmul(&weights(columns.collect(), w).transpose(2, 3))
}

fn crops_by_grid(images_bchw: &Tensor, crops: &[Crop]) -> Tensor {
    let (h, w) = (images_bchw.size()[2], images_bchw.size()[3]);
    // In grid_sample's -1..1.
    let places = |from: i64, part: i64, whole: i64| {
        let unit = 2.0 / (whole - 1).max(1) as f64;
        places(from, part, whole).map(move |place| (place * unit - 1.0) as f32).collect::<Vec<_>>()
    };
    let mut grid = Vec::with_capacity(crops.len() * (h * w * 2) as usize);
    for crop in crops {
        let (ys, mut xs) = (places(crop.at[0], crop.size[0], h), places(crop.at[1], crop.size[1], w));
        if crop.flip {
            xs.reverse();
        }
        ys.iter().for_each(|&y| grid.extend(xs.iter().flat_map(|&x| [x, y])));
    }
    let grid = upload(&Tensor::from_slice(&grid).view([crops.len() as i64, h, w, 2]), images_bchw.device());
    const BILINEAR: i64 = 0;
    const BORDER: i64 = 1;
    images_bchw.grid_sampler(&grid, BILINEAR, BORDER, true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::goldens::fill;
    use tch::Kind;

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

    /// Brute force: what leaves one side comes in at the other.
    #[test]
    fn rolling_moves_all_images_alike() {
        let images = fill(1, &[2, 1, 4, 5]);
        let rolled = roll(&images, View { down: 1, right: -2, flip: true });
        for (b, y, x) in (0..2).flat_map(|b| (0..4).flat_map(move |y| (0..5).map(move |x| (b, y, x)))) {
            let want = images.double_value(&[b, 0, (y + 1) % 4, (4 - x - 2 + 5) % 5]);
            assert_eq!(rolled.double_value(&[b, 0, y, x]), want);
        }
    }

    #[test]
    fn a_crop_of_everything_is_the_image_and_corners_lie_on_corners() {
        let images = fill(1, &[1, 2, 6, 6]);
        let close = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]) < 1e-5;
        let whole = Crop { at: [0, 0], size: [6, 6], flip: false };
        assert!(close(&apply_crops(&images, &[whole]), &images));
        assert!(close(&apply_crops(&images, &[Crop { flip: true, ..whole }]), &images.flip([3i64])));
        let part = apply_crops(&images, &[Crop { at: [1, 2], size: [3, 4], flip: false }]);
        for (y, x) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let (got, want) = (part.double_value(&[0, 1, 5 * y, 5 * x]), images.double_value(&[0, 1, 1 + 2 * y, 2 + 3 * x]));
            assert!((got - want).abs() < 1e-5);
        }
        // Row 1 of the result lies at 1 + 2/5: between rows 1 and 2.
        let want = 0.6 * images.double_value(&[0, 0, 1, 2]) + 0.4 * images.double_value(&[0, 0, 2, 2]);
        assert!((part.double_value(&[0, 0, 1, 0]) - want).abs() < 1e-5);
    }

    /// The way a GPU takes, on the CPU.
    #[test]
    fn crops_by_products_are_those_by_a_grid() {
        let crops = [
            Crop { at: [0, 0], size: [6, 8], flip: false },
            Crop { at: [1, 2], size: [3, 4], flip: true },
            Crop { at: [5, 7], size: [1, 1], flip: false },
        ];
        let of = |crop: fn(&Tensor, &[Crop]) -> Tensor| {
            let images = fill(1, &[3, 2, 6, 8]).set_requires_grad(true);
            let seen = crop(&images, &crops);
            (&seen * fill(2, &seen.size())).sum(Kind::Float).backward();
            (seen.detach(), images.grad())
        };
        let (want, got) = (of(crops_by_grid), of(crops_by_products));
        assert!(got.0.allclose(&want.0, 1e-5, 1e-5, false) && got.1.allclose(&want.1, 1e-5, 1e-5, false));
    }

    /// 20,000 crops of 32×32. Boxes that do not fit are drawn again, so that the mean area share is 0.575 (a simulation of the same rule
    /// in another language), not 0.625; ± 0.008 are 5 standard errors: a right one fails for one seed in 10⁶.
    #[test]
    fn crops_have_the_areas_and_ratios_they_should() {
        let key = Key::global(1, Purpose::LocalView, 0);
        let crops: Vec<Crop> = (0..20_000).map(|i| Crop::draw(&key, i, [32, 32], true)).collect();
        assert!(crops.iter().all(|c| (0..2).all(|d| c.size[d] >= 1 && c.at[d] >= 0 && c.at[d] + c.size[d] <= 32)));
        let ratio = |c: &Crop| c.size[1] as f64 / c.size[0] as f64;
        assert!(crops.iter().all(|c| (0.68..1.47).contains(&ratio(c))), "whole pixels move the ratio a little beyond 3/4 and 4/3");
        let mean = crops.iter().map(|c| (c.size[0] * c.size[1]) as f64 / 1024.0).sum::<f64>() / 20_000.0;
        assert!((mean - 0.575).abs() < 0.008, "{mean}");
        let flipped = crops.iter().filter(|c| c.flip).count() as f64;
        assert!((flipped - 10_000.0).abs() < 5.0 * 5000f64.sqrt(), "{flipped}");
        let plain = |i: usize| Crop::draw(&key, i as u64, [32, 32], false);
        assert!((0..100).all(|i| plain(i) == Crop { flip: false, ..crops[i] }));
    }
}
