//! Tensors of GPUs between ranks where there is no NCCL: copied to the host's memory, sent by the transport below, copied back.

use super::{Communicator, copy};
use crate::error::{Error, Result};
use crate::layout::Rank;
use std::cell::RefCell;
use std::ops::Deref;
use tch::{Device, Kind, Tensor};

/// A transport for tensors of `device` on one for those of the CPU. Host memory is page-locked, which makes copies twice as fast, and
/// kept from call to call.
pub struct Staged<C> {
    control: C,
    device: Device,
    rooms: [RefCell<Tensor>; 2],
}

impl<C: Deref<Target: Communicator>> Staged<C> {
    /// Over `control`, boxed or borrowed. With `Device::Cpu` every tensor is copied all the same, which is how tests see this without a GPU.
    pub fn over(control: C, device: Device) -> Self {
        let room = || RefCell::new(Tensor::empty([0], (Kind::Uint8, Device::Cpu)));
        Self { control, device, rooms: [room(), room()] }
    }

    /// Host memory like `tensor`: 0 to send from, 1 to receive into.
    fn room(&self, which: usize, tensor: &Tensor) -> Result<Tensor> {
        let bytes = tensor.numel() * tensor.kind().elt_size_in_bytes();
        let mut room = self.rooms[which].borrow_mut();
        if room.numel() < bytes {
            let fresh = Tensor::empty([bytes as i64], (Kind::Uint8, Device::Cpu));
            *room = if self.device == Device::Cpu { fresh } else { fresh.f_internal_pin_memory(self.device).map_err(failed)? };
        }
        Ok(room.narrow(0, 0, bytes as i64).view_dtype(tensor.kind()))
    }

    fn leave(&self, tensor: &Tensor) -> Result<Tensor> {
        let host = self.room(0, tensor)?;
        copy(tensor, &host)?;
        Ok(host)
    }
}

fn failed(error: tch::TchError) -> Error {
    Error::torch("a copy between host and GPU", &error.to_string())
}

impl<C: Deref<Target: Communicator>> Communicator for Staged<C> {
    fn rank(&self) -> Rank {
        self.control.rank()
    }

    fn size(&self) -> usize {
        self.control.size()
    }

    fn name(&self) -> &'static str {
        "MPI through host memory"
    }

    fn barrier(&self) -> Result<()> {
        self.control.barrier()
    }

    fn all_gather(&self, send: &[u8], receive: &mut [u8]) -> Result<()> {
        self.control.all_gather(send, receive)
    }

    fn all_to_all(&self, send: &Tensor, send_counts: &[usize], receive: &Tensor, receive_counts: &[usize]) -> Result<()> {
        if send.device() != self.device {
            return self.control.all_to_all(send, send_counts, receive, receive_counts);
        }
        let (from, to) = (self.leave(send)?, self.room(1, receive)?);
        self.control.all_to_all(&from, send_counts, &to, receive_counts)?;
        copy(&to, receive)
    }

    fn all_gather_parts(&self, part: &Tensor, whole: &Tensor, counts: &[usize]) -> Result<()> {
        if whole.device() != self.device {
            return self.control.all_gather_parts(part, whole, counts);
        }
        let (from, to) = (self.leave(part)?, self.room(1, whole)?);
        self.control.all_gather_parts(&from, &to, counts)?;
        copy(&to, whole)
    }

    fn all_reduce_native(&self, tensor: &Tensor) -> Result<()> {
        if tensor.device() != self.device {
            return self.control.all_reduce_native(tensor);
        }
        let host = self.leave(tensor)?;
        self.control.all_reduce_native(&host)?;
        copy(&host, tensor)
    }
}
