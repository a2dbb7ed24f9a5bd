//! CMI: Fang et al., *Contrastive Model Inversion for Data-Free Knowledge Distillation*, IJCAI 2021 (zju-vipa/DataFree `contrastive.py`).
//!
//! Head and memory belong to a logical rank: images are told from those of their own rank (ours: the reference has one).

use super::{Memory, Method, distillation};
use crate::config::Config;
use crate::inversion::{Disagreement, Keep, Labels, Recipe, Share, Start, Synthesis, Term, Views};

const RECIPE: Recipe = Recipe {
    synthesis: Synthesis::Generator { start: Start::Fresh, learned_latent: true, share: Share::Nothing },
    labels: Labels::Drawn,
    views: Views::Shifted,
    keep: Keep::Best,
    terms: &[Term::Contrast, Term::Statistics, Term::Task, Term::Adversarial(Disagreement::Masked)],
};

pub(super) fn method(config: &Config) -> Method {
    Method { name: "cmi", recipe: Some(RECIPE), memory: Memory::Pool, criterion: distillation(config) }
}
