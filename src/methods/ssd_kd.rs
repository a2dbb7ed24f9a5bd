//! SSD-KD: Liu, Wang, Liu, Sun, Yao, *Small Scale Data-Free Knowledge Distillation*, CVPR 2024.

use super::{Memory, Method};
use crate::config::Config;
use crate::distill::Criterion;

pub(super) fn method(config: &Config) -> Method {
    Method { name: "ssd_kd", memory: Memory::Replay, criterion: Criterion::Distillation { temperature: config.distill.temperature } }
}
