//! What a folder holds of the data sets known here, and what is wrong with it.

use super::{Dataset, DatasetSource, Split, source};
use crate::config::{Data, DatasetName};
use crate::error::Error;
use std::collections::BTreeSet;
use std::path::Path;
use tch::Kind;

/// A line for each split that is whole, and an error for everything that is not.
pub struct Survey {
    /// For people.
    pub lines: Vec<String>,
    /// All that is missing or damaged.
    pub wrong: Vec<Error>,
}

/// Looks for every data set in `dir`; with `allow_partial`, for parts of one too.
pub fn survey(dir: &Path, allow_partial: bool) -> Survey {
    let config = Data { dir: Some(dir.into()), allow_partial, ..Data::default() };
    let title_of = |name: DatasetName| match name {
        // Nothing in their files tells them apart.
        DatasetName::Mnist => None,
        DatasetName::FashionMnist => Some("fashion_mnist or mnist"),
        other => Some(other.name()),
    };
    let mut found = Survey { lines: Vec::new(), wrong: Vec::new() };
    for name in DatasetName::ALL {
        let Some(title) = title_of(name) else { continue };
        let Some(source) = source(name, &config).filter(|source| source.is_here()) else { continue };
        for (split, word) in [(Split::Train, "training"), (Split::Test, "test")] {
            match source.survey(split) {
                Ok(line) => found.lines.push(format!("{title}, {word} split: {line}")),
                Err(wrong) => found.wrong.extend(wrong),
            }
        }
    }
    // Both splits miss what they share.
    let mut said = BTreeSet::new();
    found.wrong.retain(|error| said.insert(error.to_string()));
    found
}

/// What a split that can be read holds, or why it cannot be.
pub(super) fn of_whole(source: &(impl DatasetSource + ?Sized), split: Split) -> Result<String, Vec<Error>> {
    source.read(split).map(|data| described(&data)).map_err(|error| vec![error])
}

/// Sizes and labels of images in memory.
pub(super) fn described(data: &Dataset) -> String {
    let [n, c, h, w] = <[i64; 4]>::try_from(data.images_nchw.size()).unwrap_or_default();
    let counts = Vec::<i64>::try_from(data.labels_n.to_kind(Kind::Int64).bincount(None::<&tch::Tensor>, 0)).unwrap_or_default();
    let (least, most) = (counts.iter().min().copied().unwrap_or(0), counts.iter().max().copied().unwrap_or(0));
    let (channels, last) = (if c == 1 { "channel" } else { "channels" }, counts.len() - 1);
    format!("{n} images of {w}×{h} in {c} {channels}; labels 0 to {last}, {least} to {most} images each")
}
