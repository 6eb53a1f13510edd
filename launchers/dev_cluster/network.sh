# Addresses of the nodes: the loopback one for all, or a network namespace for each.
#
# A namespace has a cable (veth) to one bridge, and its own /etc/hosts: `ip netns exec` mounts
# /etc/netns/NAME/hosts over it. All names begin with $tag, so that DIR alone finds them again.

# The network 198.18.0.0/15 is set aside for tests of networks (RFC 2544): no site uses it.
subnet() {
  echo "198.$((18 + options[port] / 256 % 2)).$((options[port] % 256))"
}

controller_address() {
  if has namespaces; then echo "$(subnet).1"; else echo 127.0.0.1; fi
}

# What Slurm knows of all nodes, in its own notation.
node_hosts() {
  if has namespaces; then echo "n[1-${options[nodes]}]"; else hostname -s; fi
}

node_addresses() {
  if has namespaces; then echo "$(subnet).[11-$((10 + options[nodes]))]"; else echo 127.0.0.1; fi
}

node_address() {
  if has namespaces; then echo "$(subnet).$((10 + $1))"; else echo 127.0.0.1; fi
}

host_lines() {
  local number
  for ((number = 1; number <= options[nodes]; number++)); do
    echo "$(node_address "$number") n$number"
  done
}

refuse_taken_subnet() {
  [[ -z $(ip -4 -oneline address show to "$(subnet).0/24") ]] ||
    fail "the network $(subnet).0/24 is taken: choose another with --port"
  unshare --net --uts --mount true 2>/dev/null ||
    fail "this machine permits no network namespaces: leave out --namespaces"
}

# Makes the names of the nodes resolve: MASTER_ADDR is one of them.
network_up() {
  if ! has namespaces; then
    edit_etc_hosts "$(host_lines | sed "s|\$| # dev_cluster ($dir)|")"
    return
  fi
  local number
  ip link add "$tag" type bridge
  ip address add "$(subnet).1/24" dev "$tag"
  ip link set "$tag" up
  for ((number = 1; number <= options[nodes]; number++)); do add_namespace "$number"; done
}

add_namespace() {
  local namespace=$tag-n$1
  mkdir -p "/etc/netns/$namespace"
  { echo "127.0.0.1 localhost" && echo "$(subnet).1 $(hostname -s)" && host_lines; } \
    >"/etc/netns/$namespace/hosts"
  ip netns add "$namespace"
  ip link add "$tag-$1" type veth peer name eth0 netns "$namespace"
  ip link set "$tag-$1" master "$tag" up
  ip -n "$namespace" address add "$(node_address "$1")/24" dev eth0
  ip -n "$namespace" link set eth0 up
  ip -n "$namespace" link set lo up
}

network_down() {
  local namespace link
  [[ ! -w /etc/hosts ]] || edit_etc_hosts ""
  for link in /sys/class/net/"$tag"*; do
    [[ ! -e $link ]] || ip link delete "${link##*/}"
  done
  for namespace in /run/netns/"$tag"-*; do
    [[ ! -e $namespace ]] || ip netns delete "${namespace##*/}"
  done
  rm -rf /etc/netns/"$tag"-*
  rmdir --ignore-fail-on-non-empty /etc/netns 2>/dev/null || true
}

# Replaces the lines of this cluster. The file is written in place, as containers mount it.
edit_etc_hosts() {
  local lock lines
  exec {lock}</etc/hosts
  flock "$lock" # other clusters go up and down
  lines=$(grep --invert-match --fixed-strings "# dev_cluster ($dir)" /etc/hosts || true)
  lines+=${1:+$'\n'$1}
  [[ $lines == "$(</etc/hosts)" ]] || echo "$lines" >/etc/hosts
  exec {lock}<&-
}

# Runs a command where the node is: in its namespace and under its name, or right here.
on_node() {
  local node=$1
  shift
  if has namespaces; then
    # shellcheck disable=SC2016 # the inner shell expands these
    set -- ip netns exec "$tag-$node" unshare --uts sh -c 'hostname "$0" && exec "$@"' "$node" "$@"
  fi
  "$@"
}

# up or down: packets of a node whose cable is down vanish without an error.
set_cable() {
  has namespaces || fail "$1 has no cable: only nodes of up --namespaces have"
  ip link set "$tag-${1#n}" "$2"
}
