//! Priorities, sampling masses and importance weights of the replay buffer.

/// Sampling mass (|δ| + ε)^α of one sample, in f64 (SSD-KD Eq. 6, numerator).
pub fn priority(delta: f64, epsilon: f64, alpha: f64) -> f64 {
    (delta.abs() + epsilon).powf(alpha)
}

/// Importance weight w = (N·P)^−β from N·P (SSD-KD Eq. 7): 1 for every sample when P is uniform over the N filled slots.
pub fn importance_weight(relative_probability: f64, beta: f64) -> f64 {
    relative_probability.powf(-beta)
}
