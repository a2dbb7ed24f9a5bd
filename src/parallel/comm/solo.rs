//! One rank alone: no launcher, no MPI.

use super::{Communicator, copy};
use crate::error::Result;
use crate::layout::Rank;
use tch::Tensor;

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
