//! R ranks as threads of one process, for tests: everything but MPI itself runs under plain `cargo test`.

use super::{Communicator, bytes, bytes_mut};
use crate::error::{Error, Result};
use crate::layout::Rank;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use tch::Tensor;

/// One rank of a group of threads.
pub struct Threads {
    rank: usize,
    hub: Arc<Hub>,
}

struct Hub {
    size: usize,
    state: Mutex<State>,
    changed: Condvar,
}

/// A meeting goes through two phases: all bring, then all have taken.
struct State {
    brought: Vec<Option<Arc<Vec<Vec<u8>>>>>,
    taken: usize,
    left: bool,
}

impl Threads {
    /// `size` connected ranks.
    pub fn group(size: usize) -> Vec<Self> {
        let state = State { brought: vec![None; size], taken: 0, left: false };
        let hub = Arc::new(Hub { size, state: Mutex::new(state), changed: Condvar::new() });
        (0..size).map(|rank| Self { rank, hub: hub.clone() }).collect()
    }

    /// The one operation all others are made of: rank r gets `send[r]` of every rank.
    fn swap(&self, operation: &'static str, send: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>> {
        let gone = || Error::Comm { operation, problem: "a rank left".into() };
        let hub = &*self.hub;
        let mut state = hub.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.brought[self.rank].is_some() && !state.left {
            state = hub.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.brought[self.rank] = Some(Arc::new(send));
        hub.changed.notify_all();
        while !state.brought.iter().all(Option::is_some) {
            if state.left {
                return Err(gone());
            }
            state = hub.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let received = state.brought.iter().flatten().map(|from| from[self.rank].clone()).collect();
        state.taken += 1;
        if state.taken == hub.size {
            state.taken = 0;
            state.brought.fill(None);
            hub.changed.notify_all();
        }
        // Nobody may start the next meeting before this one is over.
        while state.brought[self.rank].is_some() {
            if state.left {
                return Err(gone());
            }
            state = hub.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(received)
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.hub.state.lock().unwrap_or_else(PoisonError::into_inner).left = true;
            self.hub.changed.notify_all();
        }
    }
}

impl Communicator for Threads {
    fn rank(&self) -> Rank {
        Rank(self.rank)
    }

    fn size(&self) -> usize {
        self.hub.size
    }

    fn name(&self) -> &'static str {
        "threads"
    }

    fn barrier(&self) -> Result<()> {
        self.swap("barrier", vec![Vec::new(); self.hub.size]).map(drop)
    }

    fn all_gather(&self, send: &[u8], receive: &mut [u8]) -> Result<()> {
        let all = self.swap("all-gather", vec![send.to_vec(); self.hub.size])?;
        receive.copy_from_slice(&all.concat());
        Ok(())
    }

    fn all_to_all(&self, send: &Tensor, send_counts: &[usize], receive: &Tensor, _: &[usize]) -> Result<()> {
        let width = send.kind().elt_size_in_bytes();
        let mut rest = bytes(send);
        let parts = send_counts.iter().map(|n| {
            let (part, others) = rest.split_at(n * width);
            rest = others;
            part.to_vec()
        });
        let all = self.swap("all-to-all", parts.collect())?;
        bytes_mut(receive).copy_from_slice(&all.concat());
        Ok(())
    }

    fn all_gather_parts(&self, part: &Tensor, whole: &Tensor, _: &[usize]) -> Result<()> {
        let all = self.swap("all-gather", vec![bytes(part).to_vec(); self.hub.size])?;
        bytes_mut(whole).copy_from_slice(&all.concat());
        Ok(())
    }

    fn all_reduce_native(&self, tensor: &Tensor) -> Result<()> {
        let all = self.swap("all-reduce", vec![bytes(tensor).to_vec(); self.hub.size])?;
        let part = |b: &Vec<u8>| Tensor::from_data_size(b, &tensor.size(), tensor.kind());
        let sum = all[1..].iter().map(part).fold(part(&all[0]), |sum, other| sum + other);
        tch::no_grad(|| tensor.shallow_clone().copy_(&sum));
        Ok(())
    }
}
