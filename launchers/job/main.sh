# What pretrain.sh, pretrain_h14.sh and eval_pool.sh share: they stand in the project's root, and set
# $script, $verb, $default_config and $code, where this file lies. On the login node a job is
# submitted; what happens in it lies in the file that is called like the verb.

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
  # shellcheck source=launchers/job/pretrain.sh
  source "$code/launchers/job/$verb.sh"
fi
