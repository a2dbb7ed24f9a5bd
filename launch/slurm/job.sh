# Sourced by mpirun.sbatch and srun.sbatch: what a job does around its launcher.
# shellcheck shell=bash
#
# The folder of the run says how the run stands; exit codes do not survive every launcher. Only one of them is looked at: 2, a
# refusal, which no restart mends.
set -euo pipefail
# shellcheck source=launch/slurm/site.sh
. launch/slurm/site.sh
# shellcheck source=launch/common.sh
. launch/common.sh

say() { printf '%s job %s: %s\n' "$(date +%FT%T)" "$job" "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 2; }

# In an array, the number alone may mean all of its tasks.
job=${SLURM_JOB_ID:?start this file with sbatch}
[ -z "${SLURM_ARRAY_JOB_ID:-}" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
# Where sbatch was given no number of tasks, Slurm means one a node.
ranks=${SLURM_NTASKS:-$SLURM_JOB_NUM_NODES}

launcher='' asked=no terminated=no
# USR1 announces the time limit. TERM comes with scancel and with a requeue by Slurm: mpirun would give the ranks a second or two
# after it, so that they are asked in the way that leaves them their time.
stop() {
    asked=yes
    [ "$1" != TERM ] || terminated=yes
    say "$1: the run is asked to save and stop"
    pass_on
}
pass_on() { [ $asked = no ] || [ -z "$launcher" ] || kill -USR1 "$launcher" 2>/dev/null || true; }
trap 'stop USR1' USR1
trap 'stop TERM' TERM

# arguments ARGUMENT...: sets `arguments` to ssdkd's, with %a replaced by the number of the array's task, and `run_dir`.
arguments() {
    arguments=("$@") run_dir=''
    [ -z "${SLURM_ARRAY_TASK_ID:-}" ] || arguments=("${arguments[@]//%a/$SLURM_ARRAY_TASK_ID}")
    local i
    for i in "${!arguments[@]}"; do
        case ${arguments[i]} in
            --run-dir) run_dir=${arguments[i + 1]:-} ;;
            --run-dir=*) run_dir=${arguments[i]#*=} ;;
        esac
    done
    [ -n "$run_dir" ] || die "no --run-dir among the arguments: sbatch [OPTIONS] launch/slurm/… train --config FILE --run-dir DIR"
    [ -x "$SSDKD" ] || die "$SSDKD is no program: build it (cargo build --release), or set SSDKD in launch/slurm/site.sh"
}

# How the run stands; `none` as long as it has left no state.
status() { "$SSDKD" inspect --status "$run_dir" 2>/dev/null || echo none; }

# launch COMMAND...: runs the launcher to its end and sets `code` to its exit code.
launch() {
    # A chain's next link has nothing to do where the run failed; a failed run is started again by hand.
    if [ "${SSDKD_LINK:-1}" -gt 1 ] && [ "$(status)" = failed ]; then
        say "the run failed in an earlier job and is not started again"
        exit 1
    fi
    say "start ${SLURM_RESTART_COUNT:-0} on $SLURM_JOB_NODELIST, ranks $ranks, run $run_dir"
    code=75
    [ $asked = no ] || return 0
    "$@" &
    launcher=$!
    # One that came in between found no launcher.
    pass_on
    # A trapped signal ends `wait` early.
    while kill -0 "$launcher" 2>/dev/null; do wait "$launcher" || true; done
    code=0
    wait "$launcher" || code=$?
    launcher=''
}

# Starts the job again if its run can go on, else ends with an exit code as ssdkd's own.
finish() {
    local state seconds
    if [ "$code" -eq 2 ]; then
        say "refused (see above): no restart mends that"
        exit 2
    fi
    # Ranks whose launcher was killed may need a moment to end.
    for seconds in 1 2 3 4 5; do
        state=$(status)
        [ "$state" = running ] || break
        sleep "$seconds"
    done
    say "the launcher ended with $code, the run is $state"
    # Told to stop before it had a state, a run has lost nothing and is as good as stopped. 138: the ranks were told, as srun's are,
    # and died of USR1 while they were reading files.
    if [ "$state" = none ] && { [ $asked = yes ] || [ "$code" -eq 138 ]; }; then state=stopped; fi
    case $state in
        finished | paused) exit 0 ;;
        stopped) ;;
        *) exit $(( code > 0 ? code : 1 )) ;;
    esac
    if [ $terminated = yes ]; then
        say "ended from outside: it is not for this script to start it again"
    elif [ "${SLURM_RESTART_COUNT:-0}" -ge "$MAX_RESTARTS" ]; then
        say "not requeued: $MAX_RESTARTS restarts are allowed (MAX_RESTARTS)"
    else
        # What ends this script from here on is the requeue itself.
        trap '' TERM
        say "requeued"
        scontrol requeue "$job" || say "Slurm refuses to requeue: use launch/slurm/chain.sh at this site"
    fi
    exit 75
}
