//! A split of a data set, wherever its images come from.

use super::scenes::Scenes;
use super::{Dataset, Split, source};
use crate::config::{self, DatasetName};
use crate::error::{Error, Result};
use crate::task;
use tch::Tensor;

/// Labelled images.
pub enum Examples {
    /// In memory.
    Held(Dataset),
    /// Drawn anew whenever they are asked for.
    Drawn(Scenes),
}

impl Examples {
    /// Number of images.
    pub fn len(&self) -> usize {
        match self {
            Self::Held(data) => data.len(),
            Self::Drawn(scenes) => scenes.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Some of them by their places: images uint8 `[b, c, h, w]`; labels i64 `[b]`, or `[b, h, w]` with [`task::IGNORED`] where there
    /// is none.
    pub fn rows(&self, places: &[u64]) -> (Tensor, Tensor) {
        let (images, labels) = match self {
            Self::Held(data) => {
                let index = Tensor::from_slice(&places.iter().map(|&place| place as i64).collect::<Vec<_>>());
                (data.images_nchw.index_select(0, &index), data.labels_n.index_select(0, &index))
            }
            Self::Drawn(scenes) => scenes.draw(places),
        };
        (images, task::targets(&labels))
    }
}

/// A split of a data set, read from its files or ready to be drawn.
///
/// # Errors
/// As [`super::DatasetSource::read`].
pub fn open(name: DatasetName, config: &config::Data, split: Split) -> Result<Examples> {
    match (source(name, config), name) {
        (Some(files), _) => files.read(split).map(Examples::Held),
        (_, DatasetName::None) => {
            let problem = "none: there are no images with labels; a run's report.json has the agreement of student and teacher";
            Err(Error::config("dataset", problem))
        }
        _ => Ok(Examples::Drawn(Scenes::new(config, split))),
    }
}
