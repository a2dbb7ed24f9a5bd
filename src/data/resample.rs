//! Resizing with the bits of PIL (Pillow's `Image.resize`), which the public data pipelines use: bilinear with antialiasing for
//! images, nearest for labels. The crate `image` computes in floating point and rounds otherwise.
//!
//! Source of the arithmetic: Pillow's `Resample.c`, 8 bits a channel: coefficients rounded to 22 bits, rows first, then columns, each
//! rounded to a byte.

/// Bits after the point of a coefficient.
const PRECISION: u32 = 32 - 8 - 2;

/// Where an output pixel begins to look, and what it gives each input pixel from there on.
struct Window {
    first: usize,
    weights: Vec<i64>,
}

/// Triangle of one input pixel's half width, or of one output pixel's where that is larger.
fn windows(from: usize, to: usize) -> Vec<Window> {
    let scale = from as f64 / to as f64;
    let support = scale.max(1.0);
    (0..to)
        .map(|at| {
            let centre = (at as f64 + 0.5) * scale;
            let first = (centre - support + 0.5).max(0.0) as usize;
            let end = ((centre + support + 0.5) as usize).min(from);
            let triangle = |x: usize| (1.0 - ((x as f64 - centre + 0.5) * (1.0 / support)).abs()).max(0.0);
            let values: Vec<f64> = (first..end).map(triangle).collect();
            let sum: f64 = values.iter().sum();
            let fixed = |value: &f64| (0.5 + value / sum * f64::from(1u32 << PRECISION)) as i64;
            Window { first, weights: values.iter().map(fixed).collect() }
        })
        .collect()
}

/// One output value from input values `stride` apart.
fn weighed(window: &Window, pixels: &[u8], at: impl Fn(usize) -> usize) -> u8 {
    let half = 1i64 << (PRECISION - 1);
    let sum: i64 = window.weights.iter().enumerate().map(|(i, w)| w * i64::from(pixels[at(window.first + i)])).sum();
    ((half + sum) >> PRECISION).clamp(0, 255) as u8
}

/// PIL's `resize(…, BILINEAR)` of an image of `channels` interleaved bytes a pixel; sizes are (width, height).
pub fn bilinear(pixels: &[u8], channels: usize, from: (usize, usize), to: (usize, usize)) -> Vec<u8> {
    let mut wide = Vec::with_capacity(to.0 * from.1 * channels);
    let columns = windows(from.0, to.0);
    for y in 0..from.1 {
        let row = &pixels[y * from.0 * channels..][..from.0 * channels];
        for window in &columns {
            wide.extend((0..channels).map(|c| weighed(window, row, |x| x * channels + c)));
        }
    }
    let stride = to.0 * channels;
    windows(from.1, to.1)
        .iter()
        .flat_map(|window| (0..stride).map(|x| weighed(window, &wide, |y| y * stride + x)).collect::<Vec<_>>())
        .collect()
}

/// PIL's `resize(…, NEAREST)` of one byte a pixel; sizes are (width, height).
pub fn nearest(pixels: &[u8], from: (usize, usize), to: (usize, usize)) -> Vec<u8> {
    // PIL adds the step up, so that rounding errors add up too.
    let places = |from: usize, to: usize| {
        let step = from as f64 / to as f64;
        let mut at = step * 0.5;
        let mut next = |_| {
            let now = at;
            at += step;
            now as usize
        };
        (0..to).map(&mut next).collect::<Vec<_>>()
    };
    let columns = places(from.0, to.0);
    places(from.1, to.1).into_iter().flat_map(|y| columns.iter().map(move |x| pixels[y * from.0 + x]).collect::<Vec<_>>()).collect()
}

/// Size (width, height) with `side` along the shorter side, the other rounded down, as torchvision's `Resize(side)` has it.
pub fn shorter_side((width, height): (usize, usize), side: usize) -> (usize, usize) {
    if width <= height { (side, side * height / width) } else { (side * width / height, side) }
}

/// The middle of an image of interleaved bytes, no larger than it, as torchvision's `CenterCrop` has it; sizes are (width, height).
pub fn middle(pixels: &[u8], channels: usize, from: (usize, usize), to: (usize, usize)) -> Vec<u8> {
    // Python rounds halves to the even neighbour.
    let start = |from: usize, to: usize| ((from - to) as f64 / 2.0).round_ties_even() as usize;
    let (left, top) = (start(from.0, to.0), start(from.1, to.1));
    let row = |y: usize| &pixels[((top + y) * from.0 + left) * channels..][..to.0 * channels];
    (0..to.1).flat_map(|y| row(y).to_vec()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::sha256;

    /// Pixel values that any language can make: 41·x² + 23·y² + 77·c + x·y, modulo 256, in steps of 1 and 7.
    fn picture(channels: usize, (w, h): (usize, usize)) -> Vec<u8> {
        let value = |i: usize| {
            let (c, x, y) = (i % channels, i / channels % w, i / channels / w);
            ((41 * x * x + 23 * y * y + 77 * c + x * y) % 256) as u8
        };
        (0..w * h * channels).map(value).collect()
    }

    /// Checksums of what Pillow 13.0.0 gives (tests/golden/resample/make_goldens.py): down and up, both filters.
    #[test]
    fn bits_are_pils() {
        /// Channels, size before, size after, checksums of bilinear and nearest.
        type Case = (usize, (usize, usize), (usize, usize), String, String);
        let golden: Vec<Case> = serde_json::from_str(include_str!("../../tests/golden/resample/pillow.json")).unwrap();
        assert!(golden.len() >= 5);
        for (channels, from, to, of_bilinear, of_nearest) in golden {
            let pixels = picture(channels, from);
            assert_eq!(sha256(&bilinear(&pixels, channels, from, to)), of_bilinear, "bilinear {channels} {from:?} {to:?}");
            assert_eq!(sha256(&nearest(&picture(1, from), from, to)), of_nearest, "nearest {from:?} {to:?}");
        }
    }

    #[test]
    fn the_longer_side_is_rounded_down() {
        assert_eq!([shorter_side((640, 480), 256), shorter_side((480, 641), 256)], [(341, 256), (256, 341)]);
    }
}
