//! Integration tests, one module per promise. One binary, because linking libtorch is slow.

#[path = "../common/fill.rs"]
mod fill;
#[path = "../common/launch.rs"]
mod launch;

mod architecture;
mod cli;
mod docs;
mod exact;
mod mpi;
mod networks;
