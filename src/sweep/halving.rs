//! Asynchronous successive halving: which trial goes on to which rung, given what has come of the others. Pure.
//!
//! Source: Li et al., *A System for Massively Parallel Hyperparameter Tuning* (MLSys 2020), Algorithm 2. Of the trials that reached a
//! rung, the best 1/η go on as soon as they are among them, without waiting for the others. Beyond it: once a rung can get no more
//! trials, its best goes on even where 1/η of them is less than one, so that a sweep ends with at least one whole run.

use serde::{Deserialize, Serialize};

/// Which end of a metric is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// The largest.
    Max,
    /// The smallest.
    Min,
}

impl Goal {
    /// Of a column or a value of a report, where nobody has said it: losses, divergences, times and bytes are good when small.
    pub fn of(metric: &str) -> Self {
        if ["loss", "divergence", "seconds", "bytes"].iter().any(|word| metric.contains(word)) { Self::Min } else { Self::Max }
    }

    /// Better first; what is missing or not a number comes last.
    pub fn order(self, a: Option<f64>, b: Option<f64>) -> std::cmp::Ordering {
        let worth = |value: Option<f64>| {
            let value = value.filter(|v| !v.is_nan()).map(|v| if self == Self::Max { v } else { -v });
            value.unwrap_or(f64::NEG_INFINITY)
        };
        worth(b).total_cmp(&worth(a))
    }
}

/// How a trial stands on the ladder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rung {
    /// Not begun.
    Fresh,
    /// On its way to the next rung, interrupted: nothing stands against going on.
    Interrupted,
    /// On its way to the next rung.
    Busy,
    /// Waits at its last rung.
    Waiting,
    /// Done or failed.
    Ended,
}

/// A trial is to run up to a rung; the last rung is the whole run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Index of the trial.
    pub trial: usize,
    /// Index of the rung.
    pub rung: usize,
}

/// Trials that compete with each other.
#[derive(Debug)]
pub struct Ladder {
    /// How each stands, and its metric at every rung it has reached.
    pub trials: Vec<(Rung, Vec<Option<f64>>)>,
    /// Rungs before the whole run.
    pub rungs: usize,
    /// η.
    pub factor: usize,
    /// Which end of the metric is good.
    pub goal: Goal,
}

impl Ladder {
    /// What can be run now, in the order in which it should be.
    pub fn steps(&self) -> Vec<Step> {
        let all = |stand: Rung| self.trials.iter().enumerate().filter(move |(_, (s, _))| *s == stand);
        let next = |(trial, (_, values)): (usize, &(Rung, Vec<Option<f64>>))| Step { trial, rung: values.len() };
        let mut steps: Vec<Step> = all(Rung::Interrupted).map(next).collect();
        steps.extend(self.promotions().into_iter().rev().flatten());
        steps.extend(all(Rung::Fresh).map(next));
        steps
    }

    /// From each rung, lowest first.
    fn promotions(&self) -> Vec<Vec<Step>> {
        let mut out: Vec<Vec<Step>> = Vec::new();
        for rung in 0..self.rungs {
            let mut reached: Vec<usize> = (0..self.trials.len()).filter(|&i| self.trials[i].1.len() > rung).collect();
            reached.sort_by(|&a, &b| self.goal.order(self.trials[a].1[rung], self.trials[b].1[rung]).then(a.cmp(&b)));
            let coming =
                |(stand, values): &(Rung, Vec<_>)| values.len() <= rung && matches!(stand, Rung::Fresh | Rung::Interrupted | Rung::Busy);
            let is_settled = !self.trials.iter().any(coming) && out.iter().all(Vec::is_empty);
            let best = (reached.len() / self.factor).max(usize::from(is_settled));
            let waits = |&&i: &&usize| self.trials[i].0 == Rung::Waiting && self.trials[i].1.len() == rung + 1;
            out.push(reached.iter().take(best).filter(waits).map(|&trial| Step { trial, rung: rung + 1 }).collect());
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Key, Purpose};

    fn ladder(trials: &[(Rung, &[f64])], rungs: usize, factor: usize) -> Ladder {
        let trials = trials.iter().map(|(stand, values)| (*stand, values.iter().map(|v| Some(*v)).collect())).collect();
        Ladder { trials, rungs, factor, goal: Goal::Max }
    }

    #[test]
    fn losses_are_good_when_small() {
        for metric in ["loss_student", "student_loss", "student.loss", "student_divergence"] {
            assert_eq!(Goal::of(metric), Goal::Min, "{metric}");
        }
        for metric in ["student_top1", "student.miou", "student.agreement", "buffer_class_balance"] {
            assert_eq!(Goal::of(metric), Goal::Max, "{metric}");
        }
    }

    #[test]
    fn the_best_third_goes_on_before_anything_new_begins() {
        use Rung::{Busy, Fresh, Interrupted, Waiting};
        let at = |trials: &[(Rung, &[f64])]| ladder(trials, 2, 3).steps().iter().map(|s| (s.trial, s.rung)).collect::<Vec<_>>();
        assert_eq!(at(&[(Waiting, &[0.1]), (Waiting, &[0.3]), (Fresh, &[])]), [(2, 0)], "two are too few to judge");
        assert_eq!(at(&[(Waiting, &[0.1]), (Waiting, &[0.3]), (Waiting, &[0.2]), (Fresh, &[])]), [(1, 1), (3, 0)]);
        assert_eq!(at(&[(Waiting, &[0.1]), (Busy, &[0.3]), (Waiting, &[0.2]), (Fresh, &[])]), [(3, 0)], "the best is on its way");
        assert_eq!(at(&[(Waiting, &[0.1]), (Interrupted, &[0.3]), (Fresh, &[])]), [(1, 1), (2, 0)]);
        assert_eq!(at(&[(Waiting, &[f64::NAN]), (Waiting, &[0.1])]), [(1, 1)], "when no more can come, the best goes on");
        assert_eq!(at(&[(Waiting, &[0.2]), (Busy, &[])]), []);
    }

    /// However runs end up in time, what goes on was among the best 1/η of its rung when it did, at the end all of those have gone on,
    /// and at least one run is whole. The order of events is drawn; the check keeps its own books.
    #[test]
    fn promotions_are_those_of_the_definition_in_any_order_of_events() {
        for seed in 0..60 {
            let draw = |index: u64| Key::global(seed, Purpose::SweepPoint, 0).bits(index);
            let (count, rungs, factor) = (1 + (draw(0) % 20) as usize, 1 + (draw(1) % 3) as usize, 2 + (draw(2) % 3) as usize);
            let mut now = ladder(&vec![(Rung::Fresh, &[][..]); count], rungs, factor);
            let mut event = 10;
            let mut below = |bound: usize| {
                event += 1;
                (draw(event) % bound as u64) as usize
            };
            loop {
                let busy: Vec<usize> = (0..count).filter(|&i| now.trials[i].0 == Rung::Busy).collect();
                let step = now.steps().first().copied().filter(|_| busy.len() < 4);
                if let Some(step) = step.filter(|_| busy.is_empty() || below(2) == 0) {
                    if step.rung > 0 {
                        let value = |i: usize| now.trials[i].1.get(step.rung - 1).copied().flatten();
                        let others: Vec<f64> = (0..count).filter_map(value).collect();
                        let better = others.iter().filter(|v| **v > value(step.trial).unwrap()).count();
                        let last = step.rung == 1 && now.trials.iter().all(|(s, v)| !v.is_empty() || *s == Rung::Ended) || step.rung > 1;
                        assert!(better < (others.len() / factor).max(usize::from(last)), "{now:?} {step:?}");
                    }
                    now.trials[step.trial].0 = Rung::Busy;
                } else if busy.is_empty() {
                    break;
                } else {
                    let trial = busy[below(busy.len())];
                    let (stand, values) = &mut now.trials[trial];
                    if below(12) == 0 {
                        *stand = Rung::Ended;
                    } else if values.len() == rungs {
                        *stand = Rung::Ended;
                        values.push(Some(9.0));
                    } else {
                        *stand = Rung::Waiting;
                        values.push(Some(below(1_000_000) as f64));
                    }
                }
            }
            for rung in 0..rungs {
                let mut at: Vec<(f64, usize)> = (0..count).filter_map(|i| Some((now.trials[i].1.get(rung).copied()??, i))).collect();
                at.sort_by(|a, b| b.0.total_cmp(&a.0));
                let best = (at.len() / factor).max(usize::from(!at.is_empty()));
                for (_, trial) in at.into_iter().take(best) {
                    let (stand, values) = &now.trials[trial];
                    assert!(*stand == Rung::Ended || values.len() > rung + 1, "trial {trial} was left at rung {rung}: {now:?}");
                }
            }
        }
    }
}
