#!/usr/bin/env bash
# Pretrains Mixer-H/14 on a Slurm cluster, and looks after the run until it is done.
#
#   DATA=s3://bucket/dataset/manifest.json launchers/pretrain_h14.sh
#       on the login node: checks settings and config, then submits; what is wrong ends it here
#   DATA=s3://bucket/dataset/manifest.json sbatch launchers/pretrain_h14.sh
#       submits unchecked, from the project's root: what is wrong ends the job before any training
#   DATA=... launchers/pretrain_h14.sh --nodes=8 --partition=h100 optimizer.learning_rate=5e-4
#       sbatch options as --name=value (plain sbatch: before the script), overrides of the config
#   launchers/local.sh configs/quickstart.yaml
#       the laptop form: a small run on this machine, without Slurm
#
# It is launchers/pretrain.sh with other defaults, and takes the same settings: see its --help. DATA
# is required; CONFIG, in the environment or in launchers/site.env, names another config than
# configs/pretrain_h14.yaml.
#
# The log is logs/pretrain_h14-JOBID.out; under plain sbatch pretrain_h14-JOBID.out, where you
# called it: Slurm fails without a word where the log's folder is missing.

#SBATCH --job-name=pretrain_h14
#SBATCH --nodes=32
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

script=launchers/pretrain_h14.sh
verb=pretrain
default_config=configs/pretrain_h14.yaml
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
