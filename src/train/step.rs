//! One round, top to bottom.

use super::guard::{Of, Verdict};
use super::keeper::{Keeper, Next};
use super::state::Run;
use crate::distill;
use crate::error::Result;
use crate::inversion::Samples;
use crate::metrics::RoundRecord;
use crate::parallel::{PerRank, TreeSum, World};
use crate::replay::Rows;

/// Inverts once, then distils `plan.steps_per_round` times; a resumed round goes on where it stopped. `None`: a signal has come,
/// everything is saved. Called by every rank; calls that take `world` are collectives.
pub fn round(run: &mut Run, world: &World, keeper: &mut Keeper) -> Result<Option<RoundRecord>> {
    if run.cursor.at_inversion() {
        invert(run, world, keeper)?;
        run.cursor.inverted(run.steps_this_round());
        if keeper.look(run, world)? == Next::Stop {
            return Ok(None);
        }
    }
    while run.cursor.in_round() {
        distil(run, world, keeper)?;
        run.cursor.stepped();
        if keeper.look(run, world)? == Next::Stop {
            return Ok(None);
        }
    }
    let record = run.record(world)?;
    run.cursor.next_round();
    Ok(Some(record))
}

/// Every logical rank makes a batch of images; the generator that all share takes what they have found.
fn invert(run: &mut Run, world: &World, keeper: &Keeper) -> Result<()> {
    if !run.synthesises() {
        return Ok(());
    }
    let class_counts_k = run.class_counts(world)?;
    run.reset_generator_when_due();
    let before = run.locals_now();
    let (mut shared, mut born, mut terms) = (TreeSum::new(*world.layout()), PerRank::default(), PerRank::default());
    for rank in world.hosted() {
        let _span = tracing::debug_span!("inversion", logical_rank = rank.0).entered();
        let batch = run.synthesise(rank, &class_counts_k)?;
        shared.add(rank, batch.shared);
        terms.set(rank, batch.terms);
        if let Some(samples) = batch.samples {
            born.set(rank, samples);
        }
    }
    let shared = world.reduce(shared)?;
    let verdict = run.guard.judge(Of::Generator, &shared, run.cursor.student_steps());
    let verdict = verdict.map_err(|error| keeper.keep_evidence(world, error, &born, Samples::tensors))?;
    run.update_generator(&shared, before, verdict)?;
    if verdict == Verdict::Apply {
        run.insert(born)?;
        terms.into_iter_ordered().for_each(|(rank, terms)| run.sums.get_mut(rank).inverted(terms));
    }
    Ok(())
}

/// One student step on a global draw.
fn distil(run: &mut Run, world: &World, keeper: &Keeper) -> Result<()> {
    let _span = tracing::debug_span!("step", step = run.cursor.student_steps()).entered();
    let (batch, criterion) = (run.batch_size(), run.method.criterion);
    let mut draw = run.draw(world)?;
    let (mut payload, mut loss, mut sums) = (TreeSum::new(*world.layout()), PerRank::default(), PerRank::default());
    for rank in world.hosted() {
        let _span = tracing::debug_span!("distillation", logical_rank = rank.0).entered();
        let (rows, dropout) = (draw.rows.get(rank), run.dropout_key(rank));
        let out = distill::backward(&mut run.student, run.teacher.as_ref(), &run.normalise, rows, criterion, batch, dropout);
        payload.add(rank, out.payload);
        sums.set(rank, out.sums);
        loss.set(rank, out.loss_b);
    }
    let payload = world.reduce(payload)?;
    let verdict = run.guard.judge(Of::Student, &payload, run.cursor.student_steps());
    let verdict = verdict.map_err(|error| keeper.keep_evidence(world, error, &draw.rows, Rows::tensors))?;
    run.update_student(&payload, verdict)?;
    if verdict == Verdict::Apply {
        run.memory.write_back(world, &mut draw, &loss)?;
        sums.into_iter_ordered().for_each(|(rank, sums)| run.sums.get_mut(rank).distilled(&sums, loss.get(rank).numel()));
    }
    run.moved += draw.moved;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::InARow;
    use crate::config::{Config, DatasetName, Job, ModelName, Plan, ReduceRule};
    use crate::goldens::fill;
    use crate::layout::LogicalRank;
    use crate::methods::Method;
    use crate::metrics::Timings;
    use crate::models::{self, Shape};
    use crate::nn::{Entries, State, Stateful, weights};
    use crate::parallel::test_ranks::on_each_rank_by;
    use crate::replay::Target;
    use crate::rng::Purpose;
    use crate::run_folder::{EVIDENCE, Status};
    use crate::teacher::Teacher;
    use std::path::Path;
    use tch::{Device, Kind, Tensor};

    const LOGICAL: usize = 4;
    const BAD: LogicalRank = LogicalRank(2);

    /// A run whose buffer is full, four samples of equal mass in every shard, so that each logical rank trains on its own; the
    /// targets of `bad` are NaN. And its keeper.
    fn scene(world: &World, folder: &Path, bad: Option<LogicalRank>) -> (Run, Keeper) {
        let mut config = Config { dataset: DatasetName::FashionMnist, ..Config::default() };
        config.data.dir = Some(folder.into());
        config.student.model = ModelName::Wrn16x1;
        (config.generator.latent, config.generator.filters) = (4, 4);
        (config.inversion.steps, config.inversion.batch_size, config.inversion.statistics_momentum) = (1, 4, 0.9);
        (config.replay.capacity, config.distill.batch_size, config.distill.teacher_views) = (16, 16, 1);
        (config.train.rounds, config.train.warmup_rounds, config.train.max_nonfinite_steps) = (2, 0, 2);
        (config.parallel.logical_ranks, config.checkpoint.signals) = (Some(LOGICAL), Vec::new());
        let network = models::build(ModelName::Wrn16x1, Shape { channels: 1, classes: 10 });
        let state = State::initialised(network.blueprint(), 1, Purpose::StudentInit, Device::Cpu);
        let plan = Plan::new(&config, Job::Train, world.layout().ranks(), "", "").unwrap();
        let (method, rule) = (Method::of(&config), config.checkpoint.clone());
        let mut run = Run::new(config, plan, method, Some(Teacher::new(network, state)), None, world).unwrap();
        let born = PerRank::build(world.hosted(), |rank| {
            let targets = fill(rank.0 as u64, &[4, 1, 10]);
            Samples {
                images_bchw: ((fill(9, &[4, 1, 32, 32]) + 1.0) * 127.0).to_kind(Kind::Uint8),
                view_logits: if Some(rank) == bad { targets * f64::NAN } else { targets },
                class_counts: vec![vec![(0, 1)]; 4],
                confidence: vec![0.5; 4],
                delta: vec![1.0; 4],
                first_id: 1000 + 4 * rank.0 as u64,
            }
        });
        run.insert(born).unwrap();
        (run, Keeper::new(folder, &rule, Status::new(), Timings::new().0, world).unwrap())
    }

    /// Two images, so that a run has a test split.
    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, header, values) in [("images-idx3", &[0x803u32, 2, 28, 28][..], 2 * 784), ("labels-idx1", &[0x801, 2], 2)] {
            let bytes: Vec<u8> = header.iter().flat_map(|word| word.to_be_bytes()).chain(std::iter::repeat_n(1, values)).collect();
            std::fs::write(folder.path().join(format!("t10k-{name}-ubyte")), bytes).unwrap();
        }
        folder
    }

    /// Bits of all that a checkpoint holds, and of the student as it stands.
    fn bits(run: &Run, world: &World) -> Vec<(String, Vec<u8>)> {
        let contents = run.contents(world);
        let ranks = contents.ranks.into_iter_ordered().map(|(rank, entries)| (rank.0.to_string(), entries.into_tensors()));
        let all = std::iter::once(("shared".to_owned(), contents.shared.into_tensors())).chain(ranks);
        let all = all.flat_map(|(owner, tensors)| tensors.into_iter().map(move |(key, t)| (format!("{owner}.{key}"), t)));
        all.chain(run.student.state().state_dict()).map(|(key, t)| (key, weights::bytes_of(&t))).collect()
    }

    /// `work` twice on each rank of several launches, with either sum: refused everywhere, which changes nothing; then the end.
    fn is_refused(
        work: fn(&mut Run, &World, &Keeper) -> Result<()>,
        poison: fn(&mut Run, &World),
        bad: Option<LogicalRank>,
        want: (InARow, &str),
    ) {
        for rule in [ReduceRule::Deterministic, ReduceRule::Native] {
            for ranks in [1, 2, 4] {
                let folder = folder();
                let verdicts = on_each_rank_by(rule, LOGICAL, ranks, |world| {
                    let (mut run, keeper) = scene(world, folder.path(), bad);
                    poison(&mut run, world);
                    let before = bits(&run, world);
                    work(&mut run, world, &keeper).unwrap();
                    assert!(bits(&run, world) == before, "{rule:?} on {ranks} ranks: a refused step has changed something");
                    (run.guard.in_a_row(), work(&mut run, world, &keeper).unwrap_err().to_string())
                });
                assert_eq!(verdicts, vec![(want.0, want.1.to_owned()); ranks], "{rule:?}");
                assert_eq!(std::fs::read_dir(folder.path().join(EVIDENCE)).unwrap().count(), ranks);
            }
        }
    }

    #[test]
    fn a_loss_that_is_not_finite_on_one_logical_rank_stops_the_step_on_all() {
        let only_there = |run: &mut Run, world: &World| {
            for (rank, rows) in run.draw(world).unwrap().rows.iter() {
                let Target::Logits(logits) = &rows.target else { panic!("logits are stored") };
                assert_eq!(logits.isfinite().all().int64_value(&[]) == 1, rank != BAD, "{rank:?}");
            }
        };
        let want = (InARow { generator: 0, student: 1 }, "the student's gradient was not finite 2 times in a row, last at step 0");
        is_refused(distil, only_there, Some(BAD), want);
    }

    /// The statistics average of one logical rank is NaN, and with it that rank's loss alone.
    #[test]
    fn an_inversion_that_is_not_finite_on_one_logical_rank_is_taken_over_by_none() {
        let poison = |run: &mut Run, world: &World| {
            let channels = run.teacher.as_ref().unwrap().batch_norm_channels();
            let full = |value: f64| Tensor::full([channels], value, (Kind::Float, Device::Cpu));
            for rank in world.hosted() {
                let mean = if rank == BAD { f64::NAN } else { 0.0 };
                let entries = [("mean", full(mean)), ("variance", full(1.0)), ("empty", Tensor::from_slice(&[0i64]))];
                let entries = Entries::from_tensors(entries.map(|(key, t)| (key.to_owned(), t)));
                run.locals.get_mut(rank).average.load(&entries).unwrap();
            }
        };
        let want = (InARow { generator: 1, student: 0 }, "the generator's gradient was not finite 2 times in a row, last at step 0");
        is_refused(invert, poison, None, want);
    }

    /// The same steps where all is well.
    #[test]
    fn finite_steps_change_weights_and_priorities() {
        let folder = folder();
        on_each_rank_by(ReduceRule::Deterministic, LOGICAL, 2, |world| {
            let (mut run, keeper) = scene(world, folder.path(), None);
            for (work, parts) in [
                (distil as fn(&mut Run, &World, &Keeper) -> Result<()>, &["shared.student.parameters", ".replay.masses"][..]),
                (invert, &["shared.generator.parameters", ".local.average.mean", ".replay.ids"]),
            ] {
                let before = bits(&run, world);
                work(&mut run, world, &keeper).unwrap();
                let changed: Vec<_> =
                    bits(&run, world).into_iter().zip(before).filter(|(now, then)| now != then).map(|(now, _)| now.0).collect();
                assert!(parts.iter().all(|part| changed.iter().any(|key| key.ends_with(part))), "{changed:?}");
            }
            assert_eq!(run.guard.in_a_row(), InARow::default());
        });
    }
}
