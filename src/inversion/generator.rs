//! The generator that all logical ranks share.

use super::recipe::{Share, Start};
use crate::config::{self, MetaRule};
use crate::data::Facts;
use crate::device::upload;
use crate::error::{Error, Result};
use crate::models::{Generator, GeneratorShape};
use crate::nn::{Adam, Entries, Init, Pass, Role, Slot, State, Stateful, room_for};
use crate::rng::{Key, Purpose};
use tch::{Device, Tensor};

/// Factor of REPTILE's gradient. Source: zju-vipa/Fast-Datafree `fast_meta.py`, `reptile_grad`; with Adam it matters against ε only.
const REPTILE: f64 = 67.0;
/// Standard deviation of weights that are drawn anew. Source: the same repository, `reset_l0_fun` and `contrastive.py`.
const REDRAWN: f64 = 0.02;

/// The generator that all logical ranks share, and one working copy of it.
pub struct SharedGenerator {
    /// The network.
    pub network: Generator,
    /// Shared weights θ.
    pub state: State,
    meta: Adam,
    pub(super) working: State,
    pub(super) inner: Adam,
}

impl SharedGenerator {
    /// Fresh, for a data set's images.
    ///
    /// # Errors
    /// A size that cannot be halved at every stage; no memory for it.
    pub fn new(config: &config::Generator, inversion: &config::Inversion, facts: &Facts, seed: u64, device: Device) -> Result<Self> {
        let config::Generator { latent, filters, large, stages } = *config;
        let size = facts.size;
        let stages = if stages == 0 { GeneratorShape::stages_of(size) } else { stages as u32 };
        if let Some(side) = size.into_iter().find(|side| side % (1 << stages) != 0) {
            let (most, times) = (side.trailing_zeros(), if stages == 1 { "once" } else { "at each of them" });
            let problem = format!("{stages} up-samplings: {side} pixels cannot be halved {times}; at most {most} are possible");
            return Err(Error::config("generator.stages", problem));
        }
        let network = Generator::new(GeneratorShape { latent, filters, size, channels: facts.channels, large, stages });
        // Shared weights, the working copy with its gradient, two moments for each, and the sum of the inner gradients.
        let bytes = 8.0 * 4.0 * network.blueprint().parameter_count() as f64;
        room_for("generator.filters", &format!("{filters} filters, with {latent} latent values,"), bytes, device)?;
        let state = State::initialised(network.blueprint(), seed, Purpose::GeneratorInit, device);
        let working = State::empty(network.blueprint(), device).trainable()?;
        let adam = || Adam::new(state.parameters(), inversion.adam_beta1, inversion.adam_beta2);
        Ok(Self { meta: adam(), inner: adam(), network, state, working })
    }

    /// Activations are `precision` from now on; images stay f32.
    pub fn compute_in(&mut self, precision: config::Precision) {
        self.state.compute_in(precision);
        self.working.compute_in(precision);
    }

    /// Makes the working copy ready for a synthesis call; `key` gives each entry its stream.
    pub(super) fn begin(&mut self, start: Start, key: impl Fn(u64) -> Key) {
        self.working.copy_from(&self.state);
        self.inner.restart();
        if start == Start::Fresh {
            redraw(&self.working, |_| true, key);
        }
    }

    /// `count` latent vectors z ~ N(0, I), `[count, z]`.
    pub(super) fn latents(&self, key: &Key, count: usize) -> Tensor {
        let latent = self.network.shape().latent;
        let values = key.normals(count * latent as usize);
        upload(&Tensor::from_slice(&values).view([-1, latent]), self.state.parameters().device())
    }

    /// What the shared generator is to take from the working copy, flat: one number where that is nothing.
    pub(super) fn shared(&self, share: Share, rule: MetaRule, gradient_sum: Tensor) -> Tensor {
        match (share, rule) {
            (Share::MetaStep, MetaRule::Maml) => gradient_sum,
            (Share::MetaStep, MetaRule::Reptile) | (Share::Mean, _) => self.working.parameters().detach() - self.state.parameters(),
            (Share::Nothing, _) => gradient_sum.narrow(0, 0, 1).zeros_like(),
        }
    }

    /// Takes what the logical ranks have shared, summed over them.
    ///
    /// A meta step follows the mean gradient of the inner steps (first-order MAML, summed over them) or 67·(θ − θ') (REPTILE) by Adam;
    /// both from zju-vipa/Fast-Datafree `fast_meta.py`, whose learning rate `inversion.lr_meta` = 0 stands for.
    pub fn apply(&mut self, share: Share, sum: &Tensor, logical_ranks: usize, settings: &config::Inversion) -> Result<()> {
        let _span = tracing::debug_span!("update", of = "generator").entered();
        let mean = sum / logical_ranks as f64;
        let gradient = match (share, settings.meta) {
            (Share::Nothing, _) => return Ok(()),
            (Share::Mean, _) => {
                let _ = self.state.parameters().shallow_clone().g_add_(&mean);
                return Ok(());
            }
            (Share::MetaStep, MetaRule::Maml) => mean,
            (Share::MetaStep, MetaRule::Reptile) => mean * -REPTILE,
        };
        self.meta.step(self.state.parameters(), &gradient, settings.meta_rate())
    }

    /// Draws the first linear layer and the first batch-norm anew: N(0, 0.02), batch-norm weights N(1, 0.02), biases 0.
    ///
    /// The reference draws batch-norm weights around 0 (`reset_l0_fun` in `fast_meta.py`), which its own initialiser for other
    /// methods does not; docs/method.md says why 1 was chosen.
    pub fn reset_first_layers(&self, seed: u64, round: u64) {
        let first = self.network.first_layers();
        let is_first = |slot: Slot| first.iter().any(|(weight, bias)| [*weight, *bias].contains(&slot));
        redraw(&self.state, is_first, |slot| Key::global(seed, Purpose::GeneratorReset, round << 32 | slot));
    }

    /// Images of `count` fresh latent vectors, `[count, c, h, w]` in (0, 1), by the batch's own batch-norm statistics. The shared
    /// running statistics stay as they are: they would depend on who made images.
    ///
    /// Source: zju-vipa/Fast-Datafree `generative.py`, `sample`.
    pub fn sample(&self, key: &Key, count: usize) -> Tensor {
        self.working.copy_from(&self.state);
        let latent_bz = self.latents(key, count);
        tch::no_grad(|| self.network.forward(&self.working, &latent_bz, &mut Pass::train()))
    }
}

/// Draws entries anew: weights N(0, 0.02), batch-norm weights N(1, 0.02), biases 0.
fn redraw(state: &State, which: impl Fn(Slot) -> bool, key: impl Fn(u64) -> Key) {
    for (index, entry) in state.blueprint().entries().iter().enumerate() {
        let slot = Slot(index);
        if !matches!(entry.role, Role::Parameter(_)) || !which(slot) {
            continue;
        }
        if entry.key.ends_with("bias") {
            state.redraw(slot, Init::Constant(0.0), key(index as u64));
            continue;
        }
        state.redraw(slot, Init::Normal(REDRAWN), key(index as u64));
        if entry.shape.len() == 1 {
            tch::no_grad(|| drop(state.at(slot).detach().g_add_scalar_(1.0)));
        }
    }
}

impl Stateful for SharedGenerator {
    fn save(&self, into: &mut Entries) {
        into.tensor("parameters", self.state.parameters());
        into.tensor("statistics", self.state.statistics());
        into.save("meta", &self.meta);
    }

    fn load(&mut self, from: &Entries) -> Result<()> {
        from.copy_tensor("parameters", self.state.parameters())?;
        from.copy_tensor("statistics", self.state.statistics())?;
        from.load("meta", &mut self.meta)
    }
}
