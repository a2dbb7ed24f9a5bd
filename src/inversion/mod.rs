//! Data inversion: a generator, or the pixels themselves, are pushed for a few steps to make images on which the teacher's batch-norm
//! statistics, its labels and the student's disagreement say "useful". Knows nothing of ranks: it works for one logical rank.

mod canvas;
mod contrast;
mod generator;
mod recipe;
mod sight;

pub use contrast::Contrast;
pub use generator::SharedGenerator;
pub use recipe::{COLUMNS, Disagreement, Keep, Labels, Recipe, Share, Start, Synthesis, Term, Views};

use crate::config;
use crate::data::{Normalise, View, apply_views, to_bytes, to_unit};
use crate::device::upload;
use crate::error::Result;
use crate::layout::LogicalRank;
use crate::losses::{Modulation, StatisticsAverage, kl_divergence, predicted_and_confidence};
use crate::models::{Network, Output};
use crate::nn::{Entries, InputStatistics, Pass, State, Stateful};
use crate::parallel::made_progress;
use crate::rng::{Key, Purpose};
use crate::task;
use crate::teacher::Teacher;
use canvas::Canvas;
use sight::Sight;
use tch::{Kind, Tensor};

/// New samples of one logical rank, as they enter the memory.
pub struct Samples {
    /// `[b, c, h, w]`, uint8 or f32 in [0, 1], as the memory holds them.
    pub images_bchw: Tensor,
    /// The teacher's logits of every stored view, `[b, v, k, …]`, before they are brought to the images' size; v may be 0.
    pub view_logits: Tensor,
    /// Samples (pixels) per predicted category, for each image.
    pub class_counts: Vec<Vec<(u32, u32)>>,
    /// The teacher's confidence (mean over pixels).
    pub confidence: Vec<f32>,
    /// δ with w = 1: KL(teacher ‖ student).
    pub delta: Vec<f64>,
    /// Id of the first sample; the others follow. Ids are unique over the run and all ranks.
    pub first_id: u64,
}

impl Samples {
    /// By name, for a look at them from outside.
    pub fn tensors(&self) -> Vec<(&'static str, Tensor)> {
        let ids: Vec<i64> = (0..self.delta.len() as i64).map(|i| self.first_id as i64 + i).collect();
        vec![
            ("images", self.images_bchw.shallow_clone()),
            ("targets", self.view_logits.shallow_clone()),
            ("ids", Tensor::from_slice(&ids)),
            ("delta", Tensor::from_slice(&self.delta)),
        ]
    }
}

/// What one synthesis call of one logical rank gives.
pub struct Batch {
    /// What the shared generator is to take from it, flat, to be summed over the logical ranks: see [`Share`]. Not finite where
    /// something in the call was not.
    pub shared: Tensor,
    /// The images, where the method keeps them.
    pub samples: Option<Samples>,
    /// Terms of the last inner step by column, f64 `[COLUMNS]`.
    pub terms: Tensor,
}

/// What inversion keeps of one logical rank from call to call. Checkpointed, never reduced.
pub struct Local {
    /// Averages of the statistics loss.
    pub average: StatisticsAverage,
    /// Head and memory of the contrastive loss, where the method has one.
    pub contrast: Option<Contrast>,
}

/// A [`Local`] before a call, to go back to.
pub struct Before {
    average: StatisticsAverage,
    head: Option<Entries>,
}

impl Local {
    /// As it is now.
    pub fn before(&self) -> Before {
        Before { average: self.average.snapshot(), head: self.contrast.as_ref().map(Contrast::head) }
    }

    /// The call counts.
    pub fn settle(&mut self) {
        self.contrast.iter_mut().for_each(Contrast::settle);
    }

    /// It does not.
    pub fn go_back(&mut self, before: Before) -> Result<()> {
        self.average = before.average;
        self.contrast.as_mut().zip(before.head).map_or(Ok(()), |(contrast, head)| contrast.go_back(&head))
    }
}

impl Stateful for Local {
    fn save(&self, into: &mut Entries) {
        into.save("average", &self.average);
        if let Some(contrast) = &self.contrast {
            into.save("contrast", contrast);
        }
    }

    fn load(&mut self, from: &Entries) -> Result<()> {
        from.load("average", &mut self.average)?;
        self.contrast.as_mut().map_or(Ok(()), |contrast| from.load("contrast", contrast))
    }
}

/// The networks of a synthesis call.
pub struct Networks<'a> {
    /// Frozen teacher.
    pub teacher: &'a Teacher,
    /// Student and its weights without gradients.
    pub student: (&'a dyn Network, &'a State),
    /// The data set's normalisation.
    pub normalise: &'a Normalise,
}

/// Everything of the configuration that a synthesis call uses.
#[derive(Clone)]
pub struct Settings {
    /// The method's.
    pub recipe: Recipe,
    /// `inversion.*`
    pub inversion: config::Inversion,
    /// `phi.*`
    pub phi: config::Phi,
    /// Number of stored views, their reach, and the temperature of δ.
    pub distill: config::Distill,
    /// How the memory holds images.
    pub image_dtype: config::ImageDtype,
    /// Seed of the run.
    pub seed: u64,
    /// Channels, height and width of an image.
    pub image: [i64; 3],
    /// Number of classes.
    pub classes: i64,
}

/// One call: which round, for whom, and what the round knows.
pub struct Call<'a> {
    /// Round, from 0.
    pub round: u64,
    /// For which logical rank.
    pub rank: LogicalRank,
    /// Whether the student takes part (past the warm-up).
    pub adversarial: bool,
    /// Buffered samples per predicted category, over all ranks.
    pub class_counts_k: &'a [u64],
    /// Id of the first sample made.
    pub first_id: u64,
}

impl Call<'_> {
    fn key(&self, settings: &Settings, purpose: Purpose) -> Key {
        Key::of(settings.seed, purpose, self.round, self.rank)
    }

    /// A stream of one inner step.
    fn key_of_step(&self, settings: &Settings, purpose: Purpose, step: u64) -> Key {
        Key::of(settings.seed, purpose, self.round << 32 | step, self.rank)
    }
}

/// A synthesis call: the inner loop, then a look at the images it made.
pub fn invert(
    settings: &Settings,
    networks: &Networks<'_>,
    generator: Option<&mut SharedGenerator>,
    local: &mut Local,
    call: &Call<'_>,
) -> Result<Batch> {
    let Descent { images_bchw, shared, terms, taps } = descend(settings, networks, generator, local, call)?;
    local.average.update(&taps);
    let samples = images_bchw.map(|images_bchw| assess(settings, networks, &images_bchw, call.first_id));
    if samples.as_ref().is_some_and(|samples| samples.delta.iter().any(|delta| !delta.is_finite())) {
        // No rank may take such samples in: the reduced sum tells all of them.
        let _ = shared.shallow_clone().fill_(f64::NAN);
    }
    Ok(Batch { shared, samples, terms })
}

/// What the inner loop ends with.
pub struct Descent {
    /// The images kept, `[b, c, h, w]` in [0, 1].
    pub images_bchw: Option<Tensor>,
    /// What the shared generator is to take, flat.
    pub shared: Tensor,
    /// Terms of the last step by column, unweighted but for the last column; f64 `[COLUMNS]`.
    pub terms: Tensor,
    /// Batch-norm statistics of the last step.
    pub taps: Vec<InputStatistics>,
}

/// Runs the inner loop: `inversion.steps` steps on what the method moves, with labels y of its own.
///
/// Each step minimises Σ λ·term (for SSD-KD, Eq. 2: λ_bn·L_BN + λ_task·mean φ(x)·CE(f_t(x), y) − λ_adv·L_adv) by Adam.
pub fn descend(
    settings: &Settings,
    networks: &Networks<'_>,
    generator: Option<&mut SharedGenerator>,
    local: &mut Local,
    call: &Call<'_>,
) -> Result<Descent> {
    let (recipe, k) = (&settings.recipe, &settings.inversion);
    let mut canvas = Canvas::new(settings, networks.normalise, generator, call);
    let labels = drawn_labels(settings, call, canvas.device());
    let modulation = Modulation::new(&settings.phi, call.class_counts_k, canvas.device());
    let mut best: Option<Best> = None;
    let (mut taps, mut terms) = (Vec::new(), Tensor::zeros([COLUMNS as i64], (Kind::Double, canvas.device())));
    for step in 0..k.steps {
        let _span = tracing::debug_span!("inner step", step).entered();
        let images_bchw = canvas.images();
        let sight = Sight::of(&images_bchw, settings, networks, &labels, call, step);
        let (loss, of_step) = sight.loss(settings, networks, local, &modulation, call);

        if recipe.keep == Keep::Best {
            best = Some(keep_better(best, [Some(&images_bchw), sight.features_be()], &loss));
        }
        loss.backward();
        canvas.step(k, &loss)?;
        if let Some(contrast) = &mut local.contrast {
            contrast.step(k.lr_generator)?;
        }
        (taps, terms) = (sight.into_taps(), of_step);
        made_progress();
    }
    if let (Some(contrast), Some(Best { kept: [_, Some(features_be)], .. })) = (&mut local.contrast, &best) {
        contrast.propose(features_be.shallow_clone());
    }
    let images_bchw = match recipe.keep {
        Keep::Best => best.and_then(|Best { kept: [images, _], .. }| images),
        Keep::Last => Some(canvas.images().detach()),
        Keep::Nothing => None,
    };
    Ok(Descent { images_bchw, shared: canvas.shared(k.meta), terms, taps })
}

/// Uniform labels, the same number of every rank's images: `[b]`, or of each pixel, `[b, h, w]`, where images have several regions.
fn drawn_labels(settings: &Settings, call: &Call<'_>, device: tch::Device) -> Tensor {
    let (key, [_, h, w]) = (call.key(settings, Purpose::Labels), settings.image);
    let config::Inversion { batch_size, regions, .. } = settings.inversion;
    let labels: Vec<i64> = (0..(batch_size * regions) as u64).map(|i| key.below(i, settings.classes as u64) as i64).collect();
    if regions == 1 {
        return upload(&Tensor::from_slice(&labels), device);
    }
    let layout = call.key(settings, Purpose::Layout);
    let maps: Vec<Tensor> = labels.chunks(regions).zip(0..).map(|(labels, image)| regions_of(labels, &layout, image, [h, w])).collect();
    upload(&Tensor::stack(&maps, 0), device)
}

/// Map `[h, w]` of one image of a batch: a pixel has the label of the nearest of uniform places, one place for each label.
fn regions_of(labels: &[i64], key: &Key, image: u64, [h, w]: [i64; 2]) -> Tensor {
    let first = image * labels.len() as u64;
    let along = |axis: u64, length: i64| {
        let place = |i: u64| (key.uniform(2 * (first + i) + axis) * length as f64) as f32;
        let places: Vec<f32> = (0..labels.len() as u64).map(place).collect();
        let pixels = Tensor::arange(length, (Kind::Float, tch::Device::Cpu)) + 0.5;
        (pixels - Tensor::from_slice(&places).unsqueeze(1)).square()
    };
    let distance_rhw = along(0, h).unsqueeze(2) + along(1, w).unsqueeze(1);
    Tensor::from_slice(labels).take(&distance_rhw.argmin(0, false))
}

/// What belongs to the lowest loss so far.
struct Best {
    loss: Tensor,
    kept: [Option<Tensor>; 2],
}

/// What belongs to the lower loss, chosen where the tensors live: no value is read back. The first step always counts, and a
/// NaN never wins.
fn keep_better(best: Option<Best>, offered: [Option<&Tensor>; 2], loss: &Tensor) -> Best {
    let (offered, loss) = (offered.map(|t| t.map(Tensor::detach)), loss.detach());
    let Some(Best { loss: lowest, kept }) = best else { return Best { loss, kept: offered } };
    let better = loss.lt_tensor(&lowest);
    let [first, second] = offered;
    let choose = |new: Option<Tensor>, old: Option<Tensor>| new.zip(old).map(|(new, old)| new.where_self(&better, &old));
    let [old_first, old_second] = kept;
    Best { kept: [choose(first, old_first), choose(second, old_second)], loss: loss.where_self(&better, &lowest) }
}

/// Looks at finished images as the memory will hold them: the teacher's category, confidence and logits of every stored view,
/// and δ = KL_T(teacher ‖ student) on the unaugmented images (SSD-KD Eq. 5 with w = 1).
fn assess(settings: &Settings, networks: &Networks<'_>, images_bchw: &Tensor, first_id: u64) -> Samples {
    let _span = tracing::debug_span!("assessment").entered();
    tch::no_grad(|| {
        let held = match settings.image_dtype {
            config::ImageDtype::Uint8 => to_bytes(images_bchw),
            config::ImageDtype::Float32 => images_bchw.detach(),
        };
        let unit = to_unit(&held);
        let b = unit.size()[0] as u64;
        let plain = networks.normalise.apply(&unit);
        let Output { logits: teacher_logits, head, .. } = networks.teacher.evaluate(&plain);
        let (student, weights) = networks.student;
        let student_logits = student.forward(weights, &plain, &mut Pass::eval()).logits;
        let (predicted, confidence) = predicted_and_confidence(&teacher_logits);
        let delta = kl_divergence(&student_logits, &teacher_logits, settings.distill.temperature);

        let mut view_logits = Vec::new();
        for view in 0..settings.distill.teacher_views as u64 {
            // View 0 is the image as it is, whose logits are known already.
            view_logits.push(if view == 0 {
                head.shallow_clone()
            } else {
                let config::Distill { view_shift, view_flip, .. } = settings.distill;
                let views: Vec<View> = (0..b).map(|i| View::stored(settings.seed, first_id + i, view, view_shift, view_flip)).collect();
                networks.teacher.evaluate(&networks.normalise.apply(&apply_views(&unit, &views))).head
            });
        }
        let view_logits = if view_logits.is_empty() { head.unsqueeze(1).narrow(1, 0, 0) } else { Tensor::stack(&view_logits, 1) };
        Samples {
            images_bchw: held,
            view_logits,
            class_counts: task::class_counts(&predicted),
            confidence: task::per_sample(&confidence).try_into().unwrap_or_default(),
            delta: delta.to_kind(Kind::Double).try_into().unwrap_or_default(),
            first_id,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against a search over all places, pixel by pixel.
    #[test]
    fn a_pixel_has_the_label_of_the_nearest_place() {
        let (key, [h, w]) = (Key::global(3, Purpose::Layout, 0), [9, 14]);
        for (image, labels) in [[3, 1, 4, 1], [5, 9, 2, 6]].iter().enumerate() {
            let map = regions_of(labels, &key, image as u64, [h, w]);
            assert_eq!(map.size(), [h, w]);
            let first = 4 * image as u64;
            let place = |i: u64| [key.uniform(2 * (first + i)) * h as f64, key.uniform(2 * (first + i) + 1) * w as f64];
            for (y, x) in (0..h).flat_map(|y| (0..w).map(move |x| (y, x))) {
                let away = |i: &u64| {
                    let [down, right] = place(*i);
                    (down - y as f64 - 0.5).powi(2) + (right - x as f64 - 0.5).powi(2)
                };
                let nearest = (0..4).min_by(|i, j| away(i).total_cmp(&away(j))).unwrap();
                assert_eq!(map.int64_value(&[y, x]), labels[nearest as usize], "image {image}, row {y}, column {x}");
            }
        }
    }
}
