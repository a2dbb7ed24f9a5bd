#!/usr/bin/env bash
# Everything `cargo build` needs, installed once: system packages and libtorch 2.11.0. Safe to run again at any time.
#
#   launch/setup.sh            what building and running need
#   launch/setup.sh --tests    what the tests need as well (Slurm, a browser to look at the report, onnxruntime)
#   launch/setup.sh --gpu      the CUDA side of libtorch, even where no GPU is seen (login nodes, containers)
#   launch/setup.sh --cpu      without that side, even where a GPU is seen
#   launch/setup.sh --cuda 12.6   libtorch for CUDA 12.6, for NVIDIA drivers older than 580; 13 is what is taken otherwise
#
# SSDKD_WHEELS: another index for the wheels, or a folder of them (docs/sites.md).
# Used instead when given: LIBTORCH=DIR or LIBTORCH_USE_PYTORCH=1 (libtorch/PyTorch 2.11), and any MPI whose mpicc is on PATH.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/common.sh
. launch/common.sh
rustup_first
absolute_wheels
say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: error: %s\n' "$*" >&2; exit 1; }

with_tests=no with_gpu=auto flavour=
while [ $# -gt 0 ]; do
    case $1 in
        --tests) with_tests=yes ;;
        --gpu) with_gpu=yes ;;
        --cpu) with_gpu=no ;;
        --cuda) flavour=${2:-none} with_gpu=yes; shift ;;
        *) sed -n '2,11s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    esac
    shift || true
done

# ---- system packages -------------------------------------------------------------------------------------------------
has() { command -v "$1" >/dev/null 2>&1; }
# has_libclang: what bindgen looks for; libclang-cpp.so, which comes with llvm alone, is another library.
has_libclang() {
    [ -z "${LIBCLANG_PATH:-}" ] || return 0
    if ldconfig -p 2>/dev/null | grep -E 'libclang(-[0-9.]+)?\.so' >/dev/null; then return; fi
    local folders=(/usr/lib/llvm-*/lib)
    if has llvm-config; then folders+=("$(llvm-config --libdir)"); fi
    local folder
    for folder in "${folders[@]}"; do
        if compgen -G "$folder/libclang.so*" >/dev/null || compgen -G "$folder/libclang-[0-9]*.so*" >/dev/null; then return; fi
    done
    return 1
}
packages=()
has c++ || packages+=(g++)
has_libclang || packages+=(clang libclang-dev)
has mpicc && has mpirun || packages+=(libopenmpi-dev openmpi-bin)
has readelf || packages+=(binutils)
if [ -z "${LIBTORCH:-}${LIBTORCH_USE_PYTORCH:-}" ]; then
    has python3 || packages+=(python3)
    python3 -m pip --version >/dev/null 2>&1 || packages+=(python3-pip)
fi
needed=$(sed -n 's/^rust-version *= *"\(.*\)"/\1/p' Cargo.toml)
rust_version() { rustc --version 2>/dev/null | cut -d' ' -f2; }
rust_will_do() { has cargo && has rustc && [ "$(printf '%s\n' "$needed" "$(rust_version)" | sort -V | head -n1)" = "$needed" ]; }
rust_will_do || has rustup || has curl || packages+=(curl ca-certificates)
if [ $with_tests = yes ]; then
    has slurmctld && has slurmd && has sbatch || packages+=(slurm-wlm)
    has munged || packages+=(munge)
fi

# can_install: whether packages can be installed without asking anybody.
can_install() { has apt-get && { [ "$(id -u)" -eq 0 ] || { has sudo && sudo -n true 2>/dev/null; }; }; }
apt() {
    local root=()
    [ "$(id -u)" -eq 0 ] || root=(sudo)
    ${root[@]+"${root[@]}"} env DEBIAN_FRONTEND=noninteractive apt-get -qq "$@" >/dev/null
}
if [ ${#packages[@]} -gt 0 ]; then
    if can_install; then
        say "installing ${packages[*]}"
        apt update
        apt install -y --no-install-recommends "${packages[@]}"
    else
        cat >&2 <<TEXT
setup: error: missing: ${packages[*]}. Install them, then run this again:
    sudo apt-get update && sudo apt-get install -y ${packages[*]}
  On a cluster: module load openmpi llvm gcc        (names vary: module avail)
  With Spack:   spack install openmpi llvm gcc && spack load openmpi llvm gcc
TEXT
        exit 1
    fi
fi

# A browser only takes the picture of one test, and Ubuntu has it as a snap only, which a container cannot run: never fatal.
has_browser() {
    local name
    for name in chromium chromium-browser google-chrome; do
        if has $name && $name --version >/dev/null 2>&1; then return; fi
    done
    return 1
}
# browser_package: whether apt knows of a chromium that is no stub for a snap.
browser_package() {
    LC_ALL=C apt-cache policy chromium 2>/dev/null | grep 'Candidate:' | grep -qv 'none\|snap' &&
        ! LC_ALL=C apt-cache depends chromium 2>/dev/null | grep -q snapd
}
install_browser() {
    can_install || return
    compgen -G '/var/lib/apt/lists/*_Packages*' >/dev/null || apt update || return
    browser_package || return
    say "installing chromium fonts-dejavu-core"
    apt update && apt install -y --no-install-recommends chromium fonts-dejavu-core
}
if [ $with_tests = yes ] && ! has_browser && ! install_browser; then
    say "no browser here, and no chromium to be had from apt: the test that looks at the report will be skipped"
fi

# onnxruntime is what exported networks are held against: never fatal either.
if [ $with_tests = yes ] && [ ! -e .test-python/ready ]; then
    say "installing onnxruntime for the tests"
    if python3 -m pip --version >/dev/null 2>&1 &&
        pip_binary install --target .test-python --upgrade onnxruntime==1.23.2 onnx==1.20.0 numpy; then
        touch .test-python/ready
    else
        say "no onnxruntime to be had by pip for $(python3 --version)${SSDKD_WHEELS:+ from SSDKD_WHEELS=$SSDKD_WHEELS}: the test that runs exported networks in it will be skipped"
    fi
fi

# ---- Rust ------------------------------------------------------------------------------------------------------------
if ! rust_will_do && ! has rustup; then
    found=$(rust_version) || true
    say "installing Rust for this user with rustup's own installer (found ${found:-none}, $needed or newer is needed)"
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --quiet --profile default ||
        die "Rust could not be installed: install it with rustup, or load your site's rust module, then run this again"
    rustup_first
fi
if ! rust_version >/dev/null && has rustup; then rustup default stable; fi
rust_will_do || die "Rust $needed or newer is needed, found $(rust_version || echo none): run rustup update stable, then this again"

# ---- libtorch --------------------------------------------------------------------------------------------------------
# libtorch_version DIR: what a libtorch, or the PyTorch it is part of, says of itself; nothing where it does not.
libtorch_version() {
    if [ -r "$1/build-version" ]; then
        cut -d+ -f1 "$1/build-version"
    elif [ -r "$1/version.py" ]; then
        sed -n "s/^__version__ *= *['\"]\([^'\"+]*\).*/\1/p" "$1/version.py"
    fi
}
if [ -n "${LIBTORCH_USE_PYTORCH:-}" ]; then
    version=$(python3 -c 'import torch; print(torch.__version__.split("+")[0])' 2>/dev/null) ||
        die "LIBTORCH_USE_PYTORCH is set, but python3 cannot import torch: activate the environment that has it"
    [ "$version" = 2.11.0 ] || die "PyTorch $version found; 2.11.0 is needed (unset LIBTORCH_USE_PYTORCH to have it installed here)"
    libtorch="$version, PyTorch of $(command -v python3)"
elif [ -n "${LIBTORCH:-}" ]; then
    [ -e "$LIBTORCH/lib/libtorch_cpu.so" ] || die "LIBTORCH=$LIBTORCH holds no lib/libtorch_cpu.so"
    version=$(libtorch_version "$LIBTORCH")
    case $version in
        2.11.0) libtorch="$version in $LIBTORCH" ;;
        '') libtorch="in $LIBTORCH, whose version could not be checked: 2.11.0 is needed" ;;
        *) die "libtorch $version found in LIBTORCH=$LIBTORCH; 2.11.0 is needed (unset LIBTORCH to have it installed here)" ;;
    esac
else
    [ "$(uname -m)" = x86_64 ] || die "wheels are pinned for x86_64 only: point LIBTORCH at a libtorch 2.11.0 for $(uname -m)"
    # A CUDA side that is installed stays: a login node sees no GPU, and the one for an older driver was asked for by name.
    stamp_of() { cat "$@" | sha256sum | cut -c1-16; }
    is_ready() { [ -e ".libtorch/ready-$(stamp_of "$@")" ]; }
    if [ $with_gpu != no ] && [ -z "$flavour" ] && is_ready launch/libtorch/cuda12.6.txt; then
        stamp=$(stamp_of launch/libtorch/cuda12.6.txt)
    else
        if [ $with_gpu = auto ]; then
            with_gpu=no
            if [ -e /dev/nvidiactl ] || has nvidia-smi || is_ready launch/libtorch/cpu.txt launch/libtorch/cuda.txt; then with_gpu=yes; fi
        fi
        wheel_lists $with_gpu "${flavour:-13}" || exit 1
        stamp=$(stamp_of "${lists[@]}")
    fi
    if [ ! -e ".libtorch/ready-$stamp" ]; then
        case ${SSDKD_WHEELS:-} in
            '') source= size=" (0.5 GB to download, more with a GPU)" ;;
            *://*) source=" from SSDKD_WHEELS=$SSDKD_WHEELS" size=" (0.5 GB to download, more with a GPU)" ;;
            *) source=" from SSDKD_WHEELS=$SSDKD_WHEELS" size= ;;
        esac
        say "installing libtorch 2.11.0$source$size"
        # Beside the one that is there, which stays if this fails.
        rm -rf .libtorch.new
        pip_wheels install --no-compile "${rules[@]+"${rules[@]}"}" --target .libtorch.new "${lists[@]/#/--requirement=}" ||
            die "pip could not install libtorch$source (see above)"
        # cudarc looks for libnccl.so, the wheel brings libnccl.so.2 only.
        nccl=.libtorch.new/nvidia/nccl/lib/libnccl.so.2
        [ ! -e $nccl ] || ln -sf "../../nvidia/nccl/lib/libnccl.so.2" .libtorch.new/torch/lib/libnccl.so
        touch ".libtorch.new/ready-$stamp"
        rm -rf .libtorch
        mv .libtorch.new .libtorch
    fi
    libtorch="2.11.0 in .libtorch"
fi
say "ready (rustc $(rust_version); $(mpirun --version 2>/dev/null | head -n1); libtorch $libtorch)"
