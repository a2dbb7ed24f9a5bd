//! What every communicator must do, as one suite: run by the tests over each backend, and by `ssdkd doctor`.

use super::{BUCKET, Communicator, all_gather_varied};
use crate::error::{Error, Result};
use crate::layout::Rank;
use tch::{Device, Kind, Tensor};

/// Runs every check with tensors of `device`. A collective: all ranks call it.
///
/// Gives the first operation that had a wrong answer on this rank, having gone through all: the others would wait for it.
///
/// # Errors
/// The transport failed on this rank.
pub fn run(comm: &dyn Communicator, device: Device) -> Result<Result<()>> {
    let (rank, size) = (comm.rank().0, comm.size());
    let mut verdict = Ok(());
    let mut expect = |operation: &'static str, holds: bool| {
        if !holds && verdict.is_ok() {
            verdict = Err(Error::Comm { operation, problem: format!("wrong answer on rank {rank} of {size}") });
        }
    };

    comm.barrier()?;

    let mut gathered = vec![0u8; 3 * size];
    comm.all_gather(&[rank as u8, 7, 255], &mut gathered)?;
    expect("all-gather", (0..size).all(|r| gathered[3 * r..3 * r + 3] == [r as u8, 7, 255]));

    let varied = all_gather_varied(comm, &vec![rank as u8; rank])?;
    expect("all-gather of varied lengths", varied.len() == size && (0..size).all(|r| varied[r] == vec![r as u8; r]));

    expect("all-gather of nothing", all_gather_varied(comm, &[])? == vec![Vec::<u8>::new(); size]);
    comm.all_gather(&[], &mut [])?;

    // Device memory is where gradients and rows of the buffer are: bytes of f32, images, ids, and the f64 of losses.
    for kind in [Kind::Float, Kind::Uint8, Kind::Int64, Kind::Double] {
        // Rank r sends r + s + 1 copies of 10 r + s to rank s.
        let part = |from: usize, to: usize| Tensor::full([(from + to + 1) as i64], (10 * from + to) as i64, (kind, device));
        let joined = |parts: Vec<Tensor>| Tensor::cat(&parts, 0);
        let send = joined((0..size).map(|to| part(rank, to)).collect());
        let want = joined((0..size).map(|from| part(from, rank)).collect());
        let counts: Vec<usize> = (0..size).map(|other| rank + other + 1).collect();
        let receive = Tensor::zeros_like(&want);
        comm.all_to_all(&send, &counts, &receive, &counts)?;
        expect("all-to-all", receive.equal(&want));

        // Rank r contributes 2 r elements, rank 0 none.
        let part = |from: usize| Tensor::full([2 * from as i64], from as i64, (kind, device));
        let want = joined((0..size).map(part).collect());
        let whole = Tensor::zeros_like(&want);
        comm.all_gather_parts(&part(rank), &whole, &(0..size).map(|r| 2 * r).collect::<Vec<_>>())?;
        expect("all-gather of parts", whole.equal(&want));
    }

    // Neighbours swap their ranks; the last of an odd number has none.
    let partner = Some(rank ^ 1).filter(|&partner| partner < size);
    let of = |rank: usize| Tensor::full([5], rank as i64, (Kind::Int64, device));
    let received = of(size);
    comm.exchange(partner.map(Rank), &of(rank), &received)?;
    expect("exchange of a pair", received.equal(&of(partner.unwrap_or(size))));

    // Equal parts, and nothing at all: other ways than unequal ones.
    let (mine, whole) = (Tensor::full([3], rank as i64, (Kind::Int64, device)), Tensor::zeros([3 * size as i64], (Kind::Int64, device)));
    comm.all_gather_parts(&mine, &whole, &vec![3; size])?;
    let want = Tensor::arange(size as i64, (Kind::Int64, device)).repeat_interleave_self_int(3, 0, None);
    expect("all-gather of equal parts", whole.equal(&want));
    let nothing = Tensor::zeros([0], (Kind::Float, device));
    comm.all_to_all(&nothing, &vec![0; size], &nothing, &vec![0; size])?;

    // Longer than a bucket once, so that a sum in parts is seen.
    for length in [1000, BUCKET as i64 + 1] {
        let sum = Tensor::full([length], rank as f64 + 1.0, (Kind::Float, device));
        comm.all_reduce_native(&sum)?;
        expect("all-reduce", sum.equal(&Tensor::full([length], (size * (size + 1) / 2) as f64, (Kind::Float, device))));
    }

    comm.barrier()?;
    Ok(verdict)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parallel::comm::{Solo, Staged, Threads};

    #[test]
    fn a_single_process_conforms() {
        run(&Solo, Device::Cpu).unwrap().unwrap();
    }

    #[test]
    fn threads_conform() {
        for size in [1, 2, 3, 8] {
            std::thread::scope(|scope| {
                let ranks: Vec<_> = Threads::group(size).into_iter().map(|comm| scope.spawn(move || run(&comm, Device::Cpu))).collect();
                for rank in ranks {
                    rank.join().unwrap().unwrap().unwrap();
                }
            });
        }
    }

    /// CPU tensors stand for those of a GPU: all of them are copied out and in.
    #[test]
    fn staged_ranks_conform() {
        run(&Staged::over(Box::new(Solo), Device::Cpu), Device::Cpu).unwrap().unwrap();
        for size in [2, 3] {
            std::thread::scope(|scope| {
                let staged = |comm| run(&Staged::over(Box::new(comm), Device::Cpu), Device::Cpu);
                let ranks: Vec<_> = Threads::group(size).into_iter().map(|comm| scope.spawn(move || staged(comm))).collect();
                for rank in ranks {
                    rank.join().unwrap().unwrap().unwrap();
                }
            });
        }
    }

    #[test]
    fn a_rank_that_leaves_ends_the_others() {
        let mut group = Threads::group(2);
        let (leaving, staying) = (group.pop().unwrap(), group.pop().unwrap());
        std::thread::scope(|scope| {
            let left = scope.spawn(move || {
                let _comm = leaving;
                panic!("this rank leaves on purpose");
            });
            assert!(left.join().is_err());
            assert!(matches!(staying.barrier(), Err(Error::Comm { .. })));
        });
    }
}
