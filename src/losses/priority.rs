//! Priorities, sampling masses and importance weights of the replay buffer.

use super::power::{power, powers};
use crate::vector::vectorised;

/// Priority (|δ| + ε)^α of one sample, in f64 (SSD-KD Eq. 6, numerator). NaN where δ is NaN or infinite.
pub fn priority(delta: f64, epsilon: f64, alpha: f64) -> f64 {
    power(delta.abs() + epsilon, alpha)
}

/// Importance weight w = (N·P)^−β from N·P (SSD-KD Eq. 7): 1 for every sample when P is uniform over the N filled slots.
pub fn importance_weight(relative_probability: f64, beta: f64) -> f64 {
    power(relative_probability, -beta)
}

vectorised! {
    /// [`priority`] of every δ of `values`, in place: the same bits.
    pub fn priorities(values: &mut [f64], epsilon: f64, alpha: f64) {
        for value in &mut *values {
            *value = value.abs() + epsilon;
        }
        powers(values, alpha);
    }
}

vectorised! {
    /// [`importance_weight`] of every N·P of `values`, in place: the same bits.
    pub fn importance_weights(values: &mut [f64], beta: f64) {
        powers(values, -beta);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Key, Purpose};

    #[test]
    fn many_at_once_have_the_bits_of_one() {
        let key = Key::global(1, Purpose::Draw, 0);
        let values: Vec<f64> = (0..1003).map(|i| (key.uniform(i) - 0.3) * 2f64.powi((i % 60) as i32 - 40)).collect();
        let (mut all, mut weights) = (values.clone(), values.iter().map(|v| v.abs()).collect::<Vec<_>>());
        priorities(&mut all, 1e-6, 0.6);
        importance_weights(&mut weights, 0.4);
        for ((value, all), weight) in values.iter().zip(all).zip(weights) {
            assert_eq!(all.to_bits(), priority(*value, 1e-6, 0.6).to_bits());
            assert_eq!(weight.to_bits(), importance_weight(value.abs(), 0.4).to_bits());
        }
    }
}
