//! Training of the student: one logical rank's slice of a step, and the update all ranks make together.

use crate::config;
use crate::data::{Normalise, apply_views, to_unit};
use crate::error::Result;
use crate::losses::{cross_entropy, kl_divergence};
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
    },
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
    let loss_b = match (&rows.target, criterion, teacher) {
        (Target::Logits(target), Criterion::Distillation { temperature }, _) => {
            kl_divergence(&logits, &task::at_size(target, &seen_bchw), temperature)
        }
        (Target::AskTeacher, Criterion::Distillation { temperature }, Some(teacher)) => {
            kl_divergence(&logits, &teacher.evaluate(&seen_bchw).logits, temperature)
        }
        (Target::Labels(labels), _, _) => task::per_sample(&cross_entropy(&logits, labels)),
        (Target::Logits(target), Criterion::CrossEntropy, _) => {
            task::per_sample(&cross_entropy(&logits, &task::at_size(target, &seen_bchw).argmax(1, false)))
        }
        (Target::AskTeacher, _, _) => unreachable!("methods that ask a teacher have one"),
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

/// Learning rate of a round: cosine from `student.lr` to `student.lr_min`, counted in rounds from the end of the warm-up.
pub fn learning_rate(student: &config::Student, train: &config::Train, round: u64) -> f64 {
    let period = train.rounds - train.warmup_rounds;
    crate::nn::cosine(student.lr, student.lr_min, round.saturating_sub(train.warmup_rounds), period)
}
