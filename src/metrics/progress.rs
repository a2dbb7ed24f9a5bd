//! The progress bar of the leading rank.

use super::record::RoundRecord;
use indicatif::{ProgressBar, ProgressStyle};
use std::time::Instant;

/// Shows rounds, losses, speed and the time left on a terminal; nothing elsewhere.
pub struct Progress {
    bar: ProgressBar,
    began: Instant,
    samples_at_start: Option<u64>,
    top1: Option<f64>,
}

impl Progress {
    /// Of `rounds`, the first `done` being over.
    pub fn new(rounds: u64, done: u64) -> Self {
        let bar = ProgressBar::new(rounds).with_position(done);
        let style = ProgressStyle::with_template("{bar:30.cyan/dim} {pos}/{len} rounds · {elapsed} · {eta} left · {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.reset_eta();
        Self { bar, began: Instant::now(), samples_at_start: None, top1: None }
    }

    /// After a round.
    pub fn show(&mut self, record: &RoundRecord, rows_trained: u64) {
        self.top1 = record.student_top1.or(self.top1);
        let start = *self.samples_at_start.get_or_insert(rows_trained);
        let speed = (rows_trained - start) as f64 / self.began.elapsed().as_secs_f64().max(1e-9);
        let shown = |name: &str, value: Option<f64>| value.map(|v| format!("{name} {v:.3} · ")).unwrap_or_default();
        self.bar.set_message(format!(
            "{}{}{}{}buffer {} · {speed:.0} samples/s",
            shown("L_BN", record.loss_statistics),
            shown("task", record.loss_task),
            shown("KL", record.loss_student),
            shown("top-1", self.top1),
            record.buffer_filled,
        ));
        self.bar.set_position(record.round + 1);
    }

    /// Leaves the last state on the screen.
    pub fn finish(&self) {
        self.bar.abandon();
    }

    /// Runs `print` with the bar out of the way.
    pub fn suspend<R>(&self, print: impl FnOnce() -> R) -> R {
        self.bar.suspend(print)
    }
}
