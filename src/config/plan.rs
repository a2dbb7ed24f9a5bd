//! Every number that follows from the configuration once ranks and teacher are known, computed once.

use super::check::{self, Job};
use super::schema::{Config, DrawRule};
use crate::error::{Error, Result};
use crate::layout::Layout;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// Derived numbers of a run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Logical ranks on ranks.
    pub layout: Layout,
    /// Student steps a round after the warm-up.
    pub steps_per_round: u64,
    /// Images made a round by all logical ranks.
    pub images_per_round: usize,
    /// Student steps of the whole run.
    pub total_steps: u64,
    /// The values that fix the run's numbers.
    pub identity: BTreeMap<String, String>,
    /// Their hash.
    pub config_hash: String,
    /// What is legal but probably not meant.
    pub warnings: Vec<String>,
}

impl Plan {
    /// For a training run launched on `ranks` ranks, with M from the configuration or from the first launch.
    ///
    /// # Errors
    /// R not dividing M, M not dividing the batch, shards too small for a round's images.
    pub fn new(config: &Config, job: Job, ranks: usize, teacher_hash: &str) -> Result<Self> {
        let logical = config.parallel.logical_ranks.unwrap_or(ranks);
        let layout = Layout::new(logical, ranks)?;
        let findings = check::logical_ranks(config, job, logical);
        if !findings.is_empty() {
            return Err(Error::Config(findings));
        }
        let steps_per_round = steps_per_round(config);
        let images_per_round = logical * config.inversion.batch_size;
        let identity = identity(config, logical, teacher_hash);
        Ok(Self {
            layout,
            steps_per_round,
            images_per_round,
            total_steps: steps_per_round * (config.train.rounds - config.train.warmup_rounds),
            config_hash: hash(&identity),
            identity,
            warnings: warnings(config, job, logical, images_per_round),
        })
    }
}

/// `distill.steps_per_round`, or round(400·N/50,000) and at least 20: about two passes over the buffer (ours; docs/method.md).
fn steps_per_round(config: &Config) -> u64 {
    match config.distill.steps_per_round {
        0 => ((400.0 * config.replay.capacity as f64 / 50_000.0).round() as u64).max(20),
        given => given,
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

/// Keys that may change without changing a number, or only the bits within one launch: they may differ at a resume.
fn is_free(key: &str) -> bool {
    let free_section = ["data.", "parallel.", "checkpoint."].iter().any(|section| key.starts_with(section));
    key == "teacher.weights" || (free_section && key != "parallel.logical_ranks")
}

/// The values that fix a run's numbers: every key but the free ones, with M filled in and the teacher by content.
fn identity(config: &Config, logical: usize, teacher_hash: &str) -> BTreeMap<String, String> {
    let value = serde_json::to_value(config).unwrap_or_default();
    let mut out = BTreeMap::new();
    flatten("", &value, &mut out);
    out.retain(|key, _| !is_free(key));
    out.insert("parallel.logical_ranks".into(), logical.to_string());
    out.insert("teacher.weights".into(), format!("sha256:{teacher_hash}"));
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

    #[test]
    fn the_hash_covers_what_changes_numbers_and_nothing_else() {
        let plan = |change: fn(&mut Config), ranks, teacher| {
            let mut config = Config::default();
            config.parallel.logical_ranks = Some(4);
            change(&mut config);
            Plan::new(&config, Job::Train, ranks, teacher).unwrap().config_hash
        };
        let base = plan(|_| {}, 1, "a");
        assert_eq!(base, plan(|c| c.parallel.threads = Some(3), 2, "a"));
        assert_eq!(base, plan(|c| c.data.dir = Some("/elsewhere".into()), 4, "a"));
        assert_ne!(base, plan(|_| {}, 1, "b"));
        assert_ne!(base, plan(|c| c.seed = 1, 1, "a"));
        assert_ne!(base, plan(|c| c.parallel.logical_ranks = Some(8), 1, "a"));
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
        assert!(Plan::new(&config, Job::Train, 1, "").unwrap().warnings.iter().any(|w| w.contains("alpha")));
        assert!(Plan::new(&config, Job::Teach, 1, "").unwrap().warnings.is_empty());
    }
}
