# What pretrain.sh and pretrain_h14.sh share: they stand in the project's root, and set $script,
# $default_config and $code, where this file lies. On the login node a job is submitted, in the job
# the run is trained.

fail() {
  echo "$script: $1" >&2
  exit "${2:-2}"
}

project=$PWD
# shellcheck source=launchers/job/arguments.sh
source "$code/launchers/job/arguments.sh"
parse_arguments "$@"
# shellcheck source=launchers/job/settings.sh
source "$code/launchers/job/settings.sh"
# shellcheck source=launchers/job/snapshot.sh
source "$code/launchers/job/snapshot.sh"
if [[ -z ${SLURM_JOB_ID:-} ]]; then
  # shellcheck source=launchers/job/submission.sh
  source "$code/launchers/job/submission.sh"
else
  # shellcheck source=launchers/job/training.sh
  source "$code/launchers/job/training.sh"
fi
