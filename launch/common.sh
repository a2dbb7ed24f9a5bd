# Sourced by the other scripts.
# shellcheck shell=bash

# cores: those this process may use. nproc alone would take OMP_NUM_THREADS for their number.
cores() { env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc; }

# is_open_mpi: whether the mpirun on PATH is Open MPI's.
is_open_mpi() { mpirun --version 2>/dev/null | grep -qi 'open mpi\|openrte'; }

# mpirun_options RANKS_PER_HOST: sets the array `options` to what this machine's mpirun needs. Under Open MPI root is allowed, and
# more ranks than cores, whose waiting ranks then give up their core. MPICH needs none of that.
mpirun_options() {
    # Ranks see a pipe; the progress bar needs to know of the terminal at its end.
    if [ -t 2 ]; then SSDKD_COLUMNS=$(stty size <&2 2>/dev/null | cut -d' ' -f2); export SSDKD_COLUMNS=${SSDKD_COLUMNS:-80}; fi
    options=()
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
