# Everything a fresh machine needs: `make quickstart`, `make test`, `make lint`.
VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin

SLURM := munge slurmctld slurmd slurm-client

.PHONY: quickstart test lint slurm soak clean

quickstart: $(VENV)/installed
	$(BIN)/python launchers/quickstart.py

test: lint slurm
	$(BIN)/python -m pytest -n 3 --dist loadfile --ignore=tests/launchers
	$(BIN)/python -m pytest tests/launchers

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# For tests/launchers/test_dev_cluster.py, which is skipped where Slurm is not installed.
slurm:
	@PATH="$$PATH:/usr/sbin"; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get && \
	    ! (command -v munged && command -v slurmctld && command -v slurmd && command -v srun); then \
	  apt-get update --quiet && apt-get install --quiet -y --no-install-recommends $(SLURM) || \
	  echo "Slurm could not be installed: its tests will be skipped" >&2; \
	fi >/dev/null

# A run under Slurm to which something always happens; hours, goes on where it was ended.
soak: $(VENV)/installed slurm
	$(BIN)/python benchmarks/soak.py

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build runs datasets .mypy_cache .ruff_cache .pytest_cache .hypothesis
