# What ranks find on their nodes: where rank 0 is, cores, folders of their own.

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

# Runs a command on each node of the job, outside any container.
on_all_nodes() {
  srun --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --export=ALL "$@"
}

set_environment() {
  MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000)) # below the ports that the system hands out
  export MASTER_PORT
  # Each task takes its place from Slurm; what a torchrun around the submission left would hide it.
  unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE
  # Slurm takes a step that has lost a node for running, and would have the next one wait for it.
  export SLURM_OVERLAP=1
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

# Folders on the nodes themselves, for what is compiled and for the virtual environment: on a file
# system that they share, ranks would wait for each other's locks.
prepare_nodes() {
  local_folder=${TMPDIR:-/tmp}/mixer_dist-$(id -un)-$SLURM_JOB_ID
  trap clean_nodes EXIT
  export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$local_folder/triton}
  export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$local_folder/inductor}
  [[ -n ${VENV_TAR:-} ]] || return 0
  sbcast --force "$VENV_TAR" "$local_folder.tar"
  on_all_nodes sh -c "$UNPACK" "$local_folder/venv" "$local_folder.tar"
  python=$local_folder/venv/bin/python
}

# A rank that dies while it compiles leaves a lock, at which the next one would wait for ever.
use_new_extensions_folder() {
  export TORCH_EXTENSIONS_DIR=$local_folder/extensions-$1
}

clean_nodes() {
  timeout 60 srun --quiet --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
    rm -rf "$local_folder" "$local_folder.tar" 2>/dev/null ||
    rm -rf "$local_folder" "$local_folder.tar" # Slurm starts nothing more: this node at least
}
