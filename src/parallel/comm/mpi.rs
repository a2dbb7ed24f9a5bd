//! Ranks of `mpirun` or `srun`, over the system's MPI. The only module that names the crate `mpi`.

use super::{Communicator, bytes, bytes_mut};
use crate::error::{Error, Result};
use crate::layout::Rank;
use mpi::Threading;
use mpi::collective::SystemOperation;
use mpi::datatype::{Equivalence, Partition, PartitionMut};
use mpi::environment::Universe;
use mpi::point_to_point::send_receive_into;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator as _, CommunicatorCollectives};
use tch::{Kind, Tensor};

/// MPI_COMM_WORLD. MPI is finalised when this is dropped, which all ranks must reach together.
pub struct MpiComm {
    world: SimpleCommunicator,
    _universe: Universe,
}

/// Ranks of the MPI job this process was launched in, as far as the environment tells; `None` without a launcher. Open MPI joins
/// a job of its own mpirun or of PMIx, other libraries one of PMI.
///
/// # Errors
/// Several tasks that could not join: each would be alone in a world of its own.
fn launched(variable: impl Fn(&str) -> Option<String>, is_open_mpi: bool) -> Result<Option<usize>> {
    let number = |name: &str| variable(name)?.parse::<usize>().ok();
    let announced = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"].into_iter().find_map(number).unwrap_or(1);
    let known: &[&str] = if is_open_mpi {
        &["OMPI_COMM_WORLD_SIZE", "PMIX_RANK"]
    } else {
        &["OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK", "PMI_SIZE", "MPI_LOCALNRANKS"]
    };
    if known.iter().any(|name| variable(name).is_some()) {
        return Ok(Some(announced));
    }
    if announced > 1 { Err(each_alone(announced)) } else { Ok(None) }
}

fn each_alone(tasks: usize) -> Error {
    Error::refused(format!("{tasks} tasks were started without MPI support: each would be alone, in a world of its own")).with_hint(
        "use `srun --mpi=pmix …` (srun --mpi=list names what the site has), or the mpirun of the MPI that ssdkd was built with \
         (`ssdkd doctor` names it) inside sbatch",
    )
}

impl MpiComm {
    /// Joins the MPI job this process was launched in, or says that there is none.
    ///
    /// # Errors
    /// Several tasks were started, but each is alone in a world of its own (srun without PMI, another library's mpirun).
    pub fn join() -> Result<Option<Self>> {
        let is_open_mpi = Self::library_version().contains("Open MPI");
        let Some(announced) = launched(|name| std::env::var(name).ok(), is_open_mpi)? else { return Ok(None) };
        // Funneled: MPI is only ever called from the main thread.
        let Some((universe, _)) = mpi::initialize_with_threading(Threading::Funneled) else {
            return Err(Error::refused("MPI is initialised already"));
        };
        let world = universe.world();
        if world.size() == 1 && announced > 1 {
            return Err(each_alone(announced));
        }
        Ok(Some(Self { world, _universe: universe }))
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

    fn exchange(&self, partner: Option<Rank>, send: &Tensor, receive: &Tensor) -> Result<()> {
        if let Some(partner) = partner {
            let partner = self.world.process_at_rank(partner.0 as i32);
            send_receive_into(bytes(send), &partner, bytes_mut(receive), &partner);
        }
        Ok(())
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

#[cfg(test)]
mod tests {
    use super::launched;

    fn with(variables: &[(&str, &str)], is_open_mpi: bool) -> Result<Option<usize>, String> {
        let value = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        launched(value, is_open_mpi).map_err(|e| e.to_string())
    }

    #[test]
    fn launchers_are_told_apart_by_their_variables() {
        for open in [true, false] {
            assert_eq!(with(&[], open), Ok(None));
            assert_eq!(with(&[("SLURM_STEP_NUM_TASKS", "1")], open), Ok(None));
            // mpirun inside sbatch: its daemons are a Slurm step of one task a node.
            assert_eq!(with(&[("OMPI_COMM_WORLD_SIZE", "8"), ("SLURM_STEP_NUM_TASKS", "2")], open), Ok(Some(8)));
            assert_eq!(with(&[("PMIX_RANK", "0"), ("SLURM_STEP_NUM_TASKS", "4")], open), Ok(Some(4)));
            let text = with(&[("SLURM_STEP_NUM_TASKS", "4")], open).unwrap_err();
            assert!(text.starts_with("4 tasks were started without MPI support"), "{text}");
        }
    }

    #[test]
    fn open_mpi_cannot_join_over_pmi_and_others_can() {
        let pmi = [("PMI_RANK", "1"), ("PMI_SIZE", "2"), ("SLURM_STEP_NUM_TASKS", "2")];
        assert_eq!(with(&pmi, false), Ok(Some(2)));
        assert!(with(&pmi, true).is_err());
        assert!(with(&pmi[..2], true).is_err());
    }
}
