//! The deterministic filling that golden values were computed with: v(i, j) in [−1, 1), exact in f32.

use tch::{Kind, Tensor};

/// Element `j` of tensor number `i`: a SplitMix64 finaliser over `(i << 32) + j`.
pub fn value(i: u64, j: u64) -> f64 {
    let mut z = ((i << 32).wrapping_add(j)).wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^= z >> 31;
    ((z >> 40) as f64 - 8_388_608.0) / 8_388_608.0
}

/// A f64 tensor of `shape` filled with v(i, ·).
pub fn fill_f64(i: u64, shape: &[i64]) -> Tensor {
    let count = shape.iter().product::<i64>() as u64;
    Tensor::from_slice(&(0..count).map(|j| value(i, j)).collect::<Vec<f64>>()).view(shape)
}

/// A f32 tensor of `shape` filled with v(i, ·).
pub fn fill(i: u64, shape: &[i64]) -> Tensor {
    fill_f64(i, shape).to_kind(Kind::Float)
}
