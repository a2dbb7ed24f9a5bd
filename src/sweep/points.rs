//! Points of a sweep: combinations of values of its axes. Pure: the same axes, strategy and seed give the same points, and a longer
//! random or Sobol sweep begins with the points of a shorter one.

use super::axes::{Axis, Domain};
use super::conditions::{holds, unmet};
use super::file::Strategy;
use crate::error::{Error, Finding, Result};
use crate::rng::{Key, Purpose};
use std::collections::BTreeSet;
use toml::Value;

/// Keys that a point sets, in the order of the axes.
pub type Point = Vec<(String, Value)>;

/// Points that `sobol_burley` has.
const SOBOL_POINTS: usize = 1 << 16;
/// Dimensions that it has.
const SOBOL_AXES: usize = 256;
/// Beyond this a grid is a mistake.
const MOST: usize = 100_000;

/// All points, each once. `base`: value of a key that no axis sets, for the conditions of axes.
///
/// Random points are uniform per axis, from the crate's counter-based numbers. Sobol points are Owen-scrambled (Burley, *Practical
/// Hash-based Owen Scrambling*, JCGT 2020; direction numbers of Joe and Kuo): of the first 2^m, each 2^-m of an axis holds one.
///
/// # Errors
/// Axes whose conditions go round in a circle or that no point fulfils, ranges in a grid without a step, more than the sequence or a grid
/// holds.
pub fn points(axes: &[Axis], strategy: Strategy, trials: usize, seed: u64, base: &dyn Fn(&str) -> Option<Value>) -> Result<Vec<Point>> {
    let order = in_order(axes)?;
    let unmet = unmet(axes, strategy, base);
    if !unmet.is_empty() {
        return Err(Error::Config(unmet));
    }
    let mut points = match strategy {
        Strategy::Grid => grid(axes, &order, base)?,
        Strategy::Random => {
            let place = |point: usize, axis: usize| Key::global(seed, Purpose::SweepPoint, point as u64).uniform(axis as u64);
            (0..trials).map(|point| sampled(axes, &order, base, |axis| place(point, axis))).collect()
        }
        Strategy::Sobol => {
            if trials > SOBOL_POINTS || axes.len() > SOBOL_AXES {
                return Err(Error::config("trials", format!("a Sobol sweep has at most {SOBOL_POINTS} points of {SOBOL_AXES} axes")));
            }
            let place = |point: usize, axis: usize| f64::from(sobol_burley::sample(point as u32, axis as u32, seed as u32));
            (0..trials).map(|point| sampled(axes, &order, base, |axis| place(point, axis))).collect()
        }
    };
    let mut seen = BTreeSet::new();
    points.retain(|point| seen.insert(format!("{point:?}")));
    Ok(points)
}

/// Axes such that each comes after those its conditions ask about; otherwise as they were.
fn in_order(axes: &[Axis]) -> Result<Vec<usize>> {
    let mut order: Vec<usize> = Vec::new();
    while order.len() < axes.len() {
        let waits = |&i: &usize| {
            let asks = |j: usize| axes[i].when.iter().any(|(key, _)| axes[j].decides(key));
            (0..axes.len()).any(|j| asks(j) && !order.contains(&j))
        };
        match (0..axes.len()).find(|i| !order.contains(i) && !waits(i)) {
            Some(next) => order.push(next),
            None => {
                let stuck = (0..axes.len()).filter(|i| !order.contains(i));
                let finding = |i: usize| Finding::new(format!("axes.{}", axes[i].name), "its `when` depends on itself through other axes");
                return Err(Error::Config(stuck.map(finding).collect()));
            }
        }
    }
    Ok(order)
}

fn grid(axes: &[Axis], order: &[usize], base: &dyn Fn(&str) -> Option<Value>) -> Result<Vec<Point>> {
    let mut points: Vec<Point> = vec![Vec::new()];
    for axis in order.iter().map(|&i| &axes[i]) {
        let choices = match &axis.domain {
            Domain::Choices(choices) => choices.clone(),
            Domain::Range(range) => {
                let values = range.grid().ok_or_else(|| {
                    Error::config(
                        format!("axes.{}", axis.name),
                        "a range in a grid wants `step` or `count` (or strategy = \"random\" or \"sobol\")",
                    )
                })?;
                values.into_iter().map(|value| vec![(axis.name.clone(), value)]).collect()
            }
        };
        let mut next = Vec::new();
        for point in points {
            if holds(axis, &point, base) {
                next.extend(choices.iter().map(|choice| [&point[..], choice].concat()));
            } else {
                next.push(point);
            }
            if next.len() > MOST {
                return Err(Error::config(
                    "axes",
                    format!("the grid has more than {MOST} points: take fewer values, or strategy = \"sobol\""),
                ));
            }
        }
        points = next;
    }
    Ok(points)
}

fn sampled(axes: &[Axis], order: &[usize], base: &dyn Fn(&str) -> Option<Value>, place: impl Fn(usize) -> f64) -> Point {
    let mut point = Point::new();
    for &i in order {
        if holds(&axes[i], &point, base) {
            match &axes[i].domain {
                Domain::Choices(choices) => point.extend(choices[(place(i) * choices.len() as f64) as usize].iter().cloned()),
                Domain::Range(range) => point.push((axes[i].name.clone(), range.at(place(i)))),
            }
        }
    }
    point
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axes(text: &str) -> Vec<Axis> {
        let mut findings = Vec::new();
        let axes = super::super::axes::read(&text.parse().unwrap(), &mut findings);
        assert!(findings.is_empty(), "{findings:?}");
        axes
    }

    fn found(text: &str, strategy: Strategy, trials: usize, seed: u64) -> Vec<String> {
        let base = |key: &str| (key == "replay.draw").then(|| Value::String("uniform".into()));
        let points = points(&axes(text), strategy, trials, seed, &base).unwrap();
        points.iter().map(|point| super::super::plan::shown(point)).collect()
    }

    fn refused(text: &str) -> String {
        let mut findings = Vec::new();
        let axes = super::super::axes::read(&text.parse().unwrap(), &mut findings);
        if findings.is_empty() {
            return points(&axes, Strategy::Grid, 0, 0, &|_| None).unwrap_err().to_string();
        }
        Error::Config(findings).to_string()
    }

    #[test]
    fn a_grid_has_every_combination_the_first_axis_slowest() {
        let grid = found("student.lr = [0.1, 0.2]\n\"phi.diversity\" = [\"off\", \"linear\", \"inverse\"]", Strategy::Grid, 0, 0);
        assert_eq!(grid.len(), 6);
        assert_eq!(grid[1], "student.lr=0.1 phi.diversity=\"linear\"");
        assert_eq!(grid[5], "student.lr=0.2 phi.diversity=\"inverse\"");
    }

    /// An axis that does not count is not set; conditions ask other axes, written before or after, and else the base configuration.
    #[test]
    fn axes_count_only_where_their_condition_holds() {
        let text = "replay.alpha = { values = [0.5, 1], when = { phi.gamma = [1, 2.0] } }\nphi.gamma = [0, 1, 2]";
        let wanted = ["phi.gamma=0", "phi.gamma=1 replay.alpha=0.5", "phi.gamma=1 replay.alpha=1", "phi.gamma=2 replay.alpha=0.5"];
        assert_eq!(found(text, Strategy::Grid, 0, 0)[..4], wanted);
        let by_base = "seed = { values = [1, 2], when = { replay.draw = [\"uniform\"] } }";
        assert_eq!(found(by_base, Strategy::Grid, 0, 0), ["seed=1", "seed=2"]);
        // A name, and a value of the base configuration that only some values of an axis leave.
        let named = "v = [{ name = \"a\", replay.draw = \"priority\" }, { phi.gamma = 3 }]\nseed = { values = [1], when = { v = \"a\" } }\n\
                    replay.alpha = { values = [2], when = { replay.draw = \"uniform\" } }";
        assert_eq!(found(named, Strategy::Grid, 0, 0), ["@v=\"a\" replay.draw=\"priority\" seed=1", "phi.gamma=3 replay.alpha=2"]);
        let random = found(text, Strategy::Random, 200, 0);
        assert!(random.iter().all(|point| point.contains("alpha") != point.contains("gamma=0")), "{random:?}");
        assert_eq!(random.len(), 5, "what comes twice is one point");
    }

    #[test]
    fn a_value_can_set_several_keys() {
        let text = "pair = [{ teacher.model = \"wrn40_2\", student.model = \"wrn16_1\" }, { \"teacher.model\" = \"vgg11\" }]\nseed = [7]";
        let wanted = ["teacher.model=\"wrn40_2\" student.model=\"wrn16_1\" seed=7", "teacher.model=\"vgg11\" seed=7"];
        assert_eq!(found(text, Strategy::Grid, 0, 0), wanted);
    }

    #[test]
    fn ranges_in_a_grid_hold_both_ends() {
        let grid = |range: &str| found(&format!("a = {range}"), Strategy::Grid, 0, 0).join(" ");
        assert_eq!(grid("{ min = 0.1, max = 0.5, step = 0.2 }"), "a=0.1 a=0.3 a=0.5");
        assert_eq!(grid("{ min = 1e-4, max = 1e-1, count = 4, scale = \"log\" }"), "a=0.0001 a=0.001 a=0.01 a=0.1");
        assert_eq!(grid("{ min = 2, max = 9, step = 3 }"), "a=2 a=5 a=8");
        assert_eq!(grid("{ min = 1, max = 3, count = 5 }"), "a=1 a=2 a=3", "whole numbers stay whole");
    }

    fn numbers(range: &str, strategy: Strategy, trials: usize, seed: u64) -> Vec<f64> {
        let all = found(&format!("b = {{ min = 0.0, max = 1.0 }}\na = {range}"), strategy, trials, seed);
        all.iter().map(|point| point.rsplit('=').next().unwrap().parse().unwrap()).collect()
    }

    /// Shares within 5 standard errors: a right one fails once in about 10⁶ seeds. A linear draw on the logarithmic range would put less
    /// than 4 % below its geometric mean.
    #[test]
    fn random_points_lie_as_the_scale_says_and_are_those_of_their_seed() {
        let (n, error) = (4096, 5.0 * 0.5 / 64.0);
        let share = |values: &[f64], below: f64| values.iter().filter(|v| **v < below).count() as f64 / values.len() as f64;
        for (range, middle) in [("{ min = 1e-3, max = 1.0, scale = \"log\" }", 0.0316), ("{ min = 2.0, max = 4.0 }", 3.0)] {
            let values = numbers(range, Strategy::Random, n, 1);
            assert!((share(&values, middle) - 0.5).abs() < error, "{range}: {}", share(&values, middle));
            assert!(values.iter().all(|v| (1e-3..=4.0).contains(v)));
            assert_eq!(values[..100], numbers(range, Strategy::Random, 100, 1), "a longer sweep begins with the shorter one");
            assert_ne!(values[..100], numbers(range, Strategy::Random, 100, 2));
        }
        let whole = numbers("{ min = 1, max = 4 }", Strategy::Random, n, 1);
        (1..=4).for_each(|k| {
            let hits = whole.iter().filter(|v| **v == f64::from(k)).count() as f64 / whole.len() as f64;
            assert!((hits - 0.25).abs() < error, "{k}: {hits}");
        });
        let steps = numbers("{ min = 0.0, max = 1.0, step = 0.25 }", Strategy::Random, n, 1);
        assert!(steps.iter().all(|v| (v * 4.0).fract() == 0.0) && [0.0, 1.0].iter().all(|end| steps.contains(end)));
    }

    /// What random points have with a probability of 16!/16^16, one in a million, for one axis.
    #[test]
    fn sobol_points_fill_every_axis_evenly() {
        for seed in 0..4 {
            let values = numbers("{ min = 0.0, max = 16.0 }", Strategy::Sobol, 64, seed);
            for size in [16, 32, 64] {
                let mut cells: Vec<usize> = values[..size].iter().map(|v| (v * size as f64 / 16.0) as usize).collect();
                cells.sort_unstable();
                assert_eq!(cells, (0..size).collect::<Vec<_>>(), "seed {seed}");
            }
        }
        assert_ne!(numbers("{ min = 0.0, max = 1.0 }", Strategy::Sobol, 8, 0), numbers("{ min = 0.0, max = 1.0 }", Strategy::Sobol, 8, 1));
    }

    #[test]
    fn what_is_no_axis_is_named() {
        for (text, said) in [
            ("student.lr = 0.1", "axes.student.lr: 0.1 is one value"),
            ("student.lr = []", "axes.student.lr: has no values"),
            ("a = { min = 3, max = 1 }", "axes.a: min = 3 is not below max = 1"),
            ("a = { min = 0, max = 1, scale = \"log\" }", "axes.a: min = 0: a logarithmic scale begins above 0"),
            ("a = { min = 0, max = 1 }", "axes.a: a range in a grid wants `step` or `count`"),
            ("a = { min = 0, max = 1, stpe = 2 }", "axes.a: unknown field `stpe`"),
            ("a = { values = [1], when = { b = 1 } }\nb = { values = [1], when = { a = 1 } }", "axes.b: its `when` depends on itself"),
            ("a = { values = [1], when = { b = [] } }", "axes.a: its `when` names no value of b"),
        ] {
            assert!(refused(text).contains(said), "{text}: {}", refused(text));
        }
    }
}
