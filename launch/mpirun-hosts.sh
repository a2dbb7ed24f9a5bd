#!/usr/bin/env bash
# mpirun over several hosts without a scheduler: launch/mpirun-hosts.sh HOSTFILE RANKS COMMAND [ARGUMENT ...]
# HOSTFILE has a line a host: `node1 slots=4` for Open MPI, `node1:4` for MPICH. The hosts need ssh to each other without a
# password, and this folder, libtorch, data and run folder under the same paths (a shared disk). Threads per rank are the host's
# cores shared out between its ranks, unless OMP_NUM_THREADS is set; it and SSDKD_* reach every host.
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,5s/^# \{0,1\}//p' "$0" >&2; exit 2; }
# shellcheck source=launch/common.sh
. "$(dirname "$0")/common.sh"
# shellcheck source=launch/slurm/site.sh
[ ! -r "$(dirname "$0")/slurm/site.sh" ] || . "$(dirname "$0")/slurm/site.sh"
hostfile=$1 ranks=$2; shift 2
[ -r "$hostfile" ] || { echo "error: $hostfile: no such file: it names the hosts, one a line" >&2; exit 2; }
# Slots say how many ranks a host gets; a hostfile that asks for more than there are cores is taken at its word.
mpirun_options 1
if is_open_mpi; then
    options+=(--hostfile "$hostfile")
    for name in $(compgen -e | grep -E '^(OMP_NUM_THREADS$|SSDKD_)'); do options+=(-x "$name"); done
else
    options+=(-f "$hostfile")
fi
exec mpirun "${options[@]}" -n "$ranks" "$@"
