//! What a part of the run hands to a checkpoint and takes back from it.

use crate::error::{Error, Result};
use std::collections::BTreeMap;
use tch::Tensor;

/// Something whose state belongs in a checkpoint.
pub trait Stateful {
    /// Writes every tensor and number that a restart needs.
    fn save(&self, into: &mut Entries);

    /// Takes them back.
    ///
    /// # Errors
    /// A missing entry or one of another shape; the caller adds the file's name.
    fn load(&mut self, from: &Entries) -> Result<()>;
}

/// Named tensors of one checkpoint file. Names are dotted paths.
#[derive(Debug, Default)]
pub struct Entries {
    tensors: BTreeMap<String, Tensor>,
    prefix: String,
}

impl Entries {
    /// From tensors read from a file.
    pub fn from_tensors(tensors: impl IntoIterator<Item = (String, Tensor)>) -> Self {
        Self { tensors: tensors.into_iter().collect(), prefix: String::new() }
    }

    /// All entries in name order.
    pub fn into_tensors(self) -> BTreeMap<String, Tensor> {
        self.tensors
    }

    fn key(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_owned() } else { format!("{}.{name}", self.prefix) }
    }

    /// Saves `part` under `name`.
    pub fn save(&mut self, name: &str, part: &dyn Stateful) {
        let inner = self.key(name);
        let outer = std::mem::replace(&mut self.prefix, inner);
        part.save(self);
        self.prefix = outer;
    }

    /// Loads `part` from under `name`.
    pub fn load(&self, name: &str, part: &mut dyn Stateful) -> Result<()> {
        let prefix = self.key(name);
        let tensors = self.tensors.iter().map(|(k, t)| (k.clone(), t.shallow_clone())).collect();
        part.load(&Self { tensors, prefix })
    }

    /// Adds a tensor (copied, so that the part may go on changing).
    pub fn tensor(&mut self, name: &str, value: &Tensor) {
        self.tensors.insert(self.key(name), value.detach().to_device(tch::Device::Cpu).copy());
    }

    /// Adds an unsigned number, exactly.
    pub fn number(&mut self, name: &str, value: u64) {
        self.tensors.insert(self.key(name), Tensor::from_slice(&[value as i64]));
    }

    /// Adds unsigned numbers, exactly.
    pub fn numbers(&mut self, name: &str, values: &[u64]) {
        let values: Vec<i64> = values.iter().map(|&v| v as i64).collect();
        self.tensors.insert(self.key(name), Tensor::from_slice(&values));
    }

    /// A tensor by name.
    pub fn read(&self, name: &str) -> Result<&Tensor> {
        let key = self.key(name);
        self.tensors.get(&key).ok_or_else(|| Error::refused(format!("checkpoint entry `{key}` is missing")))
    }

    /// Copies a tensor by name into `into`, which has its shape and kind.
    pub fn copy_tensor(&self, name: &str, into: &Tensor) -> Result<()> {
        let from = self.read(name)?;
        if from.size() != into.size() || from.kind() != into.kind() {
            return Err(Error::refused(format!(
                "checkpoint entry `{}` is {:?} {:?}; {:?} {:?} is needed",
                self.key(name),
                from.kind(),
                from.size(),
                into.kind(),
                into.size()
            )));
        }
        tch::no_grad(|| into.shallow_clone().copy_(from));
        Ok(())
    }

    /// A number by name.
    pub fn read_number(&self, name: &str) -> Result<u64> {
        Ok(self.read_numbers(name)?.first().copied().unwrap_or_default())
    }

    /// Numbers by name.
    pub fn read_numbers(&self, name: &str) -> Result<Vec<u64>> {
        let values = Vec::<i64>::try_from(self.read(name)?)
            .map_err(|_| Error::refused(format!("checkpoint entry `{}` does not hold integers", self.key(name))))?;
        Ok(values.into_iter().map(|v| v as u64).collect())
    }
}
