//! Ranks of `mpirun` or `srun`, over the system's MPI. The only module that names the crate `mpi`.

use super::{Communicator, bytes, bytes_mut};
use crate::error::{Error, Result};
use crate::layout::Rank;
use mpi::Threading;
use mpi::collective::SystemOperation;
use mpi::datatype::{Equivalence, Partition, PartitionMut};
use mpi::environment::Universe;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator as _, CommunicatorCollectives};
use tch::{Kind, Tensor};

/// MPI_COMM_WORLD. MPI is finalised when this is dropped, which all ranks must reach together.
pub struct MpiComm {
    world: SimpleCommunicator,
    _universe: Universe,
}

/// Variables by which launchers tell a process that it is a rank of an MPI job.
const LAUNCHER_VARIABLES: [&str; 5] = ["OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK", "PMI_SIZE", "MPI_LOCALNRANKS"];

impl MpiComm {
    /// Joins the MPI job this process was launched in, or says that there is none.
    ///
    /// # Errors
    /// A Slurm step of several tasks without MPI support: every task would be alone in a world of its own.
    pub fn join() -> Result<Option<Self>> {
        let set = |name: &str| std::env::var_os(name).is_some();
        if !LAUNCHER_VARIABLES.iter().any(|name| set(name)) {
            let tasks = std::env::var("SLURM_STEP_NUM_TASKS").ok().and_then(|t| t.parse::<usize>().ok()).unwrap_or(1);
            if tasks > 1 {
                return Err(Error::refused(format!("srun started {tasks} tasks without MPI support: each would be alone"))
                    .with_hint("use `srun --mpi=pmix …` (srun --mpi=list names what the site has), or mpirun inside sbatch"));
            }
            return Ok(None);
        }
        // Funneled: MPI is only ever called from the main thread.
        let Some((universe, _)) = mpi::initialize_with_threading(Threading::Funneled) else {
            return Err(Error::refused("MPI is initialised already"));
        };
        Ok(Some(Self { world: universe.world(), _universe: universe }))
    }

    /// Version text of the MPI library, without joining a job.
    pub fn library_version() -> String {
        mpi::environment::library_version().unwrap_or_default().trim_end_matches('\0').to_owned()
    }

    fn counts(operation: &'static str, counts: &[usize]) -> Result<(Vec<i32>, Vec<i32>)> {
        let too_many = || Error::Comm { operation, problem: "more than 2³¹ elements in one call".into() };
        let mut at = 0i32;
        let mut offsets = Vec::with_capacity(counts.len());
        let mut lengths = Vec::with_capacity(counts.len());
        for &count in counts {
            let count = i32::try_from(count).map_err(|_| too_many())?;
            offsets.push(at);
            lengths.push(count);
            at = at.checked_add(count).ok_or_else(too_many)?;
        }
        Ok((lengths, offsets))
    }

    fn all_to_all_of<T: Equivalence>(&self, send: &[T], send_counts: &[usize], receive: &mut [T], receive_counts: &[usize]) -> Result<()> {
        let (send_lengths, send_offsets) = Self::counts("all-to-all", send_counts)?;
        let (receive_lengths, receive_offsets) = Self::counts("all-to-all", receive_counts)?;
        let from = Partition::new(send, send_lengths, send_offsets);
        self.world.all_to_all_varcount_into(&from, &mut PartitionMut::new(receive, receive_lengths, receive_offsets));
        Ok(())
    }

    fn all_gather_of<T: Equivalence>(&self, part: &[T], whole: &mut [T], counts: &[usize]) -> Result<()> {
        let (lengths, offsets) = Self::counts("all-gather", counts)?;
        self.world.all_gather_varcount_into(part, &mut PartitionMut::new(whole, lengths, offsets));
        Ok(())
    }
}

fn floats(tensor: &Tensor) -> &[f32] {
    let raw = bytes(tensor);
    // SAFETY: a contiguous f32 tensor's memory, aligned by libtorch's allocator.
    unsafe { std::slice::from_raw_parts(raw.as_ptr().cast(), raw.len() / 4) }
}

#[allow(clippy::mut_from_ref)]
fn floats_mut(tensor: &Tensor) -> &mut [f32] {
    let raw = bytes_mut(tensor);
    // SAFETY: as above.
    unsafe { std::slice::from_raw_parts_mut(raw.as_mut_ptr().cast(), raw.len() / 4) }
}

fn in_bytes(counts: &[usize], tensor: &Tensor) -> Vec<usize> {
    counts.iter().map(|n| n * tensor.kind().elt_size_in_bytes()).collect()
}

impl Communicator for MpiComm {
    fn rank(&self) -> Rank {
        Rank(self.world.rank() as usize)
    }

    fn size(&self) -> usize {
        self.world.size() as usize
    }

    fn name(&self) -> &'static str {
        "MPI"
    }

    fn barrier(&self) -> Result<()> {
        self.world.barrier();
        Ok(())
    }

    fn all_gather(&self, send: &[u8], receive: &mut [u8]) -> Result<()> {
        if !send.is_empty() {
            self.world.all_gather_into(send, receive);
        }
        Ok(())
    }

    fn all_to_all(&self, send: &Tensor, send_counts: &[usize], receive: &Tensor, receive_counts: &[usize]) -> Result<()> {
        if send.kind() == Kind::Float {
            return self.all_to_all_of(floats(send), send_counts, floats_mut(receive), receive_counts);
        }
        self.all_to_all_of(bytes(send), &in_bytes(send_counts, send), bytes_mut(receive), &in_bytes(receive_counts, receive))
    }

    fn all_gather_parts(&self, part: &Tensor, whole: &Tensor, counts: &[usize]) -> Result<()> {
        if part.kind() == Kind::Float {
            return self.all_gather_of(floats(part), floats_mut(whole), counts);
        }
        self.all_gather_of(bytes(part), bytes_mut(whole), &in_bytes(counts, part))
    }

    fn all_reduce_native(&self, tensor: &Tensor) -> Result<()> {
        let mine = floats(tensor).to_vec();
        self.world.all_reduce_into(&mine[..], floats_mut(tensor), SystemOperation::sum());
        Ok(())
    }
}

/// Ends every rank of the job with this exit code, at once: MPI is aborted where it runs, never finalised, since finalising
/// waits for the others. The only call that may come from any thread.
pub fn end_job(code: i32) -> ! {
    if mpi::environment::is_initialized() {
        SimpleCommunicator::world().abort(code)
    }
    std::process::exit(code)
}
