//! One generator for the whole run, one Adam step a round, and fresh images for every student step: DAFL, ZSKT, DFAD and DFQ
//! (zju-vipa/DataFree `generative.py`; zju-vipa/Fast-Datafree hands the teacher over as the student, so that its adversarial loss is 0).

use super::{Memory, Method};
use crate::distill::Criterion;
use crate::inversion::{Disagreement, Keep, Labels, Recipe, Share, Start, Synthesis, Term, Views};

fn generative(name: &'static str, terms: &'static [Term], criterion: Criterion) -> Method {
    let recipe = Recipe {
        synthesis: Synthesis::Generator { start: Start::Shared, learned_latent: false, share: Share::MetaStep },
        labels: Labels::Pseudo,
        views: Views::Plain,
        keep: Keep::Nothing,
        terms,
    };
    Method { name, recipe: Some(recipe), memory: Memory::Fresh, criterion }
}

/// Their code takes T = 1 whatever is configured.
const KL: Criterion = Criterion::Distillation { temperature: 1.0, label_weight: 0.0 };

/// Chen et al., *Data-Free Learning of Student Networks*, ICCV 2019.
pub(super) fn dafl() -> Method {
    generative("dafl", &[Term::Task, Term::Balance, Term::Activation], KL)
}

/// Micaelli and Storkey, *Zero-shot Knowledge Transfer via Adversarial Belief Matching*, NeurIPS 2019.
pub(super) fn zskt() -> Method {
    generative("zskt", &[Term::Adversarial(Disagreement::Plain)], KL)
}

/// Fang et al., *Data-Free Adversarial Distillation*, 2019.
pub(super) fn dfad() -> Method {
    generative("dfad", &[Term::Adversarial(Disagreement::Logits)], Criterion::LogitDistance)
}

/// Choi et al., *Data-Free Network Quantization With Adversarial Knowledge Distillation*, CVPR Workshops 2020.
pub(super) fn dfq() -> Method {
    generative("dfq", &[Term::Statistics, Term::Task, Term::Adversarial(Disagreement::Plain), Term::Balance], KL)
}
