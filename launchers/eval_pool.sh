#!/usr/bin/env bash
# Evaluates every checkpoint of a run while it is trained, or afterwards, on a Slurm cluster. This
# small job only watches; it submits a job for each evaluation, and ends when the run is finished and
# has all its results.
#
#   launchers/eval_pool.sh configs/pretrain_b16_i1k.yaml pool.max_workers=4 pool.gpus=1
#       on the login node: checks settings and config, then submits; what is wrong ends it here
#   launchers/eval_pool.sh my.yaml --partition=cpu pool.slurm.partition=h100 pool.cores=8
#       sbatch options are those of the watcher; its workers have theirs in the config's pool:
#   sbatch launchers/eval_pool.sh my.yaml
#       submits unchecked, from the project's root: what is wrong ends the job at once
#   mixer-dist pool configs/quickstart.yaml
#       the laptop form, beside or after launchers/local.sh configs/quickstart.yaml
#
# It takes a copy of the code and the config, as launchers/pretrain.sh does, and the same settings
# from the environment or from launchers/site.env: DATA, NUM_CLASSES, RUN_DIR, CONFIG, PYTHON, PREFIX,
# CHECK, TRIES, RETRY_S. Its workers run that copy, with PYTHON, modules and variables as in this job.
# PYTHON lies where all nodes see it; VENV_TAR is not unpacked here. In a container, Slurm's commands
# must be there too, and pool.slurm.python names how a worker's job enters it.
#
# Exit codes of the job: 0 done; 1 some evaluations failed; 2 refused; 75 stopped, and requeued.

#SBATCH --job-name=eval_pool
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=1
#SBATCH --mem=4G
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR2@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

set -euo pipefail

script=launchers/eval_pool.sh
verb=pool
default_config=""
default_overrides=(pool.executor=slurm)
# Slurm runs a copy of this file in its spool directory, so that $0 does not lead to the project.
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
# The job's own copy of the code, as the submission names it or an earlier start has made it.
code=${1:-}
code=${code#--job-folder=}
[[ -d $code/launchers/job ]] || code=logs/$(basename "$script" .sh)-${SLURM_JOB_ID:-}
[[ -d $code/launchers/job ]] || code=$PWD
if [[ ! -d $code/launchers/job ]]; then
  echo "$script: no launchers/job in $PWD: call sbatch in the project's root" >&2
  exit 2
fi
# shellcheck source=launchers/job/main.sh
source "$code/launchers/job/main.sh"
