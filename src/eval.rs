//! Scores on a test split, computed by all ranks together.

use crate::data::{Dataset, Normalise, to_unit};
use crate::error::Result;
use crate::layout::split;
use crate::losses::cross_entropy;
use crate::models::Network;
use crate::nn::{Pass, State};
use crate::parallel::{PerRank, World, comm, made_progress};
use crate::task::Counts;
use tch::Kind;

/// Result of an evaluation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Score {
    /// Exact counts.
    pub counts: Counts,
    /// Cross entropy, mean over images.
    pub loss: f64,
}

/// Evaluates a network on a data set: fixed batches in order, each assigned to a logical rank. A collective.
///
/// Counts are integers and losses are f64 added in batch order, so the result does not depend on the number of ranks.
pub fn evaluate(
    world: &World,
    (network, state): (&dyn Network, &State),
    normalise: &Normalise,
    data: &Dataset,
    batch_size: usize,
) -> Result<Score> {
    let _span = tracing::debug_span!("evaluation").entered();
    let batches = data.len().div_ceil(batch_size);
    let mut counts = PerRank::default();
    let mut losses: Vec<u8> = Vec::new();
    for rank in world.hosted() {
        let mut mine = Counts::default();
        for batch in split(batches, world.layout().logical_ranks(), rank.0) {
            let (start, end) = (batch * batch_size, ((batch + 1) * batch_size).min(data.len()));
            let part = |t: &tch::Tensor| t.narrow(0, start as i64, (end - start) as i64).to_device(world.device());
            let (images, labels) = (part(&data.images_nchw), part(&data.labels_n));
            let logits = tch::no_grad(|| network.forward(state, &normalise.apply(&to_unit(&images)), &mut Pass::eval()).logits);
            mine = mine + Counts::of(&logits, &labels);
            let loss = cross_entropy(&logits, &labels).sum(Kind::Double).double_value(&[]);
            losses.extend(loss.to_le_bytes());
            made_progress();
        }
        counts.set(rank, [mine.total, mine.first, mine.fifth]);
    }
    let counts = world.gather(&counts)?.into_iter().map(|[total, first, fifth]| Counts { total, first, fifth });
    let losses = comm::all_gather_varied(world.comm(), &losses)?.concat();
    let sum: f64 = losses.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).sum();
    let counts = counts.fold(Counts::default(), std::ops::Add::add);
    Ok(Score { counts, loss: sum / counts.total.max(1) as f64 })
}
