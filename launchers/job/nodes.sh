# Which nodes of the job are used: those that answer, without those that have failed twice.
# Lists of nodes have commas between their names.

failures=$job_folder/failures # a line with its name each time that a node has failed
running=$job_folder/running   # names the node of this shell while ranks run

list_nodes() {
  all_nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | paste -s -d ,)
  nodes=$all_nodes # those that ranks run on
  min_nodes=${MIN_NODES:-$SLURM_JOB_NUM_NODES}
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

# Nodes on which no command can be run, of those in use.
silent_nodes() {
  local node
  without "$nodes" "$(for node in ${nodes//,/ }; do
    timeout 60 srun --quiet --nodelist="$node" --nodes=1 --ntasks=1 --ntasks-per-node=1 \
      echo "$node" 2>/dev/null </dev/null &
  done | paste -s -d ,)"
}

# Chooses nodes for a further start within this allocation, if enough are left; notes who failed.
choose_nodes() {
  local silent
  silent=$(silent_nodes)
  [[ $silent != "$nodes" ]] || return 1 # that is not the nodes' fault
  note_failures "$silent,$(blamed_node)"
  nodes=$(without "$(without "$nodes" "$silent")" "$(unreliable_nodes)")
  (($(count "$nodes") >= min_nodes))
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

# A shell that notes no end of its ranks has gone down with its node.
note_lost_shell() {
  [[ ! -f $running ]] || note_failures "$(<"$running")"
  rm -f "$running"
}

# Has the job's next allocation leave out nodes that have failed twice, if the partition has others.
exclude_unreliable_nodes() {
  local unreliable others
  unreliable=$(unreliable_nodes)
  [[ -n $unreliable ]] || return 0
  others=$(sinfo --noheader --partition="$SLURM_JOB_PARTITION" --Node --format='%N %t' |
    awk '$2 !~ /down|drain|fail|unk|maint/ {print $1}' | sort --unique | paste -s -d ,)
  if (($(count "$(without "$others" "$unreliable")") < SLURM_JOB_NUM_NODES)); then
    say "no other nodes for $unreliable, which failed twice: they stay in use"
    return 0
  fi
  say "$unreliable failed twice: left out from now on"
  scontrol update JobId="$SLURM_JOB_ID" ExcNodeList="$unreliable" || true
}
