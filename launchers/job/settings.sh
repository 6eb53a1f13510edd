# What the environment and site.env say.

SETTINGS=(
  DATA NUM_CLASSES RUN_DIR CONFIG PYTHON VENV_TAR PREFIX SRUN_OPTIONS BINDING MIN_NODES TRIES RETRY_S
  CHECK
)

# The environment wins over site.env, however its lines are written.
if [[ -f $code/launchers/site.env ]]; then
  given=$(declare -p "${SETTINGS[@]}" 2>/dev/null || true)
  set +eu # `module` and the activate scripts of environments do not bear strict mode
  # shellcheck source=/dev/null
  source "$code/launchers/site.env"
  set -eu
  eval "$given"
fi

python=${PYTHON:-$project/.venv/bin/python}

choose_config() {
  config=${typed_config:-${CONFIG:-$default_config}}
  [[ -n $config ]] || fail "give a config, such as configs/quickstart.yaml; --help says more"
  [[ -f $config ]] || fail "no config at $config, from $PWD; options are written --name=value"
  # The configs of public runs name a bucket that only their users can fill in.
  [[ -n ${DATA:-} || $(<"$config") != *"manifest: s3://your-bucket/"* ]] ||
    fail "set DATA to the URL of the training data's manifest.json"
}

# The settings as overrides of the config, after the script's own and before those that were typed:
# the last one wins.
add_settings_to_overrides() {
  local url entries manifests settings=()
  if [[ -n ${DATA:-} ]]; then
    read -r -d '' -a manifests <<<"$DATA" || true
    entries=$(for url in "${manifests[@]}"; do echo "{manifest: $(quoted "$url")}"; done)
    settings+=("data.train=[${entries//$'\n'/, }]")
  fi
  [[ -z ${NUM_CLASSES:-} ]] || settings+=("model.num_classes=$NUM_CLASSES")
  [[ -z ${RUN_DIR:-} ]] || settings+=("run_dir=$(quoted "$RUN_DIR")")
  overrides=("${default_overrides[@]}" "${settings[@]}" "${overrides[@]}")
}

# A YAML string: overrides are read as YAML, where an unquoted URL or path may mean something else.
quoted() {
  local quote="'"
  echo "$quote${1//$quote/$quote$quote}$quote"
}

# Runs Python once: here, or in a job as a task, since only tasks may be inside a container.
run_python() {
  local prefix step=()
  read -r -a prefix <<<"${PREFIX:-}"
  [[ -z ${SLURM_JOB_ID:-} ]] || step=(one_task)
  "${step[@]}" "${prefix[@]}" "$python" "$@"
}
