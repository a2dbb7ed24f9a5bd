//! What to do about NaN and infinity: a step whose reduced gradient is not finite is not applied, on any rank.

use crate::checkpoint::InARow;
use crate::error::{Error, Result};
use tch::Tensor;

/// Whose gradient is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Of {
    /// The generator's: one an inversion.
    Generator,
    /// The student's: one a step.
    Student,
}

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
    in_a_row: InARow,
}

impl Guard {
    /// Ends the run after `limit` refused steps of one kind in a row.
    pub fn new(limit: u32) -> Self {
        Self { limit, in_a_row: InARow::default() }
    }

    /// Refused steps in a row so far.
    pub fn in_a_row(&self) -> InARow {
        self.in_a_row
    }

    /// Goes on counting where a checkpoint left off.
    pub fn resume(&mut self, in_a_row: InARow) {
        self.in_a_row = in_a_row;
    }

    /// Judges a reduced gradient, which losses that are not finite spoil too. NaN and infinity spread through sums, so every rank
    /// comes to the same verdict.
    ///
    /// # Errors
    /// [`Error::NonFinite`] when the limit is reached.
    pub fn judge(&mut self, of: Of, reduced: &Tensor, step: u64) -> Result<Verdict> {
        let (what, in_a_row) = match of {
            Of::Generator => ("the generator's gradient", &mut self.in_a_row.generator),
            Of::Student => ("the student's gradient", &mut self.in_a_row.student),
        };
        if reduced.isfinite().all().int64_value(&[]) == 1 {
            *in_a_row = 0;
            return Ok(Verdict::Apply);
        }
        *in_a_row += 1;
        tracing::warn!(what, step, in_a_row = *in_a_row, "not finite: this step is not applied");
        if *in_a_row >= self.limit {
            return Err(Error::NonFinite { what, times: *in_a_row, step });
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
        assert_eq!(guard.judge(Of::Student, &bad, 1).unwrap(), Verdict::Refuse);
        assert_eq!(guard.judge(Of::Student, &good, 2).unwrap(), Verdict::Apply);
        assert_eq!(guard.judge(Of::Student, &bad, 3).unwrap(), Verdict::Refuse);
        let text = guard.judge(Of::Student, &bad, 4).unwrap_err().to_string();
        assert!(text.contains("the student's gradient was not finite 2 times in a row, last at step 4"), "{text}");
    }

    #[test]
    fn a_good_student_step_does_not_excuse_the_generator() {
        let (good, bad) = (Tensor::from_slice(&[1f32]), Tensor::from_slice(&[f32::INFINITY]));
        let mut guard = Guard::new(2);
        assert_eq!(guard.judge(Of::Generator, &bad, 0).unwrap(), Verdict::Refuse);
        assert_eq!(guard.judge(Of::Student, &good, 1).unwrap(), Verdict::Apply);
        let saved = guard.in_a_row();
        assert_eq!(saved, InARow { generator: 1, student: 0 });
        let mut resumed = Guard::new(2);
        resumed.resume(saved);
        let text = resumed.judge(Of::Generator, &bad, 2).unwrap_err().to_string();
        assert!(text.contains("the generator's gradient was not finite 2 times in a row"), "{text}");
    }
}
