#!/usr/bin/env bash
# Pretrains any configuration on a Slurm cluster, and looks after the run until it is done: it goes
# on after preemption, a time limit, a rank or a node that dies.
#
#   launchers/pretrain.sh configs/pretrain_b16_i1k.yaml --nodes=4 --partition=h100
#       on the login node: checks settings and config, then submits; what is wrong ends it here
#   launchers/pretrain.sh my.yaml optimizer.learning_rate=5e-4 --change=optimizer.learning_rate
#       overrides of the config; a value that may differ from that of the run so far
#   sbatch --nodes=4 launchers/pretrain.sh my.yaml
#       submits unchecked, from the project's root: what is wrong ends the job before any training
#   launchers/local.sh configs/quickstart.yaml
#       the laptop form: a small run on this machine, without Slurm
#
# At submission (plain sbatch: at the job's first start) the code, the launchers with site.env, and
# the resolved config are copied to logs/NAME/, and kept as run_dir/code/NAME.tar. The job uses this
# copy alone: edit the project as you like while it waits.
#
# Settings, from the environment or from launchers/site.env (see site.env.example):
#   DATA          URL of the training data's manifest.json, or several with spaces between
#   NUM_CLASSES   classes of these data, if other than the config's
#   RUN_DIR       where the run lives: a directory that all nodes share, or a URL; the config's
#   PYTHON        an interpreter that has the packages; .venv/bin/python of this project
#   VENV_TAR      a tar of a virtual environment, unpacked on each node and used there; none
#   PREFIX        words before it, such as "apptainer exec --nv image.sif"; none
#   SRUN_OPTIONS  more options for srun, such as "--container-image=image.sqsh"; none
#   BINDING       how srun binds ranks; "--cpu-bind=cores --distribution=block:block"
#   MIN_NODES     go on with as few where others fail, until the next requeue; all that were asked
#   TRIES         starts in a row that may save nothing until the job gives up; 3
#   RETRY_S       seconds before a start that follows one which has saved nothing; 30
#   CHECK         0 leaves out the check of the config, where only compute tasks have Python; 1
#
# Exit codes of the job: 0 done; 1 gave up; 2 refused; 3 superseded; 75 stopped, not to be requeued.

#SBATCH --job-name=pretrain
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR2@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

set -euo pipefail

script=launchers/pretrain.sh
verb=pretrain
default_config=""
default_overrides=()
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
