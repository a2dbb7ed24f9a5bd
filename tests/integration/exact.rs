//! Draws from a sharded buffer are those of one array, number by number, however it is cut up.

use proptest::prelude::*;
use ssdkd::error::Result;
use ssdkd::layout::{Layout, LogicalRank};
use ssdkd::losses::{importance_weight, priority};
use ssdkd::replay::{Found, Mass, Masses, Priorities, targets};
use ssdkd::rng::{Key, Purpose};

const ALPHA: f64 = 0.6;
const BETA: f64 = 0.4;

/// One row of a draw: sample id, P, w.
type Row = (u64, f64, f64);

fn key(step: u64) -> Key {
    Key::global(7, Purpose::Draw, step)
}

/// M shards; a slot is filled once it has an id.
struct Sharded {
    shards: Vec<(Priorities, Vec<u64>)>,
}

impl Sharded {
    /// Shard l holds the next `filled[l]` samples of `deltas`, ids counted from 100, in `capacity[l]` slots.
    fn new(capacity: &[usize], filled: &[usize], deltas: &[f64], epsilon: f64) -> Result<Self> {
        let mut first = 0;
        let mut shards = Vec::new();
        for (&capacity, &filled) in capacity.iter().zip(filled) {
            let mut priorities = Priorities::new(capacity, epsilon, ALPHA);
            let ids: Vec<u64> = (first..first + filled).map(|i| 100 + i as u64).collect();
            priorities.set(&(0..filled).collect::<Vec<_>>(), &deltas[first..first + filled], |i| ids[i])?;
            shards.push((priorities, ids));
            first += filled;
        }
        Ok(Self { shards })
    }

    fn draw(&self, batch: usize, key: &Key) -> Result<(Vec<Row>, Vec<Found>)> {
        let masses = Masses::new(&self.shards.iter().map(|(p, ids)| (p.total(), ids.len() as u64)).collect::<Vec<_>>())?;
        let targets = targets(masses.total(), batch, key);
        let (mut rows, mut all) = (Vec::new(), Vec::new());
        for (shard, (priorities, ids)) in self.shards.iter().enumerate() {
            let mut found = Found::default();
            priorities.look_up(&masses, shard, &targets[masses.supplied(&targets, shard)], BETA, &mut found);
            rows.extend((0..found.slots.len()).map(|i| (ids[found.slots[i]], found.probabilities[i], found.weights[i])));
            all.push(found);
        }
        Ok((rows, all))
    }

    fn write_back(&mut self, found: &[Found], losses: &[f64]) -> Result<()> {
        let mut at = 0;
        for ((priorities, ids), found) in self.shards.iter_mut().zip(found) {
            let losses = &losses[at..at + found.slots.len()];
            at += losses.len();
            let deltas: Vec<f64> = found.weights.iter().zip(losses).map(|(w, kl)| w * kl).collect();
            priorities.set(&found.slots, &deltas, |i| ids[found.slots[i]])?;
        }
        Ok(())
    }
}

/// The definition: one array, scanned. Arithmetic on u128.
struct Array {
    deltas: Vec<f64>,
    epsilon: f64,
}

impl Array {
    fn draw(&self, batch: usize, key: &Key) -> Vec<Row> {
        let mass = |delta: &f64| (priority(*delta, self.epsilon, ALPHA) * 2f64.powi(32)).round_ties_even() as u64;
        let masses: Vec<u64> = self.deltas.iter().map(mass).collect();
        let n = masses.len() as f64;
        let total: u64 = masses.iter().sum();
        let (uniform, range) = if total == 0 { (true, masses.len() as u64) } else { (false, total) };
        let row = |k: usize| {
            let target = (k as u128 * u128::from(range) + u128::from(key.below(k as u64, range))) / batch as u128;
            let mut end = 0u128;
            let at = masses.iter().position(|&m| {
                end += if uniform { 1 } else { u128::from(m) };
                target < end
            });
            let at = at.unwrap();
            let (p, relative) =
                if uniform { (1.0 / n, 1.0) } else { (masses[at] as f64 / total as f64, masses[at] as f64 * n / total as f64) };
            (100 + at as u64, p, importance_weight(relative, BETA))
        };
        (0..batch).map(row).collect()
    }
}

/// Losses as they occur: near 1, tiny, zero, a little below zero, and one that outweighs all.
fn delta() -> impl Strategy<Value = f64> {
    prop_oneof![8 => 0f64..3.0, 2 => 0f64..1e-6, 1 => Just(0.0), 1 => Just(-1e-8), 1 => 1e3f64..1e5]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Any number of shards, any cut, any fill, any batch, over several steps with updates in between.
    #[test]
    fn every_row_of_every_draw_is_that_of_one_array(
        m in 1usize..=7,
        capacity in 1usize..300,
        deltas in prop::collection::vec(delta(), 300),
        fill in prop::collection::vec(0f64..=1.0, 7),
        epsilon in prop_oneof![Just(0.0), Just(1e-6)],
        batch in 1usize..350,
    ) {
        let layout = Layout::new(m, 1).unwrap();
        let capacities: Vec<usize> = (0..m).map(|l| layout.capacity(LogicalRank(l), capacity)).collect();
        let filled: Vec<usize> = capacities.iter().zip(&fill).map(|(&c, f)| (c as f64 * f).round() as usize).collect();
        let n = filled.iter().sum();
        prop_assume!(n > 0);
        let mut sharded = Sharded::new(&capacities, &filled, &deltas, epsilon).unwrap();
        let mut whole = Sharded::new(&[n], &[n], &deltas, epsilon).unwrap();
        let mut array = Array { deltas: deltas[..n].to_vec(), epsilon };
        for step in 0..4 {
            let want = array.draw(batch, &key(step));
            let (rows, found) = sharded.draw(batch, &key(step)).unwrap();
            let (rows_of_one, found_of_one) = whole.draw(batch, &key(step)).unwrap();
            prop_assert_eq!(&rows, &want);
            prop_assert_eq!(&rows_of_one, &want);
            let losses: Vec<f64> = (0..batch).map(|k| key(step).uniform(1000 + k as u64) - 0.01).collect();
            sharded.write_back(&found, &losses).unwrap();
            whole.write_back(&found_of_one, &losses).unwrap();
            // The last copy of a sample in a batch stands.
            for ((id, _, weight), loss) in want.iter().zip(&losses) {
                array.deltas[*id as usize - 100] = weight * loss;
            }
        }
    }

    /// Strata tile the masses: a sample's copies in a batch are within two of B·P.
    #[test]
    fn copies_follow_the_probability(deltas in prop::collection::vec(delta(), 1..60), batch in 1usize..400, step in 0u64..1000) {
        let sharded = Sharded::new(&[deltas.len()], &[deltas.len()], &deltas, 1e-6).unwrap();
        let (rows, _) = sharded.draw(batch, &key(step)).unwrap();
        for (id, p, _) in &rows {
            let copies = rows.iter().filter(|row| row.0 == *id).count() as f64;
            prop_assert!((copies - batch as f64 * p).abs() < 2.0, "{copies} copies for B·P = {}", batch as f64 * p);
        }
    }
}

/// Σ (observed − expected)²/expected of 10⁶ draws from three shards of very different masses.
fn chi_square(sampler: impl Fn(&Sharded, u64) -> u64) -> (f64, f64) {
    const SAMPLES: usize = 300;
    const DRAWS: u64 = 1_000_000;
    let deltas: Vec<f64> = (0..SAMPLES).map(|i| (0.05 + key(1).uniform(i as u64)) * [1.0, 4.0, 0.2][i / 100]).collect();
    let sharded = Sharded::new(&[100; 3], &[100; 3], &deltas, 1e-6).unwrap();
    let mut counts = [0u64; SAMPLES];
    for step in 0..DRAWS {
        counts[sampler(&sharded, step) as usize - 100] += 1;
    }
    let priorities: Vec<f64> = deltas.iter().map(|d| (d + 1e-6f64).powf(ALPHA)).collect();
    let total: f64 = priorities.iter().sum();
    let statistic =
        counts.iter().zip(&priorities).map(|(&seen, p)| (seen as f64 - DRAWS as f64 * p / total).powi(2) / (DRAWS as f64 * p / total));
    // Wilson and Hilferty's cube: a χ² of these degrees of freedom is above this once in 10⁶ (z = 4.753).
    let freedom = (SAMPLES - 1) as f64;
    let limit = freedom * (1.0 - 2.0 / (9.0 * freedom) + 4.753 * (2.0 / (9.0 * freedom)).sqrt()).powi(3);
    (statistic.sum(), limit)
}

/// Batches of one, so that draws are independent. False alarm: one seed in 10⁶; the seed is fixed.
#[test]
fn a_million_draws_follow_the_global_probability() {
    let (statistic, limit) = chi_square(|sharded, step| sharded.draw(1, &key(step)).unwrap().0[0].0);
    assert!(statistic < limit, "χ² = {statistic}, limit {limit}");
}

/// What sharded buffers elsewhere do: a shard by turns, then P within it. The test above rejects it.
#[test]
fn a_sampler_with_probabilities_of_each_shard_is_rejected() {
    let (statistic, limit) = chi_square(|sharded, step| {
        let (priorities, ids) = &sharded.shards[(step % 3) as usize];
        let masses = Masses::new(&[(priorities.total(), ids.len() as u64)]).unwrap();
        let mut found = Found::default();
        priorities.look_up(&masses, 0, &targets(masses.total(), 1, &key(step)), BETA, &mut found);
        ids[found.slots[0]]
    });
    assert!(statistic > 100.0 * limit, "χ² = {statistic}, limit {limit}");
}

/// A subtler one: every target one leaf too far in one node of a thousand draws would still be seen. Here one draw in fifty is uniform.
#[test]
fn a_sampler_that_is_uniform_once_in_fifty_draws_is_rejected() {
    let (statistic, limit) = chi_square(|sharded, step| match step % 50 {
        0 => 100 + key(step).below(0, 300),
        _ => sharded.draw(1, &key(step)).unwrap().0[0].0,
    });
    assert!(statistic > limit, "χ² = {statistic}, limit {limit}");
}

#[test]
fn one_shard_that_is_not_empty_supplies_everything() {
    for at in 0..4 {
        let mut filled = [0; 4];
        filled[at] = 5;
        let sharded = Sharded::new(&[5; 4], &filled, &[1.0, 2.0, 0.5, 3.0, 1.0], 0.0).unwrap();
        let (rows, found) = sharded.draw(64, &key(0)).unwrap();
        assert_eq!((rows.len(), found[at].slots.len()), (64, 64));
    }
}

#[test]
fn zero_mass_everywhere_draws_uniformly_and_never_an_empty_slot() {
    // ε = 0 and δ = 0; the shards have room for more than they hold.
    let sharded = Sharded::new(&[9, 9, 9], &[4, 0, 6], &[0.0; 10], 0.0).unwrap();
    let (rows, _) = sharded.draw(1000, &key(3)).unwrap();
    for id in 100..110 {
        let copies = rows.iter().filter(|row| row.0 == id).count() as f64;
        assert!((copies - 100.0).abs() < 2.0, "{copies}");
    }
    assert!(rows.iter().all(|(_, p, w)| (*p, *w) == (0.1, 1.0)));
}

#[test]
fn zero_mass_beside_others_is_never_drawn() {
    let sharded = Sharded::new(&[4, 4], &[3, 3], &[0.0, 1.0, 0.0, 0.0, 0.0, 2.0], 0.0).unwrap();
    let (rows, _) = sharded.draw(500, &key(4)).unwrap();
    assert!(rows.iter().all(|(id, ..)| [101, 105].contains(id)));
}

#[test]
fn one_dominant_priority_gets_nearly_all_rows_and_a_small_weight() {
    let mut deltas = [1e-9; 50];
    deltas[33] = 1e9;
    let sharded = Sharded::new(&[25, 25], &[25, 25], &deltas, 0.0).unwrap();
    let (rows, _) = sharded.draw(256, &key(5)).unwrap();
    assert!(rows.iter().all(|(id, p, w)| *id == 133 && *p > 0.999 && (w - 50f64.powf(-BETA)).abs() < 1e-6));
}

#[test]
fn what_is_no_loss_is_refused_by_the_samples_id_and_changes_nothing() {
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let mut priorities = Priorities::new(4, 1e-6, ALPHA);
        priorities.set(&[0, 1], &[1.0, 2.0], |i| i as u64).unwrap();
        let before = (priorities.total(), priorities.mass(0));
        let text = priorities.set(&[0, 3, 1], &[5.0, bad, 5.0], |i| 40 + i as u64).unwrap_err().to_string();
        assert!(text.contains("sample 41") && text.contains("not a finite number"), "{text}");
        assert_eq!((priorities.total(), priorities.mass(0), priorities.mass(3)), (before.0, before.1, Mass(0)));
    }
}

/// An honest f32 KL can come out a little below zero.
#[test]
fn a_negative_loss_counts_by_its_size() {
    let mut priorities = Priorities::new(2, 1e-6, ALPHA);
    priorities.set(&[0, 1], &[-1e-8, 1e-8], |i| i as u64).unwrap();
    assert_eq!(priorities.mass(0), priorities.mass(1));
    assert!(priorities.mass(0) > Mass(0));
}

#[test]
fn masses_that_overflow_are_refused() {
    let mut one = Priorities::new(3, 0.0, 1.0);
    let text = one.set(&[0], &[4.3e9], |_| 9).unwrap_err().to_string();
    assert!(text.contains("sample 9") && text.contains("2³² or more"), "{text}");
    one.set(&[0], &[3e9], |_| 9).unwrap();
    let error = one.set(&[1], &[3e9], |_| 9).unwrap_err();
    assert!(error.to_string().contains("total of all priorities is 2³² or more") && error.hint().unwrap().contains("replay.alpha"));
    assert_eq!((one.mass(1), one.total()), (Mass(0), one.mass(0)));
    // Each shard is within bounds, their sum is not.
    assert!(Masses::new(&[(one.total(), 1), (one.total(), 1)]).unwrap_err().to_string().contains("2³² or more"));
}

#[test]
fn an_empty_buffer_is_refused() {
    let sharded = Sharded::new(&[3, 2], &[0, 0], &[], 1e-6).unwrap();
    assert!(sharded.draw(8, &key(0)).unwrap_err().to_string().contains("the replay buffer is empty"));
}

/// A target on a boundary belongs to the slot that begins there; the last one to the last slot that is filled.
#[test]
fn boundaries_belong_to_the_slot_that_begins_there() {
    let mut priorities = Priorities::new(600, 0.0, 1.0);
    // Masses 1, 2, 3 … units in every third slot, up to slot 597.
    let slots: Vec<usize> = (0..600).step_by(3).collect();
    let deltas: Vec<f64> = (1..=slots.len()).map(|i| i as f64 / 2f64.powi(32)).collect();
    priorities.set(&slots, &deltas, |i| i as u64).unwrap();
    let masses = Masses::new(&[(priorities.total(), 200)]).unwrap();
    let starts: Vec<u64> = (0..200u64).map(|i| i * (i + 1) / 2).collect();
    let lasts: Vec<u64> = (1..=200u64).map(|i| i * (i + 1) / 2 - 1).collect();
    assert_eq!(lasts[199], masses.total() - 1);
    for targets in [starts, lasts] {
        let mut found = Found::default();
        priorities.look_up(&masses, 0, &targets, BETA, &mut found);
        assert_eq!(found.slots, slots);
    }
}
