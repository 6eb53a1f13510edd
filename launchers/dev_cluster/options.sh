# What the command line says: a command, a node where it takes one, and options.

command=""
node=""
dir=$project/build/dev_cluster
purge=no
declare -A given=()
declare -A options=(
  [nodes]=4 [cpus]=64 [gpus]=8 [port]=16800 [kill-wait]=5 [node-timeout]=10
  [namespaces]=no [accounting]=no
)

parse_arguments() {
  local argument name value words=()
  for argument in "$@"; do
    name=${argument%%=*} name=${name#--} value=${argument#*=}
    case $argument in
      --dir=?*) dir=$(realpath --canonicalize-missing "$value") ;;
      --purge) purge=yes ;;
      --namespaces | --accounting) given[$name]=yes ;;
      --nodes=* | --cpus=* | --gpus=* | --port=* | --kill-wait=* | --node-timeout=*)
        [[ $value =~ ^[1-9][0-9]{0,4}$ ]] || fail "$argument: expected a whole number, at least 1"
        given[$name]=$value
        ;;
      -*) fail "no option $argument; they are written --name=value, --help lists them" ;;
      *) words+=("$argument") ;;
    esac
  done
  ((${#words[@]} <= 2)) || fail "${words[2]} is one word too many; --help says more"
  command=${words[0]:-} node=${words[1]:-}
  [[ -z $node || $command == *-node ]] || fail "$node is one word too many; --help says more"
  [[ $command == up || ${#given[@]} == 0 ]] || fail "${!given[*]}: only up takes this"
  # Slurm's configuration takes no other characters; the path of a socket ends at 107.
  [[ $dir =~ ^[A-Za-z0-9/._+-]{1,85}$ ]] ||
    fail "--dir=$dir: expected at most 85 letters, digits and / . _ + -"
}

has() {
  [[ ${options[$1]} == yes ]]
}

# The options of the cluster that lives in DIR, where one does.
read_options() {
  local name value
  [[ -f $dir/options ]] || return 0
  while IFS='=' read -r name value; do options[$name]=$value; done <"$dir/options"
}

choose_options() {
  local name
  for name in "${!given[@]}"; do options[$name]=${given[$name]}; done
  ((options[nodes] <= 200)) || fail "--nodes=${options[nodes]}: expected at most 200"
  local last_port=$((65525 - options[nodes]))
  ((options[port] >= 1024 && options[port] <= last_port)) ||
    fail "--port=${options[port]}: expected 1024 to $last_port"
}

write_options() {
  local name
  for name in "${!options[@]}"; do echo "$name=${options[$name]}"; done >"$dir/options"
}

refuse_other_options() {
  local name
  for name in "${!given[@]}"; do
    [[ ${given[$name]} == "${options[$name]}" ]] ||
      fail "$dir is up with $name=${options[$name]}, not ${given[$name]}: call down first"
  done
}

# `down` removes what `up` has made: DIR must hold nothing else.
refuse_other_files() {
  [[ -f $dir/options || -z $(ls -A "$dir" 2>/dev/null) ]] ||
    fail "--dir=$dir holds other files: expected a new directory, or a cluster's"
  mkdir -p "$dir" 2>/dev/null || fail "--dir=$dir: no directory can be made there"
}

refuse_taken_ports() {
  local port ports=("${options[port]}")
  if has accounting; then ports+=("$(accounting_port)"); fi
  if has namespaces; then
    refuse_taken_subnet
  else
    mapfile -t -O ${#ports[@]} ports < <(seq "$(node_port 1)" "$(node_port "${options[nodes]}")")
  fi
  for port in "${ports[@]}"; do
    ! listens 127.0.0.1 "$port" || fail "port $port is taken: choose others with --port"
  done
}

require_packages() {
  local program programs=(munged slurmctld slurmd srun)
  local packages="munge slurmctld slurmd slurm-client"
  if has namespaces; then packages+=" iproute2" programs+=(ip); fi
  if has accounting; then packages+=" slurmdbd mariadb-server-core" programs+=(slurmdbd mariadbd); fi
  for program in "${programs[@]}"; do
    type -P "$program" >/dev/null ||
      fail "no $program here: apt-get install -y --no-install-recommends $packages"
  done
}
