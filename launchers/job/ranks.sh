# Ranks that run in the background of a launcher, so that it hears signals meanwhile. Who sources this
# says in signal_ranks how they are reached, and in $exit_file where rank 0 tells how it has ended.

ranks_pid="" # of srun or torchrun, while it runs
asked_to_stop=no

ask_to_stop() {
  asked_to_stop=yes
  [[ -z $ranks_pid ]] || signal_ranks 2>/dev/null || true # they may just have ended
}

# Runs a command until all its ranks have ended.
run_ranks() {
  rm -f "$exit_file"
  [[ $asked_to_stop == no ]] || return 0
  "$@" &
  ranks_pid=$!
  # A signal that is trapped ends `wait`, but not what it waits for.
  while kill -0 "$ranks_pid" 2>/dev/null; do wait "$ranks_pid" || true; done
  ranks_pid=""
}

# How the run has ended, 1 where rank 0 was killed. The codes of srun and torchrun do not tell: once
# a rank has ended, they end the others.
exit_code() {
  local code
  code=$(sed -n 's/^{"exit_code": \([0-9]*\).*/\1/p' "$exit_file" 2>/dev/null || true)
  if [[ -z $code && $asked_to_stop == yes ]]; then code=75; fi # a rank that could not listen yet
  echo "${code:-1}"
}
