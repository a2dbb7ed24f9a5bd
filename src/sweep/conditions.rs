//! Conditions of axes (`when`): whether one holds at a point, and whether it can hold at all.

use super::axes::{Axis, Domain, NAME, is_about};
use super::file::Strategy;
use super::points::Point;
use crate::config::load_with;
use crate::error::{Error, Finding};
use std::collections::BTreeSet;
use toml::Value;

/// Whether an axis counts at a point, as far as that is chosen. `base`: value of a key that no axis sets.
pub(super) fn holds(axis: &Axis, point: &Point, base: &dyn Fn(&str) -> Option<Value>) -> bool {
    axis.when.iter().all(|(key, any)| {
        let is_wanted = |value: &Value| any.iter().any(|one| same(one, value));
        let mut said = point.iter().filter(|(entry, _)| is_about(entry, key)).map(|(_, value)| value).peekable();
        if said.peek().is_some() { said.any(is_wanted) } else { base(key).is_some_and(|value| is_wanted(&value)) }
    })
}

/// What is wrong with conditions that no point fulfils: their axes would never count, and nothing would say so.
pub(super) fn unmet(axes: &[Axis], strategy: Strategy, base: &dyn Fn(&str) -> Option<Value>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for axis in axes {
        for (key, value) in axis.when.iter().flat_map(|(key, any)| any.iter().map(move |value| (key, value))) {
            let known = base(key);
            let is_key = known.is_some();
            // What an axis sets at every point hides what the base configuration has.
            let left = known.filter(|_| !axes.iter().any(|other| always_sets(other, key)));
            let offers: Vec<Offer> = axes.iter().flat_map(|other| offers(other, key, strategy)).chain(left.map(Offer::Value)).collect();
            if offers.iter().any(|offer| offer.has(value)) {
                continue;
            }
            // A mistake in a key, or in one of its words, is told like any other, with the nearest spelling.
            let from = format!("`when` of axis `{}`", axis.name);
            let misspelt = (is_key || offers.is_empty()).then(|| load_with(&[], [(key.clone(), value.clone())].into(), &from));
            if let Some(Err(Error::Config(found))) = misspelt {
                let also = if is_key { String::new() } else { named(axes) };
                findings.extend(found.into_iter().map(|finding| Finding::new(finding.key, finding.problem + &also)));
            } else {
                let there = offers.iter().map(Offer::to_string).collect::<BTreeSet<_>>();
                let there = if there.is_empty() { "it is not set".into() } else { Vec::from_iter(there).join(", ") };
                let problem = format!("its `when` asks for {key} = {value}, which no trial has: {there}");
                findings.push(Finding::new(format!("axes.{}", axis.name), problem));
            }
        }
    }
    findings
}

/// Whether every point has a value of a key by this axis.
fn always_sets(axis: &Axis, key: &str) -> bool {
    axis.when.is_empty()
        && match &axis.domain {
            Domain::Choices(choices) => choices.iter().all(|choice| choice.iter().any(|(entry, _)| entry == key)),
            Domain::Range(_) => axis.name == key,
        }
}

/// What some point has for a key.
enum Offer {
    /// A value.
    Value(Value),
    /// A whole number between two ends.
    Whole(f64, f64),
    /// Any number between two ends: a draw that equals a given one never comes.
    Drawn(f64, f64),
}

impl Offer {
    fn has(&self, value: &Value) -> bool {
        match self {
            Self::Value(one) => same(one, value),
            Self::Whole(min, max) => number(value).is_some_and(|number| number.fract() == 0.0 && (*min..=*max).contains(&number)),
            Self::Drawn(..) => false,
        }
    }
}

impl std::fmt::Display for Offer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Value(value) => value.fmt(f),
            Self::Whole(min, max) => write!(f, "{min} to {max}"),
            Self::Drawn(min, max) => write!(f, "any number from {min} to {max}, none of them twice (give the range a `step`)"),
        }
    }
}

/// What an axis gives some point for a key.
fn offers(axis: &Axis, key: &str, strategy: Strategy) -> Vec<Offer> {
    match &axis.domain {
        Domain::Choices(choices) => {
            let entries = choices.iter().flatten().filter(|(entry, _)| is_about(entry, key));
            entries.map(|(_, value)| Offer::Value(value.clone())).collect()
        }
        Domain::Range(range) if axis.name == key => match range.grid().filter(|_| strategy == Strategy::Grid || range.step.is_some()) {
            Some(values) => values.into_iter().map(Offer::Value).collect(),
            None if range.whole => vec![Offer::Whole(range.min, range.max)],
            None => vec![Offer::Drawn(range.min, range.max)],
        },
        Domain::Range(_) => Vec::new(),
    }
}

/// Names that conditions can ask for beside keys.
fn named(axes: &[Axis]) -> String {
    let choices = axes.iter().filter_map(|axis| match &axis.domain {
        Domain::Choices(choices) => Some(choices.iter().flatten()),
        Domain::Range(_) => None,
    });
    let names: BTreeSet<&str> = choices.flatten().filter_map(|(entry, _)| entry.strip_prefix(NAME)).collect();
    if names.is_empty() { String::new() } else { format!("; axes with named values: {}", Vec::from_iter(names).join(", ")) }
}

/// 1 and 1.0 are the same to a condition.
fn same(a: &Value, b: &Value) -> bool {
    a == b || number(a).is_some_and(|a| number(b) == Some(a))
}

fn number(value: &Value) -> Option<f64> {
    value.as_float().or_else(|| value.as_integer().map(|i| i as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str, strategy: Strategy) -> String {
        let mut findings = Vec::new();
        let axes = super::super::axes::read(&text.parse().unwrap(), &mut findings);
        assert!(findings.is_empty(), "{findings:?}");
        let base = |key: &str| (key == "phi.difficulty").then(|| Value::String("focal".into()));
        Error::Config(unmet(&axes, strategy, &base)).to_string()
    }

    /// An axis that no condition lets count would vanish without a word.
    #[test]
    fn a_condition_that_no_point_fulfils_is_named() {
        let axis = |when: &str| format!("seed = {{ values = [1], when = {{ {when} }} }}\nphi.gamma = {{ min = 0, max = 4, step = 2 }}\n");
        let v = "v = [{}, { name = \"φ = 1\", phi.diversity = \"off\" }]\n";
        for (when, said) in [
            ("phi.gama = 2", "phi.gama: unknown key (from `when` of axis `seed`); did you mean `phi.gamma`?"),
            ("w = \"φ = 1\"", "w: unknown key"),
            ("w = \"φ = 1\"", "; axes with named values: v"),
            ("v = \"phi = 1\"", "axes.seed: its `when` asks for v = \"phi = 1\", which no trial has: \"φ = 1\""),
            ("phi.difficulty = \"focl\"", "did you mean `focal`?"),
            (
                "phi.difficulty = [\"focal\", \"off\"]",
                "axes.seed: its `when` asks for phi.difficulty = \"off\", which no trial has: \"focal\"",
            ),
            ("phi.gamma = 3", "axes.seed: its `when` asks for phi.gamma = 3, which no trial has: 0, 2, 4"),
            ("phi.diversity = \"linear\"", "which no trial has: \"off\""),
        ] {
            let text = found(&(axis(when) + v), Strategy::Sobol);
            assert!(text.contains(said), "{when}: {text}");
        }
        for when in ["phi.gamma = 2.0", "v = \"φ = 1\"", "phi.difficulty = \"focal\""] {
            assert_eq!(found(&(axis(when) + v), Strategy::Grid), "", "{when}");
        }
        // Of a range without steps a given number comes only where numbers are whole.
        let ranged = |gamma: &str, when: &str| {
            found(&format!("seed = {{ values = [1], when = {{ phi.gamma = {when} }} }}\nphi.gamma = {{ {gamma} }}"), Strategy::Sobol)
        };
        assert_eq!(ranged("min = 0, max = 4", "3"), "");
        assert!(ranged("min = 0, max = 4", "2.5").contains("phi.gamma = 2.5, which no trial has: 0 to 4"));
        assert!(ranged("min = 0.0, max = 4.0", "2.0").contains("which no trial has: any number from 0 to 4"));
        assert_eq!(ranged("min = 0.0, max = 4.0, step = 1.0", "2.0"), "");
        // The base configuration's value is left to some points, or hidden at all of them.
        let asks = "seed = { values = [1], when = { phi.difficulty = \"focal\" } }\n";
        assert_eq!(found(&format!("{asks}v = [{{}}, {{ phi.difficulty = \"off\" }}]"), Strategy::Grid), "");
        assert!(found(&format!("{asks}phi.difficulty = [\"off\"]"), Strategy::Grid).contains("which no trial has: \"off\""));
    }
}
