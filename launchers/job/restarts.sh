# Starts the run until it is done: again in this allocation where its nodes answer, else in another.

exit_file=$job_folder/exit-$incarnation.json # how rank 0 has ended
starts=$job_folder/starts # a line for each start: the step that was committed last; "asked" to stop
log=$(readlink "/proc/$$/fd/2") # where srun tells what becomes of ranks
tries=${TRIES:-3}

train() {
  local is_ready
  note_lost_shells
  while :; do
    [[ $asked_to_stop == no ]] || requeue "asked to stop"
    is_ready=yes
    prepare_nodes || is_ready=no
    count_start
    [[ $is_ready == no ]] || start_and_judge
    if ! is_running; then note_failures "$(blamed_node)" && requeue "not done"; fi
    choose_nodes || requeue "fewer than $min_nodes nodes are left"
    say "starts again on $nodes"
  done
}

# Returns where the run is to be started again in this allocation.
start_and_judge() {
  start_ranks
  case $(exit_code) in
    0) exit 0 ;;
    75)
      sed -i '$s/$/ asked/' "$starts" # no fruitless start, whatever it has saved
      requeue "stopped"
      ;;
    3) exit 3 ;;
    # What is refused later than at the first start has worked before: storage may be down.
    2) (($(wc -l <"$starts") > 1)) || exit 2 ;;
  esac
}

# Refuses to go on for ever from the same step.
count_start() {
  local step num_fruitless
  step=$(run_python "$job_folder/launchers/job/newest_step.py" "$job_folder/resolved.yaml") ||
    step=$(tail -n 1 "$starts" 2>/dev/null | cut -d ' ' -f 1 || true)
  step=${step:-0}
  num_fruitless=$(tail -n "$tries" "$starts" 2>/dev/null | grep -cx "$step" || true)
  ((num_fruitless < tries)) ||
    fail "gave up: the last $tries starts went on from step $step and saved nothing" 1
  ((num_fruitless == 0)) || pause "${RETRY_S:-30}"
  echo "$step" >>"$starts"
}

start_ranks() {
  local prefix srun_options binding changes where=()
  read -r -a prefix <<<"${PREFIX:-}"
  read -r -a srun_options <<<"${SRUN_OPTIONS:-}"
  read -r -a binding <<<"${BINDING---cpu-bind=cores --distribution=block:block}"
  eval "changes=($(<"$job_folder/changes"))"
  [[ $nodes == "$all_nodes" ]] || where=(
    "--nodelist=$nodes" "--nodes=$(count "$nodes")" "--ntasks=$(($(count "$nodes") * ranks_per_node))"
  )
  use_new_extensions_folder "$(wc -l <"$starts")"
  use_new_port "$(wc -l <"$starts")"
  export MASTER_ADDR=${nodes%%,*}
  say "rank 0 at $MASTER_ADDR:$MASTER_PORT, $ranks_per_node ranks on each of $(count "$nodes") nodes"
  log_begin=$(stat --format=%s "$log" 2>/dev/null || echo 0)
  echo "$SLURMD_NODENAME" >"$running-$incarnation"
  start_deputy
  # A rank that dies must end the others, which wait for it in a collective; --export=ALL also where
  # the site or the user has submitted with --export=NONE.
  run_ranks srun --kill-on-bad-exit=1 --export=ALL "${where[@]}" "${binding[@]}" \
    "${srun_options[@]}" "${prefix[@]}" "$python" -m mixer_dist pretrain \
    "$job_folder/resolved.yaml" "${changes[@]}" --exit-file "$exit_file"
  rm -f "$running-$incarnation"
  end_deputy
}

# srun passes signals on to all ranks.
signal_ranks() {
  kill -USR2 "$ranks_pid"
}

# SIGTERM means that the allocation ends. Slurm has sent it to the ranks too: not once more, since a
# second signal has them drop the save under way.
note_the_end() {
  asked_to_stop=yes
  rm -f "$running-$incarnation" # this node is alive
}

# Ends this allocation, unless Slurm has done so; the job waits for another. Does not return.
#
# It waits two minutes at least: Slurm repeats messages to nodes that were slow to answer, and what
# was to end a step of this allocation would end the one that has its number in the next.
requeue() {
  trap '' TERM # with which Slurm ends what is left of the job, these commands included
  if is_running; then
    say "$1: requeued"
    clean_nodes
    trap - EXIT
    scontrol requeue "$SLURM_JOB_ID" || exit 75
  else
    say "$1: Slurm has ended this allocation"
  fi
  exclude_unreliable_nodes
  exit 75
}
