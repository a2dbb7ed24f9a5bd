#!/usr/bin/env bash
# mpirun as this machine needs it: launch/mpirun.sh RANKS COMMAND [ARGUMENT ...]
# Cores are shared out between the ranks (OMP_NUM_THREADS, unless set); root and more ranks than slots are allowed under Open MPI,
# whose waiting ranks then give up their core. MPICH needs none of that.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,4s/^# \{0,1\}//p' "$0" >&2; exit 2; }
ranks=$1; shift
cores=$(nproc)
threads=$(( cores / ranks > 0 ? cores / ranks : 1 ))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$threads}
# Ranks see a pipe; the progress bar needs to know of the terminal at its end.
if [ -t 2 ]; then SSDKD_COLUMNS=$(stty size <&2 2>/dev/null | cut -d' ' -f2); export SSDKD_COLUMNS=${SSDKD_COLUMNS:-80}; fi
options=()
if mpirun --version 2>/dev/null | grep -qi 'open mpi\|openrte'; then
    options+=(--bind-to none)
    [ "$(id -u)" -ne 0 ] || options+=(--allow-run-as-root)
    if [ "$ranks" -gt "$cores" ]; then options+=(--oversubscribe --mca mpi_yield_when_idle 1); fi
fi
exec mpirun ${options[@]+"${options[@]}"} -n "$ranks" "$@"
