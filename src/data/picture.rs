//! Pictures in files: read as images of a data set's size, written as grids.

use super::resample::{bilinear, middle, shorter_side};
use super::{Facts, Fit};
use crate::error::{Error, Result};
use crate::nn::room_for;
use crate::parallel::thread_count;
use image::{DynamicImage, ExtendedColorType, ImageEncoder, ImageReader, codecs::png::PngEncoder};
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

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
    let Fitted { pixels, channels, size: (w, h), padding, own } = fitted(path, facts)?;
    let image = Tensor::from_slice(&pixels).view([h as i64, w as i64, channels as i64]).permute([2, 0, 1]);
    Ok((image.constant_pad_nd([padding; 4]).contiguous(), own))
}

/// Pictures as a network for the data set takes them, uint8 `[n, c, h, w]`, read on all threads.
///
/// # Errors
/// The first that is no picture, or of another size where all have the data set's; more than memory holds.
pub(super) fn read_all(paths: &[PathBuf], facts: &Facts) -> Result<Tensor> {
    let ([h, w], c, n) = (facts.size, facts.channels, paths.len());
    let image_bytes = (c * h * w) as usize;
    // On their way into a tensor they are there three times.
    room_for("data.dir", &format!("{n} pictures of {w}×{h}"), 3.0 * (n * image_bytes) as f64, Device::Cpu)?;
    let read = |path: &PathBuf| {
        let Fitted { pixels, own, channels, .. } = fitted(path, facts)?;
        if facts.fit == Fit::Exact && (own.0 as i64, own.1 as i64) != (w, h) {
            return Err(Error::file(path, format!("{}×{} pixels; {w}×{h} expected", own.0, own.1)));
        }
        if channels as i64 == c { Ok(pixels) } else { Err(Error::file(path, format!("{channels} channels; {c} expected"))) }
    };
    let part = n.div_ceil(thread_count().max(1)).max(1);
    let parts = std::thread::scope(|scope| {
        let readers: Vec<_> =
            paths.chunks(part).map(|paths| scope.spawn(move || paths.iter().map(read).collect::<Result<Vec<_>>>())).collect();
        let join = |reader: std::thread::ScopedJoinHandle<'_, _>| reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        readers.into_iter().map(join).collect::<Result<Vec<_>>>()
    })?;
    let mut pixels = Vec::with_capacity(n * image_bytes);
    parts.into_iter().flatten().for_each(|image| pixels.extend(image));
    Ok(Tensor::from_slice(&pixels).view([n as i64, h, w, c]).permute([0, 3, 1, 2]).contiguous())
}

/// A picture brought to size.
struct Fitted {
    /// Interleaved bytes, row by row.
    pixels: Vec<u8>,
    channels: usize,
    /// Width and height.
    size: (usize, usize),
    /// Black pixels still to be added on every side.
    padding: i64,
    /// Width and height in the file.
    own: (usize, usize),
}

fn fitted(path: &Path, facts: &Facts) -> Result<Fitted> {
    // By what is in the file: collections hold JPEG files under the name .png, and PIL reads them.
    let reader = ImageReader::open(path).and_then(ImageReader::with_guessed_format).map_err(|e| Error::open(path, &e))?;
    let image = reader.decode().map_err(|e| Error::file(path, format!("not a readable picture ({e})")))?;
    let own = (image.width() as usize, image.height() as usize);
    let (raw, channels) = if facts.channels == 1 { (grey(&image), 1) } else { (image.to_rgb8().into_raw(), 3) };
    let (pixels, size, padding) = match facts.fit {
        Fit::AsIs => (raw, own, 0),
        Fit::Cropped(side) => {
            let (between, to) = (shorter_side(own, side as usize), (facts.size[1] as usize, facts.size[0] as usize));
            (middle(&bilinear(&raw, channels, own, between), channels, between, to), to, 0)
        }
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
    Ok(Fitted { pixels, channels, size, padding, own })
}

/// Brightness as PIL's mode L has it: ITU-R 601 in 16 bits, rounded.
fn grey(image: &DynamicImage) -> Vec<u8> {
    if !image.color().has_color() {
        return image.to_luma8().into_raw();
    }
    let bright = |p: &[u8; 3]| ((u32::from(p[0]) * 19_595 + u32::from(p[1]) * 38_470 + u32::from(p[2]) * 7471 + 0x8000) >> 16) as u8;
    image.to_rgb8().into_raw().as_chunks::<3>().0.iter().map(bright).collect()
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
    use crate::data::facts;
    use crate::nn::weights;

    /// What torchvision's Resize and CenterCrop make of the same files (tests/golden/folder/make_goldens.py): the bits for PNG; JPEG
    /// decoders round differently, by up to four in 255, and less than half of one on average.
    #[test]
    fn pictures_are_cut_as_torchvision_cuts_them() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/folder");
        let goldens = weights::read(&folder.join("goldens.safetensors")).unwrap().tensors;
        assert_eq!(goldens.len(), 29);
        for (key, want) in goldens {
            let [name, resize, size] = <[&str; 3]>::try_from(key.split('/').collect::<Vec<_>>()).unwrap();
            let (name, grey) = name.strip_suffix(" as grey").map_or((name, false), |name| (name, true));
            let size: i64 = size.parse().unwrap();
            let (channels, fit) = (if grey { 1 } else { 3 }, Fit::Cropped(resize.parse().unwrap()));
            let facts = Facts { channels, size: [size; 2], fit, ..facts(crate::config::DatasetName::Folder) };
            let got = read_all(&[folder.join(name)], &facts).unwrap().get(0);
            assert_eq!(got.size(), [channels, size, size], "{key}");
            let got = if size < 48 { got } else { got.slice(1, 0, size, 3).slice(2, 0, size, 3) };
            let off = (got.to_kind(Kind::Int) - want.to_kind(Kind::Int)).abs().to_kind(Kind::Float);
            let (most, mean) = (off.max().double_value(&[]), off.mean(Kind::Float).double_value(&[]));
            let is_jpeg = !name.ends_with(".png");
            assert!(if is_jpeg { most <= 4.0 && mean <= 0.5 } else { most == 0.0 }, "{key}: off by up to {most}, {mean} on average");
        }
    }

    #[test]
    fn what_is_in_a_file_counts_and_not_its_name() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/folder/photo.jpg");
        let folder = tempfile::tempdir().unwrap();
        let misnamed = folder.path().join("photo.png");
        std::fs::copy(&golden, &misnamed).unwrap();
        let facts = Facts { channels: 3, fit: Fit::AsIs, ..facts(crate::config::DatasetName::Folder) };
        assert_eq!(read_picture(&misnamed, &facts).unwrap(), read_picture(&golden, &facts).unwrap());
    }

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
