# Which nodes of the job are used: those that answer, without those that have failed twice.
# Lists of nodes have commas between their names.

deputy_pid=""

failures=$job_folder/failures # a line with its name each time that a node has failed
exclusions=$job_folder/exclusions # nodes that the job's user leaves out
running=$job_folder/running   # with the incarnation: names the node of its shell while ranks run

list_nodes() {
  all_nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | paste -s -d ,)
  nodes=$all_nodes # those that ranks run on
  min_nodes=${MIN_NODES:-$SLURM_JOB_NUM_NODES}
  ((min_nodes < SLURM_JOB_NUM_NODES)) || min_nodes=$SLURM_JOB_NUM_NODES
}

count() {
  wc -w <<<"${1//,/ }"
}

# The first list without the names in the second.
without() {
  tr , '\n' <<<"$1" | { grep -vxF -f <(tr , '\n' <<<"$2") || true; } | paste -s -d ,
}

unreliable_nodes() {
  sort "$failures" 2>/dev/null | uniq -c | awk '$1 > 1 {print $2}' | paste -s -d ,
}

# Nodes that answer nothing or have no room for our folder, of those in use.
# shellcheck disable=SC2016 # the shell of a task expands these
silent_nodes() {
  local node
  without "$nodes" "$(for node in ${nodes//,/ }; do
    timeout 60 srun --quiet --nodelist="$node" --nodes=1 --ntasks=1 --ntasks-per-node=1 \
      sh -c 'mkdir -p "$0" && echo "$1"' "$local_folder" "$node" 2>/dev/null </dev/null &
  done | paste -s -d ,)"
}

# Has another node watch over that of this shell, as long as ranks run, where MIN_NODES had the job
# submitted with --no-kill: also a job that has no node to spare is not ended by Slurm then.
start_deputy() {
  local others
  others=$(without "$nodes" "$SLURMD_NODENAME")
  [[ -n $others && -n ${MIN_NODES:-} ]] || return 0
  srun --quiet --nodelist="${others%%,*}" --nodes=1 --ntasks=1 --ntasks-per-node=1 --export=ALL \
    bash "$job_folder/launchers/job/deputy.sh" "$SLURMD_NODENAME" </dev/null &
  deputy_pid=$!
}

end_deputy() {
  [[ -z $deputy_pid ]] || kill "$deputy_pid" 2>/dev/null || true
  deputy_pid=""
}

# Chooses nodes for a further start within this allocation, if enough are left; notes who failed.
choose_nodes() {
  local silent unreliable reliable
  silent=$(silent_nodes)
  [[ $silent != "$nodes" ]] || return 1 # that is not the nodes' fault
  note_failures "$silent,$(blamed_node)"
  nodes=$(without "$nodes" "$silent")
  unreliable=$(unreliable_nodes)
  reliable=$(without "$nodes" "$unreliable")
  if (($(count "$reliable") >= min_nodes)) || has_others_than "$unreliable"; then
    nodes=$reliable
  fi
  (($(count "$nodes") >= min_nodes))
}

# Whether the partition has enough nodes for the job without these.
has_others_than() {
  local others
  others=$(sinfo --noheader --partition="$SLURM_JOB_PARTITION" --Node --format='%N %t' |
    awk '$2 !~ /down|drain|fail|unk|maint/ {print $1}' | sort --unique | paste -s -d ,)
  (($(count "$(without "$others" "$1,$(left_out_by_user)")") >= SLURM_JOB_NUM_NODES))
}

# As they were before any of ours.
left_out_by_user() {
  local nodes
  [[ -f $exclusions ]] || squeue --noheader --jobs="$SLURM_JOB_ID" --format=%x >"$exclusions"
  nodes=$(<"$exclusions")
  [[ -z $nodes ]] || scontrol show hostnames "$nodes" | paste -s -d ,
}

note_failures() {
  tr , '\n' <<<"$1" | sed '/^$/d' | sort --unique | tee -a "$failures" |
    while read -r node; do say "node $node has failed"; done
}

# The node that Slurm has given up, or whose rank was the first to die of a signal that nobody here
# has sent: srun tells in the log. Ranks that ended by themselves say nothing about their node.
blamed_node() {
  local first
  first=$(tail -c "+$((log_begin + 1))" "$log" | grep --max-count=1 --extended-regexp \
    'CANCELLED AT|^srun: error: (Node failure on|.*: tasks? .*: (Killed|Bus error|Segmentation fault))' ||
    true)
  case $first in
    "srun: error: Node failure on "*) first=${first#*failure on } ;;
    "srun: error: "*) first=${first#srun: error: } ;;
    *) return 0 ;;
  esac
  scontrol show hostnames "${first%%:*}" | paste -s -d ,
}

# Shells of earlier allocations that note no end of their ranks have gone down with their nodes.
note_lost_shells() {
  local file
  for file in "$running"-*; do
    [[ ! -f $file ]] || note_failures "$(<"$file")"
    rm -f "$file"
  done
}

# Has the job's next allocation leave out nodes that have failed twice, beside those that its user
# leaves out. Where all others have failed too, counting begins anew: a job must not wait for ever.
exclude_unreliable_nodes() {
  local unreliable excluded
  unreliable=$(unreliable_nodes)
  [[ -n $unreliable ]] || return 0
  excluded=$(left_out_by_user)
  if has_others_than "$unreliable"; then
    say "$unreliable failed twice: left out from now on"
    excluded=${excluded:+$excluded,}$unreliable
  else
    say "no other nodes for $unreliable, which failed twice: they stay in use"
    rm -f "$failures"
  fi
  scontrol update JobId="$SLURM_JOB_ID" ExcNodeList="$excluded" || true
}
