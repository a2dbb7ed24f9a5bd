//! One rank alone: no launcher, no MPI.

use super::Communicator;
use crate::error::{Error, Result};
use crate::layout::Rank;
use tch::Tensor;

/// On whatever device both are.
fn copy(from: &Tensor, to: &Tensor) -> Result<()> {
    let copied = tch::no_grad(|| to.shallow_clone().f_copy_(&from.reshape(to.size())));
    copied.map(drop).map_err(|error| Error::torch("a copy", &error.to_string()))
}

/// The communicator of a process that is by itself.
pub struct Solo;

impl Communicator for Solo {
    fn rank(&self) -> Rank {
        Rank(0)
    }

    fn size(&self) -> usize {
        1
    }

    fn name(&self) -> &'static str {
        "single process"
    }

    fn barrier(&self) -> Result<()> {
        Ok(())
    }

    fn all_gather(&self, send: &[u8], receive: &mut [u8]) -> Result<()> {
        receive.copy_from_slice(send);
        Ok(())
    }

    fn all_to_all(&self, send: &Tensor, _: &[usize], receive: &Tensor, _: &[usize]) -> Result<()> {
        copy(send, receive)
    }

    fn all_gather_parts(&self, part: &Tensor, whole: &Tensor, _: &[usize]) -> Result<()> {
        copy(part, whole)
    }

    fn all_reduce_native(&self, _: &Tensor) -> Result<()> {
        Ok(())
    }
}
