//! Where the ranks of a launch compute, and what carries tensors between their GPUs.

use super::comm::{Communicator, NcclComm, Staged, all_gather_varied, nccl};
use super::world::{Launch, host_name};
use crate::config::DeviceName;
use crate::device::{self, Seat, Sight, seats};
use crate::error::{Error, Result};
use std::time::Duration;
use tch::Device;

impl Launch {
    /// Gives each rank its device, and the launch a transport for tensors there. Before any tensor of a GPU. A collective.
    ///
    /// `share`: several ranks may compute on one GPU; `timeout_s`: how long ranks wait for each other while NCCL is set up, 0 for ever.
    ///
    /// # Errors
    /// The same on every rank: what [`seats`] refuses, or NCCL that is there and does not work.
    pub fn take_device(&mut self, wanted: DeviceName, share: bool, timeout_s: u64) -> Result<Device> {
        let gpus = match wanted {
            DeviceName::Cpu => Err("device = \"cpu\"".into()),
            DeviceName::Auto | DeviceName::Cuda => device::visible(wanted == DeviceName::Cuda),
        };
        let local_rank = device::launched_local_rank(|name| std::env::var(name).ok());
        let mine = serde_json::to_vec(&Sight { host: host_name(), local_rank, gpus }).unwrap_or_default();
        let lost = |e: serde_json::Error| Error::Comm { operation: "choice of devices", problem: e.to_string() };
        let all = all_gather_varied(self.comm(), &mine)?;
        let sights = all.iter().map(|text| serde_json::from_slice(text).map_err(lost)).collect::<Result<Vec<Sight>>>()?;
        let Seat::Gpu { index, ranks } = seats(wanted, share, &sights)?[self.rank().0] else {
            if let (DeviceName::Auto, 0, Some(driver), Err(reason)) = (wanted, self.rank().0, device::driver(), &sights[0].gpus) {
                tracing::warn!(driver, reason, "computing on the CPU, though this host has an NVIDIA driver: see `ssdkd doctor`");
            }
            return Ok(Device::Cpu);
        };
        self.ranks_in_memory = ranks;
        // One GPU of several may be sick, or another job's.
        self.agree(device::stream::use_gpu(index))?;
        if self.ranks() > 1 {
            let one_host = sights.iter().all(|sight| sight.host == sights[0].host);
            self.join_gpus(index, ranks > 1, one_host, (timeout_s > 0).then(|| Duration::from_secs(timeout_s)))?;
        }
        Ok(Device::Cuda(index))
    }

    fn join_gpus(&mut self, gpu: usize, shared: bool, one_host: bool, limit: Option<Duration>) -> Result<()> {
        if shared {
            let_ranks_share(self.rank().0, one_host);
        }
        let problem = nccl::found().problem();
        // What one rank lacks, all do without.
        let problems = all_gather_varied(self.comm(), problem.unwrap_or_default().as_bytes())?;
        if let Some(rank) = problems.iter().position(|text| !text.is_empty()) {
            if self.rank().0 == 0 {
                tracing::warn!(
                    rank,
                    nccl = %String::from_utf8_lossy(&problems[rank]),
                    "ranks exchange tensors of GPUs through host memory and MPI: each sum costs two copies over the bus"
                );
            }
            self.replace_comm(|control| Ok(Box::new(Staged::over(control, Device::Cuda(gpu)))))?;
            return Ok(());
        }
        let joined = self.replace_comm(|control| match NcclComm::over(control, gpu, limit) {
            Ok(comm) => Ok(Box::new(comm) as Box<dyn Communicator>),
            Err((control, error)) => Err((control, error)),
        });
        self.agree(joined)
    }
}

/// NCCL refuses two ranks with one GPU on one host: as hosts of their own they may, through sockets. Read by NCCL when it starts.
fn let_ranks_share(rank: usize, one_host: bool) {
    let set = |name: &str, value: &str| {
        if std::env::var_os(name).is_none() {
            // SAFETY: the other thread, the watchdog's, reads no variable.
            unsafe { std::env::set_var(name, value) };
        }
    };
    set("NCCL_HOSTID", &format!("ssdkd-{rank}"));
    set("NCCL_P2P_DISABLE", "1");
    set("NCCL_SHM_DISABLE", "1");
    if one_host {
        set("NCCL_SOCKET_IFNAME", "lo");
    }
}
