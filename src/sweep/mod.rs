//! Sweeps: many runs that differ in some keys. A file of axes becomes points, points and seeds become numbered trials, a trial is an
//! ordinary run folder; what ran, failed or waits is read from the files of those folders and from nothing else.
//!
//! # What may happen at the same time
//!
//! Any number of runners, on any hosts, work on one sweep. A trial belongs to whoever has created its file `claim`
//! (`Claim::take`); only its holder writes below its folder, and no file is written by two. There is no shared list: what to
//! do next is decided from the trials' own files ([`Trials::next`]), so that two runners can at most want the same trial, and then one
//! of them gets it.

mod axes;
mod check;
mod claim;
mod collect;
mod conditions;
mod file;
mod folder;
mod gpu;
mod halving;
mod keys;
mod launch;
mod local;
mod plan;
mod points;
mod published;
mod scaling;
mod shown;
mod slurm;
mod stand;
mod status;
mod study;
mod table;

pub use collect::{collect, groups};
pub use file::{Resources, SweepFile};
pub use folder::SweepFolder;
pub use launch::{Launcher, Request};
pub use local::say;
pub use plan::{Plan, plan};
pub use scaling::RanksStudy;
pub use shown::{show, write as write_study};
pub use slurm::{Array, Queue};
pub use stand::{Trials, retry};
pub use status::{Status, table as status_table};
pub use study::{Kind, Study, folder_of};
