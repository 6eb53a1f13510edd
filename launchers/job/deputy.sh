# Runs on another node than the job's shell. A job that may lose nodes (--no-kill) is not ended by
# Slurm where that of its shell is lost: it would stay, with nobody in it, until its time is over.
# The deputy has it requeued then.

requeue_without_host() {
  local host=$1 nodes
  while sleep "${DEPUTY_POLL_S:-15}"; do
    nodes=$(squeue --noheader --jobs="$SLURM_JOB_ID" --states=RUNNING --format=%N) || continue
    [[ -n $nodes ]] || return 0
    scontrol show hostnames "$nodes" | grep -qxF "$host" ||
      exec scontrol requeue "$SLURM_JOB_ID"
  done
}

requeue_without_host "$1"
