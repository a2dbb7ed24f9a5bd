//! A method is a value: what makes images, where they are kept, what the student learns from them.

mod scratch;
mod ssd_kd;

use crate::config::{Config, MethodName};
use crate::distill::Criterion;

/// How a student is trained.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Method {
    /// Name in reports.
    pub name: &'static str,
    /// Where the rows of a student step come from.
    pub memory: Memory,
    /// Loss of a row.
    pub criterion: Criterion,
}

/// Where rows come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// Synthetic images in the bounded, prioritised replay buffer.
    Replay,
    /// The training split of the real data set.
    RealData,
}

impl Method {
    /// The configured method.
    pub fn of(config: &Config) -> Self {
        match config.method {
            MethodName::SsdKd => ssd_kd::method(config),
        }
    }

    /// Training on real data with labels: how teachers are made.
    pub fn teach() -> Self {
        scratch::method()
    }
}
