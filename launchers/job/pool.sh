# What happens in a job that watches runs: one process, whose workers are jobs of their own.

# shellcheck source=launchers/job/ranks.sh
source "$code/launchers/job/ranks.sh"
# shellcheck source=launchers/job/environment.sh
source "$code/launchers/job/environment.sh"
# shellcheck source=launchers/job/allocation.sh
source "$code/launchers/job/allocation.sh"

exit_file=$job_folder/exit-$incarnation.json # how the pool has ended

# shellcheck disable=SC2329 # called by ask_to_stop
signal_ranks() {
  kill -TERM "$ranks_pid"
}

# A pool that is killed knows at its next start what it did: all of that lies in the run directory.
watch() {
  local prefix try
  read -r -a prefix <<<"${PREFIX:-}"
  for ((try = 1; try <= ${TRIES:-3}; try++)); do
    run_ranks "${prefix[@]}" "$python" -m mixer_dist pool "$job_folder/resolved.yaml" \
      --exit-file "$exit_file"
    [[ ! -f $exit_file && $asked_to_stop == no ]] || break
    say "the pool was killed: it starts again"
    pause "${RETRY_S:-30}"
  done
}

trap ask_to_stop USR2 TERM
refuse_lost_options
take_snapshot
use_snapshot
resolve_config 1
watch
code=$(exit_code)
if ((code == 75)) && is_running; then
  say "stopped: requeued"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
