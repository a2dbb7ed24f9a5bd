//! Transport between ranks. A [`Communicator`] moves bytes and tensors; what is added, and in which order, is decided
//! above it.

mod mpi;
pub mod nccl;
mod solo;
mod staged;
mod threads;

pub mod conformance;

pub use mpi::{MpiComm, end_job};
pub use nccl::NcclComm;
pub use solo::Solo;
pub use staged::Staged;
pub use threads::Threads;

use crate::error::{Error, Result};
use crate::layout::Rank;
use tch::{Device, Kind, Tensor};

/// f32 values exchanged at a time: bounds the memory of a reduction to about twice this many, at no more messages than needed.
pub const BUCKET: usize = 4 << 20;

/// A fixed group of ranks. Every method but `rank`, `size` and `name` is a collective: all ranks call it, in one order.
pub trait Communicator {
    /// This process.
    fn rank(&self) -> Rank;

    /// R.
    fn size(&self) -> usize;

    /// For logs.
    fn name(&self) -> &'static str;

    /// Returns when all ranks have called it.
    fn barrier(&self) -> Result<()>;

    /// `receive` becomes every rank's `send`, in rank order. All `send` have one length; `receive` is R times that.
    fn all_gather(&self, send: &[u8], receive: &mut [u8]) -> Result<()>;

    /// Rank r gets the r-th part of `send`; `receive` becomes what every rank had for this one, in rank order.
    ///
    /// Counts are elements. Tensors are contiguous and of one kind.
    fn all_to_all(&self, send: &Tensor, send_counts: &[usize], receive: &Tensor, receive_counts: &[usize]) -> Result<()>;

    /// `whole` becomes the parts of all ranks, in rank order; `counts[r]` elements come from rank r.
    fn all_gather_parts(&self, part: &Tensor, whole: &Tensor, counts: &[usize]) -> Result<()>;

    /// Swaps tensors of one length and kind with `partner`, which names this rank as its own; ranks without one bring `None`.
    fn exchange(&self, partner: Option<Rank>, send: &Tensor, receive: &Tensor) -> Result<()> {
        let length = if partner.is_some() { send.numel() } else { 0 };
        let counts: Vec<usize> = (0..self.size()).map(|r| if partner == Some(Rank(r)) { length } else { 0 }).collect();
        self.all_to_all(&send.narrow(0, 0, length as i64), &counts, &receive.narrow(0, 0, length as i64), &counts)
    }

    /// The library's own sum over ranks, in place (f32). The order of additions is the library's.
    fn all_reduce_native(&self, tensor: &Tensor) -> Result<()>;
}

/// Bytes of every rank, of any length, in rank order.
pub fn all_gather_varied(comm: &dyn Communicator, send: &[u8]) -> Result<Vec<Vec<u8>>> {
    let mut lengths = vec![0u8; 8 * comm.size()];
    comm.all_gather(&(send.len() as u64).to_le_bytes(), &mut lengths)?;
    let counts: Vec<usize> = lengths.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b) as usize).collect();
    let part = Tensor::from_slice(send);
    let whole = Tensor::zeros([counts.iter().sum::<usize>() as i64], (Kind::Uint8, Device::Cpu));
    comm.all_gather_parts(&part, &whole, &counts)?;
    let mut rest = bytes(&whole);
    Ok(counts
        .iter()
        .map(|&n| {
            let (mine, others) = rest.split_at(n);
            rest = others;
            mine.to_vec()
        })
        .collect())
}

/// `to` becomes the values of `from`, on whatever devices they are.
fn copy(from: &Tensor, to: &Tensor) -> Result<()> {
    let copied = tch::no_grad(|| to.shallow_clone().f_copy_(&from.reshape(to.size())));
    copied.map(drop).map_err(|error| Error::torch("a copy between ranks' tensors", &error.to_string()))
}

/// Memory of a contiguous CPU tensor.
fn bytes(tensor: &Tensor) -> &[u8] {
    // SAFETY: see `memory`; the shared borrow of the tensor lives as long as the slice.
    unsafe { std::slice::from_raw_parts(memory(tensor), length(tensor)) }
}

/// Memory of a contiguous CPU tensor, for writing. The caller holds the only handle in use.
#[allow(clippy::mut_from_ref)]
fn bytes_mut(tensor: &Tensor) -> &mut [u8] {
    // SAFETY: as above; torch tensors have interior mutability and this crate never reads one while it is being received.
    unsafe { std::slice::from_raw_parts_mut(memory(tensor), length(tensor)) }
}

fn memory(tensor: &Tensor) -> *mut u8 {
    debug_assert!(tensor.is_contiguous() && tensor.device() == Device::Cpu);
    // A well-aligned address that is never touched. Not the usual dangling one: 1 is MPI_IN_PLACE.
    if tensor.numel() == 0 { std::ptr::without_provenance_mut(64) } else { tensor.data_ptr().cast() }
}

fn length(tensor: &Tensor) -> usize {
    tensor.numel() * tensor.kind().elt_size_in_bytes()
}
