//! Sweeps: many runs that differ in some keys. A file of axes becomes points, points and seeds become numbered trials, a trial is an
//! ordinary run folder; what ran, failed or waits is read from the files of those folders and from nothing else.
//!
//! # What may happen at the same time
//!
//! Any number of runners, on any hosts, work on one sweep. A trial belongs to whoever has created its file `claim`
//! ([`Claim::take`]); only its holder writes below its folder, and no file is written by two. There is no shared list: what to
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

pub use axes::{Axis, Domain, Range, Scale};
pub use claim::Claim;
pub use collect::{collect, groups};
pub use file::{Halving, HalvingWritten, Resources, Strategy, SweepFile};
pub use folder::SweepFolder;
pub use halving::{Goal, Ladder, Rung, Step};
pub use launch::{Launcher, Machine, Request, Slot, slots};
pub use local::{Tally, run, say};
pub use plan::{Plan, Planned, Trial, plan};
pub use points::{Point, points};
pub use scaling::RanksStudy;
pub use shown::{Shown, show, write as write_study};
pub use slurm::{Array, Queue, arrays, submit};
pub use stand::{Ended, Outcome, Stand, Standing, Trials, retry};
pub use status::{Row, Status, table as status_table};
pub use study::{Kind, Study, folder_of};
pub use table::{Cell, Table};
