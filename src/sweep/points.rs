//! Points of a sweep: combinations of values of its axes. Pure: the same axes, strategy and seed give the same points, and a longer
//! random or Sobol sweep begins with the points of a shorter one.

use super::axes::{Axis, Domain};
use super::file::Strategy;
use crate::error::{Error, Finding, Result};
use crate::rng::{Key, Purpose};
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
/// Axes whose conditions go round in a circle, ranges in a grid without a step, more than the sequence or a grid holds.
pub fn points(axes: &[Axis], strategy: Strategy, trials: usize, seed: u64, base: &dyn Fn(&str) -> Option<Value>) -> Result<Vec<Point>> {
    let order = in_order(axes)?;
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
    let mut seen = std::collections::BTreeSet::new();
    points.retain(|point| seen.insert(format!("{point:?}")));
    Ok(points)
}

/// Axes such that each comes after those its conditions ask about; otherwise as they were.
fn in_order(axes: &[Axis]) -> Result<Vec<usize>> {
    let sets = |axis: &Axis, key: &str| match &axis.domain {
        Domain::Choices(choices) => choices.iter().flatten().any(|(name, _)| name == key),
        Domain::Range(_) => axis.name == key,
    };
    let mut order: Vec<usize> = Vec::new();
    while order.len() < axes.len() {
        let waits = |&i: &usize| {
            let asks = |j: usize| axes[i].when.iter().any(|(key, _)| sets(&axes[j], key));
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

fn counts(axis: &Axis, point: &Point, base: &dyn Fn(&str) -> Option<Value>) -> bool {
    axis.when.iter().all(|(key, any)| {
        let value = point.iter().find(|(name, _)| name == key).map(|(_, value)| value.clone()).or_else(|| base(key));
        value.is_some_and(|value| any.iter().any(|one| same(one, &value)))
    })
}

/// 1 and 1.0 are the same to a condition.
fn same(a: &Value, b: &Value) -> bool {
    let number = |value: &Value| value.as_float().or_else(|| value.as_integer().map(|i| i as f64));
    a == b || number(a).is_some_and(|a| number(b) == Some(a))
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
            if counts(axis, &point, base) {
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
        if counts(&axes[i], &point, base) {
            match &axes[i].domain {
                Domain::Choices(choices) => point.extend(choices[(place(i) * choices.len() as f64) as usize].iter().cloned()),
                Domain::Range(range) => point.push((axes[i].name.clone(), range.at(place(i)))),
            }
        }
    }
    point
}
