# What happens on the login node.

# One process finds a mistake here, before every rank would report it.
check_config() {
  local words nodes tasks
  read -r -a words <<<"${PREFIX:-} $python"
  type -P "${words[0]}" >/dev/null ||
    fail "no ${words[0]}: python3 -m venv .venv && .venv/bin/pip install -e ., or set PYTHON"
  use_snapshot
  nodes=$(asked_number nodes)
  tasks=$(asked_number ntasks-per-node)
  resolve_config $((nodes * tasks))
}

trap 'rm -rf "$job_folder" "$job_folder.new"' EXIT # unless it is submitted
take_snapshot
[[ ${CHECK:-1} != 1 ]] || check_config
type -P sbatch >/dev/null ||
  fail "no sbatch here: call it on a cluster's login node, or take launchers/local.sh"
# Without it, Slurm ends a job that loses a node.
[[ -z ${MIN_NODES:-} ]] || options=(--no-kill "${options[@]}")
sbatch --output=logs/%x-%j.out "${options[@]}" "$script" "--job-folder=$job_folder"
trap - EXIT
