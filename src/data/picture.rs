//! Pictures in files: read as images of a data set's size, written as grids.

use super::resample::{bilinear, shorter_side};
use super::{Facts, Fit};
use crate::error::{Error, Result};
use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};
use std::path::Path;
use tch::{Kind, Tensor};

/// Pixels between images.
const GAP: usize = 2;

/// How large every pixel is shown, so that 32×32 images can be seen.
fn zoom(height: usize) -> usize {
    if height < 64 { 2 } else { 1 }
}

/// A PNG or JPEG file as uint8 `[c, h, w]`, as a network for the data set takes it, and the picture's own size (width, height).
///
/// One that has the data set's size is taken as it is; what becomes of others is said by [`Fit`].
pub fn read_picture(path: &Path, facts: &Facts) -> Result<(Tensor, (usize, usize))> {
    let image = image::open(path).map_err(|e| Error::file(path, format!("not a readable picture ({e})")))?;
    let own = (image.width() as usize, image.height() as usize);
    let (raw, channels) = if facts.channels == 1 { (image.to_luma8().into_raw(), 1) } else { (image.to_rgb8().into_raw(), 3) };
    let (pixels, (w, h), padding) = match facts.fit {
        Fit::AsIs => (raw, own, 0),
        Fit::ShorterSide(side) => {
            let to = shorter_side(own, side as usize);
            (bilinear(&raw, channels, own, to), to, 0)
        }
        Fit::Exact => {
            let [h, w] = facts.size;
            let padding = if (own.1 as i64, own.0 as i64) == (h, w) { 0 } else { facts.padding };
            let to = ((w - 2 * padding) as usize, (h - 2 * padding) as usize);
            (bilinear(&raw, channels, own, to), to, padding)
        }
    };
    let image = Tensor::from_slice(&pixels).view([h as i64, w as i64, channels as i64]).permute([2, 0, 1]);
    Ok((image.constant_pad_nd([padding; 4]).contiguous(), own))
}

/// A grid of uint8 images `[c, h, w]` (one or three channels), row by row; `None` leaves a place empty. Returns PNG data and
/// its size (width, height).
pub fn write_grid(rows: &[Vec<Option<Tensor>>]) -> Result<(Vec<u8>, (u32, u32))> {
    let size = rows.iter().flatten().flatten().next().map(Tensor::size).unwrap_or_else(|| vec![1, 1, 1]);
    let (channels, h, w) = (size[0] as usize, size[1] as usize, size[2] as usize);
    let columns = rows.iter().map(Vec::len).max().unwrap_or(1);
    let zoom = zoom(h);
    let (cell_h, cell_w) = (h * zoom + GAP, w * zoom + GAP);
    let (width, height) = (columns * cell_w + GAP, rows.len() * cell_h + GAP);
    let mut pixels = vec![24u8; width * height * 3];
    for (r, row) in rows.iter().enumerate() {
        for (c, image) in row.iter().enumerate() {
            let Some(image) = image else { continue };
            let values = Vec::<u8>::try_from(image.to_kind(Kind::Uint8).flatten(0, -1)).unwrap_or_default();
            for y in 0..h * zoom {
                for x in 0..w * zoom {
                    let to = ((r * cell_h + GAP + y) * width + c * cell_w + GAP + x) * 3;
                    let from = |channel: usize| values[(channel * h + y / zoom) * w + x / zoom];
                    for (channel, pixel) in pixels[to..to + 3].iter_mut().enumerate() {
                        *pixel = from(channel.min(channels - 1));
                    }
                }
            }
        }
    }
    let mut png = Vec::new();
    PngEncoder::new(&mut png)
        .write_image(&pixels, width as u32, height as u32, ExtendedColorType::Rgb8)
        .map_err(|e| Error::refused(format!("cannot encode a picture: {e}")))?;
    Ok((png, (width as u32, height as u32)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grid_shows_every_image_in_its_place() {
        let grey = |v: i64| Some(Tensor::full([1, 2, 3], v, (Kind::Uint8, tch::Device::Cpu)));
        let (png, (width, height)) = write_grid(&[vec![grey(10), None], vec![grey(30), grey(40)]]).unwrap();
        let image = image::load_from_memory(&png).unwrap().to_rgb8();
        assert_eq!((image.width(), image.height()), (width, height));
        let (cell_w, cell_h) = (3 * zoom(2) + GAP, 2 * zoom(2) + GAP);
        let at = |r: usize, c: usize| image.get_pixel((GAP + c * cell_w) as u32, (GAP + r * cell_h) as u32).0;
        assert_eq!((at(0, 0), at(0, 1), at(1, 0), at(1, 1)), ([10; 3], [24; 3], [30; 3], [40; 3]));
    }
}
