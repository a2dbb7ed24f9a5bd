//! SGD and Adam over one flat buffer, and the learning-rate schedule.
//!
//! tch binds no fused update and cannot hand out optimiser state, so it could not be saved; here the state is one tensor.

use super::shim::{self, AdamConstants};
use super::stateful::{Entries, Stateful};
use crate::error::Result;
use tch::{Kind, Tensor};

/// SGD with momentum and weight decay on all parameters, no Nesterov, no dampening (`torch.optim.SGD`).
pub struct Sgd {
    momentum: f64,
    weight_decay: f64,
    buffer: Tensor,
    steps: u64,
}

impl Sgd {
    /// For a flat parameter tensor like `parameters`.
    pub fn new(parameters: &Tensor, momentum: f64, weight_decay: f64) -> Self {
        Self { momentum, weight_decay, buffer: parameters.detach().zeros_like(), steps: 0 }
    }

    /// One update in place.
    pub fn step(&mut self, parameters: &Tensor, gradient: &Tensor, lr: f64) -> Result<()> {
        shim::sgd(parameters, gradient, &self.buffer, lr, self.momentum, self.weight_decay, self.steps == 0)?;
        self.steps += 1;
        Ok(())
    }
}

impl Stateful for Sgd {
    fn save(&self, into: &mut Entries) {
        into.tensor("momentum", &self.buffer);
        into.number("steps", self.steps);
    }

    fn load(&mut self, from: &Entries) -> Result<()> {
        from.copy_tensor("momentum", &self.buffer)?;
        self.steps = from.read_number("steps")?;
        Ok(())
    }
}

/// Adam without weight decay (`torch.optim.Adam`).
pub struct Adam {
    constants: AdamConstants,
    first: Tensor,
    second: Tensor,
    steps: u64,
}

impl Adam {
    /// For a flat tensor like `parameters`. β = (`beta1`, `beta2`), eps 1e-8.
    pub fn new(parameters: &Tensor, beta1: f64, beta2: f64) -> Self {
        let zeros = || parameters.detach().zeros_like().to_kind(Kind::Float);
        Self { constants: AdamConstants { beta1, beta2, eps: 1e-8 }, first: zeros(), second: zeros(), steps: 0 }
    }

    /// Forgets all moments: a new optimiser over the same parameters.
    pub fn restart(&mut self) {
        let _ = self.first.zero_();
        let _ = self.second.zero_();
        self.steps = 0;
    }

    /// One update in place.
    pub fn step(&mut self, parameters: &Tensor, gradient: &Tensor, lr: f64) -> Result<()> {
        self.steps += 1;
        shim::adam(parameters, gradient, &self.first, &self.second, self.steps, lr, self.constants)
    }
}

impl Stateful for Adam {
    fn save(&self, into: &mut Entries) {
        into.tensor("first_moment", &self.first);
        into.tensor("second_moment", &self.second);
        into.number("steps", self.steps);
    }

    fn load(&mut self, from: &Entries) -> Result<()> {
        from.copy_tensor("first_moment", &self.first)?;
        from.copy_tensor("second_moment", &self.second)?;
        self.steps = from.read_number("steps")?;
        Ok(())
    }
}

/// lr at `t` of `period`: floor + (start − floor)·(1 + cos(π·t/period))/2, and the floor from then on.
///
/// Source: zju-vipa/Fast-Datafree `datafree_kd.py`, cosine stepped once per epoch.
pub fn cosine(start: f64, floor: f64, t: u64, period: u64) -> f64 {
    let progress = t.min(period) as f64 / period.max(1) as f64;
    floor + (start - floor) * (1.0 + (std::f64::consts::PI * progress).cos()) / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of spec `methods.md`, section 4: lr 0.2, floor 2e-4, period 200.
    #[test]
    fn the_cosine_is_the_references() {
        for (t, want) in [(0, 0.2), (1, 0.199_987_68), (50, 0.170_739_97), (100, 0.1001), (150, 0.029_460_033), (199, 0.000_212_324_42)] {
            let got = cosine(0.2, 2e-4, t, 200);
            assert!((got - want).abs() < 1e-8, "t = {t}: {got} instead of {want}");
        }
    }
}
