//! One inner step: what teacher and student make of the images, and the loss of that.

use super::recipe::{COLUMNS, Disagreement, Labels, PHI, PRIOR, Term, Views};
use super::{Call, Local, Networks, Settings};
use crate::config;
use crate::data::{Crop, View, apply_crops, apply_views, move_labels, roll};
use crate::losses::{self, Modulation};
use crate::models::Output;
use crate::nn::{InputStatistics, Pass};
use crate::rng::Purpose;
use crate::task;
use tch::{Kind, Tensor};

/// Temperature of the Jensen–Shannon disagreement. Source: zju-vipa/DataFree `deepinversion.py`.
const JS_TEMPERATURE: f64 = 3.0;

pub(super) struct Sight {
    /// The images themselves, in [0, 1].
    images_bchw: Tensor,
    /// As the networks saw them.
    seen_bchw: Tensor,
    teacher: Output,
    targets: Tensor,
    taps: Vec<InputStatistics>,
    /// The teacher's features of a local and a global view, side by side, where they are asked for.
    embedded: Option<[Tensor; 2]>,
    features_be: Option<Tensor>,
    step: u64,
}

impl Sight {
    /// The teacher looks at `images_bchw`.
    pub(super) fn of(
        images_bchw: &Tensor,
        settings: &Settings,
        networks: &Networks<'_>,
        labels: &Tensor,
        call: &Call<'_>,
        step: u64,
    ) -> Self {
        let (recipe, k, teacher) = (&settings.recipe, &settings.inversion, networks.teacher);
        let look = Look::of(settings, call, step);
        let seen_bchw = networks.normalise.apply(&look.at(images_bchw));
        let mut pass = if recipe.has(Term::Statistics, k) { Pass::tapped() } else { Pass::eval() };
        let contrasts = recipe.has(Term::Contrast, k);
        let (embedding, _) = teacher.parts().0.embedding();
        if contrasts {
            pass = pass.embedding(embedding);
        }
        let output = teacher.watch(&seen_bchw, &mut pass);
        let embedded = pass.take_embedding().map(|global_bd| {
            let key = call.key_of_step(settings, Purpose::LocalView, step);
            let size = [settings.image[1], settings.image[2]];
            let crops: Vec<Crop> = (0..images_bchw.size()[0] as u64).map(|i| Crop::draw(&key, i, size, k.view_flip)).collect();
            let mut local = Pass::eval().embedding(embedding);
            teacher.watch(&networks.normalise.apply(&apply_crops(images_bchw, &crops)), &mut local);
            [local.take_embedding().unwrap_or_default(), global_bd]
        });
        let targets = match recipe.labels {
            Labels::Drawn => look.targets(labels, &output.logits),
            Labels::Pseudo => output.logits.argmax(1, false),
        };
        Self {
            images_bchw: images_bchw.shallow_clone(),
            features_be: embedded.as_ref().map(|parts| Tensor::cat(parts, 1).detach()),
            taps: pass.into_taps(),
            teacher: output,
            seen_bchw,
            targets,
            embedded,
            step,
        }
    }

    /// The weighted sum of the method's terms, and their values by column.
    pub(super) fn loss(
        &self,
        settings: &Settings,
        networks: &Networks<'_>,
        local: &Local,
        modulation: &Modulation<'_>,
        call: &Call<'_>,
    ) -> (Tensor, Tensor) {
        let k = &settings.inversion;
        let zero = || Tensor::zeros([], (Kind::Float, self.seen_bchw.device()));
        let (mut total, mut columns): (Tensor, [Tensor; COLUMNS]) = (zero(), std::array::from_fn(|_| zero()));
        for &term in settings.recipe.terms {
            let weight = term.weight(k);
            // Terms without weight are not computed: the student is not run for nothing.
            if weight == 0.0 || matches!(term, Term::Adversarial(_)) && !call.adversarial {
                continue;
            }
            let value = match term {
                Term::Statistics => networks.teacher.statistics_gap(&self.taps, &local.average),
                Term::Task => losses::cross_entropy(&self.teacher.logits, &self.targets).mean(Kind::Float),
                Term::ModulatedTask => {
                    let phi = modulation.weights(&self.teacher.logits, &self.targets);
                    columns[PHI] = phi.mean(Kind::Float);
                    (phi * losses::cross_entropy(&self.teacher.logits, &self.targets)).mean(Kind::Float)
                }
                Term::Adversarial(measure) => self.disagreement(measure, networks),
                Term::Balance => losses::balance(&self.teacher.logits),
                Term::Activation => losses::activation(&self.teacher.features_bd),
                Term::Variation => losses::variation(&networks.normalise.apply(&self.images_bchw)),
                Term::Norm => networks.normalise.apply(&self.images_bchw).norm(),
                Term::Contrast => {
                    let (Some(contrast), Some([near, whole])) = (&local.contrast, &self.embedded) else {
                        unreachable!("a method with a contrastive term has its state and its embeddings");
                    };
                    contrast.loss(near, whole, &call.key_of_step(settings, Purpose::Negatives, self.step))
                }
            };
            let sign = if matches!(term, Term::Adversarial(_)) { -1.0 } else { 1.0 };
            let weighted = &value * (sign * weight);
            match term.column() {
                PRIOR => columns[PRIOR] = &columns[PRIOR] + &weighted,
                column => columns[column] = value,
            }
            total = &total + weighted;
        }
        (total, Tensor::stack(&columns.map(|t| t.detach().to_kind(Kind::Double)), 0))
    }

    /// How far the student is from the teacher, positive: gradients flow through both.
    fn disagreement(&self, measure: Disagreement, networks: &Networks<'_>) -> Tensor {
        let (student, weights) = networks.student;
        let student_logits = student.forward(weights, &self.seen_bchw, &mut Pass::eval()).logits;
        let teacher_logits = &self.teacher.logits;
        match measure {
            Disagreement::Masked => losses::masked_disagreement(&student_logits, teacher_logits),
            Disagreement::Plain => losses::kl_divergence(&student_logits, teacher_logits, 1.0).mean(Kind::Float),
            Disagreement::Logits => losses::logit_distance(&student_logits, teacher_logits).mean(Kind::Float),
            Disagreement::JensenShannon => losses::jensen_shannon(&student_logits, teacher_logits, JS_TEMPERATURE),
        }
    }

    /// What the contrastive loss would remember of these images.
    pub(super) fn features_be(&self) -> Option<&Tensor> {
        self.features_be.as_ref()
    }

    pub(super) fn into_taps(self) -> Vec<InputStatistics> {
        self.taps
    }
}

/// How an inner step shows the images of its batch.
enum Look {
    Shifted(Vec<View>),
    Rolled(View),
    Plain,
}

impl Look {
    fn of(settings: &Settings, call: &Call<'_>, step: u64) -> Self {
        let key = call.key(settings, Purpose::InversionView);
        let config::Inversion { view_shift: shift, view_flip: flip, batch_size, .. } = settings.inversion;
        let b = batch_size as u64;
        match settings.recipe.views {
            Views::Shifted => Self::Shifted((0..b).map(|i| View::draw(&key, step * b + i, shift, flip)).collect()),
            Views::Rolled => Self::Rolled(View::draw(&key, step, shift, flip)),
            Views::Plain => Self::Plain,
        }
    }

    /// The images so, still in [0, 1].
    fn at(&self, images_bchw: &Tensor) -> Tensor {
        match self {
            Self::Shifted(views) => apply_views(images_bchw, views),
            Self::Rolled(view) => roll(images_bchw, *view),
            Self::Plain => images_bchw.shallow_clone(),
        }
    }

    /// Drawn labels as targets of these logits: those of images as they are, those of pixels where the look has their pixels.
    fn targets(&self, labels: &Tensor, logits: &Tensor) -> Tensor {
        task::moved(task::spread(labels.shallow_clone(), logits), |maps| self.at_labels(maps))
    }

    /// Labels of their pixels, i64 `[b, h, w]`, moved likewise.
    fn at_labels(&self, labels_bhw: &Tensor) -> Tensor {
        match self {
            Self::Shifted(views) => move_labels(labels_bhw, views, task::IGNORED),
            Self::Rolled(view) => roll(&labels_bhw.unsqueeze(1), *view).squeeze_dim(1),
            Self::Plain => labels_bhw.shallow_clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    /// Images whose pixels are their own labels.
    #[test]
    fn labels_go_where_their_pixels_go() {
        let labels_bhw = Tensor::arange(2 * 6 * 7, (Kind::Int64, Device::Cpu)).view([2, 6, 7]) + 1;
        let images_bchw = labels_bhw.to_kind(Kind::Float).unsqueeze(1);
        let view = View { down: 2, right: -1, flip: true };
        for look in [Look::Shifted(vec![view, View { down: -1, right: 3, flip: false }]), Look::Rolled(view), Look::Plain] {
            let seen = look.at(&images_bchw).squeeze_dim(1).to_kind(Kind::Int64);
            let asked = look.at_labels(&labels_bhw);
            assert!(asked.equal(&seen.masked_fill(&seen.eq(0), task::IGNORED)));
        }
    }

    /// A category for a whole image is asked for where the image is, and nowhere that black was moved in.
    #[test]
    fn one_category_an_image_is_not_asked_of_black() {
        let labels_b = Tensor::from_slice(&[3i64, 5]);
        let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
        let look = Look::Shifted(vec![View { down: 2, right: -1, flip: true }, View { down: 0, right: 3, flip: false }]);
        let is_black = look.at(&zeros(&[2, 1, 6, 7]).ones_like()).squeeze_dim(1).eq(0.0);
        let want = labels_b.view([2, 1, 1]).expand([2, 6, 7], false).masked_fill(&is_black, task::IGNORED);
        assert!(look.targets(&labels_b, &zeros(&[2, 9, 6, 7])).equal(&want) && want.eq(task::IGNORED).any().int64_value(&[]) == 1);
        assert!(look.targets(&labels_b, &zeros(&[2, 9])).equal(&labels_b));
    }
}
