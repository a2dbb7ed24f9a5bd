//! Contrastive model inversion: new images are to be told from all earlier ones by a learned embedding of the teacher's features.
//!
//! Source: Fang et al., *Contrastive Model Inversion for Data-Free Knowledge Distillation* (IJCAI 2021); zju-vipa/DataFree
//! `contrastive.py`.

use crate::config;
use crate::device::upload;
use crate::error::Result;
use crate::losses;
use crate::nn::{Adam, Entries, Linear, Scope, State, Stateful, room_for};
use crate::rng::{Key, Purpose};
use tch::{Device, Kind, Tensor};

/// Values of an embedding.
const EMBEDDING: i64 = 256;
/// Adam's β of the head; its learning rate is the generator's.
const BETAS: (f64, f64) = (0.9, 0.999);

/// A projection head and a memory of features; one of each logical rank, never reduced.
pub struct Contrast {
    first: Linear,
    last: Linear,
    state: State,
    adam: Adam,
    /// Features of the local view, then of the global one: `[bank, 2·d]`.
    bank: Tensor,
    /// Rows written since the start: the bank is a ring.
    written: u64,
    proposed: Option<Tensor>,
    temperature: f64,
    negatives: usize,
}

impl Contrast {
    /// For images of `features` values; `most` rows are ever remembered. Every logical rank's head starts alike.
    ///
    /// # Errors
    /// A memory for which there is no room.
    pub fn new(of: &config::Inversion, features: i64, most: usize, seed: u64, device: Device) -> Result<Self> {
        let root = Scope::default();
        let head = root.child("head");
        let first = Linear::declare(head.child(0), features, features, None);
        let last = Linear::declare(head.child(2), features, EMBEDDING, None);
        let blueprint = root.blueprint();
        let bytes = 4.0 * (2.0 * most as f64 * features as f64 + 4.0 * blueprint.parameter_count() as f64);
        room_for("inversion.contrastive_bank", &format!("{most} images of {features} features"), bytes, device)?;
        let state = State::initialised(&blueprint, seed, Purpose::ContrastInit, device).trainable()?;
        let adam = Adam::new(state.parameters(), BETAS.0, BETAS.1);
        let bank = Tensor::zeros([most as i64, 2 * features], (Kind::Float, device));
        let (temperature, negatives) = (of.contrastive_temperature, of.contrastive_negatives);
        Ok(Self { first, last, state, adam, bank, written: 0, proposed: None, temperature, negatives })
    }

    fn embed(&self, features_nd: &Tensor) -> Tensor {
        self.last.forward(&self.state, &self.first.forward(&self.state, features_nd).relu())
    }

    /// Loss of new images, seen in a local and in a global view, against remembered ones; `key` says which. Differentiable.
    pub(super) fn loss(&self, local_bd: &Tensor, global_bd: &Tensor, key: &Key) -> Tensor {
        let (fresh, d) = (local_bd.size()[0], local_bd.size()[1]);
        let filled = self.written.min(self.bank.size()[0] as u64) as usize;
        let (mut local, mut global) = (local_bd.shallow_clone(), global_bd.shallow_clone());
        if filled > 0 {
            let rows: Vec<i64> = key.permutation(filled).into_iter().take(self.negatives).map(i64::from).collect();
            let known = self.bank.index_select(0, &upload(&Tensor::from_slice(&rows), self.bank.device()));
            local = Tensor::cat(&[local, known.narrow(1, 0, d)], 0);
            global = Tensor::cat(&[global, known.narrow(1, d, d)], 0);
        }
        losses::contrast(&self.embed(&local), &self.embed(&global), self.temperature, fresh)
    }

    /// One Adam step of the head by the gradient that has come in since the last.
    pub(super) fn step(&mut self, lr: f64) -> Result<()> {
        self.adam.step(self.state.parameters(), &self.state.gradient(), lr)?;
        self.state.zero_gradient();
        Ok(())
    }

    /// Features to remember once the call they belong to counts.
    pub(super) fn propose(&mut self, features_be: Tensor) {
        self.proposed = Some(features_be);
    }

    /// Remembers what was proposed, in the place of the oldest.
    pub(super) fn settle(&mut self) {
        let Some(features_be) = self.proposed.take() else { return };
        let most = self.bank.size()[0];
        let places: Vec<i64> = (0..features_be.size()[0]).map(|i| (self.written as i64 + i) % most).collect();
        let _ = self.bank.index_copy_(0, &upload(&Tensor::from_slice(&places), self.bank.device()), &features_be);
        self.written += places.len() as u64;
    }

    /// The head as it is now, to go back to.
    pub(super) fn head(&self) -> Entries {
        let mut head = Entries::default();
        head.tensor("parameters", self.state.parameters());
        head.save("adam", &self.adam);
        head
    }

    /// Takes a head back, and forgets what was proposed.
    pub(super) fn go_back(&mut self, head: &Entries) -> Result<()> {
        self.proposed = None;
        head.copy_tensor("parameters", self.state.parameters())?;
        head.load("adam", &mut self.adam)
    }
}

impl Stateful for Contrast {
    fn save(&self, into: &mut Entries) {
        into.tensor("parameters", self.state.parameters());
        into.save("adam", &self.adam);
        into.tensor("bank", &self.bank);
        into.number("written", self.written);
    }

    fn load(&mut self, from: &Entries) -> Result<()> {
        from.copy_tensor("parameters", self.state.parameters())?;
        from.load("adam", &mut self.adam)?;
        from.copy_tensor("bank", &self.bank)?;
        self.written = from.read_number("written")?;
        Ok(())
    }
}
