//! What of the GPU path can be proven without a GPU: what is loaded and in which order, and what is said about it.

use crate::launch::{Outcome, has_mpirun, is_open_mpi, mpirun, root, run, small_fashion_mnist, tiny};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// `ssdkd doctor` with these folders to find libraries in.
fn doctor(libraries: &[&Path], environment: &[(&str, &str)]) -> Outcome {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ssdkd"));
    let paths: Vec<String> = libraries.iter().map(|path| path.display().to_string()).collect();
    command.arg("doctor").env("LD_LIBRARY_PATH", paths.join(":")).envs(environment.iter().copied());
    run(command, Duration::from_secs(120))
}

/// What `doctor` says about one subject.
fn about(outcome: &Outcome, subject: &str) -> String {
    let line = outcome.stdout.lines().find(|line| line.split(' ').next() == Some(subject));
    line.unwrap_or_else(|| panic!("nothing about {subject} in:\n{}", outcome.stdout))[subject.len()..].trim().to_owned()
}

/// The NCCL that `launch/setup.sh --gpu` has installed, with the other libraries that libtorch's CUDA side needs.
fn installed() -> Option<PathBuf> {
    Some(root().join(".libtorch/nvidia/nccl/lib/libnccl.so.2")).filter(|file| file.exists())
}

/// The file that SSDKD_TEST_NCCL names, or the one that is installed.
fn nccl() -> Option<PathBuf> {
    let file = std::env::var_os("SSDKD_TEST_NCCL").map(PathBuf::from).or_else(installed);
    if file.is_none() {
        println!("skip: SSDKD_TEST_NCCL names no libnccl.so.2 (pip download nvidia-nccl-cu13==2.28.9), nor did launch/setup.sh --gpu run");
    }
    file
}

/// The folder of a libtorch with CUDA: that of the Python that SSDKD_TEST_PYTHON names, or the one that is installed.
fn cuda_side() -> Option<PathBuf> {
    let find = "import importlib.util, pathlib; print(pathlib.Path(importlib.util.find_spec('torch').origin).parent / 'lib')";
    let of_python = |python| {
        let found = Command::new(python).args(["-c", find]).output().unwrap();
        PathBuf::from(String::from_utf8_lossy(&found.stdout).trim())
    };
    let named = std::env::var_os("SSDKD_TEST_PYTHON").map(of_python);
    let lib = named.or_else(|| installed().map(|_| root().join(".libtorch/torch/lib"))).filter(|lib| lib.join("libtorch_cuda.so").exists());
    if lib.is_none() {
        println!("skip: SSDKD_TEST_PYTHON names no Python whose PyTorch has a CUDA side, nor did launch/setup.sh --gpu run");
    }
    lib
}

/// Version and unique id need neither a GPU nor a driver.
#[test]
fn nccl_is_loaded_and_makes_a_unique_id() {
    let Some(file) = nccl() else { return };
    let folder = tempfile::tempdir().unwrap();
    symlink(&file, folder.path().join("libnccl.so")).unwrap();
    let said = about(&doctor(&[folder.path()], &[("SSDKD__DEVICE", "cpu")]).expect(0), "NCCL");
    assert!(said.starts_with("2.28.9 (") && said.ends_with("libnccl.so.2): makes a unique id"), "{said}");
}

/// The declarations that `src/parallel/comm/nccl.rs` holds its calls against, in the header of the wheel itself.
#[test]
fn the_header_declares_what_is_called() {
    let Some(file) = nccl() else { return };
    let header = file.canonicalize().unwrap().parent().unwrap().join("../include/nccl.h");
    let Ok(text) = std::fs::read_to_string(&header) else {
        println!("skip: no {}", header.display());
        return;
    };
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for declared in [
        "ncclResult_t ncclGetVersion(int *version);",
        "ncclResult_t ncclGetUniqueId(ncclUniqueId* uniqueId);",
        "ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int nranks, ncclUniqueId commId, int rank, ncclConfig_t* config);",
        "ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *asyncError);",
        "ncclResult_t ncclCommFinalize(ncclComm_t comm);",
        "ncclResult_t ncclCommDestroy(ncclComm_t comm);",
        "ncclResult_t ncclCommAbort(ncclComm_t comm);",
        "const char* ncclGetLastError(ncclComm_t comm);",
        "const char* ncclGetErrorString(ncclResult_t result);",
        "ncclResult_t ncclSend(const void* sendbuff, size_t count, ncclDataType_t datatype, int peer, ncclComm_t comm, cudaStream_t stream);",
        "ncclResult_t ncclRecv(void* recvbuff, size_t count, ncclDataType_t datatype, int peer, ncclComm_t comm, cudaStream_t stream);",
        "ncclResult_t ncclAllReduce(const void* sendbuff, void* recvbuff, size_t count, ncclDataType_t datatype, ncclRedOp_t op, \
         ncclComm_t comm, cudaStream_t stream);",
        "ncclResult_t ncclAllGather(const void* sendbuff, void* recvbuff, size_t sendcount, ncclDataType_t datatype, ncclComm_t comm, \
         cudaStream_t stream);",
        "ncclResult_t ncclBroadcast(const void* sendbuff, void* recvbuff, size_t count, ncclDataType_t datatype, int root, \
         ncclComm_t comm, cudaStream_t stream);",
        "ncclResult_t ncclGroupStart();",
        "ncclResult_t ncclGroupEnd();",
        "#define NCCL_UNIQUE_ID_BYTES 128",
        "int blocking; int cgaClusterSize; int minCTAs; int maxCTAs; const char *netName; int splitShare; int trafficClass; \
         const char *commName; int collnetEnable; int CTAPolicy; int shrinkShare; int nvlsCTAs; int nChannelsPerNetPeer; \
         int nvlinkCentricSched; } ncclConfig_t;",
        "0xcafebeef,",
        "#define NCCL_CONFIG_UNDEF_INT INT_MIN",
        "ncclUint8 = 1,",
        "ncclFloat32 = 7,",
        "ncclSum = 0,",
        "ncclInProgress = 7,",
    ] {
        assert!(words.contains(declared), "{} does not declare: {declared}", header.display());
    }
}

/// The name under which wheels and packages bring it is not one that it is found by.
#[test]
fn nccl_under_its_packaged_name_alone_is_told_apart_from_none() {
    let Some(file) = nccl() else { return };
    let folder = tempfile::tempdir().unwrap();
    symlink(&file, folder.path().join("libnccl.so.2")).unwrap();
    let said = about(&doctor(&[folder.path()], &[]).expect(0), "NCCL");
    assert!(said.starts_with("only libnccl.so.2 is on the search path: link libnccl.so to it"), "{said}");
}

#[test]
fn a_library_that_is_no_nccl_is_named_as_such() {
    let folder = tempfile::tempdir().unwrap();
    // Something that loads and has none of the symbols.
    let Some(other) =
        ["/lib/x86_64-linux-gnu/libm.so.6", "/lib64/libm.so.6", "/usr/lib/libm.so.6"].into_iter().find(|p| Path::new(p).exists())
    else {
        println!("skip: no libm.so.6 where it usually is");
        return;
    };
    symlink(other, folder.path().join("libnccl.so")).unwrap();
    let said = about(&doctor(&[folder.path()], &[]).expect(0), "NCCL");
    assert!(said.starts_with("it lacks ncclGetVersion"), "{said}");
}

/// A PyTorch with CUDA: its library opens, in the right order (asked about CUDA too early, libtorch would say that it has none), and
/// what is missing is the driver.
#[test]
fn libtorchs_cuda_side_is_opened_before_anything_asks_about_cuda() {
    let Some(lib) = cuda_side() else { return };
    if Path::new("/dev/nvidiactl").exists() {
        println!("skip: this machine has a driver (launch/gpu_check.sh does more)");
        return;
    }
    let outcome = doctor(&[&lib], &[("SSDKD__DEVICE", "cuda")]).expect(2);
    let said = about(&outcome, "CUDA");
    assert!(said.starts_with("not here: libtorch finds no GPU or no NVIDIA driver (libcuda.so.1, which the driver brings"), "{said}");
    let device = about(&outcome, "device");
    assert!(device.starts_with("device: cuda is asked for, but libtorch finds no GPU"), "{device}");
}

/// A library that is found and cannot be opened is named with the linker's reason.
#[test]
fn a_broken_cuda_library_is_named_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("libtorch_cuda.so"), "no library").unwrap();
    let said = about(&doctor(&[folder.path()], &[("SSDKD__DEVICE", "cuda")]).expect(2), "CUDA");
    assert!(said.contains("libtorch's CUDA side cannot be loaded (") && said.contains("libtorch_cuda.so"), "{said}");
}

/// Where there is no GPU, `auto` is the CPU, on one rank and on several.
#[test]
fn auto_is_the_cpu_without_a_gpu() {
    if Path::new("/dev/nvidiactl").exists() {
        println!("skip: this machine has a driver");
        return;
    }
    assert_eq!(about(&doctor(&[], &[]).expect(0), "device"), "the CPU");
    if has_mpirun() {
        let outcome = run(mpirun(2, &["doctor"]), Duration::from_secs(120)).expect(0);
        assert_eq!(about(&outcome, "device"), "the CPU");
    }
}

/// What the GPU's check asks on GPUs, on the CPU.
#[test]
fn the_doctor_holds_networks_against_pytorch() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ssdkd"));
    command.args(["doctor", "--networks"]).env("SSDKD__DEVICE", "cpu");
    let said = about(&run(command, Duration::from_secs(120)).expect(0), "networks");
    assert!(said.starts_with("16 give PyTorch's numbers on Cpu, to "), "{said}");
}

/// The GPU's check says what it does, and refuses a machine without one.
#[test]
fn the_gpu_check_refuses_a_machine_without_a_gpu() {
    let script = |argument: &str| {
        let mut command = Command::new(root().join("launch/gpu_check.sh"));
        command.arg(argument);
        run(command, Duration::from_secs(60))
    };
    let help = script("--help").expect(0).stdout;
    assert!(help.contains("launch/gpu_check.sh [FOLDER]") && help.contains("step benchmark"), "{help}");
    if Path::new("/dev/nvidiactl").exists() {
        println!("skip: this machine has a driver");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("report");
    script(out.to_str().unwrap()).expect(2).says(&["gpu_check: error: nvidia-smi lists no GPU here"]);
    assert!(!out.exists());
}

/// Every run of the GPU's check is one that a machine with a GPU would not refuse: `ssdkd` is stood in for by `config check`.
#[test]
fn the_gpu_checks_runs_are_all_legal() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::create_dir_all(at("launch")).unwrap();
    std::fs::create_dir_all(at("bin")).unwrap();
    symlink(root().join("configs"), at("configs")).unwrap();
    for script in ["gpu_check.sh", "common.sh"] {
        std::fs::copy(root().join("launch").join(script), at("launch").join(script)).unwrap();
    }
    let write = |name: &str, text: String| {
        std::fs::write(at(name), text).unwrap();
        std::fs::set_permissions(at(name), std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    let (here, real) = (folder.path().display(), env!("CARGO_BIN_EXE_ssdkd"));
    write("env.sh", format!("export PATH={here}/bin:$PATH\n"));
    write("bin/nvidia-smi", "#!/bin/sh\necho 'GPU 0: none (UUID: none)'\n".into());
    write("launch/mpirun.sh", "#!/bin/sh\nshift\nexec \"$@\"\n".into());
    let stand_in = r#"#!/bin/bash
command=$1; shift
case $command in train | teach) ;; *) exit 0 ;; esac
echo "$command" >>HERE/asked
arguments=()
while [ $# -gt 0 ]; do
    case $1 in
        --run-dir) mkdir -p "$2" && touch "$2/teacher.safetensors"; shift ;;
        --fresh) ;;
        *) arguments+=("$1") ;;
    esac
    shift
done
REAL config check --for "$command" "${arguments[@]}" >HERE/said 2>&1 || { echo "${arguments[*]}"; cat HERE/said; } >>HERE/refused
"#;
    write("bin/ssdkd", stand_in.replace("HERE", &here.to_string()).replace("REAL", real));
    let mut check = Command::new(at("launch/gpu_check.sh"));
    check.arg(at("out")).env("PATH", format!("{here}/bin:{}", std::env::var("PATH").unwrap()));
    // A stand-in proves nothing: no check but those of exit codes alone may pass.
    let outcome = run(check, Duration::from_secs(300)).expect(1);
    assert!(outcome.stdout.contains("the same run twice: every bit | **FAILED**"), "{}", outcome.stdout);
    let refused = std::fs::read_to_string(at("refused")).unwrap_or_default();
    assert!(refused.is_empty(), "{refused}");
    let asked = std::fs::read_to_string(at("asked")).unwrap();
    assert!(asked.lines().count() > 30 && asked.contains("teach"), "{asked}");
}

/// What `launch/bundle.sh` packs, carried to another folder, with nothing of this checkout but the libtorch of a Python: its own mpirun
/// starts ranks, every operation between them gives the right answer, and two ranks give the bits of one.
#[test]
fn the_bundle_runs_where_it_was_carried() {
    if !has_mpirun() {
        return;
    }
    if !is_open_mpi() || Command::new("ompi_info").arg("--version").output().is_err() {
        println!("skip: the bundle packs Open MPI, which is not the MPI here");
        return;
    }
    let torch = std::env::var_os("LIBTORCH").map_or_else(|| root().join(".libtorch/torch"), PathBuf::from);
    if !torch.join("version.py").exists() {
        println!("skip: {} is not the torch of a Python, which a bundle looks for", torch.display());
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let packed = folder.path().join("packed.tar.gz");
    let mut pack = Command::new(root().join("launch/bundle.sh"));
    pack.arg(&packed).env("SSDKD_BIN", env!("CARGO_BIN_EXE_ssdkd"));
    run(pack, Duration::from_secs(120)).expect(0);
    assert!(packed.metadata().unwrap().len() < 60 << 20);

    let data = folder.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let train = tiny(&small_fashion_mnist(&data, 40), Path::new("run")).join(" ");
    let script = r#"set -e
mkdir far && tar xzf packed.tar.gz && mv packed far/moved && cd far/moved
. ./env.sh
test "$(command -v mpirun)" = "$PWD/mpi/bin/mpirun"
test "$(command -v ssdkd)" = "$PWD/bin/ssdkd"
launch/mpirun.sh 2 ssdkd doctor
for ranks in 1 2; do
    launch/mpirun.sh $ranks ssdkd TRAIN
    ssdkd inspect --checksum run >$ranks.sum
    rm -rf run
done
test -s 1.sum && cmp 1.sum 2.sum && echo "the same bits"
"#;
    let mut there = Command::new("bash");
    there.arg("-c").arg(script.replace("TRAIN", &train)).current_dir(folder.path());
    there.env_clear().env("HOME", folder.path()).env("PATH", "/usr/local/bin:/usr/bin:/bin").env("PYTHONPATH", torch.parent().unwrap());
    there.env("SSDKD__DEVICE", "cpu");
    let outcome = run(there, Duration::from_secs(180)).expect(0);
    assert!(outcome.stdout.contains("2 (MPI): every operation gives the right answer"), "{}", outcome.stdout);
    assert!(outcome.stdout.contains("the same bits"), "{}", outcome.stdout);
}
