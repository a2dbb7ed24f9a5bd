# Sourced by the other scripts.
# shellcheck shell=bash

# cores: those this process may use. nproc alone would take OMP_NUM_THREADS for their number.
cores() { env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc; }

# gpus: how many NVIDIA GPUs this process may use; 0 without a driver.
gpus() {
    local count
    count=$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU ' || true)
    if [ "$count" -gt 0 ] && [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then count=$(tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c .); fi
    echo "$count"
}

# is_open_mpi: whether the mpirun on PATH is Open MPI's.
is_open_mpi() { mpirun --version 2>/dev/null | grep -qi 'open mpi\|openrte'; }

# mpirun_options RANKS_PER_HOST: sets the array `options` to what this machine's mpirun needs, and the site's own MPIRUN_OPTIONS. Under
# Open MPI root is allowed, and more ranks than cores, whose waiting ranks then give up their core. MPICH needs none of that.
mpirun_options() {
    # Ranks see a pipe; the progress bar needs to know of the terminal at its end.
    if [ -t 2 ]; then SSDKD_COLUMNS=$(stty size <&2 2>/dev/null | cut -d' ' -f2); export SSDKD_COLUMNS=${SSDKD_COLUMNS:-80}; fi
    options=(${MPIRUN_OPTIONS[@]+"${MPIRUN_OPTIONS[@]}"})
    is_open_mpi || return 0
    # Open MPI counts cores where there may be two threads in each, so that it would refuse ranks there is room for.
    options+=(--bind-to none --oversubscribe --mca mpi_yield_when_idle $(( $1 > $(cores) )))
    [ "$(id -u)" -ne 0 ] || options+=(--allow-run-as-root)
}

# rustup_first: puts rustup's folder first on PATH, if there is one, so that its Rust wins over a distribution's older one.
rustup_first() {
    local bin=${CARGO_HOME:-$HOME/.cargo}/bin
    [ ! -d "$bin" ] || export PATH="$bin:$PATH"
}

# absolute_wheels: takes a folder in SSDKD_WHEELS from where the user stands; the script has left that for the checkout.
absolute_wheels() {
    case ${SSDKD_WHEELS:-} in
        '' | *://* | /*) ;;
        *) export SSDKD_WHEELS=$OLDPWD/$SSDKD_WHEELS ;;
    esac
}

# pip_binary COMMAND [OPTION ...]: pip's install or download of wheels for this Python. SSDKD_WHEELS, where set, is where they come from
# instead of pip's own index: the address of another index, or a folder of wheels.
pip_binary() {
    local command=$1 from=(); shift
    case ${SSDKD_WHEELS:-} in
        '') ;;
        *://*) from+=(--index-url "$SSDKD_WHEELS") ;;
        *) from+=(--no-index --find-links "$SSDKD_WHEELS") ;;
    esac
    # As a variable: the option is unknown to the pip of Ubuntu 22.04.
    PIP_ROOT_USER_ACTION=ignore python3 -m pip "$command" --quiet --disable-pip-version-check --only-binary=:all: \
        "${from[@]+"${from[@]}"}" "$@"
}

# pip_wheels COMMAND [OPTION ...]: the same for any x86_64 Linux and Python; only the wheels' C++ part is used.
pip_wheels() {
    local command=$1 tag platforms=(); shift
    for tag in _2_28 _2_27 _2_25 _2_24 _2_18 _2_17 _2_12 _2_5 2014 2010 1; do platforms+=(--platform "manylinux${tag}_x86_64"); done
    pip_binary "$command" --implementation cp --python-version 3.12 "${platforms[@]}" "$@"
}

# wheel_lists GPU FLAVOUR: sets the arrays `lists` (files of requirements) and `rules` (how pip takes them) for libtorch: GPU yes or no,
# CUDA 13 or 12.6. What is pinned by hash needs no resolving; 12.6 is not on pip's own index, and its index says what it needs.
wheel_lists() {
    rules=(--no-deps --require-hashes)
    case $2 in
        13) lists=(launch/libtorch/cpu.txt); [ "$1" = no ] || lists+=(launch/libtorch/cuda.txt) ;;
        12.6)
            [ -n "${SSDKD_WHEELS:-}" ] || { echo "error: CUDA 12.6 wheels are not on pip's own index: set SSDKD_WHEELS to the" \
                "address of PyTorch's index for cu126, or to a folder that holds them" >&2; return 1; }
            # shellcheck disable=SC2034
            lists=(launch/libtorch/cuda12.6.txt) rules=() ;;
        *) echo "error: no flavour for CUDA $2: there are 13 and 12.6" >&2; return 1 ;;
    esac
}
