//! CIFAR-10 and CIFAR-100 in the binary distribution or the Python one (format: A. Krizhevsky, cs.toronto.edu page of the
//! data sets). Python batches are pickles, read by the reader that runs nothing.

use super::{Dataset, DatasetSource, Split, labels, survey::described};
use crate::error::{Error, Result};
use crate::files;
use crate::nn::pickle::{self, Value};
use std::path::{Path, PathBuf};
use tch::Tensor;

/// 3 planes of 32×32, row by row.
const PIXELS: usize = 3 * 32 * 32;
const TEST_IMAGES: usize = 10_000;

pub(super) struct Cifar {
    dir: PathBuf,
    /// Whether files may hold another number of images than the published ones.
    partial: bool,
    classes: i64,
    /// Images in each file of the training split; of the test split it is [`TEST_IMAGES`].
    train_images: usize,
    binary: Distribution,
    python: Distribution,
}

struct Distribution {
    folder: &'static str,
    train: &'static [&'static str],
    test: &'static [&'static str],
}

impl Cifar {
    pub(super) fn ten(dir: PathBuf, partial: bool) -> Self {
        Self {
            dir,
            partial,
            classes: 10,
            train_images: 10_000,
            binary: Distribution {
                folder: "cifar-10-batches-bin",
                train: &["data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin"],
                test: &["test_batch.bin"],
            },
            python: Distribution {
                folder: "cifar-10-batches-py",
                train: &["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"],
                test: &["test_batch"],
            },
        }
    }

    pub(super) fn hundred(dir: PathBuf, partial: bool) -> Self {
        Self {
            dir,
            partial,
            classes: 100,
            train_images: 50_000,
            binary: Distribution { folder: "cifar-100-binary", train: &["train.bin"], test: &["test.bin"] },
            python: Distribution { folder: "cifar-100-python", train: &["train"], test: &["test"] },
        }
    }

    /// The distribution that is there, and its folder: in `dir` itself, below it, or where torchvision unpacks it.
    fn locate(&self) -> Result<(&Distribution, PathBuf, bool)> {
        let holds = |name: &'static str, folder: &Path| folder.join(name).is_file();
        let whole = self.places().find(|(of, folder, _)| holds(of.test[0], folder));
        if let Some(found) = whole.or_else(|| self.places().find(|(of, folder, _)| of.train.iter().any(|&name| holds(name, folder)))) {
            return Ok(found);
        }
        let (binary, python) = (self.binary.folder, self.python.folder);
        Err(Error::file(&self.dir, format!("holds neither {binary}/{} nor {python}/{}", self.binary.test[0], self.python.test[0]))
            .with_hint("unpack the binary or the Python distribution of CIFAR there, or name its folder with --data-dir DIR"))
    }

    /// Every distribution in every folder where it may lie, and whether it is the binary one.
    fn places(&self) -> impl Iterator<Item = (&Distribution, PathBuf, bool)> {
        [(&self.binary, true), (&self.python, false)].into_iter().flat_map(|(of, binary)| {
            let below = [self.dir.clone(), self.dir.join(of.folder), self.dir.join("torchdata").join(of.folder)];
            below.into_iter().map(move |folder| (of, folder, binary))
        })
    }

    /// Label bytes before the pixels of a binary record; the last one counts (CIFAR-100: coarse, then fine).
    fn label_bytes(&self) -> usize {
        if self.classes == 100 { 2 } else { 1 }
    }

    fn binary_batch(&self, path: &Path) -> Result<(Vec<u8>, Vec<u8>)> {
        let raw = files::read(path)?;
        let record = self.label_bytes() + PIXELS;
        if raw.is_empty() || raw.len() % record != 0 {
            return Err(Error::file(path, format!("{} bytes; records of {record} bytes expected", raw.len())));
        }
        let records = raw.chunks_exact(record);
        let labels = records.clone().map(|r| r[self.label_bytes() - 1]).collect();
        Ok((labels, records.flat_map(|r| &r[self.label_bytes()..]).copied().collect()))
    }

    fn python_batch(&self, path: &Path) -> Result<(Vec<u8>, Vec<u8>)> {
        let value = pickle::read_pickle(&files::read(path)?).map_err(|e| Error::file(path, e.to_string()))?;
        let key = if self.classes == 100 { "fine_labels" } else { "labels" };
        let missing = |what: &str| Error::file(path, format!("holds no `{what}`; a batch of CIFAR's Python distribution expected"));
        let Some(Value::Array(data)) = value.get("data") else { return Err(missing("data")) };
        let Some(Value::List(listed)) = value.get(key) else { return Err(missing(key)) };
        if data.dtype != "u1" || data.shape.len() != 2 || data.shape[1] != PIXELS || data.shape[0] != listed.len() {
            let (found, n) = (&data.shape, listed.len());
            return Err(Error::file(path, format!("`data` is {found:?} of {}; [{n}, {PIXELS}] of uint8 (u1) expected", data.dtype)));
        }
        let label = |v: &Value| match v {
            Value::Int(label) => u8::try_from(*label).ok(),
            _ => None,
        };
        let labels: Option<Vec<u8>> = listed.iter().map(label).collect();
        Ok((labels.ok_or_else(|| Error::file(path, format!("`{key}` holds something other than labels")))?, data.bytes.clone()))
    }

    /// Images and labels of each file of a split, or what is wrong with it.
    fn batches(&self, split: Split) -> Result<impl Iterator<Item = Result<(Tensor, Tensor)>>> {
        let (distribution, folder, binary) = self.locate()?;
        let (names, expected) = match split {
            Split::Train => (distribution.train, self.train_images),
            Split::Test => (distribution.test, TEST_IMAGES),
        };
        let batch = move |name: &&str| {
            let path = folder.join(name);
            let (raw_labels, pixels) = if binary { self.binary_batch(&path)? } else { self.python_batch(&path)? };
            if raw_labels.len() != expected && !self.partial {
                return Err(Error::file(&path, format!("{} images; {expected} expected", raw_labels.len()))
                    .with_hint("copy or download the file again; if a part of the data set is meant, set data.allow_partial = true"));
            }
            let images = Tensor::from_slice(&pixels).view([raw_labels.len() as i64, 3, 32, 32]);
            Ok((images, labels(&raw_labels, self.classes, &path)?))
        };
        Ok(names.iter().map(batch))
    }
}

fn joined(batches: Vec<(Tensor, Tensor)>) -> Dataset {
    let (images, labels): (Vec<Tensor>, Vec<Tensor>) = batches.into_iter().unzip();
    Dataset { images_nchw: Tensor::cat(&images, 0), labels_n: Tensor::cat(&labels, 0) }
}

impl DatasetSource for Cifar {
    fn read(&self, split: Split) -> Result<Dataset> {
        Ok(joined(self.batches(split)?.collect::<Result<_>>()?))
    }

    /// Looks at every file.
    fn survey(&self, split: Split) -> std::result::Result<String, Vec<Error>> {
        let (mut good, mut wrong) = (Vec::new(), Vec::new());
        for batch in self.batches(split).map_err(|error| vec![error])? {
            match batch {
                Ok(batch) => good.push(batch),
                Err(error) => wrong.push(error),
            }
        }
        if wrong.is_empty() { Ok(described(&joined(good))) } else { Err(wrong) }
    }

    fn is_here(&self) -> bool {
        let any = |of: &Distribution, folder: &Path| of.train.iter().chain(of.test).any(|name| folder.join(name).is_file());
        self.places().any(|(of, folder, _)| any(of, &folder))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(labels: &[u8], first: u8) -> Vec<u8> {
        let mut out = labels.to_vec();
        out.extend((0..PIXELS).map(|i| first.wrapping_add((i % 7) as u8)));
        out
    }

    fn write(folder: &Path, name: &str, records: &[Vec<u8>]) {
        std::fs::create_dir_all(folder).unwrap();
        std::fs::write(folder.join(name), records.concat()).unwrap();
    }

    #[test]
    fn binary_batches_of_both_data_sets_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let ten = dir.path().join("cifar-10-batches-bin");
        write(&ten, "test_batch.bin", &[record(&[3], 10), record(&[9], 20)]);
        for i in 1..=5 {
            write(&ten, &format!("data_batch_{i}.bin"), &[record(&[i], i)]);
        }
        let cifar = Cifar::ten(dir.path().into(), true);
        let test = cifar.read(Split::Test).unwrap();
        assert_eq!((test.images_nchw.size(), Vec::<i64>::try_from(&test.labels_n).unwrap()), (vec![2, 3, 32, 32], vec![3, 9]));
        assert_eq!(test.images_nchw.int64_value(&[1, 0, 0, 6]), 26);
        assert_eq!(Vec::<i64>::try_from(&cifar.read(Split::Train).unwrap().labels_n).unwrap(), [1, 2, 3, 4, 5]);

        write(&dir.path().join("cifar-100-binary"), "test.bin", &[record(&[4, 77], 0)]);
        let hundred = Cifar::hundred(dir.path().into(), true).read(Split::Test).unwrap();
        assert_eq!(hundred.labels_n.int64_value(&[0]), 77, "the fine label counts");
    }

    /// Batches as Python 3 and Python 2 pickle them, and a pickle that would call something.
    #[test]
    fn python_batches_are_read_and_nothing_in_them_is_run() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pickle");
        for name in ["cifar_py3.pkl", "cifar_py2.pkl"] {
            let dir = tempfile::tempdir().unwrap();
            std::fs::copy(golden.join(name), dir.path().join("test_batch")).unwrap();
            let data = Cifar::ten(dir.path().into(), true).read(Split::Test).unwrap();
            assert_eq!(data.images_nchw.size(), [data.len() as i64, 3, 32, 32]);
            assert!(data.len() >= 2);
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::copy(golden.join("caller.pkl"), dir.path().join("test_batch")).unwrap();
        let text = Cifar::ten(dir.path().into(), false).read(Split::Test).err().unwrap().to_string();
        assert!(text.contains("test_batch: holds no `data`"), "{text}");
    }

    #[test]
    fn python_batches_of_cifar_100_give_their_fine_labels() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("cifar-100-python");
        std::fs::create_dir(&folder).unwrap();
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pickle/cifar100_py3.pkl");
        std::fs::copy(golden, folder.join("test")).unwrap();
        let data = Cifar::hundred(dir.path().into(), true).read(Split::Test).unwrap();
        assert_eq!(Vec::<i64>::try_from(&data.labels_n).unwrap(), [77, 99]);
        assert_eq!(data.images_nchw.int64_value(&[1, 2, 31, 31]), (2 * 3072 - 1) * 7 % 256);
    }

    /// Both distributions, cut where a record ends; and a whole file.
    #[test]
    fn files_with_too_few_images_are_refused_unless_a_part_is_meant() {
        let refused = |cifar: Cifar, split| cifar.read(split).err().unwrap().to_string();
        let dir = tempfile::tempdir().unwrap();
        let path = || dir.path().to_path_buf();
        write(dir.path(), "test_batch.bin", &vec![record(&[1], 0); 9_999]);
        write(dir.path(), "data_batch_1.bin", &[record(&[1], 0)]);
        write(dir.path(), "test.bin", &vec![record(&[4, 77], 0); 10_000]);
        write(dir.path(), "train.bin", &vec![record(&[4, 77], 0); 10_000]);
        assert!(refused(Cifar::ten(path(), false), Split::Test).ends_with("test_batch.bin: 9999 images; 10000 expected"));
        assert!(refused(Cifar::ten(path(), false), Split::Train).ends_with("data_batch_1.bin: 1 images; 10000 expected"));
        assert_eq!(Cifar::ten(path(), false).survey(Split::Train).unwrap_err().len(), 5, "four files are missing");
        assert!(refused(Cifar::hundred(path(), false), Split::Train).ends_with("train.bin: 10000 images; 50000 expected"));
        assert_eq!(Cifar::hundred(path(), false).read(Split::Test).unwrap().len(), 10_000);
        assert_eq!(Cifar::ten(path(), true).read(Split::Test).unwrap().len(), 9_999);

        let dir = tempfile::tempdir().unwrap();
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pickle");
        std::fs::copy(golden.join("cifar_py3.pkl"), dir.path().join("test_batch")).unwrap();
        std::fs::copy(golden.join("cifar100_py3.pkl"), dir.path().join("test")).unwrap();
        assert!(refused(Cifar::ten(dir.path().into(), false), Split::Test).ends_with("test_batch: 2 images; 10000 expected"));
        assert!(refused(Cifar::hundred(dir.path().into(), false), Split::Test).ends_with("test: 2 images; 10000 expected"));
    }

    #[test]
    fn damaged_and_missing_batches_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let cifar = Cifar::ten(dir.path().into(), true);
        let text = cifar.read(Split::Test).err().unwrap().to_string();
        assert!(text.contains("holds neither cifar-10-batches-bin/test_batch.bin nor cifar-10-batches-py/test_batch"), "{text}");
        let mut short = record(&[1], 0);
        short.pop();
        write(dir.path(), "test_batch.bin", &[short]);
        let text = cifar.read(Split::Test).err().unwrap().to_string();
        assert!(text.contains("test_batch.bin: 3072 bytes; records of 3073 bytes expected"), "{text}");
        write(dir.path(), "test_batch.bin", &[record(&[10], 0)]);
        assert!(cifar.read(Split::Test).err().unwrap().to_string().contains("label 10 of image 0 is outside 0..9"));
        let text = cifar.read(Split::Train).err().unwrap().to_string();
        assert!(text.contains("data_batch_1.bin: no such file"), "{text}");
    }
}
