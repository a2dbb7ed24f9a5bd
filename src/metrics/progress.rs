//! The progress bar of the leading rank.

use super::record::RoundRecord;
use super::timings::Seconds;
use crate::task::Headline;
use indicatif::{FormattedDuration, ProgressBar, ProgressDrawTarget, ProgressStyle, TermLike};
use std::collections::VecDeque;
use std::io::{self, Write};
use std::time::Duration;

/// Rounds that a pace is measured over: enough to even out a checkpoint, few enough to follow a machine that slows down.
const WINDOW: usize = 8;

/// Amounts of work.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Work {
    /// Rounds that begin with an inversion.
    pub inversions: u64,
    /// Student steps.
    pub steps: u64,
    /// Images made and rows trained.
    pub samples: u64,
}

/// How fast a run is going.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    /// Images made and rows trained, per second, over the last rounds; evaluations are left out.
    pub samples_per_s: f64,
    /// Time that the inversions and steps still to come take.
    pub left: Duration,
    /// Whether `left` leaves something out: no student step was seen yet, so nobody knows what one takes.
    pub is_partial: bool,
}

/// Measures what an inversion and what a student step take, each by itself: rounds of the warm-up have no steps.
struct Clock {
    total: Work,
    done: Work,
    seconds: Seconds,
    laps: VecDeque<Lap>,
}

/// What a round did, and the wall seconds of either part, with what cannot be told apart (waiting for others, checkpoints) shared out.
struct Lap {
    work: Work,
    inverting: f64,
    stepping: f64,
}

impl Clock {
    fn new(total: Work, done: Work, seconds: Seconds) -> Self {
        Self { total, done, seconds, laps: VecDeque::new() }
    }

    /// After a round: what is done now, and the run's seconds so far.
    fn lap(&mut self, done: Work, seconds: Seconds) -> Pace {
        let lap = self.since(done, &seconds);
        (self.done, self.seconds) = (done, seconds);
        // A round of the warm-up says little of the others: without the student its inversion is cheaper.
        if self.laps.back().is_some_and(|last| (last.work.steps == 0) != (lap.work.steps == 0)) {
            self.laps.clear();
        }
        self.laps.push_back(lap);
        if self.laps.len() > WINDOW {
            self.laps.pop_front();
        }
        self.pace()
    }

    fn since(&self, done: Work, seconds: &Seconds) -> Lap {
        let work = Work {
            inversions: done.inversions - self.done.inversions,
            steps: done.steps - self.done.steps,
            samples: done.samples - self.done.samples,
        };
        let passed = |of: fn(&Seconds) -> f64| of(seconds) - of(&self.seconds);
        let wall = (passed(|s| s.total) - passed(|s| s.evaluation)).max(0.0);
        let (inverting, stepping) = (passed(|s| s.inversion), passed(|s| s.sampling + s.distillation));
        let share = match (work.inversions, work.steps) {
            (0, _) => 0.0,
            (_, 0) => 1.0,
            _ => inverting / (inverting + stepping).max(1e-9),
        };
        Lap { work, inverting: wall * share, stepping: wall * (1.0 - share) }
    }

    fn pace(&self) -> Pace {
        let count = |of: fn(&Work) -> u64| self.laps.iter().map(|lap| of(&lap.work)).sum::<u64>() as f64;
        let spent = |of: fn(&Lap) -> f64| self.laps.iter().map(of).sum::<f64>();
        let (inverting, stepping) = (spent(|l| l.inverting), spent(|l| l.stepping));
        // Seconds that so much work will take, if any of its kind was seen.
        let left = |seconds: f64, seen: f64, left: u64| match (left, seen) {
            (0, _) => Some(0.0),
            (_, 0.0) => None,
            _ => Some(seconds / seen * left as f64),
        };
        let inversions = left(inverting, count(|w| w.inversions), self.total.inversions.saturating_sub(self.done.inversions));
        let steps = left(stepping, count(|w| w.steps), self.total.steps.saturating_sub(self.done.steps));
        Pace {
            samples_per_s: count(|w| w.samples) / (inverting + stepping).max(1e-9),
            left: Duration::from_secs_f64(inversions.unwrap_or_default() + steps.unwrap_or_default()),
            is_partial: inversions.is_none() || steps.is_none(),
        }
    }
}

/// Shows rounds, losses, speed and the time left on a terminal; elsewhere it only keeps the pace.
pub struct Progress {
    bar: ProgressBar,
    clock: Clock,
    score: Option<Headline>,
}

impl Progress {
    /// Of `rounds`, the first `round` being over, with the work of all and of those; `seconds` is what the run took before its next
    /// round. `launcher_columns`: width of the terminal that a launcher passes our stderr on to.
    pub fn new(rounds: u64, round: u64, total: Work, done: Work, seconds: Seconds, launcher_columns: Option<u16>) -> Self {
        let bar = match launcher_columns {
            Some(columns) => {
                ProgressBar::with_draw_target(Some(rounds), ProgressDrawTarget::term_like_with_hz(Box::new(LauncherTerminal(columns)), 4))
            }
            None => ProgressBar::new(rounds),
        };
        let style = ProgressStyle::with_template("{bar:24.cyan/dim} {pos}/{len} rounds · {elapsed_precise} · {wide_msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_position(round);
        Self { bar, clock: Clock::new(total, done, seconds), score: None }
    }

    /// After a round: what is done now, and the run's seconds so far.
    pub fn show(&mut self, record: &RoundRecord, done: Work, seconds: Seconds) -> Pace {
        self.score = record.scores().headline().or(self.score);
        let pace = self.clock.lap(done, seconds);
        let shown = |name: &str, value: Option<f64>| value.map(|v| format!("{name} {v:.3} · ")).unwrap_or_default();
        self.bar.set_message(format!(
            "{}{} left · {}{}{}{}buffer {} · {:.0} samples/s",
            if pace.is_partial { "more than " } else { "" },
            FormattedDuration(Duration::from_secs(pace.left.as_secs())),
            shown("L_BN", record.loss_statistics),
            shown("task", record.loss_task),
            shown("KL", record.loss_student),
            self.score.map(|s| format!("{} {:.3} · ", s.name, s.share)).unwrap_or_default(),
            record.buffer_filled,
            pace.samples_per_s,
        ));
        self.bar.set_position(record.round + 1);
        pace
    }

    /// Leaves the last state on the screen.
    pub fn finish(&self) {
        self.bar.abandon();
    }
}

/// The terminal at the far end of a launcher's pipe. mpirun passes bytes on as they are, so cursor movements arrive there.
#[derive(Debug)]
struct LauncherTerminal(u16);

impl LauncherTerminal {
    fn write(text: &str) -> io::Result<()> {
        io::stderr().write_all(text.as_bytes())
    }

    /// Moves the cursor `n` places; `direction` is the final byte of the ANSI sequence.
    fn moved(n: usize, direction: char) -> io::Result<()> {
        if n == 0 { Ok(()) } else { Self::write(&format!("\x1b[{n}{direction}")) }
    }
}

impl TermLike for LauncherTerminal {
    fn width(&self) -> u16 {
        self.0
    }

    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        Self::moved(n, 'A')
    }

    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        Self::moved(n, 'B')
    }

    fn move_cursor_right(&self, n: usize) -> io::Result<()> {
        Self::moved(n, 'C')
    }

    fn move_cursor_left(&self, n: usize) -> io::Result<()> {
        Self::moved(n, 'D')
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        Self::write(&format!("{text}\n"))
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        Self::write(text)
    }

    fn clear_line(&self) -> io::Result<()> {
        Self::write("\r\x1b[2K")
    }

    fn flush(&self) -> io::Result<()> {
        io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 4 rounds of warm-up, then 6 of 20 steps; 100 images and 200 rows a round.
    const TOTAL: Work = Work { inversions: 10, steps: 120, samples: 2200 };

    /// Rounds go by on a made clock: what each adds to the seconds, and how many steps it has.
    struct Run {
        clock: Clock,
        done: Work,
        seconds: Seconds,
    }

    impl Run {
        /// The teacher's evaluation is over when the clock starts.
        fn new(done: Work) -> Self {
            let seconds = Seconds { total: 50.0, evaluation: 40.0, ..Seconds::default() };
            Self { clock: Clock::new(TOTAL, done, seconds), done, seconds }
        }

        fn round(&mut self, inversions: u64, steps: u64, inverting: f64, stepping: f64, evaluating: f64) -> (f64, bool, f64) {
            self.done.inversions += inversions;
            self.done.steps += steps;
            self.done.samples += 100 * inversions + 10 * steps;
            let s = &mut self.seconds;
            // A quarter of a round's work is waiting for others: it belongs to both.
            (s.inversion, s.distillation, s.sampling) =
                (s.inversion + 0.75 * inverting, s.distillation + 0.5 * stepping, s.sampling + 0.25 * stepping);
            s.communication += 0.25 * (inverting + stepping);
            s.evaluation += evaluating;
            s.total += inverting + stepping + evaluating;
            let pace = self.clock.lap(self.done, self.seconds);
            (pace.left.as_secs_f64(), pace.is_partial, pace.samples_per_s)
        }
    }

    #[track_caller]
    fn near(got: (f64, bool, f64), want: (f64, bool, f64)) {
        assert!((got.0 - want.0).abs() < 1e-6 && got.1 == want.1 && (got.2 - want.2).abs() < 1e-6, "{got:?}, not {want:?}");
    }

    #[test]
    fn inversions_and_steps_are_measured_apart() {
        let mut run = Run::new(Work::default());
        // Nothing is known of steps: the inversions alone, and said to be so.
        near(run.round(1, 0, 2.0, 0.0, 0.0), (9.0 * 2.0, true, 50.0));
        for _ in 0..3 {
            run.round(1, 0, 2.0, 0.0, 0.0);
        }
        // One round past the warm-up tells all: 5 more of 4 + 20 × 0.3 seconds. Its evaluation counts for nothing.
        near(run.round(1, 20, 4.0, 6.0, 30.0), (5.0 * 10.0, false, 30.0));
    }

    #[test]
    fn a_pace_is_that_of_the_last_rounds() {
        let mut clock = Run::new(Work::default());
        clock.clock.total = Work { inversions: 100, steps: 2000, samples: 0 };
        for _ in 0..WINDOW {
            clock.round(1, 20, 1.0, 1.0, 0.0);
        }
        for _ in 0..WINDOW - 1 {
            clock.round(1, 20, 2.0, 4.0, 0.0);
        }
        let left = (100 - 2 * WINDOW) as f64;
        near(clock.round(1, 20, 2.0, 4.0, 0.0), (left * 6.0, false, 50.0));
    }

    /// Stopped between two steps: the first round has no inversion, so what one takes is open until the next.
    #[test]
    fn a_resumed_round_counts_what_this_launch_did() {
        let mut run = Run::new(Work { inversions: 6, steps: 35, samples: 950 });
        near(run.round(0, 5, 0.0, 1.5, 0.0), (80.0 * 0.3, true, 50.0 / 1.5));
        near(run.round(1, 20, 4.0, 6.0, 0.0), (3.0 * 4.0 + 60.0 * 0.3, false, 350.0 / 11.5));
        let mut last = Run::new(Work { inversions: 9, steps: 100, samples: 1900 });
        near(last.round(1, 20, 4.0, 6.0, 0.0), (0.0, false, 30.0));
    }
}
