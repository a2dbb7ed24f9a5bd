//! Measurements, as `ssdkd bench` and `cargo bench` print them.

mod balance;
mod peers;
mod projection;
mod ranks;
mod sampler;
mod scaling;
mod step;

pub use balance::{Balance, balance};
pub use peers::Peers;
pub use projection::{GPUS, Machine, Pair, Projected, project, projection};
pub use ranks::{DrawTimes, draw_times};
pub use sampler::{Measured, SIZES, Speeds, sampler, sampler_peers};
pub use scaling::{RanksReport, WorkScaling, scaling, sum_bytes};
pub use step::{Peaks, StepReport, StepSettings, StepTimes, Work, counts, steps};

use ranks::filled;

/// The middle one of some measurements.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
