//! DeepInversion: Yin et al., *Dreaming to Distill*, CVPR 2020 (adaptive form, with the student's disagreement; zju-vipa/DataFree
//! `deepinversion.py`, without the student's own statistics that zju-vipa/Fast-Datafree subtracts).

use super::{Memory, Method, distillation};
use crate::config::Config;
use crate::inversion::{Disagreement, Keep, Labels, Recipe, Synthesis, Term, Views};

const RECIPE: Recipe = Recipe {
    synthesis: Synthesis::Pixels,
    labels: Labels::Drawn,
    views: Views::Rolled,
    // The reference means to keep the best, but its copy shares memory with what it goes on moving.
    keep: Keep::Last,
    terms: &[Term::Statistics, Term::Task, Term::Adversarial(Disagreement::JensenShannon), Term::Variation, Term::Norm],
};

pub(super) fn method(config: &Config) -> Method {
    Method { name: "deepinv", recipe: Some(RECIPE), memory: Memory::Pool, criterion: distillation(config) }
}
