//! Data inversion: a generator is pushed, for a few steps, to make images on which the teacher's batch-norm statistics, its
//! labels and the student's disagreement say "useful". Knows nothing of ranks: it works for one logical rank.

use crate::config;
use crate::data::{Facts, Normalise, View, apply_views, to_bytes, to_unit};
use crate::error::Result;
use crate::layout::LogicalRank;
use crate::losses::{Modulation, StatisticsAverage, cross_entropy, kl_divergence, masked_disagreement, predicted_and_confidence};
use crate::models::{Generator, GeneratorShape, Network, Output};
use crate::nn::{Adam, InputStatistics, Pass, State, room_for};
use crate::parallel::made_progress;
use crate::rng::{Key, Purpose};
use crate::task;
use crate::teacher::Teacher;
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
    /// Gradient of the shared generator, summed over the inner steps, flat.
    pub meta_gradient: Tensor,
    /// The images of the best inner step.
    pub samples: Samples,
    /// Loss terms of the last inner step, unweighted: statistics, task, adversarial, mean φ; f64 `[4]`.
    pub terms: Tensor,
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

/// The generator that all logical ranks share, and one working copy of it.
pub struct MetaGenerator {
    /// The network.
    pub network: Generator,
    /// Shared weights θ.
    pub state: State,
    meta: Adam,
    working: State,
    inner: Adam,
}

impl MetaGenerator {
    /// Fresh, for a data set's images.
    pub fn new(config: &config::Generator, inversion: &config::Inversion, facts: &Facts, seed: u64, device: tch::Device) -> Result<Self> {
        let shape =
            GeneratorShape { latent: config.latent, filters: config.filters, size: facts.size, channels: facts.channels, large: false };
        let network = Generator::new(shape);
        // Shared weights, the working copy with its gradient, two moments for each, and the sum of the inner gradients.
        let bytes = 8.0 * 4.0 * network.blueprint().parameter_count() as f64;
        let what = format!("{} filters, with {} latent values,", config.filters, config.latent);
        room_for("generator.filters", &what, bytes, device)?;
        let state = State::initialised(network.blueprint(), seed, Purpose::GeneratorInit, device);
        let working = State::empty(network.blueprint(), device).trainable()?;
        let adam = || Adam::new(state.parameters(), inversion.adam_beta1, inversion.adam_beta2);
        Ok(Self { meta: adam(), inner: adam(), network, state, working })
    }

    /// One meta step: first-order MAML, the inner gradients summed over the inner steps and averaged over the logical ranks
    /// (zju-vipa/Fast-Datafree `fast_meta.py`, whose learning rate `inversion.lr_meta` = 0 stands for).
    pub fn apply(&mut self, meta_gradient_sum: &Tensor, logical_ranks: usize, settings: &config::Inversion) -> Result<()> {
        let gradient = meta_gradient_sum / logical_ranks as f64;
        self.meta.step(self.state.parameters(), &gradient, settings.meta_rate())
    }

    /// Draws the first linear layer and the first batch-norm anew: N(0, 0.02), batch-norm weights N(1, 0.02), biases 0.
    ///
    /// The reference draws batch-norm weights around 0 (`reset_l0_fun` in `fast_meta.py`), which its own initialiser for other
    /// methods does not; docs/method.md says why 1 was chosen.
    pub fn reset_first_layers(&self, seed: u64, round: u64) {
        use crate::nn::Init;
        for ((weight, bias), centre) in self.network.first_layers().into_iter().zip([0.0, 1.0]) {
            let key = Key::global(seed, Purpose::GeneratorReset, round << 32 | weight.0 as u64);
            self.state.redraw(weight, Init::Normal(0.02), key);
            self.state.redraw(bias, Init::Constant(0.0), key);
            tch::no_grad(|| drop(self.state.at(weight).shallow_clone().g_add_scalar_(centre)));
        }
    }
}

impl crate::nn::Stateful for MetaGenerator {
    fn save(&self, into: &mut crate::nn::Entries) {
        into.tensor("parameters", self.state.parameters());
        into.tensor("statistics", self.state.statistics());
        into.save("meta", &self.meta);
    }

    fn load(&mut self, from: &crate::nn::Entries) -> Result<()> {
        from.copy_tensor("parameters", self.state.parameters())?;
        from.copy_tensor("statistics", self.state.statistics())?;
        from.load("meta", &mut self.meta)
    }
}

/// A synthesis call: the inner loop, then a look at the images it made.
pub fn invert(
    settings: &Settings,
    networks: &Networks<'_>,
    generator: &mut MetaGenerator,
    average: &mut StatisticsAverage,
    call: &Call<'_>,
) -> Result<Batch> {
    let Descent { images_bchw, meta_gradient, terms, taps } = descend(settings, networks, generator, average, call)?;
    average.update(&taps);
    let samples = assess(settings, networks, &images_bchw, call.first_id);
    if samples.delta.iter().any(|delta| !delta.is_finite()) {
        // No rank may take such samples in: the reduced gradient tells all of them.
        let _ = meta_gradient.shallow_clone().fill_(f64::NAN);
    }
    Ok(Batch { meta_gradient, samples, terms })
}

/// What the inner loop ends with.
pub struct Descent {
    /// Images of the step with the lowest loss, `[b, c, h, w]` in (0, 1).
    pub images_bchw: Tensor,
    /// Gradient of the generator, summed over the steps, flat.
    pub meta_gradient: Tensor,
    /// Loss terms of the last step, unweighted: statistics, task, adversarial, mean φ; f64 `[4]`.
    pub terms: Tensor,
    /// Batch-norm statistics of the last step.
    pub taps: Vec<InputStatistics>,
}

/// Runs the inner loop: `inversion.steps` steps on a copy of the generator and on fresh latent vectors z and labels y.
///
/// Each step minimises L_G = λ_bn·L_BN + λ_task·mean φ(x)·CE(f_t(x), y) − λ_adv·L_adv (SSD-KD Eq. 2, written out in
/// docs/method.md) by one Adam step on generator and z. The images kept are those of the step with the lowest loss.
pub fn descend(
    settings: &Settings,
    networks: &Networks<'_>,
    generator: &mut MetaGenerator,
    average: &StatisticsAverage,
    call: &Call<'_>,
) -> Result<Descent> {
    let MetaGenerator { network, state, working, inner, .. } = generator;
    let (k, device) = (&settings.inversion, state.parameters().device());
    let key = |purpose| Key::of(settings.seed, purpose, call.round, call.rank);
    let b = k.batch_size;

    working.copy_from(state);
    inner.restart();
    let latent = key(Purpose::Latent).normals(b * network.shape().latent as usize);
    let latent_bz = Tensor::from_slice(&latent).view([b as i64, -1]).to_device(device).set_requires_grad(true);
    let mut latent_adam = Adam::new(&latent_bz, k.adam_beta1, k.adam_beta2);
    let labels: Vec<i64> = (0..b as u64).map(|i| key(Purpose::Labels).below(i, settings.classes as u64) as i64).collect();
    let targets_b = Tensor::from_slice(&labels).to_device(device);
    let modulation = Modulation::new(&settings.phi, call.class_counts_k, device);

    let mut meta_gradient = working.parameters().zeros_like();
    let mut best: Option<(Tensor, Tensor)> = None;
    let (mut last_taps, mut last_terms) = (Vec::new(), Tensor::zeros([4], (Kind::Double, device)));
    for step in 0..k.steps {
        let images_bchw = network.forward(working, &latent_bz, &mut Pass::train());
        let views: Vec<View> =
            (0..b as u64).map(|i| View::draw(&key(Purpose::InversionView), step * b as u64 + i, k.view_shift, true)).collect();
        let seen_bchw = networks.normalise.apply(&apply_views(&images_bchw, &views));

        let (teacher_logits, taps) = networks.teacher.tapped(&seen_bchw);
        let statistics = networks.teacher.statistics_gap(&taps, average);
        let targets = task::spread(&targets_b, &teacher_logits);
        let phi = modulation.weights(&teacher_logits, &targets);
        let weighted = (&phi * cross_entropy(&teacher_logits, &targets)).mean(Kind::Float);
        let mut loss = &statistics * k.statistics_weight + &weighted * k.task_weight;
        let mut disagreement = statistics.zeros_like();
        if call.adversarial && k.adversarial_weight > 0.0 {
            let (student, weights) = networks.student;
            let student_logits = student.forward(weights, &seen_bchw, &mut Pass::eval()).logits;
            disagreement = masked_disagreement(&student_logits, &teacher_logits);
            loss -= &disagreement * k.adversarial_weight;
        }

        best = Some(keep_better(best, &images_bchw, &loss));
        working.zero_gradient();
        loss.backward();
        let gradient = working.gradient();
        let _ = meta_gradient.g_add_(&gradient);
        // A loss that is not finite spoils the sum even where its gradient is finite: the reduced one tells all ranks.
        let _ = meta_gradient.narrow(0, 0, 1).g_add_(&(loss.detach() * 0.0));
        inner.step(working.parameters(), &gradient, k.lr_generator)?;
        latent_adam.step(&latent_bz.detach(), &latent_bz.grad(), k.lr_latent)?;
        let _ = latent_bz.grad().zero_();
        let terms = [statistics, weighted, disagreement, phi.mean(Kind::Float)].map(|t| t.detach().to_kind(Kind::Double));
        (last_taps, last_terms) = (taps, Tensor::stack(&terms, 0));
        made_progress();
    }
    let images_bchw = best.map(|(images, _)| images).unwrap_or_default();
    Ok(Descent { images_bchw, meta_gradient, terms: last_terms, taps: last_taps })
}

/// The images with the lower loss, chosen where the tensors live: no value is read back. The first step always counts, and a
/// NaN never wins.
fn keep_better(best: Option<(Tensor, Tensor)>, images_bchw: &Tensor, loss: &Tensor) -> (Tensor, Tensor) {
    let (images, loss) = (images_bchw.detach(), loss.detach());
    match best {
        None => (images, loss),
        Some((kept, lowest)) => {
            let better = loss.lt_tensor(&lowest);
            (images.where_self(&better, &kept), loss.where_self(&better, &lowest))
        }
    }
}

/// Looks at finished images as the memory will hold them: the teacher's category, confidence and logits of every stored view,
/// and δ = KL_T(teacher ‖ student) on the unaugmented images (SSD-KD Eq. 5 with w = 1).
fn assess(settings: &Settings, networks: &Networks<'_>, images_bchw: &Tensor, first_id: u64) -> Samples {
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
                let views: Vec<View> =
                    (0..b).map(|i| View::stored(settings.seed, first_id + i, view, settings.distill.view_shift)).collect();
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
