//! One typed record per round, written to CSV, TensorBoard and the progress bar; and where the time goes.

mod progress;
mod record;
mod summary;
mod tensorboard;
mod timings;

pub use progress::{Pace, Progress, Work};
pub use record::{RoundRecord, Sent, Sinks, TimingRecord, header, read_table};
pub use summary::{BufferSummary, NetworkScore, PICTURE_ROWS, Seen, Summary, mean_and_std, spread, version};
pub use tensorboard::EventWriter;
pub use timings::{Seconds, Timings, TimingsLayer};
