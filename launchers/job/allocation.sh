# The job's allocation, as Slurm sees it and as its log tells.

# Sleeps, or until a signal comes.
pause() {
  sleep "$1" &
  wait "$!" || kill "$!" 2>/dev/null || true
}

# Whether Slurm leaves the job the nodes of this incarnation.
is_running() {
  local state
  until state=$(squeue --noheader --jobs="$SLURM_JOB_ID" --Format=State:20,RestartCnt:10); do
    pause 10 # Slurm's controller is away for a while
  done
  [[ $(xargs <<<"$state") == "RUNNING $incarnation" ]]
}

say() {
  echo "job $SLURM_JOB_ID: $1"
}
