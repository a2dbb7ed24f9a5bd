#!/usr/bin/env bash
# Time-limit chains, for sites that forbid requeueing: LINKS jobs, each waiting for the end of the one before, go on with one run
# until it is finished; links left over end at once. From the top folder:
#   launch/slurm/chain.sh LINKS [SBATCH OPTION ...] launch/slurm/mpirun.sbatch train --config FILE --run-dir DIR
set -euo pipefail
[[ $# -ge 2 && $1 =~ ^[1-9][0-9]*$ ]] || { sed -n '2,4s/^# \{0,1\}//p' "$0" >&2; exit 2; }
# shellcheck source=launch/slurm/site.sh
. launch/slurm/site.sh
links=$1; shift
previous=''
for link in $(seq "$links"); do
    export SSDKD_LINK=$link MAX_RESTARTS=0
    previous=$(sbatch --parsable --export=ALL --no-requeue ${previous:+--dependency="afterany:$previous"} "$@")
    previous=${previous%%;*}
    echo "link $link of $links: job $previous"
done
