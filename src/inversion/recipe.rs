//! How a method makes images, as a value: the parts in which published methods differ.

use crate::config;

/// How images come about.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Recipe {
    /// What the inner steps move.
    pub synthesis: Synthesis,
    /// Categories the images are to show.
    pub labels: Labels,
    /// How teacher and student see them.
    pub views: Views,
    /// What a synthesis call leaves behind.
    pub keep: Keep,
    /// The loss, term by term; weights are `inversion.*_weight`.
    pub terms: &'static [Term],
}

/// What the inner steps move.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Synthesis {
    /// The pixels, from noise.
    Pixels,
    /// A copy of the generator, and perhaps its latent vectors.
    Generator {
        /// Where the copy starts.
        start: Start,
        /// Whether each image's latent vector is learned too (`inversion.lr_latent`).
        learned_latent: bool,
        /// What the shared generator takes from the copies of all logical ranks.
        share: Share,
    },
}

/// Where a copy of the generator starts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Start {
    /// At the shared weights.
    Shared,
    /// At new random weights.
    Fresh,
}

/// What the copies of all logical ranks give to the shared generator.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Share {
    /// A meta step by `inversion.meta`. With one inner step on fixed latent vectors this is plain data-parallel Adam.
    MetaStep,
    /// It moves to the mean of the copies. On one logical rank the generator is simply trained on.
    Mean,
    /// Nothing.
    Nothing,
}

/// Categories the images are to show.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Labels {
    /// Uniform ones.
    Drawn,
    /// Whatever the teacher sees in them.
    Pseudo,
}

/// How teacher and student see new images in an inner step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Views {
    /// Each with its own shift and flip, borders black (`inversion.view_shift`).
    Shifted,
    /// All rolled round by the same shift, and all flipped or none.
    Rolled,
    /// As they are.
    Plain,
}

/// What a synthesis call leaves behind.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Keep {
    /// The images of the inner step with the lowest loss.
    Best,
    /// Those after the last one.
    Last,
    /// None: the student's batches are made when they are needed.
    Nothing,
}

/// A term of the inversion loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Term {
    /// Batch-norm statistics.
    Statistics,
    /// Cross entropy of the teacher with the labels.
    Task,
    /// The same weighted by φ.
    ModulatedTask,
    /// Minus the student's disagreement with the teacher.
    Adversarial(Disagreement),
    /// Predicted categories equally frequent.
    Balance,
    /// Strong features.
    Activation,
    /// Smooth images.
    Variation,
    /// Small pixel values, normalised.
    Norm,
    /// Unlike earlier images.
    Contrast,
}

/// Measures of disagreement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disagreement {
    /// KL₁(teacher ‖ student) where both predict the same category.
    Masked,
    /// KL₁ everywhere.
    Plain,
    /// Mean distance of the logits.
    Logits,
    /// Jensen–Shannon at T = 3.
    JensenShannon,
}

impl Term {
    /// Its weight λ.
    pub fn weight(self, of: &config::Inversion) -> f64 {
        match self {
            Self::Statistics => of.statistics_weight,
            Self::Task | Self::ModulatedTask => of.task_weight,
            Self::Adversarial(_) => of.adversarial_weight,
            Self::Balance => of.balance_weight,
            Self::Activation => of.activation_weight,
            Self::Variation => of.variation_weight,
            Self::Norm => of.norm_weight,
            Self::Contrast => of.contrastive_weight,
        }
    }

    /// Whether it asks something of the images whatever the labels and the student say.
    pub fn is_prior(&self) -> bool {
        self.column() == PRIOR
    }

    /// Where its value goes in the record of a round.
    pub(super) fn column(self) -> usize {
        match self {
            Self::Statistics => 0,
            Self::Task | Self::ModulatedTask => 1,
            Self::Adversarial(_) => 2,
            Self::Balance | Self::Activation | Self::Variation | Self::Norm | Self::Contrast => PRIOR,
        }
    }
}

/// Columns of a record's inversion terms: statistics, task, adversarial, mean φ, and all others, weighted.
pub const COLUMNS: usize = 5;
/// Mean φ.
pub(super) const PHI: usize = 3;
/// All terms that have no column of their own, weighted and added.
pub(super) const PRIOR: usize = 4;

impl Recipe {
    /// Whether a term takes part, with a weight that is not 0.
    pub fn has(&self, wanted: Term, of: &config::Inversion) -> bool {
        self.terms.contains(&wanted) && wanted.weight(of) != 0.0
    }
}
