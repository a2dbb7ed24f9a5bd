//! Starts the real binary, alone or under `mpirun`, with a deadline that ends the whole process group.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What a launch came to.
#[derive(Debug)]
pub struct Outcome {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
    pub seconds: f64,
}

impl Outcome {
    /// Fails the test unless the exit code is as wanted.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    /// Fails the test unless stderr holds all of these.
    #[track_caller]
    pub fn says(self, parts: &[&str]) -> Self {
        for part in parts {
            assert!(self.stderr.contains(part), "`{part}` is not in:\n{}", self.stderr);
        }
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        self
    }
}

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Whether mpirun can be found; says so when it cannot.
pub fn has_mpirun() -> bool {
    let found = Command::new("mpirun").arg("--version").output().is_ok_and(|o| o.status.success());
    if !found {
        println!("skip: mpirun is not on PATH (launch/setup.sh installs it)");
    }
    found
}

/// Whether that mpirun is Open MPI's; MPICH's takes other hostfiles, and another plug-in of Slurm.
pub fn is_open_mpi() -> bool {
    let version = Command::new("mpirun").arg("--version").output().map(|o| String::from_utf8_lossy(&o.stdout).to_lowercase());
    version.is_ok_and(|text| text.contains("open mpi") || text.contains("openrte"))
}

/// `ssdkd` as one process.
pub fn ssdkd<S: AsRef<str>>(arguments: &[S]) -> Outcome {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ssdkd"));
    command.args(arguments.iter().map(AsRef::as_ref));
    run(command, Duration::from_secs(300))
}

/// `ssdkd` on `ranks` ranks under mpirun.
pub fn ssdkd_on<S: AsRef<str>>(ranks: usize, arguments: &[S]) -> Outcome {
    run(mpirun(ranks, arguments), Duration::from_secs(300))
}

/// The command that starts `ssdkd` on `ranks` ranks.
pub fn mpirun<S: AsRef<str>>(ranks: usize, arguments: &[S]) -> Command {
    let mut command = Command::new(root().join("launch/mpirun.sh"));
    command.arg(ranks.to_string()).arg(env!("CARGO_BIN_EXE_ssdkd"));
    command.args(arguments.iter().map(AsRef::as_ref));
    command
}

/// Runs a command in a process group of its own; at the deadline the group is killed and the test fails.
pub fn run(mut command: Command, deadline: Duration) -> Outcome {
    // Equal bits need equal threads, however many ranks there are.
    if !command.get_envs().any(|(name, _)| name == "OMP_NUM_THREADS") {
        command.env("OMP_NUM_THREADS", "1");
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let began = Instant::now();
    let child = command.spawn().unwrap();
    let group = child.id() as i32;
    let (done, timer) = std::sync::mpsc::channel::<()>();
    let watch = std::thread::spawn(move || {
        if timer.recv_timeout(deadline).is_err() {
            // SAFETY: a signal to the group this test started.
            unsafe { libc::kill(-group, libc::SIGKILL) };
            return true;
        }
        false
    });
    let output = child.wait_with_output().unwrap();
    let _ = done.send(());
    assert!(!watch.join().unwrap(), "{command:?} was still running after {deadline:?}");
    Outcome {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        seconds: began.elapsed().as_secs_f64(),
    }
}

/// The page as a browser shows it; `None`, with the reason printed, where there is no browser.
pub fn screenshot(page: &Path, folder: &Path) -> Option<image::RgbImage> {
    let has = |name: &&str| Command::new(name).arg("--version").output().is_ok_and(|o| o.status.success());
    let Some(browser) = ["chromium", "chromium-browser", "google-chrome"].into_iter().find(has) else {
        println!("skip: no browser on PATH (launch/setup.sh --tests installs chromium)");
        return None;
    };
    let png = folder.join("page.png");
    let mut command = Command::new(browser);
    command.args(["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]);
    command.args(["--disable-component-update", "--disable-sync", "--hide-scrollbars", "--window-size=1200,2400"]);
    command.arg(format!("--user-data-dir={}", folder.join("profile").display()));
    command.arg(format!("--screenshot={}", png.display())).arg(format!("file://{}", page.display()));
    let out = run(command, Duration::from_secs(120));
    Some(image::open(&png).unwrap_or_else(|e| panic!("{e}: {}", out.stderr)).to_rgb8())
}

/// The demo's configuration, cut to a few seconds: four logical ranks, evictions, student steps.
pub fn tiny(data: &Path, run: &Path) -> Vec<String> {
    let mut arguments: Vec<String> = ["train", "--config", "configs/fashion_mnist/demo.toml"].map(str::to_owned).to_vec();
    for set in [
        "parallel.logical_ranks=4",
        "train.rounds=4",
        "train.warmup_rounds=1",
        "train.eval_every_rounds=2",
        "inversion.steps=2",
        "inversion.batch_size=8",
        "generator.filters=8",
        "replay.capacity=75",
        "distill.batch_size=32",
        "distill.steps_per_round=2",
        "distill.teacher_views=2",
    ] {
        arguments.extend(["--set".into(), set.into()]);
    }
    arguments.extend(["--data-dir".into(), data.display().to_string(), "--run-dir".into(), run.display().to_string()]);
    arguments
}

/// A folder with the first `count` test images of Fashion-MNIST, so that evaluations are short; also as training files.
pub fn small_fashion_mnist(folder: &Path, count: usize) -> PathBuf {
    use std::io::Read;
    let shipped = root().join("configs/fashion_mnist");
    for (name, header, width) in [("images-idx3", 16, 784), ("labels-idx1", 8, 1)] {
        let mut raw = Vec::new();
        let file = std::fs::File::open(shipped.join(format!("t10k-{name}-ubyte.gz"))).unwrap();
        flate2::read::GzDecoder::new(file).read_to_end(&mut raw).unwrap();
        raw.truncate(header + count * width);
        raw[4..8].copy_from_slice(&(count as u32).to_be_bytes());
        for split in ["t10k", "train"] {
            std::fs::write(folder.join(format!("{split}-{name}-ubyte")), &raw).unwrap();
        }
    }
    folder.into()
}
