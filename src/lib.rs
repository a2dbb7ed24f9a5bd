//! ssdkd
pub mod config;
pub mod error;
pub mod layout;
pub mod losses;
pub mod models;
pub mod nn;
pub mod parallel;
pub mod rng;

#[cfg(test)]
#[path = "../tests/common/fill.rs"]
mod test_fill;
