#!/usr/bin/env bash
# A real Slurm on this machine, for those without a cluster at hand: munge, slurmctld and a slurmd
# for each of its nodes, which claim CPUs and GPUs that need not exist. Debian, as root.
#
#   launchers/dev_cluster.sh up
#       starts it within seconds, in build/dev_cluster; then, in the same shell:
#   eval "$(launchers/dev_cluster.sh env)"
#   srun --nodes=2 hostname
#   launchers/pretrain.sh configs/quickstart.yaml --nodes=2 --ntasks-per-node=1
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
#   --node-timeout=10   seconds until a silent node is given up; its jobs wait about thrice as long
#   --namespaces        an address and a host name for each node, in a network namespace; what is
#                       mounted later is not seen there
#   --accounting        slurmdbd and MariaDB, so that sacct works

set -euo pipefail

project=$(cd "$(dirname "$0")/.." && pwd)
parts=$project/launchers/dev_cluster
PATH=$PATH:/usr/sbin:/sbin # which a login shell of root may lack
# shellcheck source=launchers/dev_cluster/options.sh
source "$parts/options.sh"
# shellcheck source=launchers/dev_cluster/processes.sh
source "$parts/processes.sh"
# shellcheck source=launchers/dev_cluster/network.sh
source "$parts/network.sh"
# shellcheck source=launchers/dev_cluster/daemons.sh
source "$parts/daemons.sh"
# shellcheck source=launchers/dev_cluster/accounting.sh
source "$parts/accounting.sh"

fail() {
  echo "launchers/dev_cluster.sh: $1" >&2
  exit "${2:-2}"
}

up() {
  if is_up; then
    refuse_other_options
  else
    choose_options
    require_packages
    refuse_other_files
    remove_cluster # what a crash may have left
    refuse_taken_ports
    trap remove_cluster EXIT # whatever stops it from here on
    write_configuration
    network_up
    start_daemons
    trap - EXIT
  fi
  echo "n1 to n${options[nodes]} are up; in this shell: eval \"\$($0 env --dir=$dir)\""
}

down() {
  if is_up; then cancel_jobs; fi
  remove_cluster
  [[ $purge == no || ! -f $dir/options ]] || rm -rf "$dir/log" "$dir/options"
  rmdir --ignore-fail-on-non-empty "$dir" 2>/dev/null || true
}

# Jobs end as users see it: SIGTERM, and SIGKILL after --kill-wait. Frozen nodes take part again.
cancel_jobs() {
  signal CONT cluster_pids
  timeout 10 squeue --noheader --format=%A 2>/dev/null | xargs -r timeout 10 scancel || true
  wait_until $((${options[kill-wait]} + 2)) lists_none task_pids '.*' || true
}

# Needs no record of what was started, as a crash may leave none.
remove_cluster() {
  kill_all cluster_pids
  network_down
  [[ ! -f $dir/options ]] || rm -rf "${dir:?}"/{etc,run,state}
}

print_env() {
  echo "export SLURM_CONF=$SLURM_CONF"
}

print_status() {
  local pid
  for pid in $(daemon_pids '*'); do echo "$pid $(tr '\0' ' ' <"/proc/$pid/cmdline")"; done
  timeout 10 sinfo
  timeout 10 squeue
}

kill_node() {
  kill_all node_pids "$1"
}

restart_node() {
  kill_node "$1"
  start_node "$1"
}

freeze_node() {
  signal STOP node_pids "$1"
  signal STOP node_pids "$1" # what was stopped last may have started another meanwhile
}

thaw_node() {
  signal CONT node_pids "$1"
}

cut_node() {
  set_cable "$1" down
}

join_node() {
  set_cable "$1" up
}

# Without a slurmctld it is what a crash has left, for `up` and `down` to remove.
is_up() {
  [[ -f $SLURM_CONF && -n $(daemon_pids slurmctld) ]]
}

require_up() {
  is_up || fail "no cluster is up in $dir: launchers/dev_cluster.sh up --dir=$dir starts one" 1
}

require_node() {
  [[ $1 =~ ^n[1-9][0-9]{0,2}$ && ${1#n} -le ${options[nodes]} ]] ||
    fail "${1:-no node}: expected one of n1 to n${options[nodes]}"
}

if [[ " $* " == *" -h "* || " $* " == *" --help "* ]]; then
  sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
  exit 0
fi
((EUID == 0)) || fail "expected root, as Slurm's daemons need it: sudo launchers/dev_cluster.sh"
parse_arguments "$@"
export SLURM_CONF=$dir/etc/slurm.conf
tag=dc$(printf '%08x' "$(cksum <<<"$dir" | cut -d ' ' -f 1)") # names of links: 15 characters
if is_up; then read_options; fi

case $command in
  up | down) "$command" ;;
  status | env)
    require_up
    "print_$command"
    ;;
  kill-node | restart-node | freeze-node | thaw-node | cut-node | join-node)
    require_up
    require_node "$node"
    "${command/-/_}" "$node"
    ;;
  *) fail "${command:-no command}: expected up, down, status, env or what happens to a node; --help lists all" ;;
esac
