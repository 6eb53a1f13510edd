# The cluster's processes, found by what they hold: pid files are stale after a crash.

# Pids of the programs of Slurm, munge and MariaDB that have log/NAME.log open; a name may be a glob.
daemon_pids() {
  local pid
  { find /proc/[0-9]*/fd -lname "$dir/log/$1.log*" -printf '%h\n' 2>/dev/null || true; } |
    cut -d / -f 3 | sort --unique | while read -r pid; do
    case $(readlink "/proc/$pid/exe") in
      */munged* | */slurm* | */mariadbd*) echo "$pid" ;;
    esac
  done
}

# Pids of processes whose environment names this cluster: what its jobs run, and who uses it.
user_pids() {
  { grep --null-data --line-regexp --fixed-strings --files-with-matches \
    "SLURM_CONF=$SLURM_CONF" /proc/[0-9]*/environ 2>/dev/null || true; } | cut -d / -f 3
}

# Pids of what jobs run on a node (a pattern).
task_pids() {
  local pid
  for pid in $(user_pids); do
    ! grep --null-data --line-regexp --quiet "SLURMD_NODENAME=$1" "/proc/$pid/environ" 2>/dev/null ||
      echo "$pid"
  done
}

srun_pids() {
  local pid
  for pid in $(user_pids); do
    [[ $(readlink "/proc/$pid/exe") != */srun ]] || echo "$pid"
  done
}

# These processes and all that descend from them.
with_children() {
  local pid
  for pid in "$@"; do
    echo "$pid"
    # shellcheck disable=SC2046 # a word for each child
    with_children $(cat "/proc/$pid/task/"*/children 2>/dev/null)
  done
}

# Pids of a node: its slurmd, the slurmstepd of each job step, and what they run, also where that
# has cleared its environment.
node_pids() {
  # shellcheck disable=SC2046 # a word for each pid
  with_children $(daemon_pids "slurmd-$1") $(task_pids "$1") | sort --unique
}

# Pids of all nodes, of the daemons, and of each srun, which waits even for a cluster that is gone.
cluster_pids() {
  # shellcheck disable=SC2046 # a word for each pid
  with_children $(daemon_pids '*') $(task_pids '.*') $(srun_pids) | sort --unique
}

lists_none() {
  [[ -z $("$@") ]]
}

# Sends a signal to the pids that a command lists.
signal() {
  local name=$1 pid
  shift
  for pid in $("$@"); do
    kill -s "$name" "$pid" 2>/dev/null || true # it may have ended since
  done
}

# Kills what a command lists, and what that has started meanwhile.
kill_all() {
  wait_until 10 killed "$@" ||
    fail "these processes survive SIGKILL: $("$@" | xargs)" 1
}

killed() {
  signal KILL "$@"
  lists_none "$@"
}

# Waits so many seconds for a command to succeed.
wait_until() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    ((SECONDS <= deadline)) || return 1
    sleep 0.05
  done
}
