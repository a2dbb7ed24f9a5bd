//! ssdkd
pub mod bench;
pub mod checkpoint;
pub mod cli;
pub mod commands;
pub mod config;
pub mod data;
pub mod device;
pub mod distill;
pub mod error;
pub mod eval;
pub mod files;
pub mod inversion;
pub mod layout;
pub mod logs;
pub mod losses;
pub mod methods;
pub mod metrics;
pub mod models;
pub mod nn;
pub mod parallel;
pub mod predict;
pub mod replay;
pub mod report;
pub mod rng;
pub mod run_folder;
pub mod task;
pub mod teacher;
pub mod train;
mod vector;

#[cfg(test)]
#[path = "../tests/common/fill.rs"]
mod test_fill;
