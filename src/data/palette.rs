//! Classes of rooms, and the colours in which maps of labels are shown.

use super::resample::nearest;
use crate::error::{Error, Result};
use crate::files;
use std::path::Path;
use tch::{Kind, Tensor};

/// The 13 classes of NYUv2, in the order of their labels.
pub(super) const CLASSES: [&str; 13] =
    ["bed", "books", "ceiling", "chair", "floor", "furniture", "objects", "picture", "sofa", "table", "tv", "wall", "window"];

/// Colour of a label, red, green, blue: the PASCAL VOC map, whose bits are interleaved, at label + 1 in bytes. Unlabelled (255) is black.
pub fn colour(label: u8) -> [u8; 3] {
    let index = label.wrapping_add(1);
    std::array::from_fn(|channel| {
        let bit = |place: u32| index.checked_shr(3 * place + channel as u32).unwrap_or(0) & 1;
        (0..3).map(|place| bit(place) << (7 - place)).sum()
    })
}

fn bytes(labels_hw: &Tensor) -> Vec<u8> {
    Vec::try_from(labels_hw.to_kind(Kind::Uint8).flatten(0, -1)).unwrap_or_default()
}

/// A map of labels `[h, w]` as an image `[3, h, w]`, uint8.
pub fn coloured(labels_hw: &Tensor) -> Tensor {
    let (h, w) = (labels_hw.size()[0], labels_hw.size()[1]);
    let pixels: Vec<u8> = bytes(labels_hw).into_iter().flat_map(colour).collect();
    Tensor::from_slice(&pixels).view([h, w, 3]).permute([2, 0, 1]).contiguous()
}

/// A map of labels `[h, w]` brought to `size` (width, height), each pixel from the nearest.
pub fn grown(labels_hw: &Tensor, size: (usize, usize)) -> Tensor {
    let from = (labels_hw.size()[1] as usize, labels_hw.size()[0] as usize);
    Tensor::from_slice(&nearest(&bytes(labels_hw), from, size)).view([size.1 as i64, size.0 as i64])
}

/// Writes a map of labels `[h, w]` as PNG: pixels are labels, and a palette shows them in colours.
pub fn write_labels(path: &Path, labels_hw: &Tensor) -> Result<()> {
    let mut out = Vec::new();
    let mut encoder = png::Encoder::new(&mut out, labels_hw.size()[1] as u32, labels_hw.size()[0] as u32);
    encoder.set_color(png::ColorType::Indexed);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_palette((0..=255).flat_map(colour).collect::<Vec<u8>>());
    let written = encoder.write_header().and_then(|mut writer| writer.write_image_data(&bytes(labels_hw)));
    written.map_err(|e| Error::refused(format!("cannot encode {}: {e}", path.display())))?;
    files::write(path, &out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first colours of the PASCAL VOC development kit, black left out: maroon, green, olive, navy, purple, teal, grey, …
    #[test]
    fn colours_are_pascal_vocs() {
        let want = [[128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128], [128, 0, 128], [0, 128, 128], [128, 128, 128], [64, 0, 0]];
        assert_eq!((0..8).map(colour).collect::<Vec<_>>(), want);
        assert_eq!((colour(255), colour(12), colour(254)), ([0; 3], [192, 0, 128], [224, 224, 192]));
    }

    #[test]
    fn maps_grow_to_a_pictures_width_and_height() {
        let labels = Tensor::from_slice(&[0i64, 1, 2, 3, 4, 5]).view([2, 3]);
        let want = [[0i64, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2], [3, 3, 4, 4, 5, 5], [3, 3, 4, 4, 5, 5]];
        assert!(grown(&labels, (6, 4)).to_kind(Kind::Int64).equal(&Tensor::from_slice2(&want)));
    }

    #[test]
    fn maps_are_read_back_as_labels_and_as_colours() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("map.png");
        let labels = Tensor::from_slice(&[0i64, 12, 3, 255, 4, 4]).view([2, 3]);
        write_labels(&path, &labels).unwrap();
        let mut reader = png::Decoder::new(std::io::BufReader::new(std::fs::File::open(&path).unwrap())).read_info().unwrap();
        let mut pixels = vec![0; 6];
        reader.next_frame(&mut pixels).unwrap();
        assert_eq!(pixels, [0, 12, 3, 255, 4, 4]);
        let shown = image::open(&path).unwrap().to_rgb8().into_raw();
        let want: Vec<u8> = Vec::try_from(coloured(&labels).permute([1, 2, 0]).contiguous().flatten(0, -1)).unwrap();
        assert_eq!(shown, want);
    }
}
