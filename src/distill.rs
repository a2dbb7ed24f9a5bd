//! Training of the student: one logical rank's slice of a step, and the update all ranks make together.

use crate::config::{self, Schedule};
use crate::data::{Normalise, apply_views, to_unit};
use crate::error::Result;
use crate::losses::{cross_entropy, kl_divergence, logit_distance};
use crate::models::Network;
use crate::nn::{Entries, Pass, Sgd, State, Stateful};
use crate::parallel::made_progress;
use crate::replay::{Rows, Target};
use crate::rng::Key;
use crate::task;
use crate::teacher::Teacher;
use tch::{Kind, Tensor};

/// What a row's loss is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Criterion {
    /// KL_T(teacher ‖ student) at temperature T (SSD-KD Eq. 3).
    Distillation {
        /// T.
        temperature: f64,
        /// Weight of the cross entropy with the label, where rows have one.
        label_weight: f64,
    },
    /// Mean |s − t| over the logits.
    LogitDistance,
    /// Cross entropy with the label: training on real data.
    CrossEntropy,
}

/// The network in training: weights, their frozen twin for other passes, optimiser.
pub struct Student {
    network: Box<dyn Network>,
    state: State,
    frozen: State,
    sgd: Sgd,
    /// Running statistics every slice of a step starts from.
    base_statistics: Tensor,
}

impl Student {
    /// A network and its start weights, with SGD.
    pub fn new(network: Box<dyn Network>, state: State, momentum: f64, weight_decay: f64) -> Result<Self> {
        let state = state.trainable()?;
        let sgd = Sgd::new(state.parameters(), momentum, weight_decay);
        let base_statistics = state.statistics().copy();
        Ok(Self { frozen: state.frozen(), network, state, sgd, base_statistics })
    }

    /// Activations are `precision` from now on, in training and in other passes.
    pub fn compute_in(&mut self, precision: config::Precision) {
        self.state.compute_in(precision);
        self.frozen.compute_in(precision);
    }

    /// The network and its weights without gradients: for evaluation and for the inversion loop.
    pub fn frozen(&self) -> (&dyn Network, &State) {
        (&*self.network, &self.frozen)
    }

    /// All weights and statistics.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Applies a reduced payload: one SGD step with the summed gradient, running statistics averaged over logical ranks.
    pub fn apply(&mut self, payload: &Tensor, logical_ranks: usize, lr: f64) -> Result<()> {
        let _span = tracing::debug_span!("update", of = "student").entered();
        let (gradient, statistics) = self.state.split_payload(payload);
        self.sgd.step(self.state.parameters(), &gradient, lr)?;
        self.state.set_statistics(&(statistics / logical_ranks as f64));
        self.base_statistics = self.state.statistics().copy();
        self.state.count_batch();
        Ok(())
    }

    /// Undoes what the slices of a step that is not applied did to the running statistics.
    pub fn forget_slice(&mut self) {
        self.state.set_statistics(&self.base_statistics);
    }
}

impl Stateful for Student {
    fn save(&self, into: &mut Entries) {
        into.tensor("parameters", self.state.parameters());
        into.tensor("statistics", &self.base_statistics);
        into.tensor("counters", self.state.counters());
        into.save("sgd", &self.sgd);
    }

    fn load(&mut self, from: &Entries) -> Result<()> {
        from.copy_tensor("parameters", self.state.parameters())?;
        from.copy_tensor("statistics", &self.base_statistics)?;
        from.copy_tensor("counters", self.state.counters())?;
        self.forget_slice();
        from.load("sgd", &mut self.sgd)
    }
}

/// What a slice gives.
pub struct Slice {
    /// Gradient of this slice's share of the loss, then its running statistics: flat, to be summed over logical ranks.
    pub payload: Tensor,
    /// Loss of every row before weighting, `[b]` f32: KL for distillation.
    pub loss_b: Tensor,
    /// Sums over the rows: weighted loss and unweighted loss; f64 `[2]`.
    pub sums: Tensor,
}

/// Forward, weighted loss, backward for the rows of one logical rank.
///
/// The loss is Σ_b w_b·loss_b / B with B the *global* batch, so that slices add up (SSD-KD Eq. 3). Batch-norm uses this
/// slice's statistics (ghost batch norm) and starts from the same running ones on every logical rank. `dropout` is the stream of the
/// slice's random numbers.
pub fn backward(
    student: &mut Student,
    teacher: Option<&Teacher>,
    normalise: &Normalise,
    rows: &Rows,
    criterion: Criterion,
    global_batch: usize,
    dropout: Key,
) -> Slice {
    student.forget_slice();
    student.state.zero_gradient();
    let seen_bchw = normalise.apply(&apply_views(&to_unit(&rows.images_bchw), &rows.views));
    let logits = student.network.forward(&student.state, &seen_bchw, &mut Pass::train().with_dropout(dropout)).logits;
    let loss_b = match criterion {
        Criterion::CrossEntropy => labelled(&logits, rows).unwrap_or_else(|| unreachable!("real data has labels")),
        Criterion::Distillation { temperature, label_weight } => {
            let kl = kl_divergence(&logits, &target(teacher, rows, &seen_bchw), temperature);
            if label_weight == 0.0 { kl } else { labelled(&logits, rows).map_or_else(|| kl.shallow_clone(), |ce| &kl + ce * label_weight) }
        }
        Criterion::LogitDistance => logit_distance(&logits, &target(teacher, rows, &seen_bchw)),
    };
    let weighted = &loss_b * &rows.weights_b;
    (weighted.sum(Kind::Float) / global_batch as f64).backward();
    let sum = |t: &Tensor| t.detach().sum(Kind::Double);
    let sums = Tensor::stack(&[sum(&weighted), sum(&loss_b)], 0);
    let payload = student.state.payload();
    // A loss that is not finite spoils the payload (∞·0 and NaN·0 are NaN) even where its gradient is finite: the reduced one tells
    // all ranks.
    let _ = payload.narrow(0, payload.numel() as i64 - 1, 1).g_add_(&(sums.sum(Kind::Float) * 0.0));
    made_progress();
    Slice { payload, sums, loss_b: loss_b.detach() }
}

/// The teacher's logits on the rows: stored ones, or asked for.
fn target(teacher: Option<&Teacher>, rows: &Rows, seen_bchw: &Tensor) -> Tensor {
    match (&rows.target, teacher) {
        (Target::Logits(logits), _) => task::at_size(logits, seen_bchw),
        (_, Some(teacher)) => teacher.evaluate(seen_bchw).logits,
        (_, None) => unreachable!("methods that ask a teacher have one"),
    }
}

/// Cross entropy of rows that have labels.
fn labelled(logits: &Tensor, rows: &Rows) -> Option<Tensor> {
    let Target::Labels(labels) = &rows.target else { return None };
    Some(task::per_sample(&cross_entropy(logits, labels)))
}

/// Learning rate of a round, by `student.schedule`, counted in rounds from the end of the warm-up.
///
/// Source: zju-vipa/Fast-Datafree `datafree_kd.py` (cosine), `vanilla_kd.py` (× 0.1 at 120, 150 and 180 of 200 epochs).
pub fn learning_rate(student: &config::Student, train: &config::Train, round: u64) -> f64 {
    let (period, at) = (train.rounds - train.warmup_rounds, round.saturating_sub(train.warmup_rounds));
    match student.schedule {
        Schedule::Cosine => crate::nn::cosine(student.lr, student.lr_min, at, period),
        Schedule::Steps => student.lr * 0.1f64.powi([60, 75, 90].into_iter().filter(|share| 100 * at >= share * period).count() as i32),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_fall_where_the_published_ones_do() {
        let student = config::Student { lr: 0.1, schedule: Schedule::Steps, ..Default::default() };
        let train = config::Train { rounds: 200, warmup_rounds: 0, ..Default::default() };
        for (round, want) in [(0, 0.1), (119, 0.1), (120, 0.01), (149, 0.01), (150, 1e-3), (179, 1e-3), (180, 1e-4), (199, 1e-4)] {
            assert!((learning_rate(&student, &train, round) - want).abs() < 1e-12, "round {round}");
        }
    }
}
