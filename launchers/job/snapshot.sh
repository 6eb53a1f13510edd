# The job's own copy of the code and the config: whoever edits the project changes no job.

take_snapshot() {
  [[ ! -d $job_folder ]] || return 0
  local new=$job_folder.new
  choose_config
  add_settings_to_overrides
  rm -rf "$new"
  mkdir -p "$new"
  tar --exclude=__pycache__ -cf - mixer_dist launchers/job | tar -xf - -C "$new"
  [[ ! -f launchers/site.env ]] || cp launchers/site.env "$new/launchers/"
  cp "$config" "$new/given.yaml"
  printf '%s\n' "${overrides[@]@Q}" >"$new/overrides"
  printf '%s\n' "${named_changes[@]@Q}" >"$new/changes"
  describe_code >"$new/code.txt"
  mv "$new" "$job_folder" # whole, or not at all
}

# The commit, and what differs from it.
describe_code() {
  git rev-parse HEAD 2>/dev/null || return 0
  git status --short -- mixer_dist launchers
  git diff HEAD -- mixer_dist launchers
}

# Python runs the copied code from here on; -m would prefer that of the project, where we are.
use_snapshot() {
  export PYTHONPATH=$job_folder${PYTHONPATH:+:$PYTHONPATH} PYTHONSAFEPATH=1
}

# Writes the whole config, which has been checked for so many ranks, and keeps the copy in run_dir.
resolve_config() {
  [[ ! -f $job_folder/resolved.yaml ]] || return 0
  local new=$job_folder/resolved.yaml.new words ranks=()
  [[ $verb != pretrain ]] || ranks=(--world-size "$1")
  eval "words=($(<"$job_folder/overrides"))"
  run_python -m mixer_dist "$verb" "${config:-$job_folder/given.yaml}" "${words[@]}" \
    --print-config >"$new"
  run_python -m mixer_dist "$verb" "$new" --dry-run "${ranks[@]}"
  run_python "$job_folder/launchers/job/archive.py" "$job_folder" "$new"
  mv "$new" "$job_folder/resolved.yaml"
}
