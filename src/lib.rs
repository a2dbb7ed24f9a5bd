//! Small-scale data-free knowledge distillation (SSD-KD) as a distributed trainer.
//!
//! A frozen **teacher** is all that is left of a data set. Every rank runs **data inversion**: a small generator is pushed to
//! make images on which the teacher's batch-norm statistics, its labels and the student's disagreement say "useful". Images
//! enter a **global prioritised replay buffer**, sharded over the ranks and never gathered. **Distillation** draws global
//! batches with probability P(x), trains the student with importance weights w(x), and writes fresh priorities δ(x) back.
//!
//! # Tour
//!
//! 1. [`train::round`] (`train/step.rs`): one round, top to bottom, every collective visible.
//! 2. [`inversion::invert`]: the inner loop, for one logical rank.
//! 3. [`replay::Replay::draw`]: a global draw, from masses to rows.
//! 4. [`distill::backward`]: one logical rank's slice of a student step.
//! 5. [`parallel::World::reduce`]: sums over logical ranks in a fixed order.
//!
//! Modules use only modules above them; `docs/architecture.md` has the list, and a test holds it.
//!
//! # Words
//!
//! * **Rank**: a process. **Logical rank**: the unit of randomness, batch slices, batch-norm groups, generator copies and replay
//!   shards. A rank hosts a contiguous block of logical ranks; no number depends on how many ranks there are.
//! * **Round**: one inversion and its student steps. **Step**: one student update. **Inner step**: one update of a generator
//!   copy inside an inversion.
//! * **View**: an image shifted and flipped. **Mass**: (|δ| + ε)^α in units of 2⁻³². **Meta-gradient**: gradient of the shared
//!   generator, summed over inner steps.
//! * **Collective**: a call that every rank makes, in the same order. Such calls take a [`parallel::World`] first and say so.
//!
//! # Shapes
//!
//! Tensor names end in their shape: `b` rows of one logical rank, `n` slots or images, `k` classes, `c h w` channels, height,
//! width, `z` latent values, `d` features, `e` embedded values, `f` batch-norm channels, `r` regions, `v` views, `m` logical ranks.

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
pub mod export;
pub mod files;
pub mod goldens;
pub mod inversion;
pub mod layout;
pub mod logs;
pub mod losses;
pub mod memory;
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
pub mod sweep;
pub mod task;
pub mod teacher;
pub mod train;
mod vector;
