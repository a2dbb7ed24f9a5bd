//! IDX files of MNIST and Fashion-MNIST, plain or gzipped (format: Y. LeCun, *The MNIST database*).

use super::{Dataset, DatasetSource, Split, labels, survey::of_whole};
use crate::error::{Error, Result};
use crate::files;
use flate2::read::GzDecoder;
use std::io::Read;
use std::path::{Path, PathBuf};
use tch::Tensor;

const CLASSES: i64 = 10;
/// 28×28 images are padded with black to 32×32.
pub(super) const PADDING: i64 = 2;

pub(super) struct Idx {
    dir: PathBuf,
}

impl Idx {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    fn find(&self, name: &str) -> Result<PathBuf> {
        let candidates = [self.dir.join(name), self.dir.join(format!("{name}.gz"))];
        candidates.iter().find(|path| path.is_file()).cloned().ok_or_else(|| {
            Error::file(&candidates[0], "no such file, nor with .gz added").with_hint(
                "name the folder of the IDX files with --data-dir DIR; Debian has Fashion-MNIST as the package dataset-fashion-mnist",
            )
        })
    }

    /// A file, its dimensions and its values.
    fn values(&self, name: &str, rank: usize) -> Result<(PathBuf, Vec<usize>, Vec<u8>)> {
        let path = self.find(name)?;
        let (dims, values) = parse(&contents(&path)?, rank).map_err(|problem| Error::file(&path, problem))?;
        Ok((path, dims, values))
    }
}

/// Names of a split's files: images and labels.
fn names_of(split: Split) -> [String; 2] {
    let prefix = match split {
        Split::Train => "train",
        Split::Test => "t10k",
    };
    ["images-idx3", "labels-idx1"].map(|of| format!("{prefix}-{of}-ubyte"))
}

impl DatasetSource for Idx {
    fn read(&self, split: Split) -> Result<Dataset> {
        let [images, labels_of] = names_of(split);
        let (image_path, dims, pixels) = self.values(&images, 3)?;
        let (label_path, counts, raw_labels) = self.values(&labels_of, 1)?;
        let [n, h, w] = [dims[0], dims[1], dims[2]];
        if (h, w) != (28, 28) {
            return Err(Error::file(&image_path, format!("images of {h}×{w} pixels; 28×28 expected")));
        }
        if counts[0] != n {
            return Err(Error::file(&label_path, format!("{} labels for {n} images of {}", counts[0], image_path.display())));
        }
        let images = Tensor::from_slice(&pixels).view([n as i64, 1, h as i64, w as i64]);
        Ok(Dataset {
            images_nchw: images.constant_pad_nd([PADDING, PADDING, PADDING, PADDING]),
            labels_n: labels(&raw_labels, CLASSES, &label_path)?,
        })
    }

    fn is_here(&self) -> bool {
        [Split::Train, Split::Test].into_iter().flat_map(names_of).any(|name| self.find(&name).is_ok())
    }

    /// Looks at both files by themselves before it looks at them together.
    fn survey(&self, split: Split) -> std::result::Result<String, Vec<Error>> {
        let wrong: Vec<Error> = names_of(split).iter().zip([3, 1]).filter_map(|(name, rank)| self.values(name, rank).err()).collect();
        if wrong.is_empty() { of_whole(self, split) } else { Err(wrong) }
    }
}

/// File contents, unpacked if gzipped.
fn contents(path: &Path) -> Result<Vec<u8>> {
    let raw = files::read(path)?;
    if !raw.starts_with(&[0x1f, 0x8b]) {
        return Ok(raw);
    }
    let mut out = Vec::new();
    // Real files unpack to 47 MB; a bomb must not eat the node's memory.
    let limit = 1u64 << 30;
    GzDecoder::new(&raw[..]).take(limit).read_to_end(&mut out).map_err(|e| Error::file(path, format!("damaged gzip file ({e})")))?;
    Ok(out)
}

/// Dimensions and values of an IDX file of unsigned bytes with `rank` dimensions.
pub fn parse(raw: &[u8], rank: usize) -> std::result::Result<(Vec<usize>, Vec<u8>), String> {
    let header = 4 + 4 * rank;
    if raw.len() < header {
        return Err(format!("{} bytes; the header alone has {header}", raw.len()));
    }
    let word = |at: usize| u32::from_be_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]]);
    let magic = 0x0800 + rank as u32;
    if word(0) != magic {
        return Err(format!("starts with {:#010x}; an IDX file of bytes in {rank} dimensions starts with {magic:#010x}", word(0)));
    }
    let dims: Vec<usize> = (0..rank).map(|i| word(4 + 4 * i) as usize).collect();
    let size = dims.iter().try_fold(1usize, |product, &d| product.checked_mul(d)).ok_or("dimensions too large")?;
    let values = &raw[header..];
    if values.len() != size || size == 0 {
        return Err(format!("{} values after the header; {dims:?} needs {size}", values.len()));
    }
    Ok((dims, values.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, write::GzEncoder};
    use std::io::Write;

    fn idx(dims: &[u32], values: &[u8]) -> Vec<u8> {
        let mut out = (0x0800 + dims.len() as u32).to_be_bytes().to_vec();
        dims.iter().for_each(|d| out.extend(d.to_be_bytes()));
        out.extend(values);
        out
    }

    fn folder(images: &[u8], labels: &[u8], gz: bool) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, contents) in [("t10k-images-idx3-ubyte", images), ("t10k-labels-idx1-ubyte", labels)] {
            let mut contents = contents.to_vec();
            if gz {
                let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
                encoder.write_all(&contents).unwrap();
                contents = encoder.finish().unwrap();
            }
            std::fs::write(folder.path().join(format!("{name}{}", if gz { ".gz" } else { "" })), contents).unwrap();
        }
        folder
    }

    fn read(folder: &tempfile::TempDir) -> Result<Dataset> {
        Idx::new(folder.path().into()).read(Split::Test)
    }

    fn pixels() -> Vec<u8> {
        (0..2 * 784).map(|i| (i % 251) as u8).collect()
    }

    #[test]
    fn plain_and_gzipped_files_give_padded_images() {
        for gz in [false, true] {
            let data = read(&folder(&idx(&[2, 28, 28], &pixels()), &idx(&[2], &[3, 9]), gz)).unwrap();
            assert_eq!(data.images_nchw.size(), [2, 1, 32, 32]);
            assert_eq!(data.images_nchw.int64_value(&[1, 0, 2, 2]), 784 % 251);
            assert_eq!(data.images_nchw.int64_value(&[1, 0, 1, 5]), 0);
            assert_eq!(Vec::<i64>::try_from(&data.labels_n).unwrap(), [3, 9]);
        }
    }

    #[test]
    fn damaged_files_are_named_with_expected_and_found() {
        let good = idx(&[2, 28, 28], &pixels());
        let cases: [(&[u8], &[u8], &str); 6] = [
            (&good[..good.len() - 1], &idx(&[2], &[0, 1]), "1567 values after the header; [2, 28, 28] needs 1568"),
            (&[], &idx(&[2], &[0, 1]), "0 bytes; the header alone has 16"),
            (&idx(&[2], &[0, 1]), &idx(&[2], &[0, 1]), "the header alone has 16"),
            (&good, &good, "starts with 0x00000803; an IDX file of bytes in 1 dimensions starts with 0x00000801"),
            (&good, &idx(&[3], &[0, 1, 2]), "3 labels for 2 images"),
            (&good, &idx(&[2], &[0, 10]), "label 10 of image 1 is outside 0..9"),
        ];
        for (images, labels, want) in cases {
            let error = read(&folder(images, labels, false)).err().unwrap();
            assert!(error.to_string().contains(want) && error.exit_code() == 2, "{error}");
        }
        let mut broken = folder(&good, &idx(&[2], &[0, 1]), true);
        let path = broken.path().join("t10k-images-idx3-ubyte.gz");
        let mut raw = std::fs::read(&path).unwrap();
        raw.truncate(raw.len() / 2);
        std::fs::write(&path, raw).unwrap();
        assert!(read(&broken).err().unwrap().to_string().contains("damaged gzip"));
        broken = tempfile::tempdir().unwrap();
        assert!(read(&broken).err().unwrap().to_string().contains("no such file, nor with .gz added"));
    }
}
