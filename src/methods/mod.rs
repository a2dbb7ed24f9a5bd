//! A method is a value: what makes images, where they are kept, what the student learns from them.

mod cmi;
mod deepinv;
mod fast;
mod generative;
mod real;
mod ssd_kd;

use crate::config::{Config, DrawRule, MethodName, Replay};
use crate::distill::Criterion;
use crate::inversion::Recipe;

/// How a student is trained.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Method {
    /// Name in reports.
    pub name: &'static str,
    /// How images come about, where any do.
    pub recipe: Option<Recipe>,
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
    /// All synthetic images ever made, each as likely as any other.
    Pool,
    /// Images made for the step and forgotten.
    Fresh,
    /// The training split of the real data set.
    RealData,
}

impl Method {
    /// The configured method.
    pub fn of(config: &Config) -> Self {
        match config.method {
            MethodName::SsdKd => ssd_kd::method(config),
            MethodName::FastMeta => fast::meta(config),
            MethodName::Fast => fast::plain(config),
            MethodName::Dafl => generative::dafl(),
            MethodName::Zskt => generative::zskt(),
            MethodName::Dfad => generative::dfad(),
            MethodName::Dfq => generative::dfq(),
            MethodName::Deepinv => deepinv::method(config),
            MethodName::Cmi => cmi::method(config),
            MethodName::Kd => real::kd(config),
            MethodName::Scratch => real::scratch(),
        }
    }

    /// Training on real data with labels: how teachers are made.
    pub fn teach() -> Self {
        real::scratch()
    }

    /// Whether a teacher takes part.
    pub fn has_teacher(&self) -> bool {
        self.recipe.is_some() || matches!(self.criterion, Criterion::Distillation { .. })
    }

    /// Whether it inverts the teacher's batch-norm statistics.
    pub fn needs_batch_norm(&self, config: &Config) -> bool {
        use crate::inversion::Term;
        let has = |term| self.recipe.is_some_and(|recipe| recipe.has(term, &config.inversion));
        has(Term::Statistics) || has(Term::Contrast)
    }

    /// The rules of its buffer: a pool is one that holds every image of the run.
    pub fn buffer(&self, config: &Config, images_per_round: usize) -> Replay {
        match self.memory {
            Memory::Pool => {
                let capacity = images_per_round * config.train.rounds as usize;
                Replay { capacity, draw: DrawRule::Uniform, ..config.replay.clone() }
            }
            _ => config.replay.clone(),
        }
    }
}

/// KL at the configured temperature, as every method with stored images has it.
fn distillation(config: &Config) -> Criterion {
    Criterion::Distillation { temperature: config.distill.temperature, label_weight: 0.0 }
}
