#!/usr/bin/env bash
# Pretrains Mixer-H/14 on a Slurm cluster. Run it again to go on from the newest checkpoint.
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
# Settings, from the environment or from launchers/site.env (see site.env.example):
#   DATA          URL of the training data's manifest.json, or several with spaces between; required
#   NUM_CLASSES   classes of these data, if other than the config's
#   RUN_DIR       where the run lives: a directory that all nodes share, or a URL; the config's
#   CONFIG        another config; configs/pretrain_h14.yaml
#   MIXER_DIST    how nodes call mixer-dist; .venv/bin/mixer-dist of this project
#   PREFIX        words before it, such as "apptainer exec --nv image.sif"; none
#   SRUN_OPTIONS  more options for srun, such as "--container-image=image.sqsh"; none
#   CHECK         0 leaves out the check of the config, where only compute tasks have Python; 1
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
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

set -euo pipefail

fail() {
  echo "launchers/pretrain_h14.sh: $1" >&2
  exit 2
}

# A YAML string: overrides are read as YAML, where an unquoted URL or path may mean something else.
quoted() {
  local quote="'"
  echo "$quote${1//$quote/$quote$quote}$quote"
}

# The value of an sbatch option among the arguments, else the one at the top of this file.
sbatch_option() {
  local name=$1 value argument
  shift
  value=$(sed -n "s/^#SBATCH --$name=//p" launchers/pretrain_h14.sh)
  for argument in "$@"; do
    [[ $argument == "--$name="* ]] && value=${argument#*=}
  done
  echo "$value"
}

for argument in "$@"; do
  if [[ $argument == -h || $argument == --help ]]; then
    sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
    exit 0
  fi
done

# Slurm runs a copy of this file in its spool directory, so that $0 does not lead to the project.
if [[ -n ${SLURM_JOB_ID:-} ]]; then
  project=${SLURM_SUBMIT_DIR:?set by Slurm in every job}
  [[ -f $project/launchers/pretrain_h14.sh ]] ||
    fail "no launchers/pretrain_h14.sh in $project: call sbatch in the project's root"
else
  project=$(cd "$(dirname "$0")/.." && pwd)
fi
cd "$project"

# The environment wins over site.env, however its lines are written.
if [[ -f launchers/site.env ]]; then
  given=$(declare -p DATA NUM_CLASSES RUN_DIR CONFIG MIXER_DIST PREFIX SRUN_OPTIONS CHECK \
    2>/dev/null || true)
  set +eu # `module` and the activate scripts of environments do not bear strict mode
  # shellcheck source=/dev/null
  source launchers/site.env
  set -eu
  eval "$given"
fi

[[ -n ${DATA:-} ]] || fail "set DATA to the URL of the training data's manifest.json"

options=() # for sbatch
changes=() # for the config
for argument in "$@"; do
  if [[ $argument == -* ]]; then options+=("$argument"); else changes+=("$argument"); fi
done

read -r -d '' -a manifests <<<"$DATA" || true
entries=$(for url in "${manifests[@]}"; do echo "{manifest: $(quoted "$url")}"; done)
settings=("data.train=[${entries//$'\n'/, }]")
[[ -z ${NUM_CLASSES:-} ]] || settings+=("model.num_classes=$NUM_CLASSES")
[[ -z ${RUN_DIR:-} ]] || settings+=("run_dir=$(quoted "$RUN_DIR")")

read -r -a command <<<"${PREFIX:-}"
if [[ -n ${MIXER_DIST:-} ]]; then
  read -r -a words <<<"$MIXER_DIST"
  command+=("${words[@]}")
else
  command+=("$project/.venv/bin/mixer-dist")
fi
command+=(pretrain "${CONFIG:-configs/pretrain_h14.yaml}")
command+=("${settings[@]}" "${changes[@]}") # the last override wins

# One process finds a mistake in the config here, before every rank would report it.
check_config() {
  [[ ${CHECK:-1} == 1 ]] || return 0
  type -P "${command[0]}" >/dev/null ||
    fail "no ${command[0]}: python3 -m venv .venv && .venv/bin/pip install -e ., or set MIXER_DIST"
  "${command[@]}" --dry-run --world-size "$1"
}

if [[ -z ${SLURM_JOB_ID:-} ]]; then
  nodes=$(sbatch_option nodes "$@")
  tasks_per_node=$(sbatch_option ntasks-per-node "$@")
  check_config $((nodes * tasks_per_node))
  type -P sbatch >/dev/null ||
    fail "no sbatch here: call it on a cluster's login node, or take launchers/local.sh"
  mkdir -p logs
  exec sbatch --output=logs/%x-%j.out "${options[@]}" launchers/pretrain_h14.sh "${changes[@]}"
fi

# From here on in the job, on its first node.
((${#options[@]} == 0)) || fail "${options[0]} comes too late: sbatch options go before the script"
num_ranks=${SLURM_NTASKS:-1}
ranks_per_node=${SLURM_NTASKS_PER_NODE:-1}
gpus_per_node=${SLURM_GPUS_PER_NODE:-${SLURM_GPUS_ON_NODE:-0}} # the second under --gres=gpu:8
gpus_per_node=${gpus_per_node##*:}                              # without a type, as in h100:8
((gpus_per_node == 0 || ranks_per_node <= gpus_per_node)) ||
  fail "--ntasks-per-node=$ranks_per_node exceeds --gpus-per-node=$gpus_per_node: make them equal"
check_config "$num_ranks" >/dev/null

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000)) # below the ports that the system hands out
export MASTER_ADDR MASTER_PORT
# Each task takes its place from Slurm; what a torchrun around the submission left would hide it.
unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE
if [[ -n ${SLURM_CPUS_PER_TASK:-} ]]; then
  # srun no longer takes this from sbatch (since 22.05): the data threads would share one core.
  export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
  # Where Slurm binds no task to its cores, each would start a thread for every core of the node.
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$SLURM_CPUS_PER_TASK}
fi

read -r -a srun_words <<<"${SRUN_OPTIONS:-}"
echo "job $SLURM_JOB_ID: $num_ranks ranks on $SLURM_JOB_NUM_NODES nodes, rank 0 at" \
  "$MASTER_ADDR:$MASTER_PORT"
# A rank that dies must end the others, which wait for it in a collective; --export=ALL also where
# the site or the user has submitted with --export=NONE.
exec srun --kill-on-bad-exit=1 --export=ALL "${srun_words[@]}" "${command[@]}"
