//! Scores on a test split, computed by all ranks together.

use crate::data::{Examples, Normalise, to_unit};
use crate::error::Result;
use crate::layout::split;
use crate::losses::cross_entropy;
use crate::models::Network;
use crate::nn::{Pass, State};
use crate::parallel::{World, comm, made_progress};
use crate::task::{Counts, Scores};
use tch::Kind;

/// Result of an evaluation.
#[derive(Debug, Clone, PartialEq)]
pub struct Score {
    /// Images.
    pub images: u64,
    /// What exact counts came to.
    pub scores: Scores,
    /// Cross entropy, summed over pixels where there are labels of pixels, mean over images.
    pub loss: f64,
}

/// Evaluates a network on a data set: fixed batches in order, each assigned to a logical rank. A collective.
///
/// Counts are integers and losses are f64 added in batch order, so the result does not depend on the number of ranks.
pub fn evaluate(
    world: &World,
    (network, state): (&dyn Network, &State),
    normalise: &Normalise,
    data: &Examples,
    batch_size: usize,
) -> Result<Score> {
    let _span = tracing::debug_span!("evaluation").entered();
    let batches = data.len().div_ceil(batch_size);
    let mut mine: Option<Counts> = None;
    let mut losses: Vec<u8> = Vec::new();
    for rank in world.hosted() {
        for batch in split(batches, world.layout().logical_ranks(), rank.0) {
            let places: Vec<u64> = (batch * batch_size..((batch + 1) * batch_size).min(data.len())).map(|i| i as u64).collect();
            let (images, labels) = data.rows(&places);
            let (images, labels) = (images.to_device(world.device()), labels.to_device(world.device()));
            let logits = tch::no_grad(|| network.forward(state, &normalise.apply(&to_unit(&images)), &mut Pass::eval()).logits);
            let counts = Counts::of(&logits, &labels);
            mine = Some(mine.map_or(counts.clone(), |sum| sum.plus(counts)));
            let loss = cross_entropy(&logits, &labels).sum(Kind::Double).double_value(&[]);
            losses.extend(loss.to_le_bytes());
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
    Ok(Score { images, scores: counts.map(|c| c.scores()).unwrap_or_default(), loss: sum / images.max(1) as f64 })
}
