//! What to do about NaN and infinity: a step whose reduced gradient is not finite is not applied, on any rank.

use crate::error::{Error, Result};
use tch::Tensor;

/// Whether a step may be applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The gradient is finite.
    Apply,
    /// It is not: weights, statistics and priorities stay as they are.
    Refuse,
}

/// Counts refused steps in a row.
#[derive(Debug, Clone)]
pub struct Guard {
    limit: u32,
    in_a_row: u32,
}

impl Guard {
    /// Ends the run after `limit` refused steps in a row.
    pub fn new(limit: u32) -> Self {
        Self { limit, in_a_row: 0 }
    }

    /// Refused steps in a row so far.
    pub fn in_a_row(&self) -> u32 {
        self.in_a_row
    }

    /// Goes on counting where a checkpoint left off.
    pub fn resume(&mut self, in_a_row: u32) {
        self.in_a_row = in_a_row;
    }

    /// Judges a reduced gradient, which losses that are not finite spoil too. NaN and infinity spread through sums, so every rank
    /// comes to the same verdict.
    ///
    /// # Errors
    /// [`Error::NonFinite`] when the limit is reached.
    pub fn judge(&mut self, what: &'static str, reduced: &Tensor, step: u64) -> Result<Verdict> {
        if reduced.isfinite().all().int64_value(&[]) == 1 {
            self.in_a_row = 0;
            return Ok(Verdict::Apply);
        }
        self.in_a_row += 1;
        tracing::warn!(what, step, in_a_row = self.in_a_row, "not finite: this step is not applied");
        if self.in_a_row >= self.limit {
            return Err(Error::NonFinite { what, times: self.in_a_row, step });
        }
        Ok(Verdict::Refuse)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_counted_in_a_row_and_end_the_run() {
        let (good, bad) = (Tensor::from_slice(&[1f32]), Tensor::from_slice(&[1.0, f32::NAN]));
        let mut guard = Guard::new(2);
        assert_eq!(guard.judge("gradient", &bad, 1).unwrap(), Verdict::Refuse);
        assert_eq!(guard.judge("gradient", &good, 2).unwrap(), Verdict::Apply);
        assert_eq!(guard.judge("gradient", &bad, 3).unwrap(), Verdict::Refuse);
        let text = guard.judge("gradient", &bad, 4).unwrap_err().to_string();
        assert!(text.contains("gradient was not finite 2 times in a row, last at step 4"), "{text}");
    }
}
