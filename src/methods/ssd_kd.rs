//! SSD-KD: Liu, Wang, Liu, Sun, Yao, *Small Scale Data-Free Knowledge Distillation*, CVPR 2024. docs/method.md has its equations.

use super::{Memory, Method, distillation};
use crate::config::Config;
use crate::inversion::{Disagreement, Keep, Labels, Recipe, Share, Start, Synthesis, Term, Views};

pub(super) const RECIPE: Recipe = Recipe {
    synthesis: Synthesis::Generator { start: Start::Shared, learned_latent: true, share: Share::MetaStep },
    labels: Labels::Drawn,
    views: Views::Shifted,
    keep: Keep::Best,
    terms: &[Term::Statistics, Term::ModulatedTask, Term::Adversarial(Disagreement::Masked)],
};

pub(super) fn method(config: &Config) -> Method {
    Method { name: "ssd_kd", recipe: Some(RECIPE), memory: Memory::Replay, criterion: distillation(config) }
}
