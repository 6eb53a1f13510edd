"""Workers as jobs of Slurm, submitted through submitit; accounting (sacct) is not needed."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import UncompletedJobError
from submitit.helpers import clean_env, environment_variables

from mixer_dist import distributed
from mixer_dist.config import PoolConfig
from mixer_dist.errors import MixerError, RefusedError
from mixer_dist.eval.pool.executors import Jobs

ASK_S = 60.0  # that Slurm has for an answer
SITE = {
    "SLURM_CONF": "", "SBATCH_ACCOUNT": "account", "SBATCH_PARTITION": "partition",
    "SBATCH_QOS": "qos",
}  # fmt: skip
"""Variables that submissions keep, and the options that they would win over."""


class SlurmExecutor:
    """Workers as jobs with names, by which a pool finds those of an earlier one again."""

    def __init__(self, rules: PoolConfig) -> None:
        if missing := [name for name in ("sbatch", "squeue", "srun") if not shutil.which(name)]:
            raise RefusedError(
                f"pool.executor is slurm, and there is no {', '.join(missing)} here: call it on a "
                "cluster's login node, or set pool.executor=local"
            )
        self._rules = rules
        self._jobs: dict[str, Any] = {}
        self._executor = submitit.SlurmExecutor(
            folder=Path(rules.log_dir).absolute() / "%j", python=rules.slurm.python
        )
        self._executor.update_parameters(**_parameters(rules))
        self._site = _site_variables(rules)

    def start(self, name: str, command: Sequence[str]) -> None:
        """Its lines go to log_dir/JOBID/."""
        self._executor.update_parameters(job_name=name)
        try:
            # Else the job would take its size from the one that the pool may run in.
            with clean_env(), environment_variables(**self._site):
                self._jobs[name] = self._executor.submit(subprocess.call, list(command))
        except (subprocess.CalledProcessError, RuntimeError, OSError) as error:
            raise MixerError(f"sbatch has not taken {name}: {_last_line(error)}") from error

    def look(self) -> Jobs:
        """MixerError where Slurm does not answer."""
        command = ["squeue", "--me", "--noheader", "--format=%j"]
        try:
            names = subprocess.run(
                command, capture_output=True, text=True, timeout=ASK_S, check=True
            ).stdout
        except (subprocess.SubprocessError, OSError) as error:
            raise MixerError(f"squeue does not answer: {_last_line(error)}") from error
        under_way = frozenset(names.split())
        ended = {name: _exit_code(self._jobs.pop(name)) for name in self._jobs.keys() - under_way}
        return Jobs(under_way, ended)

    def has_news(self) -> bool:
        return False

    def stop(self) -> dict[str, int | None]:
        """Jobs go on: the next pool knows them by their names."""
        return {}


def _parameters(rules: PoolConfig) -> dict[str, Any]:
    """The job as submitit takes it."""
    port = "export MASTER_ADDR=127.0.0.1 MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000))"
    threads = "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK"
    return {
        "nodes": 1,
        "ntasks_per_node": rules.ranks,
        "cpus_per_task": rules.cores or 1,
        "time": max(1, round(rules.time_limit_s / 60)),
        "setup": [port, threads, *rules.slurm.setup],
        "additional_parameters": _options(rules),
        "stderr_to_stdout": True,
    }


def _options(rules: PoolConfig) -> dict[str, Any]:
    """Options of sbatch that only some clusters need."""
    options: dict[str, Any] = {"partition": rules.slurm.partition} if rules.slurm.partition else {}
    options |= {"gpus-per-node": rules.gpus} if rules.gpus else {}
    return options | rules.slurm.parameters


def _site_variables(rules: PoolConfig) -> dict[str, str]:
    """What the environment says of the site, as far as the configuration does not."""
    options = _options(rules)
    found = {name: distributed.variable(name) for name in SITE if SITE[name] not in options}
    return {name: value for name, value in found.items() if value is not None}


def _exit_code(job: Any) -> int | None:
    """Of the worker's rank 0, as the job has written it at its end; None where it was killed."""
    if not job.paths.result_pickle.exists():  # else submitit would ask sacct
        return None
    try:
        return int(job.task(0).result())
    except UncompletedJobError:
        return None


def _last_line(error: Exception) -> str:
    said = getattr(error, "stderr", None) or getattr(error, "output", None) or str(error)
    text = said.decode(errors="replace") if isinstance(said, bytes) else str(said)
    return text.strip().splitlines()[-1] if text.strip() else type(error).__name__
