# Settings of a site, all in this file. Sourced by you before sbatch (`. launch/slurm/site.sh`), by chain.sh, and again inside
# every job. What the environment sets already wins over the values here.
# shellcheck shell=bash disable=SC2034

# ---- Asked of Slurm at submission: sbatch reads SBATCH_*; its own options win over them, they win over the #SBATCH lines ----
# Remove the # where your site needs it.
# export SBATCH_PARTITION=gpu
# export SBATCH_ACCOUNT=project
# export SBATCH_QOS=normal
# export SBATCH_TIMELIMIT=04:00:00
# Ranks compute on GPUs where they see any: as many GPUs as ranks on a node.
# export SBATCH_GPUS_PER_NODE=1
# How long before the time limit the run is told to save and stop: longer than a step and a checkpoint (docs/slurm.md). Slurm may
# send it up to a minute early. With mpirun the batch script must get it (B:), with srun the ranks.
# export SBATCH_SIGNAL=B:USR1@300

# ---- Inside a job ----
# Restarts after which a job is left stopped; Slurm counts its own (pre-emption, lost nodes) as well.
: "${MAX_RESTARTS:=20}"
# The program, seen from the repository's top folder or absolute.
: "${SSDKD:=target/release/ssdkd}"
# Slurm's MPI plug-in for srun (`srun --mpi=list` names what there is). Empty: pmix with Open MPI's mpirun on PATH, else pmi2.
: "${SRUN_MPI:=}"
# Further options, for example (--mca pml ucx) for mpirun, (--cpu-bind=cores) for srun.
MPIRUN_OPTIONS=()
SRUN_OPTIONS=()
# Environment modules; what they set must be what ssdkd was built with.
site_modules() {
    : # module purge; module load openmpi
}
