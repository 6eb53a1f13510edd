"""What one worker does: one task on one checkpoint of one run."""

from dataclasses import dataclass
from hashlib import sha256

from mixer_dist.run_dir import RunDir


@dataclass(frozen=True)
class Assignment:
    """A task on a checkpoint."""

    run_dir: RunDir
    task: str
    step: int

    @property
    def checkpoint(self) -> str:
        return self.run_dir.checkpoint(self.step)

    @property
    def result(self) -> str:
        return self.run_dir.evaluation(self.task, self.step)

    @property
    def claims(self) -> str:
        """The folder of those who claim it."""
        return self.run_dir.claims_of(self.task, self.step)

    @property
    def job_name(self) -> str:
        """The same from every pool that looks after this run, so that one sees another's jobs."""
        return f"{job_prefix(self.run_dir)}{self.task}-{self.step}"

    def __str__(self) -> str:
        return f"step {self.step:,}, {self.task}"


def job_prefix(run_dir: RunDir) -> str:
    """How the names of all jobs of a run begin."""
    return f"eval-{sha256(run_dir.url.encode()).hexdigest()[:8]}-"
