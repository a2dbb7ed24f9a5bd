//! A folder per class, `train/CLASS/…` and `test/CLASS/…` (or `val/CLASS/…`), with PNG and JPEG pictures at any depth below.
//!
//! Classes are sorted by name, as torchvision's `ImageFolder` has them; hidden files and folders are no part of the data set.

use super::picture::{read_all, read_picture};
use super::{Dataset, DatasetSource, Facts, Split};
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};
use tch::Tensor;

/// Endings of pictures that are read, and of those that `ImageFolder` takes too: left out in silence they would change the data set.
const READ: [&str; 3] = ["png", "jpg", "jpeg"];
const UNREAD: [&str; 6] = ["ppm", "bmp", "pgm", "tif", "tiff", "webp"];
/// Folders below a class that are followed: a link may lead in a circle.
const DEPTH: usize = 8;
const HINT: &str = "the pictures of class NAME belong into train/NAME/ and test/NAME/ (or val/NAME/) of --data-dir DIR";

/// The name of a class and its pictures.
type Class = (String, Vec<PathBuf>);

pub(super) struct Folder {
    dir: PathBuf,
    facts: Facts,
}

impl Folder {
    /// Pictures as `facts` has them.
    pub(super) fn new(dir: PathBuf, facts: Facts) -> Self {
        Self { dir, facts }
    }

    fn of(&self, split: Split) -> PathBuf {
        match split {
            Split::Train => self.dir.join("train"),
            Split::Test => {
                ["test", "val"].map(|name| self.dir.join(name)).into_iter().find(|path| path.is_dir()).unwrap_or(self.dir.join("test"))
            }
        }
    }

    /// The pictures of each class of a split, or what is wrong with a class.
    fn parts(&self, split: Split) -> Result<Vec<Result<Class>>> {
        let root = self.of(split);
        let of_class = |name: String| {
            let (folder, mut pictures) = (root.join(&name), Vec::new());
            pictures_below(&folder, DEPTH, &mut pictures)?;
            if pictures.is_empty() {
                return Err(Error::file(&folder, "holds no .png, .jpg or .jpeg file").with_hint(HINT));
            }
            Ok((name, pictures))
        };
        Ok(classes_of(&root)?.into_iter().map(of_class).collect())
    }
}

/// Names of what lies in a folder and is not hidden, sorted: folders and files.
fn entries(folder: &Path) -> Result<(Vec<String>, Vec<String>)> {
    let all = std::fs::read_dir(folder).map_err(|e| Error::open(folder, &e).with_hint(HINT))?;
    let mut names = Vec::new();
    for entry in all {
        let name = entry.map_err(|e| Error::io("read", folder, &e))?.file_name().into_string();
        names.push(name.map_err(|name| Error::file(folder.join(name), "its name is not UTF-8: rename it"))?);
    }
    names.retain(|name| !name.starts_with('.'));
    names.sort();
    Ok(names.into_iter().partition(|name| folder.join(name).is_dir()))
}

fn classes_of(split: &Path) -> Result<Vec<String>> {
    let (classes, _) = entries(split)?;
    if classes.is_empty() { Err(Error::file(split, "holds no folder of a class").with_hint(HINT)) } else { Ok(classes) }
}

fn pictures_below(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<()> {
    let (folders, files) = entries(folder)?;
    for path in files.iter().map(|name| folder.join(name)) {
        let ending = path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
        if UNREAD.contains(&ending.as_str()) {
            return Err(Error::file(&path, format!("a .{ending} file; pictures are read from {}", READ.join(", "))));
        }
        if READ.contains(&ending.as_str()) {
            found.push(path);
        }
    }
    if depth == 0 && !folders.is_empty() {
        return Err(Error::file(folder, format!("folders lie more than {DEPTH} deep below a class")));
    }
    folders.iter().try_for_each(|name| pictures_below(&folder.join(name), depth - 1, found))
}

impl DatasetSource for Folder {
    fn read(&self, split: Split) -> Result<Dataset> {
        let (names, classes) = (self.class_names()?, self.facts.classes);
        if names.len() as i64 != classes {
            return Err(Error::file(&self.dir, format!("holds folders of {} classes; data.classes is {classes}", names.len())));
        }
        let (mut paths, mut labels) = (Vec::new(), Vec::new());
        for (label, class) in self.parts(split)?.into_iter().enumerate() {
            let (_, pictures) = class?;
            labels.extend(std::iter::repeat_n(label as i64, pictures.len()));
            paths.extend(pictures);
        }
        Ok(Dataset { images_nchw: read_all(&paths, &self.facts)?, labels_n: Tensor::from_slice(&labels) })
    }

    fn is_here(&self) -> bool {
        let has_classes = |split| classes_of(&self.of(split)).is_ok();
        !self.dir.join(super::tiny_imagenet::CLASSES_FILE).exists() && [Split::Train, Split::Test].into_iter().any(has_classes)
    }

    /// The same in all splits.
    fn class_names(&self) -> Result<Vec<String>> {
        let splits = [Split::Train, Split::Test].map(|split| self.of(split));
        let mut there = splits.iter().filter(|split| split.is_dir());
        let Some(first) = there.next() else {
            return Err(Error::file(&self.dir, "holds neither train/ nor test/ nor val/").with_hint(HINT));
        };
        let names = classes_of(first)?;
        for other in there {
            let theirs = classes_of(other)?;
            let lone = |of: &[String], beside: &[String], place: &Path, without: &Path| {
                let name = of.iter().find(|name| !beside.contains(name))?;
                Some(Error::file(without, format!("has no class `{name}`, which {} has", place.display())))
            };
            if let Some(error) = lone(&names, &theirs, first, other).or_else(|| lone(&theirs, &names, other, first)) {
                return Err(error.with_hint("the splits of a data set have the same classes"));
            }
        }
        Ok(names)
    }

    /// Looks at every class and at every picture, and resizes none.
    fn survey(&self, split: Split) -> std::result::Result<String, Vec<Error>> {
        self.class_names().map_err(|error| vec![error])?;
        let (mut classes, mut wrong, mut sizes) = (Vec::new(), Vec::new(), Vec::new());
        for class in self.parts(split).map_err(|error| vec![error])? {
            match class {
                Ok(class) => classes.push(class),
                Err(error) => wrong.push(error),
            }
        }
        let as_it_is = Facts { fit: super::Fit::AsIs, channels: 3, ..self.facts.clone() };
        for path in classes.iter().flat_map(|(_, pictures)| pictures) {
            match read_picture(path, &as_it_is) {
                Ok((_, size)) => sizes.push(size),
                Err(error) => wrong.push(error),
            }
        }
        if !wrong.is_empty() {
            return Err(wrong);
        }
        let range = |of: fn(&(usize, usize)) -> usize| {
            let all = sizes.iter().map(of);
            (all.clone().min().unwrap_or(0), all.max().unwrap_or(0))
        };
        let ((w0, w1), (h0, h1)) = (range(|size| size.0), range(|size| size.1));
        let counts = || classes.iter().map(|(_, pictures)| pictures.len());
        let (least, most) = (counts().min().unwrap_or(0), counts().max().unwrap_or(0));
        let (first, last) = (&classes[0].0, &classes[classes.len() - 1].0);
        let k = classes.len();
        Ok(format!(
            "{} pictures of {w0} to {w1} × {h0} to {h1}; {k} classes, {first} to {last}, {least} to {most} pictures each",
            sizes.len()
        ))
    }
}
