//! Records and the files they go to.

use super::tensorboard::EventWriter;
use super::timings::Seconds;
use crate::error::{Error, Result};
use crate::task::Scores;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

/// What one round came to. Holds nothing that depends on clock, number of ranks, host or folder: equal runs write equal
/// `metrics.csv`. Losses are means over logical ranks (inversion) or over drawn rows (distillation).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RoundRecord {
    /// Round, from 0.
    pub round: u64,
    /// Student steps done.
    pub student_step: u64,
    /// Images made.
    pub samples_synthesised: u64,
    /// Learning rate of the round.
    pub lr: f64,
    /// L_BN of the last inner step.
    pub loss_statistics: Option<f64>,
    /// Task loss of the last inner step, weighted by φ where there is one.
    pub loss_task: Option<f64>,
    /// L_adv of the last inner step.
    pub loss_adversarial: Option<f64>,
    /// Mean φ of the last inner step.
    pub phi: Option<f64>,
    /// All other terms of the last inner step, weighted and added: balance, activation, smoothness, contrast.
    pub loss_prior: Option<f64>,
    /// Mean of the method's loss over the round's rows: w·KL for SSD-KD.
    pub loss_student: Option<f64>,
    /// The same without w.
    pub loss_unweighted: Option<f64>,
    /// Samples in the buffer (pixels, for dense logits).
    pub buffer_filled: u64,
    /// Entropy of the buffer's predicted categories over its largest possible value.
    pub buffer_class_balance: Option<f64>,
    /// Share of test images classified rightly, when evaluated.
    pub student_top1: Option<f64>,
    /// Share of test images whose label is among the first five, when evaluated.
    pub student_top5: Option<f64>,
    /// Mean intersection over union of the classes, when evaluated on pixels.
    pub student_miou: Option<f64>,
    /// Share of test pixels labelled rightly, when evaluated on pixels.
    pub student_pixel_accuracy: Option<f64>,
    /// Intersection over union of each class, in their order, with spaces between.
    pub student_class_iou: Option<String>,
    /// Cross entropy on the test split, when evaluated.
    pub student_loss: Option<f64>,
    /// Share of fresh synthetic images in which student and teacher see the same, when evaluated without data.
    pub student_agreement: Option<f64>,
    /// Mean KL(teacher ‖ student) on them.
    pub student_divergence: Option<f64>,
    /// How many of them the teacher is how sure of, with spaces between.
    pub student_confidence_counts: Option<String>,
}

impl RoundRecord {
    /// The same with the score of an evaluation.
    pub fn evaluated(self, scores: &Scores, loss: Option<f64>) -> Self {
        fn joined<T: ToString>(all: &[T]) -> String {
            all.iter().map(T::to_string).collect::<Vec<_>>().join(" ")
        }
        Self {
            student_top1: scores.top1,
            student_top5: scores.top5,
            student_miou: scores.miou,
            student_pixel_accuracy: scores.pixel_accuracy,
            student_class_iou: scores.class_iou.as_deref().map(joined),
            student_loss: loss,
            student_agreement: scores.agreement,
            student_divergence: scores.divergence,
            student_confidence_counts: scores.confidence_counts.as_deref().map(joined),
            ..self
        }
    }

    /// The evaluation's scores, where there was one.
    pub fn scores(&self) -> Scores {
        let parted = |text: &String| text.split(' ').map(|v| v.parse().unwrap_or(f64::NAN)).collect();
        Scores {
            top1: self.student_top1,
            top5: self.student_top5,
            miou: self.student_miou,
            pixel_accuracy: self.student_pixel_accuracy,
            class_iou: self.student_class_iou.as_ref().map(parted),
            agreement: self.student_agreement,
            divergence: self.student_divergence,
            confidence_counts: self.student_confidence_counts.as_ref().map(|t| t.split(' ').map(|n| n.parse().unwrap_or(0)).collect()),
        }
    }
}

/// What rank 0 has sent to other ranks up to now, over all launches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    /// Bytes, in all collectives.
    pub bytes: u64,
    /// Rows of draws.
    pub rows: u64,
}

/// Where a round's time went, and what it sent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TimingRecord {
    /// Round, from 0.
    pub round: u64,
    /// Seconds since the start of the run, up to the end of the round.
    pub seconds: f64,
    /// Seconds in the inner loops, up to here.
    pub inversion: f64,
    /// Seconds in draws and write-backs.
    pub sampling: f64,
    /// Seconds in student forward and backward passes.
    pub distillation: f64,
    /// Seconds in collectives.
    pub communication: f64,
    /// Seconds in evaluation.
    pub evaluation: f64,
    /// Bytes rank 0 has sent to other ranks, over all launches.
    pub bytes_sent: u64,
    /// Rows rank 0 has sent to other ranks, over all launches.
    pub rows_sent_away: u64,
}

impl TimingRecord {
    /// From accumulated seconds.
    pub fn new(round: u64, seconds: &Seconds, sent: Sent) -> Self {
        Self {
            round,
            seconds: seconds.total,
            inversion: seconds.inversion,
            sampling: seconds.sampling,
            distillation: seconds.distillation,
            communication: seconds.communication,
            evaluation: seconds.evaluation,
            bytes_sent: sent.bytes,
            rows_sent_away: sent.rows,
        }
    }
}

/// The files of a run folder that grow with every round. Held by the leading rank only.
pub struct Sinks {
    metrics: Table,
    timings: Table,
    events: EventWriter,
}

struct Table {
    path: PathBuf,
    writer: csv::Writer<File>,
}

impl Table {
    fn open(path: PathBuf) -> Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(&path).map_err(|e| Error::io("write", &path, &e))?;
        let empty = file.metadata().map_or(true, |m| m.len() == 0);
        Ok(Self { writer: csv::WriterBuilder::new().has_headers(empty).from_writer(file), path })
    }

    fn write(&mut self, row: &impl Serialize) -> Result<()> {
        let written = self.writer.serialize(row).map_err(std::io::Error::from).and_then(|()| self.writer.flush());
        // A checkpoint takes the rows before it for granted, also after the host has lost power.
        let outcome = written.and_then(|()| self.writer.get_ref().sync_data());
        outcome.map_err(|e| Error::io("write", &self.path, &e))
    }
}

impl Sinks {
    /// Opens `metrics.csv`, `timings.csv` and a TensorBoard event file in `folder`.
    pub fn open(folder: &Path) -> Result<Self> {
        Ok(Self {
            metrics: Table::open(folder.join("metrics.csv"))?,
            timings: Table::open(folder.join("timings.csv"))?,
            events: EventWriter::create(folder)?,
        })
    }

    /// Appends a round to all of them.
    pub fn write(&mut self, record: &RoundRecord, timing: &TimingRecord) -> Result<()> {
        self.metrics.write(record)?;
        self.timings.write(timing)?;
        for (name, value) in scalars(record) {
            self.events.scalar(&name, value, record.round)?;
        }
        self.events.flush()
    }

    /// Adds a picture to TensorBoard.
    pub fn picture(&mut self, name: &str, png: &[u8], size: (u32, u32), round: u64) -> Result<()> {
        self.events.picture(name, png, size, round)?;
        self.events.flush()
    }
}

/// Names and values of a record's numbers, those that are there.
fn scalars(record: &RoundRecord) -> Vec<(String, f64)> {
    let value = serde_json::to_value(record).unwrap_or_default();
    let fields = value.as_object().cloned().unwrap_or_default();
    fields.into_iter().filter(|(name, _)| name != "round").filter_map(|(name, v)| Some((name, v.as_f64()?))).collect()
}

/// The first line of a table of such records.
pub fn header<T: Serialize + Default>() -> String {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let text = writer.serialize(T::default()).ok().and_then(|()| writer.into_inner().ok()).unwrap_or_default();
    String::from_utf8_lossy(&text).lines().next().unwrap_or_default().to_owned()
}

/// Reads a table of records.
///
/// # Errors
/// A file that is missing, or a row that does not have the record's columns.
pub fn read_table<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let file = File::open(path).map_err(|e| Error::open(path, &e))?;
    csv::Reader::from_reader(file).into_deserialize().collect::<std::result::Result<_, _>>().map_err(|e| Error::file(path, e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(round: u64) -> RoundRecord {
        RoundRecord {
            round,
            student_step: 20,
            samples_synthesised: 128,
            lr: 0.1,
            loss_statistics: Some(1.25),
            loss_task: None,
            loss_adversarial: None,
            phi: None,
            loss_prior: None,
            loss_student: None,
            loss_unweighted: None,
            buffer_filled: 7,
            buffer_class_balance: None,
            student_top1: Some(1.0 / 3.0),
            ..RoundRecord::default()
        }
    }

    /// A table has no lists: what was written is what is read.
    #[test]
    fn scores_survive_a_table() {
        let pixels = Scores { miou: Some(0.1), pixel_accuracy: Some(0.7), class_iou: Some(vec![1.0 / 3.0, 0.0]), ..Scores::default() };
        let scores = Scores { agreement: Some(0.3), divergence: Some(0.1), confidence_counts: Some(vec![4, 0, 7]), ..pixels };
        let folder = tempfile::tempdir().unwrap();
        let timing = TimingRecord::new(0, &Seconds::default(), Sent { bytes: 1, rows: 2 });
        Sinks::open(folder.path()).unwrap().write(&RoundRecord::default().evaluated(&scores, Some(2.5)), &timing).unwrap();
        let back: Vec<RoundRecord> = read_table(&folder.path().join("metrics.csv")).unwrap();
        assert_eq!((back[0].scores(), back[0].student_loss), (scores, Some(2.5)));
        assert!(scalars(&back[0]).iter().any(|(name, value)| name == "student_miou" && *value == 0.1));
    }

    #[test]
    fn rows_are_appended_under_one_header_and_read_back_exactly() {
        let folder = tempfile::tempdir().unwrap();
        let timing = TimingRecord::new(0, &Seconds::default(), Sent { bytes: 1, rows: 2 });
        for round in 0..2 {
            Sinks::open(folder.path()).unwrap().write(&record(round), &timing).unwrap();
        }
        let text = std::fs::read_to_string(folder.path().join("metrics.csv")).unwrap();
        assert_eq!((text.lines().count(), text.matches("round,").count()), (3, 1));
        assert_eq!(text.lines().next().unwrap(), header::<RoundRecord>());
        let back: Vec<RoundRecord> = read_table(&folder.path().join("metrics.csv")).unwrap();
        assert_eq!(back, [record(0), record(1)]);
    }
}
