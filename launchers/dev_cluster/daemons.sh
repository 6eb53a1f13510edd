# The daemons: their configuration, and how each is started.

node_port() {
  echo $((options[port] + 10 + $1))
}

write_configuration() {
  local number gpus=${options[gpus]}
  mkdir -p "$dir"/{etc,log,run/gpus,state/slurmctld}
  write_options
  fill_in slurm.conf
  echo "CgroupPlugin=cgroup/v1" >"$dir/etc/cgroup.conf"
  : >"$dir/etc/plugstack.conf" # else Slurm reads that of /etc
  for number in $(seq 0 $((gpus - 1))); do
    ln -s /dev/null "$dir/run/gpus/$number" # Slurm wants a device for each
  done
  echo "AutoDetect=off" >"$dir/etc/gres.conf"
  echo "Name=gpu Type=h100 File=$dir/run/gpus/[0-$((gpus - 1))]" >>"$dir/etc/gres.conf"
  (umask 077 && head -c 1024 /dev/urandom >"$dir/etc/munge.key")
}

# Writes a file of DIR/etc from the one with .in beside this script.
fill_in() {
  local name text
  local -A values=(
    [DIR]=$dir [HOST]=$(hostname -s) [CONTROLLER_ADDRESS]=$(controller_address)
    [CONTROLLER_PORT]=${options[port]} [ACCOUNTING_PORT]=$(accounting_port)
    [ACCOUNTING]=$(accounting_storage)
    [NODES]=${options[nodes]} [CPUS]=${options[cpus]} [GPUS]=${options[gpus]}
    [NODE_HOSTS]=$(node_hosts) [NODE_ADDRESSES]=$(node_addresses)
    [NODE_PORTS]=$(node_port 1)-$(node_port "${options[nodes]}")
    [NODE_TIMEOUT]=${options[node-timeout]} [KILL_WAIT]=${options[kill-wait]}
  )
  text=$(<"$parts/$1.in")
  for name in "${!values[@]}"; do text=${text//@$name@/"${values[$name]}"}; done
  echo "$text" >"$dir/etc/$1"
}

start_daemons() {
  local number
  # --force: munged minds who may write to the folders above DIR, such as /tmp.
  start munged munged --force --key-file="$dir/etc/munge.key" --socket="$dir/run/munge.socket" \
    --pid-file="$dir/run/munged.pid" --seed-file="$dir/run/munged.seed" \
    --log-file="$dir/log/munged.log"
  if has accounting; then start_accounting; fi
  start slurmctld slurmctld -f "$SLURM_CONF"
  wait_for slurmctld scontrol ping
  for ((number = 1; number <= options[nodes]; number++)); do start_node "n$number"; done
  wait_for slurmd all_nodes_idle
}

start_node() {
  start "slurmd-$1" on_node "$1" slurmd -N "$1" -f "$SLURM_CONF"
}

# Starts a daemon, which goes into the background and keeps nothing of the caller's open.
start() {
  local name=$1
  shift
  "$@" </dev/null >>"$dir/log/$name.log" 2>&1 || refuse_start "$name"
}

wait_for() {
  local name=$1
  shift
  wait_until 30 "$@" || refuse_start "$name"
}

refuse_start() {
  fail "$1 has not started: see $dir/log" 1
}

all_nodes_idle() {
  (($(sinfo --noheader --partition=gpu --responding --states=idle --format=%D) == options[nodes]))
}

listens() {
  (exec 3<>"/dev/tcp/$1/$2") 2>/dev/null
}
