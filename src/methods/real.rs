//! Training on real data: teachers, and the references a student without data is held against.

use super::{Memory, Method};
use crate::config::Config;
use crate::distill::Criterion;

/// With labels alone.
pub(super) fn scratch() -> Method {
    Method { name: "scratch", recipe: None, memory: Memory::RealData, criterion: Criterion::CrossEntropy }
}

/// Hinton et al. 2015 in zju-vipa/DataFree's form (`vanilla_kd.py`, α = 1): KL_T + `distill.label_weight` · cross entropy.
pub(super) fn kd(config: &Config) -> Method {
    let criterion = Criterion::Distillation { temperature: config.distill.temperature, label_weight: config.distill.label_weight };
    Method { name: "kd", recipe: None, memory: Memory::RealData, criterion }
}
