#!/usr/bin/env bash
# A real Slurm on this machine, for those without a cluster at hand: munge, slurmctld and a slurmd
# for each of its nodes, which claim CPUs and GPUs that need not exist. Debian, as root.
#
#   launchers/dev_cluster.sh up
#       starts it within seconds, in build/dev_cluster; then, in the same shell:
#   eval "$(launchers/dev_cluster.sh env)"
#   srun --nodes=2 hostname
#   DATA=... launchers/pretrain_h14.sh --nodes=2 --ntasks-per-node=1 engine.precision=fp32
#   launchers/dev_cluster.sh kill-node n2
#       a node fails: what becomes of the job?
#   launchers/dev_cluster.sh down
#       ends everything, also after a crash; logs stay in DIR/log
#   launchers/local.sh configs/quickstart.yaml
#       the laptop form: a small run on this machine, without Slurm
#
# Commands:
#   up                  start; what is up with the same options stays as it is
#   down                cancel all jobs and end all processes; remove all but logs
#   status              processes, nodes and jobs; exit code 1 where it is not up
#   env                 what `eval` needs for srun, sbatch and the others to find this cluster
#   kill-node NODE      SIGKILL for all that runs on it: power is lost
#   restart-node NODE   the same, and it starts anew
#   freeze-node NODE    SIGSTOP: the node hangs, and its connections stay open
#   thaw-node NODE      SIGCONT
#   cut-node NODE       unplug its network cable, with --namespaces
#   join-node NODE      plug it in again
#
# Options:
#   --dir=DIR           where it lives; build/dev_cluster of this project
#   --purge             down: remove the logs as well
# Options of up, which DIR remembers:
#   --nodes=4           n1, n2, ... in the partitions gpu and low; gpu preempts and requeues low
#   --cpus=64           claimed by each node
#   --gpus=8            claimed by each node, of type h100
#   --port=16800        this one and those up to 10 + nodes above it; clusters need their own
#   --kill-wait=5       seconds from SIGTERM to SIGKILL
#   --node-timeout=10   seconds of silence after which Slurm gives up a node
#   --namespaces        an address and a host name for each node, in a network namespace
#   --accounting        slurmdbd and MariaDB, so that sacct works

set -euo pipefail

project=$(cd "$(dirname "$0")/.." && pwd)
PATH=$PATH:/usr/sbin:/sbin
for part in options processes network daemons accounting; do
  # shellcheck source=/dev/null
  source "$project/launchers/dev_cluster/$part.sh"
done

fail() {
  echo "launchers/dev_cluster.sh: $1" >&2
  exit "${2:-2}"
}

up() {
  if is_up; then refuse_other_options; else start_cluster; fi
  echo "${options[nodes]} nodes are up; in this shell: eval \"\$($0 env --dir=$dir)\""
}

is_up() {
  [[ -n $(daemon_pids slurmctld) ]]
}

start_cluster() {
  remove_cluster
  choose_options
  require_root_and_packages
  refuse_other_files
  refuse_taken_ports
  trap remove_cluster EXIT # an interrupt, or what did not start
  write_configuration
  network_up
  start_daemons
  trap - EXIT
}

down() {
  cancel_jobs
  remove_cluster
  [[ $purge == no || ! -f $dir/options ]] || rm -rf "$dir/log" "$dir/options"
  rmdir --ignore-fail-on-non-empty "$dir" 2>/dev/null || true
}

# As users see it: SIGTERM, and SIGKILL after --kill-wait. Nodes that hang go on, to take part.
cancel_jobs() {
  signal CONT cluster_pids || true
  is_up || return 0
  timeout 10 squeue --noheader --format=%A 2>/dev/null | xargs -r timeout 10 scancel || true
  wait_until "$((options[kill-wait] + 2))" lists_none task_pids || true
}

# Works without any record of what was started, as after a crash.
remove_cluster() {
  kill_all cluster_pids || fail "SIGKILL does not end these processes: $(cluster_pids | xargs)" 1
  network_down
  [[ ! -f $dir/options ]] || rm -rf "${dir:?}"/{etc,run,state}
}

status() {
  local pid
  is_up || fail "no cluster is up in $dir" 1
  for pid in $(daemon_pids '*'); do echo "$pid $(tr '\0' ' ' <"/proc/$pid/cmdline")"; done
  timeout 10 sinfo
  timeout 10 squeue
}

env() {
  is_up || fail "no cluster is up in $dir" 1
  echo "export SLURM_CONF=$SLURM_CONF"
}

kill_node() {
  kill_all node_pids "$1" || fail "SIGKILL does not end these processes: $(node_pids "$1" | xargs)" 1
}

restart_node() {
  kill_node "$1"
  start_node "$1"
}

# Twice: what was stopped last may have started a process meanwhile.
freeze_node() {
  signal STOP node_pids "$1" || signal STOP node_pids "$1" || true
}

thaw_node() {
  signal CONT node_pids "$1" || true
}

cut_node() {
  set_cable "$1" down
}

join_node() {
  set_cable "$1" up
}

require_node() {
  is_up || fail "no cluster is up in $dir" 1
  [[ $1 =~ ^n[1-9][0-9]*$ && ${1#n} -le ${options[nodes]} ]] ||
    fail "${1:-no node}: expected a node, n1 to n${options[nodes]}"
}

if [[ " $* " == *" -h "* || " $* " == *" --help "* ]]; then
  sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
  exit 0
fi
parse_arguments "$@"
command=${words[0]:-}
export SLURM_CONF=$dir/etc/slurm.conf
tag=dc$(printf '%08x' "$(cksum <<<"$dir" | cut -d ' ' -f 1)")
if is_up; then read_options; fi

case $command in
  up | down | status | env) "$command" ;;
  kill-node | restart-node | freeze-node | thaw-node | cut-node | join-node)
    require_node "${words[1]:-}"
    "${command/-/_}" "${words[1]}"
    ;;
  *) fail "${command:-no command}: expected up, down, status or env; --help says more" ;;
esac
