//! Axes as a sweep file has them.

use crate::config::flat;
use crate::error::Finding;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

/// One direction of a sweep.
#[derive(Debug, Clone, PartialEq)]
pub struct Axis {
    /// A configuration key, or the name of an axis whose values set several.
    pub name: String,
    /// What it takes.
    pub domain: Domain,
    /// Keys with the values at which the axis counts; elsewhere its keys are not set.
    pub when: Vec<(String, Vec<Value>)>,
}

/// What a point's entry for the name of an axis' value begins with: no configuration key does.
pub(super) const NAME: &str = "@";

/// Values of an axis.
#[derive(Debug, Clone, PartialEq)]
pub enum Domain {
    /// Each sets one key or several, and may have a name of its own.
    Choices(Vec<Vec<(String, Value)>>),
    /// Numbers of one key between two ends, both included.
    Range(Range),
}

/// Numbers between two ends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Range {
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
    /// How they lie.
    pub scale: Scale,
    /// Distance of values, counted from the smallest.
    pub step: Option<f64>,
    /// Number of values in a grid, both ends among them.
    pub count: Option<u32>,
    /// Whether the key wants whole numbers: the ends are.
    pub whole: bool,
}

/// Scale of a range.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scale {
    /// Equal differences are equally likely.
    #[default]
    Linear,
    /// Equal ratios are.
    Log,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    values: Option<Vec<Value>>,
    min: Option<Value>,
    max: Option<Value>,
    #[serde(default)]
    scale: Scale,
    step: Option<Value>,
    count: Option<u32>,
    #[serde(default)]
    when: Table,
}

/// Reads the table `[axes]`; a dotted key may be written as one or as nested tables.
pub(super) fn read(table: &Table, findings: &mut Vec<Finding>) -> Vec<Axis> {
    let mut axes = Vec::new();
    walk("", table, &mut axes, findings);
    axes
}

fn walk(prefix: &str, table: &Table, axes: &mut Vec<Axis>, findings: &mut Vec<Finding>) {
    for (name, value) in table {
        let name = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        match value {
            Value::Table(inner) if !["values", "min", "max"].iter().any(|word| inner.contains_key(*word)) => {
                walk(&name, inner, axes, findings);
            }
            _ => match axis(&name, value) {
                Ok(axis) => axes.push(axis),
                Err(problem) => findings.push(Finding::new(format!("axes.{name}"), problem)),
            },
        }
    }
}

fn axis(name: &str, value: &Value) -> Result<Axis, String> {
    let written = match value {
        Value::Array(values) => Written {
            values: Some(values.clone()),
            min: None,
            max: None,
            scale: Scale::Linear,
            step: None,
            count: None,
            when: Table::new(),
        },
        Value::Table(_) => value.clone().try_into().map_err(|e: toml::de::Error| e.message().to_owned())?,
        other => {
            return Err(format!(
                "{other} is one value: write a list of values, or {{ min = …, max = … }} (a fixed value belongs in [set])"
            ));
        }
    };
    let mut when = Vec::new();
    conditions("", &written.when, &mut when);
    if let Some((key, _)) = when.iter().find(|(_, any)| any.is_empty()) {
        return Err(format!("its `when` names no value of {key}"));
    }
    let domain = match (&written.values, &written.min, &written.max) {
        (Some(values), None, None) if values.is_empty() => return Err("has no values".into()),
        (Some(values), None, None) if written.step.is_none() && written.count.is_none() => {
            Domain::Choices(values.iter().map(|value| settings(name, value)).collect())
        }
        (None, Some(min), Some(max)) => Domain::Range(range(min, max, &written)?),
        _ => return Err("wants either `values`, or `min` and `max` with, if need be, `scale`, `step` or `count`".into()),
    };
    Ok(Axis { name: name.into(), domain, when })
}

/// What a value of an axis sets: the axis' own key, or where it is a table, the keys in it; `name` there is what tables call it.
fn settings(name: &str, value: &Value) -> Vec<(String, Value)> {
    let mut out = Vec::new();
    match value {
        Value::Table(several) => {
            let mut several = several.clone();
            match several.remove("name") {
                Some(Value::Table(names)) => out.extend(names.into_iter().map(|(of, called)| (format!("{NAME}{of}"), called))),
                called => out.extend(called.map(|called| (format!("{NAME}{name}"), called))),
            }
            flat("", &several, &mut out);
        }
        one => out.push((name.to_owned(), one.clone())),
    }
    out
}

fn conditions(prefix: &str, table: &Table, out: &mut Vec<(String, Vec<Value>)>) {
    let mut leaves = Vec::new();
    flat(prefix, table, &mut leaves);
    out.extend(leaves.into_iter().map(|(key, value)| match value {
        Value::Array(any) => (key, any),
        one => (key, vec![one]),
    }));
}

fn range(min: &Value, max: &Value, written: &Written) -> Result<Range, String> {
    let number = |name: &str, value: &Value| {
        let number = value.as_float().or_else(|| value.as_integer().map(|i| i as f64)).filter(|number| number.is_finite());
        number.ok_or(format!("{name} = {value} is not a number"))
    };
    let step = written.step.as_ref().map(|step| number("step", step)).transpose()?;
    let whole = [Some(min), Some(max), written.step.as_ref()].into_iter().flatten().all(Value::is_integer);
    let range = Range { min: number("min", min)?, max: number("max", max)?, scale: written.scale, step, count: written.count, whole };
    if range.min >= range.max {
        return Err(format!("min = {min} is not below max = {max}"));
    }
    if range.scale == Scale::Log && range.min <= 0.0 {
        return Err(format!("min = {min}: a logarithmic scale begins above 0"));
    }
    if range.step.is_some_and(|step| step <= 0.0) {
        return Err("step is not positive".into());
    }
    if range.count.is_some_and(|count| count < 2) {
        return Err("count is below 2, the two ends".into());
    }
    if range.count.is_some() && range.step.is_some() {
        return Err("step and count both say how far values lie apart: leave one out".into());
    }
    Ok(range)
}

impl Axis {
    /// Whether its values have names.
    pub(super) fn is_named(&self) -> bool {
        matches!(&self.domain, Domain::Choices(choices) if choices.iter().flatten().any(|(name, _)| name.starts_with(NAME)))
    }

    /// Whether it sets a key, or gives its values names under which conditions can ask for them.
    pub(super) fn decides(&self, key: &str) -> bool {
        match &self.domain {
            Domain::Choices(choices) => choices.iter().flatten().any(|(entry, _)| is_about(entry, key)),
            Domain::Range(_) => self.name == key,
        }
    }
}

/// Whether an entry of a point is what a condition on `key` asks about: the key's own, or a name.
pub(super) fn is_about(entry: &str, key: &str) -> bool {
    entry.strip_prefix(NAME).unwrap_or(entry) == key
}

impl Range {
    /// The value at a place in 0..1.
    pub(super) fn at(&self, place: f64) -> Value {
        let (low, high) = (self.bend(self.min), self.bend(self.max));
        let number = match (self.step, self.whole, self.scale) {
            // Every value of the steps is equally likely, the ends as well.
            (Some(step), _, Scale::Linear) => self.min + step * (place * (self.steps(step) + 1) as f64).floor(),
            (Some(step), _, Scale::Log) => {
                let exact = (low + place * (high - low)).exp();
                self.min + step * ((exact - self.min) / step).round().min(self.steps(step) as f64)
            }
            (None, true, Scale::Linear) => (self.min + place * (self.max - self.min + 1.0)).floor(),
            (None, true, Scale::Log) => (low + place * ((self.max + 1.0).ln() - low)).exp().floor(),
            (None, false, Scale::Linear) => readable(low + place * (high - low)),
            (None, false, Scale::Log) => readable((low + place * (high - low)).exp()),
        };
        self.value(number)
    }

    /// The values in a grid; none without a step or a count.
    pub(super) fn grid(&self) -> Option<Vec<Value>> {
        let (low, high) = (self.bend(self.min), self.bend(self.max));
        let numbers: Vec<f64> = match (self.step, self.count) {
            (Some(step), _) => (0..=self.steps(step)).map(|k| readable(self.min + step * k as f64)).collect(),
            (None, Some(count)) => {
                let place = |k: u32| low + (high - low) * f64::from(k) / f64::from(count - 1);
                (0..count).map(|k| readable(if self.scale == Scale::Log { place(k).exp() } else { place(k) })).collect()
            }
            (None, None) => return None,
        };
        let mut values: Vec<Value> = numbers.into_iter().map(|number| self.value(number)).collect();
        values.dedup();
        Some(values)
    }

    fn steps(&self, step: f64) -> u64 {
        // The last step may miss the end by a rounding.
        ((self.max - self.min) / step + 1e-9).floor() as u64
    }

    fn bend(&self, number: f64) -> f64 {
        if self.scale == Scale::Log { number.ln() } else { number }
    }

    fn value(&self, number: f64) -> Value {
        let number = number.clamp(self.min, self.max);
        if self.whole { Value::Integer(number.round() as i64) } else { Value::Float(readable(number)) }
    }
}

/// Six digits: a plan is read by people, and no result hangs on the seventh. Whole numbers have all of theirs.
fn readable(number: f64) -> f64 {
    if number.fract() == 0.0 { number } else { format!("{number:.5e}").parse().unwrap_or(number) }
}
