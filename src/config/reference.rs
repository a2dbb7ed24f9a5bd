//! The list of keys, read from the schema: names, documentation, types and defaults. Feeds the checks of spelling, `config
//! show` and docs/config.md.

use super::schema::Config;
use serde_json::Value;
use std::fmt::Write;

/// One configuration key.
#[derive(Debug, Clone, PartialEq)]
pub struct Key {
    /// Dotted name.
    pub name: String,
    /// Its comment in the schema.
    pub doc: String,
    /// Type or choices, for people.
    pub kind: String,
    /// The values it can take, where they are few.
    pub choices: Vec<String>,
    /// Default, as TOML would write it; empty when left out.
    pub default: String,
}

impl Key {
    /// What is wrong with a value that is none of the key's choices.
    pub(super) fn refuses(&self, value: &toml::Value) -> Option<String> {
        let text = value.as_str().unwrap_or_default();
        if self.choices.is_empty() || self.choices.iter().any(|c| c == text) {
            return None;
        }
        let near = self.choices.iter().max_by(|a, b| strsim::jaro_winkler(a, text).total_cmp(&strsim::jaro_winkler(b, text)));
        let near = near.map(|c| format!("; did you mean `{c}`?")).unwrap_or_default();
        Some(format!("{value} is none of {}{near}", self.choices.join(", ")))
    }
}

/// All keys in schema order.
pub fn keys() -> Vec<Key> {
    let schema = schemars::schema_for!(Config).to_value();
    let defaults = serde_json::to_value(Config::default()).unwrap_or_default();
    let mut keys = Vec::new();
    walk("", &schema, &schema, &defaults, &mut keys);
    keys
}

/// Whether a key holds a path.
pub fn is_path(key: &str) -> bool {
    matches!(key, "data.dir" | "teacher.weights" | "student.backbone" | "teach.backbone")
}

fn resolve<'a>(root: &'a Value, node: &'a Value) -> &'a Value {
    node.get("$ref").and_then(Value::as_str).and_then(|reference| root.pointer(reference.trim_start_matches('#'))).unwrap_or(node)
}

fn walk(prefix: &str, root: &Value, node: &Value, defaults: &Value, keys: &mut Vec<Key>) {
    let Some(properties) = resolve(root, node).get("properties").and_then(Value::as_object) else { return };
    for (name, property) in properties {
        let full = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        let inner = resolve(root, property);
        let default = defaults.get(name).cloned().unwrap_or_default();
        if inner.get("properties").is_some() {
            walk(&full, root, inner, &default, keys);
        } else {
            let doc = property.get("description").and_then(Value::as_str).unwrap_or_default().replace('\n', " ");
            let choices = choices(inner);
            let kind = if choices.is_empty() {
                kind(root, inner)
            } else {
                choices.iter().map(|c| format!("`{c}`")).collect::<Vec<_>>().join(", ")
            };
            keys.push(Key { name: full, doc, kind, choices, default: plain(&default) });
        }
    }
}

fn choices(node: &Value) -> Vec<String> {
    let all = node.get("oneOf").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    all.iter().filter_map(|c| c.get("const").and_then(Value::as_str)).map(str::to_owned).collect()
}

fn kind(root: &Value, node: &Value) -> String {
    let types: Vec<&str> = match node.get("type") {
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(several)) => several.iter().filter_map(Value::as_str).filter(|t| *t != "null").collect(),
        _ => vec![],
    };
    if types == ["array"] {
        let inner = node.get("items").map(|items| resolve(root, items)).unwrap_or(node);
        let choices = choices(inner);
        if choices.is_empty() {
            return format!("list of {}", kind(root, inner));
        }
        return format!("list of {}", choices.iter().map(|c| format!("`{c}`")).collect::<Vec<_>>().join(", "));
    }
    let unsigned = node.get("minimum").and_then(Value::as_f64) == Some(0.0);
    match types.as_slice() {
        ["integer"] if unsigned => "integer ≥ 0".into(),
        ["string"] => "text".into(),
        other => other.join(" or "),
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Every section's comment: (name, comment).
fn sections() -> Vec<(String, String)> {
    let schema = schemars::schema_for!(Config).to_value();
    let properties = schema.get("properties").and_then(Value::as_object).cloned().unwrap_or_default();
    properties
        .iter()
        .filter(|(_, p)| resolve(&schema, p).get("properties").is_some())
        .map(|(name, p)| (name.clone(), p.get("description").and_then(Value::as_str).unwrap_or_default().replace('\n', " ")))
        .collect()
}

/// docs/config.md.
pub fn markdown() -> String {
    let mut out = String::from(
        "# Configuration reference\n\n\
         Generated from `src/config/schema.rs` by `ssdkd config reference`; a test fails when this page is stale.\n\n\
         A run's configuration is merged from defaults ← `--config FILE`s in order ← environment (`SSDKD__SECTION__KEY`) ← `--set key=value`.\n\
         `ssdkd config show --config FILE` prints the result with the origin of each value. Relative paths in a file are relative to that\n\
         file, elsewhere to the working folder.\n",
    );
    let keys = keys();
    let mut table = |title: &str, doc: &str, keys: Vec<&Key>| {
        let _ = write!(out, "\n## {title}\n\n{doc}\n\n| key | type | default | meaning |\n| --- | --- | --- | --- |\n");
        for key in keys {
            let default = if key.default.is_empty() { "–".to_owned() } else { format!("`{}`", key.default) };
            let _ = writeln!(out, "| `{}` | {} | {default} | {} |", key.name, key.kind, key.doc.replace('|', "\\|"));
        }
    };
    table("Top level", "", keys.iter().filter(|k| !k.name.contains('.')).collect());
    for (section, doc) in sections() {
        let prefix = format!("{section}.");
        table(&format!("`[{section}]`"), &doc, keys.iter().filter(|k| k.name.starts_with(&prefix)).collect());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_documented_and_paths_are_known() {
        let keys = keys();
        assert!(keys.len() > 40);
        for key in &keys {
            assert!(!key.doc.is_empty() && !key.kind.is_empty(), "{key:?}");
        }
        for path in ["data.dir", "teacher.weights", "student.backbone", "teach.backbone"] {
            assert!(keys.iter().any(|k| k.name == path));
        }
    }
}
