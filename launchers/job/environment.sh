# What ranks find on their nodes: where rank 0 is, cores, folders of their own.

# A job keeps its number when it is requeued; a shell of an earlier allocation may come back to life.
incarnation=${SLURM_RESTART_COUNT:-0}
ranks_per_node=$((${SLURM_NTASKS:-1} / ${SLURM_JOB_NUM_NODES:-1}))

refuse_wrong_tasks() {
  [[ ${SLURM_TASKS_PER_NODE:-} != *,* ]] ||
    fail "nodes with $SLURM_TASKS_PER_NODE tasks: expected as many on each, by --ntasks-per-node"
  local gpus_per_node=${SLURM_GPUS_PER_NODE:-${SLURM_GPUS_ON_NODE:-0}} # the second: --gres=gpu:8
  gpus_per_node=${gpus_per_node##*:}                                    # without a type, as h100:8
  ((gpus_per_node == 0 || ranks_per_node <= gpus_per_node)) ||
    fail "--ntasks-per-node=$ranks_per_node exceeds --gpus-per-node=$gpus_per_node: make them equal"
}

# Runs a command as one task, where a container may be.
one_task() {
  local words
  read -r -a words <<<"${SRUN_OPTIONS:-}"
  srun --nodes=1 --ntasks=1 --ntasks-per-node=1 --export=ALL "${words[@]}" "$@"
}

# Runs a command on each node in use, outside any container, for so many seconds at most.
on_nodes() {
  local limit_s=$1
  shift
  timeout "$limit_s" srun --quiet --nodelist="$nodes" --nodes="$(count "$nodes")" --ntasks="$(count "$nodes")" \
    --ntasks-per-node=1 --export=ALL "$@"
}

set_environment() {
  # Each task takes its place from Slurm; what a torchrun around the submission left would hide it.
  unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE
  # Slurm takes a step that has lost a node for running, and would have the next one wait for it.
  export SLURM_OVERLAP=1
  # On the nodes themselves: on a file system that they share, ranks would wait for each other's locks.
  local_folder=${TMPDIR:-/tmp}/mixer_dist-$(id -un)-$SLURM_JOB_ID-$incarnation
  trap clean_nodes EXIT
  export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$local_folder/triton}
  export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$local_folder/inductor}
  [[ -n ${SLURM_CPUS_PER_TASK:-} ]] || return 0
  # srun no longer takes this from sbatch (since 22.05): the data threads would share one core.
  export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
  # Where Slurm binds no task to its cores, each would start a thread for every core of the node.
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$SLURM_CPUS_PER_TASK}
}

# Unpacks a tar whole or not at all; nodes that are one machine, as in a test, do so at once.
# shellcheck disable=SC2016 # the shell of a task expands these
UNPACK='mkdir -p "$0.$$" && tar -xf "$1" -C "$0.$$" || exit
  mv -T "$0.$$" "$0" 2>/dev/null || { rm -rf "$0.$$" && test -d "$0"; }'

# Puts the virtual environment on the nodes, once.
prepare_nodes() {
  [[ -n ${VENV_TAR:-} && ! -v prepared ]] || return 0
  timeout 600 sbcast --force "$VENV_TAR" "$local_folder.tar" &&
    on_nodes 600 sh -c "$UNPACK" "$local_folder/venv" "$local_folder.tar" || return
  python=$local_folder/venv/bin/python
  prepared=yes
}

# A rank that dies while it compiles leaves a lock, at which the next one would wait for ever.
use_new_extensions_folder() {
  export TORCH_EXTENSIONS_DIR=$local_folder/extensions-$1
}

# Each start has another, as a rank of the one before may still hold its own.
use_new_port() {
  export MASTER_PORT=$((10000 + (SLURM_JOB_ID + 7919 * $1) % 20000)) # below those of the system
}

clean_nodes() {
  on_nodes 60 rm -rf "$local_folder" "$local_folder.tar" 2>/dev/null ||
    rm -rf "$local_folder" "$local_folder.tar" # Slurm starts nothing more: this node at least
}
