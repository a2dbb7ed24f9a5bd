//! What differs between classifying images, labelling pixels and having no labels at all, in one place: nothing outside this file
//! asks which it is. (`config` lies below: it says by name to which data sets `inversion.regions` belongs, and a test here holds it to that.)
//!
//! Logits are `[b, k]` or `[b, k, h, w]`; targets, predictions and confidences are `[b]` or `[b, h, w]`.

use crate::config::{DatasetName, ModelName};
use crate::device::upload;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

/// Mean over everything but the batch: `[b, …]` → `[b]`.
pub fn per_sample(values: &Tensor) -> Tensor {
    if values.dim() == 1 { values.shallow_clone() } else { values.flatten(1, -1).mean_dim(1, false, Kind::Float) }
}

/// A map `[b, k, h', w']` brought to the images' size, bilinearly with corners not aligned, as DeepLab's head is; logits of images, and
/// a map of that size, as they are.
pub fn at_size(logits: &Tensor, images_bchw: &Tensor) -> Tensor {
    match (&logits.size()[..], &images_bchw.size()[..]) {
        ([_, _, from @ ..], [_, _, to @ ..]) if !from.is_empty() && from != to => {
            // libtorch's gradient on GPUs adds in any order.
            let by_products = logits.device() != Device::Cpu && logits.requires_grad();
            if by_products { resized(logits, to) } else { logits.upsample_bilinear2d(to, false, None, None) }
        }
        _ => logits.shallow_clone(),
    }
}

/// `upsample_bilinear2d` without aligned corners, as two matrix products.
fn resized(map_bkhw: &Tensor, to: &[i64]) -> Tensor {
    let weights = |axis: usize| {
        let (from, to) = (map_bkhw.size()[2 + axis], to[axis]);
        let places = (0..to).map(|i| (i as f64 + 0.5) * from as f64 / to as f64 - 0.5);
        upload(&Tensor::from_slice(&linear_weights(places, from)).view([to, from]), map_bkhw.device())
    };
    weights(0).matmul(&map_bkhw.to_kind(Kind::Float)).matmul(&weights(1).transpose(0, 1)).to_kind(map_bkhw.kind())
}

/// Weights that interpolate linearly between `whole` values at `places`, 0 to `whole` − 1 and held beyond: a row for each place.
pub fn linear_weights(places: impl Iterator<Item = f64>, whole: i64) -> Vec<f32> {
    let mut rows = Vec::new();
    for place in places {
        let place = place.clamp(0.0, (whole - 1) as f64);
        let (left, share) = (place.floor(), place.fract());
        rows.extend((0..whole).map(|at| match at as f64 - left {
            0.0 => (1.0 - share) as f32,
            1.0 => share as f32,
            _ => 0.0,
        }));
    }
    rows
}

/// One target per image, given to every pixel where logits are dense; targets of pixels as they are.
pub fn spread(targets: Tensor, logits: &Tensor) -> Tensor {
    match logits.size()[..] {
        [b, _, h, w] if targets.dim() == 1 => targets.view([b, 1, 1]).expand([b, h, w], false),
        _ => targets,
    }
}

/// How many samples (pixels) of each image were given to each category that occurs in it: (category, count), ascending.
pub fn class_counts(predicted: &Tensor) -> Vec<Vec<(u32, u32)>> {
    let per_image = predicted.flatten(0, -1).numel() / predicted.size()[0].max(1) as usize;
    let all = Vec::<i64>::try_from(predicted.flatten(0, -1)).unwrap_or_default();
    all.chunks(per_image.max(1))
        .map(|image| {
            let mut counts = std::collections::BTreeMap::new();
            image.iter().for_each(|&class| *counts.entry(class as u32).or_insert(0) += 1);
            counts.into_iter().collect()
        })
        .collect()
}

/// (Category, count) pairs of any number of images, added up by category.
pub fn total_counts<'a>(pairs: impl IntoIterator<Item = &'a (u32, u32)>, classes: usize) -> Vec<u64> {
    let mut counts_k = vec![0; classes];
    for (class, count) in pairs {
        counts_k[*class as usize] += u64::from(*count);
    }
    counts_k
}

/// What labels are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Images.
    Images,
    /// Pixels.
    Pixels,
    /// Nothing: there is no data. Networks label images, and the student is held against the teacher.
    Nothing,
}

impl Task {
    const ALL: [Self; 3] = [Self::Images, Self::Pixels, Self::Nothing];

    /// What a data set labels.
    pub fn of(dataset: DatasetName) -> Self {
        match dataset {
            DatasetName::Cifar10 | DatasetName::Cifar100 | DatasetName::FashionMnist | DatasetName::Mnist => Self::Images,
            DatasetName::Svhn | DatasetName::TinyImagenet | DatasetName::Folder => Self::Images,
            DatasetName::Nyuv2 | DatasetName::Scenes13 => Self::Pixels,
            DatasetName::None => Self::Nothing,
        }
    }

    /// The trained network's score: where `report.json` has it, and what a table of per cents calls it.
    pub fn score(self) -> (&'static str, &'static str) {
        match self {
            Self::Images => ("student.top1", "top-1, %"),
            Self::Pixels => ("student.miou", "mIoU, %"),
            Self::Nothing => ("student.agreement", "agreement, %"),
        }
    }

    /// The score in `metrics.csv`.
    pub fn column(self) -> String {
        self.score().0.replace('.', "_")
    }

    /// Scores of nothing at all.
    pub fn blank(self) -> Scores {
        let counts = match self {
            Self::Images => Counts::Images { total: 0, first: 0, fifth: 0 },
            Self::Pixels => Counts::Pixels { images: 0, pixels: 0, confusion: Vec::new() },
            Self::Nothing => Counts::Agreement { images: 0, same: 0, confidence: Vec::new() },
        };
        Scores { divergence: (self == Self::Nothing).then_some(0.0), ..counts.scores() }
    }

    /// Whether images with labels exist, to train on and to score by.
    pub fn has_data(self) -> bool {
        self != Self::Nothing
    }

    /// Into how many regions, each with a category drawn for it, new images are divided, of as many as asked for.
    pub fn regions(self, wanted: usize) -> usize {
        if self == Self::Pixels { wanted } else { 1 }
    }

    /// Whether what a network says of a picture is a map, a file of its own for each.
    pub fn gives_maps(self) -> bool {
        self == Self::Pixels
    }

    /// What a table of per cents calls a score that a plan names; the name itself where no task has it.
    pub fn unit(metric: &str) -> &str {
        Self::ALL.into_iter().map(Self::score).find(|(name, _)| *name == metric).map_or(metric, |(_, unit)| unit)
    }

    /// What a network labels.
    pub fn of_model(model: ModelName) -> Self {
        match model {
            ModelName::Deeplabv3Resnet50 | ModelName::Deeplabv3Mobilenet => Self::Pixels,
            _ => Self::Images,
        }
    }

    /// Rows of a picture of the buffer: of classified images as they are; of scenes two in each row, each followed by the maps that
    /// `look` gives of it.
    pub fn pictured(self, rows: Vec<Vec<Option<Tensor>>>, look: impl Fn(&Tensor) -> Vec<Tensor>) -> Vec<Vec<Option<Tensor>>> {
        let with_maps = |image: Tensor| std::iter::once(image.shallow_clone()).chain(look(&image)).map(Some).collect::<Vec<_>>();
        match self {
            Self::Images | Self::Nothing => rows,
            Self::Pixels => rows.into_iter().map(|row| row.into_iter().flatten().take(2).flat_map(with_maps).collect()).collect(),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Images => "images",
            Self::Pixels => "pixels",
            Self::Nothing => "nothing",
        }
    }

    /// What networks for a data set label.
    fn of_networks(self) -> Self {
        if self == Self::Nothing { Self::Images } else { self }
    }

    /// Refuses a network, named by `key`, that does not label what the data set labels.
    ///
    /// # Errors
    /// [`Error::Config`] with the networks that do.
    pub fn check(dataset: DatasetName, key: &str, model: ModelName) -> Result<()> {
        let (wanted, found) = (Self::of(dataset).of_networks(), Self::of_model(model));
        if wanted == found {
            return Ok(());
        }
        let legal: Vec<&str> = ModelName::BUILT_IN.into_iter().filter(|m| Self::of_model(*m) == wanted).map(ModelName::name).collect();
        let has = if Self::of(dataset) == wanted { "has labels of" } else { "is for networks that label" };
        let (model, dataset) = (model.name(), dataset.name());
        let text = format!("{model} labels {}, {dataset} {has} {}: use {}", found.name(), wanted.name(), legal.join(", "));
        Err(Error::config(key, text))
    }
}

/// Target of what bears no label: PyTorch's own choice, which its cross entropy leaves out.
pub const IGNORED: i64 = -100;
/// The same in files.
pub const UNLABELLED: u8 = 255;

/// Labels as losses take them, i64: maps of bytes with their unlabelled places marked [`IGNORED`], others as they are.
pub fn targets(labels: &Tensor) -> Tensor {
    if labels.kind() != Kind::Uint8 {
        return labels.shallow_clone();
    }
    let wide = labels.to_kind(Kind::Int64);
    wide.masked_fill(&wide.eq(i64::from(UNLABELLED)), IGNORED)
}

/// Labels of images that were moved: those of pixels move along, those of images stay.
pub fn moved(labels: Tensor, way: impl FnOnce(&Tensor) -> Tensor) -> Tensor {
    if labels.dim() == 1 { labels } else { way(&labels) }
}

/// What is expected of a network's logits on a batch.
pub enum Expected {
    /// Labels as losses take them, i64: those of [`targets`].
    Labels(Tensor),
    /// To be those of another network.
    Logits(Tensor),
}

/// What a network says of one image.
pub enum Prediction {
    /// A category and its probability.
    Category(i64, f64),
    /// A category for each pixel, i64 `[h, w]`.
    Map(Tensor),
}

/// Of a batch, from the predicted categories and their probabilities.
pub fn predictions(predicted: &Tensor, confidence: &Tensor) -> Vec<Prediction> {
    let one = |i: i64| match predicted.dim() {
        1 => Prediction::Category(predicted.int64_value(&[i]), confidence.double_value(&[i])),
        _ => Prediction::Map(predicted.get(i)),
    };
    (0..predicted.size()[0]).map(one).collect()
}

/// Exact counts from which scores are computed. Counts of several batches add up in any order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Counts {
    /// Of images.
    Images {
        /// Labelled images.
        total: u64,
        /// Images whose label has the largest logit.
        first: u64,
        /// Images whose label is among the five largest logits.
        fifth: u64,
    },
    /// Of pixels.
    Pixels {
        /// Images.
        images: u64,
        /// Pixels, unlabelled ones too.
        pixels: u64,
        /// Labelled pixels by label (row) and predicted category (column), k×k.
        confusion: Vec<u64>,
    },
    /// Of images without labels that two networks have seen.
    Agreement {
        /// Images.
        images: u64,
        /// Images in which both see the same category.
        same: u64,
        /// Images by the other network's confidence, in [`CONFIDENCE_BINS`] equal parts of 0..1.
        confidence: Vec<u64>,
    },
}

/// Bars of a histogram of confidences.
pub const CONFIDENCE_BINS: usize = 20;

/// How many confidences lie in each of [`CONFIDENCE_BINS`] equal parts of 0..1; 1 itself belongs to the last.
pub fn confidence_counts(confidences: impl IntoIterator<Item = f32>) -> Vec<u64> {
    let mut counts = vec![0; CONFIDENCE_BINS];
    for confidence in confidences {
        counts[((confidence * CONFIDENCE_BINS as f32) as usize).min(CONFIDENCE_BINS - 1)] += 1;
    }
    counts
}

impl Counts {
    /// Of one batch and what is expected of it.
    pub fn of(logits: &Tensor, expected: &Expected) -> Self {
        match expected {
            Expected::Labels(labels) => Self::of_labels(logits, labels),
            Expected::Logits(others) => Self::of_two(logits, others),
        }
    }

    fn of_two(logits: &Tensor, others: &Tensor) -> Self {
        let (confidence, category) = others.softmax(1, Kind::Float).max_dim(1, false);
        let same = logits.argmax(1, false).eq_tensor(&category).sum(Kind::Int64).int64_value(&[]) as u64;
        let confidence = confidence_counts(Vec::<f32>::try_from(confidence.flatten(0, -1)).unwrap_or_default());
        Self::Agreement { images: category.numel() as u64, same, confidence }
    }

    /// Labels are i64, [`IGNORED`] where there is none.
    fn of_labels(logits: &Tensor, labels: &Tensor) -> Self {
        let classes = logits.size()[1];
        if labels.dim() == 1 {
            let (_, best) = logits.topk(classes.min(5), 1, true, true);
            let hit = best.eq_tensor(&labels.unsqueeze(1));
            let count = |t: Tensor| t.to_kind(Kind::Int64).sum(Kind::Int64).int64_value(&[]) as u64;
            return Self::Images { total: labels.numel() as u64, first: count(hit.narrow(1, 0, 1)), fifth: count(hit) };
        }
        let cells = (labels * classes + logits.argmax(1, false)).masked_select(&labels.ge(0));
        let confusion = Vec::<i64>::try_from(cells.bincount(None::<&Tensor>, classes * classes)).unwrap_or_default();
        Self::Pixels {
            images: labels.size()[0] as u64,
            pixels: labels.numel() as u64,
            confusion: confusion.into_iter().map(|n| n as u64).collect(),
        }
    }

    /// Images.
    pub fn images(&self) -> u64 {
        match self {
            Self::Images { total, .. } => *total,
            Self::Pixels { images, .. } | Self::Agreement { images, .. } => *images,
        }
    }

    /// As numbers, on their way to other ranks.
    pub fn words(&self) -> Vec<u64> {
        match self {
            Self::Images { total, first, fifth } => vec![0, *total, *first, *fifth],
            Self::Pixels { images, pixels, confusion } => [&[1, *images, *pixels][..], confusion].concat(),
            Self::Agreement { images, same, confidence } => [&[2, *images, *same][..], confidence].concat(),
        }
    }

    /// Back from [`Counts::words`].
    pub fn from_words(words: &[u64]) -> Option<Self> {
        match *words {
            [0, total, first, fifth] => Some(Self::Images { total, first, fifth }),
            [1, images, pixels, ref confusion @ ..] => Some(Self::Pixels { images, pixels, confusion: confusion.to_vec() }),
            [2, images, same, ref confidence @ ..] => Some(Self::Agreement { images, same, confidence: confidence.to_vec() }),
            _ => None,
        }
    }

    /// Of two parts of what was scored.
    pub fn plus(self, other: Self) -> Self {
        let sum: Vec<u64> = self.words().iter().zip(other.words()).map(|(a, b)| a + b).collect();
        // Their first word says what they are of.
        Self::from_words(&[&self.words()[..1], &sum[1..]].concat()).unwrap_or(self)
    }

    /// What they come to.
    pub fn scores(&self) -> Scores {
        match self {
            Self::Images { total, first, fifth } => {
                let share = |n: &u64| Some(*n as f64 / (*total).max(1) as f64);
                Scores { top1: share(first), top5: share(fifth), ..Scores::default() }
            }
            Self::Agreement { images, same, confidence } => Scores {
                agreement: Some(*same as f64 / (*images).max(1) as f64),
                confidence_counts: Some(confidence.clone()),
                ..Scores::default()
            },
            Self::Pixels { pixels, confusion, .. } => {
                let classes = confusion.len().isqrt();
                let hit = |c: usize| confusion[c * classes + c];
                let iou = |c: usize| {
                    let row: u64 = confusion[c * classes..][..classes].iter().sum();
                    let column: u64 = confusion.iter().skip(c).step_by(classes).sum();
                    hit(c) as f64 / ((row + column - hit(c)) as f64 + 1e-9)
                };
                let class_iou: Vec<f64> = (0..classes).map(iou).collect();
                Scores {
                    miou: Some(class_iou.iter().sum::<f64>() / classes.max(1) as f64),
                    pixel_accuracy: Some((0..classes).map(hit).sum::<u64>() as f64 / (*pixels).max(1) as f64),
                    class_iou: Some(class_iou),
                    ..Scores::default()
                }
            }
        }
    }
}

/// Scores on a test split, in 0..1, or against the teacher where there is none; those of other tasks are absent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Scores {
    /// Share of test images classified rightly.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top1: Option<f64>,
    /// Share of test images whose label is among the five largest logits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top5: Option<f64>,
    /// Mean of `class_iou` over all classes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub miou: Option<f64>,
    /// Share of all pixels that are labelled and predicted rightly: unlabelled ones count as wrong, as in zju-vipa/Fast-Datafree.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pixel_accuracy: Option<f64>,
    /// Intersection over union of each class: pixels of it that are predicted so / pixels of it or predicted so. Classes that never
    /// occur have 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class_iou: Option<Vec<f64>>,
    /// Share of fresh synthetic images in which the student sees the teacher's category.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agreement: Option<f64>,
    /// Mean of KL(teacher ‖ student) on them at temperature 1, in nats.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub divergence: Option<f64>,
    /// How many of them the teacher is how sure of: images by its confidence, in equal parts of 0..1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confidence_counts: Option<Vec<u64>>,
}

/// The largest of several evaluations. Chosen on the test split: quote the last score.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Best {
    /// Largest top-1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top1_best: Option<f64>,
    /// Largest mIoU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub miou_best: Option<f64>,
    /// Largest agreement.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agreement_best: Option<f64>,
}

impl Best {
    /// With one evaluation more.
    pub fn and(self, scores: &Scores) -> Self {
        // `None` is less than any number.
        let larger = |a: Option<f64>, b: Option<f64>| if b > a { b } else { a };
        Self {
            top1_best: larger(self.top1_best, scores.top1),
            miou_best: larger(self.miou_best, scores.miou),
            agreement_best: larger(self.agreement_best, scores.agreement),
        }
    }

    /// The one there is.
    pub fn headline(&self) -> Option<Headline> {
        let Self { top1_best: top1, miou_best: miou, agreement_best: agreement } = *self;
        Scores { top1, miou, agreement, ..Scores::default() }.headline()
    }
}

/// The score a network is quoted by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Headline {
    /// For people.
    pub name: &'static str,
    /// Name with its unit, for an axis.
    pub axis: &'static str,
    /// In 0..1.
    pub share: f64,
    /// In the axis' unit.
    pub value: f64,
}

impl Headline {
    /// The value with its unit.
    pub fn text(&self) -> String {
        let (value, digits) = (self.value, self.digits());
        if self.is_per_cent() { format!("{value:.digits$} %") } else { format!("{value:.digits$}") }
    }

    /// Digits behind the point that tell values apart: shares have four, per cents two.
    pub fn digits(&self) -> usize {
        if self.is_per_cent() { 2 } else { 4 }
    }

    fn is_per_cent(&self) -> bool {
        self.axis.ends_with('%')
    }
}

impl Scores {
    /// Top-1 in per cent, or mIoU as a fraction, as publications quote them; or else the agreement with the teacher in per cent.
    pub fn headline(&self) -> Option<Headline> {
        match (self.top1, self.miou, self.agreement) {
            (Some(share), ..) => Some(Headline { name: "top-1", axis: "top-1, %", share, value: 100.0 * share }),
            (_, Some(share), _) => Some(Headline { name: "mIoU", axis: "mIoU", share, value: share }),
            (_, _, Some(share)) => Some(Headline { name: "agreement", axis: "agreement, %", share, value: 100.0 * share }),
            _ => None,
        }
    }

    /// What a picture of new images shows beside each ([`Task::pictured`]), as the end of a caption.
    pub fn beside_images(&self) -> &'static str {
        if self.class_iou.is_some() { "; beside each image the labels that teacher and student give it" } else { "" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a configuration's key says of the data sets it is for is what the task does.
    #[test]
    fn regions_are_for_data_sets_with_labels_of_pixels() {
        for dataset in DatasetName::ALL {
            assert_eq!(Task::of(dataset).regions(5) == 1, dataset.ignores("inversion.regions"), "{dataset:?}");
        }
    }

    #[test]
    fn top1_and_top5_count_images() {
        let logits = Tensor::from_slice(&[9f32, 1., 2., 3., 4., 5., 0., 9., 8., 7., 6., 5.]).view([2, 6]);
        let labels = Expected::Labels(Tensor::from_slice(&[0i64, 0]));
        assert_eq!(Counts::of(&logits, &labels), Counts::Images { total: 2, first: 1, fifth: 1 });
    }

    /// Confidences 1/3, 1/(1 + 2/e), almost 1: the seventh, the twelfth and the last bar of twenty.
    #[test]
    fn two_networks_agree_where_they_see_the_same() {
        let teacher = Tensor::from_slice(&[0f32, 0., 0., 0., 1., 0., 90., 0., 0.]).view([3, 3]);
        let student = Tensor::from_slice(&[5f32, 1., 1., 9., 8., 0., 0.2, 0.1, 0.]).view([3, 3]);
        let counts = Counts::of(&student, &Expected::Logits(teacher));
        let Counts::Agreement { images: 3, same: 2, confidence } = &counts else { panic!("{counts:?}") };
        let filled: Vec<usize> = (0..CONFIDENCE_BINS).filter(|&bin| confidence[bin] == 1).collect();
        assert_eq!((filled, confidence.iter().sum::<u64>()), (vec![6, 11, 19], 3));
        let scores = Counts::from_words(&counts.words()).unwrap().plus(counts).scores();
        assert_eq!((scores.agreement, scores.top1), (Some(2.0 / 3.0), None));
        let headline = scores.headline().unwrap();
        assert_eq!((headline.name, headline.text().as_str()), ("agreement", "66.67 %"));
    }

    /// The example of the published evaluation: rows are labels, unlabelled pixels count in the accuracy only, and there as wrong.
    #[test]
    fn unlabelled_pixels_count_as_the_published_evaluation_counts_them() {
        let predicted = Tensor::from_slice(&[0i64, 1, 1, 2, 2, 0]).view([1, 2, 3]);
        let logits = predicted.one_hot(3).permute([0, 3, 1, 2]).to_kind(Kind::Float);
        let labels = targets(&Tensor::from_slice(&[0u8, 1, 0, 255, 1, 0]).view([1, 2, 3]));
        let counts = Counts::of(&logits, &Expected::Labels(labels.shallow_clone()));
        let Counts::Pixels { images: 1, pixels: 6, confusion } = &counts else { panic!("{counts:?}") };
        assert_eq!(confusion, &[2, 1, 0, 0, 1, 1, 0, 0, 0]);
        let scores = counts.scores();
        let round = |x: f64| (x * 1e4).round() / 1e4;
        assert_eq!(scores.class_iou.unwrap().into_iter().map(round).collect::<Vec<_>>(), [0.6667, 0.3333, 0.0]);
        assert_eq!((round(scores.miou.unwrap()), scores.pixel_accuracy), (0.3333, Some(0.5)));

        // Two such images count twice, by whatever rank.
        let twice = Counts::from_words(&counts.words()).unwrap().plus(counts.clone());
        let both = |t: &Tensor| Tensor::cat(&[t, t], 0);
        assert_eq!(twice, Counts::of(&both(&logits), &Expected::Labels(both(&labels))));
    }

    #[test]
    fn maps_grow_to_the_images_and_nothing_else_does() {
        let images = Tensor::zeros([2, 3, 4, 6], (Kind::Float, Device::Cpu));
        let map = Tensor::from_slice(&[1f32, 3.]).view([1, 1, 1, 2]).expand([2, 1, 2, 2], false);
        // Corners not aligned: the two values stand at columns 1 and 4 of six, and hold to the edges.
        let row = Vec::<f32>::try_from(at_size(&map, &images).get(0).get(0).get(2)).unwrap();
        for (got, want) in row.iter().zip([1.0, 1.0, 5.0 / 3.0, 7.0 / 3.0, 3.0, 3.0]) {
            assert!((got - want).abs() < 1e-6, "{row:?}");
        }
        let flat = Tensor::zeros([2, 5], (Kind::Float, Device::Cpu));
        assert_eq!(at_size(&flat, &images).size(), [2, 5]);
    }

    /// The way a GPU takes, on the CPU.
    #[test]
    fn matrix_products_interpolate_as_libtorch_does() {
        let map = Tensor::arange(2 * 3 * 5 * 4, (Kind::Float, Device::Cpu)).sin().view([2, 3, 5, 4]);
        for to in [[10, 8], [13, 4], [5, 9], [3, 2]] {
            assert!(resized(&map, &to).allclose(&map.upsample_bilinear2d(to, false, None, None), 1e-5, 1e-6, false), "{to:?}");
        }
    }

    #[test]
    fn networks_are_held_against_what_is_labelled() {
        Task::check(DatasetName::Cifar10, "teacher.model", ModelName::Wrn40x2).unwrap();
        Task::check(DatasetName::Nyuv2, "teacher.model", ModelName::Deeplabv3Resnet50).unwrap();
        let text = Task::check(DatasetName::Nyuv2, "student.model", ModelName::Vgg11).unwrap_err().to_string();
        let want = "student.model: vgg11 labels images, nyuv2 has labels of pixels: use deeplabv3_resnet50, deeplabv3_mobilenet";
        assert_eq!(text, want);
        Task::check(DatasetName::None, "teacher.model", ModelName::Wrn40x2).unwrap();
        let text = Task::check(DatasetName::None, "teacher.model", ModelName::Deeplabv3Mobilenet).unwrap_err().to_string();
        assert!(text.contains("deeplabv3_mobilenet labels pixels, none is for networks that label images: use resnet18"), "{text}");
    }

    #[test]
    fn pixels_are_counted_per_image() {
        let predicted = Tensor::from_slice(&[2i64, 0, 2, 2, 1, 1, 1, 1]).view([2, 2, 2]);
        assert_eq!(class_counts(&predicted), [vec![(0, 1), (2, 3)], vec![(1, 4)]]);
        assert_eq!(class_counts(&Tensor::from_slice(&[3i64, 0])), [vec![(3, 1)], vec![(0, 1)]]);
    }
}
