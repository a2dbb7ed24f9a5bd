//! What a process knows of the job: layout, transport, device. Built once, handed to everything that communicates.

use super::comm::{Communicator, MpiComm, Solo, all_gather_varied};
use super::meter::{Meter, Metered};
use super::watchdog::Pulse;
use crate::config::ReduceRule;
use crate::error::{Error, Result};
use crate::layout::{Layout, LogicalRank, Rank};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use tch::Device;

/// A process that knows its peers, before the run's logical ranks are known.
pub struct Launch {
    comm: Metered,
    local: Local,
    pub(super) ranks_in_memory: usize,
    hosts: Vec<String>,
    token: String,
}

/// Place of a process among those on its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Local {
    /// 0 for the first rank of the host.
    pub rank: usize,
    /// Ranks on the host.
    pub ranks: usize,
    /// Cores that the host's ranks may run on, together.
    pub cores: usize,
}

impl Launch {
    /// Joins the MPI job this process was started in, or stands alone. A collective.
    pub fn join() -> Result<Self> {
        let comm: Box<dyn Communicator> = match MpiComm::join()? {
            Some(mpi) => Box::new(mpi),
            None => Box::new(Solo),
        };
        Self::over(comm)
    }

    /// Stands alone, whatever started this process.
    pub fn alone() -> Result<Self> {
        Self::over(Box::new(Solo))
    }

    /// Over a given transport. A collective.
    pub fn over(comm: Box<dyn Communicator>) -> Result<Self> {
        let comm = Metered::new(comm);
        let mine = comm.rank().0;
        let hosts = all_gather_varied(&comm, host_name().as_bytes())?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let token = all_gather_varied(&comm, format!("{}-{now}", std::process::id()).as_bytes())?.swap_remove(0);
        let cores = all_gather_varied(&comm, &allowed_cores())?;
        let peers: Vec<usize> = (0..comm.size()).filter(|&r| hosts[r] == hosts[mine]).collect();
        let mut shared = vec![0u8; cores[mine].len()];
        for peer in &peers {
            shared.iter_mut().zip(&cores[*peer]).for_each(|(all, one)| *all |= one);
        }
        let local = Local {
            rank: peers.iter().filter(|&&r| r < mine).count(),
            ranks: peers.len(),
            cores: shared.iter().map(|byte| byte.count_ones() as usize).sum(),
        };
        let text = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).into_owned();
        Ok(Self { comm, local, ranks_in_memory: local.ranks, token: text(&token), hosts: hosts.iter().map(text).collect() })
    }

    /// R.
    pub fn ranks(&self) -> usize {
        self.comm.size()
    }

    /// This process.
    pub fn rank(&self) -> Rank {
        self.comm.rank()
    }

    /// Its place on its host.
    pub fn local(&self) -> Local {
        self.local
    }

    /// Transport.
    pub fn comm(&self) -> &dyn Communicator {
        &self.comm
    }

    /// Host of every rank.
    pub(super) fn hosts(&self) -> &[String] {
        &self.hosts
    }

    /// A name of this launch, the same on every rank and in no other launch.
    pub(super) fn token(&self) -> &str {
        &self.token
    }

    pub(super) fn pulse(&self) -> Arc<Pulse> {
        self.comm.pulse.clone()
    }

    /// Another transport in the place of this one. A collective.
    pub(super) fn replace_comm(
        &mut self,
        by: impl FnOnce(Box<dyn Communicator>) -> Result<Box<dyn Communicator>, (Box<dyn Communicator>, Error)>,
    ) -> Result<()> {
        self.comm.replace(by)
    }

    /// The job with its logical ranks laid out.
    pub fn into_world(self, layout: Layout, reduce: ReduceRule, device: Device) -> World {
        World { layout, comm: self.comm, local: self.local, ranks_in_memory: self.ranks_in_memory, hosts: self.hosts, reduce, device }
    }
}

/// The job as seen from one process.
pub struct World {
    layout: Layout,
    comm: Metered,
    local: Local,
    ranks_in_memory: usize,
    hosts: Vec<String>,
    reduce: ReduceRule,
    device: Device,
}

impl World {
    /// Logical ranks on ranks.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// This process.
    pub fn rank(&self) -> Rank {
        self.comm.rank()
    }

    /// Its place on its host.
    pub fn local(&self) -> Local {
        self.local
    }

    /// Ranks that take memory from where this one does: those of its host, or of its GPU.
    pub fn ranks_in_memory(&self) -> usize {
        self.ranks_in_memory
    }

    /// Whether this is the rank that prints and writes shared files.
    pub fn leads(&self) -> bool {
        self.rank().0 == 0
    }

    /// Logical ranks on this process, in order.
    pub fn hosted(&self) -> impl DoubleEndedIterator<Item = LogicalRank> + ExactSizeIterator + use<> {
        self.layout.hosted(self.rank())
    }

    /// Where tensors live.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Transport.
    pub fn comm(&self) -> &dyn Communicator {
        &self.comm
    }

    /// Bytes sent so far.
    pub fn meter(&self) -> &Meter {
        &self.comm.meter
    }

    /// Host of every rank.
    pub(super) fn hosts(&self) -> &[String] {
        &self.hosts
    }

    pub(super) fn pulse(&self) -> Arc<Pulse> {
        self.comm.pulse.clone()
    }

    /// Rule of its sums over logical ranks.
    pub fn reduce_rule(&self) -> ReduceRule {
        self.reduce
    }

    /// Returns when all ranks have called it. A collective.
    pub fn barrier(&self) -> Result<()> {
        self.comm.barrier()
    }

    /// Numbers of every logical rank, in order, on every rank: `width` each. A collective; 8·width·M/R·(R−1) bytes sent.
    pub fn gather<const W: usize>(&self, mine: &PerRank<[u64; W]>) -> Result<Vec<[u64; W]>> {
        let send: Vec<u8> = self.hosted().flat_map(|l| *mine.get(l)).flat_map(u64::to_le_bytes).collect();
        let mut all = vec![0u8; send.len() * self.layout.ranks()];
        self.comm.all_gather(&send, &mut all)?;
        let mut words = all.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b));
        Ok((0..self.layout.logical_ranks()).map(|_| std::array::from_fn(|_| words.next().unwrap_or_default())).collect())
    }

    /// Sums over the processes, on each of them. A collective; 8·W·(R−1) bytes sent.
    pub fn sum<const W: usize>(&self, mine: [u64; W]) -> Result<[u64; W]> {
        let mut all = vec![0u8; 8 * W * self.layout.ranks()];
        self.comm.all_gather(mine.map(u64::to_le_bytes).as_flattened(), &mut all)?;
        let words = all.as_chunks::<8>().0;
        Ok(std::array::from_fn(|i| words.iter().skip(i).step_by(W).map(|b| u64::from_le_bytes(*b)).sum()))
    }

    /// Vectors of every logical rank, in order, on every rank; all of one length. A collective.
    pub fn gather_vectors(&self, mine: &PerRank<Vec<u64>>) -> Result<Vec<Vec<u64>>> {
        let width = self.hosted().next().map_or(0, |l| mine.get(l).len());
        let send: Vec<u8> = self.hosted().flat_map(|l| mine.get(l).iter().copied()).flat_map(u64::to_le_bytes).collect();
        let mut all = vec![0u8; send.len() * self.layout.ranks()];
        self.comm.all_gather(&send, &mut all)?;
        let words: Vec<u64> = all.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b)).collect();
        Ok(words.chunks(width.max(1)).map(<[u64]>::to_vec).collect())
    }
}

/// One value per logical rank hosted by this process.
#[derive(Debug, Clone)]
pub struct PerRank<T>(BTreeMap<LogicalRank, T>);

impl<T> Default for PerRank<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T> PerRank<T> {
    /// With a value for each.
    pub fn build(ranks: impl Iterator<Item = LogicalRank>, value: impl FnMut(LogicalRank) -> T) -> Self {
        let mut value = value;
        Self(ranks.map(|rank| (rank, value(rank))).collect())
    }

    /// Sets a logical rank's value.
    pub fn set(&mut self, rank: LogicalRank, value: T) {
        self.0.insert(rank, value);
    }

    /// A hosted logical rank's value.
    ///
    /// # Panics
    /// If `rank` is hosted elsewhere or was not set: a mistake of the caller.
    pub fn get(&self, rank: LogicalRank) -> &T {
        self.0.get(&rank).expect("asked for a logical rank that is hosted here and was set")
    }

    /// The same, for changing.
    ///
    /// # Panics
    /// As [`PerRank::get`].
    pub fn get_mut(&mut self, rank: LogicalRank) -> &mut T {
        self.0.get_mut(&rank).expect("asked for a logical rank that is hosted here and was set")
    }

    /// All, in order.
    pub fn iter(&self) -> impl Iterator<Item = (LogicalRank, &T)> {
        self.0.iter().map(|(rank, value)| (*rank, value))
    }

    /// All, in order, by value.
    pub fn into_iter_ordered(self) -> impl Iterator<Item = (LogicalRank, T)> {
        self.0.into_iter()
    }
}

/// Name of this host.
pub fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").map_or_else(|_| "unknown".into(), |name| name.trim().to_owned())
}

/// Columns of the terminal behind the launcher, where there is one: `launch/mpirun.sh` looks, since its ranks see only a pipe.
pub fn launcher_columns() -> Option<u16> {
    std::env::var("SSDKD_COLUMNS").ok()?.parse().ok()
}

/// Cores this process may run on, a bit each. Launchers bind ranks to some of a host's cores.
pub fn allowed_cores() -> Vec<u8> {
    // SAFETY: an all-zero set is valid, and the call writes no more than its size.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        let size = std::mem::size_of::<libc::cpu_set_t>();
        if libc::sched_getaffinity(0, size, &mut set) != 0 {
            return vec![1];
        }
        std::slice::from_raw_parts((&raw const set).cast::<u8>(), size).to_vec()
    }
}

/// Sets libtorch's threads: as configured, else OMP_NUM_THREADS, else the host's cores shared by its ranks.
///
/// # Errors
/// OMP_NUM_THREADS that is not a number of threads.
pub fn set_threads(configured: Option<usize>, local: Local) -> Result<()> {
    let threads = match (configured, std::env::var("OMP_NUM_THREADS")) {
        (Some(0), _) => return Err(Error::refused("0 threads compute nothing").with_hint("set it to cores ÷ ranks, or leave it out")),
        (Some(threads), _) => threads,
        (None, Ok(text)) => {
            let threads = text.split(',').next().and_then(|first| first.trim().parse().ok()).filter(|&threads: &usize| threads > 0);
            threads.ok_or_else(|| {
                Error::refused(format!("OMP_NUM_THREADS = `{text}` is not a number of threads"))
                    .with_hint("set it to cores ÷ ranks, or unset it")
            })?
        }
        (None, Err(_)) => (local.cores / local.ranks).max(1),
    };
    tch::set_num_threads(threads as i32);
    Ok(())
}

/// Threads libtorch uses.
pub fn thread_count() -> usize {
    tch::get_num_threads() as usize
}
