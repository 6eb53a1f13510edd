# What the command line says: a config, overrides of it, options of sbatch.

typed_config=""
overrides=()     # of the config
named_changes=() # --change=KEY, for pretrain
options=()       # for sbatch
job_folder=""    # the job's copy of code and config, and what it notes of its starts

parse_arguments() {
  local argument
  for argument in "$@"; do
    case $argument in
      -h | --help) print_help ;;
      --job-folder=*) job_folder=${argument#*=} ;;
      --change=*) named_changes+=("$argument") ;;
      --*) options+=("$argument") ;;
      -*) fail "$argument: expected options as --name=value, such as --nodes=4" ;;
      *=*) overrides+=("$argument") ;;
      *) typed_config=$argument ;;
    esac
  done
  # Plain sbatch has made no copy: the job does, under a name that its later starts know.
  job_folder=${job_folder:-$project/logs/$(basename "$script" .sh)-${SLURM_JOB_ID:-$(date +%Y%m%d-%H%M%S)-$$}}
}

print_help() {
  sed -n '2,/^$/s/^# \{0,1\}//p' "$script"
  exit 0
}

# The value of an sbatch option that was typed, else the one at the top of the script.
sbatch_option() {
  local value argument
  value=$(sed -n "s/^#SBATCH --$1=//p" "$script")
  for argument in "${options[@]}"; do
    [[ $argument != "--$1="* ]] || value=${argument#*=}
  done
  echo "$value"
}

# A number that was asked for; of a range, such as --nodes=2-4, the most.
asked_number() {
  local value
  value=$(sbatch_option "$1")
  [[ ${value##*-} =~ ^[1-9][0-9]*$ ]] || fail "--$1=$value: expected a whole number, at least 1"
  echo "${value##*-}"
}

refuse_lost_options() {
  ((${#options[@]} == 0)) ||
    fail "${options[0]} comes too late: sbatch options go before the script"
}
