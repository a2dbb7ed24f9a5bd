//! Parameters and running statistics of a network, held in flat buffers.
//!
//! All parameters of a network lie in one flat f32 tensor, all its gradients in a second, all running statistics in a
//! third; the tensors that layers use are views into them. What is reduced between ranks, updated by an optimiser or
//! written to a checkpoint is then one tensor each, with no copy per parameter.

use super::layers::as_kind;
use super::{precision, shim};
use crate::config::Precision;
use crate::error::{Error, Result};
use crate::rng::{Key, Purpose};
use std::cell::RefCell;
use std::rc::Rc;
use tch::{Device, Kind, Tensor};

/// How a parameter starts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// U(−bound, bound).
    Uniform(f64),
    /// N(0, standard deviation).
    Normal(f64),
    /// One value.
    Constant(f64),
}

/// What an entry of a state_dict is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Role {
    /// Trained by an optimiser.
    Parameter(Init),
    /// A running mean or variance of batch-norm, with its start value.
    Statistic(f64),
    /// `num_batches_tracked`, an i64 scalar.
    Counter,
}

/// One entry of a state_dict.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Key, as in the PyTorch module.
    pub key: String,
    /// Shape; empty for a scalar.
    pub shape: Vec<i64>,
    /// Meaning and start value.
    pub role: Role,
}

impl Entry {
    /// Number of values.
    pub fn numel(&self) -> i64 {
        self.shape.iter().product()
    }
}

/// Position of an entry in the state_dict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot(pub usize);

/// The entries of a network, in PyTorch's registration order.
#[derive(Debug, Clone)]
pub struct Blueprint {
    entries: Vec<Entry>,
}

/// A place in a growing [`Blueprint`]: a prefix under which layers declare their entries.
#[derive(Debug, Clone, Default)]
pub struct Scope {
    entries: Rc<RefCell<Vec<Entry>>>,
    prefix: String,
}

impl Scope {
    /// The place `name` below this one.
    pub fn child(&self, name: impl std::fmt::Display) -> Self {
        Self { entries: self.entries.clone(), prefix: self.key(&name.to_string()) }
    }

    fn key(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_owned() } else { format!("{}.{name}", self.prefix) }
    }

    /// Declares an entry and says where it will be found.
    pub fn declare(&self, name: &str, shape: &[i64], role: Role) -> Slot {
        let mut entries = self.entries.borrow_mut();
        entries.push(Entry { key: self.key(name), shape: shape.to_vec(), role });
        Slot(entries.len() - 1)
    }

    /// How many batch-norm layers were declared before this point.
    pub fn batch_norms_so_far(&self) -> usize {
        self.entries.borrow().iter().filter(|e| e.key.ends_with("running_mean")).count()
    }

    /// Everything declared so far, anywhere in the network.
    pub fn blueprint(&self) -> Rc<Blueprint> {
        Rc::new(Blueprint { entries: self.entries.borrow().clone() })
    }
}

impl Blueprint {
    /// All entries.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Number of trained values.
    pub fn parameter_count(&self) -> i64 {
        self.entries.iter().filter(|e| matches!(e.role, Role::Parameter(_))).map(Entry::numel).sum()
    }

    /// Refuses a state_dict that does not fit: every key must be there with its shape, and none besides.
    ///
    /// # Errors
    /// [`Error::Tensor`] names `path` and the first tensor that is missing, of another shape, not finite, or unknown.
    pub fn check(&self, dict: &[(String, Tensor)], path: &std::path::Path) -> Result<()> {
        let refuse = |tensor: &str, problem: String| Error::Tensor {
            path: path.into(),
            tensor: tensor.into(),
            problem,
            hint: Some("is this file of another architecture or class count? `ssdkd inspect FILE` lists what it holds".into()),
        };
        let given: std::collections::BTreeMap<&str, &Tensor> = dict.iter().map(|(k, t)| (k.as_str(), t)).collect();
        for entry in &self.entries {
            let Some(tensor) = given.get(entry.key.as_str()) else {
                if entry.role == Role::Counter {
                    continue;
                }
                return Err(refuse(&entry.key, format!("missing; shape {:?} is needed", entry.shape)));
            };
            if tensor.size() != entry.shape {
                return Err(refuse(&entry.key, format!("has shape {:?}; {:?} is needed", tensor.size(), entry.shape)));
            }
            if tensor.kind() != Kind::Int64 && tensor.isfinite().all().int64_value(&[]) == 0 {
                return Err(refuse(&entry.key, "holds NaN or infinite values".into())
                    .with_hint("its training went wrong: take an earlier or another file"));
            }
        }
        let known: std::collections::BTreeSet<&str> = self.entries.iter().map(|e| e.key.as_str()).collect();
        match dict.iter().find(|(key, _)| !known.contains(key.as_str())) {
            Some((key, tensor)) => Err(refuse(key, format!("is not part of this network (shape {:?})", tensor.size()))),
            None => Ok(()),
        }
    }

    /// The entries below `prefix`, to check a part of a network by.
    pub fn part(&self, prefix: &str) -> Self {
        Self { entries: self.entries.iter().filter(|e| e.key.starts_with(prefix)).cloned().collect() }
    }

    /// Channels of every batch-norm layer, in hook order (the order of the `running_mean` keys).
    pub fn batch_norm_channels(&self) -> Vec<i64> {
        self.entries.iter().filter(|e| e.key.ends_with("running_mean")).map(Entry::numel).collect()
    }
}

/// Tensors of one network.
pub struct State {
    blueprint: Rc<Blueprint>,
    parameters: Tensor,
    statistics: Tensor,
    counters: Tensor,
    gradient: Option<Tensor>,
    views: Vec<Tensor>,
    activations: Kind,
    channels_last: bool,
    plain: bool,
}

impl State {
    /// All start values from `key`'s stream: each entry has its own, so none depends on the order of declaration.
    pub fn new(blueprint: &Rc<Blueprint>, key: impl Fn(u64) -> Key, device: Device) -> Self {
        let state = Self::empty(blueprint, device);
        tch::no_grad(|| {
            for (index, entry) in blueprint.entries.iter().enumerate() {
                match entry.role {
                    Role::Parameter(init) => state.redraw(Slot(index), init, key(index as u64)),
                    Role::Statistic(value) => state.redraw(Slot(index), Init::Constant(value), key(index as u64)),
                    Role::Counter => {}
                }
            }
        });
        state
    }

    /// Start values for a network that is trained from scratch.
    pub fn initialised(blueprint: &Rc<Blueprint>, seed: u64, purpose: Purpose, device: Device) -> Self {
        Self::new(blueprint, |entry| Key::global(seed, purpose, entry), device)
    }

    /// All zeros.
    pub fn empty(blueprint: &Rc<Blueprint>, device: Device) -> Self {
        let total = |wanted: fn(&Role) -> bool| blueprint.entries.iter().filter(|e| wanted(&e.role)).map(Entry::numel).sum::<i64>();
        let parameters = Tensor::zeros([total(|r| matches!(r, Role::Parameter(_)))], (Kind::Float, device));
        let statistics = Tensor::zeros([total(|r| matches!(r, Role::Statistic(_)))], (Kind::Float, device));
        let counters = Tensor::zeros([total(|r| matches!(r, Role::Counter))], (Kind::Int64, Device::Cpu));
        let (blueprint, gradient, views, activations) = (blueprint.clone(), None, Vec::new(), Kind::Float);
        let (channels_last, plain) = (false, false);
        let mut state = Self { blueprint, parameters, statistics, counters, gradient, views, activations, channels_last, plain };
        state.views = state.views_into(&state.parameters, &state.statistics, &state.counters);
        state
    }

    fn views_into(&self, parameters: &Tensor, statistics: &Tensor, counters: &Tensor) -> Vec<Tensor> {
        let (mut p, mut s, mut c) = (0, 0, 0);
        self.blueprint
            .entries
            .iter()
            .map(|entry| {
                let (flat, at) = match entry.role {
                    Role::Parameter(_) => (parameters, &mut p),
                    Role::Statistic(_) => (statistics, &mut s),
                    Role::Counter => (counters, &mut c),
                };
                let view = flat.narrow(0, *at, entry.numel()).view(entry.shape.as_slice());
                *at += entry.numel();
                view
            })
            .collect()
    }

    /// Makes the parameters trainable: gradients of every backward pass are added into one flat buffer.
    ///
    /// The buffer is followed by room for the running statistics, so that [`State::payload`] is one tensor.
    pub fn trainable(mut self) -> Result<Self> {
        let room = self.parameters.numel() + self.statistics.numel();
        let buffer = Tensor::zeros([room as i64], (Kind::Float, self.parameters.device()));
        let gradient = buffer.narrow(0, 0, self.parameters.numel() as i64);
        let views = self.views_into(&gradient, &self.statistics, &self.counters);
        for ((entry, parameter), view) in self.blueprint.entries.iter().zip(&self.views).zip(&views) {
            if matches!(entry.role, Role::Parameter(_)) {
                let parameter = parameter.set_requires_grad(true);
                shim::bind_gradient(&parameter, view)?;
            }
        }
        self.gradient = Some(buffer);
        Ok(self)
    }

    /// Convolutions of this network take and give `precision` from now on; what is held here stays f32.
    ///
    /// A GPU's tensor cores multiply channels-last: in TF32 and bf16 that is what convolutions are given there. Other layers keep the
    /// layout they are given. In f32, which is computed beside tensor cores, libtorch's own layout stays.
    pub fn compute_in(&mut self, precision: Precision) {
        self.activations = precision::kind(precision);
        self.channels_last = self.parameters.device().is_cuda() && precision != Precision::F32;
    }

    /// Element type of what convolutions take and give.
    pub(super) fn activations(&self) -> Kind {
        self.activations
    }

    /// Images or a kernel, of four dimensions, as convolutions of this network take them.
    pub(super) fn operand(&self, t: &Tensor) -> Tensor {
        let t = as_kind(t, self.activations);
        if self.channels_last { shim::channels_last(&t) } else { t }
    }

    /// The entries and their order.
    pub fn blueprint(&self) -> &Rc<Blueprint> {
        &self.blueprint
    }

    /// Tensor of a declared entry.
    pub fn at(&self, slot: Slot) -> &Tensor {
        &self.views[slot.0]
    }

    /// All parameters, flat `[p]`.
    pub fn parameters(&self) -> &Tensor {
        &self.parameters
    }

    /// All running means and variances, flat, in state_dict order.
    pub fn statistics(&self) -> &Tensor {
        &self.statistics
    }

    /// All `num_batches_tracked`, i64.
    pub fn counters(&self) -> &Tensor {
        &self.counters
    }

    /// Flat gradient `[p]`, aligned with [`State::parameters`].
    ///
    /// # Panics
    /// If the state was not made [`State::trainable`].
    pub fn gradient(&self) -> Tensor {
        self.gradient_and_room().narrow(0, 0, self.parameters.numel() as i64)
    }

    fn gradient_and_room(&self) -> &Tensor {
        self.gradient.as_ref().expect("a state whose gradient is asked for was made trainable")
    }

    /// Sets the gradient to zero.
    pub fn zero_gradient(&self) {
        let _ = self.gradient_and_room().shallow_clone().zero_();
    }

    /// Gradient and running statistics in one tensor `[p + s]`: what a student step reduces.
    pub fn payload(&self) -> Tensor {
        let payload = self.gradient_and_room().copy();
        let at = self.parameters.numel() as i64;
        payload.narrow(0, at, self.statistics.numel() as i64).copy_(&self.statistics);
        payload
    }

    /// Splits a reduced payload into the gradient and the statistics part.
    pub fn split_payload(&self, payload: &Tensor) -> (Tensor, Tensor) {
        let (p, s) = (self.parameters.numel() as i64, self.statistics.numel() as i64);
        (payload.narrow(0, 0, p), payload.narrow(0, p, s))
    }

    /// Copies all values of `other`, a state of the same network.
    pub fn copy_from(&self, other: &Self) {
        tch::no_grad(|| {
            self.parameters.shallow_clone().copy_(&other.parameters);
            self.statistics.shallow_clone().copy_(&other.statistics);
            self.counters.shallow_clone().copy_(&other.counters);
        });
    }

    /// `(running_mean_f, running_var_f)` of every batch-norm layer, in hook order.
    pub fn running_statistics(&self) -> Vec<(Tensor, Tensor)> {
        let of = |suffix: &str| -> Vec<Tensor> {
            let entries = self.blueprint.entries.iter().zip(&self.views);
            entries.filter(|(e, _)| e.key.ends_with(suffix)).map(|(_, t)| t.shallow_clone()).collect()
        };
        of("running_mean").into_iter().zip(of("running_var")).collect()
    }

    /// The same memory seen without gradients: for passes that must not train this network.
    pub fn frozen(&self) -> Self {
        let alias = |t: &Tensor| t.detach();
        let (parameters, statistics, counters) = (alias(&self.parameters), alias(&self.statistics), alias(&self.counters));
        let Self { activations, channels_last, plain, .. } = *self;
        let (blueprint, gradient, views) = (self.blueprint.clone(), None, Vec::new());
        let mut frozen = Self { blueprint, parameters, statistics, counters, gradient, views, activations, channels_last, plain };
        frozen.views = frozen.views_into(&frozen.parameters, &frozen.statistics, &frozen.counters);
        frozen
    }

    /// The same, computed by libtorch's own operators alone: what a graph can hold, for images of any number and size.
    pub fn plain(&self) -> Self {
        Self { plain: true, ..self.frozen() }
    }

    /// Whether layers leave out every shortcut of theirs.
    pub(super) fn is_plain(&self) -> bool {
        self.plain
    }

    /// Sets all running statistics.
    pub fn set_statistics(&self, flat: &Tensor) {
        tch::no_grad(|| self.statistics.shallow_clone().copy_(flat));
    }

    /// Adds one to every `num_batches_tracked`.
    pub fn count_batch(&self) {
        let _ = self.counters.shallow_clone().g_add_scalar_(1);
    }

    /// Draws one entry anew.
    pub fn redraw(&self, slot: Slot, init: Init, key: Key) {
        let entry = &self.blueprint.entries[slot.0];
        let count = entry.numel() as usize;
        let values = match init {
            Init::Uniform(bound) => key.uniforms(count, -bound, bound),
            Init::Normal(std) => key.normals(count).iter().map(|v| v * std as f32).collect(),
            Init::Constant(value) => vec![value as f32; count],
        };
        tch::no_grad(|| self.views[slot.0].shallow_clone().copy_(&Tensor::from_slice(&values).view(entry.shape.as_slice())));
    }

    /// The state_dict: key and tensor (detached, sharing memory), in PyTorch's order.
    pub fn state_dict(&self) -> Vec<(String, Tensor)> {
        self.blueprint.entries.iter().zip(&self.views).map(|(e, t)| (e.key.clone(), t.detach())).collect()
    }

    /// A network's state from a state_dict that fits; `path` is where that lies.
    ///
    /// # Errors
    /// As [`Blueprint::check`], before anything is allocated: a wrong class count may ask for more than there is.
    pub fn from_state_dict(blueprint: &Rc<Blueprint>, dict: &[(String, Tensor)], path: &std::path::Path, device: Device) -> Result<Self> {
        blueprint.check(dict, path)?;
        let state = Self::empty(blueprint, device);
        state.fill(dict);
        Ok(state)
    }

    /// Takes over the entries that a checked state_dict has.
    pub fn fill(&self, dict: &[(String, Tensor)]) {
        let given: std::collections::BTreeMap<&str, &Tensor> = dict.iter().map(|(k, t)| (k.as_str(), t)).collect();
        for (entry, view) in self.blueprint.entries.iter().zip(&self.views) {
            if let Some(tensor) = given.get(entry.key.as_str()) {
                tch::no_grad(|| view.shallow_clone().copy_(tensor));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::goldens::fill;
    use crate::nn::{Conv2d, ConvInit, ConvShape};

    /// The layout that convolutions are given on tensor cores, on the CPU: the same values and gradients to rounding, channels side by side.
    #[test]
    fn channels_last_changes_numbers_by_rounding_alone() {
        let run = |channels_last: bool| {
            let root = Scope::default();
            let first = Conv2d::declare(root.child("first"), ConvShape::three(1, 8).stride(2), true, ConvInit::Default);
            let second = Conv2d::declare(root.child("second"), ConvShape::three(8, 3), true, ConvInit::Default);
            let state = State::initialised(&root.blueprint(), 3, Purpose::StudentInit, Device::Cpu);
            let state = State { channels_last, ..state }.trainable().unwrap();
            let x = fill(5, &[2, 1, 8, 12]).set_requires_grad(true);
            let y = second.forward_upsampled(&state, &first.forward(&state, &x));
            (&y * fill(6, &y.size())).sum(Kind::Float).backward();
            (y.detach(), x.grad(), state.gradient().copy())
        };
        let (want, got) = (run(false), run(true));
        assert_eq!((want.0.stride()[1], got.0.stride()[1]), (8 * 12, 1));
        for (want, got) in [(want.0, got.0), (want.1, got.1), (want.2, got.2)] {
            assert!(got.allclose(&want, 1e-5, 1e-6, false));
        }
    }
}
