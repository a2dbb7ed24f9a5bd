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

/// Every logical rank makes a batch of images on its own copy of the generator; the shared generator takes one meta step.
fn invert(run: &mut Run, world: &World, keeper: &Keeper) -> Result<()> {
    if !run.synthesises() {
        return Ok(());
    }
    let class_counts_k = run.class_counts(world)?;
    run.reset_generator_when_due();
    let averages = run.averages_now();
    let (mut meta_gradient, mut born, mut terms) = (TreeSum::new(*world.layout()), PerRank::default(), PerRank::default());
    for rank in world.hosted() {
        let _span = tracing::debug_span!("inversion").entered();
        let batch = run.synthesise(rank, &class_counts_k)?;
        meta_gradient.add(rank, batch.meta_gradient);
        terms.set(rank, batch.terms);
        born.set(rank, batch.samples);
    }
    let meta_gradient = world.reduce(meta_gradient)?;
    let verdict = run.guard.judge(Of::Generator, &meta_gradient, run.cursor.student_steps());
    let verdict = verdict.map_err(|error| keeper.keep_evidence(world, error, &born, Samples::tensors))?;
    run.update_generator(&meta_gradient, averages, verdict)?;
    if verdict == Verdict::Apply {
        run.insert(born)?;
        terms.into_iter_ordered().for_each(|(rank, terms)| run.sums.get_mut(rank).inverted(terms));
    }
    Ok(())
}

/// One student step on a global draw.
fn distil(run: &mut Run, world: &World, keeper: &Keeper) -> Result<()> {
    let (batch, criterion) = (run.batch_size(), run.method.criterion);
    let mut draw = run.memory.draw(world, batch, run.cursor.student_steps())?;
    let (mut payload, mut loss, mut sums) = (TreeSum::new(*world.layout()), PerRank::default(), PerRank::default());
    for rank in world.hosted() {
        let _span = tracing::debug_span!("distillation").entered();
        let rows = draw.rows.get(rank);
        let out = distill::backward(&mut run.student, run.teacher.as_ref(), &run.normalise, rows, criterion, batch);
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
