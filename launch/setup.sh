#!/usr/bin/env bash
# Everything `cargo build` needs, installed once: system packages and libtorch 2.11.0. Safe to run again at any time.
#
#   launch/setup.sh            what building and running need
#   launch/setup.sh --tests    what the tests need as well (Slurm, a browser to look at the report)
#   launch/setup.sh --gpu      the CUDA side of libtorch, even where no GPU is seen (login nodes, containers)
#
# Used instead when given: LIBTORCH=DIR or LIBTORCH_USE_PYTORCH=1 (libtorch/PyTorch 2.11), and any MPI whose mpicc is on PATH.
set -euo pipefail
cd "$(dirname "$0")/.."
say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: error: %s\n' "$*" >&2; exit 1; }

with_tests=no with_gpu=no
for argument in "$@"; do
    case $argument in
        --tests) with_tests=yes ;;
        --gpu) with_gpu=yes ;;
        *) sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    esac
done

# ---- system packages -------------------------------------------------------------------------------------------------
has() { command -v "$1" >/dev/null 2>&1; }
has_libclang() {
    [ -n "${LIBCLANG_PATH:-}" ] || has llvm-config || ldconfig -p 2>/dev/null | grep -q 'libclang[-.]' ||
        compgen -G '/usr/lib/llvm-*/lib/libclang*.so*' >/dev/null
}
packages=()
has c++ || packages+=(g++)
has clang && has_libclang || packages+=(clang libclang-dev)
has mpicc && has mpirun || packages+=(libopenmpi-dev openmpi-bin)
has readelf || packages+=(binutils)
if [ -z "${LIBTORCH:-}${LIBTORCH_USE_PYTORCH:-}" ]; then
    has python3 || packages+=(python3)
    python3 -m pip --version >/dev/null 2>&1 || packages+=(python3-pip)
fi
has_rust() { has cargo || has rustup || [ -e "$HOME/.cargo/env" ]; }
has_rust || has curl || packages+=(curl ca-certificates)
if [ $with_tests = yes ]; then
    has chromium || packages+=(chromium fonts-dejavu-core)
    has slurmctld && has slurmd && has sbatch || packages+=(slurm-wlm)
    has munged || packages+=(munge)
fi

if [ ${#packages[@]} -gt 0 ]; then
    root=()
    if [ "$(id -u)" -ne 0 ]; then
        if has sudo && sudo -n true 2>/dev/null; then root=(sudo); else root=(none); fi
    fi
    if has apt-get && [ "${root[0]:-}" != none ]; then
        say "installing ${packages[*]}"
        "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -qq
        "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
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

# ---- Rust ------------------------------------------------------------------------------------------------------------
# shellcheck disable=SC1091
has_rust || {
    say "installing Rust for this user with rustup's own installer"
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --quiet --profile default ||
        die "Rust could not be installed: install it with rustup, or load your site's rust module, then run this again"
}
has cargo || { [ -e "$HOME/.cargo/env" ] && . "$HOME/.cargo/env"; } || true
if ! has cargo && has rustup; then rustup default stable; fi
has cargo || die "cargo is not on PATH: install Rust with rustup, or load your site's rust module, then run this again"
needed=$(sed -n 's/^rust-version *= *"\(.*\)"/\1/p' Cargo.toml)
found=$(rustc --version | cut -d' ' -f2)
[ "$(printf '%s\n' "$needed" "$found" | sort -V | head -n1)" = "$needed" ] ||
    die "Rust $needed or newer is needed, found $found: run rustup update stable"

# ---- libtorch --------------------------------------------------------------------------------------------------------
if [ -n "${LIBTORCH_USE_PYTORCH:-}" ]; then
    version=$(python3 -c 'import torch; print(torch.__version__.split("+")[0])' 2>/dev/null) ||
        die "LIBTORCH_USE_PYTORCH is set, but python3 cannot import torch: activate the environment that has it"
    [ "$version" = 2.11.0 ] || die "PyTorch $version found; 2.11.0 is needed (unset LIBTORCH_USE_PYTORCH to have it installed here)"
    say "using PyTorch $version of $(command -v python3)"
elif [ -n "${LIBTORCH:-}" ]; then
    [ -e "$LIBTORCH/lib/libtorch_cpu.so" ] || die "LIBTORCH=$LIBTORCH holds no lib/libtorch_cpu.so"
    say "using libtorch in $LIBTORCH"
else
    [ "$(uname -m)" = x86_64 ] || die "wheels are pinned for x86_64 only: point LIBTORCH at a libtorch 2.11.0 for $(uname -m)"
    lists=(launch/libtorch/cpu.txt)
    if [ $with_gpu = yes ] || [ -e /dev/nvidiactl ] || has nvidia-smi; then lists+=(launch/libtorch/cuda.txt); fi
    stamp=$(cat "${lists[@]}" | sha256sum | cut -c1-16)
    if [ ! -e ".libtorch/ready-$stamp" ]; then
        say "installing libtorch 2.11.0 (0.5 GB to download, more with a GPU)"
        rm -rf .libtorch
        platforms=()
        for tag in 2_28 2_27 2_25 2_24 2_18 2_17 2_12 2_5; do platforms+=(--platform "manylinux_${tag}_x86_64"); done
        for tag in 2014 2010 1; do platforms+=(--platform "manylinux${tag}_x86_64"); done
        requirements=()
        for list in "${lists[@]}"; do requirements+=(-r "$list"); done
        python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-deps --require-hashes --no-compile \
            --only-binary=:all: --implementation cp --python-version 3.12 "${platforms[@]}" \
            --target .libtorch "${requirements[@]}" || die "pip could not install libtorch (see above)"
        # cudarc looks for libnccl.so, the wheel brings libnccl.so.2 only.
        nccl=.libtorch/nvidia/nccl/lib/libnccl.so.2
        [ ! -e $nccl ] || ln -sf "../../nvidia/nccl/lib/libnccl.so.2" .libtorch/torch/lib/libnccl.so
        touch ".libtorch/ready-$stamp"
    fi
fi
say "ready ($(rustc --version | cut -d' ' -f1,2); $(mpirun --version 2>&1 | head -n1); libtorch 2.11.0)"
