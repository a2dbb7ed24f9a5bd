//! `report.json`: what a run came to, for programs.

use super::timings::Seconds;
use crate::error::{Error, Result};
use crate::files;
use crate::task::{Best, Scores, Task};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Scores of a network; a student's after the last round.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct NetworkScore {
    /// Architecture.
    pub model: String,
    /// As fractions in 0..1: `top1` and `top5`, or `miou`, `pixel_accuracy` and `class_iou`; without data, a student's `agreement` with
    /// its teacher, with `divergence` and `confidence_counts`.
    #[serde(flatten)]
    pub scores: Scores,
    /// Cross entropy on the test split; none, or not finite, where the network has come to nothing.
    pub loss: Option<f64>,
    /// `top1_best`, `miou_best` or `agreement_best`: the largest of any evaluation.
    #[serde(flatten)]
    pub best: Best,
}

impl NetworkScore {
    /// A teacher's in [`Summary::blank`]: without data it has none.
    pub fn blank_teacher(task: Task) -> Self {
        if task.has_data() { Self { scores: task.blank(), loss: Some(0.0), ..Self::default() } } else { Self::default() }
    }

    /// Name and value of the score it is quoted by.
    fn row(&self, role: &str) -> Option<(String, String)> {
        let headline = self.scores.headline()?;
        Some((format!("{role} {} ({})", headline.name, self.model), headline.text()))
    }
}

/// What is in the buffer at the end.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct BufferSummary {
    /// Capacity over all ranks; a pool's is every image of the run.
    pub capacity: u64,
    /// Of its samples: `class_counts` and `confidence_counts`.
    #[serde(flatten)]
    pub seen: Seen,
}

/// What the teacher sees in synthetic images.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Seen {
    /// Samples (pixels) per category predicted by the teacher.
    pub class_counts: Vec<u64>,
    /// Samples by the teacher's confidence, in equal parts of 0..1.
    pub confidence_counts: Vec<u64>,
}

/// Categories with a row of their own in a picture of the buffer: more would make it unreadable.
pub const PICTURE_ROWS: usize = 20;

/// Contents of `report.json`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The run's name among all runs (docs/tracking.md).
    #[serde(default)]
    pub run_id: String,
    /// Words that it was given.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Method.
    pub method: String,
    /// Data set.
    pub dataset: String,
    /// Names of the classes, where known.
    pub class_names: Vec<String>,
    /// Processes of the launch that finished the run.
    pub ranks: usize,
    /// Logical ranks.
    pub logical_ranks: usize,
    /// Threads per rank.
    pub threads: usize,
    /// Device and instruction set.
    pub device: String,
    /// The teacher, where the method has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher: Option<NetworkScore>,
    /// The trained network.
    pub student: NetworkScore,
    /// Where the time went, on rank 0.
    pub seconds: Seconds,
    /// Images made.
    pub samples_synthesised: u64,
    /// Student steps done.
    pub student_steps: u64,
    /// Bytes rank 0 sent to other ranks, over all launches.
    pub bytes_sent: u64,
    /// Rows that were trained on by another rank than held them, over all launches.
    #[serde(default)]
    pub rows_moved: u64,
    /// Bytes that all ranks together sent per draw, over all launches: masses, rows, losses on their way home.
    #[serde(default)]
    pub bytes_moved_per_draw: f64,
    /// The buffer, where the method has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub buffer: Option<BufferSummary>,
    /// Images that the generator makes at the end, where the method has one and no buffer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fresh: Option<Seen>,
    /// Hash of the keys that change numbers.
    pub config_hash: String,
    /// Seed.
    pub seed: u64,
    /// Version and commit of ssdkd.
    pub version: String,
}

impl Summary {
    /// All zero, for the names of the numbers that all reports of a task have, before there is one.
    pub fn blank(task: Task) -> Self {
        let (scores, loss) = (task.blank(), task.has_data().then_some(0.0));
        let student = NetworkScore { loss, best: Best::default().and(&scores), scores, ..NetworkScore::default() };
        Self { student, ..Self::default() }
    }

    /// Of a finished run's folder.
    ///
    /// # Errors
    /// No `report.json`, or a damaged one.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("report.json");
        serde_json::from_slice(&files::read(&path)?).map_err(|e| Error::file(&path, e.to_string()))
    }

    /// What the trained network is: a student has a teacher, and what has none was trained to become one.
    pub fn trained(&self) -> &'static str {
        if self.teacher.is_some() { "student" } else { "teacher" }
    }

    /// Scores, where the time went, and how much was made, a line each: for people.
    pub fn table(&self) -> String {
        let mut rows: Vec<(String, String)> = self.teacher.iter().filter_map(|teacher| teacher.row("teacher")).collect();
        rows.extend(self.student.row(self.trained()));
        let s = &self.seconds;
        for (name, seconds) in [
            ("inversion", s.inversion),
            ("sampling", s.sampling),
            ("distillation", s.distillation),
            ("communication", s.communication),
            ("evaluation", s.evaluation),
            ("total", s.total),
        ] {
            rows.push((format!("seconds in {name}"), format!("{seconds:.1}")));
        }
        rows.push(("images synthesised".into(), self.samples_synthesised.to_string()));
        rows.push((format!("{} steps", self.trained()), self.student_steps.to_string()));
        let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        rows.into_iter().map(|(name, value)| format!("{name:width$}  {value:>10}\n")).collect()
    }
}

/// Mean, and the sample's standard deviation where there are two values or more.
pub fn mean_and_std(values: &[f64]) -> (f64, Option<f64>) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    (mean, (values.len() > 1).then(|| (squares / (n - 1.0)).sqrt()))
}

/// The same for people; `–` where there is no value.
pub fn spread(values: &[f64], digits: usize) -> String {
    match (values.is_empty(), mean_and_std(values)) {
        (true, _) => "–".into(),
        (_, (mean, Some(std))) => format!("{mean:.digits$} ± {std:.digits$}"),
        (_, (mean, None)) => format!("{mean:.digits$}"),
    }
}

/// Version and commit of this build.
pub fn version() -> String {
    format!("{} ({})", env!("CARGO_PKG_VERSION"), env!("SSDKD_COMMIT"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// R: mean(c(2,4,4,4,5,5,7,9)) and sd() of them.
    #[test]
    fn the_deviation_is_the_samples() {
        let (mean, std) = mean_and_std(&[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]);
        assert!((mean - 5.0).abs() < 1e-12 && (std.unwrap() - 2.138_089_935_299_395).abs() < 1e-12);
        assert_eq!(mean_and_std(&[3.0]), (3.0, None));
    }

    /// JSON has no NaN.
    #[test]
    fn a_loss_that_is_not_finite_reads_back() {
        let scores = Scores { top1: Some(0.1), top5: Some(0.5), ..Scores::default() };
        let score =
            NetworkScore { model: "m".into(), scores, loss: Some(f64::NAN), best: Best { top1_best: Some(0.2), ..Best::default() } };
        let text = serde_json::to_string(&score).unwrap();
        assert_eq!(serde_json::from_str::<NetworkScore>(&text).unwrap(), NetworkScore { loss: None, ..score.clone() });
        // One level, as programs read it.
        let value = serde_json::to_value(&score).unwrap();
        assert_eq!((&value["top1"], &value["top1_best"], value.get("miou")), (&0.1.into(), &0.2.into(), None));
    }
}
