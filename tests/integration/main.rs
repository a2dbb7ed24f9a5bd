//! Integration tests, one module per promise. One binary, because linking libtorch is slow.

#[path = "../common/slurm.rs"]
mod cluster;
#[path = "../common/launch.rs"]
mod launch;

mod architecture;
mod cli;
mod docs;
mod durability;
mod exact;
mod export;
mod fuzz;
mod gpu;
mod images;
mod methods;
mod mpi;
mod networks;
mod refusals;
mod segmentation;
mod site;
mod slurm;
mod study;
mod sweep;
mod torchscript;
mod trace;
mod tracking;
mod training;
