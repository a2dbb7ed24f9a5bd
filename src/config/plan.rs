//! Every number that follows from the configuration once ranks and teacher are known, computed once.

use super::check::{self, Job};
use super::schema::{Config, DrawRule, Inversion};
use crate::error::{Error, Result};
use crate::layout::Layout;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// Derived numbers of a run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What the run is for.
    pub job: Job,
    /// Logical ranks on ranks.
    pub layout: Layout,
    /// Student steps a round after the warm-up.
    pub steps_per_round: u64,
    /// Images made a round by all logical ranks.
    pub images_per_round: usize,
    /// Student steps of the whole run.
    pub total_steps: u64,
    /// The values that a resume must not change.
    pub identity: BTreeMap<String, String>,
    /// Hash of those among them that change numbers.
    pub config_hash: String,
    /// What is legal but probably not meant.
    pub warnings: Vec<String>,
}

impl Plan {
    /// For a training run launched on `ranks` ranks, with M from the configuration or from the first launch. The hashes are those of
    /// the contents of the teacher's file and of the one that the network in training starts from; empty where there is none.
    ///
    /// # Errors
    /// R not dividing M, M not dividing the batch, shards too small for a round's images.
    pub fn new(config: &Config, job: Job, ranks: usize, teacher_hash: &str, backbone_hash: &str) -> Result<Self> {
        let logical = config.parallel.logical_ranks.unwrap_or(ranks);
        let layout = Layout::new(logical, ranks)?;
        let findings = check::logical_ranks(config, job, logical);
        if !findings.is_empty() {
            return Err(Error::Config(findings));
        }
        let steps_per_round = steps_per_round(config);
        let images_per_round = logical * config.inversion.batch_size;
        let identity = identity(config, logical, teacher_hash, backbone_hash);
        Ok(Self {
            job,
            layout,
            steps_per_round,
            images_per_round,
            total_steps: steps_per_round * (config.train.rounds - config.train.warmup_rounds),
            config_hash: hash(&numbers(&identity, config, job)),
            identity,
            warnings: warnings(config, job, logical, images_per_round),
        })
    }
}

/// `distill.steps_per_round`, or round(400·N/50,000) and at least 20: about two passes over the buffer (ours; docs/method.md).
pub fn steps_per_round(config: &Config) -> u64 {
    match config.distill.steps_per_round {
        0 => ((400.0 * config.replay.capacity as f64 / 50_000.0).round() as u64).max(20),
        given => given,
    }
}

impl Inversion {
    /// Learning rate of the meta step: `inversion.lr_meta`, or what its 0 stands for.
    pub fn meta_rate(&self) -> f64 {
        if self.lr_meta > 0.0 { self.lr_meta } else { self.lr_generator * self.steps as f64 }
    }
}

fn warnings(config: &Config, job: Job, logical: usize, images_per_round: usize) -> Vec<String> {
    let mut out = Vec::new();
    let (key, batch) = job.batch(config);
    let rows = batch / logical;
    if rows < 16 {
        out.push(format!(
            "{key} gives each of the {logical} logical ranks {rows} rows; batch-norm wants 16 or more: raise it or lower \
             parallel.logical_ranks"
        ));
    }
    if job == Job::Teach {
        return out;
    }
    if config.inversion.batch_size < 16 {
        out.push(format!(
            "inversion.batch_size = {}: the statistics loss compares batch statistics and wants 16 images or more",
            config.inversion.batch_size
        ));
    }
    if !config.method.has_bounded_buffer() {
        return out;
    }
    if 2 * images_per_round > config.replay.capacity {
        out.push(format!(
            "{images_per_round} new images a round replace more than half of a buffer of {}: raise replay.capacity or lower inversion.batch_size",
            config.replay.capacity
        ));
    }
    let feedback = config.replay.alpha * config.replay.beta;
    if config.replay.draw == DrawRule::Priority && feedback >= 0.9 {
        out.push(format!(
            "replay.alpha·replay.beta = {feedback:.2}: importance weights feed back into priorities, which then swing instead of settling \
             (docs/method.md); keep the product below 0.9"
        ));
    }
    out
}

/// Keys that say where files lie; what is in them counts.
const PLACES: [&str; 4] = ["data.dir", "teacher.weights", "student.backbone", "teach.backbone"];

/// Keys that may differ at a resume: what the run is found by, where things lie, how and on what the launch computes, what is saved.
pub fn is_free(key: &str) -> bool {
    let free_section = ["parallel.", "checkpoint."].iter().any(|section| key.starts_with(section));
    ["tags", "device"].contains(&key) || PLACES.contains(&key) || (free_section && key != "parallel.logical_ranks")
}

/// Keys that change what is shown, when a run gives up, and how fast it is.
const SILENT: [&str; 3] = ["train.picture_every_rounds", "train.max_nonfinite_steps", "eval.batch_size"];

/// Every key with its value, as text.
pub fn values(config: &Config) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    flatten("", &serde_json::to_value(config).unwrap_or_default(), &mut out);
    out
}

/// What a resume must not change: every key but the free ones, with M filled in and weights by content.
fn identity(config: &Config, logical: usize, teacher_hash: &str, backbone_hash: &str) -> BTreeMap<String, String> {
    let mut out = values(config);
    out.retain(|key, _| !is_free(key));
    out.insert("parallel.logical_ranks".into(), logical.to_string());
    out.insert("teacher.weights".into(), format!("sha256:{teacher_hash}"));
    let backbone = if backbone_hash.is_empty() { Value::Null.to_string() } else { format!("sha256:{backbone_hash}") };
    out.extend([("student.backbone".into(), backbone), ("teach.backbone".into(), Value::Null.to_string())]);
    out
}

/// Of an identity, what changes the numbers of this job; a 0 that stands for a derived value becomes that value.
fn numbers(identity: &BTreeMap<String, String>, config: &Config, job: Job) -> BTreeMap<String, String> {
    let mut out = identity.clone();
    out.insert("distill.steps_per_round".into(), steps_per_round(config).to_string());
    out.insert("inversion.lr_meta".into(), Value::from(config.inversion.meta_rate()).to_string());
    out.insert("parallel.reduce".into(), serde_json::to_string(&config.parallel.reduce).unwrap_or_default());
    out.retain(|key, _| !SILENT.contains(&key.as_str()) && !job.ignores(key) && !config.dataset.ignores(key));
    out
}

fn flatten(prefix: &str, value: &Value, into: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(fields) => {
            for (name, inner) in fields {
                flatten(&if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") }, inner, into);
            }
        }
        leaf => {
            into.insert(prefix.to_owned(), leaf.to_string());
        }
    }
}

fn hash(identity: &BTreeMap<String, String>) -> String {
    let mut hasher = Sha256::new();
    for (key, value) in identity {
        hasher.update(format!("{key}={value}\n"));
    }
    hasher.finalize().iter().take(8).map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{DatasetName, DeviceName, MethodName, ModelName, Parallel, Precision, ReduceRule};

    fn plan_of(job: Job, change: &dyn Fn(&mut Config)) -> Plan {
        let mut config = Config::default();
        config.parallel.logical_ranks = Some(4);
        change(&mut config);
        Plan::new(&config, job, 1, "a", "").unwrap()
    }

    fn hash_of(job: Job, change: &dyn Fn(&mut Config)) -> String {
        plan_of(job, change).config_hash
    }

    /// Changes of one key each.
    type Changes = [(&'static str, &'static dyn Fn(&mut Config))];

    const FREE: &Changes = &[
        ("tags", &|c| c.tags = vec!["new".into()]),
        ("device", &|c| c.device = DeviceName::Cpu),
        ("data.dir", &|c| c.data.dir = Some("/elsewhere".into())),
        ("teacher.weights", &|c| c.teacher.weights = Some("/elsewhere".into())),
        ("student.backbone", &|c| c.student.backbone = Some("/elsewhere".into())),
        ("teach.backbone", &|c| c.teach.backbone = Some("/elsewhere".into())),
        ("parallel.threads", &|c| c.parallel.threads = Some(3)),
        ("parallel.timeout_s", &|c| c.parallel.timeout_s = 1),
        ("checkpoint.keep", &|c| c.checkpoint.keep = 9),
    ];
    const SHOWN_ONLY: &Changes = &[
        ("train.picture_every_rounds", &|c| c.train.picture_every_rounds = 3),
        ("train.max_nonfinite_steps", &|c| c.train.max_nonfinite_steps = 3),
        ("eval.batch_size", &|c| c.eval.batch_size = 3),
    ];
    const OF_TRAIN: &Changes = &[
        ("method", &|c| c.method = MethodName::FastMeta),
        ("replay.alpha", &|c| c.replay.alpha = 0.5),
        ("phi.gamma", &|c| c.phi.gamma = 1.0),
        ("generator.filters", &|c| c.generator.filters = 8),
        ("inversion.steps", &|c| c.inversion.steps = 9),
        ("distill.temperature", &|c| c.distill.temperature = 9.0),
    ];
    const OF_TEACH: &Changes = &[("teach.lr", &|c| c.teach.lr = 0.3), ("teach.flip", &|c| c.teach.flip = false)];
    const OF_BOTH: &Changes = &[
        ("seed", &|c| c.seed = 1),
        ("data.allow_partial", &|c| c.data.allow_partial = true),
        ("student.momentum", &|c| c.student.momentum = 0.5),
        ("train.eval_every_rounds", &|c| c.train.eval_every_rounds = 7),
        ("train.precision", &|c| c.train.precision = Precision::Bf16),
        ("parallel.logical_ranks", &|c| c.parallel.logical_ranks = Some(8)),
    ];

    #[test]
    fn the_hash_covers_what_changes_numbers_and_nothing_else() {
        let check = |job, changes: &Changes, counts: bool| {
            let base = hash_of(job, &|_| {});
            for (key, change) in changes {
                assert_eq!(hash_of(job, change) != base, counts, "{key}, {job:?}");
            }
        };
        for job in [Job::Train, Job::Teach] {
            check(job, FREE, false);
            check(job, SHOWN_ONLY, false);
            check(job, OF_BOTH, true);
            check(job, OF_TRAIN, job == Job::Train);
            check(job, OF_TEACH, job == Job::Teach);
        }
        let native = |c: &mut Config| c.parallel.reduce = ReduceRule::Native;
        assert!(hash_of(Job::Train, &native) != hash_of(Job::Train, &|_| {}));
        assert_eq!(plan_of(Job::Train, &native).identity, plan_of(Job::Train, &|_| {}).identity);
        for (dataset, counts) in [(DatasetName::Cifar10, false), (DatasetName::Scenes13, true)] {
            let [one, other] = [1, 2].map(|seed| {
                hash_of(Job::Teach, &|c| (c.dataset, c.data.scene_seed, c.student.model) = (dataset, seed, ModelName::Deeplabv3Mobilenet))
            });
            assert_eq!(one != other, counts, "{dataset:?}");
            let [one, other] = [1, 3].map(|regions| hash_of(Job::Train, &|c| (c.dataset, c.inversion.regions) = (dataset, regions)));
            assert_eq!(one != other, counts, "{dataset:?}");
        }
        let of_contents = |teacher, backbone| Plan::new(&Config::default(), Job::Train, 4, teacher, backbone).unwrap().config_hash;
        assert_ne!(of_contents("a", ""), of_contents("b", ""));
        assert_ne!(of_contents("a", ""), of_contents("a", "b"));
        for ranks in [1, 2, 4] {
            let config = Config { parallel: Parallel { logical_ranks: Some(4), ..Parallel::default() }, ..Config::default() };
            assert_eq!(Plan::new(&config, Job::Train, ranks, "a", "").unwrap().config_hash, hash_of(Job::Train, &|_| {}));
        }
    }

    /// A resume is compared by all keys but the free ones, those of the other job included, each under its name.
    #[test]
    fn the_identity_covers_every_key_but_the_free_ones() {
        for job in [Job::Train, Job::Teach] {
            let base = plan_of(job, &|_| {}).identity;
            for (key, change) in FREE {
                assert_eq!(plan_of(job, change).identity, base, "{key}");
            }
            for (key, change) in [SHOWN_ONLY, OF_TRAIN, OF_TEACH, OF_BOTH].concat() {
                let changed = plan_of(job, change).identity;
                let differing: Vec<&String> = base.keys().filter(|k| base.get(*k) != changed.get(*k)).collect();
                assert_eq!(differing, [key]);
            }
        }
    }

    /// A derived value hashes like the same value given; only to a resume it is another run.
    #[test]
    fn derived_values_hash_as_what_they_stand_for() {
        let base = plan_of(Job::Train, &|_| {});
        for change in [|c| c.distill.steps_per_round = 40, |c| c.inversion.lr_meta = 3e-3 * 5.0] as [fn(&mut Config); 2] {
            let given = plan_of(Job::Train, &change);
            assert!(given.config_hash == base.config_hash && given.identity != base.identity);
        }
        assert_ne!(hash_of(Job::Train, &|c| c.distill.steps_per_round = 41), base.config_hash);
        assert_ne!(hash_of(Job::Train, &|c| c.inversion.lr_meta = 0.1), base.config_hash);
    }

    #[test]
    fn steps_a_round_follow_the_buffer() {
        let steps = |capacity| {
            let mut config = Config::default();
            config.replay.capacity = capacity;
            steps_per_round(&config)
        };
        assert_eq!((steps(5000), steps(500), steps(50_000)), (40, 20, 400));
    }

    #[test]
    fn feedback_that_swings_is_warned_of() {
        let mut config = Config::default();
        (config.replay.alpha, config.replay.beta) = (1.0, 1.0);
        assert!(Plan::new(&config, Job::Train, 1, "", "").unwrap().warnings.iter().any(|w| w.contains("alpha")));
        assert!(Plan::new(&config, Job::Teach, 1, "", "").unwrap().warnings.is_empty());
    }
}
