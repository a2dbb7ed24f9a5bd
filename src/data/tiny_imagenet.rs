//! Tiny-ImageNet as it is distributed: `wnids.txt`, `train/WNID/images/*.JPEG`, `val/images/` with `val/val_annotations.txt`. Its
//! `test/` has no labels, so that scores are those of `val/`. Labels are places in the sorted list of wnids, as `ImageFolder` over
//! `train/` gives them.

use super::picture::read_all;
use super::{Dataset, DatasetSource, Facts, Split, survey::of_whole};
use crate::error::{Error, Result};
use crate::files;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::Tensor;

/// Names its classes, and so the data set.
pub(super) const CLASSES_FILE: &str = "wnids.txt";
const FOLDER: &str = "tiny-imagenet-200";
const TRAIN_OF_A_CLASS: usize = 500;
const VALIDATION: usize = 10_000;

/// Pictures and their labels.
type Labelled = Vec<(PathBuf, i64)>;

pub(super) struct TinyImagenet {
    dir: PathBuf,
    /// Whether there may be another number of images than the published one.
    partial: bool,
    facts: Facts,
}

impl TinyImagenet {
    pub(super) fn new(dir: PathBuf, partial: bool, facts: Facts) -> Self {
        Self { dir, partial, facts }
    }

    /// `dir` itself, or the distribution's folder below it.
    fn root(&self) -> PathBuf {
        let below = self.dir.join(FOLDER);
        if below.join(CLASSES_FILE).is_file() { below } else { self.dir.clone() }
    }

    /// Every wnid with its label.
    fn classes(&self) -> Result<BTreeMap<String, i64>> {
        let path = self.root().join(CLASSES_FILE);
        let mut wnids: Vec<String> = text(&path)?.split_whitespace().map(str::to_owned).collect();
        let all = wnids.len();
        wnids.sort();
        wnids.dedup();
        if wnids.len() != all {
            return Err(Error::file(&path, "names a class twice"));
        }
        let expected = self.facts.classes as usize;
        let fits = if self.partial { (1..=expected).contains(&all) } else { all == expected };
        if let Some(wnid) = wnids.iter().find(|wnid| !is_file_name(wnid)) {
            return Err(Error::file(&path, format!("`{wnid}` is no wnid")));
        }
        if fits { Ok(wnids.into_iter().zip(0..).collect()) } else { Err(self.short(&path, &format!("{all} classes; {expected} expected"))) }
    }

    fn short(&self, path: &Path, problem: &str) -> Error {
        Error::file(path, problem).with_hint("unpack the data set again; if a part of it is meant, set data.allow_partial = true")
    }

    /// Pictures of a split with their labels: the training split's by class, and what is wrong with a class.
    fn parts(&self, split: Split) -> Result<Vec<Result<Labelled>>> {
        Ok(match split {
            Split::Train => self.classes()?.iter().map(|(wnid, label)| self.of_class(wnid, *label)).collect(),
            Split::Test => vec![self.validation()],
        })
    }

    fn of_class(&self, wnid: &str, label: i64) -> Result<Labelled> {
        let folder = self.root().join("train").join(wnid).join("images");
        let entries = std::fs::read_dir(&folder).map_err(|e| Error::open(&folder, &e))?;
        let is_picture = |path: &PathBuf| path.extension().is_some_and(|e| e == "JPEG");
        let mut pictures: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).filter(is_picture).collect();
        pictures.sort();
        if pictures.is_empty() || (pictures.len() != TRAIN_OF_A_CLASS && !self.partial) {
            return Err(self.short(&folder, &format!("{} images; {TRAIN_OF_A_CLASS} expected", pictures.len())));
        }
        Ok(pictures.into_iter().map(|path| (path, label)).collect())
    }

    fn validation(&self) -> Result<Labelled> {
        let (classes, folder) = (self.classes()?, self.root().join("val"));
        let path = folder.join("val_annotations.txt");
        let mut all = Vec::new();
        for (number, line) in text(&path)?.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let wrong = |problem: String| Error::file(&path, format!("line {}: {problem}", number + 1));
            let mut words = line.split('\t');
            let (Some(name), Some(wnid)) = (words.next().filter(|name| is_file_name(name)), words.next()) else {
                return Err(wrong("a file name, a tabulator and a wnid expected".into()));
            };
            let label =
                classes.get(wnid.trim()).ok_or_else(|| wrong(format!("`{}` is none of the classes of {CLASSES_FILE}", wnid.trim())))?;
            all.push((folder.join("images").join(name), *label));
        }
        if all.is_empty() || (all.len() != VALIDATION && !self.partial) {
            return Err(self.short(&path, &format!("{} images; {VALIDATION} expected", all.len())));
        }
        Ok(all)
    }
}

/// A text file; what is not UTF-8 in it names no file.
fn text(path: &Path) -> Result<String> {
    Ok(String::from_utf8_lossy(&files::read(path)?).into_owned())
}

fn is_file_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(std::path::Component::Normal(_)), None))
}

impl DatasetSource for TinyImagenet {
    fn read(&self, split: Split) -> Result<Dataset> {
        let parts = self.parts(split)?.into_iter().collect::<Result<Vec<_>>>()?;
        let (paths, labels): (Vec<PathBuf>, Vec<i64>) = parts.into_iter().flatten().unzip();
        Ok(Dataset { images_nchw: read_all(&paths, &self.facts)?, labels_n: Tensor::from_slice(&labels) })
    }

    fn is_here(&self) -> bool {
        self.root().join(CLASSES_FILE).is_file()
    }

    /// Looks at every class and at every picture by itself before it looks at them together.
    fn survey(&self, split: Split) -> std::result::Result<String, Vec<Error>> {
        let mut wrong = Vec::new();
        for part in self.parts(split).map_err(|error| vec![error])? {
            match part {
                Ok(pictures) => {
                    wrong.extend(pictures.iter().filter_map(|(path, _)| read_all(std::slice::from_ref(path), &self.facts).err()))
                }
                Err(error) => wrong.push(error),
            }
        }
        if wrong.is_empty() { of_whole(self, split) } else { Err(wrong) }
    }

    /// The first word for each class of `words.txt`, where there is one.
    fn class_names(&self) -> Result<Vec<String>> {
        let words = text(&self.root().join("words.txt")).unwrap_or_default();
        let named: BTreeMap<&str, &str> = words.lines().filter_map(|line| line.split_once('\t')).collect();
        let name =
            |wnid: String| named.get(wnid.as_str()).and_then(|names| names.split(',').next()).map_or(wnid.clone(), |n| n.trim().to_owned());
        Ok(self.classes()?.into_keys().map(name).collect())
    }
}
