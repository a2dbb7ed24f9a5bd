//! Fang, Mo, Wang, Song, Bei, Zhang, Song, *Up to 100× Faster Data-Free Knowledge Distillation*, AAAI 2022: FastMeta, whose meta-learned
//! generator and statistics loss SSD-KD inherits, and the same without the meta step (zju-vipa/Fast-Datafree, `fast_meta.py`, `fast.py`).

use super::{Memory, Method, distillation, ssd_kd};
use crate::config::Config;
use crate::inversion::{Disagreement, Recipe, Share, Start, Synthesis, Term};

const META: Recipe = Recipe { terms: &[Term::Statistics, Term::Task, Term::Adversarial(Disagreement::Masked)], ..ssd_kd::RECIPE };

/// "Fast-k" with k = `inversion.steps`; `inversion.meta` has the form of the meta step.
pub(super) fn meta(config: &Config) -> Method {
    Method { name: "fast_meta", recipe: Some(META), memory: Memory::Pool, criterion: distillation(config) }
}

/// The generator is trained on from call to call. On several logical ranks it moves to the mean of their copies (ours: the reference
/// has one).
pub(super) fn plain(config: &Config) -> Method {
    let synthesis = Synthesis::Generator { start: Start::Shared, learned_latent: true, share: Share::Mean };
    Method { name: "fast", recipe: Some(Recipe { synthesis, ..META }), memory: Memory::Pool, criterion: distillation(config) }
}
