//! The progress bar of the leading rank.

use super::record::RoundRecord;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle, TermLike};
use std::io::{self, Write};
use std::time::{Duration, Instant};

/// Shows rounds, losses, speed and the time left on a terminal; elsewhere it only keeps the pace.
pub struct Progress {
    bar: ProgressBar,
    began: Instant,
    samples_at_start: Option<u64>,
    top1: Option<f64>,
}

/// How fast a run is going.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    /// Images made and rows trained, per second.
    pub samples_per_s: f64,
    /// Time to the last round, if rounds go on as they do.
    pub left: Duration,
}

impl Progress {
    /// Of `rounds`, the first `done` being over. `launcher_columns`: width of the terminal that a launcher passes our stderr on to.
    pub fn new(rounds: u64, done: u64, launcher_columns: Option<u16>) -> Self {
        let bar = match launcher_columns {
            Some(columns) => {
                ProgressBar::with_draw_target(Some(rounds), ProgressDrawTarget::term_like_with_hz(Box::new(LauncherTerminal(columns)), 4))
            }
            None => ProgressBar::new(rounds),
        };
        let style = ProgressStyle::with_template("{bar:24.cyan/dim} {pos}/{len} rounds · {elapsed} · {eta} left · {wide_msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_position(done);
        bar.reset_eta();
        Self { bar, began: Instant::now(), samples_at_start: None, top1: None }
    }

    /// After a round.
    pub fn show(&mut self, record: &RoundRecord, rows_trained: u64) -> Pace {
        self.top1 = record.student_top1.or(self.top1);
        let start = *self.samples_at_start.get_or_insert(rows_trained);
        let samples_per_s = (rows_trained - start) as f64 / self.began.elapsed().as_secs_f64().max(1e-9);
        let shown = |name: &str, value: Option<f64>| value.map(|v| format!("{name} {v:.3} · ")).unwrap_or_default();
        self.bar.set_message(format!(
            "{}{}{}{}buffer {} · {samples_per_s:.0} samples/s",
            shown("L_BN", record.loss_statistics),
            shown("task", record.loss_task),
            shown("KL", record.loss_student),
            shown("top-1", self.top1),
            record.buffer_filled,
        ));
        self.bar.set_position(record.round + 1);
        Pace { samples_per_s, left: self.bar.eta() }
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
