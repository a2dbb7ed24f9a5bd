//! GPUs of this machine, and NVIDIA's multi-process service where several trials share one.

use crate::error::Result;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// GPUs that trials may use: those that CUDA_VISIBLE_DEVICES names (Slurm sets it), else all that `nvidia-smi` lists.
pub(super) fn visible() -> Vec<String> {
    if let Ok(list) = std::env::var("CUDA_VISIBLE_DEVICES") {
        return named(&list);
    }
    let listed = Command::new("nvidia-smi").arg("--list-gpus").stderr(Stdio::null()).output();
    let count = listed.map_or(0, |out| String::from_utf8_lossy(&out.stdout).lines().filter(|line| line.starts_with("GPU ")).count());
    (0..count).map(|i| i.to_string()).collect()
}

/// GPUs that a list names, up to the first word that is no name (`-1`, Slurm's `NoDevFiles`): so does CUDA.
fn named(list: &str) -> Vec<String> {
    let is_name = |word: &&str| word.starts_with(|c: char| c.is_ascii_digit()) || word.starts_with("GPU-") || word.starts_with("MIG-");
    list.split(',').map(str::trim).take_while(is_name).map(str::to_owned).collect()
}

/// A running service; ended when this is dropped. Kernels of the processes that share a GPU then run side by side; without it they
/// take turns.
pub(super) struct Mps {
    folder: PathBuf,
}

impl Mps {
    /// Starts it if it is installed; its files lie on this machine, not in the sweep's folder. Trials run without it as well.
    pub(super) fn start() -> Result<Option<Self>> {
        let folder = std::env::temp_dir().join(format!("ssdkd-mps-{}", std::process::id()));
        crate::files::create_folder(&folder)?;
        let mps = Self { folder };
        match mps.control().arg("-d").stdin(Stdio::null()).status() {
            Ok(status) if status.success() => Ok(Some(mps)),
            Ok(status) => {
                eprintln!("warning: nvidia-cuda-mps-control -d ended with {status}: trials take turns on the GPU that they share");
                Ok(None)
            }
            Err(_) => Ok(None),
        }
    }

    /// What the processes that use it need in their environment.
    pub(super) fn environment(&self) -> [(&'static str, PathBuf); 2] {
        [("CUDA_MPS_PIPE_DIRECTORY", self.folder.join("pipe")), ("CUDA_MPS_LOG_DIRECTORY", self.folder.join("log"))]
    }

    fn control(&self) -> Command {
        let mut command = Command::new("nvidia-cuda-mps-control");
        // It would number the GPUs of this variable from 0, and its clients, which have the variable too, would look for others.
        command.env_remove("CUDA_VISIBLE_DEVICES");
        command.envs(self.environment()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }
}

impl Drop for Mps {
    fn drop(&mut self) {
        if let Ok(mut child) = self.control().stdin(Stdio::piped()).spawn() {
            if let Some(mut input) = child.stdin.take() {
                let _ = std::io::Write::write_all(&mut input, b"quit\n");
            }
            let _ = child.wait();
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_end_where_cuda_stops_reading() {
        assert_eq!(named("2, 3"), ["2", "3"]);
        assert_eq!(named("GPU-8932f937,MIG-1,0"), ["GPU-8932f937", "MIG-1", "0"]);
        assert_eq!(named("1,-1,2"), ["1"]);
        for none in ["", "-1", "NoDevFiles"] {
            assert_eq!(named(none), [""; 0], "{none}");
        }
    }
}
