#!/usr/bin/env bash
# mpirun as this machine needs it: launch/mpirun.sh RANKS COMMAND [ARGUMENT ...]
# Cores are shared out between the ranks (OMP_NUM_THREADS, unless set). Several hosts: launch/mpirun-hosts.sh.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,3s/^# \{0,1\}//p' "$0" >&2; exit 2; }
# shellcheck source=launch/common.sh
. "$(dirname "$0")/common.sh"
# shellcheck source=launch/slurm/site.sh
[ ! -r "$(dirname "$0")/slurm/site.sh" ] || . "$(dirname "$0")/slurm/site.sh"
ranks=$1; shift
threads=$(( $(cores) / ranks ))
[ $threads -gt 0 ] || threads=1
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$threads}
mpirun_options "$ranks"
exec mpirun ${options[@]+"${options[@]}"} -n "$ranks" "$@"
