//! Ranks: transport, the job as one process sees it, sums in a fixed order, and agreement.

mod agree;
pub mod comm;
mod host;
mod meter;
mod pairs;
mod reduce;
mod seat;
mod watchdog;
mod world;

#[cfg(test)]
pub(crate) mod test_ranks;

pub use agree::end_with;
pub use comm::{BUCKET, Communicator, MpiComm, end_job};
pub use host::{Host, hosts, unlike};
pub use meter::Meter;
pub use pairs::{PairSpeed, pair_speeds, slow};
pub use reduce::{TreeSum, check_sum};
pub use watchdog::{HEARTBEATS, Watchdog, made_progress};
pub use world::{Launch, Local, PerRank, World, allowed_cores, host_name, launcher_columns, set_threads, thread_count};
