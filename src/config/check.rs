//! Values and combinations that are refused before anything runs, all found at once.

use super::schema::{Config, DatasetName, MAX_CLASSES, MAX_SIDE, ModelName};
use crate::error::{Error, Finding, Result};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// What a configuration is used for; some keys matter to one job only.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Job {
    /// `ssdkd train`: a student from a teacher.
    #[default]
    Train,
    /// `ssdkd teach`: a teacher from real data.
    Teach,
}

impl Job {
    /// The command that does it.
    pub fn command(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Teach => "teach",
        }
    }

    /// Rounds of a run: a teacher's are its epochs.
    pub fn rounds(self, config: &Config) -> u64 {
        match self {
            Self::Train => config.train.rounds,
            Self::Teach => config.teach.epochs,
        }
    }

    /// Key and value of the rows of a step.
    pub fn batch(self, config: &Config) -> (&'static str, usize) {
        match self {
            Self::Train => ("distill.batch_size", config.distill.batch_size),
            Self::Teach => ("teach.batch_size", config.teach.batch_size),
        }
    }

    /// The network in training.
    fn trained(self, config: &Config) -> ModelName {
        match self {
            Self::Train => config.student.model,
            Self::Teach => config.teacher.model,
        }
    }

    /// Key of the weights that the network in training starts from.
    pub fn backbone_key(self) -> &'static str {
        match self {
            Self::Train => "student.backbone",
            Self::Teach => "teach.backbone",
        }
    }

    /// Key of its name.
    fn trained_key(self) -> &'static str {
        match self {
            Self::Train => "student.model",
            Self::Teach => "teacher.model",
        }
    }

    /// Whether a key belongs to the other job and changes nothing in this one.
    pub(super) fn ignores(self, key: &str) -> bool {
        let sections: &[&str] = match self {
            Self::Train => &["teach."],
            Self::Teach => &["replay.", "phi.", "generator.", "inversion.", "distill."],
        };
        (self == Self::Teach && key == "method") || sections.iter().any(|section| key.starts_with(section))
    }
}

impl DatasetName {
    /// Whether a key describes another data set and changes nothing in this one.
    pub(crate) fn ignores(self, key: &str) -> bool {
        let others: &[(&[&str], &[Self])] = &[
            (&["data.scene_size", "data.scene_crop", "data.scene_seed", "data.train_scenes", "data.test_scenes"], &[Self::Scenes13]),
            (&["data.classes", "data.channels", "data.size"], &[Self::Folder, Self::None]),
            (&["data.resize"], &[Self::Folder]),
            (&["eval.fresh_images"], &[Self::None]),
            (&["inversion.regions"], &[Self::Scenes13, Self::Nyuv2]),
        ];
        others.iter().any(|(keys, of)| keys.contains(&key) && !of.contains(&self))
    }
}

/// Characters of the longest tag: one that fits a column and every tracker.
const LONGEST_TAG: usize = 64;

/// Checks everything that needs no data, teacher or launch.
///
/// # Errors
/// [`Error::Config`] with every finding.
pub fn check(config: &Config, job: Job) -> Result<()> {
    let mut found = Findings(Vec::new());
    let c = config;
    if !ModelName::BUILT_IN.contains(&job.trained(c)) {
        let (key, name, legal) = (job.trained_key(), job.trained(c).name(), ModelName::BUILT_IN.map(ModelName::name).join(", "));
        found.add(key, format!("{name} networks teach, but are not trained here: use one of {legal}"));
    }
    for tag in &c.tags {
        let length = tag.chars().count();
        if tag.trim().is_empty() || length > LONGEST_TAG {
            found.add("tags", format!("\"{tag}\" has {length} characters: use 1 to {LONGEST_TAG} a tag, as in tags=[\"a\", \"b\"]"));
        }
    }
    found.positive("student.lr", c.student.lr);
    match job {
        Job::Train => found.within("student.lr_min", c.student.lr_min, 0.0, c.student.lr, "0 and student.lr"),
        Job::Teach => found.within("student.lr_min", c.student.lr_min, 0.0, c.teach.lr, "0 and teach.lr"),
    }
    found.within("student.momentum", c.student.momentum, 0.0, 0.999_999, "0 and 1 (exclusive)");
    found.not_negative("student.weight_decay", c.student.weight_decay);
    found.at_least("generator.latent", c.generator.latent, 1);
    found.at_most("generator.latent", c.generator.latent, 1_000_000);
    found.at_least("generator.filters", c.generator.filters, 1);
    found.at_most("generator.filters", c.generator.filters, 65_536);
    found.at_least("generator.stages", c.generator.stages, 0);
    found.at_most("generator.stages", c.generator.stages, 10);
    found.at_least("inversion.steps", c.inversion.steps as i64, 1);
    found.at_least("inversion.batch_size", c.inversion.batch_size as i64, 2);
    found.positive("inversion.lr_generator", c.inversion.lr_generator);
    found.not_negative("inversion.lr_meta", c.inversion.lr_meta);
    found.not_negative("inversion.lr_latent", c.inversion.lr_latent);
    found.within("inversion.adam_beta1", c.inversion.adam_beta1, 0.0, 0.999_999, "0 and 1 (exclusive)");
    found.within("inversion.adam_beta2", c.inversion.adam_beta2, 0.0, 0.999_999, "0 and 1 (exclusive)");
    found.not_negative("inversion.statistics_weight", c.inversion.statistics_weight);
    found.not_negative("inversion.task_weight", c.inversion.task_weight);
    found.not_negative("inversion.adversarial_weight", c.inversion.adversarial_weight);
    found.not_negative("inversion.balance_weight", c.inversion.balance_weight);
    found.not_negative("inversion.activation_weight", c.inversion.activation_weight);
    found.not_negative("inversion.variation_weight", c.inversion.variation_weight);
    found.not_negative("inversion.norm_weight", c.inversion.norm_weight);
    found.not_negative("inversion.contrastive_weight", c.inversion.contrastive_weight);
    found.positive("inversion.contrastive_temperature", c.inversion.contrastive_temperature);
    found.at_least("inversion.contrastive_bank", c.inversion.contrastive_bank as i64, 1);
    found.at_least("inversion.contrastive_negatives", c.inversion.contrastive_negatives as i64, 1);
    if job == Job::Train && c.method.trains_one_generator() && c.inversion.steps != 1 {
        let (method, steps) = (c.method.name(), c.inversion.steps);
        found.add("inversion.steps", format!("{steps}: {method} moves its generator once a round; use 1, and more train.rounds"));
    }
    found.within("inversion.statistics_momentum", c.inversion.statistics_momentum, 0.0, 0.999_999, "0 and 1 (exclusive)");
    found.at_least("inversion.regions", c.inversion.regions as i64, 1);
    found.at_most("inversion.regions", c.inversion.regions as i64, 256);
    found.at_least("inversion.view_shift", c.inversion.view_shift, 0);
    found.not_negative("phi.gamma", c.phi.gamma);
    found.positive("phi.inverse_cap", c.phi.inverse_cap);
    found.at_least("replay.capacity", c.replay.capacity as i64, 1);
    found.not_negative("replay.alpha", c.replay.alpha);
    found.not_negative("replay.beta", c.replay.beta);
    found.not_negative("replay.epsilon", c.replay.epsilon);
    found.at_least("distill.batch_size", c.distill.batch_size as i64, 1);
    found.positive("distill.temperature", c.distill.temperature);
    found.not_negative("distill.label_weight", c.distill.label_weight);
    found.at_least("distill.view_shift", c.distill.view_shift, 0);
    found.at_most("distill.teacher_views", c.distill.teacher_views as i64, 256);
    if job == Job::Train && c.train.rounds <= c.train.warmup_rounds {
        let (rounds, warmup) = (c.train.rounds, c.train.warmup_rounds);
        found.add(
            "train.rounds",
            format!("{rounds} rounds with {warmup} rounds of warm-up never train the student: at least {} are needed", warmup + 1),
        );
    }
    found.at_least("train.eval_every_rounds", c.train.eval_every_rounds as i64, 1);
    found.at_least("train.max_nonfinite_steps", i64::from(c.train.max_nonfinite_steps), 1);
    found.at_least("teach.epochs", c.teach.epochs as i64, 1);
    found.at_least("teach.batch_size", c.teach.batch_size as i64, 1);
    found.positive("teach.lr", c.teach.lr);
    found.not_negative("teach.weight_decay", c.teach.weight_decay);
    found.at_least("teach.view_shift", c.teach.view_shift, 0);
    found.at_least("teach.crop", c.teach.crop, 0);
    found.at_least("data.scene_size", c.data.scene_size, 32);
    found.at_most("data.scene_size", c.data.scene_size, 1024);
    if c.data.scene_crop != 0 {
        found.at_least("data.scene_crop", c.data.scene_crop, 32);
    }
    found.at_most("data.scene_crop", c.data.scene_crop, c.data.scene_size);
    for (key, size) in [("data.scene_size", c.data.scene_size), ("data.scene_crop", c.data.scene_crop)] {
        if size % 4 != 0 {
            found.add(key, format!("{size} is no multiple of 4, as the generator needs it"));
        }
    }
    found.at_least("data.train_scenes", c.data.train_scenes as i64, 1);
    found.at_least("data.test_scenes", c.data.test_scenes as i64, 1);
    found.at_least("data.classes", c.data.classes, 0);
    found.at_most("data.classes", c.data.classes, MAX_CLASSES);
    found.within("data.channels", c.data.channels as f64, 0.0, 64.0, "0 and 64");
    found.at_least("data.size", c.data.size, 0);
    found.at_most("data.size", c.data.size, MAX_SIDE);
    found.at_least("data.resize", c.data.resize, 0);
    found.at_most("data.resize", c.data.resize, MAX_SIDE);
    if c.data.mean.len() != c.data.std.len() {
        found.add("data.mean", format!("{} values beside the {} of data.std", c.data.mean.len(), c.data.std.len()));
    }
    c.data.mean.iter().for_each(|&mean| found.within("data.mean", mean, 0.0, 1.0, "0 and 1"));
    c.data.std.iter().for_each(|&std| found.positive("data.std", std));
    found.at_least("eval.batch_size", c.eval.batch_size as i64, 1);
    found.at_least("eval.fresh_images", c.eval.fresh_images as i64, 1);
    found.not_negative("checkpoint.every_minutes", c.checkpoint.every_minutes);
    found.at_least("checkpoint.keep", c.checkpoint.keep as i64, 1);
    found.at_least("parallel.threads", c.parallel.threads.unwrap_or(1) as i64, 1);
    if let Some(logical) = c.parallel.logical_ranks {
        found.at_least("parallel.logical_ranks", logical as i64, 1);
        found.0.extend(logical_ranks(config, job, logical));
    }
    if found.0.is_empty() { Ok(()) } else { Err(Error::Config(found.0)) }
}

/// Checks that the files and folders a configuration names are there.
///
/// # Errors
/// [`Error::Config`] with every finding.
pub fn check_paths(config: &Config) -> Result<()> {
    let mut found = Findings(Vec::new());
    let mut named = |key: &str, path: &Option<PathBuf>, is_right: fn(&Path) -> bool, wanted: &str| {
        if let Some(path) = path.as_ref().filter(|path| !is_right(path)) {
            let problem = if path.exists() { format!("is no {wanted}") } else { format!("no such {wanted}") };
            found.add(key, format!("{}: {problem}", path.display()));
        }
    };
    named("teacher.weights", &config.teacher.weights, Path::is_file, "file");
    named("student.backbone", &config.student.backbone, Path::is_file, "file");
    named("teach.backbone", &config.teach.backbone, Path::is_file, "file");
    named("data.dir", &config.data.dir, Path::is_dir, "folder");
    if found.0.is_empty() { Ok(()) } else { Err(Error::Config(found.0)) }
}

/// What M logical ranks ask of the batch and the buffer.
pub(super) fn logical_ranks(config: &Config, job: Job, logical: usize) -> Vec<Finding> {
    let mut found = Findings(Vec::new());
    if logical == 0 {
        return found.0;
    }
    let (key, batch) = job.batch(config);
    if !batch.is_multiple_of(logical) {
        let below = batch / logical * logical;
        let legal = if below == 0 { format!("{logical}") } else { format!("{below} or {}", below + logical) };
        found.add(key, format!("{batch} rows cannot be shared by {logical} logical ranks: use {legal}"));
    }
    let model = job.trained(config);
    if batch >= logical && batch / logical < model.least_rows() {
        let (name, least) = (model.name(), model.least_rows());
        found.add(
            key,
            format!("{batch} rows over {logical} logical ranks: {name} needs {least} or more on each, at least {}", least * logical),
        );
    }
    let (capacity, made) = (config.replay.capacity, config.inversion.batch_size);
    if job == Job::Train && config.method.has_bounded_buffer() && capacity / logical < made {
        found.add(
            "replay.capacity",
            format!(
                "{capacity} slots over {logical} logical ranks cannot hold the {made} images each makes a round: at least {}",
                logical * made
            ),
        );
    }
    found.0
}

struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, key: &str, problem: String) {
        self.0.push(Finding::new(key, problem));
    }

    fn positive(&mut self, key: &str, value: f64) {
        if !(value.is_finite() && value > 0.0) {
            self.add(key, format!("{value} is not a positive number"));
        }
    }

    fn not_negative(&mut self, key: &str, value: f64) {
        if !(value.is_finite() && value >= 0.0) {
            self.add(key, format!("{value} is negative or not a number"));
        }
    }

    fn within(&mut self, key: &str, value: f64, low: f64, high: f64, text: &str) {
        if !(low..=high).contains(&value) {
            self.add(key, format!("{value} is not between {text}"));
        }
    }

    fn at_least(&mut self, key: &str, value: i64, least: i64) {
        if value < least {
            self.add(key, format!("{value} is below {least}"));
        }
    }

    fn at_most(&mut self, key: &str, value: i64, most: i64) {
        if value > most {
            self.add(key, format!("{value} is more than {most}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl Fn(&mut Config)) -> String {
        let mut config = Config::default();
        change(&mut config);
        check(&config, Job::Train).unwrap_err().to_string()
    }

    #[test]
    fn the_defaults_pass() {
        check(&Config::default(), Job::Train).unwrap();
        check(&Config::default(), Job::Teach).unwrap();
    }

    #[test]
    fn all_findings_come_at_once() {
        let text = refused(|c| {
            c.student.lr = f64::NAN;
            c.replay.alpha = -1.0;
            c.train.rounds = 5;
        });
        assert!(text.contains("student.lr: NaN") && text.contains("replay.alpha: -1") && text.contains("train.rounds: 5"), "{text}");
    }

    #[test]
    fn a_batch_that_cannot_be_shared_names_the_nearest_that_can() {
        let text = refused(|c| {
            c.parallel.logical_ranks = Some(6);
            c.distill.batch_size = 128;
        });
        assert!(text.contains("use 126 or 132"), "{text}");
    }

    #[test]
    fn networks_that_normalise_whole_images_need_two_rows() {
        let change = |batch| {
            move |c: &mut Config| {
                (c.student.model, c.parallel.logical_ranks, c.distill.batch_size) = (ModelName::Deeplabv3Mobilenet, Some(8), batch);
            }
        };
        let text = refused(change(8));
        let want = "distill.batch_size: 8 rows over 8 logical ranks: deeplabv3_mobilenet needs 2 or more on each, at least 16";
        assert!(text.contains(want), "{text}");
        let mut config = Config::default();
        change(16)(&mut config);
        check(&config, Job::Train).unwrap();
    }

    #[test]
    fn teaching_is_checked_by_its_own_keys() {
        let mut config = Config::default();
        config.parallel.logical_ranks = Some(6);
        config.distill.batch_size = 128;
        (config.replay.capacity, config.train.rounds) = (1, 1);
        config.teach.batch_size = 126;
        check(&config, Job::Teach).unwrap();
        config.teach.batch_size = 128;
        config.student.lr_min = 0.15;
        let text = check(&config, Job::Teach).unwrap_err().to_string();
        assert!(text.contains("teach.batch_size: 128 rows cannot be shared by 6 logical ranks: use 126 or 132"), "{text}");
        assert!(text.contains("student.lr_min: 0.15 is not between 0 and teach.lr") && !text.contains("replay"), "{text}");
    }
}
