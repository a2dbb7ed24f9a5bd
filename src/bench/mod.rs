//! Measurements of the replay buffer, as `ssdkd bench replay` and `cargo bench` print them.

mod balance;
mod ranks;
mod sampler;

pub use balance::{Balance, balance};
pub use ranks::{DrawTimes, draw_times};
pub use sampler::{Measured, Peers, SIZES, Speeds, sampler};

/// The middle one of some measurements.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
