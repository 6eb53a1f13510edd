# Finds the cluster's processes by what they hold: pid files are stale after a crash.

# Pids of the programs of Slurm, munge and MariaDB that have log/NAME.log open; a name may be a glob.
daemon_pids() {
  local pid
  { find /proc/[0-9]*/fd -lname "$dir/log/$1.log*" -printf '%h\n' 2>/dev/null || true; } |
    cut -d / -f 3 | sort -un | while read -r pid; do
    case $(readlink "/proc/$pid/exe") in
      */munged* | */slurm* | */mariadbd*) echo "$pid" ;;
    esac
  done
}

# Pids of what jobs run on a node, or on all: the environment names the cluster and the node.
task_pids() {
  local environments
  mapfile -t environments < <(
    grep --null-data --line-regexp --fixed-strings --files-with-matches \
      "SLURM_CONF=$SLURM_CONF" /proc/[0-9]*/environ 2>/dev/null
  )
  ((${#environments[@]} > 0)) || return 0
  { grep --null-data --line-regexp --files-with-matches "SLURMD_NODENAME=${1:-.*}" \
    "${environments[@]}" 2>/dev/null || true; } | cut -d / -f 3
}

# A process and all that descend from it: tasks that cleared their environment too.
with_children() {
  local child
  echo "$1"
  for child in $(cat "/proc/$1/task/"*/children 2>/dev/null); do with_children "$child"; done
}

# Pids of a node: its slurmd, the slurmstepd of each job step, and what they run.
node_pids() {
  local pid
  for pid in $(daemon_pids "slurmd-$1") $(task_pids "$1"); do with_children "$pid"; done | sort -un
}

cluster_pids() {
  local pid
  for pid in $(daemon_pids '*') $(task_pids); do with_children "$pid"; done | sort -un
}

# Sends a signal to the pids that a command lists; succeeds where it lists none.
signal() {
  local number=$1 pid found=0
  shift
  for pid in $("$@"); do
    found=1
    kill -s "$number" "$pid" 2>/dev/null || true # it may have ended since
  done
  ((found == 0))
}

lists_none() {
  [[ -z $("$@") ]]
}

# Kills what a command lists, and what that has started meanwhile.
kill_all() {
  wait_until 10 signal KILL "$@"
}

wait_until() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < deadline)) || return 1
    sleep 0.1
  done
}
