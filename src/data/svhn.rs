//! SVHN in its second format: cropped digits in MAT-files (format: Y. Netzer et al., the data set's page).

use super::{Dataset, DatasetSource, Split, mat};
use crate::error::{Error, Result};
use crate::files;
use std::path::PathBuf;
use tch::Tensor;

/// Sizes of `X` before the number of images: height, width, channels, the first index running fastest.
const IMAGE: [usize; 3] = [32, 32, 3];

pub(super) struct Svhn {
    dir: PathBuf,
    /// Whether files may hold another number of images than the published ones.
    partial: bool,
}

fn file_of(split: Split) -> (&'static str, usize) {
    match split {
        Split::Train => ("train_32x32.mat", 73_257),
        Split::Test => ("test_32x32.mat", 26_032),
    }
}

impl Svhn {
    pub(super) fn new(dir: PathBuf, partial: bool) -> Self {
        Self { dir, partial }
    }

    /// In `dir` itself, or where torchvision users have it.
    fn path(&self, split: Split) -> PathBuf {
        let (name, _) = file_of(split);
        let below = self.dir.join("torchdata").join(name);
        if below.is_file() { below } else { self.dir.join(name) }
    }
}

impl DatasetSource for Svhn {
    fn read(&self, split: Split) -> Result<Dataset> {
        let (path, (_, expected)) = (self.path(split), file_of(split));
        let arrays = mat::read(&files::read(&path)?).map_err(|problem| Error::file(&path, problem))?;
        let array = |wanted: &str| {
            let found = arrays.iter().find(|(name, _)| name == wanted).map(|(_, array)| array);
            found.ok_or_else(|| Error::file(&path, format!("holds no numeric array `{wanted}`; `X` and `y` expected")))
        };
        let (images, labels) = (array("X")?, array("y")?);
        let shape = images.dims.split_last().filter(|(_, image)| **image == IMAGE);
        let (Some(pixels), Some((&n, _))) = (images.unsigned_bytes(), shape) else {
            let [h, w, c] = IMAGE;
            return Err(Error::file(&path, format!("`X` is {:?}; [{h}, {w}, {c}, images] of uint8 expected", images.dims)));
        };
        let labels = labels.numbers();
        if labels.len() != n || n == 0 {
            return Err(Error::file(&path, format!("{} labels for {n} images", labels.len())));
        }
        if n != expected && !self.partial {
            return Err(Error::file(&path, format!("{n} images; {expected} expected"))
                .with_hint("copy or download the file again; if a part of the data set is meant, set data.allow_partial = true"));
        }
        // The files call the digit 0 class 10.
        let digit = |label: &f64| (1..=10).find(|&digit| f64::from(digit) == *label).map(|digit| i64::from(digit % 10));
        if let Some(at) = labels.iter().position(|label| digit(label).is_none()) {
            return Err(Error::file(&path, format!("label {} of image {at} is none of 1 to 10", labels[at])));
        }
        let labels: Vec<i64> = labels.iter().filter_map(digit).collect();
        let [h, w, c] = IMAGE.map(|side| side as i64);
        let images_nchw = Tensor::from_slice(pixels).view([n as i64, c, w, h]).transpose(2, 3).contiguous();
        Ok(Dataset { images_nchw, labels_n: Tensor::from_slice(&labels) })
    }

    fn is_here(&self) -> bool {
        [Split::Train, Split::Test].into_iter().any(|split| self.path(split).is_file())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn golden(name: &str) -> Vec<u8> {
        std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/mat").join(name)).unwrap()
    }

    fn read(bytes: &[u8], partial: bool) -> Result<Dataset> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("test_32x32.mat"), bytes).unwrap();
        Svhn::new(dir.path().into(), partial).read(Split::Test)
    }

    /// Files that scipy has written (tests/golden/mat/make_goldens.py): packed and plain, labels as bytes and as doubles. Pixel (y, x) of
    /// channel c of image n is (7·y + 3·x + 50·c + 11·n) mod 256.
    #[test]
    fn files_of_the_true_format_are_read() {
        for name in ["packed.mat", "plain_double.mat"] {
            let data = read(&golden(name), true).unwrap();
            assert_eq!(data.images_nchw.size(), [3, 3, 32, 32]);
            for (n, c, y, x) in [(0, 0, 0, 1), (0, 0, 1, 0), (1, 2, 31, 4), (2, 1, 5, 30)] {
                assert_eq!(data.images_nchw.int64_value(&[n, c, y, x]), (7 * y + 3 * x + 50 * c + 11 * n) % 256, "{name}");
            }
            assert_eq!(Vec::<i64>::try_from(&data.labels_n).unwrap(), [1, 0, 9], "class 10 is the digit 0");
        }
    }

    #[test]
    fn damaged_files_are_named_with_what_is_wrong() {
        let (plain, packed) = (golden("plain_double.mat"), golden("packed.mat"));
        let mut unlabelled = plain.clone();
        let last = unlabelled.len() - 8;
        unlabelled[last..].copy_from_slice(&11f64.to_le_bytes());
        for (bytes, want) in [
            (&b"short"[..], "5 bytes; the header of a MAT-file alone has 128"),
            (&[&b"MATLAB 7.3 MAT-file"[..], &[0; 200]].concat(), "a MAT-file of version 7.3 (HDF5); version 5 expected"),
            (&[0; 300], "no MAT-file of version 5"),
            (&plain[..plain.len() / 2], "an element is cut short"),
            (&packed[..packed.len() - 9], "an element is cut short"),
            (&golden("other.mat"), "holds no numeric array `X`"),
            (&golden("grey.mat"), "`X` is [32, 32, 3]; [32, 32, 3, images] of uint8 expected"),
            (&unlabelled, "label 11 of image 2 is none of 1 to 10"),
        ] {
            let error = read(bytes, true).err().unwrap();
            assert!(error.to_string().contains(&format!("test_32x32.mat: {want}")) && error.exit_code() == 2, "{error} instead of {want}");
        }
        assert!(read(&packed, false).err().unwrap().to_string().contains("3 images; 26032 expected"));
    }
}
