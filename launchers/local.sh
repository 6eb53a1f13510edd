#!/usr/bin/env bash
# Pretrains on this machine: a process for each GPU, or two on a machine without any.
#
#   launchers/local.sh configs/quickstart.yaml
#   launchers/local.sh configs/quickstart.yaml engine.name=ddp run_dir=runs/ddp
#   NPROC=4 launchers/local.sh configs/quickstart.yaml
#       on a cluster: launchers/pretrain.sh configs/quickstart.yaml
#
# Ctrl-C, SIGTERM or SIGUSR2 has it save once and end; the same command goes on. A second one drops
# that save.
#
# Settings, from the environment:
#   NPROC   processes; all GPUs, or 2 where there are none
#   VENV    the virtual environment that holds mixer-dist; .venv of this project
#
# Exit codes: those of mixer-dist pretrain, which torchrun turns into 1: 75 after a signal.

set -euo pipefail

fail() {
  echo "launchers/local.sh: $1" >&2
  exit 2
}

if [[ ${1:-} == -h || ${1:-} == --help ]]; then
  sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
  exit 0
fi
(($# > 0)) || fail "give a config, such as configs/quickstart.yaml; --help says more"

project=$(cd "$(dirname "$0")/.." && pwd)
venv=${VENV:-$project/.venv}
[[ -x $venv/bin/mixer-dist ]] ||
  fail "no $venv/bin/mixer-dist: python3 -m venv .venv && .venv/bin/pip install -e ., or set VENV"

# shellcheck source=launchers/job/ranks.sh
source "$project/launchers/job/ranks.sh"
trap ask_to_stop USR2 TERM INT

# torchrun itself is to hear none of these signals, hence a session of its own, out of the terminal's
# reach: it would not leave the ranks the time to save.
# shellcheck disable=SC2329 # called by ask_to_stop
signal_ranks() {
  pkill -USR2 -P "$ranks_pid"
}

num_gpus=$("$venv/bin/python" -c 'import torch; print(torch.cuda.device_count())')
num_processes=${NPROC:-$((num_gpus > 0 ? num_gpus : 2))}

# One process finds a mistake in the config here, before every rank would report it.
"$venv/bin/mixer-dist" pretrain "$@" --dry-run --world-size "$num_processes" >/dev/null

# torchrun would set 1, which leaves most cores of a CPU machine idle.
num_cores=$(getconf _NPROCESSORS_ONLN)
num_threads=$((num_cores > num_processes ? num_cores / num_processes : 1))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$num_threads}

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
exit_file=$folder/exit.json
# A free port, and the loopback address: a laptop's own name often does not resolve.
run_ranks setsid "$venv/bin/python" "$project/launchers/local_ranks.py" \
  --standalone --local-addr=127.0.0.1 --nproc-per-node="$num_processes" \
  -m mixer_dist pretrain "$@" --exit-file "$exit_file"
exit "$(exit_code)"
