"""How checkpoints are evaluated beside the training."""

from typing import Literal

from pydantic import Field

from mixer_dist.sections import NonNegativeInt, PositiveFloat, PositiveInt, Section


class SlurmConfig(Section):
    """What sbatch is told of a worker's job, beside ranks, cores, gpus and time limit."""

    partition: str | None = None
    parameters: dict[str, str | int | float | bool] = Field(default_factory=dict)
    """Further options by their long names, such as {qos: low, account: mine, mem: 32G}."""
    setup: tuple[str, ...] = ()
    """Lines of shell before the worker, such as "module load cuda"."""
    python: str | None = None
    """How the job starts Python, such as "apptainer exec --nv mixer.sif python3"; by default the
    interpreter of the pool."""


class PoolConfig(Section):
    """Workers that evaluate each committed checkpoint on each task of evals, once."""

    executor: Literal["local", "slurm"] = "local"
    """Where workers run: as processes of this machine, or as jobs of their own."""
    max_workers: PositiveInt = 1
    """How many at once."""
    ranks: PositiveInt = 1
    """Of one worker, all on one node."""
    cores: PositiveInt | None = None
    """For each rank; by default its share of this machine, under slurm 1."""
    gpus: NonNegativeInt = 0
    """Of one worker. Local workers share all that are there where this is 0."""
    time_limit_s: PositiveFloat = 14_400.0
    """A worker that takes longer is ended."""
    poll_s: PositiveFloat = 30.0
    """Between two looks at the run directory."""
    order: Literal["newest", "oldest"] = "newest"
    """Which checkpoints come first; the others fill in."""
    every_steps: PositiveInt | None = None
    """Only checkpoints whose step is a multiple of this, and that of the run's last step."""
    lease_s: PositiveFloat = 120.0
    """A worker that has given no sign of life for so long is replaced."""
    max_failures: PositiveInt = 3
    """Errors of a task on a checkpoint, after which it is left."""
    max_losses: PositiveInt = 10
    """Workers that may vanish over a task on a checkpoint, as where memory ends, until it is left.
    One that is asked to stop does not count."""
    until: Literal["finished", "stopped"] = "finished"
    """Ends when the run's last step has all its results, or goes on for ever."""
    log_dir: str = "logs/pool"
    """What workers print; under slurm, a folder that all nodes share."""
    slurm: SlurmConfig = SlurmConfig()
