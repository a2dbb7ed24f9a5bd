//! What a configuration has to say of images that no published data set describes: in the configuration, in what the teacher's weights
//! file says of itself, or in the folders of pictures.

use super::{Facts, Fit, described, facts, source};
use crate::config::{Config, DatasetName, MAX_CLASSES};
use crate::error::{Error, Finding, Result};
use crate::nn::weights;
use std::path::Path;

/// Fills in what the configuration of a data set without facts of its own leaves open, so that all of it is known from here on.
///
/// # Errors
/// What is said nowhere, by key; means and deviations that are not as many as channels.
pub fn complete(config: &mut Config) -> Result<()> {
    let (dataset, own) = (config.dataset, facts(config.dataset));
    let data = &mut config.data;
    if own.is_known() {
        check_channels(data.mean.len(), own.channels)?;
        return check_shifts(config);
    }
    let said = config.teacher.weights.as_deref().map(Facts::of_file).transpose()?.flatten().unwrap_or(own);
    let fill = |value: &mut i64, said: i64| *value = if *value == 0 { said } else { *value };
    fill(&mut data.size, if said.size[0] == said.size[1] { said.size[0] } else { 0 });
    if data.mean.is_empty() {
        (data.mean, data.std) = (widened(&said.mean), widened(&said.std));
    }
    fill(&mut data.channels, data.mean.len() as i64);
    if dataset == DatasetName::Folder {
        fill(&mut data.resize, if let Fit::Cropped(side) = said.fit { side } else { 0 });
        fill(&mut data.resize, data.size);
        if data.resize < data.size {
            let problem = format!("{} pixels along the shorter side leave no {} to cut out: use data.size or more", data.resize, data.size);
            return Err(Error::config("data.resize", problem));
        }
        if let (0, Some(source)) = (data.classes, source(dataset, data)) {
            data.classes = source.class_names()?.len() as i64;
        }
    }
    fill(&mut data.classes, said.classes);
    let missing = [("data.size", data.size == 0), ("data.mean", data.mean.is_empty()), ("data.classes", data.classes == 0)];
    let problem =
        || format!("is not set: dataset = \"{}\" has none of its own, and no weights file of the teacher says it", dataset.name());
    let findings: Vec<Finding> = missing.iter().filter(|(_, missing)| *missing).map(|(key, _)| Finding::new(*key, problem())).collect();
    if !findings.is_empty() {
        return Err(Error::Config(findings));
    }
    if dataset == DatasetName::Folder && ![1, 3].contains(&data.channels) {
        let problem = format!("{} of them, but pictures have 1 (grey) or 3 (RGB): data.mean has a value for each", data.channels);
        return Err(Error::config("data.channels", problem));
    }
    check_channels(data.mean.len(), data.channels)?;
    check_shifts(config)
}

/// A shift by as much as an image is wide leaves nothing of it.
fn check_shifts(config: &Config) -> Result<()> {
    let [h, w] = described(config.dataset, &config.data).size;
    let side = h.min(w);
    let [taught, _] = config.teach.seen([side; 2]);
    let shifts = [
        ("inversion.view_shift", config.inversion.view_shift, side),
        ("distill.view_shift", config.distill.view_shift, side),
        ("teach.view_shift", config.teach.view_shift, taught),
    ];
    match shifts.into_iter().find(|&(_, shift, side)| shift >= side) {
        Some((key, shift, side)) => Err(Error::config(key, format!("{shift} pixels shift images of {side} pixels out of sight"))),
        None => Ok(()),
    }
}

fn check_channels(values: usize, channels: i64) -> Result<()> {
    if values == 0 || values as i64 == channels {
        return Ok(());
    }
    Err(Error::config("data.mean", format!("{values} values for images of {channels} channels")))
}

/// Decimals as they were written: 0.1, where the f32 next to it is 0.10000000149.
fn widened(values: &[f32]) -> Vec<f64> {
    values.iter().map(|value| value.to_string().parse().unwrap_or(f64::from(*value))).collect()
}

impl Facts {
    /// What a weights file says of the images it is for, where it does.
    ///
    /// # Errors
    /// As [`weights::says`].
    pub fn of_file(path: &Path) -> Result<Option<Self>> {
        let metadata = weights::says(path)?;
        Ok(Self::of_metadata(|key| metadata.get(key).map(String::as_str)))
    }

    /// From what a weights file says of itself: [`Facts::metadata`] read back. Names of classes are not in it.
    pub fn of_metadata<'a>(of: impl Fn(&str) -> Option<&'a str>) -> Option<Self> {
        let whole = |key| of(key)?.parse::<i64>().ok().filter(|n| (1..=MAX_CLASSES).contains(n));
        let list = |key| of(key)?.split(' ').map(|word| word.parse::<f32>().ok().filter(|v| v.is_finite())).collect::<Option<Vec<_>>>();
        let (size, channels) = ([whole("height")?, whole("width")?], whole("channels")?);
        let (mean, std) = (list("mean")?, list("std")?);
        let fits = |values: &[f32]| values.len() as i64 == channels;
        let resize = whole("resize").unwrap_or(size[0].min(size[1]));
        (fits(&mean) && fits(&std)).then_some(())?;
        Some(Self { classes: whole("classes")?, channels, size, padding: 0, fit: Fit::Cropped(resize), mean, std, class_names: Vec::new() })
    }
}
