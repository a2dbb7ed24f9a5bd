//! Scores on a test split, or against the teacher where there is none, computed by all ranks together.

use crate::config::{self, Config};
use crate::data::{self, Examples, Normalise, Split, to_unit};
use crate::device::upload;
use crate::error::Result;
use crate::inversion::SharedGenerator;
use crate::layout::split;
use crate::losses::{cross_entropy, kl_divergence};
use crate::models::Network;
use crate::nn::{Pass, State};
use crate::parallel::{World, comm, made_progress};
use crate::rng::{Key, Purpose};
use crate::task::{Counts, Expected, Scores, Task};
use crate::teacher::Teacher;
use tch::{Kind, Tensor};

/// Result of an evaluation.
#[derive(Debug, Clone, PartialEq)]
pub struct Score {
    /// Images.
    pub images: u64,
    /// What exact counts came to.
    pub scores: Scores,
    /// Cross entropy, summed over pixels where there are labels of pixels, mean over images; none without labels.
    pub loss: Option<f64>,
}

/// What there is to score by.
pub enum Test {
    /// A test split with labels, in batches of so many images.
    Split(Examples, usize),
    /// Nothing but the networks: images made anew.
    Fresh {
        /// How many.
        images: usize,
        /// Of a batch: the generator's batch-norm sees as many as in training.
        batch: usize,
        /// Of their latent vectors, which are the same in every evaluation.
        seed: u64,
    },
}

impl Test {
    /// Of a configuration: its test split, read here; or what stands in for it.
    ///
    /// # Errors
    /// As [`data::open`].
    pub fn of(config: &Config) -> Result<Self> {
        let config::Eval { batch_size, fresh_images } = config.eval;
        if Task::of(config.dataset).has_data() {
            Ok(Self::Split(data::open(config.dataset, &config.data, Split::Test)?, batch_size))
        } else {
            Ok(Self::Fresh { images: fresh_images, batch: config.inversion.batch_size, seed: config.seed })
        }
    }

    /// The test split, where there is one.
    pub fn examples(&self) -> Option<&Examples> {
        match self {
            Self::Split(data, _) => Some(data),
            Self::Fresh { .. } => None,
        }
    }

    fn batches(&self) -> usize {
        match self {
            Self::Split(data, batch) => data.len().div_ceil(*batch),
            Self::Fresh { images, batch, .. } => images.div_ceil(*batch),
        }
    }
}

/// The networks that make images without labels and say what they show.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    /// Makes them.
    pub generator: &'a SharedGenerator,
    /// Says what they show.
    pub teacher: &'a Teacher,
}

/// Evaluates a network: fixed batches in order, each assigned to a logical rank. `None` where a test without data has no source of
/// images. A collective.
///
/// Counts are integers and losses are f64 added in batch order, so the result does not depend on the number of ranks.
pub fn evaluate(
    world: &World,
    (network, state): (&dyn Network, &State),
    normalise: &Normalise,
    test: &Test,
    source: Option<Source<'_>>,
) -> Result<Option<Score>> {
    let _span = tracing::debug_span!("evaluation").entered();
    let mut mine: Option<Counts> = None;
    let mut losses: Vec<u8> = Vec::new();
    for rank in world.hosted() {
        for batch in split(test.batches(), world.layout().logical_ranks(), rank.0) {
            let Some((images, expected)) = batch_of(test, batch, normalise, source) else { return Ok(None) };
            let logits = tch::no_grad(|| network.forward(state, &images, &mut Pass::eval()).logits);
            let counts = Counts::of(&logits, &expected);
            mine = Some(mine.map_or(counts.clone(), |sum| sum.plus(counts)));
            let loss = match &expected {
                Expected::Labels(labels) => cross_entropy(&logits, labels),
                Expected::Logits(others) => kl_divergence(&logits, others, 1.0),
            };
            losses.extend(loss.sum(Kind::Double).double_value(&[]).to_le_bytes());
            made_progress();
        }
    }
    // A rank without a batch has nothing to say.
    let words: Vec<u8> = mine.iter().flat_map(Counts::words).flat_map(u64::to_le_bytes).collect();
    let numbers = |bytes: &[u8]| bytes.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b)).collect::<Vec<_>>();
    let all = comm::all_gather_varied(world.comm(), &words)?;
    let counts = all.iter().filter_map(|bytes| Counts::from_words(&numbers(bytes))).reduce(Counts::plus);
    let losses = comm::all_gather_varied(world.comm(), &losses)?.concat();
    let sum: f64 = numbers(&losses).into_iter().map(f64::from_bits).sum();
    let images = counts.as_ref().map_or(0, Counts::images);
    let (scores, mean) = (counts.map(|c| c.scores()).unwrap_or_default(), sum / images.max(1) as f64);
    Ok(Some(match scores.agreement {
        Some(_) => Score { images, scores: Scores { divergence: Some(mean), ..scores }, loss: None },
        None => Score { images, scores, loss: Some(mean) },
    }))
}

/// Normalised images of a batch, and what is expected of them.
fn batch_of(test: &Test, batch: usize, normalise: &Normalise, source: Option<Source<'_>>) -> Option<(Tensor, Expected)> {
    let rows = |size: &usize, all: usize| batch * size..((batch + 1) * size).min(all);
    Some(match test {
        Test::Split(data, size) => {
            let places: Vec<u64> = rows(size, data.len()).map(|i| i as u64).collect();
            let (images, labels) = data.rows(&places);
            let device = normalise.device();
            (normalise.apply(&to_unit(&upload(&images, device))), Expected::Labels(upload(&labels, device)))
        }
        Test::Fresh { images, batch: size, seed } => {
            let Source { generator, teacher } = source?;
            let made = generator.sample(&Key::global(*seed, Purpose::Agreement, batch as u64), rows(size, *images).len());
            let seen = normalise.apply(&made);
            let said = teacher.evaluate(&seen).logits;
            (seen, Expected::Logits(said))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{DatasetName, ModelName};
    use crate::data::facts;
    use crate::losses::predicted_and_confidence;
    use crate::models::{self, Shape};
    use crate::parallel::test_ranks::on_each_rank;
    use tch::Device;

    const IMAGES: usize = 21;
    const BATCH: usize = 4;

    fn network(seed: u64) -> Teacher {
        let network = models::build(ModelName::Wrn16x1, Shape { channels: 1, classes: 10 });
        let state = State::initialised(network.blueprint(), seed, Purpose::StudentInit, Device::Cpu);
        Teacher::new(network, state)
    }

    fn generator() -> SharedGenerator {
        let of = config::Generator { latent: 8, filters: 4, ..config::Generator::default() };
        SharedGenerator::new(&of, &config::Inversion::default(), &facts(DatasetName::Mnist), 1, Device::Cpu).unwrap()
    }

    /// Counted by hand on one process, and by all ranks together: the same bits on 1, 2 and 4 of them. A network agrees with itself.
    #[test]
    fn agreement_on_fresh_images_is_counted_right_and_the_same_on_any_number_of_ranks() {
        let (normalise, test) =
            (Normalise::new(&facts(DatasetName::Mnist), Device::Cpu), Test::Fresh { images: IMAGES, batch: BATCH, seed: 9 });
        let score = |of: u64, ranks: usize| {
            let all = on_each_rank(4, ranks, |world| {
                let (teacher, student, generator) = (network(1), network(of), generator());
                let normalise = Normalise::new(&facts(DatasetName::Mnist), Device::Cpu);
                let source = Source { generator: &generator, teacher: &teacher };
                let test = Test::Fresh { images: IMAGES, batch: BATCH, seed: 9 };
                evaluate(world, student.parts(), &normalise, &test, Some(source)).unwrap().unwrap()
            });
            assert!(all.windows(2).all(|pair| pair[0] == pair[1]), "every rank knows the score");
            all.into_iter().next().unwrap()
        };
        let itself = score(1, 1);
        assert_eq!((itself.images, itself.scores.agreement, itself.scores.divergence), (IMAGES as u64, Some(1.0), Some(0.0)));
        let other = score(2, 1);
        assert_eq!([score(2, 2), score(2, 4)], [other.clone(), other.clone()]);

        let (teacher, student, generator) = (network(1), network(2), generator());
        let (mut same, mut divergence, mut seen) = (0.0, 0.0, 0);
        for batch in 0..test.batches() {
            let count = BATCH.min(IMAGES - batch * BATCH);
            let images = normalise.apply(&generator.sample(&Key::global(9, Purpose::Agreement, batch as u64), count));
            let [t, s] = [&teacher, &student].map(|network| network.evaluate(&images).logits);
            let [(t_class, _), (s_class, _)] = [&t, &s].map(predicted_and_confidence);
            same += t_class.eq_tensor(&s_class).sum(Kind::Double).double_value(&[]);
            let (p, q) = (t.to_kind(Kind::Double).softmax(1, None), s.to_kind(Kind::Double).softmax(1, None));
            divergence += (&p * (&p / q).log()).sum(Kind::Double).double_value(&[]);
            seen += count;
        }
        assert_eq!((seen, other.scores.agreement), (IMAGES, Some(same / IMAGES as f64)));
        let got = other.scores.divergence.unwrap() * IMAGES as f64;
        assert!((got - divergence).abs() < 1e-4 * divergence && other.loss.is_none(), "{got} instead of {divergence}");
        assert_eq!(other.scores.confidence_counts.unwrap().iter().sum::<u64>(), IMAGES as u64);
    }
}
