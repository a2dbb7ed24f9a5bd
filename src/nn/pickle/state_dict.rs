//! The named tensors of a model.

use super::archive::shortened;
use super::*;

/// Keys under which training programs put the state dict, beside epoch, optimizer and so on.
const WRAPPERS: [&str; 4] = ["state_dict", "model", "net", "model_state_dict"];

/// The named tensors of a model, in the order of the file.
///
/// A dict under `state_dict`, `model`, `net` or `model_state_dict` is unwrapped, at most twice. Entries beside the tensors that
/// are none are left out. If all names start with `module.` (`DataParallel`), that is removed once.
///
/// # Errors
///
/// A whole pickled model, another object, no tensors, a tensor that is not dense or has no name, two of the same name.
pub fn state_dict(value: Value) -> Result<Vec<(String, RawTensor)>> {
    let mut level = value;
    for _ in 0..2 {
        match unwrapped(level) {
            Ok(inner) => level = inner,
            Err(innermost) => {
                level = innermost;
                break;
            }
        }
    }
    match level {
        Value::Dict(entries) if entries.iter().any(|(_, value)| matches!(value, Value::Tensor(_))) => named_tensors(entries),
        Value::Dict(entries) => Err(no_tensors(&entries)),
        Value::Opaque { class, state, .. } => Err(refused_object(class, &state)),
        other => Err(PickleError::NoStateDict(format!("the file holds {}", other.describe()))),
    }
}

/// The dict inside a wrapper, or the value itself as the error.
fn unwrapped(value: Value) -> Result<Value, Value> {
    let Value::Dict(mut entries) = value else {
        return Err(value);
    };
    let full = |value: &Value| matches!(value, Value::Dict(inner) if !inner.is_empty());
    for wrapper in WRAPPERS {
        if let Some(at) = entries.iter().position(|(key, value)| key.text() == Some(wrapper) && full(value)) {
            return Ok(entries.swap_remove(at).1);
        }
    }
    Err(Value::Dict(entries))
}

fn named_tensors(entries: Vec<(Value, Value)>) -> Result<Vec<(String, RawTensor)>> {
    let mut tensors = Vec::new();
    for (key, value) in entries {
        match (key.text(), value) {
            (Some(key), Value::Tensor(tensor)) => tensors.push((key.to_owned(), tensor)),
            (None, Value::Tensor(_)) => {
                return Err(PickleError::NoStateDict(format!("a tensor is named by {}, not by text", key.describe())));
            }
            // Leaving these two out would show up later, as missing weights, without the reason.
            (_, Value::Opaque { class, state, .. }) if is_module(&class, &state) => return Err(PickleError::WholeModule { class }),
            (key, Value::Opaque { class, .. }) if class.starts_with("torch._utils._rebuild_") || class.starts_with("torch._tensor.") => {
                return Err(PickleError::UnsupportedTensor { key: key.unwrap_or("?").to_owned(), class });
            }
            _ => {}
        }
    }
    if tensors.iter().all(|(key, _)| key.starts_with("module.")) {
        for (key, _) in &mut tensors {
            key.drain(.."module.".len());
        }
    }
    let mut seen = HashSet::new();
    match tensors.iter().find(|(key, _)| !seen.insert(key.as_str())) {
        Some((key, _)) => Err(PickleError::DuplicateKey(key.clone())),
        None => Ok(tensors),
    }
}

/// Says what is in a dict without tensors; if a model is, how to get at its weights.
fn no_tensors(entries: &[(Value, Value)]) -> PickleError {
    for (key, value) in entries {
        if let (Some(key), Value::Opaque { class, state, .. }) = (key.text(), value)
            && (WRAPPERS.contains(&key) || is_module(class, state))
        {
            return refused_object(class.clone(), state);
        }
    }
    let shown = |(key, value): &(Value, Value)| {
        let key = key.text().map_or_else(|| key.describe(), |key| format!("`{}`", shortened(key)));
        format!("{key} ({})", value.describe())
    };
    let mut list: Vec<String> = entries.iter().take(8).map(shown).collect();
    if entries.len() > list.len() {
        list.push(format!("and {} more", entries.len() - list.len()));
    }
    let content = if list.is_empty() { "nothing".to_owned() } else { list.join(", ") };
    PickleError::NoStateDict(format!("there is no tensor in the dict; it holds {content}"))
}

fn refused_object(class: String, state: &[Value]) -> PickleError {
    if is_module(&class, state) { PickleError::WholeModule { class } } else { PickleError::Foreign { class } }
}

/// Every `nn.Module` keeps its content in these two attributes (`torch/nn/modules/module.py`).
fn is_module(class: &str, state: &[Value]) -> bool {
    class.starts_with("torch.nn.") || state.iter().any(|state| state.get("_parameters").is_some() && state.get("_modules").is_some())
}
