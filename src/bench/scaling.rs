//! Weak scaling: every rank has the work of one alone (M = R). Time alone, time of all at once without a word between them, time
//! together; what of it is waiting and communication; bytes counted and by formula.

use super::step::{Bench, CRITERION, LR, SEED, StepSettings, Work};
use super::{filled, median};
use crate::config::ReduceRule;
use crate::device::stream;
use crate::distill::backward;
use crate::error::Result;
use crate::inversion::{Call, Networks, Share, descend};
use crate::layout::Layout;
use crate::parallel::comm::Solo;
use crate::parallel::{Launch, PerRank, TreeSum, World, thread_count};
use crate::replay::{Replay, Route};
use crate::rng::{Key, Purpose};
use serde::Serialize;
use std::fmt::Write;
use std::time::{Duration, Instant};

/// Samples of a rank's shard.
const CAPACITY: usize = 2_000;

/// One kind of step on R ranks. Milliseconds are those of the slowest rank; a median turn each.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WorkScaling {
    /// Which: an inversion has one inner step here, the fewest there can be between two sums.
    pub work: Work,
    /// One rank, while the others sleep.
    pub alone_ms: f64,
    /// All at once, each by itself: what cores, caches and memory of one machine leave to each.
    pub apart_ms: f64,
    /// All together.
    pub together_ms: f64,
    /// Of `together_ms`, until the last rank came to the sum.
    pub waiting_ms: f64,
    /// Of `together_ms`, in collectives, all having come.
    pub communication_ms: f64,
    /// Weak-scaling efficiency: `alone_ms / together_ms`.
    pub efficiency: f64,
    /// What of it the ranks answer for, not the machine they share: `apart_ms / together_ms`.
    pub efficiency_of_ranks: f64,
    /// `communication_ms / together_ms`.
    pub communication_share: f64,
    /// Sent by all ranks together, per step: counted.
    pub bytes: f64,
    /// By the formula of docs/scaling.md.
    pub bytes_expected: f64,
}

/// Both kinds of steps of a pair.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RanksReport {
    /// The pair.
    pub teacher: &'static str,
    /// The pair.
    pub student: &'static str,
    /// Images of a step on one rank.
    pub batch: usize,
    /// Turns that the medians are of.
    pub turns: u64,
    /// R, and M.
    pub ranks: usize,
    /// Threads of a rank.
    pub threads: usize,
    /// Rule of the sums over ranks.
    pub reduce: ReduceRule,
    /// Values of the generator's gradient.
    pub generator_values: usize,
    /// Values of the student's gradient and running statistics.
    pub student_values: usize,
    /// Each kind of step.
    pub steps: Vec<WorkScaling>,
}

impl RanksReport {
    /// For people.
    pub fn table(&self) -> String {
        let Self { teacher, student, batch, ranks, threads, reduce, .. } = self;
        let mut text = format!("{teacher} -> {student}, {ranks} ranks, {batch} images and {threads} threads each, {reduce:?} sums\n");
        let head = ["alone", "apart", "together", "waiting", "in comm."].map(|name| format!("{name:>10}")).concat();
        let _ = writeln!(text, "{:14}{head}{:>9}{:>12}{:>12}{:>14}{:>14}", "ms", "comm.", "efficiency", "of ranks", "bytes", "by formula");
        for s in &self.steps {
            let name = if s.work == Work::Inversion { "inversion" } else { "distillation" };
            let times = [s.alone_ms, s.apart_ms, s.together_ms, s.waiting_ms, s.communication_ms].map(|ms| format!("{ms:>10.2}")).concat();
            let shares = format!("{:>7.2} %{:>12.3}{:>12.3}", 100.0 * s.communication_share, s.efficiency, s.efficiency_of_ranks);
            let _ = writeln!(text, "{name:14}{times}{shares}{:>14.0}{:>14.0}", s.bytes, s.bytes_expected);
        }
        text
    }
}

/// Bytes that all ranks together send for one sum of `values` f32 values when each has one partial sum: every value leaves its rank for
/// the one that adds it, and each sum goes to all others. The library's own sum is counted as a ring: the same.
pub fn sum_bytes(values: usize, ranks: usize) -> usize {
    2 * 4 * values * (ranks - 1)
}

/// Where the seconds of a step went.
#[derive(Debug, Clone, Copy, Default)]
struct Parts {
    all: f64,
    waiting: f64,
    communication: f64,
    /// Counted by this rank.
    bytes: u64,
    /// By formula, of all ranks.
    bytes_expected: usize,
}

/// What `work` gives; its seconds are added to `to`.
fn clock<T>(to: &mut f64, work: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let done = work();
    *to += began.elapsed().as_secs_f64();
    done
}

/// The networks with the buffers of one world.
struct Scene<'a> {
    bench: &'a mut Bench,
    replay: &'a mut Replay,
    world: &'a World,
    batch: usize,
    turn: u64,
}

impl Scene<'_> {
    fn step(&mut self, work: Work) -> Result<Parts> {
        let mut parts = Parts::default();
        let (began, before) = (Instant::now(), self.world.meter().total_bytes());
        match work {
            Work::Inversion => self.inversion(&mut parts)?,
            _ => self.distillation(&mut parts)?,
        }
        stream::finish(self.world.device());
        parts.all = began.elapsed().as_secs_f64();
        parts.bytes = self.world.meter().total_bytes() - before;
        Ok(parts)
    }

    /// An inversion as `train/step.rs` has it.
    fn inversion(&mut self, parts: &mut Parts) -> Result<()> {
        let (bench, world) = (&mut *self.bench, self.world);
        let layout = *world.layout();
        let class_counts_k = clock(&mut parts.communication, || self.replay.class_counts(world))?;
        let mut meta_gradient = TreeSum::new(layout);
        for rank in world.hosted() {
            let networks = Networks { teacher: &bench.teacher, student: bench.student.frozen(), normalise: &bench.normalise };
            let call = Call { round: self.turn, rank, adversarial: true, class_counts_k: &class_counts_k, first_id: 0 };
            let found = descend(&bench.settings, &networks, Some(&mut bench.generator), &mut bench.local, &call)?;
            meta_gradient.add(rank, found.shared);
        }
        stream::finish(world.device());
        clock(&mut parts.waiting, || world.barrier())?;
        let meta_gradient = clock(&mut parts.communication, || world.reduce(meta_gradient))?;
        bench.generator.apply(Share::MetaStep, &meta_gradient, layout.logical_ranks(), &bench.settings.inversion)?;
        let histograms = 8 * class_counts_k.len() * layout.logical_ranks() * (layout.ranks() - 1);
        parts.bytes_expected = sum_bytes(meta_gradient.numel(), layout.ranks()) + histograms;
        Ok(())
    }

    /// A student step as `train/step.rs` has it, the draw taken apart.
    fn distillation(&mut self, parts: &mut Parts) -> Result<()> {
        let (bench, replay, world) = (&mut *self.bench, &mut *self.replay, self.world);
        let (layout, batch) = (*world.layout(), self.batch * world.layout().logical_ranks());
        let masses = clock(&mut parts.communication, || replay.masses(world))?;
        let supply = replay.look_up(world, &masses, batch, self.turn);
        stream::finish(world.device());
        let cost = Route::cost(layout.logical_ranks(), &supply.supplied, &supply.consumed, replay.row_bytes());
        let received = clock(&mut parts.communication, || supply.route.out(world, &supply.packed))?;
        let mut draw = supply.into_draw(replay.hand_out(world, &received, batch, self.turn));
        let (mut payload, mut loss) = (TreeSum::new(layout), PerRank::default());
        for rank in world.hosted() {
            let (rows, dropout) = (draw.rows.get(rank), Key::of(SEED, Purpose::Dropout, self.turn, rank));
            let slice = backward(&mut bench.student, Some(&bench.teacher), &bench.normalise, rows, CRITERION, batch, dropout);
            payload.add(rank, slice.payload);
            loss.set(rank, slice.loss_b);
        }
        stream::finish(world.device());
        clock(&mut parts.waiting, || world.barrier())?;
        let payload = clock(&mut parts.communication, || world.reduce(payload))?;
        bench.student.apply(&payload, layout.logical_ranks(), LR)?;
        stream::finish(world.device());
        clock(&mut parts.communication, || replay.write_back(world, &mut draw, &loss))?;
        parts.bytes_expected = sum_bytes(payload.numel(), layout.ranks()) + cost.bytes;
        Ok(())
    }
}

/// Measures a pair on the ranks of this launch, M = R. A collective.
pub fn scaling(of: StepSettings, world: &World) -> Result<RanksReport> {
    let ranks = world.layout().ranks();
    let mut bench = Bench::new(of)?;
    bench.settings.inversion.steps = 1;
    let solo = Launch::over(Box::new(Solo))?.into_world(Layout::new(1, 1)?, world.reduce_rule(), world.device());
    let mut own = filled(&solo, of.dataset, CAPACITY)?;
    let mut shared = filled(world, of.dataset, CAPACITY * ranks)?;
    let mut steps = Vec::new();
    for work in [Work::Inversion, Work::DistillationStored] {
        let (mut alone, mut apart, mut together) = (Vec::new(), Vec::new(), Vec::new());
        // One turn more, which does not count: memory is not there yet.
        for turn in 0..=of.turns {
            let by_itself =
                |bench: &mut Bench, own: &mut Replay| Scene { bench, replay: own, world: &solo, batch: of.batch, turn }.step(work);
            world.barrier()?;
            if world.leads() {
                alone.push(by_itself(&mut bench, &mut own)?);
            } else {
                // Waiting in a barrier would keep a core and the memory busy.
                std::thread::sleep(apart.last().map_or(Duration::ZERO, |last: &Parts| Duration::from_secs_f64(0.8 * last.all)));
            }
            world.barrier()?;
            apart.push(by_itself(&mut bench, &mut own)?);
            world.barrier()?;
            together.push(Scene { bench: &mut bench, replay: &mut shared, world, batch: of.batch, turn }.step(work)?);
        }
        steps.push(summary(work, world, [&alone, &apart, &together])?);
    }
    Ok(RanksReport {
        teacher: of.teacher.name(),
        student: of.student.name(),
        batch: of.batch,
        turns: of.turns,
        ranks,
        threads: thread_count(),
        reduce: world.reduce_rule(),
        generator_values: bench.generator.state.parameters().numel(),
        student_values: bench.student.state().parameters().numel() + bench.student.state().statistics().numel(),
        steps,
    })
}

/// Medians, of the slowest rank. A collective.
fn summary(work: Work, world: &World, [alone, apart, together]: [&[Parts]; 3]) -> Result<WorkScaling> {
    let counted = &together[1..];
    let nanoseconds = |parts: &[Parts], of: fn(&Parts) -> f64| (median(parts.iter().skip(1).map(of).collect()) * 1e9) as u64;
    let mine = [
        nanoseconds(alone, |p| p.all),
        nanoseconds(apart, |p| p.all),
        nanoseconds(together, |p| p.all),
        nanoseconds(together, |p| p.waiting),
        nanoseconds(together, |p| p.communication),
    ];
    let all = world.gather(&PerRank::build(world.hosted(), |_| mine))?;
    let [alone_ms, apart_ms, together_ms, waiting_ms, communication_ms] =
        std::array::from_fn(|i| all.iter().map(|each| each[i]).max().unwrap_or_default() as f64 / 1e6);
    let [bytes] = world.sum([counted.iter().map(|p| p.bytes).sum()])?;
    let per_step = |sum: f64| sum / counted.len().max(1) as f64;
    Ok(WorkScaling {
        work,
        alone_ms,
        apart_ms,
        together_ms,
        waiting_ms,
        communication_ms,
        efficiency: alone_ms / together_ms,
        efficiency_of_ranks: apart_ms / together_ms,
        communication_share: communication_ms / together_ms,
        bytes: per_step(bytes as f64),
        bytes_expected: per_step(counted.iter().map(|p| p.bytes_expected as f64).sum()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{DatasetName, ModelName, Precision};
    use crate::parallel::test_ranks::on_each_rank_by;

    #[test]
    fn bytes_of_both_steps_are_those_of_the_formula() {
        let pair = StepSettings {
            teacher: ModelName::Wrn16x1,
            student: ModelName::Wrn16x1,
            dataset: DatasetName::FashionMnist,
            batch: 2,
            dtype: Precision::F32,
            device: tch::Device::Cpu,
            turns: 1,
        };
        for rule in [ReduceRule::Deterministic, ReduceRule::Native] {
            for ranks in [1, 2, 4] {
                for report in on_each_rank_by(rule, ranks, ranks, |world| scaling(pair, world).unwrap()) {
                    for step in &report.steps {
                        assert_eq!(step.bytes, step.bytes_expected, "{rule:?} on {ranks} ranks: {step:?}");
                        assert_eq!(step.bytes == 0.0, ranks == 1);
                    }
                    let [inversion, distillation] = [0, 1].map(|i| report.steps[i].bytes as usize);
                    let histograms = 8 * 10 * ranks * (ranks - 1);
                    assert_eq!(inversion, 8 * report.generator_values * (ranks - 1) + histograms);
                    let draw = distillation - 8 * report.student_values * (ranks - 1) - 24 * ranks * (ranks - 1);
                    // Whole rows travel, and their losses home.
                    assert_eq!(draw % (32 * 32 + 4 * 10 + 16 + 4), 0, "{draw}");
                }
            }
        }
    }
}
