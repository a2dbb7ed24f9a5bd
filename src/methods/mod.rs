//! A method is a value: what makes images, where they are kept, what the student learns from them.

mod cmi;
mod deepinv;
mod fast;
mod generative;
mod real;
mod ssd_kd;

use crate::config::{self, Config, DrawRule, Inversion, Job, MethodName, Replay};
use crate::distill::Criterion;
use crate::error::{Error, Result};
use crate::inversion::{Recipe, Share, Synthesis, Term};
use crate::task::Task;
use crate::teacher::Teacher;
use std::path::Path;

/// All that can be said of a configuration without looking at files: its values, its networks, its loss.
///
/// # Errors
/// Every value that cannot be; the first network that does not label what the data set labels; a loss of nothing.
pub fn check(config: &Config, job: Job) -> Result<()> {
    config::check(config, job)?;
    needs_data(config, job)?;
    Task::check(config.dataset, "teacher.model", config.teacher.model)?;
    if job == Job::Train {
        Task::check(config.dataset, "student.model", config.student.model)?;
        Method::of(config).check(config)?;
    }
    Ok(())
}

/// Refuses a configuration without data for what needs some: training on it, and scores of a method none of whose images are fresh.
fn needs_data(config: &Config, job: Job) -> Result<()> {
    if Task::of(config.dataset).has_data() {
        return Ok(());
    }
    let refused = |who: &str, needs: &str| {
        let problem = format!("none: {who} {needs}; name a data set, or use a method that makes its images with one trained generator");
        Err(Error::config("dataset", problem))
    };
    let method = Method::of(config);
    match (job, method.memory, method.recipe.map(|recipe| recipe.synthesis)) {
        (Job::Teach, ..) => refused("`ssdkd teach`", "trains on images with labels"),
        (_, Memory::RealData, _) => refused(method.name, "trains on images with labels"),
        (_, _, Some(Synthesis::Generator { share, .. })) if share != Share::Nothing => Ok(()),
        _ => refused(method.name, "keeps no generator that could make fresh images to compare student and teacher on"),
    }
}

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

    /// Checks the configured loss of new images.
    ///
    /// # Errors
    /// One that is nothing, in the warm-up or at all.
    fn check(&self, config: &Config) -> Result<()> {
        let Some(recipe) = self.recipe else { return Ok(()) };
        let name = self.name;
        if recipe.terms.iter().all(|term| term.weight(&config.inversion) == 0.0) {
            return Err(Error::config("inversion", format!("no term of {name}'s loss has a weight: set one of the inversion.…_weight")));
        }
        if config.train.warmup_rounds > 0 && self.only_disagrees(&config.inversion) {
            let rounds = config.train.warmup_rounds;
            let problem =
                format!("{rounds}: {name} makes images by the student's disagreement alone, which joins after the warm-up; use 0");
            return Err(Error::config("train.warmup_rounds", problem));
        }
        Ok(())
    }

    /// Whether its images come from the student's disagreement alone, which joins after the warm-up, so that it can have none.
    pub fn only_disagrees(&self, weights: &Inversion) -> bool {
        let is_other = |term: &Term| term.weight(weights) != 0.0 && !matches!(term, Term::Adversarial(_));
        self.recipe.is_some_and(|recipe| !recipe.terms.iter().any(is_other))
    }

    /// Weights file of the teacher, where one takes part.
    ///
    /// # Errors
    /// One that takes part and is not named.
    pub fn teacher_weights<'a>(&self, config: &'a Config) -> Result<Option<&'a Path>> {
        if self.recipe.is_none() && !matches!(self.criterion, Criterion::Distillation { .. }) {
            return Ok(None);
        }
        let named = config.teacher.weights.as_deref();
        let missing = || Error::config("teacher.weights", "is not set: name the teacher's weights file (.safetensors, .pth or .pt)");
        named.ok_or_else(missing).map(Some)
    }

    /// Whether it inverts the teacher's batch-norm statistics.
    pub fn needs_batch_norm(&self, config: &Config) -> bool {
        let has = |term| self.recipe.is_some_and(|recipe| recipe.has(term, &config.inversion));
        has(Term::Statistics) || has(Term::Contrast)
    }

    /// Refuses a teacher that lacks what it looks at.
    ///
    /// # Errors
    /// Names `path`, the teacher's file, and the way out.
    pub fn check_teacher(&self, config: &Config, teacher: &Teacher, path: &Path) -> Result<()> {
        if self.recipe.is_some() {
            teacher.needs_gradient(path)?;
        }
        if self.needs_features(config) {
            teacher.needs_features(path)?;
        }
        if self.needs_batch_norm(config) { teacher.needs_batch_norm(path) } else { Ok(()) }
    }

    /// Whether it looks at the teacher's features.
    pub fn needs_features(&self, config: &Config) -> bool {
        self.recipe.is_some_and(|recipe| recipe.has(Term::Activation, &config.inversion))
    }

    /// Whether images outlive the step that they were made for.
    pub fn stores_images(&self) -> bool {
        matches!(self.memory, Memory::Replay | Memory::Pool)
    }

    /// Key that says how many images it stores, where it stores any.
    pub fn capacity_key(&self) -> &'static str {
        if self.memory == Memory::Pool { "train.rounds" } else { "replay.capacity" }
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
