//! What a site needs: `ssdkd doctor --comm`, and the scripts of launch/offline.

use crate::launch::{has_mpirun, mpirun, root, run, ssdkd, ssdkd_on};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Lines that begin with a word.
fn lines<'a>(text: &'a str, subject: &str) -> Vec<&'a str> {
    text.lines().filter(|line| line.split_whitespace().next() == Some(subject)).collect()
}

/// Every pair once, with numbers a machine can have; one host with all versions, the transport in use, and nothing that differs.
#[test]
fn pairs_networks_and_versions_are_shown() {
    if !has_mpirun() {
        return;
    }
    for ranks in [2usize, 3] {
        let out = ssdkd_on(ranks, &["doctor", "--comm"]).expect(0).stdout;
        let pairs: Vec<Vec<&str>> = out.lines().filter(|line| line.contains(" µs ")).map(|l| l.split_whitespace().collect()).collect();
        assert_eq!(pairs.len(), ranks * (ranks - 1) / 2, "{out}");
        for (pair, name) in pairs.iter().zip(["0–1", "0–2", "1–2"]) {
            let [latency, bandwidth] = [1, 3].map(|at| pair[at].parse::<f64>().unwrap());
            assert_eq!(pair[0], name, "{out}");
            assert!(latency > 0.0 && latency < 1e6 && bandwidth > 0.001 && bandwidth < 1000.0, "{out}");
        }
        let hosts = lines(&out, "host").into_iter().find(|line| line.contains(" · ")).unwrap_or_default();
        for part in ["cores ", "ssdkd 0.", "MPI ", "libtorch 2.11.0 (", "kernels ", "kernel ", "NVIDIA driver ", "NCCL "] {
            assert!(hosts.contains(part), "{part} is not in {out}");
        }
        assert_eq!((lines(&out, "network").len(), lines(&out, "differs").len()), (1, 1), "{out}");
        assert!(
            out.contains("differs   one host: nothing to compare") && out.contains("NCCL      no pairs: ranks are on the CPU"),
            "{out}"
        );
        assert!(
            lines(&out, "driver").len() == 1 && out.contains(&format!("{ranks} (MPI): every operation gives the right answer")),
            "{out}"
        );
    }
}

#[test]
fn a_rank_alone_has_no_pairs_and_says_so() {
    let out = ssdkd(&["doctor", "--comm"]).expect(0).stdout;
    assert!(out.contains("pairs     none: this is one rank") && !out.contains("GB/s"), "{out}");
    assert!(!ssdkd(&["doctor"]).expect(0).stdout.contains("pairs"));
}

/// A rank that dies in the middle of the swaps ends all of them.
#[test]
fn no_rank_waits_for_one_that_died() {
    if !has_mpirun() {
        return;
    }
    let mut command = mpirun(3, &["doctor", "--comm"]);
    command.env("SSDKD_FAULT_FOR_TESTS", "kill 1 exchange 20");
    let out = run(command, Duration::from_secs(60));
    assert!(out.code != 0 && !out.stdout.contains("GB/s"), "{out:?}");
}

/// `install.sh` in a folder as `pack.sh` makes it (a small one): what is damaged is named, and nothing is built then.
#[test]
fn a_damaged_tarball_is_not_installed() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for name in ["install.sh", "env.sh"] {
        std::fs::copy(root().join("launch/offline").join(name), at(name)).unwrap();
    }
    std::fs::write(at("Cargo.toml"), "[package]\nname = \"small\"\nversion = \"0.1.0\"\nedition = \"2024\"\n[lib]\npath = \"lib.rs\"\n")
        .unwrap();
    std::fs::write(at("Cargo.lock"), "version = 4\n\n[[package]]\nname = \"small\"\nversion = \"0.1.0\"\n").unwrap();
    std::fs::write(at("lib.rs"), "").unwrap();
    let install = || {
        let mut command = Command::new(at("install.sh"));
        command.arg("--check");
        run(command, Duration::from_secs(60))
    };
    assert!(install().expect(2).stderr.contains("no SHA256SUMS here"));
    let sums = Command::new("sha256sum").args(["./Cargo.toml", "./Cargo.lock", "./lib.rs"]).current_dir(folder.path()).output().unwrap();
    std::fs::write(at("SHA256SUMS"), sums.stdout).unwrap();
    assert!(install().expect(0).stdout.contains("checksums are right"));
    std::fs::write(at("lib.rs"), "//").unwrap();
    let out = install().expect(1);
    assert!(out.stdout.contains("./lib.rs: FAILED") && out.stderr.contains("files are damaged or missing"), "{out:?}");
}

/// What `pack.sh` cannot pack it says before it packs anything.
#[test]
fn a_tarball_is_packed_only_as_it_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x.tar.gz").display().to_string();
    // A distribution's Rust: its compiler names the system's own folder.
    std::fs::create_dir(folder.path().join("bin")).unwrap();
    let rustc = folder.path().join("bin/rustc");
    std::fs::write(&rustc, "#!/bin/sh\necho /usr\n").unwrap();
    std::fs::set_permissions(&rustc, PermissionsExt::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", folder.path().join("bin").display(), std::env::var("PATH").unwrap());
    let pack = |arguments: &[&str]| {
        let mut command = Command::new(root().join("launch/offline/pack.sh"));
        command.args(arguments).env("PATH", &path).env("CARGO_HOME", folder.path());
        run(command, Duration::from_secs(60))
    };
    for arguments in [&[][..], &["--gpu"], &[&file, "--nothing"]] {
        let lines = pack(arguments).expect(2).stderr;
        assert!(lines.lines().count() == 6 && lines.contains("pack.sh FILE.tar.gz [--gpu]"), "{arguments:?}: {lines}");
    }
    assert!(pack(&[&file, "--rust"]).expect(1).stderr.contains("this Rust is the distribution's"));
    assert!(pack(&[&file, "--cuda", "11"]).expect(1).stderr.contains("no flavour for CUDA 11"));
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["bin"]);
}

/// A copy of the scripts in a folder of its own, with a folder `wheels` that holds none, and set-up there with these arguments.
fn set_up_in(folder: &Path, arguments: &[&str]) -> Command {
    let copied = Command::new("cp").arg("-r").arg(root().join("launch")).arg(root().join("Cargo.toml")).arg(folder).status();
    assert!(copied.unwrap().success());
    std::fs::create_dir_all(folder.join("wheels")).unwrap();
    std::fs::create_dir_all(folder.join(".libtorch")).unwrap();
    let mut command = Command::new(folder.join("launch/setup.sh"));
    command
        .args(arguments)
        .current_dir(folder.join("launch"))
        .env("SSDKD_WHEELS", "../wheels")
        .env_remove("LIBTORCH")
        .env_remove("LIBTORCH_USE_PYTORCH");
    command
}

/// A folder of wheels, as seen from where the user stands, that has none: the libtorch that is there stays.
#[test]
fn a_libtorch_that_cannot_be_replaced_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let mine = folder.path().join(".libtorch/mine");
    let command = set_up_in(folder.path(), &["--cpu"]);
    std::fs::write(&mine, "").unwrap();
    let out = run(command, Duration::from_secs(60)).expect(1);
    assert!(out.stderr.contains("pip could not install libtorch from SSDKD_WHEELS=") && out.stderr.contains("launch/../wheels"), "{out:?}");
    assert!(!out.stdout.contains("to download") && mine.exists(), "{out:?}");
}

/// A CUDA side that was asked for once is not taken away by set-up on a host without a GPU, nor one for an older driver by a newer one.
#[test]
fn an_installed_cuda_side_stays_until_another_is_asked_for() {
    for lists in [&["cuda12.6.txt"][..], &["cpu.txt", "cuda.txt"]] {
        let folder = tempfile::tempdir().unwrap();
        let pinned: Vec<u8> = lists.iter().flat_map(|list| std::fs::read(root().join("launch/libtorch").join(list)).unwrap()).collect();
        let stamp = folder.path().join(".libtorch").join(format!("ready-{}", &ssdkd::files::sha256(&pinned)[..16]));
        for (arguments, code) in [(&[][..], 0), (&["--gpu"], 0), (&["--cpu"], 1)] {
            let command = set_up_in(folder.path(), arguments);
            std::fs::write(&stamp, "").unwrap();
            let out = run(command, Duration::from_secs(60)).expect(code);
            assert_eq!(out.stdout.contains("installing libtorch"), code == 1, "{lists:?} {arguments:?}: {out:?}");
        }
    }
}
